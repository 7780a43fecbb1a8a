import math

import pytest

from lessons.verdict import FEWEST_QUESTIONS, STUDENT, half_width, lead, student, verdict

NAN = float("nan")


def coverage(t, degrees, steps=20_000):
    """P(-t < T < t) of Student's distribution, by Simpson's rule."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    scale /= math.sqrt(degrees * math.pi)

    def density(x):
        return scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2)
    h = t / steps
    inner = sum((4 if i % 2 else 2) * density(i * h) for i in range(1, steps))
    return 2 * h / 3 * (density(0) + inner + density(t))


@pytest.mark.parametrize("count", [*STUDENT, 9, 12, 42, 500])
def test_students_factors_cover_95_percent(count):
    assert coverage(student(count), count - 1) == pytest.approx(0.95, abs=5e-4)


def around(middle, spread, count=40):
    """Values with this mean, half of them above it by `spread`, half below."""
    return [middle + spread, middle - spread] * (count // 2)


def test_half_width_by_hand():
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30 / math.sqrt(3))
    assert half_width([5.0] * 4) == 0 and half_width([5.0]) == math.inf


def test_a_clear_winner():
    shares = {"PPO": around(0.8, 0.1), "best of 16": around(0.92, 0.1), "DPO": around(0.87, 0.1)}
    found = lead(shares)
    assert (found.methods, found.first, found.second, found.points) == (3, "best of 16", "DPO", 5)
    assert found.half == pytest.approx(0, abs=1e-9)  # what is hard for both cancels
    who, can = verdict(shares, 80, 40)
    assert who == ("Of 3 methods best of 16 got furthest, with 92% of the possible gain in true "
                   "reward, 5 points more than DPO (87%).")
    assert can.startswith("This run can tell the two apart: the difference is 5 +- 0 points (95% "
                          "interval, over 40 held-out questions)")
    assert "--seeds 3" in can


def test_a_lead_within_the_noise_cannot_be_told():
    shares = {"A": around(0.9, 0.5), "B": around(0.85, -0.5)}
    half = 100 * student(40) * math.sqrt(40 / 39) / math.sqrt(40)  # differences 0.05 +- 1
    who, can = verdict(shares, 80, 40)
    assert who.endswith("5 points more than B (85%).")
    assert can.startswith("But this run cannot tell the two apart: the difference is 5 +- "
                          f"{half:.0f} points")


def test_a_tie_is_called_one():
    shares = {"A": around(0.5, 0.1), "B": around(0.5, -0.1), "C": around(0.1, 0.0)}
    who, can = verdict(shares, 80, 40)
    assert who == ("Of 3 methods A and B got furthest, level at 50% of the possible gain in true "
                   "reward.")
    assert can.startswith("But this run cannot tell the two apart: the difference is 0 +- ")
    who, can = verdict({"A": [0.5] * 40, "B": [0.5] * 40}, 80, 40)
    assert "level at" in who and "cannot tell" in can


@pytest.mark.parametrize(("share", "text"), [(0.5, "50%"), (-0.4, "-40%")])
def test_one_method_alone_is_compared_with_the_sft_model(share, text):
    who, can = verdict({"DPO": around(share, 0.1)}, 80, 40)
    assert who == f"The only method here, DPO, has {text} of the possible gain in true reward."
    assert can.startswith("This run can tell it from the SFT model: the difference is "
                          f"{round(100 * share)} +- 3 points")
    assert "cannot tell it from the SFT model" in verdict({"DPO": around(0.01, 0.5)}, 80, 40)[1]


def test_a_method_without_a_share_is_left_out():
    shares = {"A": [NAN] * 40, "B": around(0.5, 0.1), "C": around(0.3, 0.1)}
    found = lead(shares)
    assert (found.methods, found.first, found.second) == (2, "B", "C")
    for nothing in ({}, {"A": [NAN] * 40}):
        assert lead(nothing) is None
        assert verdict(nothing, 80, 40) == [
            "No method has moved away from the SFT model, so there is nothing to rank."]


def test_few_prompts_are_too_few_whatever_the_difference():
    shares = {"A": [0.9] * 8, "B": [0.1] * 8}
    assert verdict(shares, 16, FEWEST_QUESTIONS - 1)[1].startswith(
        "But 16 held-out prompts are too few to rank methods")
    assert "too few" not in verdict(shares, 40, FEWEST_QUESTIONS)[1]
    assert "80 +- inf points" in verdict({"A": [0.9], "B": [0.1]}, 2, 1)[1]


def test_over_seeds_the_differences_are_those_of_each_seed():
    shares = {"A": [0.8, 0.9, 0.7], "B": [0.7, 0.8, 0.6]}
    who, can = verdict(shares, 84, 42, seeds=3)
    assert "80% of the possible gain in true reward on average over 3 seeds, 10 points" in who
    assert can == ("These 3 seeds can tell the two apart: the difference is 10 +- 0 points (95% "
                   "interval, from seed to seed).")
    shares["B"] = [0.6, 0.9, 0.6]  # behind by 0.2, 0 and 0.1
    assert verdict(shares, 84, 42, seeds=3)[1] == (
        f"But these 3 seeds cannot tell the two apart: the difference is 10 +- "
        f"{4.30 * 10 / math.sqrt(3):.0f} points (95% interval, from seed to seed), so call them "
        "level.")
