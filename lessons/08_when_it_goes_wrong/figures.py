# %% [markdown]
# # 8. When it goes wrong: the numbers, tables and figures of the article

# %%
from collections.abc import Sequence

import torch

from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.verdict import half_width
from minigpt.plots import COLOURS

lesson = Lesson("08_when_it_goes_wrong", "figures")
HEALTHY, BROKEN = COLOURS[:2]


def column(results: Sequence[dict[str, float]], key: str) -> float | list[float]:
    """A figure of each run, or of the only one."""
    values = [result[key] for result in results]
    return values if len(values) > 1 else values[0]


def numbers(prefix: str, results: Sequence[dict[str, float]], forms: dict[str, str]) -> None:
    for key, form in forms.items():
        lesson.number(f"{prefix}_{key}", column(results, key), form)


def key_of(name: str) -> str:
    return name.lower().replace(" ", "_").replace(".", "_")


# %% [markdown]
# ## SFT

# %%
lesson.table("targets", ["what counts", "scored targets", "for the first, it reads",
                         "and must predict", "ends scored"], lesson.kept("targets"))
lesson.number("example_row", lesson.kept("example_row"))
lesson.number("question", lesson.kept("question"))
lesson.number("sft_steps", str(lesson.kept("sft_steps")))
lesson.number("longest", str(lesson.kept("cut")["tokens"]))
lesson.number("cut_share", f"{lesson.kept('cut')['share']:.0%}")

sft, says = lesson.kept("sft"), lesson.kept("says")
shown = ("last", "heldout", "ends", "whole", "right")
lesson.table("sft", ["run", "loss it reports at the end", "held-out loss", "ends",
                     "whole sentences", "right", "says (seed 0)"],
             [[name, *(spread(column(results, key), ".2f") for key in shown),
               f"`{says[name][:36]!r}`"] for name, results in sft.items()])
for name in ("healthy", "PAD is EOS", "prompt not masked", "mask one late"):
    numbers(f"sft_{key_of(name)}", sft[name], dict.fromkeys(("first", *shown), ".2f"))
for name in ("PAD is EOS", "prompt not masked", "mask one late"):
    differences = [broken["last"] - healthy["last"]
                   for broken, healthy in zip(sft[name], sft["healthy"], strict=True)]
    lesson.number(f"sft_{key_of(name)}_reports_less", differences, "+.2f")

# %% [markdown]
# ## Step 0 of DPO

# %%
zero, margins = lesson.kept("step_zero"), lesson.kept("margins_at_zero")
lesson.table("step_zero", ["reference", "loss", "mean margin", "mean size of a margin"],
             [[name, *(spread(column(results, key), form) for key, form in
                       (("loss", ".3f"), ("margin", ".2f"), ("size", ".2f")))]
              for name, results in zero.items()])
forms = {"loss": ".2f", "expected": ".2f", "size": ".1f", "margin": ".1f"}
numbers("dropout", zero["its own copy, dropout 0.1"], forms)
numbers("little_dropout", zero["its own copy, dropout 0.01"], forms)
numbers("other_sft", zero["an SFT model of another seed"], forms)

figure, axis = lesson.panels(height=3.0)
for place, (name, values) in enumerate(reversed(margins.items())):
    noise = torch.rand(len(values), generator=torch.Generator().manual_seed(0)) * 0.5 - 0.25
    axis.scatter(values, place + noise, s=5, alpha=0.45, linewidths=0,
                 color=HEALTHY if name == "its own copy" else BROKEN)
axis.set_yticks(range(len(margins)), list(reversed(margins)))
axis.set_xscale("symlog", linthresh=1)
axis.set(xlabel="margin of one pair at step 0 (β times nats)", ylabel="reference")
lesson.figure("step_zero", figure, "Before training. With its own copy as the reference, every "
              f"margin is exactly 0. Each dot is one of {len(values)} pairs (seed 0).")
assert all(result["size"] == 0 for result in zero["its own copy"]), "the caption says: exactly 0"

# %% [markdown]
# ## DPO

# %%
dpo = lesson.kept("dpo")
columns = {"loss, step 0": ("first_loss", ".2f"), "loss, last 10": ("last_loss", ".2f"),
           "training accuracy": ("last_accuracy", ".2f"), "held-out accuracy": ("heldout", ".2f"),
           "KL (nats)": ("kl", ".1f"), "true reward": ("reward", ".2f")}
lesson.table("dpo", ["run", *columns],
             [[name, *(spread(column(results, key), form) for key, form in columns.values())]
              for name, results in dpo.items()])
for name, results in dpo.items():
    numbers(f"dpo_{key_of(name)}", results, {
        "first_loss": ".2f", "last_loss": ".2f", "last_accuracy": ".2f", "heldout": ".2f",
        "kl": ".1f", "reward": ".2f", "last_margin": ".1f", "nats": ".1f", "on_32": ".2f",
        "zero_share": ".0%", "largest": ".0f"})
for key, form in (("reward", "+.2f"), ("kl", "+.1f"), ("heldout", "+.3f")):
    lesson.number(f"dpo_other_less_healthy_{key}", [
        other[key] - healthy[key] for other, healthy in
        zip(dpo["other SFT as reference"], dpo["healthy"], strict=True)], form)
lesson.number("swapped_one_less", [1 - r["heldout"] for r in dpo["labels swapped"]], ".2f")
lesson.number("first_accuracies", ", ".join(f"{r['first_accuracy']:.2f}" for r in dpo["healthy"]))
lesson.number("sft_reward", lesson.kept("sft_reward"), ".2f")
lesson.number("bayes", lesson.kept("bayes"), ".2f")
numbers("leak", lesson.kept("leaks"), {"twins": ".2f", "leaked": ".2f", "honest": ".2f"})


# %%
def dots(axis, key: str, marker: str, colour: str, label: str | None = None) -> None:
    """One dot per run, with the 95 % interval where there are five seeds."""
    for place, results in enumerate(reversed(dpo.values())):
        values = [result[key] for result in results]
        bar = half_width(values) if len(values) > 1 else None
        axis.errorbar(sum(values) / len(values), place, xerr=bar, fmt=marker, color=colour,
                      markersize=7, capsize=3, label=label if place == 0 else None,
                      markerfacecolor="none" if marker == "s" else colour)


figure, (left, right) = lesson.panels(2, height=3.8, sharey=True)
dots(left, "last_accuracy", "s", BROKEN, "in training, last 10 steps")
dots(left, "heldout", "o", HEALTHY, "on held-out pairs")
left.set_yticks(range(len(dpo)), list(reversed(dpo)))
left.set(xlabel="accuracy", xlim=(0, 1.02), title="What the accuracies say")
left.legend(loc="lower left", bbox_to_anchor=(0, 0.18))
dots(right, "reward", "o", HEALTHY)
right.axvline(sum(lesson.kept("sft_reward")) / len(lesson.kept("sft_reward")), color="grey",
              linestyle=":")
right.set(xlabel="true reward (dotted: before training)", title="What the answers are worth")
lesson.figure("dpo", figure, "DPO gone wrong. Swapped labels look healthy in training and wrong on "
              "held-out pairs. With a rate 30 times too high, accuracy is fair on both, and the "
              "answers are worthless. Bars: 95 % intervals over five seeds; runs without a bar are "
              "seed 0 alone.")

# %% [markdown]
# ## PPO

# %%
ppo, curves = lesson.kept("ppo"), lesson.kept("ppo_curves")
lesson.number("episodes", str(lesson.kept("episodes")))
lesson.table("ppo", ["run (seed 0)", "ratio, first update", "exact KL, episode 1",
                     "answers that end, episode 1", "last score", "last logged KL",
                     "last exact KL", "true reward"],
             [[name, f"{r['ratio']:.4f}", f"{r['first_exact']:.2f}", f"{r['ends']:.2f}",
               f"{r['score']:.1f}", f"{r['kl']:.1f}", f"{r['exact']:.1f}", f"{r['reward']:.2f}"]
              for name, r in ppo.items()])
for name, result in ppo.items():
    numbers(f"ppo_{key_of(name)}", [result], {
        "ratio": ".1f", "score": ".1f", "kl": ".0f", "exact": ".0f", "reward": ".2f",
        "ends": ".2f", "first_exact": ".1f", "updates": ".0f", "bytes": ".0f", "true_kl": ".1f",
        "max": ".0f"})
placed = lesson.kept("score_placed")
lesson.number("score_on_eos", placed["on EOS"], ".2f")
lesson.number("score_on_pad", placed["on PAD, with a value there"], ".2f")
lesson.number("score_masked", placed["on PAD, masked"], ".0f")

figure, (left, right) = lesson.panels(2)
for name, colour in zip(("healthy", "rate x 10", "kl_coeff 0.01"), COLOURS, strict=False):
    for axis, metric in ((left, "objective/scores"), (right, "objective/kl_exact")):
        episodes = range(1, len(curves[name][metric]) + 1)
        axis.plot(episodes, curves[name][metric], color=colour, label=name)
left.set(xlabel="episode", ylabel="mean score", title="What everybody watches")
right.set(xlabel="episode", ylabel="exact KL (nats per response)", title="What else is logged")
left.legend(loc="lower right")
rewards = {name: f"{result['reward']:.2f}" for name, result in ppo.items()}
lesson.figure("ppo", figure, "PPO (seed 0). With too small a KL penalty (kl_coeff 0.01) the score "
              "looks like the healthy run's. The KL does not, and the true reward is "
              f"{rewards['kl_coeff 0.01']} instead of {rewards['healthy']}.")

# %% [markdown]
# ## What the library refuses, and where to look

# %%
lesson.table("refusals", ["what is wrong", "what the library says"], lesson.kept("refusals"))
lesson.number("collapse", "; ".join(lesson.kept("signs")) or "(nothing)")
figure, axis = lesson.panels(height=4.4)
draw_pipeline(axis, {
    "rows": Box(0, 0, "rows", "data"), "batch": Box(1, 0, "ids and mask", "data"),
    "policy": Box(2, -0.6, "policy", "trained"), "reference": Box(2, 0.6, "reference", "frozen"),
    "loss": Box(3, 0, "loss, log", "data"), "says": Box(3, -1.2, "samples", "data"),
    "heldout": Box(3, 1.2, "held-out rows", "data"),
}, [("rows", "batch", "A"), ("batch", "policy", ""), ("batch", "reference", ""),
    ("policy", "loss", "B"), ("reference", "loss", "C"), ("policy", "says", "D"),
    ("heldout", "loss", "E")])
lesson.figure("pipeline", figure, "Five places to look. A: print what is scored. B, C: step 0, "
              "where policy and reference must agree. D: read samples. E: rows never trained on.")
lesson.done()
