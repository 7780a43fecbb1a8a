"""What must hold of bradley_terry_loss(chosen_rewards (N,), rejected_rewards (N,)): 0-d."""

import math

import torch

from lessons.exercises import near, normal, shape_is

N = 5
CHOSEN, REJECTED = normal(N), normal(N, seed=1)
ZEROS = torch.zeros(N)


def shape(loss):
    return shape_is(loss(CHOSEN, REJECTED), (), "the mean over the pairs")


def cannot_tell(loss):
    found = float(loss(ZEROS + 2, ZEROS + 2))
    if near(found, N * math.log(2)):
        return "a sum over the pairs, and a mean is wanted: the loss must not grow with the batch."
    if near(abs(found), 0.5):
        return ("where both rewards are equal P is 1/2, and you return that probability: the loss "
                "is minus its logarithm, log 2 = 0.6931.")
    if not near(found, math.log(2)):
        return ("where both rewards are equal P is 1/2 and the loss log 2 = 0.6931, not "
                f"{found:.4f}.")


def pushes_the_chosen_up(loss):
    if float(loss(ZEROS + 1, ZEROS)) > float(loss(ZEROS, ZEROS + 1)):
        return ("a pair that is ranked right costs more than one that is ranked wrong: the margin "
                "is chosen minus rejected.")


def only_differences_count(loss):
    if not near(loss(CHOSEN.abs() + 9, REJECTED.abs() + 9), loss(CHOSEN.abs(), REJECTED.abs())):
        return ("9 points more for both answers must change nothing, and they do: a strength is e "
                "to the power of a reward, so P depends on the difference of rewards, not on "
                "their ratio.")


def each_pair_by_itself(loss):
    found = loss(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0]))
    if near(found, math.log(2)):
        return ("one pair right by 3 and one wrong by 3 come out as if both were ties: the mean "
                "was taken over the margins, and belongs around the logarithms.")


def survives_a_large_margin(loss):
    found = float(loss(torch.tensor([-120.0]), torch.tensor([0.0])))
    if not math.isfinite(found):
        return (f"at a margin of -120 it is {found}, and 120 is right: the sigmoid is rounded to "
                "0 there before its logarithm is taken. Torch has the two in one function.")


def as_the_formula(loss):
    found = loss(CHOSEN, REJECTED)
    wanted = sum(math.log(1 + math.exp(float(r - c)))
                 for c, r in zip(CHOSEN, REJECTED, strict=True)) / N
    if not near(found, wanted):
        return ("right where both rewards are equal, but on random rewards it is "
                f"{float(found):.4f} in place of {wanted:.4f}: is anything between the margin and "
                "the sigmoid?")


CHECKS = {"bradley_terry_loss": [shape, cannot_tell, pushes_the_chosen_up, only_differences_count,
                                 each_pair_by_itself, survives_a_large_margin, as_the_formula]}
DONE = ("It turns choices into a score: the library's is in reward/loss.py, and DPO's loss is the "
        "same with log-ratios for rewards. Next: lesson 4, where a policy climbs the score.")
