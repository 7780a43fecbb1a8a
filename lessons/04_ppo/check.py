"""What must hold of gae(rewards, values, mask, gamma, lam): (B, T) each -> (B, T), and of
ppo_loss(logps, old_logps, advantages, mask, clip): (B, T) each -> 0-d."""

import math

import torch

from lessons.exercises import near, normal, shape_is

MASK = torch.tensor([[0, 1, 1, 1, 0],   # what stands outside means nothing
                     [1, 1, 1, 1, 1]]).bool()
B, T = MASK.shape
REWARDS, VALUES = normal(B, T), normal(B, T, seed=1)
ONES = torch.ones(B, T)


def slow(gamma, lam, values=VALUES):
    """sum over l of (gamma lam)^l delta_{t+l}, up to the last token."""
    advantages = torch.zeros(B, T)
    for b in range(B):
        tokens = MASK[b].nonzero().flatten().tolist()
        for t in tokens:
            for u in tokens[tokens.index(t):]:
                after = values[b, u + 1] if u < tokens[-1] else 0.0
                delta = REWARDS[b, u] + gamma * after - values[b, u]
                advantages[b, t] += (gamma * lam) ** (u - t) * delta
    return advantages


def shape_of_gae(gae):
    return shape_is(gae(REWARDS, VALUES, MASK, 1.0, 0.95), (B, T), "an advantage for each token")


def runs_from_the_end(gae):
    scores = torch.eye(T)[[3, 4]]  # on the last token of each row
    found = gae(scores, torch.zeros(B, T), MASK, 1.0, 1.0)
    if not near(found[:, 2], torch.ones(B)):
        return ("a score on the last token does not reach the one before it: the recursion needs "
                "A_{t+1}, so it runs from the last token to the first.")


def nothing_after_the_last_token(gae):
    found, last = gae(REWARDS, VALUES, MASK, 1.0, 0.95), torch.tensor([3, 4])
    rows = torch.arange(B)
    if near(found[rows, last], REWARDS[rows, last]):
        return ("at the last token you return the whole reward: these are the returns R = A + V, "
                "and the advantage is what came less what the value expected.")
    if not near(found[rows, last], (REWARDS - VALUES)[rows, last]):
        return ("after its last token a response has no state, so its value counts as 0 there, "
                "and the advantage of the last token is r - V. Does yours read the value of the "
                "padding?")


def zero_outside(gae):
    if gae(REWARDS, VALUES, MASK, 1.0, 0.95)[~MASK].any():
        return ("right at the last token, but the advantages of prompt and padding are not 0, and "
                "would be whitened and trained on with the rest.")


def gamma_and_lambda(gae):
    if near(gae(REWARDS, VALUES, MASK, 0.0, 0.5), slow(0.5, 0.0)):
        return ("with gamma = 0 and lam = 0.5 it does what gamma = 0.5 and lam = 0 should: the "
                "two have changed places. Gamma discounts the next value, and gamma times lam the "
                "next advantage.")
    if not near(gae(REWARDS, VALUES, MASK, 0.5, 0.0), slow(0.5, 0.0)):
        return ("with lam = 0 an advantage is delta alone, r_t + gamma V_{t+1} - V_t, and yours "
                "is not: look at the sign of each term, and at what gamma multiplies.")
    if not near(gae(REWARDS, VALUES, MASK, 0.5, 1.0), slow(0.5, 1.0)):
        return ("delta is right, but with gamma = 0.5 and lam = 1 the sum is not: the next "
                "advantage is discounted by both, gamma times lam.")


def as_the_sum(gae):
    if not near(gae(REWARDS, VALUES, MASK, 0.9, 0.8), slow(0.9, 0.8)):
        return ("right at lam = 0 and lam = 1, but between them it is not the sum of (gamma "
                "lam)^l delta_{t+l}: is lam where the formula has it?")


def loss_of(ppo_loss, ratio, advantage):
    """The loss of tokens that are `ratio` times as likely as at the rollout; eps is 0.2."""
    return float(ppo_loss(ONES * math.log(ratio) - 3, ONES - 4, ONES * advantage, MASK, 0.2))


def shape_of_loss(ppo_loss):
    return shape_is(ppo_loss(REWARDS, VALUES, ONES, MASK, 0.2), (), "one mean over the tokens")


def first_update(ppo_loss):
    found = loss_of(ppo_loss, 1, 1)
    if near(found, 1.0):
        return ("it grows with the advantage: the objective is to be maximised, so the loss is "
                "minus it.")
    if near(found, 0.0):
        return ("before any update each token is as likely as at the rollout, and a difference of "
                "log-probabilities of 0 is a ratio of exp(0) = 1; yours acts as if the ratio were "
                "0.")
    if not near(found, -1.0):
        return (f"with every ratio 1 and every advantage 1 the loss is -1, not {found:.4f}: a "
                "mean over the tokens of the response, so divide by the number of these.")


def padding_counts_for_nothing(ppo_loss):
    if not near(ppo_loss(ONES, ONES, torch.where(MASK, 1.0, 9.0), MASK, 0.2), -1.0):
        return ("right where all advantages are 1, but the advantages of the padding change it: "
                "is the mask applied before the sum?")


def ratio_is_new_over_old(ppo_loss):
    if loss_of(ppo_loss, 1.1, 1) > -1:
        return ("a good token that has become likelier costs more: the ratio is the new "
                "probability over that of the rollout, not the other way round.")


def wrong_way_keeps_its_gradient(ppo_loss):
    if near(loss_of(ppo_loss, 0.5, 1), -0.5):
        return None
    if near(loss_of(ppo_loss, 1.5, 1), -1.5):
        return ("of the two terms you take the larger: the minimum makes the objective a "
                "pessimist, and the maximum rewards going far.")
    return ("a good token that has become half as likely went the wrong way, and must be pulled "
            "back with full force; yours is clipped. Where is the term without the clip?")


def gain_is_clipped(ppo_loss):
    if not near(loss_of(ppo_loss, 1.5, 1), -1.2):
        return ("a good token gains nothing once it is more than 1 + eps times as likely; yours "
                "goes on gaining. Is the ratio clipped to 1 - eps ... 1 + eps?")


def bad_tokens(ppo_loss):
    if not near(loss_of(ppo_loss, 1.5, -1), 1.5):
        return ("right for good tokens, but a bad one that has become 1.5 times as likely must "
                "cost 1.5: the minimum is between the two products with A, not between the ratios.")
    if not near(loss_of(ppo_loss, 0.5, -1), 0.8):
        return ("right for good tokens, but a bad one gains nothing once it is less than 1 - eps "
                "times as likely: the clip has two sides.")


def as_the_formula(ppo_loss):
    found = ppo_loss(REWARDS, VALUES, normal(B, T, seed=2), MASK, 0.3)
    ratios, advantages = (REWARDS - VALUES).exp()[MASK], normal(B, T, seed=2)[MASK]
    wanted = -sum(min(r * a, min(max(r, 0.7), 1.3) * a)
                  for r, a in zip(ratios.tolist(), advantages.tolist(), strict=True)) / len(ratios)
    if not near(found, wanted):
        return ("right in all four cases with eps = 0.2, but on random numbers with eps = 0.3 it "
                f"is {float(found):.4f} in place of {wanted:.4f}: is eps the argument, and one "
                "mean taken over all tokens?")


CHECKS = {"gae": [shape_of_gae, runs_from_the_end, nothing_after_the_last_token, zero_outside,
                  gamma_and_lambda, as_the_sum],
          "ppo_loss": [shape_of_loss, first_update, padding_counts_for_nothing,
                       ratio_is_new_over_old, wrong_way_keeps_its_gradient, gain_is_clipped,
                       bad_tokens, as_the_formula]}
DONE = ("These two are PPO's credit and its caution: the library's are in ppo/advantages.py and "
        "ppo/loss.py, and ppo/train.py calls them in the order of an episode. Next: lesson 5, "
        "which does without both.")
