import math
import re
from dataclasses import replace

import pytest
import torch

from minigpt.batching import Batch
from minigpt.kl import exact_kl
from ppo import gae, grpo_advantages, rloo_advantages
from ppo.advantages import flat_groups, masked_mean, rloo_to_go, whiten
from ppo.rollout import Rollout, token_rewards
from ppo.train import compared, rloo_with_exact_kl


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


def test_responses_in_layers_of_their_own_do_not_know_of_each_other():
    rewards, values, mask = ragged()
    halves = torch.stack([mask & (torch.arange(12) < 5), mask & (torch.arange(12) >= 5)], 1)
    both = gae(*(x[:, None].expand_as(halves) for x in (rewards, values)), halves)
    for number in range(2):
        alone = gae(rewards, values, halves[:, number])
        assert all(torch.equal(a[:, number], b) for a, b in zip(both, alone, strict=True))


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


# --- groups of responses to one prompt ------------------------------------------------------------


def dr_grpo(scores):
    return grpo_advantages(scores, scale_by_std=False)


OF_GROUPS = pytest.mark.parametrize("function", [rloo_advantages, grpo_advantages, dr_grpo])
EXACTLY = {"rtol": 0, "atol": 1e-12}  # in float64


def groups_of(k, seed=0):
    return torch.randn(5, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_group_advantages_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 6.0]], dtype=torch.float64)
    centred = torch.tensor([[1.0, -1.0, 0.0], [-2.0, -2.0, 4.0]], dtype=torch.float64)
    std = torch.tensor([[1.0], [12 ** 0.5]], dtype=torch.float64)  # of n - 1
    torch.testing.assert_close(dr_grpo(scores), centred, **EXACTLY)
    torch.testing.assert_close(rloo_advantages(scores), centred * 1.5, **EXACTLY)
    torch.testing.assert_close(grpo_advantages(scores), centred / (std + 1e-4), **EXACTLY)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_rloo_is_each_score_less_the_mean_of_the_others(k):
    scores = groups_of(k)
    others = [torch.cat([scores[:, :i], scores[:, i + 1:]], 1) for i in range(k)]
    expected = torch.stack([scores[:, i] - others[i].mean(1) for i in range(k)], 1)
    torch.testing.assert_close(rloo_advantages(scores), expected, **EXACTLY)


@OF_GROUPS
@pytest.mark.parametrize("k", [2, 3, 8])
def test_a_groups_advantages_sum_to_0_and_a_constant_added_to_it_changes_nothing(function, k):
    scores = groups_of(k)
    found = function(scores)
    assert found.shape == scores.shape and found.abs().min() > 1e-3
    assert found.sum(1).abs().max() < 1e-12
    shifts = torch.tensor([[0.0], [1.0], [-7.0], [300.0], [-0.1]], dtype=torch.float64)
    torch.testing.assert_close(function(scores + shifts), found, rtol=0, atol=1e-11)


@OF_GROUPS
def test_the_order_within_a_group_permutes_and_no_group_knows_of_another(function):
    scores = groups_of(4)
    found, order = function(scores), [2, 0, 3, 1]
    torch.testing.assert_close(function(scores[:, order]), found[:, order], **EXACTLY)
    for row in range(5):
        torch.testing.assert_close(function(scores[row:row + 1]), found[row:row + 1], **EXACTLY)


@pytest.mark.parametrize("k", [2, 3, 4, 7])
def test_grpo_without_the_std_is_rloo_times_k_less_1_over_k_exactly(k):
    scores = groups_of(k)
    assert torch.equal(dr_grpo(scores) * (k / (k - 1)), rloo_advantages(scores))
    torch.testing.assert_close(dr_grpo(scores), rloo_advantages(scores) * (k - 1) / k, **EXACTLY)


def test_grpo_divides_by_the_std_unless_told_not_to():
    scores = groups_of(4)
    assert torch.equal(grpo_advantages(scores), grpo_advantages(scores, scale_by_std=True))
    torch.testing.assert_close(grpo_advantages(scores).std(1), torch.ones(5, dtype=torch.float64),
                               rtol=0, atol=1e-3)


def test_with_two_responses_grpo_leaves_only_the_sign_of_the_difference():
    scores = torch.tensor([[0.0, 1.0], [70.0, 2.0], [-5.0, 5.0]], dtype=torch.float64)
    signs = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(grpo_advantages(scores), signs * 0.5 ** 0.5, rtol=2e-4, atol=0)


def test_differences_far_below_grpos_epsilon_are_not_blown_up():
    scores = torch.tensor([[0.0, 2 ** 0.5 * 1e-4], [0.0, 1e-9]], dtype=torch.float64)
    found = grpo_advantages(scores)
    assert found[0].tolist() == pytest.approx([-(0.5 ** 1.5), 0.5 ** 1.5])  # std = epsilon: half
    assert found[1].abs().max() < 1e-5


@OF_GROUPS
@pytest.mark.parametrize("k", [2, 3, 6, 7, 8])
def test_a_flat_group_teaches_exactly_nothing(function, k):
    """Though the mean of k equal numbers is, by rounding, not always that number."""
    scores = torch.tensor([[0.0], [0.1], [1 / 3], [-0.7], [100.1], [-12345.678]]).expand(6, k)
    assert torch.equal(function(scores), torch.zeros(6, k))


def test_flat_groups_are_those_with_one_score():
    scores = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.1], [-2.0, 0.0, -2.0], [0.0, -0.0, 0.0]])
    assert flat_groups(scores).tolist() == [True, False, False, True]


@OF_GROUPS
@pytest.mark.parametrize("shape", [(3, 1), (1, 1), (6,), (), (2, 3, 4)])
def test_scores_without_others_to_compare_with_are_refused_with_the_reason(function, shape):
    name = "rloo_advantages" if function is rloo_advantages else "grpo_advantages"
    with pytest.raises(ValueError, match=rf"^{name}: scores are {re.escape(str(shape))}, but "
                                         r"\(P, k\) with k >= 2 .*compared with the others"):
        function(torch.zeros(shape))


# --- the gradient on a bandit: four answers of one token, whose groups can all be listed ----------

LOGITS = torch.tensor([0.7, -0.4, 0.1, -1.3], dtype=torch.float64)
PI = LOGITS.softmax(0)
REWARD = torch.tensor([1.0, 0.0, -0.5, 2.5], dtype=torch.float64)


def estimates(function, k, reward=REWARD):
    """Of every group of k draws: its probability (N,), and 1/k sum_i A_i grad log pi(y_i), (N, 4).
    """
    groups = torch.cartesian_prod(*[torch.arange(4)] * k)                      # (N, k)
    gradients = torch.eye(4, dtype=torch.float64) - PI                         # of log pi(y)
    return PI[groups].prod(1), \
        (function(reward[groups])[:, :, None] * gradients[groups]).mean(1)


def mean_and_variance(function, k, reward=REWARD):
    p, found = estimates(function, k, reward)
    assert len(p) == 4 ** k and float(p.sum()) == pytest.approx(1, abs=1e-14)
    mean = p @ found
    return mean, float(p @ (found - mean).square().sum(1))


def exact_gradient(reward=REWARD):
    logits = LOGITS.clone().requires_grad_()
    (logits.softmax(0) @ reward).backward()
    return logits.grad


@pytest.mark.parametrize("k", [2, 3])
def test_rloos_mean_gradient_is_the_exact_one_and_that_of_grpo_without_the_std_a_share(k):
    exact = exact_gradient()
    assert exact.abs().min() > 0.05
    torch.testing.assert_close(mean_and_variance(rloo_advantages, k)[0], exact, **EXACTLY)
    torch.testing.assert_close(mean_and_variance(dr_grpo, k)[0], exact * (k - 1) / k, **EXACTLY)


@pytest.mark.parametrize("k", [2, 3])
def test_grpos_division_by_the_std_bends_the_gradient(k):
    """No multiple of the exact gradient: a draw counts as much however little its scores differ."""
    found, exact = mean_and_variance(grpo_advantages, k)[0], exact_gradient()
    assert 0.5 < float(torch.cosine_similarity(found, exact, 0)) < 0.995


@pytest.mark.parametrize("k", [2, 3])
def test_where_rewards_lie_far_from_0_rloo_has_a_small_part_of_reinforces_variance(k):
    def no_baseline(scores):
        return scores
    means, variances = zip(*(mean_and_variance(function, k, REWARD + 100)
                             for function in (rloo_advantages, no_baseline)), strict=True)
    for mean in means:  # unbiased, both
        torch.testing.assert_close(mean, exact_gradient(), rtol=0, atol=1e-11)
    assert variances[0] < variances[1] / 1000
    near = mean_and_variance(rloo_advantages, k)[1]
    assert variances[0] == pytest.approx(near, rel=1e-9)  # the same wherever the rewards lie


# --- score - beta KL over answers of one or two tokens, whose groups can all be listed ------------

ANSWERS = [(0,), *((first, second) for first in (1, 2) for second in (0, 1, 2))]  # 0 ends one
BETA = 0.7


def small_world():
    """Logits of the first token (3,), and of the second after each (3, 3): of the policy, of the
    reference.  Then a score for each of the ANSWERS.
    """
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((3,), (3, 3), (3,), (3, 3), (len(ANSWERS),))]


def token_logps_of(first, second):
    """log p of each token of each answer: (7, 2), 0 where there is none."""
    first, second = first.log_softmax(-1), second.log_softmax(-1)
    return torch.stack([torch.stack([first[answer[0]], second[answer] if len(answer) > 1
                                     else first.new_zeros(())]) for answer in ANSWERS])


def rollout_of_groups(k):
    """Every group of k answers in a row: its probability (N,), the rollout, and the gradient of the
    log-probability of each token, (N, T, 12).
    """
    first, second, ref_first, ref_second, scores = small_world()

    def of(variables):
        return token_logps_of(variables[:3], variables[3:].view(3, 3))
    variables = torch.cat([first, second.flatten()])
    logps, ref_logps = of(variables), token_logps_of(ref_first, ref_second)         # (7, 2)
    kl = torch.tensor([[exact_kl(first, ref_first), exact_kl(second, ref_second)[answer[0]]
                        * (len(answer) > 1)] for answer in ANSWERS])
    gradients = torch.autograd.functional.jacobian(of, variables)                   # (7, 2, 12)
    groups = torch.cartesian_prod(*[torch.arange(len(ANSWERS))] * k)                # (N, k)
    segments, places = [], []
    for group in groups.tolist():
        tokens = [(i, t, j) for j, i in enumerate(group, 1) for t in range(len(ANSWERS[i]))]
        tokens += [(0, 1, -1)] * (2 * k - len(tokens))                              # padding
        segments.append([j for _, _, j in tokens])
        places.append([(i, t) for i, t, _ in tokens])
    i, t = torch.tensor(places).unbind(-1)                                          # (N, T)
    batch = Batch(torch.zeros_like(i), torch.tensor(segments), torch.arange(len(groups)))
    paid = (logps - ref_logps)[i, t]
    rollout = Rollout(batch=batch, logps=logps[i, t], ref_logps=ref_logps[i, t],
                      scores=scores[groups], kl=paid,
                      rewards=token_rewards(scores[groups], paid, BETA, batch.last_columns),
                      token_kl=kl[i, t], entropy=torch.zeros(()), finished=groups >= 0)
    return logps.sum(1).exp()[groups].prod(1), rollout, gradients[i, t]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [2, 3])
def test_rloos_mean_gradient_with_a_penalty_is_that_of_score_minus_beta_kl(k, exact):
    """Of a loss that is a sum over tokens, whatever k."""
    first, second, ref_first, ref_second, scores = small_world()
    first, second = first.requires_grad_(), second.requires_grad_()
    logps = token_logps_of(first, second).sum(1)
    log_ratios = logps - token_logps_of(ref_first, ref_second).sum(1)
    (logps.exp() @ (scores - BETA * log_ratios)).backward()
    expected = torch.cat([first.grad, second.grad.flatten()])
    assert expected.abs().max() > 0.05
    p, rollout, gradients = rollout_of_groups(k)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    advantages = rloo_with_exact_kl(rollout, BETA) if exact else compared(rollout, "rloo")
    mean = torch.einsum("n,nt,ntw->w", p, advantages, gradients) / k
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-12)


def test_at_the_optimum_every_sampled_return_is_the_same_and_the_exact_kl_is_not_free_of_noise():
    """The price of leaving the past out: score - beta log pi/ref is constant there, as a whole."""
    _, rollout, _ = rollout_of_groups(2)
    tilted = rollout.batch.response_sums(rollout.logps - rollout.ref_logps) * BETA  # its optimum
    rollout = replace(rollout, scores=tilted, rewards=token_rewards(
        tilted, rollout.kl, BETA, rollout.batch.last_columns))
    assert compared(rollout, "rloo").abs().max() < 1e-12
    assert rloo_with_exact_kl(rollout, BETA).abs().max() > 0.1


def test_rloo_to_go_by_hand():
    values = torch.tensor([[9.0, 1.0, 2.0, 4.0, 8.0, 16.0, 9.0]])           # prompt, 3, 2, padding
    masks = torch.tensor([[[0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]]]).bool()
    # to go: 6, 4, 0 and 16, 0
    expected = torch.tensor([[0.0, 6.0 - 16.0, 4.0 - 0.0, 0.0, 16.0 - 6.0, 0.0 - 4.0, 0.0]])
    assert torch.equal(rloo_to_go(values, masks), expected)
