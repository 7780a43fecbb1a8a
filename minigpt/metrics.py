"""Measures that several stages share."""

import math

from torch import Tensor


def check_vectors(function: str, **vectors: Tensor) -> None:
    """Raises ValueError, naming the argument, unless all are (B,) of one size above 0, and real."""
    sizes = {name: tuple(vector.shape) for name, vector in vectors.items()}
    for name, size in sizes.items():
        if len(size) != 1:
            raise ValueError(f"{function}: {name} is {size}, but one number for each response is "
                             "needed, (B,): sum the log-probabilities of its tokens first"
                             if "logps" in name else
                             f"{function}: {name} is {size}, but (B,) is needed")
        if size[0] == 0:
            raise ValueError(f"{function}: {name} is empty, so there is nothing to learn from")
        if not vectors[name].is_floating_point():
            raise ValueError(f"{function}: {name} is of {vectors[name].dtype}, but real numbers "
                             "are needed: convert it with .float()")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{function}: its arguments differ in shape: {sizes}")


def preference_accuracy(margins: Tensor) -> Tensor:
    """Share of margins (chosen minus rejected) above 0, a tie counting one half: (N,) -> 0-d.

    >>> import torch
    >>> preference_accuracy(torch.tensor([2.0, 0.5, 0.0, -1.0])).item()
    0.625
    """
    return ((margins > 0).float() + 0.5 * (margins == 0).float()).mean()


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is True, and 0 elsewhere, whatever is there (x * mask would keep NaN)."""
    return x.masked_fill(~mask.bool(), 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where the mask is True (0-d); nan if the mask is empty."""
    return masked(x, mask).sum() / mask.sum()


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent cases (Wilson 1927).

    >>> [round(bound, 2) for bound in interval(1.0, 9)]
    [0.7, 1.0]
    """
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def accuracy_figures(name: str, accuracy: float, pairs: int) -> dict[str, float]:
    """An accuracy as a report shows it: with its interval and the number of pairs."""
    low, high = interval(accuracy, pairs)
    return {name: accuracy, f"{name}_low": low, f"{name}_high": high, f"{name}_pairs": pairs}
