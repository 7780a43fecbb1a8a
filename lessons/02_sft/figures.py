"""The article's numbers, tables and figures:  python -m lessons.build 02 --figures"""

from collections.abc import Sequence
from statistics import mean

import torch

from data.examples import preference_examples
from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.start import starting_point
from lessons.verdict import half_width
from minigpt.batching import Batches
from minigpt.logprobs import response_logits, token_logps
from minigpt.masks import predictor_columns
from minigpt.plots import COLOURS
from minigpt.tokenizer import EOS, PAD, SEP

lesson = Lesson("02_sft", "figures")
start = starting_point(quick=lesson.quick)

NAMES = {SEP: "SEP", PAD: "PAD", EOS: "EOS", ord(" "): "␣"}
SHADES = {0: "#e4e4e4", 1: "#cdeade", 2: "#fbdcc8", -1: "#ffffff"}  # by segment
PLAIN, FIVE, THIRTY = "response and EOS", "5 % plain text", "30 % plain text"


# --- the tensors of one preference pair: every loss of this course is computed from such ones ---

def name_of(token: int) -> str:
    return NAMES.get(token, chr(token))


def tensors_of(pair: dict[str, str]) -> tuple[list[int], list[float], dict[str, list[str]]]:
    """Segments and log-probabilities of a pair, (T,) each; T texts for each row of the figure."""
    batch = Batches(preference_examples([pair], start.sft.max_seq_len), 1).collate([0])
    with torch.no_grad():
        logps = token_logps(start.sft, batch)[0].tolist()
        likeliest = iter(response_logits(start.sft, batch).argmax(-1).tolist())
    ids, segments = batch.token_ids[0].tolist(), batch.segments[0].tolist()
    mask = batch.response_mask[0].tolist()
    columns = predictor_columns(batch.segments)[0].tolist()
    return segments, logps, {
        "column": [str(t) for t in range(len(ids))],
        "byte": [name_of(token) for token in ids],
        "token_ids": [str(token) for token in ids],
        "segments": [str(segment) for segment in segments],
        "response_mask": [str(int(scored)) for scored in mask],
        "predicted from": [str(columns[t]) if mask[t] else "" for t in range(len(ids))],
        "likeliest there": [name_of(next(likeliest)) if scored else "" for scored in mask],
        "log p of the byte": [f"{logps[t]:.2f}" if mask[t] else "" for t in range(len(ids))],
    }


def draw_tensors(pair: dict[str, str]) -> None:
    segments, logps, rows = tensors_of(pair)
    figure, axis = lesson.panels()
    figure.set_size_inches(7.8, 0.25 * (len(rows) + 2))
    sizes = {"column": 6.5, "log p of the byte": 6.5}
    for y, (name, cells) in enumerate(rows.items()):
        axis.text(-0.8, y, name, ha="right", va="center", fontsize=8)
        for t, cell in enumerate(cells):
            if name != "column":
                axis.add_patch(lesson.plt.Rectangle((t - 0.5, y - 0.5), 1, 1, edgecolor="white",
                                                    facecolor=SHADES[segments[t]]))
            axis.text(t, y, cell, ha="center", va="center", fontsize=sizes.get(name, 7.5))
    for segment, name in enumerate(("prompt: read, not scored", "chosen", "rejected")):
        where = [t for t in range(len(segments)) if segments[t] == segment]
        total = f"\nsum {sum(logps[t] for t in where):.2f}" * (segment > 0)
        axis.text((where[0] + where[-1]) / 2, len(rows) - 0.3, name + total, ha="center", va="top",
                  fontsize=8)
    axis.set(xlim=(-4.8, len(segments) - 0.4), ylim=(len(rows) + 1.1, -0.6))
    axis.set_axis_off()
    lesson.figure("tensors", figure, "One preference pair as the model reads it, a batch of B = 1 "
                  f"row and T = {len(segments)} columns. A column's logits predict the next byte, "
                  f"and the first byte of each response is predicted from SEP, column "
                  f"{segments.index(1) - 1}. Only the coloured columns enter a loss.")


draw_tensors({"prompt": "Sum of 1 plus 2?", "chosen": "3.", "rejected": "4."})


# --- the base model knows, and the SFT model imitates ---

lesson.table("layouts", ["layout of the row", "prompt", "response"], lesson.kept("layouts"))
asked, losses, runs = lesson.kept("asked"), lesson.kept("losses"), lesson.kept("runs")
for name in asked[0]:
    lesson.number(f"right_{name}", [found[name]["right_share"] for found in asked], ".2f")
    lesson.number(f"reward_{name}", [found[name]["true_reward"] for found in asked], ".2f")
for key in ("right_share", "true_reward"):
    lesson.number(f"sft_over_base_{key}", [found["sft"][key] - found["base_goes_on"][key]
                                           for found in asked], ".2f")
lesson.number("right_lost_at_2000", [
    found["base_goes_on"]["right_share"] - run["right_share"]
    for found, run in zip(asked, runs[PLAIN], strict=True)], ".2f")
lesson.number("finished_sft", [found["sft"]["finished_share"] for found in asked], ".2f")
for model in ("base", "sft"):
    lesson.number(f"loss_{model}", [found[model]["loss"] for found in losses], ".2f")
    lesson.number(f"plain_{model}", [found[model]["plain"] for found in losses], ".2f")
lesson.number("response_share", f"{lesson.kept('response_share'):.0%}")


def draw_imitation() -> None:
    found = lesson.kept("imitation")
    labels = {"demonstrations": "demonstrations", "seen": "SFT, prompts it was trained on",
              "held-out": "SFT, held-out wordings"}
    kinds = list(found[0]["seen"])
    shares = {name: {kind: [one[name][kind] for one in found] for kind in kinds} for name in labels}
    figure, axis = lesson.panels()
    figure.set_size_inches(7, 3.4)
    for number, (name, colour) in enumerate(zip(labels, (COLOURS[2], COLOURS[1], COLOURS[4]),
                                                strict=True)):
        axis.bar([x + 0.27 * (number - 1) for x in range(len(kinds))],
                 [mean(values) for values in shares[name].values()], 0.25, color=colour,
                 yerr=[half_width(values) for values in shares[name].values()],
                 label=labels[name], error_kw={"linewidth": 1})
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set(ylabel="share of the answers", ylim=(0, 1.08))
    axis.legend(loc="upper center", ncols=2)
    lesson.number("rude_demonstrations", shares["demonstrations"]["rude"], ".2f")
    lesson.number("rude_seen", shares["seen"]["rude"], ".2f")
    gaps = {kind: mean(shares["seen"][kind]) - mean(shares["demonstrations"][kind])
            for kind in kinds}
    widest = max(gaps, key=lambda kind: abs(gaps[kind]))
    lesson.figure("imitation", figure, "SFT copies the demonstrators' habits, rudeness included: "
                  "on prompts that it was trained on, the share of each habit is within "
                  f"{abs(gaps[widest]):.2f} of theirs (the widest gap: {widest}). Bars: 95 % "
                  f"intervals over {len(found)} seeds.")


draw_imitation()


# --- which bytes count, and what is forgotten ---

COLUMNS = {"loss": "loss on responses", "plain": "loss on plain text", "right_share": "right",
           "finished_share": "finished", "true_reward": "true reward"}


def values(name: str, key: str) -> list[float]:
    return [run[key] for run in runs[name]]


def table(name: str, first: str, names: dict[str, str], columns: Sequence[str]) -> None:
    lesson.table(name, [first, *(COLUMNS[key] for key in columns)],
                 [[label, *(spread(values(run, key), ".2f") for key in columns)]
                  for run, label in names.items()])


table("masks", "scored", {PLAIN: PLAIN, "prompt too": "prompt, response and EOS",
                          "response without EOS": "response without EOS"},
      ("loss", "plain", "right_share", "finished_share", "true_reward"))
table("forgetting", "demonstrations, with ...",
      {PLAIN: "nothing else", "rate / 10": "a tenth of the learning rate", FIVE: FIVE,
       THIRTY: THIRTY}, ("loss", "plain", "right_share"))
table("rates", "peak rate", {"rate / 75": "2e-5", "rate / 10": "0.00015", PLAIN: "0.0015",
                             "rate x 16": "0.024"},
      ("loss", "plain", "right_share", "finished_share"))
for short, name in (("prompt_too", "prompt too"), ("tenth", "rate / 10"), ("mix_5", FIVE),
                    ("mix_30", THIRTY)):
    lesson.number(f"right_gained_{short}", [other - plain for other, plain in zip(
        values(name, "right_share"), values(PLAIN, "right_share"), strict=True)], "+.2f")
first = runs[PLAIN][0]["looks"][1][0]
lesson.number("first_look", str(first))
lesson.number("plain_first_look", [dict(run["looks"])[first] for run in runs[PLAIN]], ".2f")


def draw_forgetting() -> None:
    figure, (left, right) = lesson.panels(2)
    figure.set_size_inches(9.2, 3.9)
    colours = {PLAIN: COLOURS[1], "rate / 10": COLOURS[0], FIVE: COLOURS[4], THIRTY: COLOURS[2]}
    labels = {PLAIN: "no plain text", "rate / 10": "no plain text, rate / 10"}
    for name in (PLAIN, FIVE, THIRTY):
        for run in runs[name]:
            left.plot(*zip(*run["looks"], strict=True), color=colours[name], linewidth=1.2)
    for name, colour in colours.items():
        x, y = values(name, "plain"), values(name, "right_share")
        right.errorbar(mean(x), mean(y), half_width(y), half_width(x), "o", color=colour,
                       label=labels.get(name, name), linewidth=1.2)
    base = mean(found["base"]["plain"] for found in losses)
    left.axhline(base, color="grey", linestyle=":")
    left.text(20, base * 1.06, "base model", fontsize=8.5, color="#444444")
    left.set(xlabel="optimizer step", ylabel="loss on held-out plain text (nats per byte)",
             yscale="log", title="While it trains, each seed")
    right.set(xlabel="loss on held-out plain text (nats per byte)", ylabel="right answers (share)",
              xscale="log", title="At the end: up and to the left is better")
    ticks = (0.1, 0.2, 0.5, 1, 2, 4)
    for axis, of in ((left, left.yaxis), (right, right.xaxis)):
        axis.minorticks_off()
        of.set_ticks(ticks, map(str, ticks))
    left.set_ylim(0.1, 4)
    right.set_xlim(0.1, 4)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    plain, five, thirty = (mean(values(name, "plain")) for name in (PLAIN, FIVE, THIRTY))
    lesson.figure("forgetting", figure, "SFT alone raises the loss on plain text from "
                  f"{base:.2f} to {plain:.2f} nats per byte. With 5 % plain text mixed in, it ends "
                  f"at {five:.2f}, with 30 % at {thirty:.2f}. Bars: 95 % intervals over "
                  f"{len(losses)} seeds.")


draw_forgetting()


# --- the whole of it ---

figure, axis = lesson.panels(height=3.2)
draw_pipeline(axis, {
    "demonstrations": Box(0, 0, "demonstrations", "data"),
    "plain": Box(0, 1.35, "a little\nplain text", "data"),
    "batch": Box(1.15, 0, "prompt SEP\nresponse EOS", "data"),
    "model": Box(2.3, 0, "MiniGPT\n(begins as base)", "trained"),
    "logps": Box(3.45, 0, "log p of each\nresponse byte", "data"),
    "loss": Box(3.45, 1.35, "loss: mean\nwhere m = 1", "data"),
}, [("demonstrations", "batch", "encode"), ("plain", "batch", "mix"), ("batch", "model", "(B, T)"),
    ("model", "logps", "(B, T)"), ("logps", "loss", "mask m"), ("loss", "model", "gradient")])
lesson.figure("pipeline", figure, "SFT keeps one model in memory and trains it. Nothing is frozen, "
              "and nothing is sampled.")
lesson.done()
