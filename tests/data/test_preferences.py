import json

import pytest

from data import PREFERENCE_DATA, DataError, load_preferences, load_sft
from data.files import save_jsonl
from data.layouts import SPELLINGS
from data.preferences import (
    SHORTEST_PROMPT,
    TRUNCATION_CHOICES,
    check_preferences,
    check_sft,
    heldout_prompts,
    truncate_records,
)
from minigpt import EOS
from minigpt.examples import tokenize_example

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


def truncated(records, max_seq_len, long_rows):
    """What is left of the records, which stand on the lines 0, 1, ... of a file."""
    places = [(f"line {number}", record) for number, record in enumerate(records)]
    return [record for record in truncate_records(places, max_seq_len, long_rows)
            if record is not None]


# --- the lesson's own rows ------------------------------------------------------------------------


def test_the_lesson_has_at_least_24_rows_with_the_right_keys():
    assert len(PREFERENCE_DATA) >= 24
    assert all(set(row) == {"prompt", "preferred", "rejected"} for row in PREFERENCE_DATA)
    assert check_preferences(PREFERENCE_DATA) == [
        {"prompt": row["prompt"], "chosen": row["preferred"], "rejected": row["rejected"]}
        for row in PREFERENCE_DATA]


def test_the_lessons_prompts_all_differ():
    assert len({row["prompt"] for row in PREFERENCE_DATA}) == len(PREFERENCE_DATA)


def test_every_lesson_row_fits_into_128_tokens_with_its_eos():
    for row in PREFERENCE_DATA:
        for side in ("preferred", "rejected"):
            assert tokenize_example(row["prompt"], [row[side]], 128).responses[0][-1] == EOS


# --- spellings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "spelling"),
                         [(c, s) for c in ("prompt", "chosen", "rejected") for s in SPELLINGS[c]])
def test_every_spelling_of_a_preference_is_accepted(column, spelling):
    row = {spelling if name == column else name: value for name, value in GOOD.items()}
    assert check_preferences([row]) == [GOOD]


@pytest.mark.parametrize("spelling", SPELLINGS["response"])
def test_every_spelling_of_a_demonstration_is_accepted(spelling):
    assert check_sft([{"instruction": "q", spelling: "a"}]) == [{"prompt": "q", "response": "a"}]


def test_the_seeds_and_trl_spellings_are_among_them():
    assert {"preferred", "chosen"} <= set(SPELLINGS["chosen"])
    assert {"dispreferred", "rejected"} <= set(SPELLINGS["rejected"])


def test_a_preference_is_a_demonstration_of_its_chosen_answer():
    assert check_sft([{"prompt": "q", "preferred": "a", "rejected": "b"}]) == [
        {"prompt": "q", "response": "a"}]


def test_plain_text_is_a_demonstration_without_a_prompt():
    assert check_sft([{"prompt": "", "response": "text"}]) == [{"prompt": "", "response": "text"}]


def test_other_columns_are_left_out_and_text_is_left_as_it_is():
    row = {**GOOD, "chosen": " a\n"}
    assert check_preferences([{**row, "source": 3}]) == [row]


# --- bad rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_missing_column_is_named_with_those_found_and_those_accepted(column):
    row = {("good" if name == column else name): value for name, value in GOOD.items()}
    with pytest.raises(DataError) as error:
        check_preferences([GOOD, row])
    message = str(error.value)
    assert "row 1" in message
    assert ", ".join(SPELLINGS[column]) in message
    assert ", ".join(row) in message.split("found")[1]


def test_missing_response_is_named_with_those_found_and_those_accepted():
    message = r"row 0.*response.*response, output, completion, answer.*found are prompt, text"
    with pytest.raises(DataError, match=message):
        check_sft([{"prompt": "q", "text": "a"}])


@pytest.mark.parametrize("value", ["", " ", "\n\t"])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_empty_field_is_named_with_its_row(column, value):
    with pytest.raises(DataError, match=f"row 2: column '{column}' is empty"):
        check_preferences([GOOD, GOOD, {**GOOD, column: value}])


@pytest.mark.parametrize(("value", "kind"), [
    (3, "int"), (None, "NoneType"), (["a"], "list"), (True, "bool"), (float("nan"), "float"),
    (b"a", "bytes")])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_field_that_is_no_text_is_named_with_its_row_and_type(column, value, kind):
    with pytest.raises(DataError, match=f"row 1: column '{column}' is {kind}"):
        check_preferences([GOOD, {**GOOD, column: value}])


def test_the_column_is_named_as_the_user_spelled_it():
    with pytest.raises(DataError, match="row 0: column 'preferred' is empty"):
        check_preferences([{"question": "q", "preferred": "", "rejected": "b"}])


def test_identical_chosen_and_rejected_are_named_with_their_row():
    with pytest.raises(DataError, match=r"row 1: chosen and rejected are identical \('same'\)"):
        check_preferences([GOOD, {**GOOD, "chosen": "same", "rejected": "same"}])


def test_half_a_surrogate_pair_is_named_with_its_row():
    with pytest.raises(DataError, match=r"row 0: column 'chosen'.*surrogate"):
        check_preferences([{**GOOD, "chosen": "\ud83d"}])


@pytest.mark.parametrize("row", [3, "text", ["q", "a", "b"], None])
@pytest.mark.parametrize("check", [check_preferences, check_sft])
def test_a_row_that_is_no_object_is_named(check, row):
    with pytest.raises(DataError, match=f"row 0.*{type(row).__name__}"):
        check([row])


@pytest.mark.parametrize("check", [check_preferences, check_sft])
def test_no_rows_at_all_raises(check):
    with pytest.raises(DataError, match="no rows"):
        check([])


def test_the_first_bad_row_of_many_is_named():
    rows = [dict(GOOD, prompt=str(n)) for n in range(100)]
    rows[41]["chosen"] = rows[41]["rejected"]
    rows[70]["chosen"] = rows[70]["rejected"]
    with pytest.raises(DataError, match="row 41"):
        check_preferences(rows)


# --- files ----------------------------------------------------------------------------------------


def test_rows_survive_save_and_load(tmp_path):
    rows = [{"prompt": "日本?\n", "chosen": "é 🙂", "rejected": "\u2028 \\ \" "}, GOOD]
    save_jsonl(rows, tmp_path / "sub" / "rows.jsonl")
    assert load_preferences(tmp_path / "sub" / "rows.jsonl") == rows
    assert load_sft(str(tmp_path / "sub" / "rows.jsonl")) == [
        {"prompt": row["prompt"], "response": row["chosen"]} for row in rows]


def test_blank_lines_are_no_rows_and_windows_line_ends_are_fine(tmp_path):
    line = json.dumps(GOOD).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\r\n" + line + b"\r\n\r\n" + line + b"\n\n")
    assert load_preferences(tmp_path / "rows.jsonl") == [GOOD, GOOD]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n")
    assert load_preferences(tmp_path / "rows.jsonl") == [GOOD]


@pytest.mark.parametrize("line", [b'{"prompt": "q", "chosen"', b"prompt,chosen,rejected",
                                  b"{'prompt': 'q'}", b"\xff\xfe\xfa"])
@pytest.mark.parametrize("load", [load_preferences, load_sft])
def test_broken_json_is_named_with_file_and_line(tmp_path, load, line):
    good = json.dumps(GOOD).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n" + good + b"\n\n" + line + b"\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 4: not valid JSON"):
        load(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("bad", "message"), [
    ({**GOOD, "prompt": 3}, "'prompt' is int"), ({"a": "b"}, "columns found are a"),
    ({**GOOD, "rejected": ""}, "'rejected' is empty"), ([1], "list"), ({}, "none")])
def test_a_bad_row_of_a_file_is_named_with_file_and_line(tmp_path, bad, message):
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(GOOD)}\n\n\n{json.dumps(bad)}\n",
                                         encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 4: .*{message}"):
        load_preferences(tmp_path / "rows.jsonl")


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"rows\.jsonl.*no rows"):
        load_preferences(tmp_path / "rows.jsonl")


# --- rows that are too long -----------------------------------------------------------------------

LONG = {"prompt": "the first words, and what was asked last", "chosen": "yes",
        "rejected": "by no means"}
LONG_NEEDS = len(LONG["prompt"]) + 1 + len(LONG["rejected"]) + 1


@pytest.mark.parametrize("long_rows", TRUNCATION_CHOICES)
def test_rows_that_fit_to_the_last_token_are_left_alone_and_nothing_is_printed(capsys, long_rows):
    rows = [GOOD, LONG, {"prompt": "", "response": "x" * (LONG_NEEDS - 2)}]
    assert truncated(rows, LONG_NEEDS, long_rows) == rows
    example = tokenize_example(LONG["prompt"], [LONG["chosen"], LONG["rejected"]], LONG_NEEDS)
    assert not example.is_truncated
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("less", [1, 2, 9])
def test_a_truncated_prompt_loses_its_beginning_and_no_more_of_it_than_it_must(capsys, less):
    assert truncated([GOOD, LONG], LONG_NEEDS - less, "prompt") == [
        GOOD, {**LONG, "prompt": LONG["prompt"][less:]}]
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    expected = f"max_seq_len={LONG_NEEDS - less}: kept 2 of 2 rows; " \
        "truncated the prompt on the left in 1 ("
    assert expected in out and "1)" in out


def test_a_row_with_too_little_left_of_its_prompt_is_dropped(capsys):
    least = LONG_NEEDS - len(LONG["prompt"]) + SHORTEST_PROMPT
    assert truncated([GOOD, LONG], least, "prompt") == [
        GOOD, {**LONG, "prompt": LONG["prompt"][-SHORTEST_PROMPT:]}]
    capsys.readouterr()
    assert truncated([GOOD, LONG], least - 1, "prompt") == [GOOD]
    expected = f"max_seq_len={least - 1}: kept 1 of 2 rows; dropped as too long: 1 ("
    assert expected in capsys.readouterr().out


def test_a_prompt_that_is_short_from_the_start_is_no_reason_to_drop_a_row():
    row = {"prompt": "q", "response": "x" * 40}
    assert truncated([row], 43, "prompt") == [row]
    with pytest.raises(DataError, match="max_seq_len=42"):
        truncated([row], 42, "prompt")


def test_the_longest_response_decides_how_much_of_a_prompt_is_left():
    (row,) = truncated([{**LONG, "chosen": "x" * 20}], 50, "prompt")
    assert row["prompt"] == LONG["prompt"][-(50 - 1 - 20 - 1):]


@pytest.mark.parametrize(("letter", "size"), [("x", 1), ("é", 2), ("日", 3), ("🙂", 4)])
@pytest.mark.parametrize("more", range(4))
def test_a_truncated_prompt_begins_with_a_whole_character(letter, size, more):
    room = 40 + more
    (row,) = truncated([{"prompt": letter * 60, "response": "a"}], room + 3, "prompt")
    assert row == {"prompt": letter * (room // size), "response": "a"}


def test_letters_are_measured_in_bytes():
    rows = [{"prompt": "q", "response": "日" * 10}, {"prompt": "日" * 10, "response": "q"}]
    assert truncated(rows, 33, "row") == rows
    with pytest.raises(DataError, match="max_seq_len=32"):
        truncated(rows, 32, "row")


def test_long_responses_are_left_for_the_tokenizer_to_truncate(capsys):
    rows = [GOOD, LONG, {"prompt": "q", "chosen": "x" * 90, "rejected": "y"}]
    assert truncated(rows, LONG_NEEDS - 1, "response") == rows
    assert capsys.readouterr().out == ""
    example = tokenize_example(LONG["prompt"], [LONG["chosen"], LONG["rejected"]], LONG_NEEDS - 1)
    assert example.is_truncated and example.responses[1][-1] != EOS


def test_with_truncated_responses_only_a_prompt_without_room_for_any_is_dropped(capsys):
    least = len(LONG["prompt"]) + 2
    assert truncated([LONG, GOOD], least, "response") == [LONG, GOOD]
    assert len(tokenize_example(LONG["prompt"], [LONG["chosen"]], least).responses[0]) == 1
    assert capsys.readouterr().out == ""
    assert truncated([LONG, GOOD], least - 1, "response") == [GOOD]
    expected = f"max_seq_len={least - 1}: kept 1 of 2 rows; dropped as too long: 1 ("
    assert expected in capsys.readouterr().out


def test_long_rows_are_dropped_whole_and_the_first_few_are_named(capsys):
    rows = [GOOD, *[LONG] * 7, GOOD]
    assert truncated(rows, LONG_NEEDS - 1, "row") == [GOOD, GOOD]
    out = capsys.readouterr().out
    assert f"max_seq_len={LONG_NEEDS - 1}: kept 2 of 9 rows; dropped as too long: 7 (" in out
    assert "line 1, line 2, line 3, line 4, line 5)" in out


def test_truncated_and_dropped_rows_are_both_counted_and_order_is_kept(capsys):
    rows = [{**GOOD, "prompt": str(n)} for n in range(3)]
    hopeless = {**LONG, "chosen": "x" * 90}
    assert truncated([rows[0], LONG, rows[1], hopeless, rows[2]], LONG_NEEDS - 1, "prompt") == [
        rows[0], {**LONG, "prompt": LONG["prompt"][1:]}, rows[1], rows[2]]
    out = capsys.readouterr().out
    assert "truncated the prompt on the left in 1 (" in out and "dropped as too long: 1 (" in out


def test_truncating_changes_no_row_in_place():
    row = dict(LONG)
    truncated([row], LONG_NEEDS - 1, "prompt")
    assert row == LONG


@pytest.mark.parametrize("long_rows", TRUNCATION_CHOICES)
def test_no_row_that_fits_is_an_error_that_names_the_length(long_rows):
    with pytest.raises(DataError, match=r"no row fits.*max_seq_len=12"):
        truncated([LONG, LONG], 12, long_rows)


# --- splitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_held_out_prompts_are_about_the_share_and_follow_from_the_seed(share):
    prompts = [str(n) for n in range(1000)]
    held = heldout_prompts(prompts, share, 1)
    assert abs(len(held) / 1000 - share) < 0.05 and 0 < len(held) < 1000
    assert held == heldout_prompts(prompts[::-1], share, 1) != heldout_prompts(prompts, share, 2)


def test_whether_a_prompt_is_held_out_does_not_hang_on_the_others():
    prompts = [str(n) for n in range(1000)]
    of_all = heldout_prompts(prompts, 0.2, 0)
    assert heldout_prompts(prompts[:500], 0.2, 0) == of_all & set(prompts[:500])


@pytest.mark.parametrize("seed", range(20))
def test_two_prompts_are_enough_for_both_sides(seed):
    assert len(heldout_prompts(["a", "b", "a"], 0.2, seed)) == 1
    assert len(heldout_prompts(["a", "b"], 0.99, seed)) == 1


def test_a_single_prompt_cannot_be_split():
    with pytest.raises(DataError, match="two different prompts"):
        heldout_prompts(["a", "a"], 0.2, 0)
