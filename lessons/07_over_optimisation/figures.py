"""The numbers, tables and figures of lesson 7, from what its experiments kept."""

import math
from functools import reduce
from statistics import mean

import numpy as np

from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.verdict import half_width
from minigpt.plots import COLOURS

lesson = Lesson("07_over_optimisation", "figures")
SEEDS, RUNS, FACTS = lesson.kept("seeds"), lesson.kept("frontier")["runs"], lesson.kept("facts")
NAMES = {"many": "8,000 pairs", "few": "1,000 pairs", "biased": "1,000 pairs, length bias"}
LOOKS = {"many": COLOURS[0], "few": COLOURS[1], "biased": COLOURS[3]}
METHODS = {"best of n": (COLOURS[2], "s"), "DPO": (COLOURS[0], "o"), "PPO": (COLOURS[1], "v")}
STRENGTHS = {method: sorted({run["strength"] for run in RUNS if run["method"] == method})
             for method in METHODS}
# from the gentlest push to the hardest
STRENGTHS |= {method: STRENGTHS[method][::-1] for method in ("DPO", "PPO")}


def over_seeds(*keys):
    """One value of each seed, at this path in what its run kept."""
    return [reduce(lambda found, key: found[key], keys, of_seed) for of_seed in SEEDS]


def of_runs(method, strength, key):
    """One value of each seed, of a method at one strength."""
    return [run[key] for run in RUNS if (run["method"], run["strength"]) == (method, strength)]


def difference(ours, theirs):
    """Paired, seed by seed."""
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def bars(points):
    """Mean over seeds and half of the 95% interval, of each point's values."""
    return np.array([mean(of) for of in points]), np.array([half_width(of) for of in points])


def average(curves):
    """The mean over seeds, at each of their points."""
    return np.mean(curves, axis=0)


def plot_curve(axis, kls, curves, colour, label):
    kl, (value, half) = average(kls), bars(list(zip(*curves, strict=True)))
    axis.plot(kl, value, color=colour, label=label)
    axis.fill_between(kl, value - half, value + half, color=colour, alpha=0.15, linewidth=0)


def over_kl(axis, ylabel, most, ticks):
    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axis.set(xlabel="KL from SFT (nats per response, root scale)", ylabel=ylabel, xlim=(0, most))
    shown = [tick for tick in ticks if tick < most]
    axis.set_xticks(shown, [f"{tick:g}" for tick in shown])


# --- the pipeline --------------------------------------------------------------------------------

figure, axis = lesson.panels(height=3.4)
draw_pipeline(axis, {
    "truth": Box(2, 0, "true reward", "data"), "pairs": Box(3, 0, "1,000 pairs", "data"),
    "prompts": Box(0, 1, "prompts", "data"), "policy": Box(1, 1, "policy", "trained"),
    "answers": Box(2, 1, "answers", "data"),
    "proxy": Box(3, 1, "reward model\n(the proxy)", "frozen"),
    "reference": Box(0, 2, "SFT model\n(reference)", "frozen"), "kl": Box(1, 2, "KL", "data"),
    "loss": Box(2, 2, "advantages\nand losses", "data"),
    "value": Box(3, 2, "value model\n(baseline)", "trained")},
    [("truth", "pairs", "labels"), ("pairs", "proxy", "teach"), ("prompts", "policy", ""),
     ("policy", "answers", "samples"), ("answers", "proxy", "read"),
     ("policy", "kl", "log p"), ("reference", "kl", "log p"), ("kl", "loss", "price"),
     ("proxy", "loss", "score"), ("value", "loss", ""), ("loss", "value", "gradient"),
     ("loss", "policy", "gradient")])
lesson.figure("pipeline", figure, "PPO holds four models and trains two of them. The true reward "
              "reaches the policy only through the labels of the pairs: nothing in the loop asks "
              "whether an answer is good.")

# --- the perfect optimiser of each proxy ---------------------------------------------------------

lesson.number("sft_true", over_seeds("sft", "true_reward"), ".2f")
lesson.number("sft_right", over_seeds("sft", "right"), ".2f")
lesson.number("sft_words", over_seeds("sft", "words"), ".1f")
lesson.number("sft_broken", over_seeds("sft", "broken"), ".2f")
lesson.number("most", [limit["true_reward"][-1] for limit in over_seeds("limit")], ".2f")
lesson.number("bayes", over_seeds("bayes"), ".2f")
lesson.number("accuracy_other", over_seeds("accuracy", "other"), ".2f")
rows, peaks, ends = [], {}, {}
for name in NAMES:
    truth = over_seeds("curves", name, "true_reward")
    top = int(average(truth).argmax())
    end, peak = [curve[-1] for curve in truth], [curve[top] for curve in truth]
    rho = [curve[0] for curve in over_seeds("curves", name, "correlation")]
    found = {"accuracy": over_seeds("accuracy", name), "rho": rho,
             "slope_predicted": over_seeds("curves", name, "slope_predicted"),
             "slope_seen": over_seeds("curves", name, "slope_seen"), "peak": peak, "end": end,
             "fall": difference(peak, end)}
    kl = mean(curve[top] for curve in over_seeds("curves", name, "kl"))
    cells = {key: spread(values, ".2f") for key, values in found.items()}
    cells["peak"] += f" at {kl:.1f}"
    peaks[name], ends[name] = peak, end
    right = over_seeds("curves", name, "right")
    top_right = int(average(right).argmax())
    lesson.number(f"top_right_{name}", [curve[top_right] for curve in right], ".2f")
    lesson.number(f"right_fall_{name}", [curve[top_right] - curve[-1] for curve in right], ".2f")
    rows.append([NAMES[name], *cells.values()])
    for key, values in found.items():
        lesson.number(f"{key}_{name}", values, ".2f")
    for key, form in (("right", ".2f"), ("words", ".1f"), ("broken", ".2f")):
        last = [curve[-1] for curve in over_seeds("curves", name, key)]
        lesson.number(f"end_{key}_{name}", last, form)
lesson.number("many_over_few_at_best", difference(peaks["many"], peaks["few"]), "+.2f")
lesson.number("many_over_few_at_end", difference(ends["many"], ends["few"]), "+.2f")
lesson.table("proxies", ["proxy", "held-out accuracy", "correlation with the truth",
                         "slope at 0, predicted", "slope at 0, measured",
                         "best true reward, at KL", "true reward at the far end", "fall"], rows)

figure, axes = lesson.panels(2, height=3.8)
limit_kl = average(over_seeds("limit", "kl"))
limit_true = average(over_seeds("limit", "true_reward"))
axes[0].plot(limit_kl, limit_true, "k--", label="the truth (the limit)")
for name, colour in LOOKS.items():
    kls = over_seeds("curves", name, "kl")
    plot_curve(axes[0], kls, over_seeds("curves", name, "true_reward"), colour, NAMES[name])
    plot_curve(axes[1], kls, over_seeds("curves", name, "correlation"), colour, NAMES[name])
axes[1].axhline(0, color="grey", linestyle=":", linewidth=1)
over_kl(axes[0], "true reward", 6.2, (0.1, 0.5, 1, 2, 3, 4, 6))
over_kl(axes[1], "correlation of proxy and truth", 4.0, (0.1, 0.5, 1, 2, 3))
axes[0].set_title("The perfect optimiser of ...")
axes[1].set_title("Does the proxy still know good from bad?")
axes[0].legend(loc="lower right")
axes[1].legend(loc="lower left")
starts = [f"{mean(c[0] for c in over_seeds('curves', name, 'correlation')):.2f} ({NAMES[name]})"
          for name in NAMES]
lesson.figure("proxies", figure, "Left: one perfect optimiser, four things to optimise "
              f"({len(SEEDS)} seeds; bands: 95% intervals). Right: among its answers, the "
              f"correlation of proxy and truth starts at {', '.join(starts)}. The harder the "
              "proxy is optimised, the lower it gets.")

# --- best-of-n, DPO and PPO ----------------------------------------------------------------------

rows = []
for method, strengths in STRENGTHS.items():
    for strength in strengths:
        cells = [spread(of_runs(method, strength, key), ".2f")
                 for key in ("kl", "proxy", "true_reward", "broken")]
        wanted = ["", ""] if method == "best of n" else [
            spread([found[key] for found in of_runs(method, strength, "optimum")], ".2f")
            for key in ("true_reward", "broken")]
        rows.append([method, f"{strength:g}", *cells, *wanted])
lesson.table("runs", ["method", "n, beta or kl_coeff", "KL", "proxy", "true reward", "broken",
                      "optimum: true reward", "optimum: broken"], rows)

best = {}
for method, strengths in STRENGTHS.items():
    best[method] = max(strengths, key=lambda s: mean(of_runs(method, s, "true_reward")))
    key, hardest = method.replace(" ", "_").lower(), strengths[-1]
    for where, strength in (("top", best[method]), ("last", hardest)):
        lesson.number(f"{key}_{where}", f"{strength:g}")
        for what in ("true_reward", "proxy", "kl", "broken", "true_reward_whole"):
            lesson.number(f"{key}_{where}_{what}", of_runs(method, strength, what), ".2f")
    for what in ("true_reward", "proxy", "broken", "true_reward_whole"):
        change = difference(of_runs(method, hardest, what), of_runs(method, best[method], what))
        lesson.number(f"{key}_change_{what}", change, "+.2f")
    if method != "best of n":
        found = [[run[what] for run in of_runs(method, hardest, "optimum")]
                 for what in ("true_reward", "broken")]
        lesson.number(f"{key}_optimum_true_reward", found[0], ".2f")
        lesson.number(f"{key}_optimum_broken", found[1], ".2f")
        top = [run["true_reward"] for run in of_runs(method, best[method], "optimum")]
        lesson.number(f"{key}_optimum_change", difference(found[0], top), "+.2f")
most_n = STRENGTHS["best of n"][-1]
lesson.number("most_n", str(most_n))
lesson.number("bon_kl_formula", math.log(most_n) - (most_n - 1) / most_n, ".2f")

figure, axes = lesson.panels(2, height=4.2)
furthest = 1.1 * max(mean(of_runs(m, strengths[-1], "kl")) for m, strengths in STRENGTHS.items())
axes[0].plot([*limit_kl, furthest], [*limit_true, limit_true[-1]], "k--", linewidth=1.4)
for axis, key in zip(axes, ("true_reward", "proxy"), strict=True):
    optimum = [average(over_seeds("curves", "few", name)) for name in ("kl", key)]
    axis.plot(*optimum, color="#777777", linestyle="-.", linewidth=1.4)
    for method, (colour, marker) in METHODS.items():
        kls = [mean(of_runs(method, strength, "kl")) for strength in STRENGTHS[method]]
        value, half = bars([of_runs(method, strength, key) for strength in STRENGTHS[method]])
        axis.errorbar(kls, value, yerr=half, color=colour, marker=marker, markersize=4.5,
                      linewidth=1.2, elinewidth=0.8, label=method)
    over_kl(axis, key.replace("_", " "), furthest, (0.25, 1, 2, 4, 8, 16, 24))
axes[0].set(title="What we want")
axes[1].set(title="What we optimise", ylabel="score of the proxy")
axes[0].plot([], [], color="#777777", linestyle="-.", label="perfect optimiser of the proxy")
axes[0].plot([], [], "k--", linewidth=1.4, label="perfect optimiser of the truth")
axes[0].legend(loc="lower left", fontsize=7.5)
falls = [f"{method} {mean(of_runs(method, best[method], 'true_reward')):.2f} to "
         f"{mean(of_runs(method, strengths[-1], 'true_reward')):.2f}"
         for method, strengths in STRENGTHS.items()]
lesson.figure("hump", figure, "Push harder and harder against a proxy trained on 1,000 pairs "
              f"({len(SEEDS)} seeds; bars: 95% intervals). The true reward falls from the best "
              f"setting to the hardest: {', '.join(falls)}. With best-of-n and PPO the proxy's "
              "score is highest at the hardest setting; with DPO it is not.")

# --- over-optimisation or displacement? ----------------------------------------------------------

def score_of_broken(method, strength):
    """The proxy's mean score of the broken answers less that of the whole ones, seed by seed."""
    keys = ("proxy", "proxy_whole", "broken")
    return [(score - whole) / broken for score, whole, broken
            in zip(*(of_runs(method, strength, key) for key in keys), strict=True) if broken]


figure, axes = lesson.panels(2, height=3.8)
axes[0].plot(*[average(over_seeds("curves", "few", name)) for name in ("kl", "broken")],
             color="#777777", linestyle="-.", linewidth=1.4, label="perfect optimiser of the proxy")
for method, (colour, marker) in METHODS.items():
    kls = [mean(of_runs(method, strength, "kl")) for strength in STRENGTHS[method]]
    for axis, values in ((axes[0], [of_runs(method, s, "broken") for s in STRENGTHS[method]]),
                         (axes[1], [score_of_broken(method, s) for s in STRENGTHS[method]])):
        value, half = bars(values)
        axis.errorbar(kls, value, yerr=half, color=colour, marker=marker, markersize=4.5,
                      linewidth=1.2, elinewidth=0.8, label=method)
over_kl(axes[0], "share of broken answers", furthest, (0.25, 1, 2, 4, 8, 16, 24))
over_kl(axes[1], "score: broken minus whole answers", furthest, (0.25, 1, 2, 4, 8, 16, 24))
axes[0].legend(loc="upper left", fontsize=7.5)
axes[1].axhline(0, color="grey", linestyle=":", linewidth=1)
axes[0].set_title("How much of what it says is broken?")
axes[1].set_title("Does the proxy mind?")
for method, strengths in STRENGTHS.items():
    lesson.number(f"{method.replace(' ', '_').lower()}_last_minds",
                  score_of_broken(method, strengths[-1]), "+.1f")
sft_minds = score_of_broken("best of n", 1)
lesson.number("sft_minds", sft_minds, "+.1f")
for method in ("DPO", "PPO"):
    hardest = STRENGTHS[method][-1]
    lesson.number(f"{method.lower()}_minds_less",
                  difference(score_of_broken(method, hardest), sft_minds), "+.1f")
    lesson.number(f"{method.lower()}_proxy_over_sft",
                  difference(of_runs(method, hardest, "proxy"), of_runs("best of n", 1, "proxy")),
                  ".1f")
    excess = [run["broken"] for run in of_runs(method, hardest, "optimum")]
    lesson.number(f"{method.lower()}_broken_over_optimum",
                  difference(of_runs(method, hardest, "broken"), excess), "+.2f")
shares = {method: mean(of_runs(method, strengths[-1], "broken"))
          for method, strengths in STRENGTHS.items()}
lesson.figure("broken", figure, "Left: the share of broken answers, which contain a made-up word "
              f"or never end. At the hardest setting it is {shares['DPO']:.0%} for DPO and "
              f"{shares['PPO']:.0%} for PPO. Right: the proxy's mean score of broken answers, "
              "minus that of whole ones.")

titles = {"SFT": "SFT", "DPO": f"DPO, beta {STRENGTHS['DPO'][-1]:g}",
          "few": f"PPO, kl_coeff {STRENGTHS['PPO'][-1]:g}"}
# the last of four sampled answers to the last prompt of seed 0: in the full run all are broken
last = {name: row for _, name, *row in SEEDS[0]["samples"]}
lesson.table("samples", ["policy", "a broken answer", "proxy", "true reward"],
             [[title, last[name][0], f"{last[name][1]:+.1f}", f"{last[name][2]:+.1f}"]
              for name, title in titles.items()])

# --- what is hacked ------------------------------------------------------------------------------

MEASURES = {"words": ("words", ".1f"), "right": ("right", ".2f"), "polite": ("polite", ".2f"),
            "evasive": ("evasive", ".2f"), "obedient": ("does as asked", ".2f"),
            "broken": ("broken", ".2f"), "true_reward": ("true reward", ".2f"), "kl": ("KL", ".1f")}
POLICIES = {"sft": "SFT", "few": f"PPO on {NAMES['few']}", "biased": f"PPO on {NAMES['biased']}"}
rows = []
for name, title in POLICIES.items():
    cells = {key: spread(over_seeds("hacked", name, key), form)
             for key, (_, form) in MEASURES.items()}
    rows.append([title, *cells.values()])
    for key, text in cells.items():
        lesson.number(f"ppo_{name}_{key}", text)
lesson.table("hacked", ["policy", *(title for title, _ in MEASURES.values())], rows)

figure, axes = lesson.panels(2, height=3.4)
for axis, key, ylabel in zip(axes, ("words", "right"),
                             ("words per answer", "share of right answers"), strict=True):
    for name, colour in LOOKS.items():
        plot_curve(axis, over_seeds("curves", name, "kl"), over_seeds("curves", name, key), colour,
                   NAMES[name])
    over_kl(axis, ylabel, 6.2, (0.1, 0.5, 1, 2, 3, 4, 6))
axes[0].legend(loc="upper left")
found = [f"{mean(c[-1] for c in over_seeds('curves', name, 'words')):.1f} words and "
         f"{mean(c[-1] for c in over_seeds('curves', name, 'right')):.2f} ({NAMES[name]})"
         for name in NAMES]
lesson.figure("hacked", figure, "What the perfect optimiser of each proxy buys with its KL. At the "
              "hardest push, the mean length of its answers and the share of them that are right "
              f"are {', '.join(found)}.")

counts = list(FACTS["by_pairs"])
faults = ("wrong", "evasive", "rude", "not polite", "rambling", "ignores the request")
lesson.table("facts", ["fault of the rejected answer",
                       *(f"{int(count):,} pairs" for count in counts)],
             [[fault, *(f"{FACTS['by_pairs'][count].get(fault, math.nan):.2f}" for count in counts)]
              for fault in faults])
for count, key in ((counts[0], "early"), (counts[-1], "late")):
    for fault in ("wrong", "rude", "rambling"):
        lesson.number(f"facts_{key}_{fault}", FACTS["by_pairs"][count].get(fault, math.nan), ".2f")
lesson.number("facts_sft_right", FACTS["sft_right"], ".2f")

# --- cures ---------------------------------------------------------------------------------------

untreated = over_seeds("hacked", "few", "true_reward")
least = STRENGTHS["PPO"][-1]
CURES = {"nothing": f"no cure: kl_coeff {least:g}",
         "stop by true_reward": "stop early, by true labels",
         "stop by other": "stop early, by a second model", "firm": "kl_coeff 1",
         "target_kl": "target_kl 1", "minimum": "minimum of 3 reward models",
         "many": NAMES["many"], "best_of_16": "best of 16, no training"}
fixed = {"firm": ("PPO", 1.0), "best_of_16": ("best of n", 16)}
found = {}
for key in CURES:
    if key == "nothing":
        found[key] = untreated, over_seeds("hacked", "few", "kl")
    elif key in fixed:
        found[key] = of_runs(*fixed[key], "true_reward"), of_runs(*fixed[key], "kl")
    else:
        found[key] = over_seeds("cures", key, "true_reward"), over_seeds("cures", key, "kl")
rows = []
for key, (rewards, kls) in found.items():
    gain = difference(rewards, untreated)
    rows.append([CURES[key], spread(kls, ".2f"), spread(rewards, ".2f"),
                 "" if key == "nothing" else spread(gain, "+.2f")])
    name = key.replace(" ", "_")
    lesson.number(f"cure_{name}", rewards, ".2f")
    lesson.number(f"cure_{name}_kl", kls, ".2f")
    lesson.number(f"cure_{name}_gain", gain, "+.2f")
lesson.table("cures", ["cure", "KL", "true reward", "gain over no cure"], rows)
best_over_firm = difference(found["best_of_16"][0], found["firm"][0])
lesson.number("best_of_16_over_firm", best_over_firm, ".2f")
for judge in ("true_reward", "other"):
    lesson.number(f"stop_{judge}", ", ".join(map(str, over_seeds("stops", judge))))
for pairs in ("same pairs", "other pairs"):
    lesson.number(f"shared_errors_{pairs.split()[0]}", over_seeds("shared_errors", pairs), ".2f")

figure, axes = lesson.panels(2, height=3.8, gridspec_kw={"width_ratios": [1, 1.2]})
along = over_seeds("along")
episodes = np.arange(len(along[0])) * 24 // max(1, len(along[0]) - 1)
for key, label, colour in (("proxy", "proxy, trained on", COLOURS[1]),
                           ("other", "a second reward model", COLOURS[3]),
                           ("true_reward", "true reward", "black")):
    plot_curve(axes[0], [episodes], [[seen[key] for seen in run] for run in along], colour, label)
axes[0].set(xlabel="episode", ylabel="reward of held-out answers",
            title=f"PPO on {NAMES['few']}, kl_coeff {least:g}")
axes[0].legend(loc="upper left")
for number, (rewards, _) in enumerate(found.values()):
    axes[1].plot(rewards, [number] * len(rewards), "o", color="#bbbbbb", markersize=4)
    axes[1].errorbar(mean(rewards), number, xerr=half_width(rewards), fmt="s", markersize=5,
                     color=COLOURS[0 if number else 1], capsize=3)
for value, style, text in ((mean(over_seeds("sft", "true_reward")), ":", "SFT"),
                           (limit_true[-1], "--", "most possible")):
    axes[1].axvline(value, color="k", linestyle=style, linewidth=1.2)
    axes[1].text(value, -0.7, text, ha="center", fontsize=8, backgroundcolor="white")
axes[1].set_yticks(range(len(CURES)), list(CURES.values()), fontsize=8)
axes[1].set(xlabel="true reward of held-out answers", ylim=(len(CURES) - 0.4, -1.1),
            xlim=(None, limit_true[-1] + 0.5))
lesson.figure("cures", figure, "Left: the score of the proxy ends at "
              f"{mean(run[-1]['proxy'] for run in along):.1f}, the true reward at "
              f"{mean(untreated):.2f}, and a second reward model, trained on other pairs, does not "
              "object. Right: each cure, beside the same PPO run without one (dots: seeds; bands "
              "and bars: 95% intervals).")

rows, single = [], over_seeds("ensembles", "one", "best_of_n")
for name, title in (("one", "one of them"), ("mean", "mean of 3"), ("minimum", "minimum of 3")):
    cells = [over_seeds("ensembles", name, key) for key in ("best", "end", "best_of_n")]
    gain = difference(cells[-1], single)
    rows.append([title, *(spread(cell, ".2f") for cell in cells),
                 "" if name == "one" else spread(gain, "+.2f")])
    lesson.number(f"ensemble_{name}", cells[-1], ".2f")
    lesson.number(f"ensemble_{name}_gain", gain, "+.2f")
lesson.table("ensembles", ["proxy", "perfect optimiser, best", "perfect optimiser, far end",
                           f"best of {most_n}", "gain over one"], rows)

# --- appendix: the forms of Gao et al. -----------------------------------------------------------

def fit(d, gain, log):
    """Least squares of gain = d (a - b d) or d (a - b log d): a, b, the variance explained."""
    columns = np.stack([d, -d * (np.log(d) if log else d)], 1)
    (a, b), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    left, variance = gain - columns @ np.array([a, b]), ((gain - gain.mean()) ** 2).sum()
    return a, b, 1 - (left**2).sum() / variance if variance > 0 else math.nan


def path_of(method):
    """KL and true reward, means over seeds, of each strength of a method."""
    return [[mean(of_runs(method, strength, key)) for strength in STRENGTHS[method]
             if (method, strength) != ("best of n", 1)] for key in ("kl", "true_reward")]


paths = {"best of n": path_of("best of n"), "DPO, all betas": path_of("DPO"),
         "PPO, all prices": path_of("PPO"),
         f"PPO at {least:g}, along training": [
             average([[seen[key] for seen in run[1:]] for run in along])
             for key in ("kl", "true_reward")]}
rows, fits, ours = [], {}, {}
for name, (kls, rewards) in paths.items():
    ours[name] = np.sqrt(kls), np.array(rewards) - mean(over_seeds("sft", "true_reward"))
    fits[name] = fit(*ours[name], log=False), fit(*ours[name], log=True)
    rows.append([name, f"{min(kls):.1f} to {max(kls):.1f}",
                 *(f"{value:.2f}" for found in fits[name] for value in found)])
for key, name in zip(("bon", "dpo", "prices", "ppo"), paths, strict=True):
    for form, (_, _, explained) in zip(("d", "log"), fits[name], strict=True):
        lesson.number(f"r2_{key}_{form}", explained, ".2f")
lesson.table("gao", ["curve", "KL", "a", "b", "R² of d (a - b d)", "a (log)", "b (log)",
                     "R² of d (a - b log d)"], rows)

figure, axes = lesson.panels(2, height=3.4)
drawn = ("best of n", "PPO, all prices")
for axis, name, colour in zip(axes, drawn, (COLOURS[2], COLOURS[1]), strict=True):
    d, gain = ours[name]
    axis.plot(d, gain, "o", color=colour, label="ours")
    line = np.linspace(0.05, max(d), 80)
    for (a, b, _), bend, style, text in zip(fits[name], (line, np.log(line)), ("-", "--"),
                                            ("d (a - b d)", "d (a - b log d)"), strict=True):
        axis.plot(line, line * (a - b * bend), style, color="#444444", linewidth=1.2, label=text)
    axis.set(xlabel="d, the root of the KL", ylabel="gain in true reward over SFT", title=name)
    axis.legend(loc="lower center")
found = [f"{name} {fits[name][0][2]:.2f} and {fits[name][1][2]:.2f}" for name in drawn]
lesson.figure("gao", figure, "The two forms of Gao et al., fitted to our curves. R² of the "
              f"quadratic and of the logarithmic: {'; '.join(found)}.")
lesson.done()
