"""The main job, in its quick form: everything runs, and every method beats its start."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch

import lessons.compare
from lessons.compare import Answers, CompareConfig, add_costs, best_of_n, thinned
from lessons.limit import best_of_n_kl
from lessons.methods import METHODS
from minigpt.chat import ChatConfig
from minigpt.errors import UserError
from minigpt.options import parse
from minigpt.sampling import Response

ROOT = Path(__file__).parents[2]
LITTLE = ["--facts", "2", "--plain-rows", "20", "--sft-rows", "20", "--preference-rows", "40",
          "--heldout-rows", "20", "--samples", "1", "--max-new-tokens", "8", "--pool", "2",
          "--best-of", "2"]


def compare(out, *options):
    command = [sys.executable, "-m", "lessons.compare", "--quick", "--out", str(out), *options]
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
    assert "limit_at_this_kl" not in start
    for name, shares in results["shares_by_question"].items():
        assert len(shares) == 8
        assert mean(shares) == pytest.approx(results["methods"][name]["share_of_possible_gain"])
    screen = " ".join(done.stdout.split())
    report, page = ((tmp_path / "run" / f"report.{kind}").read_text() for kind in ("md", "html"))
    for text in (screen, report, page):
        assert "16 held-out prompts are too few to rank methods" in text
        assert "best of 16" in text and "share of" in text
    python, flag, module, *argv = shlex.split(done.stdout.splitlines()[-1])
    assert (python, flag, module) == ("python", "-m", "minigpt.chat")
    config, = parse("", argv, ChatConfig)
    assert len(config.models) == 3 and all(map(Path.exists, map(Path, [*config.models,
                                                                       config.reward])))
    again = compare(tmp_path / "run")
    assert again.returncode == 1 and "holds another run" in again.stderr


@pytest.mark.slow
def test_two_methods_over_two_seeds(tmp_path):
    """From the smallest start there is, so what they reach is not looked at."""
    out = tmp_path / "run"
    options = ["--methods", "best-of-n", "orpo", "--seeds", "2", "--seed", "3", *LITTLE]
    done = compare(out, *options, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["seeds"] == [3, 4] and list(results["methods"]) == ["SFT", "best of 2", "ORPO"]
    for number, seed in enumerate((3, 4)):
        one = json.loads((out / f"seed-{seed}" / "results.json").read_text())
        assert one["seed"] == seed and "ppo_history" not in one
        for name, figures in results["methods"].items():
            for key, values in figures.items():
                assert values[number] == one["methods"][name][key]
        assert (out / f"seed-{seed}" / "report.md").exists()
    assert results["methods"]["ORPO"]["models_in_memory"] == [1, 1]
    report = (out / "report.md").read_text()
    assert all(METHODS[name].when in report for name in ("best-of-n", "orpo"))
    again = compare(out, *options, "--resume", "--jobs", "1")  # measures once more, one by one
    assert again.returncode == 0, again.stderr
    reached = json.loads((out / "results.json").read_text())["methods"]
    assert reached["ORPO"]["true_reward"] == results["methods"]["ORPO"]["true_reward"]
    assert reached["best of 2"]["proxy_reward"] == results["methods"]["best of 2"]["proxy_reward"]


def test_each_seed_is_compared_in_a_folder_of_its_own_and_reported_with_advice(tmp_path,
                                                                               monkeypatch, capsys):
    given = []

    def compare_one(config, rows_config, world_config):
        given.append((config, rows_config, world_config))
        names = ("SFT", "best of 4", "DPO", "KTO")
        return {"seed": config.seed, "seconds": 1.0, "stages": {"dpo": {}, "kto": {}},
                "methods": {name: {"repetition": 0.25, "kl_nats_per_response": float(config.seed)}
                            for name in names}}

    monkeypatch.setattr(lessons.compare, "compare", compare_one)
    argv = ["--methods", "kto", "best-of-n", "dpo", "--seed", "5", "--best-of", "4", "--facts", "2"]
    lessons.compare.main(["--out", str(tmp_path), *argv, "--seeds", "3"])
    for seed, (config, _, world_config) in zip((5, 6, 7), given, strict=True):
        assert config == CompareConfig(out=f"{tmp_path}/seed-{seed}", seed=seed, seeds=3, best_of=4,
                                       methods=["kto", "best-of-n", "dpo"])
        assert world_config.facts == 2
    report = (tmp_path / "report.md").read_text()
    for title, name in (("best of 4", "best-of-n"), ("DPO", "dpo"), ("KTO", "kto")):
        assert f"| {title} | {METHODS[name].when} |" in report
    assert f"| DPO | {6:.2f} +-{4.30 / 3 ** 0.5:.2f} (7.00) |" in report
    assert "| DPO | 0.250 +-0.000 (0.250) |" in report
    lessons.compare.main(["--out", str(tmp_path / "one"), *argv])
    assert given[-1][0].out == str(tmp_path / "one") and given[-1][0].seed == 5 and len(given) == 4
    assert not (tmp_path / "one" / "report.md").exists()  # which `compare` itself writes


def test_a_pool_must_be_large_enough():
    with pytest.raises(UserError, match="--pool 15 is too small for the best of 16"):
        CompareConfig(pool=15)
    assert CompareConfig(pool=16).best_samples == 1 and CompareConfig(pool=47).best_samples == 2


def test_costs_are_those_of_the_methods_own_commands():
    sft, reward, ppo, orpo = ({"models_in_memory": models, "peak_memory_mb": peak, "seconds": time,
                               "tokens_trained": tokens, **more} for models, peak, time, tokens,
                              more in ((1, 10.0, 1.0, 100, {}), (1, 30.0, 2.0, 200, {}),
                                       (4, 20.0, 4.0, 400, {"tokens_sampled": 40}),
                                       (1, 15.0, 8.0, 800, {})))
    stages = {"sft": sft, "reward": reward, "ppo": ppo, "orpo": orpo}
    rows = {name: Answers(name, [], []) for name in ("sft", "best-of-n", "ppo", "orpo")}
    add_costs(rows, stages)
    names = ("models_in_memory", "peak_memory_mb", "training_seconds", "tokens_sampled",
             "tokens_trained")
    assert {name: tuple(row.figures[key] for key in names) for name, row in rows.items()} == {
        "sft": (1, 10.0, 1.0, 0, 100), "best-of-n": (2, 30.0, 2.0, 0, 200),  # reward model and SFT
        "ppo": (4, 30.0, 6.0, 40, 600), "orpo": (1, 15.0, 8.0, 0, 800)}


def test_best_of_n_takes_the_best_of_each_n_and_uses_no_answer_twice():
    texts = [str(number) for number in range(10)]
    pool = Answers("pool", ["a"] * 5 + ["b"] * 5,
                   [Response(text, [*text.encode(), 255], True) for text in texts])
    scores = [3.0, 1.0, 2.0, 4.0, 9.0, -1.0, -2.0, 0.0, 0.5, 9.0]

    def reward(prompts, responses):
        return [scores[int(text)] for text in responses]

    best = best_of_n(pool, reward, CompareConfig(pool=5, best_of=2))
    assert (best.name, best.prompts, best.texts) == ("best of 2", list("aabb"),
                                                     ["0", "3", "5", "8"])
    assert thinned(best, 1) == [best.responses[0], best.responses[2]]
    assert thinned(best, 3) == best.responses
    kl = mean(best_of_n_kl(torch.tensor(scores[start:start + 4]), 2) for start in (0, 5))
    assert best.figures == {"kl_nats_per_response": pytest.approx(kl)}
