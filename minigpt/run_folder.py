"""What saves: the folder of a run with its checkpoint, state.pt, and its log, metrics.jsonl.

Only the first process writes.  A kill at any moment leaves a whole checkpoint; the log may be ahead
of it, and a resumed run truncates it to the checkpoint's step.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from minigpt import distributed
from minigpt.checkpoint import load_state, save_state
from minigpt.disk import make_folder, replace_text
from minigpt.errors import UserError
from minigpt.examples import Example
from minigpt.optimizer import precision_of
from minigpt.settings import TrainingConfig

# What may change between a run and its continuation.  Rows and models may lie at another path: that
# they are the same is checked by their content.
MAY_CHANGE = ("resume", "overwrite", "out", "save_every", "data", "eval_data", "init", "reward",
              "judge", "jobs")
FILES = ("config.json", "state.pt", "metrics.jsonl", "model.pt", "summary.json")  # of every stage
MORE_FILES = ("base.pt", "rows.jsonl", "sampled.json", "sweep.json", "calibration.json",
              "curves.png", "calibration.png", "report.md", "report.html")


class RunFolder:
    """identity: what a run must have in common with the one that it continues."""

    def __init__(self, path: str, identity: Mapping[str, Any]):
        self.path, self.identity = Path(path), dict(identity)
        self.state, self.log = self.path / "state.pt", self.path / "metrics.jsonl"

    def open(self, models: Mapping[str, nn.Module], resume: bool,
             overwrite: bool) -> dict[str, Any] | None:
        """Start anew (None), or load the models of the checkpoint to continue, and return it.

        Raises UserError, before any training: the folder cannot be written, or holds another run,
        or one that began differently, or the disk is too full for checkpoints of these models.
        """
        continues = resume and self.state.exists()
        if distributed.rank() == 0:
            make_folder(self.path)
            if not (resume or overwrite) and holds_run(self.path):
                raise holds_another_run(self.path)
            self._check_room(models)
            if not continues:  # a later --resume must not find an earlier run's checkpoint
                self.state.unlink(missing_ok=True)
                self.log.write_text("")
        distributed.barrier()
        return self._load(models) if continues else None

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
        """The metrics of the first `steps` steps; the log is truncated to them.

        Raises UserError if it holds fewer.
        """
        found = self.log.read_text(encoding="utf-8").splitlines(keepends=True)[:steps]
        if len(found) < steps or not all(line.endswith("\n") for line in found):
            raise UserError(f"{self.log} has fewer lines than {self.state} has steps ({steps}): it "
                            "was changed since")
        distributed.barrier()  # all have read it
        replace_text(self.log, "".join(found))
        return [json.loads(line) for line in found]

    def last_checkpoint(self) -> str:
        """Where a run that failed can start again, in words."""
        if self.state.exists():
            return f"The last good checkpoint is {self.state}"
        return "There is no checkpoint yet"

    def _load(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        saved = load_state(self.state)
        if not isinstance(saved, dict) or "identity" not in saved:
            raise UserError(f"{self.state} is not a training state of this library")
        check_same(self.state, saved["identity"], self.identity)
        for name, model in models.items():
            model.load_state_dict(saved["models"][name])
        return saved

    def _check_room(self, models: Mapping[str, nn.Module]) -> None:
        weights = sum(p.numel() for model in models.values() for p in model.parameters())
        numbers = 4 if self.identity.get("average") else 3  # weight, two moments, a mean
        needed = 2 * numbers * 4 * weights  # two checkpoints, in float32
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise UserError(f"{self.path}: this disk has {free / 1e6:.0f} MB free, and checkpoints "
                            f"need {needed / 1e6:.0f} MB: free some, or choose another --out")

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn an error of the disk into words: what is lost, and what is not."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: the run could not be written ({error}). Nothing saved "
                            f"before is lost. {self.last_checkpoint()}: fix the cause and continue "
                            "with --resume") from error


def identity_of(config: TrainingConfig, examples: Sequence[Example], models: Sequence[nn.Module],
                num_steps: int) -> dict[str, Any]:
    """What a resumed run must have in common with the one that it continues."""
    device = next(models[0].parameters()).device
    return {**{name: value for name, value in vars(config).items() if name not in MAY_CHANGE},
            "precision": precision_of(config, device), "steps": num_steps,
            "processes": distributed.world_size(), "examples": digest(examples),
            "weights_at_start": digest(models)}


def check_same(path: Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError, naming what differs, if a run is to continue with other settings."""
    changed = [name for name, value in now.items()
               if name not in MAY_CHANGE and begun.get(name) != value]
    if changed:
        then, this = (", ".join(f"{name}={of.get(name)}" for name in changed)
                      for of in (begun, now))
        raise UserError(f"{path} says that this run was begun with {then}, not with {this}: resume "
                        "with the same settings, or start anew with --overwrite")


def holds_run(folder: Path, below: bool = False) -> bool:
    """Whether a run in this folder (or in one below it) made a step, or ended."""
    find = folder.rglob if below else folder.glob
    return any(path.stat().st_size > 0 for name in FILES[1:] for path in find(name))


def holds_another_run(folder: Path) -> UserError:
    return UserError(f"{folder} holds another run: --resume continues it, --overwrite replaces it, "
                     "or choose another --out")


def remove_runs(folder: Path) -> None:
    """Delete the runs in this folder and below, so that no later --resume finds parts of them."""
    for run in {folder, *(log.parent for log in folder.rglob("metrics.jsonl"))}:
        for name in (*FILES, *MORE_FILES):
            (run / name).unlink(missing_ok=True)


def digest(parts: Sequence[nn.Module] | Sequence[Example]) -> str:
    """A short name for exactly these examples or weights."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            sha.update(str(getattr(part, "settings", "")).encode())  # the number of heads, ...
            for tensor in part.state_dict().values():
                sha.update(tensor.detach().float().cpu().numpy().tobytes())
        else:
            for ids in (part.prompt, *part.responses):
                sha.update(ids + b"\xf8")  # a byte that is no token
    return sha.hexdigest()[:16]


def read_history(folder: str | Path) -> dict[str, list[float]]:
    """metrics.jsonl, each metric as a list with one value a step."""
    with (Path(folder) / "metrics.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return {name: [line[name] for line in lines] for name in lines[0]}
