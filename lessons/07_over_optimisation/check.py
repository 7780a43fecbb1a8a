"""What must hold of best_of_n_kl(scores (N,), n): a number of nats."""

import math
from collections import Counter

import torch

from lessons.exercises import near, normal, shape_is

MANY = normal(2000)                                            # no two alike
TIES = torch.tensor([1.0, 3.0, 1.0, 2.0, 3.0, 1.0, 0.0, 2.0])  # in no order


def slow(scores, n):
    """The formula, one score after the other."""
    scores, kl = scores.tolist(), 0.0
    for score, count in Counter(scores).items():
        up_to = sum(s <= score for s in scores) / len(scores)
        p = count / len(scores)
        q = up_to**n - (up_to - p) ** n
        kl += q * math.log(q / p)
    return kl


def shape(best_of_n_kl):
    return shape_is(best_of_n_kl(TIES, 4), (), "one number")


def best_of_one(best_of_n_kl):
    found = float(best_of_n_kl(MANY, 1))
    if not abs(found) < 1e-3:
        return ("the best of one is the reference itself, so at n = 1 q is p and the KL is 0, "
                f"and yours is {found:.4f}: is q a difference of two powers, and p a share of the "
                "N answers?")


def without_ties(best_of_n_kl):
    found, n = float(best_of_n_kl(MANY, 4)), 4
    formula = math.log(n) - (n - 1) / n
    if near(found, n - 1 - math.log(n), 0.02):
        return ("this is KL(reference to best-of-n) with the two changed round: the mean is over "
                "the answers that best-of-n gives, so q stands before the logarithm.")
    if near(found, formula / math.log(2), 0.01):
        return "these are bits, and nats are wanted: the natural logarithm."
    if near(found, math.log(n), 0.01):
        return ("log n is what it costs to pin one answer in n; best-of-n still varies, which "
                "takes (n - 1) / n off. Where is the mean over q?")
    if not near(found, formula, 0.01):
        return (f"without ties the KL at n = 4 is log n - (n - 1) / n = {formula:.4f}, and yours "
                f"is {found:.4f}: the best has the score s where all n are at most s, but not all "
                "below it.")


def all_tie(best_of_n_kl):
    found = float(best_of_n_kl(torch.zeros(50), 4))
    if not abs(found) < 1e-6:
        return ("where all answers score the same there is nothing to choose and the KL is 0, "
                f"but yours is {found:.4f}: log n - (n - 1) / n is only a bound, reached without "
                "ties. Put equal scores together first.")


def the_highest_is_best(best_of_n_kl):
    found = float(best_of_n_kl(torch.tensor([0.0, 1.0, 0.0, 0.0]), 10_000))
    if math.isnan(found):
        return ("with n = 10,000 it is nan: some score is never the best, and q log q is 0 there, "
                "though 0 times log 0 is not. Torch has a function for x log y.")
    if near(found, math.log(4 / 3), 1e-3):
        return ("it picks the worst of n: F counts from the lowest score up, so that the highest "
                "score gains most.")
    if not near(found, math.log(4), 1e-3):
        return ("where one answer in four is right, the best of 10,000 is right, which costs log "
                f"4 = 1.3863 nats and no more; yours says {found:.4f}: are equal scores put "
                "together, wherever they stand?")


def as_the_formula(best_of_n_kl):
    found, wanted = best_of_n_kl(TIES, 4), slow(TIES, 4)
    if not near(found, wanted):
        return ("right without ties and where all tie, but for a few of each it is "
                f"{float(found):.4f} in place of {wanted:.4f}: are the scores in order, and F_- "
                "the share strictly below?")


CHECKS = {"best_of_n_kl": [shape, best_of_one, without_ties, all_tie, the_highest_is_best,
                           as_the_formula]}
DONE = ("It says what choosing costs, and it is less than the formula in common use wherever "
        "answers tie: the library's is in lessons/limit.py. Next: lesson 8, on runs that go wrong "
        "silently.")
