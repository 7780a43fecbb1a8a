"""Numbers, tables and figures of the article on PPO, from what experiments.py kept."""

# %%
import math
from statistics import mean

import torch

from lessons.course import Lesson, spread
from lessons.diagrams import Arrow, Box, draw_pipeline
from lessons.start import starting_point
from lessons.verdict import half_width
from minigpt.plots import COLOURS, running_mean
from ppo.loss import ppo_loss

lesson = Lesson("04_ppo", "figures")
measured, curves, scores = (lesson.kept(name) for name in ("measured", "curves", "scores"))
SAYS = {"recipe": "the recipe", "wrong_sign": "KL with the wrong sign",
        "no_clip": "no clipping", "eight": "8 passes over a rollout",
        "eight_no_clip": "8 passes, no clipping", "no_value": "no value model (V = 0, lambda 1)",
        "lambda_0": "lambda 0", "fast": "learning rate x 10"}


def of(run, key):
    """One figure of a run, for each seed."""
    return [seed[key] for seed in measured[run]]


def against(run, other, key="true_reward"):
    """A run less another one, seed by seed."""
    return [a - b for a, b in zip(of(run, key), of(other, key), strict=True)]


# %% [markdown]
# ## Four models in memory

# %%
GRADIENT = COLOURS[1]   # the colour of the models that are trained
figure, axis = lesson.panels(height=4.6)
draw_pipeline(axis, {
    "prompts": Box(0, 0, "prompts", "data"),
    "policy": Box(0, 1, "policy", "trained"),
    "answers": Box(1, 1, "answers", "data"),
    "reference": Box(2, 0, "reference\n(the SFT model)", "frozen"),
    "reward": Box(2, 1, "reward model", "frozen"),
    "value": Box(2, 2, "value model", "trained"),
    "rewards": Box(3.15, 0.5, "reward of each token:\nscore at EOS - beta KL", "data"),
    "advantages": Box(3.15, 2, "advantages,\nreturns", "data"),
    "losses": Box(3.15, 3, "policy loss,\nvalue loss", "data"),
}, [("prompts", "policy", ""), ("policy", "answers", "samples"), ("answers", "reference", ""),
    ("answers", "reward", ""), ("answers", "value", ""),
    Arrow("answers", "rewards", "log-probs of the policy", via=((1, -0.7), (3.15, -0.7))),
    ("reference", "rewards", "log-probs"), ("reward", "rewards", "score"),
    ("rewards", "advantages", "rewards"), ("value", "advantages", "values"),
    ("advantages", "losses", ""),
    Arrow("losses", "policy", "gradients", via=((0, 3),), colour=GRADIENT),
    Arrow("losses", "value", via=((2, 3),), colour=GRADIENT)])
lesson.figure("pipeline", figure, "One episode. Four models are in memory: gradients flow back to "
              "the policy and the value model (orange); reference and reward model are frozen.")
start = starting_point(0, quick=lesson.quick)
lesson.number("weights_policy", f"{start.sft.count_parameters():,}")
lesson.number("weights_value", f"{sum(p.numel() for p in start.reward.parameters()):,}")


# %% [markdown]
# ## The clipped surrogate, and where its gradient is zero

# %%
def surrogate(ratio, advantage):
    """The objective of one token (minus the loss), and its slope in the ratio."""
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    response = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = ppo_loss(log_ratio, torch.zeros(1, 1), torch.full((1, 1), advantage), response)
    loss.backward()
    return -loss.item(), -log_ratio.grad.item() / ratio + 0.0  # d ratio = ratio d log ratio


def draw_surrogate(axis, advantage, title):
    ratios = [0.4 + 0.005 * n for n in range(241)]
    heights, slopes = zip(*(surrogate(ratio, advantage) for ratio in ratios), strict=True)
    flat = [slope == 0 for slope in slopes]
    axis.plot(ratios, [ratio * advantage for ratio in ratios], ":", color="grey",
              label="without clipping")
    axis.plot(ratios, heights, color=COLOURS[0], label="clipped")
    axis.fill_between(ratios, -1.75, 1.75, where=flat, color=COLOURS[1], alpha=0.15,
                      label="gradient is zero")
    axis.axvline(1, color="#444444", linewidth=0.8)
    axis.set(xlabel="ratio pi / pi_old of the token", ylabel="objective of the token", title=title,
             ylim=(0, 1.7) if advantage > 0 else (-1.7, 0))
    axis.legend(loc="lower right" if advantage > 0 else "lower left")


figure, axes = lesson.panels(2, height=3.2)
draw_surrogate(axes[0], 1.0, "better than expected: A = +1")
draw_surrogate(axes[1], -1.0, "worse than expected: A = -1")
lesson.figure("clipping", figure, "A good token that is already 20 % more likely than at the "
              "rollout gains nothing by rising further (left); a bad one that is 20 % less likely "
              "gains nothing by falling further (right). A step in the wrong direction is never "
              "clipped.")

# %% [markdown]
# ## The recipe, with and without its KL penalty

# %%
def show(axis, run, curve, colour, label):
    """One metric of five seeds: the mean of five episodes, and its 95 % interval as a band."""
    smooth = [running_mean(values, 5) for values in curves[run][curve]]
    episodes = range(1, len(smooth[0]) + 1)
    middle = [mean(values) for values in zip(*smooth, strict=True)]
    half = [half_width(values) for values in zip(*smooth, strict=True)]
    axis.plot(episodes, middle, color=colour, label=label)
    axis.fill_between(episodes, [m - h for m, h in zip(middle, half, strict=True)],
                      [m + h for m, h in zip(middle, half, strict=True)], color=colour, alpha=0.15)
    axis.set(xlabel="episode")


def last_ten(run, curve):
    """The mean over the last ten episodes, for each seed."""
    return [mean(values[-10:]) for values in curves[run][curve]]


PENALTIES = {"long": ("beta 0.5", COLOURS[0]), "long_no_kl": ("no penalty", COLOURS[3])}
figure, axes = lesson.panels(3, height=3.2)
for run, (label, colour) in PENALTIES.items():
    for axis, curve in zip(axes, ("objective/scores", "true_reward", "objective/kl_exact"),
                           strict=True):
        show(axis, run, curve, colour, label)
axes[0].set(title="What is maximised", ylabel="score of the reward model")
axes[1].set(title="What is meant", ylabel="true reward")
axes[2].set(title="How far it went", ylabel="KL, nats per response")
for axis in axes:
    axis.legend(loc="best")
lesson.figure("climb", figure, "Mean of five seeds and its 95 % interval, on training prompts. "
              "With the penalty, score and true reward rise together and the KL levels off. "
              "Without it the score rises further, while the true reward falls and the KL grows.")
lesson.number("no_kl_cost", against("long", "long_no_kl"), ".1f")
lesson.number("no_kl_proxy_gain", against("long_no_kl", "long", "proxy"), ".1f")
lesson.number("no_kl_least_kl", min(of("long_no_kl", "kl_nats_per_response")), ".0f")
lesson.number("long_most_kl", max(of("long", "kl_nats_per_response")), ".1f")
gain = [last - first for last, first in zip(of("long", "true_reward"), of("sft", "true_reward"),
                                            strict=True)]
lesson.number("gain", gain, ".2f")
WHAT = {"true_reward": ("true reward", ".2f"), "right_share": ("share of right answers", ".2f"),
        "proxy": ("score of the reward model", ".1f"),
        "finished_share": ("share that ends", ".2f"),
        "kl_nats_per_response": ("KL (nats per response)", ".1f"),
        "response_bytes": ("bytes", ".0f")}
lesson.table("held_out", ["", "SFT", "PPO, beta 0.5", "PPO, no penalty"],
             [[says, *(spread(of(run, key), form) for run in ("sft", "long", "long_no_kl"))]
              for key, (says, form) in WHAT.items()])

# %% [markdown]
# ## The engine room

# %%
figure, axes = lesson.panels(3, height=3.2)
show(axes[0], "long", "objective/entropy", COLOURS[0], "entropy")
axes[0].set(ylabel="nats per token", title="Entropy of the next token", ylim=(0, None))
show(axes[1], "long", "policy/clipfrac_avg", COLOURS[1], "ratio of the policy")
show(axes[1], "long", "val/clipfrac_avg", COLOURS[3], "value")
axes[1].set(ylabel="share of tokens", title="Clipped")
axes[1].legend(loc="best")
show(axes[2], "long", "val/explained_variance", COLOURS[2], "explained variance")
axes[2].axhline(0, color="grey", linewidth=0.8)
axes[2].set(ylabel="share of the variance of returns", title="What the values explain")
first_explained = [values[0] for values in curves["long"]["val/explained_variance"]]
explained = last_ten("long", "val/explained_variance")
lesson.figure("health", figure, "Five seeds of the recipe. Entropy falls but stays above 0; few "
              "ratios are clipped; the explained variance of the values starts at "
              f"{mean(first_explained):.2f} and is {mean(explained):.2f} in the last ten episodes.")
lesson.number("first_explained", first_explained, ".2f")
lesson.number("clip_fraction", [mean(values) for values in curves["long"]["policy/clipfrac_avg"]],
              ".3f")

# %% [markdown]
# ## One thing changed

# %%
rows = [["the SFT model", spread(of("sft", "true_reward"), ".2f"), "",
         spread(of("sft", "proxy"), ".1f"), "0", spread(of("sft", "response_bytes"), ".0f")]]
for run, says in SAYS.items():
    rows.append([says, spread(of(run, "true_reward"), ".2f"),
                 "" if run == "recipe" else spread(against(run, "recipe"), "+.2f"),
                 spread(of(run, "proxy"), ".1f"), spread(of(run, "kl_nats_per_response"), ".1f"),
                 spread(of(run, "response_bytes"), ".0f")])
lesson.table("ablation", ["run", "true reward", "difference to the recipe", "score", "KL (nats)",
                          "bytes"], rows)
lesson.number("wrong_sign_least_kl", min(of("wrong_sign", "kl_nats_per_response")), ".0f")
peaks = [max(values) - values[0] for values in scores["wrong_sign"]]
lesson.number("wrong_sign_peak", peaks, ".1f")
lesson.number("fast_bytes", mean(of("fast", "response_bytes")), ".0f")
lesson.number("fast_proxy", of("fast", "proxy"), ".1f")
lesson.number("recipe_proxy", of("recipe", "proxy"), ".1f")
lesson.number("no_clip_cost_at_eight", against("eight", "eight_no_clip"), ".1f")
lesson.number("no_clip_cost", against("recipe", "no_clip"), ".2f")
lesson.number("no_value_cost", against("recipe", "no_value"), ".2f")

gaps = {run: against(run, "recipe") for run in SAYS if run != "recipe"}
order = sorted(gaps, key=lambda run: mean(gaps[run]))
told = [run for run in order if abs(mean(gaps[run])) > half_width(gaps[run])]
figure, axis = lesson.panels(height=3.4)
figure.set_figwidth(7.0)
for row, run in enumerate(order):
    axis.plot(gaps[run], [row] * len(gaps[run]), "o", color=COLOURS[0], alpha=0.4, markersize=4)
    axis.errorbar(mean(gaps[run]), row, xerr=half_width(gaps[run]), fmt="D", color=COLOURS[1],
                  capsize=4, markersize=5)
axis.axvline(0, color="grey", linewidth=0.8)
axis.set_yticks(range(len(order)), [SAYS[run] for run in order])
axis.set(xlabel="true reward minus the recipe's, same seed")
lesson.figure("ablation", figure, "Blue: five seeds of 20 episodes. Orange: their mean and its "
              f"95 % interval. Of {len(order)} changes, {len(told)} have an interval that excludes "
              "0.")

# %% [markdown]
# ## Three estimators of the KL, against the exact one

# %%
ESTIMATORS = ("k1", "k2", "k3")
POLICIES = {"near": "3 episodes", "long": "the recipe (60)", "long_no_kl": "no penalty (60)",
            "wrong_sign": "wrong sign (20)"}
kept = lesson.kept("estimators")


def relative(policy, name):
    """The mean of an estimator over the exact KL, for each seed."""
    return [seed["mean"][name] / seed["mean"]["exact"] for seed in kept[policy]]


def deviations(policy, name):
    return [seed["sd"][name] for seed in kept[policy]]


rows = []
for policy, says in POLICIES.items():
    rows.append([says, spread([seed["mean"]["exact"] for seed in kept[policy]], ".2f")])
    for name in ESTIMATORS:
        rows[-1] += [spread(relative(policy, name), ".2f"), spread(deviations(policy, name), ".1f")]
    noisier = [k3 - k1 for k1, k3 in zip(deviations(policy, "k1"), deviations(policy, "k3"),
                                         strict=True)]
    lesson.number(f"k3_noisier_{policy}", noisier, ".1f")
lesson.table("estimators", ["policy", "exact KL per token", "k1 / exact", "sd k1", "k2 / exact",
                            "sd k2", "k3 / exact", "sd k3"], rows)
lesson.number("k2_long", relative("long", "k2"), ".1f")
lesson.number("k2_wrong_sign", relative("wrong_sign", "k2"), ".1f")
lesson.number("wrong_samples", [-seed["mean"]["k1"] for seed in kept["of_reference_samples"]],
              ".2f")
lesson.number("right_samples", [seed["mean"]["k1"] for seed in kept["long"]], ".2f")

# %%
figure, axes = lesson.panels(2, height=3.3)
for n, name in enumerate(ESTIMATORS):
    places = [place + 0.22 * (n - 1) for place in range(len(POLICIES))]
    axes[0].errorbar(places, [mean(relative(policy, name)) for policy in POLICIES],
                     yerr=[half_width(relative(policy, name)) for policy in POLICIES],
                     fmt="o", color=COLOURS[n], capsize=3, label=name)
    axes[1].plot(places, [deviations(policy, name) for policy in POLICIES], "o", color=COLOURS[n],
                 alpha=0.6, markersize=4)
axes[0].axhline(1, color="grey", linewidth=0.8)
axes[0].set(ylabel="mean of the estimate / exact KL", title="Bias", ylim=(0, None))
axes[1].set(ylabel="standard deviation (nats)", title="Noise of a single token", yscale="log")
axes[0].legend(loc="upper left")
for axis in axes:
    axis.set_xticks(range(len(POLICIES)), POLICIES.values(), fontsize=7.5)
lesson.figure("estimators", figure, "Left: five seeds and 95 % intervals. k1 and k3 have the "
              "right mean everywhere, k2 does not. Right: each dot is a seed. Far from the "
              "reference k3 is noisier than k1.")
lesson.done()
