import math

import pytest
import torch

from lessons.limit import BETAS, Frontier, best_of_n_kl

REWARDS = torch.tensor([[2.0, 2.0, -1.0, 0.5, -3.0, 0.0, 1.0, -1.0]], dtype=torch.float64)


def test_frontier_is_the_closed_form_of_the_tilted_distribution():
    frontier = Frontier(REWARDS)
    for i in (0, 40, 100, 150, 199):
        beta, r = float(BETAS[i]), REWARDS[0]
        pi = (r / beta).softmax(0)
        ref = torch.full((8,), 1 / 8, dtype=torch.float64)
        assert float(frontier.rewards[i]) == pytest.approx(float((pi * r).sum()), abs=1e-9)
        kl = float(torch.distributions.kl_divergence(torch.distributions.Categorical(pi),
                                                     torch.distributions.Categorical(ref)))
        assert float(frontier.kls[i]) == pytest.approx(kl, abs=1e-6)
        log_z = float((ref * (r / beta).exp()).sum().log()) if beta > 0.05 else None
        if log_z is not None:
            expected = float((pi * r).sum()) / beta - log_z
            assert float(frontier.kls[i]) == pytest.approx(expected, abs=1e-6)


def test_frontier_ends_where_only_the_best_samples_are_left():
    frontier = Frontier(REWARDS)
    assert float(frontier.rewards[-1]) == pytest.approx(2.0, abs=1e-9)
    # two of eight are best
    assert float(frontier.kls[-1]) == pytest.approx(math.log(8 / 2), abs=1e-6)
    assert frontier.start == pytest.approx(float(REWARDS.mean()))


def test_shares_of_single_prompts_have_the_share_of_all_as_their_mean():
    frontier = Frontier(torch.randn(6, 50, generator=torch.Generator().manual_seed(0)))
    reached = torch.linspace(0, 2, 6)
    shares = frontier.shares_of_gain(reached, 0.5)
    assert shares.shape == (6,)
    assert float(shares.mean()) == pytest.approx(
        frontier.share_of_gain(float(reached.double().mean()), 0.5))
    torch.testing.assert_close(shares[0], (0 - frontier.starts[0])
                               / (frontier.reward_at(0.5) - frontier.start))
    assert frontier.shares_of_gain(reached, 0.0).isnan().all()


def test_frontier_has_a_point_for_each_of_200_betas_between_100_and_a_hundredth():
    frontier = Frontier(REWARDS)
    assert frontier.rewards.shape == frontier.kls.shape == BETAS.shape == (200,)
    assert (float(BETAS[0]), float(BETAS[-1])) == pytest.approx((100.0, 0.01))


def test_frontier_rises_and_its_kl_never_passes_log_n():
    for n in (2, 16, 300):
        frontier = Frontier(torch.randn(20, n, generator=torch.Generator().manual_seed(n)) * 2)
        assert (frontier.rewards.diff() > -1e-9).all() and (frontier.kls.diff() > -1e-9).all()
        assert float(frontier.kls.max()) <= math.log(n) + 1e-9 == pytest.approx(frontier.bound)
        assert float(frontier.kls.min()) >= 0


def test_frontier_is_concave():
    frontier = Frontier(torch.randn(20, 100, generator=torch.Generator().manual_seed(0)))
    slopes = frontier.rewards.diff() / frontier.kls.diff()
    assert (slopes[:150].diff() < 1e-6).all()
    beta = (BETAS[50:100] * BETAS[51:101]).sqrt()
    torch.testing.assert_close(slopes[50:100], beta, rtol=1e-2, atol=0)  # dr/dKL = beta


def test_no_reweighting_of_the_samples_does_better_at_its_kl():
    frontier, generator = Frontier(REWARDS), torch.Generator().manual_seed(0)
    for _ in range(500):
        pi = (torch.randn(8, generator=generator, dtype=torch.float64) * 1.5).softmax(0)
        kl = float((pi * (pi * 8).log()).sum())
        assert float((pi * REWARDS[0]).sum()) <= frontier.reward_at(kl) + 1e-3


def test_reward_at_reads_between_the_points_and_stays_inside_the_ends():
    frontier = Frontier(REWARDS)
    assert frontier.reward_at(0.0) == frontier.start
    assert frontier.reward_at(99.0) == float(frontier.rewards[-1])
    middle = float(frontier.kls[80] + frontier.kls[81]) / 2
    expected = float(frontier.rewards[80] + frontier.rewards[81]) / 2
    assert frontier.reward_at(middle) == pytest.approx(expected)
    still_rising = Frontier(torch.tensor([[0.0, 0.01]]))  # at the last beta, 0.01
    assert still_rising.reward_at(99.0) == pytest.approx(0.01 * math.e / (math.e + 1), rel=1e-6)


def test_share_of_gain_is_one_on_the_frontier_zero_at_the_start_and_undefined_without_kl():
    frontier = Frontier(REWARDS)
    reward, kl = float(frontier.rewards[100]), float(frontier.kls[100])
    assert frontier.share_of_gain(reward, kl) == pytest.approx(1.0)
    reward, kl = float(frontier.rewards[20]), float(frontier.kls[20])
    assert 0 < reward - frontier.start < 0.1  # a small gain is one too
    assert frontier.share_of_gain(reward, kl) == pytest.approx(1.0)
    assert frontier.share_of_gain(frontier.start, 0.5) == 0.0
    assert math.isnan(frontier.share_of_gain(1.0, 0.0))


def test_prompts_are_averaged_not_pooled():
    two = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    # no answer is better than another to the same prompt: nothing can be gained
    frontier = Frontier(two)
    assert float(frontier.rewards.max()) == pytest.approx(0.5)
    assert float(frontier.kls.max()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_kl_of_best_of_n_without_ties_is_the_known_formula(n):
    expected = math.log(n) - (n - 1) / n
    assert best_of_n_kl(torch.arange(4000.0), n) == pytest.approx(expected, abs=0.01)
    assert best_of_n_kl(torch.arange(4000.0), 1) == pytest.approx(0.0, abs=1e-9)


def test_kl_of_best_of_n_with_ties_by_hand():
    # half the answers score 1, half 0: the best of two scores 1 with probability 3/4
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert best_of_n_kl(torch.tensor([0.0, 1.0, 1.0, 0.0]), 2) == pytest.approx(expected)
    assert best_of_n_kl(torch.zeros(8), 2) == pytest.approx(0.0, abs=1e-9)
