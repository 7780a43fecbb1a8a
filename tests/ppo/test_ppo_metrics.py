import math

import pytest
import torch

from minigpt.batching import Batch
from ppo.metrics import UpdateMetrics, explained_variance, rollout_metrics
from ppo.rollout import Rollout

CPU = torch.device("cpu")


def test_rollout_metrics_by_hand():
    segments = torch.tensor([[0, 1, 1, 1], [0, 0, 1, -1]])
    zeros = torch.zeros(2, 4)
    rollout = Rollout(
        batch=Batch(torch.zeros(2, 4, dtype=torch.long), segments, torch.arange(2)), logps=zeros,
        ref_logps=zeros, entropy=torch.tensor(2.5),
        token_kl=torch.tensor([[0.0, 0.125, 0.25, 0.125], [0.0, 0.0, 1.5, 0.0]]),
        scores=torch.tensor([[3.0], [-1.0]]),
        kl=torch.tensor([[0.0, 1.0, -2.0, 4.0], [0.0, 0.0, 5.0, 0.0]]), rewards=zeros,
        finished=torch.tensor([[True], [False]]))
    assert rollout_metrics(rollout, kl_coeff=0.1) == pytest.approx({
        "objective/scores": 1.0, "objective/kl": 4.0, "objective/kl_exact": 1.0,
        "objective/entropy": 2.5, "objective/non_score_reward": -0.4,
        "objective/rlhf_reward": 0.6, "objective/kl_coeff": 0.1, "val/num_eos_tokens": 1,
        "val/response_tokens": 2.0})


def part_metrics(ratio, approxkl):
    return {"val/ratio": torch.tensor(ratio), "policy/approxkl_avg": torch.tensor(approxkl)}


def test_update_metrics_are_means_over_minibatches_of_weighted_sums_over_parts():
    update = UpdateMetrics(CPU)
    update.add(part_metrics(1.0, 0.0), 0.25)
    update.add(part_metrics(2.0, 0.4), torch.tensor(0.75))
    assert update.approxkl() == pytest.approx(0.3)
    update.end_minibatch(grad_norm=3.0)
    update.add(part_metrics(4.0, 0.8), 1.0)
    assert update.approxkl() == pytest.approx(0.8)  # of the current minibatch alone
    update.end_minibatch(grad_norm=5.0)
    assert update.means() == pytest.approx({
        "val/ratio": (1.75 + 4.0) / 2, "policy/approxkl_avg": (0.3 + 0.8) / 2, "grad_norm": 4.0,
        "val/first_ratio": 1.75, "val/updates": 2})


def test_a_minibatch_that_was_too_far_away_counts_as_no_update_and_has_no_gradient():
    update = UpdateMetrics(CPU)
    update.add(part_metrics(1.0, 0.0), 1.0)
    update.end_minibatch(grad_norm=3.0)
    update.add(part_metrics(2.0, 0.5), 1.0)
    means = update.means()
    assert means["val/updates"] == 1 and means["grad_norm"] == 3.0
    assert means["val/ratio"] == 1.5 and means["policy/approxkl_avg"] == 0.25


def test_without_any_update_the_gradient_is_0():
    update = UpdateMetrics(CPU)
    update.add(part_metrics(1.0, 0.5), 1.0)
    means = update.means()
    assert (means["val/updates"], means["grad_norm"], means["val/first_ratio"]) == (0, 0.0, 1.0)


def test_explained_variance_is_1_for_perfect_values_and_0_for_a_constant():
    returns, mask = torch.randn(4, 6), torch.rand(4, 6) < 0.6
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    constant = torch.full_like(returns, 3.0)
    assert explained_variance(constant, returns, mask) == pytest.approx(0.0, abs=1e-5)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0, abs=1e-4)


def test_explained_variance_of_a_single_token_is_a_number():
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert not math.isnan(explained_variance(torch.zeros(1, 1), torch.ones(1, 1), mask))
