"""What must hold of ipo_loss(margins (B,), beta) and simpo_loss(logps (B, 2), lengths, ...)."""

import math

import torch

from lessons.exercises import gradient, near, normal, shape_is

MARGINS = normal(4, seed=0)
LOGPS = -normal(3, 2, seed=1).abs() * 5 - 1
LENGTHS = torch.tensor([[3.0, 5.0], [4.0, 2.0], [5.0, 5.0]])


def cost(margin):
    """-log sigmoid(margin)"""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


# --- ipo_loss -------------------------------------------------------------------------------------


def shape(ipo_loss):
    return shape_is(ipo_loss(MARGINS, 0.1), (), "the mean over the pairs")


def at_the_reference(ipo_loss):
    found = float(ipo_loss(torch.zeros(3), 0.1))
    if near(found, 75.0):
        return "a sum over the pairs, and a mean is wanted: the loss must not grow with the batch."
    if near(found, 0.25 * 0.01):
        return ("with D = 0 and beta = 0.1 it is (beta / 2)^2: the target of D is 1 / (2 beta), "
                "larger for a smaller beta, as in DPO.")
    if near(found, 100.0):
        return "with D = 0 and beta = 0.1 it is 1 / beta^2: half of that is the target, squared."
    if not near(found, 25.0):
        return f"with D = 0 and beta = 0.1 it is 1 / (2 beta)^2 = 25, not {found:.4f}."


def least_at_the_target(ipo_loss):
    target = 1 / (2 * 0.25)
    if not near(ipo_loss(torch.tensor([target]), 0.25), 0.0, 1e-5):
        return ("at D = 1 / (2 beta) the loss must be 0: is beta inside the square, in front of D? "
                "There it would be another loss.")
    beyond = torch.tensor([target + 1.0], requires_grad=True)
    if float(gradient(ipo_loss(beyond, 0.25), beyond)) <= 0:
        return ("beyond its target a margin must be pulled back, and here nothing pulls: that is "
                "what IPO is for. Is something clamped?")


def squares_then_means(ipo_loss):
    wanted = float(((MARGINS - 5) ** 2).mean())
    if not near(ipo_loss(MARGINS, 0.1), wanted, 1e-4):
        return "right for equal margins, not for different ones: each pair is squared, then meaned."


# --- simpo_loss -----------------------------------------------------------------------------------


def simpo_shape(simpo_loss):
    return shape_is(simpo_loss(LOGPS, LENGTHS, 2.0, 0.5), (), "the mean over the pairs")


def equal_means(simpo_loss):
    logps, lengths = torch.tensor([[-2.0, -1.0]]), torch.tensor([[4.0, 2.0]])
    found = float(simpo_loss(logps, lengths, 2.0, 0.0))
    if near(found, cost(2.0 * (-2.0 + 1.0))):
        return ("two responses whose tokens are equally likely must be level, whatever their "
                "lengths: divide each log-probability by its own length.")
    if not near(found, math.log(2)):
        return f"both means are -0.5 and gamma is 0, so the loss is log 2, not {found:.4f}."


def gamma_is_asked_for(simpo_loss):
    logps, lengths = torch.tensor([[-2.0, -1.0]]), torch.tensor([[4.0, 2.0]])
    found = float(simpo_loss(logps, lengths, 2.0, 1.0))
    if near(found, cost(1.0)):
        return ("gamma is a margin that is asked for, so it makes a level pair cost more, and here "
                "it costs less: which sign does it have?")
    if near(found, cost(-2.0)):
        return "gamma stands beside beta times the difference, not inside: it is not times beta."
    if not near(found, cost(-1.0)):
        return (f"a level pair at gamma = 1 costs -log sigmoid(-1) = {cost(-1.0):.4f}, not "
                f"{found:.4f}.")


def chosen_up(simpo_loss):
    better, worse = (float(simpo_loss(LOGPS[:1] + torch.tensor([change, 0.0]), LENGTHS[:1], 2.0,
                                      0.5)) for change in (1.0, -1.0))
    if better > worse:
        return "it rises when the chosen response becomes likelier: which of the two is column 0?"


def simpo_formula(simpo_loss):
    means = LOGPS / LENGTHS
    wanted = sum(cost(2.0 * float(chosen - rejected) - 0.5) for chosen, rejected in means) / 3
    found = float(simpo_loss(LOGPS, LENGTHS, 2.0, 0.5))
    if near(found, 3 * wanted):
        return "a sum over the pairs, and a mean is wanted: the loss must not grow with the batch."
    if not near(found, wanted):
        return f"right for one pair, but for three it is {found:.4f} in place of {wanted:.4f}."


CHECKS = {"ipo_loss": [shape, at_the_reference, least_at_the_target, squares_then_means],
          "simpo_loss": [simpo_shape, equal_means, gamma_is_asked_for, chosen_up, simpo_formula]}
DONE = ("Both stand in dpo/loss.py, beside their ten relatives, and `python -m dpo.main --loss "
        "ipo` trains with one. Next: lesson 13, where the pairs are the policy's own.")
