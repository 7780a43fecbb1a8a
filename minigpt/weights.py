"""Weights as a whole: copied, and compared between policy and reference."""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def copy_model_weights(source: nn.Module, target: M) -> M:
    """Copy every weight of `source` into `target` and return `target`.

    The copy is deep: training one model leaves the other as it is.
    Raises ValueError, and changes nothing, if a name or a shape differs; it names the first.
    """
    theirs, ours = source.state_dict(), target.state_dict()
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in ours or name not in theirs:
            owner = "source" if name in theirs else "target"
            raise ValueError(f"copy_model_weights: only {owner} has {name!r}")
        if theirs[name].shape != ours[name].shape:
            raise ValueError(f"copy_model_weights: {name!r} is {tuple(theirs[name].shape)} in "
                             f"source but {tuple(ours[name].shape)} in target")
    target.load_state_dict(theirs)
    return target


def check_reference(policy: nn.Module, reference: nn.Module) -> None:
    """Raises ValueError if policy and reference are the same object, or differ in shape.

    The same object would move with the policy: every log-ratio stays 0, and nothing is learned.
    """
    if policy is reference:
        raise ValueError("policy and reference are the same object: make the reference a copy, "
                         "reference = copy.deepcopy(policy)")
    if policy.settings != reference.settings:
        raise ValueError(f"policy and reference differ in shape: {policy.settings} and "
                         f"{reference.settings}")
