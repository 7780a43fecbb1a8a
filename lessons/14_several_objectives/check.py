"""What must hold of pareto(points (N, K)) -> (N,), bool."""

import torch

from lessons.exercises import normal, shape_is

POINTS = normal(12, 2, seed=0)


def wanted(points):
    """By comparing each with each."""
    def dominates(a, b):
        return all(x >= y for x, y in zip(a, b, strict=True)) and a != b
    rows = points.tolist()
    return torch.tensor([not any(dominates(other, row) for other in rows) for row in rows])


def same(found, expected):
    return torch.equal(torch.as_tensor(found).bool(), expected)


def shape(pareto):
    return shape_is(pareto(POINTS), (12,), "a yes or no for each policy")


def a_trade_and_a_loser(pareto):
    points = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.9, 0.9]])
    found = torch.as_tensor(pareto(points)).bool().tolist()
    if found == [False] * 4:
        return ("nobody is left: each policy is at least as good as itself, and must not be called "
                "dominated by itself.")
    if found == [False, False, True, False]:
        return "higher is better: yours keeps the one that is worst on both."
    if found == [True, True, False, False]:
        return ("(0.9, 0.9) is on the front, since nobody is at least as good on *both*: yours "
                "keeps only the best on each objective, or the best sums.")
    if found != [True, True, False, True]:
        return f"of (2, 0), (0, 2), (-1, -1), (0.9, 0.9) all but the third are on it, not {found}."


def level_on_one(pareto):
    points = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    if not same(pareto(points), torch.tensor([True, False])):
        return ("(1, 0) is dominated by (1, 1): level on one objective and worse on the other "
                "is enough.")


def twins(pareto):
    points = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    if not same(pareto(points), torch.tensor([True, True, False])):
        return "two equal policies do not dominate each other: better on one objective is needed."


def as_by_hand(pareto):
    if not same(pareto(POINTS), wanted(POINTS)):
        return (f"right for a few points, but of 12 random ones {int(wanted(POINTS).sum())} are on "
                f"the front and yours has {int(torch.as_tensor(pareto(POINTS)).sum())}.")
    three = normal(20, 3, seed=1)
    if not same(pareto(three), wanted(three)):
        return "right for two objectives, wrong for three: is a column chosen by its number?"


CHECKS = {"pareto": [shape, a_trade_and_a_loser, level_on_one, twins, as_by_hand]}
DONE = ("A front is what you report when nobody has told you the weights. The rewards with weights "
        "are `Ensemble` in reward/combine.py.")
