import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from minigpt import MiniGPT
from minigpt.batching import collate
from minigpt.examples import tokenize_examples
from reward import Ensemble, RewardModel, evaluate_reward_accuracy, score
from reward.combine import FunctionReward, as_reward, texts_of
from reward.evaluate import disagreement, reward_margins


def length(prompts, responses):
    return [float(len(response)) for response in responses]


def vowels(prompts, responses):
    return [sum(letter in "aeiou" for letter in response) for response in responses]


def echo(prompts, responses):
    """Whether the response is the prompt."""
    return [prompt == response for prompt, response in zip(prompts, responses, strict=True)]


def batch_of(rows):
    return collate(tokenize_examples(rows, 64))


ROWS = [("tea", ["tea", "rain"]), ("", ["a", "pqr"])]  # (B, k) = (2, 2), and padded
LENGTH, VOWELS = [[3, 4], [1, 3]], [[2, 2], [1, 0]]


# --- ensembles ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "expected"), [
    ({}, [[2.5, 3], [1, 1.5]]),
    ({"combine": "min"}, [[2, 2], [1, 0]]),
    ({"weights": [2, -0.5]}, [[5, 7], [1.5, 6]]),
    ({"weights": [0, 1]}, VOWELS)])
def test_mean_least_and_weighted_sum_by_hand(how, expected):
    found = Ensemble([length, vowels], **how).rewards(batch_of(ROWS))
    assert found.dtype == torch.float32 and found.tolist() == expected


def test_weights_make_a_sum_and_not_a_mean(make_reward, texts):
    models, (prompts, responses) = [make_reward(1), make_reward(2)], zip(*texts, strict=True)
    first, second = (score(model, prompts, responses) for model in models)
    found = score(Ensemble(models, weights=[0.7, 0.3]), prompts, responses)
    torch.testing.assert_close(found, 0.7 * first + 0.3 * second)
    same = score(Ensemble([models[0]] * 2, weights=[1.0, 1.0]), prompts, responses)
    torch.testing.assert_close(same, 2 * first)


def test_an_ensemble_of_models_is_their_mean_or_least_and_the_least_is_never_above(make_reward,
                                                                                   texts):
    how = [{}, {"pooling": "mean"}, {"reads": "response"}, {"pooling": "sum", "reads": "phrases"}]
    models = [make_reward(seed, **more) for seed, more in enumerate(how)]
    batch = batch_of([(p, [r, "z" + r]) for p, r in texts])
    each = torch.stack([model.rewards(batch) for model in models])
    mean, least = (Ensemble(models, combine).rewards(batch) for combine in ("mean", "min"))
    torch.testing.assert_close(mean, each.mean(0))
    assert torch.equal(least, each.amin(0))
    assert (least <= mean + 1e-6).all() and (least < mean).any()
    assert mean.shape == (len(texts), 2)


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_the_order_of_the_members_does_not_matter(make_reward, texts, combine):
    models = [make_reward(seed) for seed in range(3)]
    batch = batch_of([(p, [r]) for p, r in texts])
    torch.testing.assert_close(Ensemble(models, combine).rewards(batch),
                               Ensemble(models[::-1], combine).rewards(batch))


def test_an_ensemble_of_one_is_that_one_exactly(make_reward, texts):
    model, batch = make_reward(), batch_of([(p, [r]) for p, r in texts])
    for combine in ("mean", "min"):
        assert torch.equal(Ensemble([model], combine).rewards(batch), model.rewards(batch))


def test_ensembles_can_be_members():
    inner = Ensemble([length, vowels], "min")
    found = Ensemble([inner, echo], weights=[1, 10]).rewards(batch_of(ROWS))
    assert found.tolist() == [[12, 2], [1, 0]]


def test_an_ensemble_has_what_a_reward_model_has(make_reward):
    models = [make_reward(1), make_reward(2, max_seq_len=48)]
    ensemble = Ensemble([*models, length])
    assert ensemble.max_seq_len == 48 and ensemble.device == torch.device("cpu")
    assert set(ensemble.parameters()) == {p for model in models for p in model.parameters()}
    assert Ensemble([length]).max_seq_len == sys.maxsize
    assert Ensemble([length]).device == torch.device("cpu")
    assert Ensemble(ensemble.members, "min").max_seq_len == 48


@pytest.mark.parametrize(("arguments", "message"), [
    (([],), "no"), (([length], "max"), "combine='max'"),
    (([length, vowels], "mean", [1.0]), "1 weights for 2 members"),
    (([length], "mean", []), "0 weights for 1 members"),
    (([length], "mean", [math.nan]), "finite"), (([length], "mean", [math.inf]), "finite"),
    (([length], "min", [1.0]), "weights.*combine='min'")])
def test_an_ensemble_that_cannot_be_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(*arguments)


def test_disagreement_is_the_standard_deviation_between_the_members():
    rows = [{"prompt": "p", "chosen": "ae", "rejected": "xyzt"},
            {"prompt": "q", "chosen": "abc", "rejected": "b"}]
    expected = [0.0, 4 / math.sqrt(2), 2 / math.sqrt(2), 1 / math.sqrt(2)]
    found = disagreement(Ensemble([length, vowels]), rows)
    assert found == pytest.approx(sum(expected) / 4, rel=1e-6)
    assert disagreement(Ensemble([length, length]), rows) == 0.0


# --- functions of texts ---------------------------------------------------------------------------


def test_texts_of_a_batch_are_its_prompts_and_responses_row_by_row(texts):
    batch = batch_of([(p, [r, "z" + r, ""]) for p, r in texts])
    prompts, responses = texts_of(batch)
    assert prompts == [p for p, _ in texts for _ in range(3)]
    assert responses == [text for _, r in texts for text in (r, "z" + r, "")]


def test_a_function_is_called_once_with_every_prompt_and_response():
    calls = []

    def function(*texts):
        calls.append(texts)
        return length(*texts)
    found = FunctionReward(function).rewards(batch_of(ROWS))
    assert calls == [(["tea", "tea", "", ""], ["tea", "rain", "a", "pqr"])]
    assert found.dtype == torch.float32 and found.tolist() == LENGTH


def test_padding_changes_nothing_of_a_functions_reward(texts):
    examples = tokenize_examples([(p, [r]) for p, r in texts], 64)
    reward = FunctionReward(length)
    assert torch.equal(reward.rewards(collate(examples)), reward.rewards(collate(examples, (), 50)))
    alone = torch.cat([reward.rewards(collate([example])) for example in examples])
    assert torch.equal(reward.rewards(collate(examples)), alone)


@pytest.mark.parametrize("make", [
    list, tuple, iter, torch.tensor, np.array, lambda scores: np.array(scores, dtype=np.float16),
    lambda scores: torch.tensor(scores, dtype=torch.bfloat16), lambda scores: map(int, scores),
    lambda scores: [torch.tensor(score) for score in scores], lambda scores: map(np.int8, scores),
    lambda scores: map(np.float32, scores), lambda scores: map(Fraction, scores),
    lambda scores: torch.tensor(scores, dtype=torch.float64, requires_grad=True)])
def test_scores_may_be_any_kind_of_number(make):
    found = FunctionReward(lambda *texts: make(length(*texts))).rewards(batch_of(ROWS))
    assert found.dtype == torch.float32 and not found.requires_grad and found.tolist() == LENGTH


def test_scores_may_be_truth_values():
    for make in (list, np.array, torch.tensor):
        reward = FunctionReward(lambda *texts, make=make: make(echo(*texts)))
        assert reward.rewards(batch_of(ROWS)).tolist() == [[1, 0], [0, 0]]


def test_what_fails_is_named_with_its_prompt_and_response():
    def fails(prompts, responses):
        return [1 / (len(response) - 4) for response in responses]
    with pytest.raises(ValueError, match=r"reward function .*fails failed on the prompt 'tea' and "
                                         "the response 'rain': ZeroDivisionError") as caught:
        FunctionReward(fails).rewards(batch_of(ROWS))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_fails_only_on_many_says_so():
    def one_at_a_time(prompts, responses):
        _only, = responses
        return [0.0]
    with pytest.raises(ValueError, match="failed on the whole batch of 4 responses, but on none of "
                                         "them alone: ValueError: too many values"):
        FunctionReward(one_at_a_time).rewards(batch_of(ROWS))


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_scores_than_of_responses_raises(count):
    for make in (list, torch.tensor):
        with pytest.raises(ValueError, match=f"gave {count} scores for 4 responses"):
            FunctionReward(lambda *_, make=make: make([1.0] * count)).rewards(batch_of(ROWS))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "1", b"1", 1j, [1.0], 1e300,
                                 10**400, torch.zeros(2), torch.tensor(math.nan)], ids=repr)
def test_a_score_that_is_no_finite_number_is_named_with_its_prompt_and_response(bad):
    with pytest.raises(ValueError, match=r"not a finite number.* prompt '' and the response 'a'"):
        FunctionReward(lambda *_: [0.0, 1.0, bad, 2.0]).rewards(batch_of(ROWS))


@pytest.mark.parametrize("bad", [None, 1.0, torch.tensor(1.0)])
def test_a_function_that_returns_no_list_is_told_so(bad):
    with pytest.raises(ValueError, match=r"returned (None|1\.0), which is not a list of scores"):
        FunctionReward(lambda *_: bad).rewards(batch_of(ROWS))


def test_scores_in_two_dimensions_are_refused():
    with pytest.raises(ValueError, match="not a finite number"):
        FunctionReward(lambda prompts, _: torch.zeros(len(prompts), 1)).rewards(batch_of(ROWS))


def test_a_function_that_empties_its_lists_is_still_judged_by_them():
    def empties(prompts, responses):
        responses.clear()
        raise KeyError("gone")
    with pytest.raises(ValueError, match="the prompt 'tea' and the response 'tea'"):
        FunctionReward(empties).rewards(batch_of(ROWS))


# --- any reward -----------------------------------------------------------------------------------


def test_rewards_are_taken_as_they_are_and_unwrapped(make_reward):
    for reward in (make_reward(), Ensemble([make_reward()]), FunctionReward(length)):
        assert as_reward(reward) is reward
        assert as_reward(nn.DataParallel(torch.compile(reward))) is reward
    assert isinstance(as_reward(length), FunctionReward)
    assert as_reward(length).settings == {"function": "length"}


class Judge(nn.Module):
    """A model of one's own."""

    def forward(self, prompts, responses):
        return torch.tensor(length(prompts, responses))


def test_a_module_that_takes_texts_is_a_function():
    assert as_reward(Judge()).rewards(batch_of(ROWS)).tolist() == LENGTH


@pytest.mark.parametrize("wrong", ["runs/reward/model.pt", 1.0, None, [length], RewardModel,
                                   MiniGPT(embed_dim=8, num_heads=1, num_layers=1)])
def test_what_is_no_reward_raises(wrong):
    with pytest.raises(TypeError, match="is not a reward: give a RewardModel, an Ensemble"):
        as_reward(wrong)


def test_score_takes_a_function_texts_and_ids_alike(texts):
    prompts, responses = zip(*texts, strict=True)
    expected = torch.tensor([float(len(response)) for response in responses])
    assert torch.equal(score(length, prompts, responses), expected)
    assert torch.equal(score(length, prompts, responses, batch_size=1), expected)
    ids = [[*response.encode(), 255] for response in responses]
    assert torch.equal(score(length, prompts, ids), expected)


def test_a_function_reads_responses_of_any_length(capsys):
    assert score(length, ["p" * 3000], ["r" * 5000]).tolist() == [5000.0]
    rows = [{"prompt": "p" * 900, "chosen": "a" * 900 + "b", "rejected": "a" * 900}]
    assert reward_margins(length, rows).tolist() == [1.0]
    assert "truncated" not in capsys.readouterr().out


def test_an_ensemble_reads_as_far_as_its_shortest_member(make_reward, capsys):
    ensemble = Ensemble([make_reward(max_seq_len=16), length])
    score(ensemble, ["a"], ["b" * 20])
    assert "max_seq_len=16: truncated a response in 1 of 1" in capsys.readouterr().out


def test_accuracy_of_functions_and_ensembles_by_hand():
    rows = [{"prompt": "p", "chosen": "abc", "rejected": "b"},    # longer, more vowels
            {"prompt": "p", "chosen": "a", "rejected": "bcd"},    # shorter
            {"prompt": "p", "chosen": "xy", "rejected": "zt"}]    # neither
    assert evaluate_reward_accuracy(length, rows) == 0.5
    assert evaluate_reward_accuracy(vowels, rows) == pytest.approx(2.5 / 3)
    assert reward_margins(Ensemble([length, vowels], weights=[1, 2]), rows).tolist() == [4, 0, 0]
