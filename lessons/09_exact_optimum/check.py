"""What must hold of optimum(ref_logps (P, Y), rewards (P, Y), beta): log pi*, (P, Y)."""

import math

import torch

from lessons.exercises import near, normal, shape_is

P, Y = 3, 6
REF, REWARDS = normal(P, Y).log_softmax(-1), normal(P, Y, seed=1)


def shape(optimum):
    return shape_is(optimum(REF, REWARDS, 0.5), (P, Y), "a log-probability for each answer")


def adds_up_to_one(optimum):
    found = optimum(REF, REWARDS, 0.5)
    if near(found.sum(-1), torch.ones(P)):
        return ("these are probabilities, which add up to 1 as they are, and their logarithms are "
                "wanted.")
    if near(found.logsumexp(0), torch.zeros(Y)):
        return ("the probabilities add up to 1 over the prompts: Z is a sum over the answers to "
                "one prompt, the last axis.")
    if not near(found.logsumexp(-1), torch.zeros(P)):
        return ("the probabilities of a prompt's answers do not add up to 1: where is Z, and is "
                "its logarithm subtracted?")


def no_reward_no_change(optimum):
    found = optimum(REF, torch.full((P, Y), 2.0), 0.5)
    if near(found, torch.full((P, Y), -math.log(Y))):
        return ("it adds up to 1, but where all rewards are equal every answer is equally likely, "
                "as if the reference were not there; pi* is the reference then.")
    if not near(found, REF):
        return ("it adds up to 1, but where all rewards are equal pi* must be the reference, and "
                "yours is another: beta divides the reward alone, and leaves log ref as it is.")


def tilted_by_the_reward(optimum):
    even = torch.full((1, 2), 0.5).log()
    low, high = optimum(even, torch.tensor([[0.0, 1.0]]), 0.5)[0].tolist()
    if high < low:
        return ("the better answer becomes less likely: the reward stands in the exponent with a "
                "plus.")
    if near(high - low, 0.5):
        return ("a reward of 1 more at beta = 0.5 is worth 2 nats of log-odds, and yours 0.5: a "
                "small beta is a weak pull to the reference, so it divides the reward.")
    if not near(high - low, 2.0):
        return ("a reward of 1 more at beta = 0.5 is worth 1 / 0.5 = 2 nats of log-odds, and "
                f"yours {high - low:.4f}.")


def survives_a_small_beta(optimum):
    found = optimum(REF, REWARDS + 50, 0.1)
    if not found.isfinite().all():
        return ("with rewards of 50 at beta = 0.1 it is not finite: exp(500) is more than a float "
                "holds. Stay in logarithms until the end, where log Z has a function of its own.")


def never_said_stays_unsaid(optimum):
    never = REF.clone()
    never[:, 0] = -math.inf
    found = optimum(never, REWARDS, 0.5)
    if not (found[:, 0] == -math.inf).all() or found.isnan().any():
        return ("an answer of probability 0 under the reference must keep it, whatever its "
                "reward: a tilt multiplies. Yours gives it some, or nan.")


def reaches_the_best_value(optimum):
    found, beta = optimum(REF, REWARDS, 0.3), 0.3
    values = (found.exp() * (REWARDS - beta * (found - REF))).sum(-1)
    best = [beta * math.log(sum(math.exp(logp + r / beta) for logp, r in zip(*row, strict=True)))
            for row in zip(REF.tolist(), REWARDS.tolist(), strict=True)]
    if not near(values, torch.tensor(best)):
        return (f"no policy has more E[r] - beta KL than beta log Z = {best[0]:.4f}, and yours "
                f"has {float(values[0]):.4f} for the first of three prompts: is each reward "
                "tilted by 1 / beta, and each prompt by itself?")


CHECKS = {"optimum": [shape, adds_up_to_one, no_reward_no_change, tilted_by_the_reward,
                      survives_a_small_beta, never_said_stays_unsaid, reaches_the_best_value]}
DONE = ("It is where PPO and DPO would end if nothing were left to chance, and what "
        "lessons/limit.py holds every method to. Next: lessons/cheatsheet.md, the whole course on "
        "one page.")
