"""Runs the commands of the stages, each in its own process, and several at once where they can.

Models as small as ours hardly gain from a second processor core, so we give it to a second stage
(how much that helps: lessons/notes/speed.md).
"""

import io
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from functools import partial, partialmethod
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from lessons.methods import Method
from minigpt.command import run_command
from minigpt.errors import UserError
from minigpt.options import flag_of

STAGES = ("sft", "reward", "ppo", "dpo")
MOST_AT_ONCE = 4  # each takes up to 0.8 GB


class Command(NamedTuple):
    """`python -m <stage>.main <argv>`"""

    stage: str
    argv: list[str]

    def __str__(self) -> str:
        return f"python -m {self.stage}.main {' '.join(self.argv)}"


def run_stages(out: str, methods: Mapping[str, Method], flags: Sequence[str],
               jobs: int) -> dict[str, dict[str, float]]:
    """Run SFT, the reward model, and every method, each in a folder of its name below `out`.

    flags: what all of them are told.  jobs: how many run at once.  Returns folder -> its summary.
    Raises SystemExit if one fails.
    """
    rounds = commands_in_rounds(out, methods, flags)
    for commands in rounds:
        run_at_once(list(commands.values()), jobs)
    of_folders = {name for commands in rounds for name in commands}
    return {name: json.loads((Path(out) / name / "summary.json").read_text(encoding="utf-8"))
            for name in ("sft", "reward", *methods) if name in of_folders}


def commands_in_rounds(out: str, methods: Mapping[str, Method],
                       flags: Sequence[str]) -> list[dict[str, Command]]:
    """Folder -> its command: SFT; the reward model, and methods without; methods that need it."""
    sft_model, reward_model = f"{out}/sft/model.pt", f"{out}/reward/model.pt"

    def command(stage: str, folder: str, *more: str) -> Command:
        return Command(stage, ["--out", f"{out}/{folder}", *flags, *more])

    first = {"sft": command("sft", "sft")}
    second = {"reward": command("reward", "reward", "--init", sft_model)}
    third = {}
    for name, method in methods.items():
        if method.reward and method.stage:
            third[name] = command(method.stage, name, "--init", sft_model, method.reward,
                                  reward_model, *method.flags)
        elif method.stage:
            second[name] = command(method.stage, name, "--init", sft_model, *method.flags)
    return [first, second, third]


def jobs_of(device: str) -> int:
    """How many stages run at once if nobody says: one for each core of the processor, up to 4."""
    return min(MOST_AT_ONCE, torch.get_num_threads()) if device == "cpu" else 1


def threads_each(at_once: int) -> int:
    """Each one's share of the processor's threads."""
    return max(1, torch.get_num_threads() // max(1, at_once))


def run_at_once(commands: Sequence[Command], jobs: int) -> None:
    """Run commands, `jobs` at a time, with the processor's threads shared out among them.

    A command's share does not depend on when another ends, so the same job gives the same figures.
    Raises SystemExit if one fails, after the others have been stopped, which lets them save.
    """
    at_once = min(jobs, len(commands))
    threads = threads_each(at_once)
    context = fresh_processes()
    printing = context.Lock()
    waiting = list(commands)
    running: dict[int, tuple[Any, int, Command]] = {}  # of a process's sentinel: it, its line, what
    lines = list(range(at_once))
    try:
        while waiting or running:
            while waiting and lines:
                command, line = waiting.pop(0), lines.pop(0)
                with printing:
                    print(f"\n=== {command}", flush=True)
                process = context.Process(target=run_main, daemon=True, args=(
                    command, threads, (line, printing) if at_once > 1 else None))
                process.start()
                running[process.sentinel] = process, line, command
            for sentinel in wait(list(running)):
                process, line, command = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                lines.append(line)
                if process.exitcode:
                    raise SystemExit(f"{command.stage}.main failed with exit code "
                                     f"{process.exitcode}. What it finished is kept: fix the cause "
                                     "and continue with --resume")
    except KeyboardInterrupt:  # they got it too, and save
        raise
    except BaseException:
        for process, _, _ in running.values():
            process.terminate()
        raise
    finally:
        for process, _, _ in running.values():
            process.join()


def call_at_once(calls: Sequence[Callable[[], Any]], jobs: int, title: str) -> list[Any]:
    """What each call returns, `jobs` of them at a time, with the threads shared out among them.

    Raises what a call raises, without waiting for the others, and UserError if one was killed.
    """
    at_once = min(jobs, len(calls))
    bar = partial(tqdm, desc=title, total=len(calls), leave=False, disable=None)
    if at_once == 1:
        return [call() for call in bar(calls)]
    try:
        with ProcessPoolExecutor(at_once, fresh_processes(), begin_worker,
                                 (threads_each(at_once),)) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                for future in bar(as_completed(futures)):
                    future.result()
            except BaseException:
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
    except BrokenProcessPool as error:
        raise UserError(f"{title}: a process was killed, perhaps because there is too little "
                        "memory. --jobs 1 needs less, and --resume keeps what is finished"
                        ) from error
    return [future.result() for future in futures]


def begin_worker(threads: int) -> None:
    """Ctrl-C is for the process that waits, which then ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def run_main(command: Command, threads: int, screen: tuple[int, Any] | None) -> None:
    """Do what the command does.

    screen: for a screen shared with other commands, the line of this one's progress bars, and a
    lock; what it prints then comes at its end, in one piece.
    """
    torch.set_num_threads(threads)

    def main() -> None:
        import_module(f"{command.stage}.main").main(command.argv)

    if screen is None:
        run_command(main)
        return
    line, printing = screen
    folder = Path(command.argv[command.argv.index("--out") + 1]).name
    tqdm.__init__ = partialmethod(tqdm.__init__, position=line, desc=folder)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            run_command(main)
    finally:
        with printing:
            tqdm.write(f"\n=== {folder} has ended\n{printed.getvalue()}", end="")
            sys.stdout.flush()


def fresh_processes() -> Any:
    """For processes that start with nothing but the imports; on Linux these are made only once."""
    if sys.platform != "linux":  # elsewhere forking after these imports is unsafe or impossible
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(  # skips what is not installed
        [*(f"{stage}.main" for stage in STAGES), "lessons.compare", "matplotlib.pyplot"])
    return context


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Settings -> command-line options; a setting of None is left out."""
    flags: list[str] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            flags += [flag_of(name)] * value
        elif value is not None:
            flags += [flag_of(name), *map(str, value if isinstance(value, list) else [value])]
    return flags
