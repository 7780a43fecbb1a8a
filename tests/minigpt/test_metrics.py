import pytest
import torch

from minigpt.metrics import preference_accuracy


@pytest.mark.parametrize(("margins", "accuracy"), [
    ([2.0, 0.1, -3.0, 1.0], 0.75), ([0.0], 0.5), ([1.0, 0.0, -1.0, 0.0], 0.5),
    ([1.0, 1.0, 0.0, -0.0], 0.75), ([-1.0], 0.0)])
def test_accuracy_is_the_share_above_zero_and_a_tie_counts_one_half(margins, accuracy):
    found = preference_accuracy(torch.tensor(margins))
    assert found.shape == ()
    assert float(found) == accuracy
