import pytest

from data import DataError
from data.preferences import Located
from data.splits import (
    SHORTEST_PROMPT,
    TRUNCATION_CHOICES,
    heldout_prompts,
    split_records,
    truncate_records,
    without_prompts_of,
)
from minigpt import EOS
from minigpt.examples import tokenize_example

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


def located(records):
    """The records, each a row of its own, on the lines 0, 1, ... of a file."""
    return [Located(f"line {number}", record, record["prompt"])
            for number, record in enumerate(records)]


def truncated(records, max_seq_len, long_rows):
    """What is left of the records."""
    return [kept.record for kept in truncate_records(located(records), max_seq_len, long_rows)]


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


@pytest.mark.parametrize("seed", range(20))
def test_case_and_white_space_make_no_other_prompt(seed):
    prompts = ["Where is Oslo?", "where is oslo?", " Where  is\nOslo? ", "WHERE IS OSLO?"]
    held = heldout_prompts([*prompts, "Who?"], 0.5, seed)
    train, heldout = split_records(located([{**GOOD, "prompt": text} for text in prompts]), held)
    assert (len(train), len(heldout)) in ((4, 0), (0, 4))
    with pytest.raises(DataError, match="two different prompts"):
        heldout_prompts(prompts, 0.5, seed)


def test_the_records_of_one_row_stay_on_one_side():
    turns = [Located("line 1", {"prompt": prompt, "response": "x"}, "first")
             for prompt in ("first", "Human: first\n\nAssistant: x\n\nHuman: more\n\nAssistant:")]
    other = located([{"prompt": "other", "response": "y"}])
    assert split_records([*turns, *other], {"first"}) == (
        [other[0].record], [turn.record for turn in turns])
    assert split_records([*turns, *other], {"other"}) == (
        [turn.record for turn in turns], [other[0].record])


def test_a_training_record_with_a_held_out_prompt_is_left_out_and_plain_text_never_is():
    held = [{"prompt": "A b", "response": "x"}, {"prompt": "", "response": "text"}]
    train = [{"prompt": "a  B", "response": "y"}, {"prompt": "", "response": "other text"},
             {"prompt": "ab", "response": "z"}]
    assert without_prompts_of(train, held) == train[1:]
