import csv
import io
import json

import numpy as np
import pytest

from data import PREFERENCE_DATA, DataError, load_preferences, load_sft
from data.files import save_jsonl
from data.layouts import SPELLINGS, read_demonstrations, read_preference, read_unpaired
from data.preferences import check_preferences, check_sft, read_records
from minigpt import EOS
from minigpt.examples import tokenize_example

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


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
    (3, "is int"), (None, "is null"), ([], "is empty"), (True, "is bool"),
    (float("nan"), "is null"), (b"a", "is bytes"), (["a"], ": message 0 is str"),
    ([["a", "b"]], ": message 0 is list"), ({}, ": message 0 has no role")])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_field_that_is_no_text_is_named_with_its_row_and_type(column, value, kind):
    with pytest.raises(DataError, match=f"row 1: column '{column}' ?{kind}"):
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


@pytest.mark.parametrize(("line", "what"), [
    (b'{"prompt": "q", "chosen"', "valid JSON"), (b"prompt,chosen,rejected", "valid JSON"),
    (b"{'prompt': 'q'}", "valid JSON"), (b"\xff\xfe\xfa", "UTF-8")])
@pytest.mark.parametrize("load", [load_preferences, load_sft])
def test_broken_json_is_named_with_file_and_line(tmp_path, load, line, what):
    good = json.dumps(GOOD).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n" + good + b"\n\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 4: not {what}"):
        load(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("bad", "message"), [
    ({**GOOD, "prompt": 3}, "'prompt' is int"), ({"a": "b"}, "columns found are a"),
    ({**GOOD, "rejected": ""}, "'rejected' is empty"), ([1], "list"), ({}, "none")])
def test_a_bad_row_of_a_file_is_named_with_file_and_line(tmp_path, bad, message):
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(GOOD)}\n\n\n{json.dumps(bad)}\n",
                                         encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 4: .*{message}"):
        load_preferences(tmp_path / "rows.jsonl", strict=True)
    assert load_preferences(tmp_path / "rows.jsonl") == [GOOD]


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"rows\.jsonl.*no rows"):
        load_preferences(tmp_path / "rows.jsonl")


# --- rows that cannot be used ---------------------------------------------------------------------

EMPTY = {**GOOD, "chosen": ""}
SAME = {**GOOD, "chosen": "b"}
BAD = [(EMPTY, "column 'chosen' is empty"), ({**GOOD, "prompt": None}, "column 'prompt' is null"),
       ({**GOOD, "rejected": " \t"}, "column 'rejected' is empty"),
       ({**GOOD, "chosen": 4}, "column 'chosen' is int, not text"),
       ({**GOOD, "chosen": float("nan")}, "column 'chosen' is null"),
       ({**GOOD, "chosen": "\ud83d"}, "column 'chosen' contains a lone surrogate"),
       ({"chosen": "\n\nHuman: \n\nAssistant: a", "rejected": "\n\nHuman: \n\nAssistant: b"},
        "a turn without text"),
       ({**GOOD, "prompt": [{"role": "wizard", "content": "q"}]},
        "a message of unknown role 'wizard'"),
       ({**GOOD, "prompt": [{"content": "q"}]}, "a message without a role"),
       ({**GOOD, "prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        "a part of type 'image'"),
       ({}, "no column for the chosen"), (["q", "a", "b"], "a row that is list"),
       (None, "a row that is NoneType"), ("q", "a row that is str")]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_row_is_left_out_counted_by_its_reason_and_named(tmp_path, capsys, bad, reason):
    path = write(tmp_path / "rows.jsonl", [GOOD, bad, GOOD])
    assert load_preferences(path) == [GOOD, GOOD]
    read, left_out = capsys.readouterr().out.splitlines()
    assert read == f"{path}: 2 records of prompt, chosen, rejected from 2 rows, found as columns"
    assert left_out.startswith(f"{path}: left out 1 of 3 rows: {reason}")
    assert left_out.endswith(": 1 (line 2)")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: "):
        load_preferences(path, strict=True)
    with pytest.raises(DataError, match="row 1: "):
        check_preferences([GOOD, bad, GOOD])


def test_each_reason_is_counted_and_its_first_five_places_are_named(tmp_path, capsys):
    rows = [GOOD] * 200 + [EMPTY] * 7 + [{**GOOD, "prompt": None}, EMPTY]
    assert len(load_preferences(write(tmp_path / "rows.jsonl", rows))) == 200
    assert capsys.readouterr().out.splitlines()[1].endswith(
        "left out 9 of 209 rows: column 'chosen' is empty: 8 (line 201, line 202, line 203, "
        "line 204, line 205, ...); column 'prompt' is null: 1 (line 208)")


@pytest.mark.parametrize(("good", "bad", "is_refused"), [
    (1, 1, False), (1, 5, False), (1, 6, True), (54, 6, False), (53, 6, True), (90, 10, False),
    (89, 10, True), (0, 1, True), (0, 5, True)])
def test_a_file_is_refused_if_more_than_a_tenth_and_more_than_five_rows_are_bad(
        tmp_path, good, bad, is_refused):
    path = write(tmp_path / "rows.jsonl", [EMPTY] * bad + [GOOD] * good)
    if is_refused:
        message = rf"rows\.jsonl: {bad} of {good + bad} rows .*'chosen' is empty: {bad} \(line 1"
        with pytest.raises(DataError, match=message):
            load_preferences(path)
    else:
        assert load_preferences(path) == [GOOD] * good


def test_identical_pairs_and_rows_labelled_bad_are_no_bad_rows(tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", [SAME] * 50 + [GOOD])
    assert load_preferences(path, strict=True) == [GOOD]
    out = capsys.readouterr().out
    assert "left out 50 of 51 rows: chosen and rejected are identical: 50" in out
    good, bad = ({"prompt": "q", "completion": "a", "label": label} for label in (True, False))
    path = write(tmp_path / "rows.jsonl", [bad] * 50 + [good])
    assert load_sft(path, strict=True) == [{"prompt": "q", "response": "a"}]
    assert "left out 50 of 51 rows: labelled bad: 50" in capsys.readouterr().out
    path = write(tmp_path / "rows.jsonl", [bad] * 50)
    with pytest.raises(DataError, match="no rows that can be used"):
        load_sft(path)


@pytest.mark.parametrize("head", ["prompt,chosen,rejected", " Prompt,CHOSEN, rejected "])
def test_the_head_of_a_csv_file_that_is_repeated_is_no_row_and_no_bad_row(tmp_path, capsys, head):
    (tmp_path / "rows.csv").write_text(f"{head}\nq,a,b\n" + f"{head}\n" * 20)
    assert load_preferences(tmp_path / "rows.csv", strict=True) == [GOOD]
    out = capsys.readouterr().out
    assert "left out 20 of 21 rows: the column names again: 20 (line 3, line 4, " in out


def test_a_row_of_csv_with_too_many_cells_is_left_out(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\nq,a,b\nq,well, a,b\n")
    assert load_preferences(tmp_path / "rows.csv") == [GOOD]
    assert "left out 1 of 2 rows: more cells than the 3 columns" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"rows\.csv, line 3: more cells"):
        load_preferences(tmp_path / "rows.csv", strict=True)


@pytest.mark.parametrize("load", [load_preferences, load_sft])
def test_a_missing_file_is_a_file_not_found_error(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere.jsonl")


# --- what is said ---------------------------------------------------------------------------------


def test_columns_that_are_not_used_are_named_once(tmp_path, capsys):
    rows = [{**GOOD, "Score": 3, "id": n, "system": "", "input": "", "notes": None}
            for n in range(5)] + [{**GOOD, "source": "x", "id": 3}]
    load_preferences(write(tmp_path / "rows.jsonl", rows))
    assert capsys.readouterr().out.endswith("columns; columns not used: score, id, source\n")


def test_a_column_without_a_name_is_named_as_such(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text(",prompt,chosen,rejected\n0,q,a,b\n")
    assert load_preferences(tmp_path / "rows.csv") == [GOOD]
    assert capsys.readouterr().out.endswith("columns not used: (no name)\n")


def test_half_a_character_in_a_name_breaks_no_line(tmp_path, capsys):
    row = {**GOOD, "\ud83d": 1}
    assert load_preferences(write(tmp_path / "rows.jsonl", [row])) == [GOOD]
    assert capsys.readouterr().out.endswith("columns not used: \\ud83d\n")


def test_many_demonstrations_of_one_row_are_counted_as_records(tmp_path, capsys):
    row = {"conversation": [{"input": "q", "output": "a"}, {"input": "r", "output": "b"}]}
    assert len(load_sft(write(tmp_path / "rows.jsonl", [row, row]))) == 4
    assert "4 records of prompt, response from 2 rows, found as conv" in capsys.readouterr().out


# --- several files --------------------------------------------------------------------------------


def test_records_of_several_files_come_in_order_with_their_file_in_their_place(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", [{**GOOD, "prompt": name}]) for name in "cab"]
    records = read_records(paths, read_preference)
    assert [(row.place, row.record["prompt"]) for row in records] == [
        (f"{path}, line 1", path.stem) for path in paths]
    assert [row.record["prompt"] for row in read_records([tmp_path], read_preference)] == [*"abc"]
    (one,) = read_records(paths[:1], read_preference)
    assert one.place == "line 1"


def test_a_file_beside_others_may_have_no_row_that_can_be_used(tmp_path, capsys):
    write(tmp_path / "a.jsonl", [GOOD])
    write(tmp_path / "dataset_info.json", [{"features": {}}])
    write(tmp_path / "empty.csv", [])
    assert load_preferences(tmp_path) == [GOOD]
    assert "dataset_info.json: left out 1 of 1 rows: no column" in capsys.readouterr().out
    write(tmp_path / "wrong.jsonl", [{"a": "b"}] * 6)
    with pytest.raises(DataError, match=r"wrong\.jsonl: 6 of 6 rows cannot be used"):
        load_preferences(tmp_path)


def test_files_of_which_none_has_a_row_are_named(tmp_path):
    paths = [write(tmp_path / name, []) for name in ("a.jsonl", "b.csv")]
    with pytest.raises(DataError, match=r"a\.jsonl, .*b\.csv: there are no rows that can be used"):
        read_records(paths, read_preference)


def test_a_row_is_known_by_its_first_prompt_and_plain_text_by_itself(tmp_path):
    talk = [{"input": "q", "output": "a"}, {"input": "r", "output": "b"}]
    path = write(tmp_path / "rows.jsonl", [{"conversation": talk}, {"text": "Once."}, GOOD])
    assert [row.group for row in read_records([path], read_demonstrations)] == ["q", "q", "Once.",
                                                                               "q"]
    path = write(tmp_path / "rows.jsonl", [{"conversation": talk, "label": 0}, GOOD])
    assert [row.group for row in read_records([path], read_unpaired)] == ["q", "q", "q"]


# --- conversations that were saved as text --------------------------------------------------------


def saved_as_text(rows, write_cell, path):
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(rows[0])
    table.writerows([write_cell(cell) for cell in row.values()] for row in rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


def talk_of(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


QUOTES = "It's \"5\" {a} {b}\n[c], 日本"
TALKS = [{"chosen": talk_of(f"{n}?", QUOTES), "rejected": talk_of(f"{n}?", "No.")}
         for n in range(20)]
READ = [{"prompt": f"{n}?", "chosen": QUOTES, "rejected": "No."} for n in range(20)]


@pytest.mark.parametrize("write_cell", [
    json.dumps, repr, str, lambda cell: json.dumps(cell, indent=2), lambda cell: f" {cell}\n",
    lambda cell: str(np.array(cell))])
def test_conversations_may_have_been_saved_as_text(tmp_path, write_cell):
    assert load_preferences(saved_as_text(TALKS, write_cell, tmp_path / "rows.csv")) == READ
    rows = [{name: write_cell(cell) for name, cell in row.items()} for row in TALKS]
    assert check_preferences(rows) == READ


@pytest.mark.parametrize("column", SPELLINGS["messages"])
def test_turns_without_roles_may_have_been_saved_as_text(tmp_path, column):
    for talk in (["q", "it's"], [["q", "it's"]], [{"input": "q", "output": "it's"}]):
        path = saved_as_text([{column: talk}], repr, tmp_path / "rows.csv")
        assert load_sft(path) == [{"prompt": "q", "response": "it's"}]


def test_an_empty_history_that_was_saved_as_text_is_none(tmp_path):
    rows = [{"instruction": "q", "output": "a", "history": history}
            for history in ([], [["x", "y"]])]
    path = saved_as_text(rows, lambda cell: cell if isinstance(cell, str) else repr(cell),
                         tmp_path / "rows.csv")
    assert [row["prompt"] for row in load_sft(path)] == [
        "q", "Human: x\n\nAssistant: y\n\nHuman: q\n\nAssistant:"]


def test_a_conversation_that_was_cut_off_is_left_out_and_the_others_are_read(tmp_path, capsys):
    rows = [{name: json.dumps(cell) for name, cell in row.items()} for row in TALKS]
    rows[3] = {name: text[:-4] for name, text in rows[3].items()}
    path = write(tmp_path / "rows.jsonl", rows)
    assert load_preferences(path) == READ[:3] + READ[4:]
    assert "left out 1 of 20 rows: a conversation saved as text that is not whole: 1 (line 4)" in \
        capsys.readouterr().out


@pytest.mark.parametrize("text", [
    "[1, 2]", "{}", "[]", "[x", '{"role": "user"}', '[{"role": "admin", "content": "x"}]',
    '[{"input": "1", "output": "2"}]', '{"from": "A", "to": "B"}', "[\"a\", \"b\"]"])
def test_a_text_that_merely_looks_like_it_stays_text(text):
    row = {"prompt": text, "chosen": text, "rejected": text + " "}
    assert check_preferences([row, row]) == [row, row]
    assert check_sft([row]) == [{"prompt": text, "response": text}]


def test_a_conversation_among_other_texts_stays_text():
    rows = [{**GOOD, "chosen": text} for text in (json.dumps(talk_of("q", "a")), "Some text.")]
    assert check_preferences(rows) == rows


# --- what stands for lists in Python --------------------------------------------------------------


@pytest.mark.parametrize("make", [list, tuple, np.array])
def test_conversations_may_be_tuples_or_arrays(make):
    rows = [{name: make(talk) for name, talk in row.items()} for row in TALKS]
    assert check_preferences(rows) == READ
    assert check_preferences(tuple(rows)) == check_preferences(iter(rows)) == READ
    assert check_sft([{"messages": make(talk_of("q", "a"))}]) == [{"prompt": "q", "response": "a"}]
    assert check_sft([{"messages": make([]), "text": "Once."}]) == [
        {"prompt": "", "response": "Once."}]


@pytest.mark.parametrize("make", [list, tuple, np.array])
def test_rows_may_be_columns(make):
    columns = {name: make([row[name] for row in READ]) for name in GOOD}
    assert check_preferences(columns) == READ
    assert check_sft(columns) == [{"prompt": row["prompt"], "response": QUOTES} for row in READ]
    talks = {name: [make(row[name]) for row in TALKS] for name in TALKS[0]}
    assert check_preferences(talks) == READ


def test_a_single_row_need_not_be_in_a_list():
    assert check_preferences(GOOD) == [GOOD]
    assert check_preferences(TALKS[0]) == READ[:1]
