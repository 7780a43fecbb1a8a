"""What a training run keeps on the disk: state.pt, its checkpoint, and metrics.jsonl, a line a step.

Both are written by the first process alone.  A kill at any moment leaves a whole checkpoint; the log may be ahead of
it, and a resumed run cuts it back to the checkpoint's step.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from minigpt import distributed
from minigpt.checkpoint import load_state, save_state
from minigpt.cli import ANOTHER_RUN, UserError, make_folder
from minigpt.disk import replace_text


class RunFolder:
    """identity: what a run must share with the one that it goes on with (settings, data, weights it started from)."""

    def __init__(self, path: str, identity: Mapping[str, Any]):
        self.path, self.identity = Path(path), dict(identity)
        self.state, self.log = self.path / "state.pt", self.path / "metrics.jsonl"

    def open(self, models: Mapping[str, nn.Module], resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """Begin anew (None), or return the checkpoint to go on with.

        Raises UserError, before any training: the folder cannot be written, holds another run, or one that began
        otherwise, or the disk is too full for checkpoints of these models.
        """
        going_on = resume and self.state.exists()
        if distributed.rank() == 0:
            make_folder(self.path)
            if not (resume or overwrite) and (self.state.exists() or self.log.exists()):
                raise UserError(ANOTHER_RUN.format(self.path))
            self._check_room(models)
            if not going_on:  # a checkpoint of an earlier run must not be what a later --resume finds
                self.state.unlink(missing_ok=True)
                self.log.write_text("")
        distributed.barrier()
        return self._load(models) if going_on else None

    def append(self, line: Mapping[str, float]) -> None:
        """One more line of metrics."""
        if distributed.rank() == 0:
            with self._disk_errors(), self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """The checkpoint, in place of the one before."""
        with self._disk_errors():
            save_state({"identity": self.identity, **state}, self.state)

    def lines(self, steps: int) -> list[dict[str, float]]:
        """The metrics of the first `steps` steps; what the log holds beyond them is cut off.

        Raises UserError if it holds fewer.
        """
        found = self.log.read_text(encoding="utf-8").splitlines(keepends=True)[:steps]
        if len(found) < steps or not all(line.endswith("\n") for line in found):
            raise UserError(f"{self.log} has fewer lines than {self.state} has steps ({steps}): it was changed since")
        distributed.barrier()  # all have read it
        replace_text(self.log, "".join(found))
        return [json.loads(line) for line in found]

    def last_good(self) -> str:
        """Where a run that went wrong can begin again, in words."""
        return f"the last good checkpoint is {self.state}" if self.state.exists() else "there is no checkpoint yet"

    def _load(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        saved = load_state(self.state)
        if not isinstance(saved, dict) or "identity" not in saved:
            raise UserError(f"{self.state} is no training state of this library")
        theirs = saved["identity"]
        changed = [name for name, value in self.identity.items() if theirs.get(name) != value]
        if changed:
            then, now = (", ".join(f"{name}={of.get(name)}" for name in changed) for of in (theirs, self.identity))
            raise UserError(f"{self.state} was made with {then}, not with {now}: resume with what it began with")
        for name, model in models.items():
            model.load_state_dict(saved["models"][name])
        return saved

    def _check_room(self, models: Mapping[str, nn.Module]) -> None:
        weights = sum(p.numel() for model in models.values() for p in model.parameters())
        needed = 2 * 3 * 4 * weights  # two checkpoints at a time, each with weights and AdamW's two moments in float32
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise UserError(f"{self.path}: {free / 1e6:.0f} MB are free on this disk, and checkpoints need "
                            f"{needed / 1e6:.0f} MB: free some, or choose another --out")

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """An error of the disk, in words: what is lost, and what is not."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: the run could not be written ({error}). Nothing saved before is lost, and "
                            f"{self.last_good()}: mend the cause and go on with --resume") from error


def read_history(folder: str | Path) -> dict[str, list[float]]:
    """metrics.jsonl, each metric as a list with one value a step."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open(encoding="utf-8")]
    return {name: [line[name] for line in lines] for name in lines[0]}
