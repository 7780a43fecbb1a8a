"""Models and training states on disk: written atomically, read without running code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.disk import write_atomically
from minigpt.errors import UserError
from minigpt.lora import merge_lora
from minigpt.model import MiniGPT
from minigpt.weights import first_not_finite, plain_names, unwrapped

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
    except pickle.UnpicklingError as error:  # whose message tells how to run the file's code
        raise UserError(f"{path} is not a checkpoint of this library: it holds something other "
                        "than tensors and plain values") from error
    except Exception as error:  # a damaged file can raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a checkpoint of this library, or it is damaged: {reason}"
                        ) from error


def save_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Save a MiniGPT, RewardModel or Ensemble: its weights, and what it was made from.

    One that was compiled or wrapped (DataParallel, DDP) is unwrapped; adapters are merged.
    Raises UserError on another model, an ensemble of other things than RewardModels, or a model
    that was changed since it was made, which could not be loaded again, and FloatingPointError if a
    weight is not finite; then nothing is written.
    """
    kinds = model_kinds()
    plain: Any = merge_lora(unwrapped(model))
    kind = type(plain)
    if kind not in kinds.values():
        raise UserError(f"a {kind.__name__} cannot be saved as a checkpoint, since it could not be "
                        "loaded again: only a MiniGPT, a RewardModel or an Ensemble can (of "
                        "others, save the state_dict() with torch.save)")
    for member in getattr(plain, "members", ()):
        if type(member) is not kinds["RewardModel"]:
            raise UserError(f"an Ensemble with a {type(member).__name__} among its members cannot "
                            "be saved as a checkpoint: all must be RewardModels")
    weights = plain_names(plain.state_dict())
    with torch.device("meta"):  # names and shapes alone
        odd = mismatch(weights, made_from(kind, plain.settings).state_dict())
    if odd is not None:
        raise UserError(f"{path} is not written, since this {kind.__name__} was changed and could "
                        f"not be loaded again: {odd}")
    broken = first_not_finite(weights)
    if broken is not None:
        raise FloatingPointError(f"{broken!r} is not finite, so {path} is not written: the "
                                 "training went wrong before")
    save_state({"format": FORMAT, "model": kind.__name__, "settings": plain.settings,
                "weights": weights}, path)


def load_checkpoint(path: str | Path) -> Any:
    """Load a MiniGPT, RewardModel or Ensemble, on the CPU, in eval mode.

    Reads tensors and plain values only (`weights_only`), never code.
    Raises FileNotFoundError, or UserError naming the file and what does not match.
    """
    state = load_state(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a model checkpoint of this library (its format is "
                        f"not {FORMAT!r})")
    kinds = model_kinds()
    if state.get("model") not in kinds:
        raise UserError(f"{path} holds a {state.get('model')!r}, which is none of {sorted(kinds)}")
    weights = state.get("weights")
    if not isinstance(weights, dict) \
            or not all(isinstance(w, torch.Tensor) for w in weights.values()):
        raise UserError(f"{path}: 'weights' is not a dictionary of tensors")
    weights = plain_names(weights)
    try:
        model = made_from(kinds[state["model"]], state["settings"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its settings make no {state['model']}: {error}") from error
    odd = mismatch(weights, model.state_dict())
    if odd is not None:
        raise UserError(f"{path}: {odd}")
    model.load_state_dict(weights)
    return model.eval()


def model_kinds() -> dict[str, type]:
    """The kinds of models that a checkpoint can hold, by name."""
    from reward.combine import Ensemble  # here, since these import minigpt
    from reward.model import RewardModel

    return {"MiniGPT": MiniGPT, "RewardModel": RewardModel, "Ensemble": Ensemble}


def made_from(kind: type, settings: Mapping[str, Any]) -> Any:
    """A fresh model of this kind; of an ensemble, each member by settings of its own."""
    if "members" not in settings:
        return kind(**settings)
    members = [model_kinds()["RewardModel"](**member) for member in settings["members"]]
    return kind(**{**settings, "members": members})


def mismatch(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first weight that is missing, of another shape or too many, in words; None if all fit."""
    for name in sorted(weights.keys() | expected.keys()):
        if name not in weights:
            return f"{name!r} is missing (expected {tuple(expected[name].shape)})"
        found = tuple(weights[name].shape)
        if name not in expected:
            return f"{name!r} has shape {found} (this model has no such weight)"
        if found != tuple(expected[name].shape):
            return f"{name!r} has shape {found} (expected {tuple(expected[name].shape)})"
    return None
