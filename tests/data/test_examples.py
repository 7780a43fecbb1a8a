import pytest
import torch

from data import DataError
from data.examples import (
    is_tie,
    measured_examples,
    preference_examples,
    sft_examples,
    with_exact_ties,
)

PAIR = {"prompt": "q", "chosen": "yes", "rejected": "no"}
LATE = {"prompt": "q", "chosen": "x" * 40 + "a", "rejected": "x" * 40 + "b"}  # identical at 30


def test_training_leaves_out_pairs_that_are_identical_once_truncated_and_counts_them(capsys):
    examples = preference_examples([LATE, PAIR, LATE, {**PAIR, "prompt": "p"}], 30)
    assert [bytes(example.prompt[:-1]) for example in examples] == [b"q", b"p"]
    out = capsys.readouterr().out
    assert "max_seq_len=30: left out pairs that are identical once truncated: 2 of 4 rows " in out
    assert "(the first: [0, 2])" in out
    assert len(preference_examples([LATE, PAIR], 60)) == 2
    assert "identical" not in capsys.readouterr().out


def test_no_pair_that_differs_is_an_error():
    with pytest.raises(DataError, match="every pair is identical once truncated"):
        preference_examples([LATE, LATE], 30)


def test_a_measure_has_one_example_a_row_and_knows_the_ties(capsys):
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    examples = measured_examples([LATE, PAIR, same], 30)
    assert [is_tie(example) for example in examples] == [True, False, True]
    assert "truncated a response in 1 of 3 rows" in capsys.readouterr().out


def test_a_measure_raises_where_a_row_cannot_be_measured():
    with pytest.raises(DataError, match=r"row 1: .*leaves no room for a response"):
        measured_examples([PAIR, {**PAIR, "prompt": "x" * 40}], 30)
    with pytest.raises(DataError, match="row 1: column 'chosen' is empty"):
        measured_examples([PAIR, {**PAIR, "chosen": ""}], 30)


def test_the_values_of_ties_are_made_exactly_equal_and_others_are_left_alone():
    examples = measured_examples([LATE, PAIR], 30)
    values = torch.tensor([[1.0, 1.0 + 1e-7], [1.0, 2.0]])
    made = with_exact_ties(values, examples)
    margins = made[:, 0] - made[:, 1]
    assert margins[0].item() == 0 and torch.equal(made[1], values[1])
    assert values[0, 1] != values[0, 0]  # not in place


def test_every_turn_of_a_conversation_is_an_example():
    row = {"conversation": [{"input": "q", "output": "a"}, {"input": "r", "output": "b"}]}
    assert [bytes(example.responses[0][:-1]) for example in sft_examples([row], 64)] == [b"a", b"b"]
