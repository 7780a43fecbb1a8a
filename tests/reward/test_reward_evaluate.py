import math
import random

import pytest
import torch

from data.files import DataError
from minigpt import EOS, encode
from reward import RewardModel, evaluate_reward_accuracy, score
from reward.evaluate import accuracy_by_fault, calibration, reward_margins


def flipped(rows):
    return [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
            for row in rows]


# --- scores ---------------------------------------------------------------------------------------


def test_score_does_not_depend_on_batch_size_or_order(make_reward, texts):
    model = make_reward()
    prompts, responses = zip(*texts, strict=True)
    rewards = score(model, prompts, responses)
    one_by_one = score(model, prompts, responses, batch_size=1)
    torch.testing.assert_close(one_by_one, rewards, rtol=1e-5, atol=1e-5)
    backwards = score(model, prompts[::-1], responses[::-1], 4)
    torch.testing.assert_close(backwards, rewards.flip(0), rtol=1e-5, atol=1e-5)
    assert not rewards.requires_grad


def test_score_of_text_equals_that_of_its_ids_and_sees_the_end(make_reward):
    model = make_reward()
    text = score(model, ["a"], ["yes"])
    assert torch.equal(text, score(model, ["a"], [[*encode("yes"), EOS]]))
    assert abs(float(text - score(model, ["a"], [encode("yes")]))) > 1e-3


def test_nothing_to_score_raises(make_reward):
    with pytest.raises(ValueError, match="prompts is empty"):
        score(make_reward(), [], [])
    with pytest.raises(ValueError, match="argument 2 is"):
        score(make_reward(), ["a"], [])


def test_score_reports_what_it_truncated(make_reward, capsys):
    score(make_reward(), ["a", "a"], ["b", "b" * 90])
    assert "truncated a response in 1 of 2" in capsys.readouterr().out


# --- accuracy -------------------------------------------------------------------------------------


def test_accuracy_counts_a_tie_one_half(make_pairs, small):
    model = RewardModel(**small)
    torch.nn.init.zeros_(model.head.weight)
    assert evaluate_reward_accuracy(model, make_pairs(7)) == 0.5


def test_flipping_the_evaluation_gives_one_minus_the_accuracy(make_pairs, make_reward):
    rows = make_pairs(50)
    model = make_reward()
    accuracy = evaluate_reward_accuracy(model, rows)
    assert evaluate_reward_accuracy(model, flipped(rows)) == pytest.approx(1 - accuracy)


def test_margins_are_differences_of_scores_in_the_order_of_the_rows(make_pairs, make_reward):
    rows, model = make_pairs(20), make_reward()
    prompts = [row["prompt"] for row in rows]
    chosen = score(model, prompts, [row["chosen"] for row in rows])
    rejected = score(model, prompts, [row["rejected"] for row in rows])
    expected = chosen - rejected
    torch.testing.assert_close(reward_margins(model, rows), expected, rtol=1e-4, atol=1e-5)
    accuracy = float((expected > 0).float().mean())
    assert evaluate_reward_accuracy(model, rows) == pytest.approx(accuracy)


@pytest.mark.parametrize("how", [{}, {"pooling": "mean"}, {"reads": "response"},
                                 {"pooling": "sum", "reads": "phrases"}])
def test_identical_responses_are_an_exact_tie_whatever_the_batch(make_reward, make_pairs, how):
    model, rng = make_reward(**how), random.Random(0)
    ties = []
    for n in range(60):
        response = "".join(rng.choices("abcdef", k=rng.randint(1, 70)))
        ties.append({"prompt": f"{n}?", "chosen": response, "rejected": response})
    cut = {"prompt": "p", "chosen": "a" * 70 + "b", "rejected": "a" * 70 + "c"}  # once truncated
    for rows in (ties, ties[:1], ties[::-1], [cut], [*ties[:9], cut]):
        assert torch.equal(reward_margins(model, rows), torch.zeros(len(rows)))
        assert evaluate_reward_accuracy(model, rows) == 0.5
    mixed = reward_margins(model, [*make_pairs(5), *ties[:5]])
    assert (mixed[:5] != 0).all() and (mixed[5:] == 0).all()


def test_a_row_that_cannot_be_measured_is_named(make_reward, make_pairs):
    for row in ({"prompt": "p" * 64, "chosen": "a", "rejected": "b"},
                {"prompt": "p", "chosen": "a"}, {"prompt": "p", "chosen": "a", "rejected": ""}, 7):
        with pytest.raises(DataError, match="row 3"):
            reward_margins(make_reward(), [*make_pairs(3), row])
    assert len(reward_margins(make_reward(), make_pairs(130))) == 130


def test_accuracy_by_fault_counts_the_pairs_where_only_the_rejected_answer_has_it(world):
    prompt = "What is the capital of France?"
    rows = [{"prompt": prompt, "chosen": "It is Paris.", "rejected": rejected}
            for rejected in ("It is Rome.", "It is Oslo.", "It is Paris. Any fool knows.")]
    found = accuracy_by_fault(world, rows, torch.tensor([1.0, -1.0, 2.0]))
    assert found == {"wrong": 0.5, "rude": 1.0}


# --- calibration ----------------------------------------------------------------------------------


def test_calibration_bins_hold_every_pair_once_in_order_of_certainty():
    bins = calibration(torch.randn(103), bins=5)
    pairs = [b["pairs"] for b in bins]
    assert sum(pairs) == 103 and max(pairs) - min(pairs) <= 1
    predicted = [b["predicted"] for b in bins]
    assert predicted == sorted(predicted) and predicted[0] >= 0.5 and predicted[-1] <= 1


def test_calibration_of_a_true_bradley_terry_model_is_on_the_diagonal():
    generator = torch.Generator().manual_seed(0)
    margins = 2 * torch.randn(20_000, generator=generator)
    agree = torch.rand(20_000, generator=generator) < margins.abs().sigmoid()
    for b in calibration(torch.where(agree, margins.abs(), -margins.abs())):
        assert abs(b["predicted"] - b["observed"]) < 4 * math.sqrt(0.25 / b["pairs"])


def test_calibration_shows_overconfidence():
    margins = torch.cat([torch.full((60,), 9.0), torch.full((40,), -9.0)])
    assert all(b["predicted"] > 0.99 for b in calibration(margins))
    assert sum(b["observed"] * b["pairs"] for b in calibration(margins)) == pytest.approx(60)


def test_calibration_of_fewer_pairs_than_bins_has_no_empty_bin():
    assert [b["pairs"] for b in calibration(torch.tensor([1.0, -2.0]), bins=5)] == [1, 1]
