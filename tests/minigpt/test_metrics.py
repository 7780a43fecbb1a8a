import math

import pytest
import torch

from minigpt.metrics import (
    accuracy_figures,
    check_vectors,
    interval,
    masked,
    masked_mean,
    preference_accuracy,
)


@pytest.mark.parametrize(("margins", "accuracy"), [
    ([2.0, 0.1, -3.0, 1.0], 0.75), ([0.0], 0.5), ([1.0, 0.0, -1.0, 0.0], 0.5),
    ([1.0, 1.0, 0.0, -0.0], 0.75), ([-1.0], 0.0)])
def test_accuracy_is_the_share_above_zero_and_a_tie_counts_one_half(margins, accuracy):
    found = preference_accuracy(torch.tensor(margins))
    assert found.shape == ()
    assert float(found) == accuracy


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
def test_what_is_masked_enters_neither_a_value_nor_a_gradient(outside):
    x = torch.tensor([[1.0, outside], [outside, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    for kind in (mask, mask.float(), mask.long()):
        assert masked(x, kind).tolist() == [[1.0, 0.0], [0.0, 3.0]]
        mean = masked_mean(x, kind)
        assert float(mean.detach()) == 2.0
        (gradient,) = torch.autograd.grad(mean, x)
        assert gradient.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert math.isnan(masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool)))


# --- the interval of a share ----------------------------------------------------------------------


def brute_force_interval(share, count):
    """The shares p from which the observed one is at most 1.96 standard errors away."""
    fits = [n / 100_000 for n in range(100_001)
            if abs(share - n / 100_000) <= 1.96 * math.sqrt(n / 1e5 * (1 - n / 1e5) / count)]
    return min(fits), max(fits)


@pytest.mark.parametrize(("share", "count"), [
    (0.5, 10), (0.0, 1), (1.0, 1), (1.0, 9), (0.7, 20), (0.73, 1500), (0.25, 2), (0.999, 1000)])
def test_interval_is_wilsons(share, count):
    low, high = interval(share, count)
    expected = brute_force_interval(share, count)
    assert (low, high) == pytest.approx(expected, abs=2e-5)
    assert 0 <= low <= share <= high <= 1 and low < high


def test_rounding_pushes_no_bound_below_0_or_above_1():
    for count in range(1, 200):  # without the clamps it would at 5
        assert interval(0.0, count)[0] >= 0.0
        assert interval(1.0, count)[1] <= 1.0


def test_interval_is_symmetric_and_narrows_with_the_number_of_pairs():
    for share in (0.0, 0.1, 0.4, 0.9):
        (low, high), (mirrored_low, mirrored_high) = interval(share, 30), interval(1 - share, 30)
        assert (low, high) == pytest.approx((1 - mirrored_high, 1 - mirrored_low))
    widths = [high - low for low, high in (interval(0.8, n) for n in (1, 10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def test_a_reported_accuracy_carries_its_interval_and_its_number_of_pairs():
    low, high = interval(0.8, 50)
    assert accuracy_figures("accuracy", 0.8, 50) == {
        "accuracy": 0.8, "accuracy_low": low, "accuracy_high": high, "accuracy_pairs": 50}


# --- vectors --------------------------------------------------------------------------------------


def test_vectors_of_one_size_and_real_numbers_are_accepted():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        check_vectors("loss", chosen=torch.zeros(3, dtype=dtype), rejected=torch.zeros(3))


@pytest.mark.parametrize(("wrong", "words"), [
    ({"chosen": torch.zeros(3, 2)}, r"chosen is \(3, 2\), but \(B,\)"),
    ({"chosen_logps": torch.zeros(3, 2)}, r"chosen_logps is \(3, 2\).*sum the log-probabilities"),
    ({"chosen": torch.zeros(0)}, "chosen is empty"),
    ({"chosen": torch.zeros(3, dtype=torch.bool)}, r"chosen is of torch\.bool"),
    ({"chosen": torch.zeros(2), "rejected": torch.zeros(3)},
     r"differ in shape: {'chosen': \(2,\), 'rejected': \(3,\)}")])
def test_other_vectors_are_refused_in_words_that_name_function_and_argument(wrong, words):
    with pytest.raises(ValueError, match=f"^loss: .*{words}|^loss: {words}"):
        check_vectors("loss", **wrong)
