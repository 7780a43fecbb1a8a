import math

import pytest
import torch

from ppo import gae
from ppo.advantages import masked_mean, whiten


def ragged(rows=6, columns=12, seed=0):
    """Rewards, values and masks of one unbroken stretch a row, with rubbish outside the mask."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(rows, columns, generator=generator, dtype=torch.float64)
                       for _ in range(2))
    starts = torch.randint(1, 5, (rows, 1), generator=generator)
    ends = torch.randint(6, columns + 1, (rows, 1), generator=generator)
    at = torch.arange(columns)
    return rewards, values, (at >= starts) & (at < ends)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_brute_force_sum_of_discounted_deltas(gamma, lam):
    rewards, values, mask = ragged()
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b in range(len(mask)):
        columns = mask[b].nonzero()[:, 0].tolist()
        deltas = []
        for t in columns:
            next_value = gamma * values[b, t + 1] if t + 1 in columns else 0
            deltas.append(float(rewards[b, t] + next_value - values[b, t]))
        for i, t in enumerate(columns):
            expected = sum((gamma * lam) ** j * delta for j, delta in enumerate(deltas[i:]))
            assert float(advantages[b, t]) == pytest.approx(expected, abs=1e-12)
            assert float(returns[b, t]) == pytest.approx(expected + float(values[b, t]), abs=1e-12)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_with_gamma_and_lambda_one_the_returns_are_the_reward_to_go():
    rewards, values, mask = ragged()
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_go)


def test_with_perfect_values_every_advantage_is_zero():
    rewards, _, mask = ragged()
    values = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=0.7)
    assert advantages.abs().max() < 1e-12


def test_what_stands_outside_the_mask_changes_nothing():
    rewards, values, mask = ragged()
    there = gae(rewards, values, mask)
    here = gae(rewards + 99 * ~mask, values - 99 * ~mask, mask)
    assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))


def test_advantages_carry_no_gradient():
    rewards, values, mask = ragged()
    found = gae(rewards.requires_grad_(), values.requires_grad_(), mask)
    assert not any(x.requires_grad for x in found)


@pytest.mark.parametrize("odd", range(3))
def test_shapes_that_differ_raise(odd):
    args = [torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)]
    args[odd] = args[odd][:1]
    with pytest.raises(ValueError, match="same shape"):
        gae(*args)


def test_whitened_has_mean_0_and_deviation_1_on_the_mask_and_0_outside():
    x, _, mask = ragged(seed=3)
    white = whiten(5 * x + 7, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[mask].std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert (white[~mask] == 0).all()
    torch.testing.assert_close(white, whiten(x, mask), rtol=1e-6, atol=1e-6)


def test_whitening_equal_values_stays_finite():
    white = whiten(torch.full((2, 3), 4.0), torch.ones(2, 3, dtype=torch.bool))
    assert (white == 0).all()


def test_masked_mean_is_the_mean_of_the_true_places():
    x, _, mask = ragged()
    assert float(masked_mean(x, mask)) == pytest.approx(float(x[mask].mean()))


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
def test_rubbish_outside_the_mask_stays_out_of_advantages_and_whitening(outside):
    rewards, values, mask = ragged()
    expected = gae(rewards, values, mask)
    for odd in range(2):
        args = [rewards.clone(), values.clone()]
        args[odd][~mask] = outside
        found = gae(*args, mask)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    x = values.clone()
    x[~mask] = outside
    assert torch.equal(whiten(x, mask), whiten(values, mask))
    x.requires_grad_()
    (whiten(x, mask) * rewards).sum().backward()
    assert x.grad.isfinite().all() and (x.grad[~mask] == 0).all() and (x.grad[mask] != 0).any()


def test_the_defaults_are_no_discount_and_lambda_95():
    rewards, values = torch.randn(2, 5), torch.randn(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    for found, expected in zip(gae(rewards, values, mask),
                               gae(rewards, values, mask, gamma=1.0, lam=0.95), strict=True):
        assert torch.equal(found, expected)


def test_a_single_token_is_its_reward_less_its_value():
    one = torch.ones(1, 1)
    advantages, returns = gae(3 * one, 2 * one, one.bool())
    assert (float(advantages), float(returns)) == (1.0, 3.0)
