"""How every command begins and ends: settings, processes, a report on the screen and on disk."""

import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from minigpt import distributed
from minigpt.checkpoint import load_checkpoint
from minigpt.disk import make_folder, write_json
from minigpt.errors import UserError
from minigpt.figures import figures_table
from minigpt.log import warn
from minigpt.options import Settings, as_typed, chosen_settings, option, parse
from minigpt.report import WARNING, Command, Part, Section, as_text, save_report
from minigpt.run_folder import (
    FILES,
    check_same,
    holds_another_run,
    holds_run,
    read_history,
    remove_runs,
)
from minigpt.training import Stopped

M = TypeVar("M", bound=nn.Module)
_folder: Path | None = None  # of the command that runs in this process


@dataclass
class CommandConfig(Settings):
    """What every command can be told besides the settings of its training."""

    init: str | None = option(None, "checkpoint to start from (by default the command trains its "
                                    "own SFT model)")
    device: str = option("cpu", "cpu, cuda or mps")
    quick: bool = option(False, "little data and few steps, to see that everything works")
    samples: int = option(8, "responses sampled for each held-out prompt in the report",
                          at_least=1)
    max_new_tokens: int = option(96, "longest response that is sampled, in tokens", at_least=1)


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
    global _folder
    _folder = Path(everything["out"])
    check_device(everything["device"])
    distributed.start(everything["device"])
    if distributed.rank() == 0:
        open_folder(Path(everything["out"]), everything, resume, overwrite)
    return settings


def open_folder(folder: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the folder of a command's run and write config.json, every setting of it."""
    make_folder(folder)
    config = folder / "config.json"
    if config.exists() and holds_run(folder, below=True):  # else it is no folder of a command
        if not (resume or overwrite):
            raise holds_another_run(folder)
        if resume:
            check_same(config, _settings_in(config), settings)
        else:
            remove_runs(folder)
    write_json(config, settings)


def _settings_in(config: Path) -> dict[str, Any]:
    try:
        return json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config} is damaged ({error}): start anew with --overwrite") from error


def run_command(main: Callable[[], None]) -> None:
    """Run a command: an error that the user can fix is one line, a signal an exit code."""
    global _folder
    _folder = None
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
        distributed.stop()
    except Stopped:  # which has said so
        sys.exit(128 + signal.SIGINT)
    except KeyboardInterrupt:
        print(f"\nstopped. {what_is_saved()}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (UserError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _terminate(number: int, frame: Any) -> None:
    print(f"\nstopped. {what_is_saved()}", file=sys.stderr)
    sys.exit(128 + number)


def what_is_saved() -> str:
    """In words: what the command's folder has by now, and what it lacks."""
    if _folder is None or not _folder.is_dir():
        return "No run had begun, so there is nothing to continue"
    saved, missing = ([name for name in FILES if (_folder / name).exists() == there] or ["nothing"]
                      for there in (True, False))
    return (f"{_folder} has {', '.join(saved)}, and lacks {', '.join(missing)}: the same command "
            "with --resume continues")


def report(title: str, out: str, summary: dict[str, Any], warnings: Sequence[str],
           sections: Sequence[Section], settings: Sequence[Any], talk: Sequence[str]) -> None:
    """The end of a command: its report on the screen, and summary.json, report.md and report.html.

    warnings: what a reader should know first.  sections: what there is beside figures and settings.
    talk: the arguments with which `minigpt.chat` talks to what was made.
    """
    write_json(Path(out) / "summary.json", summary)
    figures, command = figures_table(summary), chat_command(talk)
    print(f"\n{title}")
    warn(warnings)
    width = max(len(name) for name, _, _ in figures)
    for name, value, _ in figures[1:]:
        print(f"  {name:<{width}}  {' '.join(value.split())}")
    for text in filter(None, map(as_text, sections)):
        print(f"\n{text}")
    went: list[Part] = [WARNING + warning for warning in warnings]
    place = save_report(out, title, [
        Section("How it went", went or ["Nothing to warn of."]), Section("Figures", [figures]),
        *sections, settings_section(settings), Section("Talk to it", [command])])
    print(f"\n{place}\nTo talk to it:\n{command.line}")


def chat_command(arguments: Sequence[str]) -> Command:
    """The command line that starts `minigpt.chat` with these arguments."""
    return Command(shlex.join(["python", "-m", "minigpt.chat", *arguments]))


def settings_section(configs: Sequence[Any]) -> Section:
    """What was chosen, by whom, and all the rest."""
    named: dict[str, Any] = {}
    groups = [["group", "settings"]]
    for config in configs:
        own = {name: value for name, value in vars(config).items() if name not in named}
        named |= own
        groups.append([type(config).__name__,
                       ", ".join(f"{name}={as_typed(value)}" for name, value in own.items())])
    chosen = chosen_settings(configs)
    parts: list[Part] = [chosen] if len(chosen) > 1 else ["Every setting has its default."]
    return Section("Settings", [*parts, "All of them, as in config.json:", groups])


def tokens_trained(out: str) -> int:
    """The tokens that a command's own training has read, over all epochs.

    That is the run in its folder, and what this consists of: rounds, members, the base model.
    """
    folders = (Path(out), *Path(out).glob("round-*"), *Path(out).glob("member_*"),
               Path(out) / "base")
    return sum(int(read_history(folder)["num_tokens"][-1]) for folder in folders
               if (folder / "metrics.jsonl").exists())


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


def load_model(path: str, kind: type[M] | tuple[type[M], ...], option: str, device: str) -> M:
    """The model that a command-line option names, on a device.

    Raises UserError if it is of another kind.
    """
    model = load_checkpoint(path)
    if not isinstance(model, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise UserError(f"{option} {path} holds a {type(model).__name__}, but "
                        f"{' or '.join(f'a {each.__name__}' for each in kinds)} is needed here")
    return model.to(check_device(device))
