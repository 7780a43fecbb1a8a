import pytest

from minigpt import EOS, SEP
from minigpt.examples import NoRoomError, tokenize_example, tokenize_examples, tokenize_prompt


def one_response_examples(texts, max_seq_len=64):
    return tokenize_examples([(prompt, [response]) for prompt, response in texts], max_seq_len)


def ids_of(example):
    return [*example.prompt, *(i for response in example.responses for i in response)]


# --- one row -------------------------------------------------------------------------------------


def test_row_is_prompt_sep_response_eos():
    expected = (bytes([*b"hi", SEP]), (bytes([*b"yes", EOS]),), False)
    assert tokenize_example("hi", ["yes"], 64) == expected


def test_pair_shares_its_prompt_and_each_response_ends():
    pair = tokenize_example("hi", ["yes", "no"], 64)
    assert ids_of(pair) == [*b"hi", SEP, *b"yes", EOS, *b"no", EOS]


def test_empty_prompt_begins_where_the_text_before_ended():
    assert ids_of(tokenize_example("", ["yes"], 64)) == [EOS, *b"yes", EOS]
    assert tokenize_prompt("", 64) == [EOS]


def test_ids_from_generate_are_used_as_they_are():
    assert ids_of(tokenize_example("hi", [[7, 250, 8]], 64)) == [*b"hi", SEP, 7, 250, 8]


def test_row_that_fits_exactly_keeps_its_eos_and_one_byte_more_loses_it():
    fits, truncated = tokenize_example("ab", ["xyz"], 7), tokenize_example("ab", ["xyz!"], 7)
    assert ids_of(fits) == [*b"ab", SEP, *b"xyz", EOS]
    assert not fits.is_truncated
    assert ids_of(truncated) == [*b"ab", SEP, *b"xyz!"]
    assert truncated.is_truncated


def test_prompt_without_room_raises_and_one_byte_less_leaves_room_for_one_token():
    assert ids_of(tokenize_example("a" * 6, ["xyz"], 8)) == [*b"aaaaaa", SEP, ord("x")]
    with pytest.raises(NoRoomError, match=r"aaaaaaa.*max_seq_len=8.*room"):
        tokenize_example("a" * 7, ["xyz"], 8)


# --- many rows -----------------------------------------------------------------------------------


def test_truncated_and_dropped_rows_are_counted_in_print(capsys):
    rows = [("a", "b"), ("a", "b" * 20), ("a" * 30, "b"), ("a", "c" * 30)]
    assert len(one_response_examples(rows, max_seq_len=16)) == 3
    printed = capsys.readouterr().out
    assert "truncated a response in 2 of 4 rows" in printed and "[1, 3]" in printed
    assert "no room for a response, so dropped 1 of 4 rows" in printed and "[2]" in printed


def test_nothing_is_printed_where_every_row_fits(texts, capsys):
    assert len(one_response_examples(texts)) == len(texts)
    assert capsys.readouterr().out == ""


def test_a_pair_is_dropped_whole_and_counts_as_one(capsys):
    kept = tokenize_examples([("a" * 30, ["b", "c"]), ("a", ["b", "c" * 30])], 16)
    assert kept == [(bytes([ord("a"), SEP]), (bytes([ord("b"), EOS]), b"c" * 14), True)]
    printed = capsys.readouterr().out
    assert "1 of 2 rows" in printed and printed.count("\n") == 2


@pytest.mark.parametrize(("rows", "message"),
                         [([], "empty"), ([("a" * 99, ["b"])], "no row is left")])
def test_no_rows_to_train_on_raises(rows, message):
    with pytest.raises(ValueError, match=message):
        tokenize_examples(rows, 16)
