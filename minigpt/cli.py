"""Dataclasses of settings -> command-line options; and how every command ends: a summary on paper and on screen."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, get_args, get_type_hints

import torch
from tqdm import tqdm

from minigpt import distributed
from minigpt.disk import write_json


class UserError(ValueError):
    """What the user of a command can mend: the message says what to change, and a command ends with it alone."""


def option(default: Any, help: str, choices: tuple | None = None) -> Any:
    """A dataclass field that is also a command-line option with this help text."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class CommandConfig:
    """What every command can be told besides the settings of its training."""

    QUICK: ClassVar[dict] = {"samples": 4, "max_new_tokens": 64}

    init: str | None = option(None, "checkpoint to start from (without it the command trains its own SFT model)")
    device: str = option("cpu", "cpu, cuda or mps")
    quick: bool = option(False, "a run of seconds, to see that everything works")
    samples: int = option(8, "responses sampled for each held-out prompt in the report")
    max_new_tokens: int = option(96, "longest response that is sampled, in tokens")


def parse(description: str, argv: Sequence[str] | None, *configs: type, **defaults: Any) -> list[Any]:
    """One instance of each dataclass in `configs`, filled from the command line.

    A field that two of them share is one option.  `defaults` override a field's own; --quick and --data then apply each
    dataclass's QUICK and OWN_DATA dictionary, and what the user typed wins over all of them.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for config in configs:
        group, hints = parser.add_argument_group(config.__name__), get_type_hints(config)
        for setting in fields(config):
            flag = "--" + setting.name.replace("_", "-")
            if flag in parser._option_string_actions:
                continue
            default = setting.default if setting.default is not MISSING else None
            if hints[setting.name] is bool:
                kind = {"action": argparse.BooleanOptionalAction if default else "store_true"}
            else:
                kind = {"type": _plain_type(hints[setting.name]), "choices": setting.metadata["choices"]}
            group.add_argument(flag, default=default, help=setting.metadata["help"], **kind)
    parser.set_defaults(**defaults)
    typed = parser.parse_args(argv)
    for flag, presets in (("quick", "QUICK"), ("data", "OWN_DATA")):
        if getattr(typed, flag, None):
            for config in configs:
                parser.set_defaults(**getattr(config, presets, {}))
    values = vars(parser.parse_args(argv))
    return [config(**{setting.name: values[setting.name] for setting in fields(config)}) for config in configs]


def _plain_type(hint: Any) -> type:
    """str | None -> str: an option that is left out stays None."""
    return next(t for t in get_args(hint) if t is not type(None)) if isinstance(hint, UnionType) else hint


MAY_CHANGE = ("resume", "overwrite", "out", "save_every")  # between a run and the one that goes on with it
ANOTHER_RUN = "{} holds another run: --resume goes on with it, --overwrite replaces it, or choose another --out"


def open_run(out: str, resume: bool, overwrite: bool, device: str, *configs: Any) -> None:
    """The beginning of a command: join the other processes, and write config.json, every setting of the run.

    Raises UserError if the device is not there, if `out` cannot be written or holds another run, or if what is resumed
    was begun otherwise.
    """
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite replaces it: choose one")
    check_device(device)
    distributed.start(device)
    if distributed.rank() > 0:
        return
    folder, settings = Path(out), {k: v for config in configs for k, v in asdict(config).items()}
    make_folder(folder)
    begun = [path for path in folder.iterdir() if path.name != "config.json"]  # alone it is a start that failed
    if begun and resume:
        check_same_settings(folder / "config.json", settings)
    elif begun and overwrite:
        remove_runs(folder)
    elif begun and (folder / "config.json").exists():
        raise UserError(ANOTHER_RUN.format(folder))
    write_json(folder / "config.json", settings)


def make_folder(folder: Path) -> None:
    """A folder that can be written.  Raises UserError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): choose another --out") from error


def remove_runs(folder: Path) -> None:
    """Take away the runs in this folder and below: what a later --resume would take for parts of the new one."""
    for run_folder in {folder, *(log.parent for log in folder.rglob("metrics.jsonl"))}:  # every training makes one
        for name in ("config.json", "state.pt", "metrics.jsonl", "model.pt", "summary.json"):
            (run_folder / name).unlink(missing_ok=True)


def check_same_settings(path: Path, settings: dict[str, Any]) -> None:
    """Raises UserError if a run that is to go on was begun with other settings."""
    try:
        begun = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): begin anew with --overwrite") from error
    changed = [name for name, value in settings.items() if name not in MAY_CHANGE and begun.get(name) != value]
    if changed:
        raise UserError(f"{path} says that this run was begun with {', '.join(f'{n}={begun.get(n)}' for n in changed)}: "
                        "resume with the same settings, or begin anew with --overwrite")


def run(main: Callable[[], None]) -> None:
    """Run a command: what its user can mend ends in one line instead of a traceback, and a signal in its exit code."""
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
        if isinstance(value, int | float | str):
            print(f"  {name:<42} {value:.4f}" if isinstance(value, float) else f"  {name:<42} {value}")


def warn(signs: Sequence[str]) -> None:
    """One line for each, above a progress bar if there is one."""
    for sign in signs:
        tqdm.write(f"warning: {sign}")


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB (Linux and macOS; nan where the system does not say)."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def check_device(name: str) -> torch.device:
    """The device of that name.  Raises UserError if this machine has none."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name.split(":")[0], False):
        raise UserError(f"--device {name}: this machine offers {', '.join(k for k, v in available.items() if v)}")
    if distributed.is_on() and ":" in name:
        raise UserError(f"--device {name}: torchrun gives every process a device of its own; say {name.split(':')[0]}")
    return torch.device(name)
