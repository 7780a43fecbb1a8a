"""Measures that several stages share."""

from torch import Tensor


def preference_accuracy(margins: Tensor) -> Tensor:
    """Share of margins (chosen minus rejected) above 0, a tie counting one half: (N,) -> 0-d.

    >>> import torch
    >>> preference_accuracy(torch.tensor([2.0, 0.5, 0.0, -1.0])).item()
    0.625
    """
    return ((margins > 0).float() + 0.5 * (margins == 0).float()).mean()
