import json
import math
from html.parser import HTMLParser

import pytest

from lessons.report import (
    COLUMNS,
    LOWER_IS_WORSE,
    STUDENT,
    method_table,
    seeds_cell,
    write_report,
    write_report_of_seeds,
)
from minigpt.plots import pyplot

ROOT3 = math.sqrt(3)


def results_of(seed, rewards, kls, **more):
    """What one seed's results.json holds, of SFT and a method of each figure."""
    methods = {name: {"true_reward": reward, "kl_nats_per_response": kl,
                      "training_seconds": 10.0 * (seed + 1)}
               for name, reward, kl in zip(("SFT", "DPO", "a | b"), rewards, kls, strict=True)}
    methods["DPO"]["share_of_possible_gain"] = 0.25 * (seed + 1)
    return {"seed": seed, "seconds": 60.0 + seed, "heldout_prompts": 4, "heldout_pairs": 8,
            "methods": methods, **more}


LIMIT = {"limit": {"kl": [0.0, 1.0], "true_reward": [0.0, 2.0], "bound_nats": 1.5,
                   "samples_per_prompt": 4}, "bayes_accuracy": 0.875}
TWO = [results_of(0, (0.0, 1.0, -1.0), (0.0, 2.0, 3.0), **LIMIT),
       results_of(1, (0.5, 2.0, -1.0), (0.0, 4.0, 3.0), **LIMIT)]


# --- one cell -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "spec", "values", "cell"), [
    ("true_reward", "+.2f", [1.0, 2.0, 3.0], f"+2.00 +-{4.30 / ROOT3:.2f} (+1.00)"),
    ("true_reward", "+.2f", [-1.0, 1.0], f"+0.00 +-{12.71:.2f} (-1.00)"),
    ("kl_nats_per_response", ".2f", [1.0, 2.0, 3.0], f"2.00 +-{4.30 / ROOT3:.2f} (3.00)"),
    ("repetition", ".3f", [0.25, 0.25], "0.250 +-0.000 (0.250)"),
    ("right_share", ".0%", [0.5, 0.6, 0.7], f"60% +-{4.30 * 0.1 / ROOT3:.0%} (50%)"),
    ("finished_share", ".1%", [0.75] * 8, "75.0% +-0.0% (75.0%)"),
    ("models_in_memory", ".0f", [2, 2], "2"), ("peak_memory_mb", ".0f", [100.0, 200.0], "150"),
    ("tokens_sampled", ",.0f", [1000, 3000], "2,000"),
    ("tokens_trained", ",.0f", [0, 1], "0"), ("training_seconds", ".0f", [9.0, 12.0], "10")])
def test_a_cell_has_the_mean_its_interval_and_the_worst(key, spec, values, cell):
    assert seeds_cell(key, values, spec) == cell


def coverage(t, degrees, steps=20_000):
    """P(-t < T < t) of Student's distribution, by Simpson's rule."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    scale /= math.sqrt(degrees * math.pi)

    def density(x):
        return scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2)
    h = t / steps
    inner = sum((4 if i % 2 else 2) * density(i * h) for i in range(1, steps))
    return 2 * h / 3 * (density(0) + inner + density(t))


@pytest.mark.parametrize("seeds", STUDENT)
def test_students_factors_cover_95_percent(seeds):
    assert coverage(STUDENT[seeds], seeds - 1) == pytest.approx(0.95, abs=5e-4)


def test_every_figure_that_should_be_high_is_a_column():
    assert {*LOWER_IS_WORSE} <= {key for _, key, _ in COLUMNS}


# --- tables ---------------------------------------------------------------------------------------


def test_the_table_of_seeds_by_hand():
    methods = {"SFT": {"true_reward": [0.0, 0.0], "training_seconds": [1.0, 2.0]},
               "DPO": {"kl_nats_per_response": [1.0, 1.0], "true_reward": [1.0, 2.0]}}
    assert method_table(methods, seeds_cell) == [
        ["", "true reward", "KL (nats/response)", "seconds"],
        ["SFT", "+0.00 +-0.00 (+0.00)", "-", "2"],
        ["DPO", f"+1.50 +-{12.71 * 0.5:.2f} (+1.00)", "1.00 +-0.00 (1.00)", "-"]]


def test_the_table_of_one_seed_by_hand():
    assert method_table(TWO[0]["methods"])[:3] == [
        ["", "true reward", "share of possible gain", "KL (nats/response)", "seconds"],
        ["SFT", "+0.00", "-", "0.00", "10"], ["DPO", "+1.00", "25%", "2.00", "10"]]


# --- reports --------------------------------------------------------------------------------------


class Cells(HTMLParser):
    """The cells of all tables of a page, by row."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, text):
        if self.inside:
            self.rows[-1][-1] += text


def test_a_report_over_seeds(tmp_path, capsys):
    when = {"DPO": "pairs & nothing else", "a | b": "never", "PPO": "not compared"}
    write_report_of_seeds(str(tmp_path), TWO, when)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {
        "seeds": [0, 1], "seconds": [60.0, 61.0],
        "methods": {
            "SFT": {"true_reward": [0.0, 0.5], "kl_nats_per_response": [0.0, 0.0],
                    "training_seconds": [10.0, 20.0]},
            "DPO": {"true_reward": [1.0, 2.0], "kl_nats_per_response": [2.0, 4.0],
                    "training_seconds": [10.0, 20.0], "share_of_possible_gain": [0.25, 0.5]},
            "a | b": {"true_reward": [-1.0, -1.0], "kl_nats_per_response": [3.0, 3.0],
                      "training_seconds": [10.0, 20.0]}}}
    markdown = (tmp_path / "report.md").read_text()
    of_dpo = [f"+1.50 +-{12.71 / 2:.2f} (+1.00)", f"38% +-{12.71 / 8:.0%} (25%)",
              f"3.00 +-{12.71:.2f} (4.00)", "15"]
    assert "| DPO | " + " | ".join(of_dpo) + " |" in markdown
    assert "| a \\| b | -1.00 +-0.00 (-1.00) | - | 3.00 +-0.00 (3.00) | 15 |" in markdown
    assert "## Mean and worst of 2 seeds" in markdown and "Seeds 0, 1: the mean" in markdown
    advice = markdown.split("## When to take which")[1].strip().splitlines()
    assert advice == ["|  | when to take it |", "| --- | --- |", "| DPO | pairs & nothing else |",
                      "| a \\| b | never |"]
    assert ("![frontier](frontier.png)" in markdown) == (pyplot() is not None)
    rows = Cells((tmp_path / "report.html").read_text()).rows
    assert ["DPO", *of_dpo] in rows and ["DPO", "pairs & nothing else"] in rows
    printed = capsys.readouterr().out
    assert of_dpo[0] in printed and "by Student's t" in printed


def test_a_figure_that_one_seed_lacks_is_left_out_of_all(tmp_path):
    first, second = (results_of(seed, (0.0, 1.0, 2.0), (0.0, 1.0, 2.0)) for seed in (0, 1))
    del second["methods"]["DPO"]["share_of_possible_gain"]
    write_report_of_seeds(str(tmp_path), [first, second], {})
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["methods"]["DPO"].keys() == results["methods"]["SFT"].keys()


def test_a_report_over_seeds_of_ones_own_rows_has_no_frontier(tmp_path):
    results = [results_of(seed, (0.0, 1.0, 2.0), (0.0, 1.0, 2.0)) for seed in (4, 5, 6)]
    for one in results:
        for figures in one["methods"].values():
            del figures["true_reward"]
    write_report_of_seeds(str(tmp_path), results, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md",
                                                                "results.json"]
    assert "true reward" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("limit", [LIMIT, {}])
@pytest.mark.parametrize("history", [{}, {"ppo_history": {
    "objective/kl_exact": [0.0, 1.0], "objective/scores": [0.0, 0.5], "true_reward": [0.0, 1.0]}}])
def test_a_report_of_one_seed_with_and_without_ppo_and_the_world(tmp_path, capsys, limit, history):
    results = results_of(0, (0.0, 1.0, -1.0), (0.0, 2.0, 3.0), **limit, **history)
    for method in results["methods"].values():
        method["preference_accuracy"] = 0.75
    samples = [("why?", {"SFT": "x < y", "DPO": "a\nb", "a | b": "|"})]
    write_report(str(tmp_path), results, samples)
    names = {path.name for path in tmp_path.iterdir()}
    figures = {name for name, is_made in (("frontier.png", limit), ("ppo_over_time.png", history))
               if is_made and pyplot() is not None}
    assert names == {"report.md", "report.html"} | figures
    markdown = (tmp_path / "report.md").read_text()
    assert "| why? | x < y | a b | \\| |" in markdown
    assert ("| limit | 0.875 | +2.00 | 100% | 1.00 | - |" in markdown) == bool(limit)
    rows = Cells((tmp_path / "report.html").read_text()).rows
    assert ["why?", "x < y", "a\nb", "|"] in rows
    assert all(f"![{name.split('.')[0].replace('_', ' ')}]({name})" in markdown for name in figures)
    assert "Seed 0; 4 held-out prompts and 8 held-out pairs" in capsys.readouterr().out
