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
    command = [sys.executable, str(SCRIPT), stage, str(folder), "4", "--resume"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo"])
def test_a_run_killed_at_random_moments_ends_in_the_bits_of_the_unbroken_run(stage, tmp_path):
    whole = begin(stage, tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    rng, kills, ended, while_saving = random.Random(0), 0, 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed{ended}"
        process = begin(stage, folder)
        log = folder / "metrics.jsonl"
        before = len(log.read_bytes()) if log.exists() else 0
        while process.poll() is None and not (log.exists() and len(log.read_bytes()) > before):
            pass  # until it has made a step of its own
        if kills % 2:  # every other time while it writes a checkpoint, else at any moment
            while process.poll() is None and not (folder / "state.pt.tmp").exists():
                pass
        else:
            time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        code = process.wait()
        while_saving += (folder / "state.pt.tmp").exists()
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
    for name in ("metrics.jsonl", "model.pt"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
