"""The slow suite (pytest -m slow): each stage is killed at random moments and must not notice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("small_run.py")
ROOT = SCRIPT.parents[2]
KILLS = 20


def begin(stage, folder):
    """The run, or what is left of it."""
    command = [sys.executable, str(SCRIPT), str(folder), "4", stage, "--resume"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def logged(folder):
    """How much the runs in this folder and below have logged."""
    return sum(len(log.read_bytes()) for log in folder.rglob("metrics.jsonl"))


def is_saving(folder):
    """Whether one of them writes a checkpoint, or was killed while it did."""
    return any(folder.rglob("state.pt.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo", "kto", "rloo", "lora", "rounds"])
def test_a_run_killed_at_random_moments_ends_in_the_bits_of_the_unbroken_run(stage, tmp_path):
    whole = begin(stage, tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    rng, kills, ended, while_saving = random.Random(0), 0, 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed{ended}"
        before = logged(folder)
        process = begin(stage, folder)
        while process.poll() is None and logged(folder) <= before:
            time.sleep(0.001)  # until it has made a step of its own
        if kills % 2:  # every other time while it writes a checkpoint, else at any moment
            while process.poll() is None and not is_saving(folder):
                time.sleep(0.0002)
        else:
            time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        code = process.wait()
        while_saving += is_saving(folder)
        if code == 0:  # it came to its end between two kills
            compare(folder, tmp_path / "whole")
            ended += 1
        else:
            assert code == -signal.SIGKILL, process.stderr.read()
    last = begin(stage, folder)
    assert last.wait() == 0, last.stderr.read()
    compare(folder, tmp_path / "whole")
    print(f"{stage}: {kills} kills, {while_saving} of them while a checkpoint was being written, "
          f"{ended + 1} runs")


def compare(folder, whole):
    paths = [*sorted(whole.rglob("*.jsonl")), *whole.glob("*/model.pt")]
    assert {path.name for path in paths} >= {"metrics.jsonl", "model.pt"}
    for path in paths:
        name = path.relative_to(whole)
        assert (folder / name).read_bytes() == path.read_bytes(), name
