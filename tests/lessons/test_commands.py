"""Every stage's command, from data to report, on a little data.

What it writes, and the truths of its first step.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest

import dpo.main
import ppo.main
import reward.main
import sft.main
from data.files import save_jsonl
from minigpt import load_checkpoint

LITTLE = ["--samples", "1", "--max-new-tokens", "8", "--plain-rows", "64", "--sft-rows", "256",
          "--preference-rows", "64", "--heldout-rows", "64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four commands in a row, each from the models of those before it."""
    folder = tmp_path_factory.mktemp("runs")
    sft.main.main(["--out", str(folder / "sft"), *LITTLE])
    start = ["--init", str(folder / "sft" / "model.pt")]
    reward.main.main(["--out", str(folder / "reward"), "--num-epochs", "1", *start, *LITTLE])
    ppo.main.main(["--out", str(folder / "ppo"), "--num-episodes", "2", "--batch-size", "16",
                   *start, "--reward", str(folder / "reward" / "model.pt"), *LITTLE])
    dpo.main.main(["--out", str(folder / "dpo"), "--num-epochs", "1", *start, *LITTLE])
    return folder


def summary_of(folder, stage):
    return json.loads((folder / stage / "summary.json").read_text())


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo"])
def test_command_writes_config_metrics_model_and_summary(folder, stage):
    summary = summary_of(folder, stage)
    assert summary["seconds"] > 0 and summary["peak_memory_mb"] > 0
    assert all(isinstance(value, int | float) for value in summary.values())  # flat
    assert all(math.isfinite(value) for value in summary.values())
    config = json.loads((folder / stage / "config.json").read_text())
    assert (config["seed"], config["max_new_tokens"], config["heldout_rows"]) == (0, 8, 64)
    lines = [json.loads(line)
             for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines] == list(range(1, len(lines) + 1))
    model = load_checkpoint(folder / stage / "model.pt")
    assert type(model).__name__ == ("RewardModel" if stage == "reward" else "MiniGPT")


def test_sft_command_beats_its_start(folder):
    summary = summary_of(folder, "sft")
    assert summary["loss_nats_per_token"] < summary["loss_before_nats_per_token"] - 0.3
    assert 0.4 < summary["right_share_of_demonstrations"] < 1
    assert (folder / "sft" / "base.pt").exists()


def test_reward_command_reports_bayes_and_calibration(folder):
    summary = summary_of(folder, "reward")
    share, bayes = summary["accuracy_relative_to_bayes"], summary["bayes_accuracy"]
    assert share * bayes == pytest.approx(summary["accuracy_heldout"]) and 0.5 < bayes < 1
    calibration = json.loads((folder / "reward" / "calibration.json").read_text())
    assert sum(b["pairs"] for b in calibration) == 64


def test_ppo_command_starts_at_ratio_1_and_kl_0(folder):
    summary = summary_of(folder, "ppo")
    assert summary["ratio_first_update"] == pytest.approx(1, abs=1e-5)
    assert summary["kl_first_episode_nats_per_response"] == pytest.approx(0, abs=1e-4)


def test_dpo_command_starts_at_log_2_and_margin_0(folder):
    summary = summary_of(folder, "dpo")
    assert summary["loss_first_step"] == pytest.approx(math.log(2), abs=1e-4)
    assert summary["margin_first_step"] == pytest.approx(0, abs=1e-4)
    assert summary["preference_accuracy_train"] > 0.55


def test_dpo_command_trains_on_ones_own_file(tmp_path, folder, make_pairs, capsys):
    save_jsonl(make_pairs(40), tmp_path / "mine.jsonl")
    dpo.main.main(["--data", str(tmp_path / "mine.jsonl"),
                   "--init", str(folder / "sft" / "model.pt"), "--out", str(tmp_path / "dpo"),
                   "--samples", "1", "--max-new-tokens", "8", "--num-epochs", "3"])
    summary = json.loads((tmp_path / "dpo" / "summary.json").read_text())
    assert summary["preference_accuracy_heldout"] > 0.6 and "true_reward" not in summary
    printed = capsys.readouterr().out
    assert re.search(r"\d+ rows to train on, \d+ held out, no prompt on both sides", printed)
    assert "before:" in printed and "after:" in printed


def test_a_bad_file_ends_the_command_with_its_line(tmp_path, folder):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": 3}\n')
    message = r"bad\.jsonl: 1 of 1 rows cannot be used.*'rejected' is int.*\(line 1\)"
    with pytest.raises(ValueError, match=message):
        dpo.main.main(["--data", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "dpo")])


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_saves_says_where_and_continues_to_the_same_end(folder, tmp_path, sent,
                                                                          code):
    command = [sys.executable, "-m", "sft.main", "--out", str(tmp_path / "sft"), *LITTLE]
    # as many threads as the run to compare with
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    log = tmp_path / "sft" / "metrics.jsonl"
    while started.poll() is None and not (log.exists() and log.read_bytes()):
        pass
    started.send_signal(sent)
    printed, _ = started.communicate(timeout=60)
    assert started.returncode == code
    state = tmp_path / "sft" / "state.pt"
    assert f"saved in {state}: the same command with --resume continues" in printed
    unbroken = folder / "sft" / "metrics.jsonl"
    assert len(log.read_text().splitlines()) < len(unbroken.read_text().splitlines())
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL, env=environment)
    for name in ("metrics.jsonl", "model.pt"):
        assert (tmp_path / "sft" / name).read_bytes() == (folder / "sft" / name).read_bytes()
