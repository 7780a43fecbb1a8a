"""How every command begins and ends: settings, processes, a report on the screen and on disk."""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from minigpt import distributed
from minigpt.checkpoint import load_checkpoint
from minigpt.disk import make_folder, write_json
from minigpt.errors import UserError
from minigpt.options import option, parse
from minigpt.run_folder import check_same, holds_another_run, remove_runs

M = TypeVar("M", bound=nn.Module)


@dataclass
class CommandConfig:
    """What every command can be told besides the settings of its training."""

    init: str | None = option(None, "checkpoint to start from (by default the command trains its "
                                    "own SFT model)")
    device: str = option("cpu", "cpu, cuda or mps")
    quick: bool = option(False, "a run of seconds, to see that everything works")
    samples: int = option(8, "responses sampled for each held-out prompt in the report")
    max_new_tokens: int = option(96, "longest response that is sampled, in tokens")


def begin(description: str, argv: Sequence[str] | None, *configs: type, out: str) -> list[Any]:
    """The beginning of a command: read its settings, join the other processes, open its folder.

    Returns one instance of each dataclass in `configs`; writes them all to config.json.
    Raises UserError if the device is not there, if the folder cannot be written or holds another
    run, or if the run to resume was begun with other settings.
    """
    settings = parse(description, argv, *configs, out=out)
    everything = {name: value for config in settings for name, value in asdict(config).items()}
    resume, overwrite = everything["resume"], everything["overwrite"]
    if resume and overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it: choose one")
    check_device(everything["device"])
    distributed.start(everything["device"])
    if distributed.rank() == 0:
        open_folder(Path(everything["out"]), everything, resume, overwrite)
    return settings


def open_folder(folder: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the folder of a command's run and write config.json, every setting of it."""
    make_folder(folder)
    config = folder / "config.json"
    begun = [path for path in folder.iterdir() if path != config]  # alone, it is a failed start
    if begun and resume:
        check_same(config, _settings_in(config) or settings, settings)
    elif begun and overwrite:
        remove_runs(folder)
    elif begun and config.exists():
        raise holds_another_run(folder)
    write_json(config, settings)


def _settings_in(config: Path) -> dict[str, Any] | None:
    try:
        return json.loads(config.read_text(encoding="utf-8")) if config.exists() else None
    except ValueError as error:
        raise UserError(f"{config} is damaged ({error}): start anew with --overwrite") from error


def run_command(main: Callable[[], None]) -> None:
    """Run a command: an error that the user can fix is one line, a signal an exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main()
        distributed.stop()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (UserError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def report(title: str, summary: dict[str, Any], out: str) -> None:
    """Print the figures of a run, aligned, and write them to summary.json."""
    write_json(Path(out) / "summary.json", summary)
    print(f"\n{title}")
    for name, value in summary.items():
        if isinstance(value, float):
            print(f"  {name:<42} {value:.4f}")
        elif isinstance(value, int | str):
            print(f"  {name:<42} {value}")


def warn(signs: Sequence[str]) -> None:
    """One line for each, above a progress bar if there is one."""
    for sign in signs:
        tqdm.write(f"warning: {sign}")


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MB (nan on Windows, which does not say)."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def check_device(name: str) -> torch.device:
    """The device of that name.  Raises UserError if this machine has none."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(),
                 "mps": torch.backends.mps.is_available()}
    kind = name.split(":")[0]
    if not available.get(kind, False):
        offers = ", ".join(device for device, is_there in available.items() if is_there)
        raise UserError(f"--device {name}: this machine has {offers}")
    if distributed.is_on() and ":" in name:
        raise UserError(f"--device {name}: torchrun gives each process a device of its own; use "
                        f"--device {kind}")
    return torch.device(name)


def load_model(path: str, kind: type[M], option: str, device: str) -> M:
    """The model that a command-line option names, on a device.

    Raises UserError if it is of another kind.
    """
    model = load_checkpoint(path)
    if not isinstance(model, kind):
        raise UserError(f"{option} {path} holds a {type(model).__name__}, but a {kind.__name__} is "
                        "needed here")
    return model.to(check_device(device))
