"""What must hold of best_and_worst(scores (P, k), finished (P, k)) -> (P, 2)."""

import torch

from lessons.exercises import normal, shape_is

SCORES = normal(5, 4, seed=0)
ALL = torch.ones(5, 4).bool()
HALF = torch.tensor([[True, False, True, True], [False, False, True, True],
                     [True, True, True, False], [True, False, False, True],
                     [False, True, True, True]])


def wanted(scores, finished):
    """By looking at one prompt after the other."""
    rows = []
    for row, counts in zip(scores.tolist(), finished.tolist(), strict=True):
        columns = sorted((n for n, ended in enumerate(counts) if ended), key=row.__getitem__)
        level = len(columns) < 2 or row[columns[0]] == row[columns[-1]]
        rows.append([-1, -1] if level else [columns[-1], columns[0]])
    return torch.tensor(rows)


def same(found, expected):
    return torch.equal(torch.as_tensor(found).long(), expected)


def shape(best_and_worst):
    return shape_is(best_and_worst(SCORES, ALL), (5, 2), "a best and a worst for each prompt")


def all_finished(best_and_worst):
    found, expected = best_and_worst(SCORES, ALL), wanted(SCORES, ALL)
    if same(found, expected.flip(1)):
        return "the best comes first, then the worst, and yours are the other way round."
    if same(torch.as_tensor(found)[:, 0], expected[:, 0]) and not same(found, expected):
        return ("the best is right and the worst is not: of k responses it is the last by score, "
                "not the second.")
    if not same(found, expected):
        return (f"with all responses finished the columns are {expected.tolist()}, and yours "
                f"{torch.as_tensor(found).tolist()}.")


def unfinished_do_not_count(best_and_worst):
    found, expected = torch.as_tensor(best_and_worst(SCORES, HALF)).long(), wanted(SCORES, HALF)
    if same(found, wanted(SCORES, ALL)):
        return ("responses that never ended are compared, too: they would be learned from as if "
                "they were whole answers.")
    if same(found, wanted(SCORES * HALF, ALL)):
        return ("an unfinished response must not count at all, and here it counts as a score of "
                "0, which beats every negative one.")
    if not same(found, expected):
        return ("right when all have ended, wrong when some have not: leave those out of the best "
                "and of the worst.")


def ties_teach_nothing(best_and_worst):
    level = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0]])
    found = torch.as_tensor(best_and_worst(level, torch.ones(2, 3).bool())).long()
    if int(found[0, 0]) != -1:
        return ("three responses with the same score, and one of them is called the best: that "
                "pair would be labelled by the order of the columns.")
    if sorted(found[1].tolist()) == [-1, -1]:
        return "two of three are level and the third is worse: that prompt does teach something."


def too_few_teach_nothing(best_and_worst):
    scores, finished = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.zeros(2, 2).bool()
    finished[0, 1] = True
    found = torch.as_tensor(best_and_worst(scores, finished)).long()
    if not same(found, torch.full((2, 2), -1)):
        return ("a prompt with one finished response, or with none, has no pair: -1 and -1 is "
                f"wanted, not {found.tolist()}.")


CHECKS = {"best_and_worst": [shape, all_finished, unfinished_do_not_count, ties_teach_nothing,
                             too_few_teach_nothing]}
DONE = ("That is the heart of a round: the library's is `pairs_of` in dpo/rounds.py, with the "
        "sampling and the judge in minigpt/judged.py. Next: lesson 14, two objectives at once.")
