import json
import math

import pytest

from lessons.report import (
    COLUMNS,
    LOWER_IS_WORSE,
    NO_TRUE_REWARD,
    method_tables,
    one_cell,
    seeds_cell,
    write_report,
    write_report_of_seeds,
)
from minigpt.figures import meaning
from minigpt.plots import pyplot

ROOT3 = math.sqrt(3)


def results_of(seed, rewards, kls, **more):
    """What one seed's results.json holds, of SFT and a method of each figure."""
    methods = {name: {"true_reward": reward, "kl_nats_per_response": kl,
                      "training_seconds": 10.0 * (seed + 1)}
               for name, reward, kl in zip(("SFT", "DPO", "a | b"), rewards, kls, strict=True)}
    methods["DPO"]["share_of_possible_gain"] = 0.25 * (seed + 1)
    return {"seed": seed, "jobs": 1, "seconds": 60.0 + seed, "heldout_prompts": 80,
            "heldout_pairs": 8, "stages": {"sft": {}, "reward": {}, "dpo": {}}, "methods": methods,
            "shares_by_question": {"DPO": [0.25 * (seed + 1)] * 40}, **more}


LIMIT = {"limit": {"kl": [0.0, 1.0], "true_reward": [0.0, 2.0], "bound_nats": 1.5,
                   "samples_per_prompt": 4}, "bayes_accuracy": 0.875}
TWO = [results_of(0, (0.0, 1.0, -1.0), (0.0, 2.0, 3.0), **LIMIT),
       results_of(1, (0.5, 2.0, -1.0), (0.0, 4.0, 3.0), **LIMIT)]


# --- one cell -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "spec", "values", "cell"), [
    ("true_reward", "+.2f", [1.0, 2.0, 3.0], f"+2.00 +-{4.30 / ROOT3:.2f}\n(+1.00)"),
    ("true_reward", "+.2f", [-1.0, 1.0], f"+0.00 +-{12.71:.2f}\n(-1.00)"),
    ("kl_nats_per_response", ".2f", [1.0, 2.0, 3.0], f"2.00 +-{4.30 / ROOT3:.2f}\n(3.00)"),
    ("repetition", ".3f", [0.25, 0.25], "0.250 +-0.000\n(0.250)"),
    ("right_share", ".0%", [0.5, 0.6, 0.7], f"60% +-{4.30 * 0.1 / ROOT3:.0%}\n(50%)"),
    ("finished_share", ".1%", [0.75] * 8, "75.0% +-0.0%\n(75.0%)"),
    ("models_in_memory", ".0f", [2, 2], "2"), ("peak_memory_mb", ".0f", [100.0, 200.0], "150"),
    ("tokens_sampled", ",.0f", [1000, 3000], "2,000"),
    ("tokens_trained", ",.0f", [0, 1], "0"), ("training_seconds", ".0f", [9.0, 12.0], "10")])
def test_a_cell_has_the_mean_its_interval_and_the_worst(key, spec, values, cell):
    assert seeds_cell(key, values, spec) == cell


KEYS = {key for columns in COLUMNS.values() for _, key, _ in columns}


def test_every_figure_that_should_be_high_is_a_column_and_every_column_means_something():
    assert {*LOWER_IS_WORSE} <= KEYS and all(map(meaning, KEYS))


# --- tables ---------------------------------------------------------------------------------------


def test_the_tables_of_seeds_by_hand():
    methods = {"SFT": {"true_reward": [0.0, 0.0], "training_seconds": [1.0, 2.0]},
               "DPO": {"kl_nats_per_response": [1.0, 1.0], "true_reward": [1.0, 2.0]}}
    assert method_tables(methods, seeds_cell) == {
        "How far each method got": [
            ["", "true reward", "KL (nats)"], ["SFT", "+0.00 +-0.00\n(+0.00)", "-"],
            ["DPO", f"+1.50 +-{12.71 * 0.5:.2f}\n(+1.00)", "1.00 +-0.00\n(1.00)"]],
        "What it cost": [["", "seconds"], ["SFT", "2"], ["DPO", "-"]]}


def test_the_tables_of_one_seed_by_hand():
    tables = method_tables(TWO[0]["methods"], one_cell)
    assert tables["How far each method got"][:3] == [
        ["", "share of possible gain", "true reward", "KL (nats)"], ["SFT", "-", "+0.00", "0.00"],
        ["DPO", "25%", "+1.00", "2.00"]]
    assert tables["What it cost"][:2] == [["", "seconds"], ["SFT", "10"]]


# --- reports --------------------------------------------------------------------------------------


def test_a_report_over_seeds(tmp_path, capsys, rows_of):
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
    markdown, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    of_dpo = [f"38% +-{12.71 / 8:.0%}\n(25%)", f"+1.50 +-{12.71 / 2:.2f}\n(+1.00)",
              f"3.00 +-{12.71:.2f}\n(4.00)"]
    assert "| DPO | " + " | ".join(of_dpo).replace("\n", " ") + " |" in markdown
    assert "| a \\| b | - | -1.00 +-0.00 (-1.00) | 3.00 +-0.00 (3.00) |" in markdown
    assert "over 2 seeds" in markdown.splitlines()[0] and "Seeds 0, 1: the mean" in markdown
    advice = markdown.split("## When to take which")[1].split("##")[0].strip().splitlines()
    assert advice == ["|  | when to take it |", "| --- | --- |", "| DPO | pairs & nothing else |",
                      "| a \\| b | never |"]
    assert ("![frontier](frontier.png)" in markdown) == (pyplot() is not None)
    rows = rows_of(page)
    assert ["DPO", *of_dpo] in rows and ["DPO", "pairs & nothing else"] in rows
    printed = capsys.readouterr().out
    assert "+1.50 +-6.36" in printed and "by Student's t" in printed
    who = ("The only method here, DPO, has 38% of the possible gain in true reward on average over "
           "2 seeds. But these 2 seeds cannot tell it from the SFT model: the difference is 38 +- "
           f"{12.71 * 12.5:.0f} points")
    for text in (" ".join(printed.split()), markdown, page):
        assert who in text


def test_a_figure_that_one_seed_lacks_is_left_out_of_all(tmp_path):
    first, second = (results_of(seed, (0.0, 1.0, 2.0), (0.0, 1.0, 2.0)) for seed in (0, 1))
    del second["methods"]["DPO"]["share_of_possible_gain"]
    write_report_of_seeds(str(tmp_path), [first, second], {})
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["methods"]["DPO"].keys() == results["methods"]["SFT"].keys()


def test_a_report_over_seeds_of_ones_own_rows_has_no_frontier_and_no_winner(tmp_path, capsys):
    results = [results_of(seed, (0.0, 1.0, 2.0), (0.0, 1.0, 2.0)) for seed in (4, 5, 6)]
    for one in results:
        for figures in one["methods"].values():
            del figures["true_reward"]
    write_report_of_seeds(str(tmp_path), results, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md",
                                                                "results.json"]
    assert NO_TRUE_REWARD[0] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("limit", [LIMIT, {}])
@pytest.mark.parametrize("history", [{}, {"ppo_history": {
    "objective/kl_exact": [0.0, 1.0], "objective/scores": [0.0, 0.5], "true_reward": [0.0, 1.0]}}])
def test_a_report_of_one_seed_with_and_without_ppo_and_the_world(tmp_path, capsys, limit, history,
                                                                 rows_of):
    results = results_of(0, (0.0, 1.0, -1.0), (0.0, 2.0, 3.0), **limit, **history)
    for method in results["methods"].values():
        method["preference_accuracy"] = 0.75
    samples = [("why?", {"SFT": "x < y", "DPO": "a\nb", "a | b": "<script>|"})]
    write_report(str(tmp_path), results, samples)
    names = {path.name for path in tmp_path.iterdir()}
    figures = {name for name, is_made in (("frontier.png", limit), ("ppo_over_time.png", history))
               if is_made and pyplot() is not None}
    assert names == {"report.md", "report.html"} | figures
    markdown, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "| DPO | a b |" in markdown and "| a \\| b | \\<script>\\| |" in markdown
    assert ("| limit | 100% | +2.00 | 1.00 | 0.875 |" in markdown) == bool(limit)
    rows = rows_of(page)
    assert ["SFT", "x < y"] in rows and ["DPO", "a\nb"] in rows and "<script" not in page
    assert ["true reward", meaning("true_reward")] in rows
    assert all(f"![{name.split('.')[0].replace('_', ' ')}]({name})" in markdown for name in figures)
    printed = capsys.readouterr().out
    words = "This run can tell it from the SFT model: the difference is 25 +- 0 points" if limit \
        else NO_TRUE_REWARD[0]
    for text in (" ".join(printed.split()), markdown, page):
        assert words in text and "Seed 0; 80 held-out prompts and 8 held-out pairs" in text
    assert printed.splitlines()[-1] == (
        f"python -m minigpt.chat {tmp_path}/sft/model.pt {tmp_path}/dpo/model.pt "
        f"--reward {tmp_path}/reward/model.pt")


def test_no_table_of_methods_is_wider_than_seven_columns():
    assert max(map(len, COLUMNS.values())) <= 6
