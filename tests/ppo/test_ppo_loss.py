import math

import pytest
import torch

from ppo import ppo_loss, value_loss

ON = torch.ones(1, 1, dtype=torch.bool)


def one(value):
    return torch.tensor([[value]])


def test_on_the_first_update_the_ratio_is_1_and_the_kl_0():
    logps = (-5 * torch.rand(3, 4)).requires_grad_()
    advantages, mask = torch.randn(3, 4), torch.rand(3, 4) < 0.7
    loss, metrics = ppo_loss(logps, logps.detach(), advantages, mask)
    assert float(metrics["val/ratio"]) == 1.0
    assert float(metrics["policy/approxkl_avg"]) == 0.0 == float(metrics["policy/clipfrac_avg"])
    assert float(loss.detach()) == pytest.approx(-float(advantages[mask].mean()), abs=1e-6)
    loss.backward()  # there it is the plain policy gradient
    torch.testing.assert_close(logps.grad, -advantages * mask / mask.sum())


@pytest.mark.parametrize(("log_ratio", "advantage", "clipped"), [
    (0.5, 1.0, True), (-0.5, -1.0, True), (0.5, -1.0, False), (-0.5, 1.0, False), (0.1, 1.0, False),
    (-0.1, -1.0, False)])
def test_clipping_kills_the_gradient_exactly_where_a_move_would_gain_no_more(log_ratio, advantage,
                                                                             clipped):
    logps = one(log_ratio).requires_grad_()
    loss, metrics = ppo_loss(logps, one(0.0), one(advantage), ON, clip=0.2)
    loss.backward()
    ratio = math.exp(log_ratio)
    if clipped:
        bound = 1.2 if advantage > 0 else 0.8
        assert float(logps.grad) == 0.0
        assert float(loss.detach()) == pytest.approx(-bound * advantage)
    else:
        assert float(logps.grad) == pytest.approx(-ratio * advantage)
        assert float(loss.detach()) == pytest.approx(-ratio * advantage)
    assert float(metrics["policy/clipfrac_avg"]) == float(clipped)
    assert float(metrics["val/ratio"]) == pytest.approx(ratio)
    assert float(metrics["policy/approxkl_avg"]) == pytest.approx(log_ratio ** 2 / 2)


def test_loss_and_metrics_are_means_over_the_mask_and_nothing_else_enters():
    logps, old = torch.tensor([[0.5, 0.0, 9.0]]), torch.tensor([[0.0, 0.0, -9.0]])
    advantages, mask = torch.tensor([[1.0, 2.0, 1e6]]), torch.tensor([[True, True, False]])
    loss, metrics = ppo_loss(logps.requires_grad_(), old, advantages, mask)
    assert float(loss.detach()) == pytest.approx(-(1.2 + 2.0) / 2)
    assert float(metrics["policy/clipfrac_avg"]) == 0.5
    assert float(metrics["val/ratio"]) == pytest.approx((math.exp(0.5) + 1) / 2)
    loss.backward()
    assert float(logps.grad[0, 2]) == 0.0


def test_value_loss_by_hand_takes_the_larger_of_the_two_errors():
    values, old = torch.tensor([[1.0, 0.1, -1.0]]), torch.zeros(1, 3)
    returns = torch.tensor([[1.0, 1.0, 1.0]])
    loss, metrics = value_loss(values, old, returns, torch.ones(1, 3, dtype=torch.bool), clip=0.2)
    expected = (max(0.0, 0.8 ** 2) + max(0.9 ** 2, 0.9 ** 2) + max(2.0 ** 2, 1.2 ** 2)) / 3 / 2
    assert float(loss) == pytest.approx(expected)
    assert float(metrics["val/clipfrac_avg"]) == pytest.approx(1 / 3)


def test_value_gradient_is_the_error_inside_the_clip_and_zero_beyond_it_on_the_way_to_the_return():
    for value, gradient in ((0.1, 0.1 - 1.0), (0.5, 0.0), (-0.5, -0.5 - 1.0)):
        values = one(value).requires_grad_()
        value_loss(values, one(0.0), one(1.0), ON, clip=0.2)[0].backward()
        assert float(values.grad) == pytest.approx(gradient)


def test_metrics_carry_no_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    old = x.detach()
    for _, metrics in (ppo_loss(x, old, torch.ones(2, 3), mask), value_loss(x, old, old, mask)):
        assert all(not value.requires_grad and value.dim() == 0 for value in metrics.values())


@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
def test_ppo_reaches_the_closed_form_optimum_on_a_bandit(beta):
    """pi*(y) ~ ref(y) exp(r(y) / beta), to 0.005 in every probability.

    The reward is r - beta log(pi / ref).
    """
    reward = torch.tensor([0.3, -0.2, 0.0, 0.5, -0.4])
    ref = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    optimum = torch.softmax(ref.log() + reward / beta, 0)
    logits = ref.log().clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.3)
    for _ in range(300):
        old = logits.detach().log_softmax(0)
        # so many answers of each kind, without the noise
        counts = (old.exp() * 20_000).round().long().clamp_min(1)
        answers = torch.repeat_interleave(torch.arange(5), counts)[:, None]  # one token each
        returns = (reward - beta * (old - ref.log()))[answers]
        for _ in range(4):
            loss, _ = ppo_loss(logits.log_softmax(0)[answers], old[answers],
                               returns - returns.mean(),
                               torch.ones_like(answers, dtype=torch.bool))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert (optimum - ref).abs().max() > 0.03
    torch.testing.assert_close(logits.detach().softmax(0), optimum, rtol=0, atol=0.005)


# --- under stress ---------------------------------------------------------------------------------

OUTSIDE = pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf, 1e38])


@OUTSIDE
@pytest.mark.parametrize("odd", range(3))
def test_what_is_masked_enters_neither_policy_loss_nor_gradient(outside, odd):
    mask = torch.tensor([[False, True, True, False], [True, True, False, False]])
    tensors = [torch.randn(2, 4) for _ in range(3)]
    results = []
    for value in (0.0, outside):
        logps, old, advantages = (x.clone() for x in tensors)
        (logps, old, advantages)[odd][~mask] = value
        logps.requires_grad_()
        loss, metrics = ppo_loss(logps, old, advantages, mask)
        loss.backward()
        results.append((loss.detach(), logps.grad, *metrics.values()))
    assert (results[0][1][~mask] == 0).all()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@OUTSIDE
@pytest.mark.parametrize("odd", range(3))
def test_what_is_masked_enters_neither_value_loss_nor_gradient(outside, odd):
    mask = torch.tensor([[False, True, True, False], [True, True, False, False]])
    tensors = [torch.randn(2, 4) for _ in range(3)]
    results = []
    for value in (0.0, outside):
        values, old, returns = (x.clone() for x in tensors)
        (values, old, returns)[odd][~mask] = value
        values.requires_grad_()
        loss, metrics = value_loss(values, old, returns, mask)
        loss.backward()
        results.append((loss.detach(), values.grad, *metrics.values()))
    assert (results[0][1][~mask] == 0).all()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0, 1e3])
@pytest.mark.parametrize("log_ratio", [198.0, 89.0, 40.0, 1e4, math.inf, -198.0, -1e4, -math.inf])
def test_an_extreme_ratio_gives_a_finite_loss_and_a_finite_gradient(log_ratio, advantage):
    logps = torch.tensor([[log_ratio, -0.05]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, metrics = ppo_loss(logps, torch.zeros(1, 2), torch.tensor([[advantage, 1.0]]), mask)
    loss.backward()
    assert loss.isfinite() and logps.grad.isfinite().all()
    assert float(logps.grad[0, 1]) == pytest.approx(-math.exp(-0.05) / 2)  # the other still learns
    assert metrics["val/ratio"].isfinite()
    assert float(metrics["policy/approxkl_avg"]) > 100 or log_ratio == 40


def test_a_masked_extreme_ratio_changes_nothing():
    logps = torch.tensor([[198.0, 0.0]], requires_grad=True)
    loss, metrics = ppo_loss(logps, torch.zeros(1, 2), torch.full((1, 2), -1.0),
                             torch.tensor([[False, True]]))
    loss.backward()
    assert float(loss.detach()) == 1.0 and logps.grad.tolist() == [[0.0, 1.0]]
    assert float(metrics["val/ratio"]) == 1.0


def test_nan_where_the_mask_is_true_is_not_hidden():
    loss, _ = ppo_loss(one(math.nan), one(0.0), one(1.0), ON)
    assert loss.isnan()
    assert value_loss(one(math.nan), one(0.0), one(1.0), ON)[0].isnan()


def test_a_value_is_clipped_from_below_as_from_above():
    for value, old in ((-1.0, 0.0), (1.0, 0.0)):
        toward = one(old + (0.2 if value > 0 else -0.2))  # where the clipped value is
        loss, metrics = value_loss(one(value), one(old), one(value), ON, clip=0.2)
        assert float(loss) == pytest.approx(0.5 * float((toward - value).square()))
        assert float(metrics["val/clipfrac_avg"]) == 1.0


def test_the_defaults_are_those_of_the_papers():
    logps = torch.tensor([[0.5]])
    assert torch.equal(ppo_loss(logps, one(0.0), one(1.0), ON)[0],
                       ppo_loss(logps, one(0.0), one(1.0), ON, clip=0.2)[0])
    assert torch.equal(value_loss(one(1.0), one(0.0), one(1.0), ON)[0],
                       value_loss(one(1.0), one(0.0), one(1.0), ON, clip=0.2)[0])
