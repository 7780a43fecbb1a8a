import random

import pytest
import torch

from data.files import DataError
from dpo import evaluate_preference_accuracy
from dpo.evaluate import implicit_rewards
from minigpt import sequence_logps


def flipped(rows):
    return [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
            for row in rows]


def test_accuracy_is_one_half_at_policy_equal_to_reference(make_model, copy_of, make_pairs):
    model = make_model()
    assert evaluate_preference_accuracy(model, copy_of(model), make_pairs(30)) == 0.5
    assert evaluate_preference_accuracy(model, model, make_pairs(30)) == 0.5


def test_implicit_rewards_are_beta_times_the_log_ratios(make_model, make_pairs):
    policy, reference, rows = make_model(1), make_model(2), make_pairs(30)
    prompts = [row["prompt"] for row in rows]
    found = implicit_rewards(policy, reference, rows, beta=0.3)
    for side, rewards in zip(("chosen", "rejected"), found, strict=True):
        responses = [row[side] for row in rows]
        log_ratios = sequence_logps(policy, prompts, responses) - \
            sequence_logps(reference, prompts, responses)
        torch.testing.assert_close(rewards, 0.3 * log_ratios, rtol=1e-4, atol=1e-4)
    accuracy = float((found[0] > found[1]).float().mean())
    assert evaluate_preference_accuracy(policy, reference, rows) == pytest.approx(accuracy)
    assert evaluate_preference_accuracy(policy, reference, flipped(rows)) == \
        pytest.approx(1 - accuracy)


def test_identical_responses_are_an_exact_tie_whatever_the_batch(make_model):
    policy, reference = make_model(1), make_model(2)
    rng = random.Random(0)
    ties = []
    for n in range(60):
        response = "".join(rng.choices("abcdef", k=rng.randint(1, 70)))
        ties.append({"prompt": f"{n}?", "chosen": response, "rejected": response})
    cut = {"prompt": "p", "chosen": "a" * 70 + "b", "rejected": "a" * 70 + "c"}  # once truncated
    for rows in (ties, ties[:1], ties[::-1], [cut], [*ties[:9], cut]):
        chosen, rejected = implicit_rewards(policy, reference, rows, beta=0.7)
        assert chosen.shape == rejected.shape == (len(rows),)
        assert torch.equal(chosen, rejected) and chosen.abs().max() > 0
        assert evaluate_preference_accuracy(policy, reference, rows) == 0.5


def test_a_row_that_cannot_be_measured_is_named(make_model, make_pairs):
    policy, reference = make_model(1), make_model(2)
    for row in ({"prompt": "p" * 64, "chosen": "a", "rejected": "b"},
                {"prompt": "p", "chosen": "a"}, {"prompt": "p", "chosen": "a", "rejected": ""}, 7):
        with pytest.raises(DataError, match="row 3"):
            implicit_rewards(policy, reference, [*make_pairs(3), row])
    assert len(implicit_rewards(policy, reference, make_pairs(130))[0]) == 130
