"""Every stage's command, from data to report, on a little data.

What it writes, and the truths of its first step.
"""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from html import unescape
from io import StringIO

import pytest

import dpo.main
import ppo.main
import reward.main
import sft.main
from data.files import save_jsonl
from minigpt import chat, load_checkpoint, save_checkpoint
from minigpt.figures import figures_table
from minigpt.options import parse

LITTLE = ["--samples", "1", "--max-new-tokens", "8", "--plain-rows", "64", "--sft-rows", "256",
          "--preference-rows", "64", "--heldout-rows", "64"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four commands in a row, each from the models of those before it: folder, what each printed.
    """
    folder = tmp_path_factory.mktemp("runs")
    start = ["--init", str(folder / "sft" / "model.pt")]
    options = {sft: [], reward: ["--num-epochs", "1", *start],
               ppo: ["--num-episodes", "2", "--batch-size", "16", *start,
                     "--reward", str(folder / "reward" / "model.pt")],
               dpo: ["--num-epochs", "1", *start]}
    printed = {}
    for stage, own in options.items():
        with redirect_stdout(StringIO()) as screen:
            stage.main.main(["--out", str(folder / stage.__name__), *own, *LITTLE])
        printed[stage.__name__] = screen.getvalue()
    return folder, printed


@pytest.fixture(scope="module")
def folder(runs):
    return runs[0]


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


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo"])
def test_a_command_leaves_its_report_with_every_figure_and_what_it_means(runs, stage, rows_of):
    folder, printed = runs
    summary = summary_of(folder, stage)
    markdown, page = ((folder / stage / f"report.{kind}").read_text() for kind in ("md", "html"))
    rows = rows_of(page)
    for row in figures_table(summary):
        assert all(row) and row in rows and f"| {' | '.join(row)} |".replace("\n", " ") in markdown
    title = markdown.splitlines()[0].removeprefix("# ")
    assert title.endswith("of the little world") and f"\n{title}\n" in printed[stage]
    assert f"<h1>{title}</h1>" in page and "How it went" in page and "How it went" in markdown
    assert ["samples", "1", "8", "the command line"] in rows
    assert "samples=1, max_new_tokens=8" in page and "samples=1, max_new_tokens=8" in markdown
    for line in printed[stage].splitlines():  # what it warned of, too
        assert not line.startswith("warning: ") or line in unescape(page)


@pytest.mark.parametrize(("stage", "scored"), [("sft", False), ("reward", True), ("ppo", True),
                                               ("dpo", False)])
def test_a_command_ends_with_a_command_that_talks_to_what_it_made(runs, stage, scored, capsys):
    folder, printed = runs
    line = printed[stage].splitlines()[-1]
    python, flag, module, *argv = shlex.split(line)
    assert (python, flag, module) == ("python", "-m", "minigpt.chat")
    config, = parse("", argv, chat.ChatConfig)
    made = str(folder / stage / "model.pt")
    assert made in (config.reward, config.models[-1]) and (config.reward is not None) == scored
    assert f"```bash\n{line}\n```" in (folder / stage / "report.md").read_text()
    assert f">{line}<" in unescape((folder / stage / "report.html").read_text())
    chat.main([*argv, "--prompt", "Capital of Japan?", "--max-new-tokens", "2"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(config.models) == len({one.split(":")[0] for one in said})


ROUNDS = ["--rounds", "1", "--round-prompts", "8", "--samples-per-prompt", "2"]
VARIANTS = [  # options, and what scores in the chat
    (sft, [*ROUNDS, "--judge", "REWARD", "--data", "PAIRS"], "REWARD"),
    (dpo, [*ROUNDS, "--judge", "REWARD", "--data", "PAIRS"], "REWARD"),
    (dpo, ["--loss", "kto", "--data", "LABELLED"], None),
    (dpo, ["--lora-rank", "2", "--data", "PAIRS"], None),
    (dpo, ["--loss", "simpo", "--data", "PAIRS"], None),
    (ppo, ["--advantage", "rloo", "--reward", "world", "--num-episodes", "1"], None),
    (ppo, ["--reward", "REWARD", "REWARD", "--num-episodes", "1"], None),
    (reward, ["--members", "2", "--data", "PAIRS"], "MADE"),
]


@pytest.mark.parametrize(("stage", "options", "scored"), VARIANTS,
                         ids=[f"{stage.__name__} {' '.join(own)}" for stage, own, _ in VARIANTS])
def test_every_variant_reports_figures_that_mean_something(
        stage, options, scored, tmp_path, reciter, make_reward, make_pairs, capsys):
    save_checkpoint(reciter, tmp_path / "start.pt")
    save_checkpoint(make_reward(), tmp_path / "reward.pt")
    save_jsonl(make_pairs(20), tmp_path / "pairs.jsonl")
    save_jsonl([{"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
                for row in make_pairs(20) for side in ("chosen", "rejected")],
               tmp_path / "labelled.jsonl")
    files = {name.upper(): str(tmp_path / f"{name}.{kind}") for name, kind in (
        ("reward", "pt"), ("pairs", "jsonl"), ("labelled", "jsonl"))}
    out = tmp_path / "run"
    of_world = [] if "--data" in options else ["--facts", "2", *LITTLE[4:]]
    stage.main.main(["--out", str(out), "--init", str(tmp_path / "start.pt"), *LITTLE[:4],
                     *of_world, *(files.get(word, word) for word in options)])
    summary = json.loads((out / "summary.json").read_text())
    assert all(all(row) for row in figures_table(summary))
    last = capsys.readouterr().out.splitlines()[-1]
    config, = parse("", shlex.split(last)[3:], chat.ChatConfig)
    assert config.reward == {**files, "MADE": str(out / "model.pt")}.get(scored)
    first = out / "base.pt" if stage is sft else tmp_path / "start.pt"
    assert config.models == [str(first), *([] if stage is reward else [str(out / "model.pt")])]


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
        time.sleep(0.01)
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
