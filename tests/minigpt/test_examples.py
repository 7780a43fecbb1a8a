from statistics import mean

import pytest
import torch

from minigpt import EOS, SEP, generate
from minigpt.evaluation import kl_to_reference
from minigpt.examples import (
    NoRoomError,
    each_once,
    tokenize_example,
    tokenize_examples,
    tokenize_prompt,
    tokenize_responses,
)
from reward.evaluate import score


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


def test_responses_to_one_prompt_share_an_example_where_all_are_equally_many():
    prompts = ["a", "a", "a", "a", "b", "b"]
    texts = ["one", "two", "three", "four", "five", "six"]
    shared = tokenize_responses(prompts, texts, 64)
    assert [len(example.responses) for example in shared] == [2, 2, 2]  # not 4 and 2
    assert shared == [tokenize_example(prompts[i], texts[i:i + 2], 64) for i in (0, 2, 4)]
    alone = [tokenize_example(prompt, [text], 64)
             for prompt, text in zip(prompts, texts, strict=True)]
    for odd in (["a", "b", "a", "b", "a", "b"], ["a", "a", "a", "a", "a", "b"]):
        assert all(len(example.responses) == 1 for example in tokenize_responses(odd, texts, 64))
    long = [*texts[:5], "6" * 100]  # truncated, and so named by an example of its own
    assert tokenize_responses(prompts, long, 64)[:5] == alone[:5]
    assert [e.is_truncated for e in tokenize_responses(prompts, long, 64)] == [False] * 5 + [True]
    assert [len(e.responses) for e in tokenize_responses(["a"] * 32, ["x"] * 32, 64)] == [8] * 4
    assert tokenize_responses([], [], 64) == []


def test_each_different_response_to_a_prompt_stands_once_and_fills_rows():
    prompts = [prompt for _ in range(10) for prompt in "aab"]
    responses = [text for _ in range(10) for text in ("x", "y", "x")]
    once, answers, places = each_once(prompts, responses)
    assert once == ["a"] * 8 + ["b"] * 8 and answers == ["x", *["y"] * 7, *["x"] * 8]
    assert [(once[i], answers[i]) for i in places] == list(zip(prompts, responses, strict=True))
    assert len(tokenize_responses(once, answers, 64)) == 2
    ids = [[1, 2], [1], [1, 2]] * 10
    once, answers, places = each_once(prompts, ids)
    assert [answers[i] for i in places] == ids and len(once) == 16


@pytest.mark.parametrize("texts", [[], ["x"], ["x", "x", "x"], list("abcdefghij"),
                                   ["", "[1]", "1", "a"]])
def test_where_once_would_save_nothing_all_responses_stay_as_they_are(texts):
    prompts = ["a"] * len(texts)
    assert each_once(prompts, texts) == (prompts, texts, list(range(len(texts))))


def test_measures_of_responses_that_repeat_each_other_are_those_of_each_alone(make_model,
                                                                              make_reward):
    policy, reference, reward = make_model(0), make_model(1), make_reward(2)
    few = generate(policy, ["Capital of Japan?"] * 3 + ["1 + 1?"] * 2, 12, seed=0)
    order = [0, 1, 2, 0, 0, 1] * 3 + [3, 4, 3] * 6
    prompts = ["Capital of Japan?" if i < 3 else "1 + 1?" for i in order]
    responses = [few[i] for i in order]
    ids = [response.ids for response in responses]
    assert len(each_once(prompts, ids)[0]) < len(prompts)
    alone = [float(score(reward, [prompt], [own]))
             for prompt, own in zip(prompts, ids, strict=True)]
    scores = score(reward, prompts, ids)
    assert scores.tolist() == pytest.approx(alone, abs=1e-5)
    assert len(set(scores.tolist())) == len({tuple(own) for own in ids})  # the same: no rounding
    kls = [kl_to_reference(policy, reference, [prompt], [response])
           for prompt, response in zip(prompts, responses, strict=True)]
    assert kl_to_reference(policy, reference, prompts, responses) == pytest.approx(
        {name: mean(kl[name] for kl in kls) for name in kls[0]}, rel=1e-4)


def test_a_shared_prompt_changes_no_measure(make_model, make_reward):
    policy, reference, reward = make_model(0), make_model(1), make_reward(2)
    prompts = [prompt for prompt in ("Capital of Japan?", "1 + 1?", "") for _ in range(4)]
    responses = generate(policy, prompts, 12, seed=0)
    order = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]  # nobody shares
    apart = [prompts[i] for i in order], [responses[i] for i in order]
    scores = score(reward, prompts, [response.ids for response in responses])
    torch.testing.assert_close(scores[order], score(reward, apart[0], [r.ids for r in apart[1]]),
                               rtol=1e-5, atol=1e-5)
    assert kl_to_reference(policy, reference, prompts, responses) == pytest.approx(
        kl_to_reference(policy, reference, *apart), rel=1e-5)
