"""What must hold of rloo_advantages(scores) and grpo_advantages(scores): (P, k) -> (P, k)."""

import torch

from lessons.exercises import near, normal, shape_is

SCORES = 2 * normal(3, 4) + 1
ONE_RIGHT = torch.tensor([[1.0, 0.0, 0.0, 0.0]])


def shape(advantages):
    return shape_is(advantages(SCORES), (3, 4), "an advantage for each response")


def best_is_positive(advantages):
    if advantages(ONE_RIGHT)[0, 0] < 0:
        return ("the only right answer of a group gets a negative advantage: it is the score less "
                "what was to be expected, not the other way round.")


def each_group_by_itself(advantages):
    alone = torch.cat([advantages(row[None]) for row in SCORES])
    if not near(advantages(SCORES), alone):
        return ("the advantages of a group change when other groups come along: compare the "
                "responses to one prompt, the k columns of a row, and not those to all prompts.")


def sums_to_zero(advantages):
    found = float(advantages(ONE_RIGHT).sum())
    if not near(found, 0.0):
        return (f"the advantages of the scores 1, 0, 0, 0 sum to {found:.2f}. They should "
                "sum to 0: what the best one gains the others lose.")


def others_alone(rloo_advantages):
    found = rloo_advantages(ONE_RIGHT)[0]
    if near(found[0], 0.75):
        return ("with scores 1, 0, 0, 0 the first gets 0.75: its baseline is the mean of all four, "
                "its own score among them. Leave that one out.")
    if near(found[0], 1.5, 0.01):
        return ("with scores 1, 0, 0, 0 the first gets 1.5: that is its distance in standard "
                "deviations, as GRPO has it. RLOO does not divide.")
    if not near(found[0], 1.0):
        return (f"with scores 1, 0, 0, 0 the first gets {float(found[0]):.2f}, but the others "
                "score 0 on average, so it is 1 better: how many others are there?")


def as_the_sum(rloo_advantages):
    wanted = torch.stack([SCORES[:, i] - SCORES[:, [j for j in range(4) if j != i]].mean(1)
                          for i in range(4)], 1)
    if not near(rloo_advantages(SCORES), wanted):
        return ("right for the scores 1, 0, 0, 0, but not for other numbers: is the baseline of "
                "each response the plain mean of the others?")


def does_not_depend_on_scale(grpo_advantages):
    found, tenfold = grpo_advantages(SCORES), grpo_advantages(10 * SCORES)
    if near(tenfold, 10 * found):
        return ("ten times the scores give ten times the advantages: where is the division by the "
                "standard deviation of the group?")
    if not near(tenfold, found, 0.01):
        return ("ten times the scores should leave the advantages as they are: divide by the "
                "standard deviation, not by its square.")


def standard_deviation(grpo_advantages):
    found = float(grpo_advantages(ONE_RIGHT)[0, 0])
    if near(found, 3**0.5, 0.01):
        return ("with scores 1, 0, 0, 0 the first gets 1.73: your standard deviation divides the "
                "sum of squares by k. Here it is divided by k - 1.")
    if near(found, 2.0, 0.01):
        return ("with scores 1, 0, 0, 0 the first gets 2: the mean of all k is subtracted here, "
                "the response's own score included.")
    if not near(found, 1.5, 0.01):
        return (f"with scores 1, 0, 0, 0 the first gets {found:.2f}, not 1.5: the mean is 0.25 and "
                "the standard deviation 0.5.")


def flat_group(grpo_advantages):
    found = grpo_advantages(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
    if found.isnan().any():
        return ("a group whose scores are all equal gives NaN, 0 / 0, and one NaN ends the whole "
                "run: add something tiny to the standard deviation.")
    if found[0].any():
        return "a group whose scores are all equal has nothing to teach: its advantages are 0."
    if not near(found[1, 0], 1.5, 0.01):
        return "right alone, but beside a group whose scores are all equal it is another number."


CHECKS = {"rloo_advantages": [shape, best_is_positive, each_group_by_itself, sums_to_zero,
                              others_alone, as_the_sum],
          "grpo_advantages": [shape, best_is_positive, each_group_by_itself, sums_to_zero,
                              does_not_depend_on_scale, standard_deviation, flat_group]}
DONE = ("These two replace a whole network: the library's are in ppo/advantages.py, and "
        "ppo_training(..., advantage=...) takes a function of yours as well. Next: lesson 12, the "
        "family of losses.")
