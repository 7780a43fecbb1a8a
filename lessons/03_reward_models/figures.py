# %% [markdown]
# # 3. Reward models: numbers, tables and figures of the article
# Drawn from what experiments.py kept.

# %%
import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from data.world import WorldConfig
from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.verdict import half_width
from minigpt.plots import COLOURS

lesson = Lesson("03_reward_models", "figures")
temperature = WorldConfig().temperature


def over_seeds(rows: Sequence[dict[str, float]], key: str) -> list[float]:
    return [row[key] for row in rows]


def less(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """The difference within each seed."""
    return [one - other for one, other in zip(ones, others, strict=True)]


def middles_and_halves(columns: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """The mean of each column, and half of its 95% interval."""
    return [mean(column) for column in columns], [half_width(column) for column in columns]


# %% [markdown]
# ## The models that ship, and what they say of the SFT model's answers

# %%
sizes, shipped, truth = (lesson.kept(name) for name in ("sizes", "shipped", "truth"))
for name, count in sizes.items():
    lesson.number(f"pairs_{name}", f"{count:,}")
for key in ("heldout", "train", "bayes"):
    lesson.number(f"accuracy_{key}", over_seeds(shipped, key), ".2f")
lesson.number("below_the_limit",
              less(over_seeds(shipped, "bayes"), over_seeds(shipped, "heldout")), ".2f")
zeros = over_seeds(shipped, "mean_before_centring")
lesson.number("lowest_zero", min(zeros), "+.1f")
lesson.number("highest_zero", max(zeros), "+.1f")
lesson.number("bias_moved", lesson.kept("bias_moved"), ".4f")
for key in ("correlation", "within_prompts", "offsets"):
    lesson.number(key, over_seeds(truth, key), ".2f")
lesson.number("slope", over_seeds(truth, "slope"), ".1f")
lesson.number("slope_ideal", 1 / temperature, ".1f")

# %% [markdown]
# ## A fresh head, and where the score is read

# %%
heads = lesson.kept("heads")
lesson.number("accuracy_fresh", over_seeds(heads["1 / sqrt(d + 1)"], "accuracy"), ".2f")
lesson.table("heads", ["std of the head's weights", "size of a score", "loss", "accuracy"],
             [[name, *(spread(over_seeds(rows, key), form) for key, form in
                       (("size", ".1f"), ("loss", ".2f"), ("accuracy", ".2f")))]
              for name, rows in heads.items()])
reading = lesson.kept("reading")
places = {place: [row[place] for row in reading] for place in reading[0]}
lesson.table("reading", ["the head is read at", "held-out accuracy", "correlation with the score"],
             [[place, *(spread(over_seeds(rows, key), ".2f") for key in ("accuracy", "agreement"))]
              for place, rows in places.items()])
for place in ("last byte before EOS", "first PAD"):
    lesson.number(f"lost_at_{place.replace(' ', '_')}", less(
        over_seeds(places["EOS"], "accuracy"), over_seeds(places[place], "accuracy")), ".2f")
agreement = over_seeds(places["first PAD"], "agreement")
lesson.number("lowest_agreement", min(agreement), ".2f")
lesson.number("highest_agreement", max(agreement), ".2f")

# %% [markdown]
# ## Which fault is learned first?

# %%
FAULTS = ("wrong", "rude", "rambling", "not polite", "evasive", "ignores the request")
DRAWN = FAULTS[:4]
faults, oracle = lesson.kept("faults"), lesson.kept("oracle")
steps = list(next(iter(faults.values()))[0])
first, early, later, late = lesson.pick(("25", "100", "200", "500"), ("0", "6", "6", "6"))
Runs = Sequence[dict[str, Any]]


def ranked_right(runs: Runs, fault: str, step: str) -> list[float]:
    return [run[step].get(fault, 0.5) for run in runs]


def draw_faults(axis: Any, runs: Runs) -> None:
    """The accuracy on each fault over the steps; a log scale has no step 0."""
    xs = [int(step) for step in steps[1:]]
    for fault, colour, marker in zip(DRAWN, COLOURS, "osD^", strict=False):
        middles, halves = middles_and_halves([ranked_right(runs, fault, step)
                                              for step in steps[1:]])
        axis.plot(xs, middles, marker=marker, markersize=4, color=colour, label=fault)
        axis.fill_between(xs, less(middles, halves),
                          [m + h for m, h in zip(middles, halves, strict=True)], color=colour,
                          alpha=0.13, linewidth=0)
    axis.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    axis.set_xscale("log")
    axis.set_xticks(xs, steps[1:])
    axis.minorticks_off()
    axis.set(xlabel="optimizer step (log scale)", ylim=(0.2, 1.02))


for name, step in (("first", first), ("early", early), ("later", later), ("late", late)):
    lesson.number(name, step)
from_sft = faults["from the SFT model, 8 facts"]
lesson.number("first_rambling_less_wrong", less(ranked_right(from_sft, "rambling", first),
                                                ranked_right(from_sft, "wrong", first)), ".2f")
lesson.number("later_wrong_less_not_polite", less(ranked_right(from_sft, "wrong", later),
                                                  ranked_right(from_sft, "not polite", later)),
              ".2f")
for key, runs in zip(("sft", "scratch", "many"), faults.values(), strict=True):
    for when, step in (("early", early), ("late", late)):
        wrong, rude = (ranked_right(runs, fault, step) for fault in ("wrong", "rude"))
        lesson.number(f"{when}_{key}_wrong", wrong, ".2f")
        lesson.number(f"{when}_{key}_rude", rude, ".2f")
        lesson.number(f"{when}_{key}_wrong_less_rude", less(wrong, rude), ".2f")
lesson.table("faults", ["rejected for being", *faults, "knowing the true reward"],
             [[fault, *(spread(ranked_right(runs, fault, late), ".2f") for runs in faults.values()),
               spread([run.get(fault, 0.5) for run in oracle], ".2f")] for fault in FAULTS])
figure, axes = lesson.panels(3, height=3.8, sharey=True)
for axis, (name, runs) in zip(axes, faults.items(), strict=True):
    draw_faults(axis, runs)
    axis.set_title(name)
axes[0].set_ylabel("share of held-out pairs ranked right")
axes[2].legend(title="rejected for being", fontsize=8, title_fontsize=8, loc="lower right")
ends = [f"{mean(ranked_right(runs, 'wrong', late)):.0%}" for runs in faults.values()]
lesson.figure("faults", figure,
              f"After {late} steps pairs whose rejected answer is wrong are ranked right in "
              f"{ends[0]} of cases (from the SFT model), {ends[1]} (from scratch) and {ends[2]} "
              "(from scratch, 42 facts). Bands: 95% intervals over five seeds.")

# %% [markdown]
# ## Few pairs, flipped labels, annotators who like length

# %%
annotators = lesson.kept("annotators")
fair_accuracy = over_seeds(annotators["fair"], "heldout")
for key, name in (("fair", "fair"), ("few", "few"), ("fifth", "a fifth flipped"),
                  ("length", "like length")):
    accuracy = over_seeds(annotators[name], "heldout")
    lesson.number(f"accuracy_{key}", accuracy, ".2f")
    if name != "fair":
        lesson.number(f"lost_{key}", less(fair_accuracy, accuracy), ".2f")
    for measure in ("wrong", "rambling"):
        lesson.number(f"{measure}_{key}", over_seeds(annotators[name], measure), ".2f")
lesson.number("accuracy_all_flipped", annotators["all flipped"][0]["heldout"], ".2f")


def cells(name: str, *measures: str) -> list[str]:
    return [spread(over_seeds(annotators[name], measure), ".2f") for measure in measures]


lesson.table("annotators",
             ["annotators", "held-out accuracy", "size of a margin", "wrong", "rambling"],
             [[title, *cells(name, "heldout", "margin", "wrong", "rambling")] for title, name in (
                 ("fair", "fair"), ("a fifth of the labels flipped", "a fifth flipped"),
                 ("like length", "like length"))])
titles = {"few": f"{sizes['few']} pairs, read {sizes['many'] // sizes['few']} times",
          "fair": f"{sizes['many']:,} pairs, read once"}
lesson.table("sizes", ["", "accuracy on training pairs", "on held-out pairs", "calibration error"],
             [[title, *cells(name, "train", "heldout", "calibration_error")]
              for name, title in titles.items()])

# %% [markdown]
# ## Calibration, and what noise does to the margins

# %%
calibrated, noise = lesson.kept("calibration"), lesson.kept("noise")
surest = calibrated["few"][-1]
lesson.number("surest_predicted", surest["predicted"], ".2f")
lesson.number("surest_observed", surest["observed"], ".2f")


def ideal(gap: float, flipped: float) -> float:
    """The margin of whoever learned these annotators' choices exactly."""
    p = 1 / (1 + math.exp(-gap / temperature))
    p = (1 - flipped) * p + flipped * (1 - p)
    return math.log(p / (1 - p))


def draw_calibration(axis: Any) -> None:
    axis.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", linewidth=1)
    for (name, label), marker, colour in zip(titles.items(), "so", COLOURS[1::-1], strict=True):
        axis.plot([b["predicted"] for b in calibrated[name]],
                  [b["observed"] for b in calibrated[name]], marker=marker, color=colour,
                  label=label)
    axis.set(xlabel="predicted preference rate", ylabel="observed preference rate",
             title="As sure as it is right? (held-out pairs)")
    axis.legend(loc="upper left")


def draw_noise(axis: Any) -> None:
    gaps = [0.05 * number for number in range(101)]
    for name, label, flipped, colour, marker in (
            ("fair", "fair annotators", 0.0, COLOURS[0], "o"),
            ("a fifth flipped", "a fifth flipped", 0.2, COLOURS[2], "v"),
            ("all flipped", "all flipped (one seed)", 1.0, COLOURS[3], "^")):
        axis.plot(gaps, [ideal(gap, flipped) for gap in gaps], "--", color=colour, linewidth=1)
        axis.plot(*zip(*noise[name], strict=True), marker=marker, color=colour, label=label)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(xlabel="difference in true reward", ylabel="the model's margin (log-odds)",
             title="What flipped labels teach (dashed: ideal)")
    axis.legend(loc="upper left")


figure, (left, right) = lesson.panels(2, height=3.9)
draw_calibration(left)
draw_noise(right)
lesson.figure("calibration", figure,
              f"Left: where it is surest, the model of {sizes['few']} pairs predicts "
              f"{surest['predicted']:.2f}, and annotators agree in {surest['observed']:.2f} of "
              "cases. Right: a fifth of the labels flipped shrinks the margins and keeps their "
              "sign; all of them flipped turns the model upside down.")

# %% [markdown]
# ## Length

# %%
length = lesson.kept("length")
words = length["words"]
for key in ("fair", "biased"):
    lesson.number(f"one_ramble_{key}", [values[1] for values in length[key]], ".2f")
    lesson.number(f"all_rambles_{key}", [values[-1] for values in length[key]], ".1f")
lesson.number("biased_above_wanted",
              [values[1] - length["wanted"][1] for values in length["biased"]], ".2f")
lesson.number("one_ramble_true", length["true"][1], ".2f")
lesson.number("one_ramble_wanted", length["wanted"][1], ".2f")
lesson.number("all_rambles_true", length["true"][-1], ".1f")


def draw_length(axis: Any) -> None:
    axis.plot(words, length["true"], color="#444444", linestyle="--", label="the true reward")
    axis.plot(words, length["wanted"], color=COLOURS[1], linestyle="--", linewidth=1,
              label="what annotators who like length say")
    for key, label, colour, marker in (
            ("fair", "learned from fair annotators", COLOURS[0], "o"),
            ("biased", "learned from those who like length", COLOURS[1], "s")):
        middles, halves = middles_and_halves(list(zip(*length[key], strict=True)))
        axis.errorbar(words, middles, yerr=halves, color=colour, marker=marker, capsize=3,
                      label=label)
    axis.axvspan(words[1] + 0.5, words[-1] + 0.5, color="grey", alpha=0.12, linewidth=0)
    axis.text(words[-1] + 0.4, 0.02, "more than one phrase: in no training pair", fontsize=8,
              ha="right", transform=axis.get_xaxis_transform())
    axis.set(xlabel="words in the answer", ylabel="reward, less that of the bare answer",
             xticks=words)
    axis.legend(loc="upper left", fontsize=8)


figure, axis = lesson.panels(height=3.8)
draw_length(axis)
fair, biased = (f"{mean(values[1] for values in length[key]):+.1f}" for key in ("fair", "biased"))
lesson.figure("length", figure,
              f"One rambling phrase changes the true reward by {length['true'][1]:+.1f}. Fair "
              f"annotators taught {fair}, those who like length {biased}. Bars: 95% intervals "
              "over five seeds.")

# %% [markdown]
# ## The whole of it

# %%
figure, axis = lesson.panels(height=3.2)
draw_pipeline(axis, {
    "pair": Box(0, 0, "prompt, chosen,\nrejected", "data"),
    "sft": Box(1, -1, "SFT model", "frozen"),
    "reward": Box(1, 0, "reward model:\ntrunk + head", "trained"),
    "scores": Box(2, 0, "two scores,\nread at EOS", "data"),
    "loss": Box(3, 0, "-log sigmoid of\nthe difference", "data"),
}, [("pair", "reward", "bytes"), ("sft", "reward", "copied"),
    ("reward", "scores", ""), ("scores", "loss", "(B, 2)")])
lesson.figure("pipeline", figure,
              "Training a reward model: one model in memory, and no sampling. The SFT model gives "
              "its weights at the start. Afterwards, its answers set the zero.")
lesson.done()
