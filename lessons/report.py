"""The report of `lessons.compare`, as Markdown, as a self-contained HTML file, and printed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lessons.charts import save_frontier, save_frontier_of_seeds, save_ppo_over_time
from lessons.methods import METHODS
from lessons.verdict import half_width, verdict
from minigpt.command import chat_command
from minigpt.disk import write_json
from minigpt.figures import meaning
from minigpt.plots import HOW_TO_DRAW, pyplot
from minigpt.report import Command, Part, Section, Table, as_text, save_report

# title of a table -> its columns: title, key in results["methods"][name], format
COLUMNS = {
    "How far each method got": (
        ("share of possible gain", "share_of_possible_gain", ".0%"),
        ("true reward", "true_reward", "+.2f"),
        ("limit at this KL", "limit_at_this_kl", "+.2f"),
        ("KL (nats)", "kl_nats_per_response", ".2f"),
        ("win rate v. SFT", "win_rate_against_sft", ".0%"),
        ("preference accuracy", "preference_accuracy", ".3f")),
    "What the answers are like": (
        ("right", "right_share", ".0%"),
        ("ends by itself", "finished_share", ".1%"),
        ("length (bytes)", "response_bytes", ".0f"),
        ("distinct-2", "distinct_2", ".3f"),
        ("repetition", "repetition", ".3f")),
    "What it cost": (
        ("models", "models_in_memory", ".0f"),
        ("peak memory (MB)", "peak_memory_mb", ".0f"),
        ("seconds", "training_seconds", ".0f"),
        ("tokens sampled", "tokens_sampled", ",.0f"),
        ("tokens trained", "tokens_trained", ",.0f")),
}
LOWER_IS_WORSE = ("preference_accuracy", "true_reward", "share_of_possible_gain", "right_share",
                  "win_rate_against_sft", "finished_share", "distinct_2", "limit_at_this_kl")
COSTS = [key for _, key, _ in COLUMNS["What it cost"]]
NO_TRUE_REWARD = ["Nobody knows the true reward of answers to rows of your own, so this run cannot "
                  "say which method got furthest.", "What it can say is how well each ranks "
                  "held-out pairs; and read the samples below."]
TITLE = "One model, aligned in several ways"


def method_tables(methods: Mapping[str, Mapping[str, Any]],
                  cell: Callable[[str, Any, str], str]) -> dict[str, Table]:
    """For each title a table with a row for each method; columns that no method has are left out.

    cell: (key, what the method has there, format) -> text.
    """
    tables = {}
    for title, columns in COLUMNS.items():
        present = [column for column in columns
                   if any(column[1] in figures for figures in methods.values())]
        if present:
            tables[title] = [["", *(name for name, _, _ in present)]] + [
                [method, *(cell(key, figures[key], spec) if key in figures else "-"
                           for _, key, spec in present)] for method, figures in methods.items()]
    return tables


def one_cell(key: str, value: float, spec: str) -> str:
    """The figure of one run."""
    return format(value, spec)


def seeds_cell(key: str, values: Sequence[float], spec: str) -> str:
    """The mean of a figure over the seeds, its interval, and below it the worst."""
    if key in COSTS:
        return format(mean(values), spec)
    worst = min(values) if key in LOWER_IS_WORSE else max(values)
    return f"{mean(values):{spec}} +-{half_width(values):{spec.lstrip('+')}}\n({worst:{spec}})"


def limit_row(results: Mapping[str, Any], head: Sequence[str]) -> list[str]:
    """The row of the limit: the best true reward, at the largest KL that the samples can show."""
    limit = results["limit"]
    cells = {"": "limit", "true reward": f"{limit['true_reward'][-1]:+.2f}",
             "KL (nats)": f"{limit['kl'][-1]:.2f}", "share of possible gain": "100%",
             "preference accuracy": f"{results['bayes_accuracy']:.3f}"}
    return [cells.get(column, "-") for column in head]


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader needs to know about the tables, a paragraph each."""
    lines = []
    if "limit" in results:
        limit = results["limit"]
        lines += [
            "Limit: the best true reward of any policy at that KL, estimated from "
            f"{limit['samples_per_prompt']} SFT samples per prompt, reweighted by the true reward. "
            f"They cannot show a KL above log n = {limit['bound_nats']:.2f} nats; beyond the last "
            "point the limit is flat, at the best reward sampled. The estimate is slightly low. "
            "Its preference accuracy is the Bayes accuracy: what knowing the true reward exactly "
            "would score.",
            "Each method moved as far from SFT as its own beta let it, so compare the shares of "
            "the possible gain, not the true rewards alone.",
        ]
    return [*lines,
            "Preference accuracy: by the implicit reward log pi/ref, whatever the loss (SFT is the "
            "reference, so every pair is a tie), by the reward model for best-of-n.",
            "Memory, seconds and tokens are those of each method's own training commands, reports "
            "included, and of the reward model where one is needed. All methods also need the SFT "
            "model. Best-of-n trains no policy, but samples n answers for each one that it gives."]


def legend(tables: Mapping[str, Table], lines: Sequence[str]) -> Section:
    """What the columns mean, and the notes."""
    rows = [[title, meaning(key)] for name in tables for title, key, _ in COLUMNS[name]
            if title in tables[name][0]]
    return Section("How to read the tables", [[["column", "meaning"], *rows], *lines])


def write_report(out: str, results: Mapping[str, Any],
                 samples: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Write report.md, report.html and the figures to `out`, and print what matters most.

    results: the content of results.json.  samples: (prompt, {method: its answer}).
    """
    folder = Path(out)
    tables = method_tables(results["methods"], one_cell)
    words = NO_TRUE_REWARD
    if "limit" in results:
        reached = tables["How far each method got"]
        reached.append(limit_row(results, reached[0]))
        words = verdict(results.get("shares_by_question", {}), *asked(results))
    about = (f"Seed {results['seed']}; {results['heldout_prompts']} held-out prompts and "
             f"{results['heldout_pairs']} held-out pairs, none of them in any training data. The "
             f"whole run took {results['seconds']:.0f} seconds"
             + (f", with up to {results['jobs']} stages in parallel: a method's own seconds depend "
                "on what else ran." if results["jobs"] > 1 else "."))
    sections = [Section("Verdict", [" ".join(words)]), *table_sections(tables, about, [
        save_frontier(folder / "frontier.png", results),
        save_ppo_over_time(folder / "ppo_over_time.png", results)])]
    if "sweep" in results:
        sections.append(Section("DPO at other values of beta", [sweep_table(results["sweep"])]))
    prompts, answers = zip(*samples, strict=True)
    sections.append(Section("What they say (one sample each)", [
        [["", *prompts], *([name, *(texts[name] for texts in answers)] for name in answers[0])]]))
    end_report(folder, TITLE, [*sections, legend(tables, notes(results))], talk_to(out, results))


def write_report_of_seeds(out: str, results: Sequence[Mapping[str, Any]],
                          when: Mapping[str, str]) -> None:
    """Write report.md, report.html, results.json and the figure over several seeds, and print it.

    results: the content of each seed's results.json.  when: when to take a method, by its title.
    """
    folder = Path(out)
    figures = {name: {key: [one["methods"][name][key] for one in results] for key in of_first
                      if all(key in one["methods"][name] for one in results)}
               for name, of_first in results[0]["methods"].items()}
    write_json(folder / "results.json", {
        "seeds": [one["seed"] for one in results], "methods": figures,
        "seconds": [one["seconds"] for one in results]})
    shares = {name: of_method["share_of_possible_gain"] for name, of_method in figures.items()
              if "share_of_possible_gain" in of_method}
    words = verdict(shares, *asked(results[0]), len(results)) if "limit" in results[0] \
        else NO_TRUE_REWARD
    about = ("Seeds " + ", ".join(str(one["seed"]) for one in results) + ": the mean and, in "
             "brackets, the worst of them (of KL the largest; of cost the mean alone). +- is the "
             "half width of the mean's 95% interval by Student's t, which is wide for so few "
             "seeds; the verdict compares two methods seed by seed.")
    advice = [["", "when to take it"],
              *([name, when[name]] for name in figures if name in when)]
    tables = method_tables(figures, seeds_cell)
    end_report(folder, f"{TITLE}, over {len(results)} seeds", [
        Section("Verdict", [" ".join(words)]),
        *table_sections(tables, about, [save_frontier_of_seeds(folder / "frontier.png", results)]),
        Section("When to take which", [advice]), legend(tables, notes(results[0]))],
        talk_to(f"{out}/seed-{results[0]['seed']}", results[0]))


def asked(results: Mapping[str, Any]) -> tuple[int, int]:
    """How many held-out prompts a run had, and of how many questions they are wordings."""
    shares = results.get("shares_by_question", {})
    return results["heldout_prompts"], max(map(len, shares.values()), default=0)


def table_sections(tables: Mapping[str, Table], about: str,
                   pictures: Sequence[Path | None]) -> list[Section]:
    """The tables, and after the first a word about them and the pictures."""
    first, *others = (Section(title, [table]) for title, table in tables.items())
    drawn: list[Part] = [path for path in pictures if path] if pyplot() else [HOW_TO_DRAW]
    return [first._replace(parts=[*first.parts, about]),
            *([Section("Figures", drawn)] if drawn else []), *others]


def end_report(folder: Path, title: str, sections: Sequence[Section], talk: Command) -> None:
    """Write the report; print its tables, then the verdict, and how to talk to the models."""
    place = save_report(folder, title, [*sections, Section("Talk to them", [talk])])
    words, *others = sections
    for section in [*(other for other in others if other.title in COLUMNS), words]:
        print(f"\n{as_text(section)}")
    print(f"\n{place}\nTo talk to them:\n{talk.line}")


def talk_to(out: str, results: Mapping[str, Any]) -> Command:
    """How to talk to the SFT model and the two trained methods that got furthest."""
    def share(name: str) -> float:
        return results["methods"][METHODS[name].title].get("share_of_possible_gain", 0.0)

    trained = [name for name in results["stages"] if name in METHODS]
    best = sorted(trained, key=share, reverse=True)[:2]
    return chat_command([*(f"{out}/{name}/model.pt" for name in ("sft", *best)),
                         "--reward", f"{out}/reward/model.pt"])


def sweep_table(sweep: Sequence[Mapping[str, float]]) -> Table:
    """The header and one row of cells per beta."""
    columns = {"beta": "beta", "preference_accuracy_heldout": "preference accuracy",
               "true_reward": "true reward", "kl_nats_per_response": "KL (nats)",
               "rewards_chosen_heldout": "chosen reward",
               "rewards_rejected_heldout": "rejected reward", "distinct_2": "distinct-2"}
    present = {key: title for key, title in columns.items() if key in sweep[0]}
    return [list(present.values()), *([f"{row[key]:.3g}" for key in present] for row in sweep)]
