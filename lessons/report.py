"""The report of `lessons.compare`, as Markdown, as a self-contained HTML file, and printed."""

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lessons.charts import save_frontier, save_frontier_of_seeds, save_ppo_over_time
from minigpt.disk import write_json
from minigpt.plots import pyplot

# column title, key in results["methods"][name], format
COLUMNS = (
    ("preference accuracy", "preference_accuracy", ".3f"),
    ("true reward", "true_reward", "+.2f"),
    ("limit at this KL", "limit_at_this_kl", "+.2f"),
    ("share of possible gain", "share_of_possible_gain", ".0%"),
    ("KL (nats/response)", "kl_nats_per_response", ".2f"),
    ("win rate v. SFT", "win_rate_against_sft", ".0%"),
    ("right", "right_share", ".0%"),
    ("ends by itself", "finished_share", ".1%"),
    ("length (bytes)", "response_bytes", ".0f"),
    ("distinct-2", "distinct_2", ".3f"),
    ("repetition", "repetition", ".3f"),
    ("models", "models_in_memory", ".0f"),
    ("peak memory (MB)", "peak_memory_mb", ".0f"),
    ("seconds", "training_seconds", ".0f"),
    ("tokens sampled", "tokens_sampled", ",.0f"),
    ("tokens trained", "tokens_trained", ",.0f"),
)
LOWER_IS_WORSE = ("preference_accuracy", "true_reward", "share_of_possible_gain", "right_share",
                  "win_rate_against_sft", "finished_share", "distinct_2", "limit_at_this_kl")
COSTS = ("models_in_memory", "peak_memory_mb", "training_seconds", "tokens_sampled",
         "tokens_trained")
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26,
           11: 2.23, 12: 2.20}  # of a 95 % interval, by the number of seeds; it falls to 1.96


def one_cell(key: str, value: float, spec: str) -> str:
    """A figure of one seed."""
    return format(value, spec)


def seeds_cell(key: str, values: Sequence[float], spec: str) -> str:
    """The mean of a figure over the seeds +- its interval (the worst); of costs the mean alone."""
    if key in COSTS:
        return format(mean(values), spec)
    worst = min(values) if key in LOWER_IS_WORSE else max(values)
    half = STUDENT.get(len(values), 2.2) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):{spec}} +-{half:{spec.lstrip('+')}} ({worst:{spec}})"


def method_table(methods: Mapping[str, Mapping[str, Any]],
                 cell: Callable[[str, Any, str], str] = one_cell) -> list[list[str]]:
    """The header and one row of cells per method; columns that no method has are left out."""
    columns = [column for column in COLUMNS
               if any(column[1] in figures for figures in methods.values())]
    rows = [["", *(title for title, _, _ in columns)]]
    for name, figures in methods.items():
        rows.append([name, *(cell(key, figures[key], spec) if key in figures else "-"
                             for _, key, spec in columns)])
    return rows


def limit_line(results: Mapping[str, Any], table: Sequence[Sequence[str]]) -> list[str]:
    """The row of the limit: the best true reward, at the largest KL that the samples can show."""
    limit = results["limit"]
    cells = dict.fromkeys(table[0], "-")
    cells[""] = "limit"
    cells["true reward"] = f"{limit['true_reward'][-1]:+.2f}"
    cells["KL (nats/response)"] = f"{limit['kl'][-1]:.2f}"
    cells["preference accuracy"] = f"{results['bayes_accuracy']:.3f}"
    cells["share of possible gain"] = "100%"
    return list(cells.values())


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader needs to know about the table, a paragraph each."""
    lines = [f"Seed {results['seed']}; {results['heldout_prompts']} held-out prompts and "
             f"{results['heldout_pairs']} held-out pairs, none of them in any training data. The "
             f"whole run took {results['seconds']:.0f} seconds."]
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
    lines += [
        "Preference accuracy: by the implicit reward log pi/ref, whatever the loss (SFT is the "
        "reference, so every pair is a tie), by the reward model for best-of-n.",
        "Memory, seconds and tokens are those of each method's own training commands, reports "
        "included, and of the reward model where one is needed. All methods also need the SFT "
        "model. Best-of-n trains no policy, but samples n answers for each one that it gives.",
    ]
    return lines


def write_report(out: str, results: Mapping[str, Any],
                 samples: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Write report.md, report.html and the figures to `out`, and print the table and the notes.

    results: the content of results.json.  samples: (prompt, {method: its answer}).
    """
    folder = Path(out)
    table = method_table(results["methods"])
    if "limit" in results:
        table.append(limit_line(results, table))
    figures = [save_frontier(folder / "frontier.png", results),
               save_ppo_over_time(folder / "ppo_over_time.png", results)]
    sections = [("Ways from one model", table)]
    if "sweep" in results:
        sections.append(("DPO at four values of beta", sweep_table(results["sweep"])))
    answers = [["prompt", *samples[0][1]],
               *([prompt, *texts.values()] for prompt, texts in samples)]
    sections.append(("What they say (one sample each)", answers))
    publish(folder, sections, notes(results), figures)


def write_report_of_seeds(out: str, results: Sequence[Mapping[str, Any]],
                          when: Mapping[str, str]) -> None:
    """Write report.md, report.html, results.json and the figure over several seeds, and print it.

    results: the content of each seed's results.json.  when: when to take a method, by its title.
    """
    folder = Path(out)
    names = list(results[0]["methods"])
    figures = {name: {key: [one["methods"][name][key] for one in results]
                      for key in results[0]["methods"][name]
                      if all(key in one["methods"][name] for one in results)} for name in names}
    table = method_table(figures, seeds_cell)
    advice = [["", "when to take it"], *([name, when[name]] for name in names if name in when)]
    seeds = ", ".join(str(one["seed"]) for one in results)
    lines = [f"Seeds {seeds}: the mean and, in brackets, the worst of them (of KL the largest; "
             "of memory and cost the mean alone). +- is the half width of the mean's 95 % interval "
             "by Student's t, which is wide for so few seeds: two methods whose intervals overlap "
             "are not told apart."]
    sections = [(f"Mean and worst of {len(results)} seeds", table), ("When to take which", advice)]
    write_json(folder / "results.json", {
        "seeds": [one["seed"] for one in results], "methods": figures,
        "seconds": [one["seconds"] for one in results]})
    publish(folder, sections, lines, [save_frontier_of_seeds(folder / "frontier.png", results)])


def publish(folder: Path, sections: Sequence[tuple[str, list[list[str]]]], lines: Sequence[str],
            figures: Sequence[Path | None]) -> None:
    """Write report.md and report.html; print the first table, the notes, and where the report is.

    figures: the path of each, None where it was not made.
    """
    made = [path for path in figures if path]
    (folder / "report.md").write_text(as_markdown(sections, lines, made), encoding="utf-8")
    (folder / "report.html").write_text(as_html(sections, lines, made), encoding="utf-8")
    print(as_text(sections[0][1]))
    print("\n" + "\n".join(lines))
    print(f"\nreport: {folder / 'report.md'} and {folder / 'report.html'}"
          + ("" if pyplot() else " (for figures: pip install -e '.[plots]' -c constraints.txt)"))


def sweep_table(sweep: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """The header and one row of cells per beta."""
    columns = {"beta": "beta", "preference_accuracy_heldout": "preference accuracy",
               "true_reward": "true reward", "kl_nats_per_response": "KL (nats/response)",
               "rewards_chosen_heldout": "chosen reward",
               "rewards_rejected_heldout": "rejected reward", "distinct_2": "distinct-2"}
    present = {key: title for key, title in columns.items() if key in sweep[0]}
    return [list(present.values()), *([f"{row[key]:.3g}" for key in present] for row in sweep)]


def as_text(table: Sequence[Sequence[str]]) -> str:
    """The table transposed, so that it fits on a screen: one column per method."""
    widths = [max(map(len, row)) for row in table]
    lines = [[cell.ljust(width) if i == 0 else cell.rjust(width)
              for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
             for line in zip(*table, strict=True)]
    return "\n" + "\n".join(map("  ".join, lines))


def as_markdown(sections: Sequence[tuple[str, list[list[str]]]], lines: Sequence[str],
                figures: Sequence[Path]) -> str:
    """The report: figures, then (title, table) sections, with the notes after the first."""
    parts = ["# One model, aligned in several ways\n"]
    parts += [f"![{figure.stem.replace('_', ' ')}]({figure.name})\n" for figure in figures]
    for title, table in sections:
        rows = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row)
                + " |" for row in table]
        parts.append("\n".join([f"## {title}\n", rows[0], "|" + " --- |" * len(table[0]),
                                *rows[1:]]) + "\n")
        if title == sections[0][0]:
            parts += [line + "\n" for line in lines]
    return "\n".join(parts)


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;\
padding:0 1rem;color:#222}
table{border-collapse:collapse;display:block;overflow-x:auto}\
td,th{padding:.3rem .6rem;border-bottom:1px solid #ccc;
text-align:left}img{max-width:100%;background:#fff}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}}"""


def as_html(sections: Sequence[tuple[str, list[list[str]]]], lines: Sequence[str],
            figures: Sequence[Path]) -> str:
    """The same as `as_markdown` makes, in HTML, with the figures embedded."""
    heading = "One model, aligned in several ways"
    parts = ["<!doctype html><html lang='en'><meta charset='utf-8'>"
             "<meta name='viewport' content='width=device-width'>",
             f"<title>{heading}</title><style>{STYLE}</style><h1>{heading}</h1>"]
    for figure in figures:
        data = base64.b64encode(figure.read_bytes()).decode("ascii")
        parts.append(f"<p><img alt='{figure.stem.replace('_', ' ')}' "
                     f"src='data:image/png;base64,{data}'></p>")
    for title, table in sections:
        head, *body = [[html.escape(cell) for cell in row] for row in table]
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr><th>" + "<th>".join(head)
                     + "".join("<tr><td>" + "<td>".join(row) for row in body) + "</table>")
        if title == sections[0][0]:
            parts += [f"<p>{html.escape(line)}</p>" for line in lines]
    return "\n".join(parts) + "</html>\n"
