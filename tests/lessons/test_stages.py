"""Several commands at once: what waits for what, threads, output, and what happens if one fails."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from lessons.methods import chosen_methods
from lessons.stages import (
    Command,
    as_flags,
    call_at_once,
    commands_in_rounds,
    run_at_once,
    run_stages,
)
from minigpt.errors import UserError

ROOT = Path(__file__).parents[2]
STAGE = """
import json, os, time, torch
from pathlib import Path

def main(argv):
    out, seconds, after = Path(argv[1]), float(argv[2]), argv[3:]
    out.mkdir(parents=True, exist_ok=True)
    print("begin", out.name)
    started = time.time()
    try:
        (out / "began").touch()
        while not all((out.parent / name / "began").exists() for name in after):
            assert time.time() < started + 60, "the others do not begin"
            time.sleep(0.02)
        if seconds < 0:
            print("the last words of", out.name)
            raise OSError("no space left on the disk")
        time.sleep(seconds)
    except SystemExit:
        (out / "saved").touch()
        raise
    figures = {"began": started, "ended": time.time(), "threads": torch.get_num_threads(),
               "process": os.getpid()}
    (out / "summary.json").write_text(json.dumps(figures))
    print("end", out.name)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """toy(name, seconds, *others): the command of a stage that waits until the others have begun
    as well, and sleeps; below 0 it fails.
    """
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").touch()
    (tmp_path / "toy" / "main.py").write_text(STAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, seconds, *others: Command(
        "toy", ["--out", str(tmp_path / name), str(seconds), *others])


def figures_of(commands):
    return [json.loads(Path(command.argv[1], "summary.json").read_text()) for command in commands]


def test_settings_become_flags():
    settings = {"seed": 3, "quick": True, "sweep": False, "init": None, "device": "cpu",
                "data": ["a b", "c"], "sft_rows": 7}
    assert as_flags(settings) == ["--seed", "3", "--quick", "--device", "cpu", "--data", "a b", "c",
                                  "--sft-rows", "7"]


def test_a_command_waits_for_those_whose_models_it_needs():
    rounds = commands_in_rounds("runs/x", chosen_methods(None), ["--seed", "3"])
    assert [list(commands) for commands in rounds] == [["sft"], ["reward", "dpo"], ["ppo"]]
    made = set()
    for commands in rounds:
        needed = {word for command in commands.values() for word in command.argv
                  if word.endswith("model.pt")}
        assert needed <= made
        made |= {f"runs/x/{name}/model.pt" for name in commands}
    assert str(rounds[0]["sft"]) == "python -m sft.main --out runs/x/sft --seed 3"


def test_summaries_come_in_the_tables_order(tmp_path, monkeypatch):
    def run(commands, jobs):
        for command in commands:
            out = Path(command.argv[1])
            out.mkdir()
            (out / "summary.json").write_text(json.dumps({"of": out.name, "jobs": jobs}))

    monkeypatch.setattr("lessons.stages.run_at_once", run)
    summaries = run_stages(str(tmp_path), chosen_methods(["all"]), [], 3)
    expected = ["sft", "reward", *(name for name, method in chosen_methods(["all"]).items()
                                   if method.stage)]
    assert list(summaries) == expected
    assert summaries == {name: {"of": name, "jobs": 3} for name in expected}


def test_as_many_run_at_once_as_there_are_jobs_with_equal_shares_of_the_threads(toy, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    commands = [toy("a", 0.1, "b"), toy("b", 0.1, "a"), toy("c", 0)]
    run_at_once(commands, 2)
    first, second, third = figures_of(commands)
    assert len({figures["process"] for figures in (first, second, third)} | {os.getpid()}) == 4
    assert third["began"] > min(first["ended"], second["ended"])
    assert [figures["threads"] for figures in (first, second, third)] == [2, 2, 2]


def test_with_one_job_they_run_one_after_the_other_with_all_threads(toy, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    commands = [toy("a", 0.1), toy("b", 0.1)]
    run_at_once(commands, 1)
    first, second = figures_of(commands)
    assert second["began"] > first["ended"] and first["threads"] == second["threads"] == 4


def run_elsewhere(commands, jobs):
    """`run_at_once` in a process of its own, so that what all the processes print can be read."""
    code = ("import sys\nfrom lessons.stages import Command, run_at_once\n"
            f"sys.path.insert(0, {str(Path(commands[0].argv[1]).parent)!r})\n"
            f"run_at_once([Command(*each) for each in {[tuple(each) for each in commands]!r}], "
            f"{jobs})")
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_what_commands_print_comes_at_once_or_in_one_piece_at_their_end(toy):
    commands = [toy("a", 1.0), toy("b", 0.1)]
    assert run_elsewhere(commands, 1).stdout == "".join(
        f"\n=== {command}\nbegin {name}\nend {name}\n"
        for name, command in zip("ab", commands, strict=True))
    assert run_elsewhere(commands, 2).stdout == (
        f"\n=== {commands[0]}\n\n=== {commands[1]}\n"
        "\n=== b has ended\nbegin b\nend b\n\n=== a has ended\nbegin a\nend a\n")


def test_if_one_fails_the_others_are_stopped_and_may_save(toy, tmp_path):
    started = time.time()
    done = run_elsewhere([toy("long", 60), toy("broken", -1, "long"), toy("later", 0)], 2)
    assert time.time() - started < 50
    assert done.returncode == 1
    assert "the last words of broken" in done.stdout
    assert "error: no space left on the disk\n" in done.stderr
    assert "toy.main failed with exit code 1. What it finished is kept" in done.stderr
    assert (tmp_path / "long" / "saved").exists() and not (tmp_path / "later").exists()


def test_after_ctrl_c_the_others_end_by_themselves(toy, tmp_path):
    def interrupt():  # of the parent alone: a terminal would send it to the children as well
        until = time.time() + 60
        while not (tmp_path / "a" / "began").exists() and time.time() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt, daemon=True)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        run_at_once([toy("a", 1)], 1)
    interrupting.join()
    assert (tmp_path / "a" / "summary.json").exists()


def process_and_threads(number):
    return number, os.getpid(), torch.get_num_threads()


def fail():
    raise ValueError("no such thing")


def sleep_long():
    time.sleep(60)


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("jobs", [1, 2])
def test_calls_return_in_their_order_from_processes_of_their_own(jobs, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    numbers, processes, threads = zip(
        *call_at_once([partial(process_and_threads, i) for i in range(5)], jobs, "calls"),
        strict=True)
    assert numbers == (0, 1, 2, 3, 4)
    assert (set(processes) == {os.getpid()}) == (jobs == 1)
    assert set(threads) == ({4} if jobs == 1 else {2})
    with pytest.raises(ValueError, match="no such thing"):
        call_at_once([fail, fail], jobs, "calls")


def test_a_call_that_fails_or_is_killed_does_not_wait_for_the_others():
    started = time.time()
    with pytest.raises(ValueError, match="no such thing"):
        call_at_once([sleep_long, fail], 2, "calls")
    with pytest.raises(UserError, match=r"calls: a process was killed.* --jobs 1"):
        call_at_once([be_killed, sleep_long], 2, "calls")
    assert time.time() - started < 50
