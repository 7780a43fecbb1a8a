"""The verdict of `lessons.compare`: which method got furthest, and whether the run can tell."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

FEWEST_QUESTIONS = 20  # with fewer, a difference says more about the questions than the methods
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # by number of values
# For each method its shares of the possible gain: one for each question, or one for each seed.
Shares = Mapping[str, Sequence[float]]


class Lead(NamedTuple):
    """The method with the largest share, the one behind it (None: it is alone, and compared with
    the SFT model, whose share is 0), and its lead, in points of share."""

    methods: int
    first: str
    second: str | None
    share: float
    behind: float
    half: float  # of the lead's 95% interval, in points

    @property
    def points(self) -> int:
        """The lead between the shares as they are printed."""
        return round(100 * self.share) - round(100 * self.behind)

    @property
    def is_told(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(100 * (self.share - self.behind)) > self.half


def student(count: int) -> float:
    """Student's factor of a 95% interval for the mean of `count` values.

    From nine on by a series in one over the degrees of freedom (Abramowitz and Stegun, 26.7.5).
    """
    z, degrees = 1.959964, count - 1
    return STUDENT.get(count) or z + (z**3 + z) / (4 * degrees) \
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of the mean; infinite for a single value."""
    if len(values) < 2:
        return math.inf
    return student(len(values)) * stdev(values) / len(values) ** 0.5


def lead(shares: Shares) -> Lead | None:
    """Who leads; None if no method has a share (one that stayed where SFT is has none, nan).

    The interval is of the paired difference, which does not see what is hard for both.
    """
    known = {name: values for name, values in shares.items() if all(map(math.isfinite, values))}
    if not known:
        return None
    first, *others = sorted(known, key=lambda name: mean(known[name]), reverse=True)
    behind = known[others[0]] if others else [0.0] * len(known[first])
    differences = [a - b for a, b in zip(known[first], behind, strict=True)]
    return Lead(len(known), first, others[0] if others else None, mean(known[first]), mean(behind),
                100 * half_width(differences))


def verdict(shares: Shares, prompts: int, questions: int, seeds: int = 1) -> list[str]:
    """Who got furthest, and whether that can be told, in two sentences.

    shares: over the held-out questions of one run, or over several seeds.
    """
    found = lead(shares)
    if found is None:
        return ["No method has moved away from the SFT model, so there is nothing to rank."]
    return [who_leads(found, seeds), who_can_tell(found, prompts, questions, seeds)]


def who_leads(found: Lead, seeds: int) -> str:
    """The first sentence: which method got furthest, and by how much."""
    share = f"{found.share:.0%} of the possible gain in true reward" \
        + f" on average over {seeds} seeds" * (seeds > 1)
    if found.second is None:
        return f"The only method here, {found.first}, has {share}."
    if found.points == 0:
        return (f"Of {found.methods} methods {found.first} and {found.second} got furthest, level "
                f"at {share}.")
    return (f"Of {found.methods} methods {found.first} got furthest, with {share}, {found.points} "
            "point" + "s" * (found.points > 1) + f" more than {found.second} ({found.behind:.0%}).")


def who_can_tell(found: Lead, prompts: int, questions: int, seeds: int) -> str:
    """The second sentence: whether that is more than chance."""
    over = "from seed to seed" if seeds > 1 else f"over {questions} held-out questions"
    difference = (f"the difference is {found.points} +- {found.half:.0f} points (95% interval, "
                  f"{over})")
    run = f"these {seeds} seeds" if seeds > 1 else "this run"
    pair = "the two apart" if found.second else "it from the SFT model"
    if questions < FEWEST_QUESTIONS:
        return (f"But {prompts} held-out prompts are too few to rank methods: {difference}, and "
                "the whole world, without --quick, has more.")
    if not found.is_told:
        return f"But {run} cannot tell {pair}: {difference}" + (
            ", so call them level." if seeds > 1 else ", so look at more seeds (--seeds 3).")
    return f"{run.capitalize()} can tell {pair}: {difference}" + (
        "." if seeds > 1 else "; whether another seed agrees, --seeds 3 shows.")
