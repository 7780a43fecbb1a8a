"""Exercises that check what you wrote:  python -m lessons 05 --check [FILE]

A lesson's exercise.py has functions to write.  The check.py beside it says what must hold of them:

    CHECKS = {"dpo_loss": [shape, at_the_reference, ...]}   function -> its checks, in order
    DONE = "..."                                            what they have now, what to read next

A check is called with the learner's function and returns None, or one sentence that teaches: what
is not right and where to look, never the solution.  Only the first such sentence is shown.
"""

import os
import runpy
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessons.course import LESSONS
from minigpt.errors import UserError

UNWRITTEN = "write me"  # what the functions of exercise.py raise
Check = Callable[[Callable[..., Tensor]], str | None]


class AnswerError(Exception):
    """The learner's function returned something that no check can look at."""


def check(lesson: str, file: str | None = None) -> tuple[bool, str]:
    """Whether the functions of a lesson's exercise are right, and what to tell the learner.

    file: where they are written, instead of the lesson's own exercise.py.
    Raises UserError if the lesson has no exercise, or the file is not there or lacks a function.
    """
    folder = folder_of(lesson)
    path = Path(file or os.path.relpath(folder / "exercise.py"))
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    exercise = runpy.run_path(str(folder / "check.py"))
    try:
        written = runpy.run_path(str(path))
    except Exception as error:
        return False, in_short(error, path)
    right = ""
    for name, checks in exercise["CHECKS"].items():
        if name not in written:
            raise UserError(f"{path} has no function {name}: {folder / 'exercise.py'} says what it "
                            "takes and returns")
        said = first_fault(written[name], checks, path)
        if said:
            return False, f"{right}{name}: {said}"
        right += f"{name} is right. "
    return True, right + exercise["DONE"]


def folder_of(lesson: str) -> Path:
    """The folder of a lesson that has an exercise, from its number or name.  Raises UserError."""
    folders = {path.parent.name[:2]: path.parent for path in LESSONS.glob("[0-9][0-9]_*/check.py")}
    number = lesson.split("_")[0].zfill(2)
    if number not in folders:
        raise UserError(f"lesson {lesson} has no exercise to check; these have: "
                        f"{', '.join(sorted(folders))}")
    return folders[number]


def first_fault(function: Callable[..., Any], checks: Sequence[Check], path: Path) -> str | None:
    """What the first check says that fails, or the error of the learner's code; None if all hold.

    path: the learner's file.
    """
    try:
        return next((said for each in checks if (said := each(careful(function)))), None)
    except AnswerError as error:
        return str(error)
    except Exception as error:
        if isinstance(error, NotImplementedError) and str(error) == UNWRITTEN:
            return (f"not written yet: write it in {path}, where its formula is (or in a copy of "
                    "that: --check FILE), and try again.")
        return in_short(error, path)


def careful(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """The function with copies for arguments, since it may change them, and a tensor as result."""
    def call(*arguments: Any) -> Tensor:
        found = function(*(x.clone() if isinstance(x, Tensor) else x for x in arguments))
        if isinstance(found, int | float):
            return torch.tensor(float(found))
        if not isinstance(found, Tensor):
            raise AnswerError("it returns nothing: is the return missing?" if found is None else
                        f"it returns a {type(found).__name__}, and a tensor is wanted.")
        return found
    return call


def in_short(error: Exception, path: Path) -> str:
    """An error of the learner's code: their line, if it got that far, and its message."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__)
             if Path(frame.filename) == path]
    place = f"line {lines[-1].lineno}: {lines[-1].line}\n" if lines else ""
    return place + "".join(traceback.format_exception_only(error)).strip()


# --- for the checks -------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers, always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor | float, wanted: Tensor | float, tolerance: float = 1e-4) -> bool:
    """Whether it is the number, or the tensor of numbers, up to rounding."""
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    return found.shape == wanted.shape and torch.allclose(
        found.detach().double(), wanted.double(), rtol=tolerance, atol=tolerance)


def shape_is(found: Tensor, wanted: tuple[int, ...], what: str) -> str | None:
    """The sentence on a result of another shape; `what` says what belongs there."""
    if tuple(found.shape) != wanted:
        return f"it returns the shape {tuple(found.shape)}, and {wanted} is wanted: {what}."
    return None


def gradient(found: Tensor, given: Tensor) -> Tensor:
    """The gradient of a loss in one of the tensors it was made from."""
    try:
        return torch.autograd.grad(found, given)[0]
    except RuntimeError as error:
        raise AnswerError("no gradient flows through it: make it of tensors alone, without item(), "
                    "float() or detach().") from error
