"""Weights as a whole: copied, unwrapped, checked, and compared between policy and reference."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

M = TypeVar("M", bound=nn.Module)
WRAPPERS = ("_orig_mod", "module")  # where torch.compile, and DataParallel and DDP, keep the model


def unwrapped(model: M) -> M:
    """The model inside what torch.compile, DataParallel or DistributedDataParallel made of it."""
    if isinstance(model, nn.DataParallel | DistributedDataParallel):
        return unwrapped(model.module)
    compiled: Any = getattr(model, "_modules", {}).get("_orig_mod")
    return model if compiled is None else unwrapped(compiled)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without what such a wrapper, of a whole model or of a part, adds to their names."""
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): weight
            for name, weight in weights.items()}


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first weight that holds NaN or infinity; None if all are finite."""
    return next((name for name, weight in weights.items()
                 if not bool(torch.isfinite(weight).all())), None)


def copy_model_weights(source: nn.Module, target: M) -> M:
    """Copy every weight of `source` into `target` and return `target`.

    The copy is deep: training one model leaves the other as it is.
    Raises ValueError, and changes nothing, if a name or a shape differs; it names the first.
    """
    theirs, ours = unwrapped(source).state_dict(), unwrapped(target).state_dict()
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in ours or name not in theirs:
            owner = "source" if name in theirs else "target"
            raise ValueError(f"copy_model_weights: only {owner} has {name!r}")
        if theirs[name].shape != ours[name].shape:
            raise ValueError(f"copy_model_weights: {name!r} is {tuple(theirs[name].shape)} in "
                             f"source but {tuple(ours[name].shape)} in target")
    unwrapped(target).load_state_dict(theirs)
    return target


def check_reference(policy: nn.Module, reference: nn.Module) -> None:
    """Raises ValueError if the reference would move with the policy, or if they differ in shape.

    It does if it is the same object, or shares a weight that is trained: every log-ratio then stays
    0, and nothing is learned.
    """
    check_apart(policy, reference, "policy and reference",
                "make the reference a copy, reference = copy.deepcopy(policy)")
    settings, ref_settings = (getattr(model, "settings", {"max_seq_len": model.max_seq_len})
                              for model in (unwrapped(policy), unwrapped(reference)))
    if settings != ref_settings:
        raise ValueError(f"policy and reference differ in shape: {settings} and {ref_settings}")


def check_apart(trained: nn.Module, frozen: nn.Module, names: str, fix: str) -> None:
    """Raises ValueError, with what to do, if training the first model would change the second."""
    if unwrapped(trained) is unwrapped(frozen):
        raise ValueError(f"{names} are the same object: {fix}")
    theirs = {weight.data_ptr() for weight in frozen.parameters() if weight.numel()}
    for name, weight in unwrapped(trained).named_parameters():
        if weight.requires_grad and weight.data_ptr() in theirs:
            raise ValueError(f"{names} share the weight {name!r}, which is trained: {fix}")
