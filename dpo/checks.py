"""What every loss on log-probabilities checks first."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from torch import Tensor

from minigpt.metrics import check_vectors

F = TypeVar("F", bound=Callable[..., Any])


def checked(loss: F) -> F:
    """The same function of tensors and settings, which now refuses what `check_arguments` does."""
    signature = inspect.signature(loss)

    @functools.wraps(loss)
    def checked_loss(*args: Any, **settings: Any) -> Any:
        check_arguments(loss.__name__, signature.bind(*args, **settings).arguments)
        return loss(*args, **settings)
    return cast(F, checked_loss)


def check_arguments(loss: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError, naming loss and argument, unless the arguments are, by their names,

    *logps: real and of one size (B,), B > 0;  *lengths: as many numbers above 0;  beta: above 0;
    label_smoothing: at least 0 and below 0.5;  any other number: at least 0; all of them finite.
    """
    logps = {name: value for name, value in given.items() if name.endswith("logps")}
    check_vectors(loss, **logps)
    size = next(iter(logps.values())).shape
    for name, value in given.items():
        if name.endswith("lengths"):
            if value.shape != size or not bool((value > 0).all()):
                raise ValueError(f"{loss}: {name} must be {tuple(size)} numbers of tokens above 0, "
                                 f"found {value.tolist()}")
        elif not isinstance(value, Tensor):
            least = "above" if name == "beta" else "at least"
            below = 0.5 if name == "label_smoothing" else math.inf
            if not 0 <= value < below or (name == "beta" and value == 0):
                raise ValueError(f"{loss}: {name}={value} must be {least} 0 and below {below}")
