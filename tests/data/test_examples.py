import random

import pytest
import torch

from data import DataError
from data.examples import (
    is_tie,
    measured_examples,
    preference_examples,
    sft_examples,
    unpaired_examples,
    with_exact_ties,
)
from data.preferences import check_unpaired
from minigpt import EOS, SEP

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


# --- unpaired -------------------------------------------------------------------------------------


def labelled(*rows):
    """(prompt, completion, label) -> rows."""
    return [dict(zip(("prompt", "completion", "label"), row, strict=True)) for row in rows]


def read(examples):
    """Examples of one response as (prompt, response)."""
    return [(example.prompt[:-1].decode(), example.responses[0].rstrip(bytes([EOS])).decode())
            for example in examples]


def test_an_answer_is_mismatched_with_the_next_prompt_that_differs():
    rows = labelled(("p", "a", True), ("q", "b", False), ("r", "c", True))
    examples, mismatched, labels = unpaired_examples(rows, 64)
    assert read(examples) == [("p", "a"), ("q", "b"), ("r", "c")]
    assert read(mismatched) == [("p", "b"), ("q", "c"), ("r", "a")]
    assert labels.dtype == torch.bool and labels.tolist() == [True, False, True]
    assert examples[1].prompt == b"q" + bytes([SEP])
    assert mismatched[1].responses == (b"c" + bytes([EOS]),)


def test_pairs_are_taken_apart_and_the_rejected_answers_are_mismatched_too():
    pairs = [{"prompt": p, "chosen": p + "+", "rejected": p + "-"} for p in "pqr"]
    examples, mismatched, labels = unpaired_examples(pairs, 64)
    assert read(examples) == [("p", "p+"), ("p", "p-"), ("q", "q+"), ("q", "q-"), ("r", "r+"),
                              ("r", "r-")]
    assert labels.tolist() == [True, False] * 3
    assert read(mismatched) == [("p", "q+"), ("p", "q-"), ("q", "r+"), ("q", "r-"), ("r", "p+"),
                                ("r", "p-")]


@pytest.mark.parametrize(("prompts", "others"), [
    ("pq", "10"), ("ppq", "220"), ("pqq", "100"), ("pqp", "121"), ("pppq", "3330"),
    ("pqqp", "1301"), ("ppqq", "2301"), ("pqpq", "1230"), ("pqqqqqr", "1606060")])
def test_equal_prompts_are_passed_over_in_a_circle(prompts, others):
    rows = labelled(*((prompt, str(n), n == 0) for n, prompt in enumerate(prompts)))
    _, mismatched, _ = unpaired_examples(rows, 64)
    assert [answer for _, answer in read(mismatched)] == list(others)


@pytest.mark.parametrize("seed", range(20))
def test_no_answer_is_mismatched_with_its_own_prompt_and_the_same_rows_give_the_same(seed):
    rng = random.Random(seed)
    prompts = [f"p{rng.randrange(rng.choice((2, 5, 50)))}" for _ in range(60)] + ["p0", "p1"]
    rows = labelled(*((prompt, f"{prompt} {n}", n % 3 == 0) for n, prompt in enumerate(prompts)))
    examples, mismatched, labels = unpaired_examples(rows, 64)
    assert [example.prompt for example in mismatched] == [example.prompt for example in examples]
    assert all(answer.split()[0] != prompt for prompt, answer in read(mismatched))
    again = unpaired_examples(check_unpaired(rows), 64)
    assert again[:2] == (examples, mismatched) and torch.equal(again[2], labels)


def test_many_rows_of_few_prompts_take_a_moment():
    rows = labelled(*(("p", "a", True) for _ in range(20_000)), ("q", "b", False),
                    *(("p", "c", True) for _ in range(20_000)))
    _, mismatched, _ = unpaired_examples(rows, 64)
    assert {pair for pair in read(mismatched) if pair[0] == "p"} == {("p", "b")}


def test_labels_stay_with_their_rows_where_prompts_leave_no_room(capsys):
    rows = labelled(("x" * 20, "a", True), ("p", "b", False), ("y" * 19, "c", True),
                    ("z" * 18, "d", True), ("x" * 40, "e", False), ("q", "f", False))
    examples, mismatched, labels = unpaired_examples(rows, 20)
    assert read(examples) == [("p", "b"), ("z" * 18, "d"), ("q", "f")]
    assert labels.tolist() == [False, True, False]
    assert read(mismatched) == [("p", "d"), ("z" * 18, "f"), ("q", "b")]
    assert capsys.readouterr().out.splitlines() == [
        "max_seq_len=20: truncated a response in 1 of 6 rows (the first: [3])",
        "max_seq_len=20: no room for a response, so dropped 3 of 6 rows (the first: [0, 2, 4])"]


def test_a_mismatched_answer_is_truncated_behind_its_new_prompt_without_a_word(capsys):
    rows = labelled(("p", "x" * 10, True), ("long prompt", "y", False))
    examples, mismatched, _ = unpaired_examples(rows, 16)
    assert capsys.readouterr().out == ""
    assert not any(example.is_truncated for example in examples)
    assert [example.is_truncated for example in mismatched] == [False, True]
    assert mismatched[1].responses == (b"xxxx",)
    rows[1]["completion"] = "y" * 6  # which fit behind the other prompt, but not behind their own
    _, mismatched, _ = unpaired_examples(rows, 16)
    assert mismatched[0].responses == (b"y" * 6 + bytes([EOS]),)


@pytest.mark.parametrize(("label", "word"), [(True, "good"), (False, "bad")])
def test_labels_that_are_all_the_same_are_an_error(label, word):
    message = f"every row is labelled {word}: KTO needs some of each"
    rows = labelled(("p", "a", label), ("q", "b", label))
    with pytest.raises(DataError, match=message):
        unpaired_examples(rows, 16)
    with pytest.raises(DataError, match=message):
        unpaired_examples([*rows, *labelled(("x" * 40, "c", not label))], 16)


def test_prompts_that_are_all_the_same_are_an_error():
    rows = labelled(("p", "a", True), ("p", "b", False))
    with pytest.raises(DataError, match="every row has the same prompt, so no answer can be "
                                        "mismatched and KTO has no reference point"):
        unpaired_examples([*rows, *labelled(("x" * 40, "c", True))], 16)
    with pytest.raises(ValueError, match="no row is left to train on"):
        unpaired_examples(rows, 2)
    with pytest.raises(DataError, match="row 1: column 'label' is 2, neither good"):
        unpaired_examples([rows[0], {**rows[1], "label": 2}], 16)
