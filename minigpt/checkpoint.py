"""Models and training states on disk: written atomically, read without running code."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from minigpt.disk import write_atomically
from minigpt.errors import UserError
from minigpt.model import MiniGPT

FORMAT = "minigpt-1"


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Save a dictionary of tensors, numbers, strings, lists and dictionaries."""
    write_atomically(Path(path), lambda file: torch.save(state, file))


def load_state(path: str | Path) -> dict[str, Any]:
    """Load what `save_state` wrote, on the CPU.

    Raises FileNotFoundError, or UserError naming the file if it holds anything else.
    """
    with Path(path).open("rb"):  # raises FileNotFoundError, which is not a damaged file
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a checkpoint of this library, or it is damaged: {reason}"
                        ) from error


def save_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Save a MiniGPT or RewardModel: its weights, and the arguments of its constructor."""
    save_state({"format": FORMAT, "model": type(model).__name__, "settings": model.settings,
                "weights": model.state_dict()}, path)


def load_checkpoint(path: str | Path) -> Any:
    """Load a MiniGPT or RewardModel, on the CPU, in eval mode.

    Reads tensors and plain values only (`weights_only`), never code.
    Raises FileNotFoundError, or UserError naming the file and what does not match.
    """
    from reward.model import RewardModel  # here, since reward.model imports minigpt

    state = load_state(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a model checkpoint of this library (its format is "
                        f"not {FORMAT!r})")
    kinds = {"MiniGPT": MiniGPT, "RewardModel": RewardModel}
    if state.get("model") not in kinds:
        raise UserError(f"{path} holds a {state.get('model')!r}, which is none of {sorted(kinds)}")
    weights = state.get("weights")
    if not isinstance(weights, dict) \
            or not all(isinstance(w, torch.Tensor) for w in weights.values()):
        raise UserError(f"{path}: 'weights' is not a dictionary of tensors")
    try:
        model = kinds[state["model"]](**state["settings"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its settings do not fit a {state['model']}: {error}") from error
    ours = model.state_dict()
    for name in sorted(ours.keys() | weights.keys()):
        if name not in weights or name not in ours or weights[name].shape != ours[name].shape:
            found = f"has shape {tuple(weights[name].shape)}" if name in weights else "is missing"
            expected = f"expected {tuple(ours[name].shape)}" if name in ours else \
                "this model has no such weight"
            raise UserError(f"{path}: {name!r} {found} ({expected})")
    model.load_state_dict(weights)
    return model.eval()
