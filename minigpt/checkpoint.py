"""Models and training states on disk: written whole or not at all, read without running code from the file."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from minigpt.cli import UserError, check_device
from minigpt.disk import write_atomically
from minigpt.model import MiniGPT

FORMAT = "minigpt-1"
M = TypeVar("M", bound=nn.Module)


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Save a dictionary of tensors, numbers, strings, lists and dictionaries."""
    write_atomically(Path(path), lambda file: torch.save(state, file))


def load_state(path: str | Path) -> dict[str, Any]:
    """Load what `save_state` wrote.  Raises UserError, naming the file, if it is anything else."""
    with Path(path).open("rb"):  # a missing or unreadable file is its own error; whatever comes next is its content
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive can raise nearly anything on its way through zip and unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a checkpoint of this library, or is damaged: {reason}") from error


def save_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Save a MiniGPT or RewardModel with the settings that rebuild it."""
    save_state({"format": FORMAT, "model": type(model).__name__, "settings": model.settings,
                "weights": model.state_dict()}, path)


def load_model(path: str | Path, kind: type[M], option: str, device: str) -> M:
    """The model that a command-line option names, on a device.  Raises UserError if it is of another kind."""
    model = load_checkpoint(path)
    if not isinstance(model, kind):
        raise UserError(f"{option} {path} holds a {type(model).__name__}, but a {kind.__name__} is needed here")
    return model.to(check_device(device))


def load_checkpoint(path: str | Path) -> nn.Module:
    """The model that the file holds (MiniGPT or RewardModel), on the CPU, in eval mode.

    Only tensors and plain values are read (`weights_only`), never code.  Raises FileNotFoundError, or UserError
    naming the file and what does not match.
    """
    from reward.model import RewardModel  # the one name from a floor above, needed only when a file asks for it

    state = load_state(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a model checkpoint of this library (no format mark {FORMAT!r})")
    kinds = {"MiniGPT": MiniGPT, "RewardModel": RewardModel}
    if state.get("model") not in kinds:
        raise UserError(f"{path} holds a {state.get('model')!r}, which is none of {sorted(kinds)}")
    weights = state.get("weights")
    if not isinstance(weights, dict) or not all(isinstance(w, torch.Tensor) for w in weights.values()):
        raise UserError(f"{path}: 'weights' is not a dictionary of tensors")
    try:
        model = kinds[state["model"]](**state["settings"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its settings do not make a {state['model']}: {error}") from error
    ours = model.state_dict()
    for name in sorted(ours.keys() | weights.keys()):
        if name not in weights or name not in ours or weights[name].shape != ours[name].shape:
            found = f"has shape {tuple(weights[name].shape)}" if name in weights else "is missing"
            expected = f"expected {tuple(ours[name].shape)}" if name in ours else "this model has no such weight"
            raise UserError(f"{path}: {name!r} {found} ({expected})")
    model.load_state_dict(weights)
    return model.eval()
