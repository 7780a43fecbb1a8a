"""What must hold of dpo_loss(policy_logps, ref_logps, mask, beta): (B, 2, T) each -> 0-d."""

import math

import torch

from lessons.exercises import gradient, near, normal, shape_is

B, T = 3, 5
LENGTHS = torch.tensor([[3, 5], [4, 2], [5, 5]])     # of chosen and rejected
MASK = torch.arange(T) < LENGTHS[..., None]
POLICY, REF = (-normal(B, 2, T, seed=seed).abs() - 0.1 for seed in (0, 1))
ONE = MASK[:1]                                       # a pair with a chosen response of three tokens


def cost(margin):
    """-log sigmoid(margin)"""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


def moved(dpo_loss, chosen, rejected, beta=1.0):
    """beta D, read back from the loss of one pair whose tokens moved by so many nats each."""
    change = torch.tensor([chosen, rejected])[None, :, None]
    loss = float(dpo_loss(REF[:1] + change, REF[:1], ONE, beta))
    return -math.log(math.expm1(loss)) if loss > 0 else math.nan


def shape(dpo_loss):
    return shape_is(dpo_loss(POLICY, REF, MASK, 0.1), (), "the mean over the pairs")


def at_the_reference(dpo_loss):
    found = float(dpo_loss(REF, REF, MASK, 0.1))
    if near(found, B * math.log(2)):
        return "a sum over the pairs, and a mean is wanted: the loss must not grow with the batch."
    if near(abs(found), 0.5):
        return ("at policy == reference you return a probability, 1/2: the loss is minus its "
                "logarithm, log 2 = 0.6931.")
    if near(found, 0.1 * math.log(2)):
        return ("at policy == reference the loss is log 2 whatever beta is, and yours is beta "
                "times that: beta is no scale of the loss, it stands inside the sigmoid.")
    if not near(found, math.log(2)):
        return (f"at policy == reference D is 0 and the loss log 2 = 0.6931, not {found:.4f}: is "
                "the reference subtracted from both responses?")


def padding_counts_for_nothing(dpo_loss):
    junk = torch.where(MASK, POLICY, POLICY - 5)
    if not near(dpo_loss(junk, REF, MASK, 0.1), float(dpo_loss(POLICY, REF, MASK, 0.1))):
        return ("right at policy == reference, but a padded token changes it: is the mask applied "
                "before the sum, to the policy and to the reference?")


def chosen_up(dpo_loss):
    policy = REF[:1] + torch.tensor([0.1, 0.0])[:, None]
    if float(dpo_loss(policy, REF[:1], ONE, 1.0)) > math.log(2):
        return ("it rises when the chosen response becomes likelier: D is chosen minus rejected, "
                "and each log-ratio is policy minus reference.")


def sums_over_tokens(dpo_loss):
    found = moved(dpo_loss, 0.4, 0.0)
    if not near(found, 1.2, 1e-3):
        return ("three tokens that are 0.4 nats likelier each make a response 1.2 nats likelier, "
                f"and yours {found:.2f}: log pi of a response is the sum over its tokens, not "
                "their mean.")


def beta_on_both(dpo_loss):
    if not near(moved(dpo_loss, 0.4, 0.0, beta=0.1), 0.12, 1e-3):
        return ("with beta = 0.1 a chosen response that is 1.2 nats likelier must give a margin "
                "of 0.12: does beta multiply its log-ratio, inside the sigmoid?")
    if not near(moved(dpo_loss, 0.0, -0.4, beta=0.1), 0.2, 1e-3):
        return ("beta is right for the chosen response, but with beta = 0.1 a rejected one that "
                "is 2 nats less likely must give a margin of 0.2: beta multiplies both log-ratios.")


def survives_a_large_margin(dpo_loss):
    found = float(dpo_loss(REF[:1] + torch.tensor([-50.0, 0.0])[:, None], REF[:1], ONE, 1.0))
    if not math.isfinite(found):
        return (f"at a margin of -150 it is {found}, and 150 is right: the sigmoid is rounded to "
                "0 there before its logarithm is taken. Torch has the two in one function.")


def can_be_trained(dpo_loss):
    policy = REF.clone().requires_grad_()
    slopes = gradient(dpo_loss(policy, REF, MASK, 0.1), policy)
    sides = torch.tensor([-1.0, 1.0])[:, None]
    if not near(slopes, sides * MASK * 0.1 / 2 / B):
        return ("the value at policy == reference is right and its gradient is not: each token of "
                "a chosen response has -beta/2 there, of a rejected one +beta/2, divided by the "
                "pairs.")


def as_the_formula(dpo_loss):
    log_ratios = ((POLICY - REF) * MASK).sum(-1)
    wanted = sum(cost(0.7 * float(chosen - rejected)) for chosen, rejected in log_ratios) / B
    found = dpo_loss(POLICY, REF, MASK, 0.7)
    if not near(found, wanted):
        return (f"right for one pair, but for {B} different ones it is {float(found):.4f} in "
                f"place of {wanted:.4f}: the mean goes around the log sigmoid, not inside.")


CHECKS = {"dpo_loss": [shape, at_the_reference, padding_counts_for_nothing, chosen_up,
                       sums_over_tokens, beta_on_both, survives_a_large_margin, as_the_formula,
                       can_be_trained]}
DONE = ("It is eq. 7: the library's is in dpo/loss.py, with its family below it, and "
        "`dpo_train(loss=...)` takes one of your own. Next: lesson 6, where it meets PPO.")
