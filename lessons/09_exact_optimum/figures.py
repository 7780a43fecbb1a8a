# %% [markdown]
# # 9. The exact optimum: the numbers, tables and figures of the article

# %%
from statistics import mean

from lessons.course import Lesson, spread
from minigpt.plots import COLOURS

lesson = Lesson("09_exact_optimum", "figures")
BLUE, RED, GREEN, PINK, ORANGE, SKY = COLOURS
GREY = "#777777"

# %% [markdown]
# ## The bandit, and three ways to its optimum

# %%
bandit, exact, ppo = lesson.kept("bandit"), lesson.kept("exact"), lesson.kept("ppo_paths")
for name, form in (("reward_ref", ".2f"), ("reward_star", ".2f"), ("kl_star", ".2f"),
                   ("start_kl", ".2f"), ("value", ".6f"), ("objective", ".6f"),
                   ("gibbs_error", ".0e")):
    lesson.number(name, bandit[name], form)
lesson.number("exact_100", exact["100"], ".3f")
lesson.number("exact_end", exact["end"], ".0e")
lesson.number("steps", f"{exact['steps']:,}")
lesson.number("dpo_infinite_error", lesson.kept("dpo_infinite_error"), ".0e")
for kind, paths in ppo.items():
    lesson.number(f"ppo_{kind}_15", [path[min(15, len(path) - 1)] for path in paths], ".3f")
    lesson.number(f"ppo_{kind}_end", [path[-1] for path in paths], ".0e")
rollouts = len(ppo["plain"][0])
lesson.number("rollouts", str(rollouts))
lesson.table("clip", ["clip", "KL(π ‖ π*) after 100 rollouts"],
             [[clip, spread(ends, ".4f")] for clip, ends in lesson.kept("clip").items()])

# %%
points = lesson.kept("points")
lesson.table("frontier", ["policy", "KL from the reference", "expected reward", "KL(π ‖ π*)"],
             [[name, f"{kl:.3f}", f"{reward:.3f}",
               "-" if gap is None else f"{gap:.0e}" if gap else "0"]
              for name, (kl, reward, gap) in points.items()])
lesson.number("bon_gap", lesson.kept("bon_gap"), ".2f")
figure, (left, right) = lesson.panels(2, height=3.6)
left.plot(*zip(*lesson.kept("frontier"), strict=True), color="black",
          label="π* for every β (exact)")
for kind, label, look in (
        ("DPO", "DPO, unlimited data", {"marker": "s", "color": GREEN, "markersize": 9,
                                        "markerfacecolor": "none"}),
        ("PPO", "PPO", {"marker": "x", "color": RED, "markersize": 7}),
        ("best", "best of 2, 4, 16, 64", {"marker": "^", "color": ORANGE})):
    shown = [point for name, point in points.items() if name.startswith(kind)]
    left.plot([point[0] for point in shown], [point[1] for point in shown], linestyle="",
              markeredgewidth=1.8, label=label, **look)
left.set(xlabel="KL(π ‖ ref), nats", ylabel="expected reward", title="Reward and its price")
left.legend(loc="lower right")
for (kind, paths), colour in zip(ppo.items(), (BLUE, RED, ORANGE), strict=True):
    label = {"plain": "plain advantages", "whitened": "whitened",
             "decayed": "whitened, rate decays to 0"}[kind]
    for number, path in enumerate(paths):
        right.plot(range(1, rollouts + 1), path, color=colour, alpha=0.6, linewidth=1,
                   label=label if number == 0 else None)
right.set(yscale="log", xlabel="rollout of 256 answers", ylabel="KL(π ‖ π*), nats",
          title="PPO, five seeds each")
right.legend(loc="upper right")
lesson.figure("frontier", figure, "Left: DPO and PPO at β = 2, 0.5 and 0.2 lie on the frontier, "
              "and best-of-n just below it. Right: PPO reaches the optimum, unless whitening keeps "
              "its noise at full size.")

# %% [markdown]
# ## Finite pairs, and answers in no pair

# %%
finite = lesson.kept("finite")
lesson.table("pairs", ["pairs from", "pairs", "KL(π ‖ π*) at the end", "theory",
                       "at its best moment", "seeds with a finite optimum"],
             [[name, f"{int(count):,}", spread(found["end"], ".4f"), f"{found['theory']:.4f}",
               f"{mean(found['best']):.4f}", f"{found['exists']:.0%}"]
              for name, of_source in finite.items() for count, found in of_source.items()])
last = list(finite["the reference"])[-1]
constants = {name: of_source[last]["theory"] * int(last) for name, of_source in finite.items()}
lesson.number("constant_ref", constants["the reference"], ".0f")
lesson.number("constant_even", constants["all answers alike"], ".0f")
lesson.number("many", str(len(finite["the reference"][last]["end"])))
lesson.number("two_stage_difference", lesson.kept("two_stage_difference"), ".0e")

uncovered = lesson.kept("uncovered")
shares, losses, objectives = zip(*uncovered["pushed"], strict=True)
for number, name in enumerate("ij"):
    lesson.number(f"unseen_{name}", uncovered["log_ratios"][number], ".2f")
    lesson.number(f"star_{name}", uncovered["star_log_ratios"][number], ".2f")
lesson.number("unseen_share", uncovered["share"], ".3f")
lesson.number("star_share", uncovered["star_share"], ".2f")
lesson.number("loss_range", max(losses) - min(losses), ".0e")
lesson.number("best_share_at", shares[objectives.index(max(objectives))], ".2f")

figure, (left, right) = lesson.panels(2, height=3.6)
for (name, of_source), colour in zip(finite.items(), (RED, BLUE), strict=True):
    counts = [int(count) for count in of_source]
    ends = [sorted(found["end"]) for found in of_source.values()]
    left.plot(counts, [mean(values) for values in ends], "o-", color=colour,
              label=f"pairs from {name}")
    left.fill_between(counts, [values[len(values) // 10] for values in ends],
                      [values[-1 - len(values) // 10] for values in ends], color=colour, alpha=0.15,
                      linewidth=0)
    left.plot(counts, [found["theory"] for found in of_source.values()], ":", color=colour)
left.set(xscale="log", yscale="log", xlabel="pairs", ylabel="KL(π ‖ π*), nats",
         title="DPO on finite pairs (dotted: theory)")
left.legend(loc="lower left")
right.plot(shares, losses, color=GREEN, label="DPO's loss")
right.plot(shares, objectives, color=BLUE, label="E[r] - β KL")
for name, share, style in (("reference", uncovered["ref_share"], ":"),
                           ("π*", uncovered["star_share"], "--")):
    right.axvline(share, color=GREY, linestyle=style, linewidth=1)
    right.text(share + 0.02, 0.1, name, fontsize=8, color=GREY)
right.set(xlabel="probability of the two answers in no pair", ylabel="loss, or objective",
          title="What the pairs cannot say", ylim=(0, 1))
right.legend(loc="lower right")
lesson.figure("pairs", figure, "Left: the distance falls as 1/N, and it takes "
              f"{constants['the reference'] / constants['all answers alike']:.1f} times as many "
              "pairs from the reference as pairs that cover all answers alike (mean of twenty "
              "seeds; the bands hold the middle 80 %). Right: DPO's loss does not depend on the "
              "probability of the answers that it was not shown; RLHF's objective does.")

# %% [markdown]
# ## Labels that never err, and an optimum out of reach

# %%
certain = lesson.kept("certain")
for name, path in certain.items():
    key = name.lower().replace(", β = ", "_").replace(".", "_")
    lesson.number(f"{key}_tenth", path[len(path) // 10 - 1], ".0f")
    lesson.number(f"{key}_apart", path[-1], ".0f")
certain_steps = 10 * len(next(iter(certain.values())))
lesson.number("certain_steps", f"{certain_steps:,}")
stops, (widths, heights) = lesson.kept("unreachable"), lesson.kept("family")
lesson.table("unreachable", ["what is optimised", "w", "E[r] - β KL", "KL(π ‖ π*)", "KL(π* ‖ π)"],
             [[name, f"{w:.2f}", f"{j:.2f}", f"{reverse:.2f}", f"{forward:.2f}"]
              for name, (w, j, reverse, forward) in stops.items()])

figure, (left, right) = lesson.panels(2, height=3.6)
for (name, path), colour, style in zip(certain.items(), (RED, RED, BLUE, BLUE),
                                       ("-", "--", "-", "--"), strict=True):
    left.plot(range(10, certain_steps + 1, 10), path, style, color=colour, label=name)
left.set(xscale="log", xlabel="step", ylabel="log-ratio of best less worst, nats",
         title="The better answer always wins")
left.legend(loc="upper left")
right.plot(widths, heights, color="black")
for (name, (w, j, _, _)), colour, mark in zip(stops.items(), (BLUE, PINK, RED, ORANGE, GREEN),
                                              "oDs^v", strict=True):
    right.plot(w, j, mark, color=colour, markersize=8, label=name)
right.set(xlabel="w, the policy's only number", ylabel="E[r] - β KL",
          title="Where each method stops", ylim=(-0.2, 0.75))
right.legend(loc="lower right")
lesson.figure("apart", figure, "Left: with labels that never err, DPO's log-ratios keep growing at "
              "both values of β, while IPO's stop. Right: when the policy cannot be π*, each "
              "objective has its own best policy, and DPO's depends on where its pairs come from.")

# %% [markdown]
# ## The language of brackets

# %%
language, distances = lesson.kept("language"), lesson.kept("distances")
lesson.number("answers", str(language["answers"]))
lesson.number("off_one", language["off_one"], ".0e")
lesson.number("language_steps", str(language["steps"]))
for name in ("start", "reward_ref", "reward_star", "kl_star"):
    lesson.number(f"language_{name}", language[name], ".2f")
lesson.table("likeliest", ["answer", "reward", "reference", "π*"],
             [[f"`{text}`" if text else "(nothing)", f"{reward:g}", f"{ref:.3f}", f"{star:.3f}"]
              for text, reward, ref, star in lesson.kept("likeliest")])
keys = ("exact_gradient", "dpo_unlimited", "language_ppo", "dpo_few", "dpo_more", "dpo_many")
rows = []
for key, (method, paths) in zip(keys, distances.items(), strict=True):
    best = [min(path) for path in paths]
    moments = [round(path.index(min(path)) * language["steps"] / (len(path) - 1)) for path in paths]
    rows.append([method, spread([path[-1] for path in paths]), spread(best),
                 ", ".join(map(str, moments))])
    lesson.number(f"{key}_end", [path[-1] for path in paths])
    lesson.number(f"{key}_best", best)
lesson.table("language", ["method", "KL(π ‖ π*) at the end", "at its best moment",
                          "reached at step (five seeds)"], rows)

figure, (left, right) = lesson.panels(2, height=3.6)
methods = list(distances)
for axis, shown, colours in ((left, methods[:3], (BLUE, GREEN, RED)),
                             (right, methods[3:], (ORANGE, PINK, SKY))):
    for method, colour in zip(shown, colours, strict=True):
        for number, path in enumerate(distances[method]):
            scale = language["steps"] / (len(path) - 1)
            axis.plot([step * scale for step in range(len(path))], path, color=colour, alpha=0.7,
                      linewidth=1.3, label=method if number == 0 else None)
    axis.set(yscale="log", xlabel="optimizer step", ylabel="KL(π ‖ π*), nats", ylim=(4e-4, 12))
left.set(title="The true reward, or pairs without end")
right.set(title="A fixed set of pairs")
left.legend(loc="upper right")
right.legend(loc="lower left")
lesson.figure("language", figure, f"All {language['answers']} answers enumerated, five seeds. "
              "Left: exact gradient, PPO and DPO approach π*. Right: on a fixed set of pairs, DPO "
              "gets closer and, where the pairs are few, moves away again.")

rows = []
for count, cells in lesson.kept("classes").items():
    paths = distances[f"DPO, {int(count):,} pairs"]
    rows.append([f"{int(count):,}", spread(cells["three"]), spread(cells["table"]),
                 spread([path[-1] for path in paths]), spread([min(path) for path in paths])])
lesson.table("classes", ["pairs", "reward of 3 numbers, then tilt",
                         f"reward of {language['answers']} numbers, then tilt",
                         "DPO on MiniGPT, at the end", "DPO on MiniGPT, at its best moment"], rows)

# %% [markdown]
# ## Estimators of KL, answers in no pair, best-of-n

# %%
estimators = lesson.kept("estimators")
lesson.table("estimators", ["sum over the tokens of an answer", "mean over π (exact)",
                            "standard deviation of one answer"],
             [["enumerated", f"{estimators['enumerated']:.4f}", "-"]]
             + [[f"`{name}`", f"{value[0]:.4f}", f"{value[1]:.2f}"]
                for name, value in estimators.items() if name != "enumerated"])
unseen = lesson.kept("unseen")
lesson.number("never_drawn", str(unseen["never"]["answers"]))
lesson.number("correlation_never", unseen["never"]["correlation"], ".2f")
lesson.number("correlation_seen", unseen["seen"]["correlation"], ".2f")
for name, value in lesson.kept("best_of_64").items():
    lesson.number(f"bon_{name}", value, ".2f")
lesson.done()
