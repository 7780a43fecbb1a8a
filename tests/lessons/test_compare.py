"""The main job, in its quick form: everything runs, and every method beats its start."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def compare(out):
    command = [sys.executable, "-m", "lessons.compare", "--quick", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_quick_comparison_beats_its_start_in_every_row(tmp_path):
    done = compare(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    start, *methods = results["methods"].values()
    assert len(methods) == 3 and start["preference_accuracy"] == 0.5
    for figures in methods:
        assert figures["preference_accuracy"] > 0.65
        assert figures["true_reward"] > start["true_reward"]
        assert 0 < figures["kl_nats_per_response"] < 20
    assert results["stages"]["dpo"]["loss_first_step"] < 0.6932
    for name in ("report.md", "report.html"):
        text = (tmp_path / "run" / name).read_text()
        assert "best of 16" in text and "share of possible gain" in text
    again = compare(tmp_path / "run")
    assert again.returncode == 1 and "holds another run" in again.stderr
