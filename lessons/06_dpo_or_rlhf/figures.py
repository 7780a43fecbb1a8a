"""The article's numbers, tables and figures, from what experiments.py kept."""

from statistics import mean

from lessons.course import Lesson, spread
from lessons.diagrams import COLUMN, ROW, Box, draw_pipeline
from lessons.start import DPO, PPO, SIZE
from lessons.verdict import half_width
from minigpt.model import MiniGPT
from minigpt.plots import COLOURS

lesson = Lesson("06_dpo_or_rlhf", "figures")
NAMES = {"SFT": "SFT", "best of n": "best of 16", "PPO": "reward model + PPO", "DPO": "DPO"}
COLOUR = {"SFT": "#777777", "best of n": COLOURS[2], "PPO": COLOURS[1], "DPO": COLOURS[0]}
TEMPERATURE = 0.35  # of the annotators (data/world.py)


def of_seeds(runs, *path):
    """One figure of every seed, found by its keys."""
    values = []
    for run in runs:
        for key in path:
            run = run[key]
        values.append(run)
    return values


def gap(runs, more, less):
    """A difference within each seed, between what two paths of keys lead to."""
    return [a - b for a, b in zip(of_seeds(runs, *more), of_seeds(runs, *less), strict=True)]


def error_bars(axis, xs, groups, colour, label):
    """Mean and 95 % interval of each group of seeds, with the seeds as dots behind."""
    axis.errorbar(xs, [mean(group) for group in groups], [half_width(group) for group in groups],
                  fmt="o-", color=colour, label=label, capsize=3, markersize=5)
    for x, group in zip(xs, groups, strict=True):
        axis.plot([x] * len(group), group, ".", color=colour, alpha=0.35, markersize=5)


# --- side by side ---------------------------------------------------------------------------------

def side_by_side(main, seconds):
    """Results, what differs besides the method, and what each costs."""
    rows = []
    for label, key, form in (
            ("true reward", "true_reward", ".2f"), ("right answers", "right_share", ".2f"),
            ("KL (nats per response)", "kl", ".2f"), ("share of the possible gain", "share", ".2f"),
            ("win rate against SFT", "win_rate", ".2f"),
            ("preference accuracy", "accuracy", ".3f")):
        values = {name: of_seeds(main, name, key) for name in NAMES if key in main[0][name]}
        rows.append([label, *(spread(values[name], form) if name in values else "-"
                              for name in NAMES)])
        for name in values:
            lesson.number(f"{key}_{name.split()[0].lower()}", values[name], form)
    tilts = {name: f"exp(r / {TEMPERATURE * beta:g})"
             for name, beta in (("PPO", PPO["kl_coeff"]), ("DPO", DPO["beta"]))}
    times = {"best of n": mean(of_seeds(seconds, "reward")) / mean(of_seeds(seconds, "DPO")),
             "PPO": (mean(of_seeds(seconds, "reward")) + mean(of_seeds(seconds, "PPO")))
             / mean(of_seeds(seconds, "DPO"))}
    lesson.number("time_reward", times["best of n"], ".1f")
    lesson.number("time_ppo", times["PPO"], ".1f")
    unit = 4 * sum(p.numel() for p in MiniGPT(**SIZE).parameters()) / 2**20  # float32, in MB
    rows += [["learns from", "-", "nothing", "its own answers", "the pairs"],
             ["its target: SFT times", "-", "-", tilts["PPO"], tilts["DPO"]],
             ["reads each pair", "-", "twice", "twice (reward model)", "once"],
             ["models held (trained)", "1 (0)", "2 (0)", "4 (2)", "2 (1)"],
             ["their weights (MB)", *(f"{count * unit:.1f}" for count in (1, 2, 4, 2))],
             ["with gradients and Adam (MB)", *(f"{count * unit:.1f}" for count in (1, 4, 10, 5))],
             ["training time (DPO: 1)", "0.0", f"{times['best of n']:.1f}", f"{times['PPO']:.1f}",
              "1.0"]]
    lesson.table("side_by_side", ["", *NAMES.values()], rows)


def differences(main):
    """Who is ahead of whom, within each seed."""
    rows = []
    for first, second in (("best of n", "PPO"), ("best of n", "DPO"), ("PPO", "DPO")):
        row = [f"{NAMES[first]} minus {NAMES[second]}"]
        for key, form in (("true_reward", "+.2f"), ("share", "+.2f"), ("kl", "+.2f")):
            row.append(spread(gap(main, (first, key), (second, key)), form))
        rows.append(row)
    lesson.table("differences", ["", "true reward", "share of the possible gain", "KL"], rows)
    each = gap(main, ("PPO", "true_reward"), ("DPO", "true_reward"))
    lesson.number("gap_each", ", ".join(f"{value:+.2f}" for value in each))
    lesson.number("gap", each, "+.2f")
    lesson.number("gap_share", gap(main, ("PPO", "share"), ("DPO", "share")), "+.2f")
    lesson.number("gap_kl", gap(main, ("PPO", "kl"), ("DPO", "kl")), "+.2f")
    lesson.number("gap_accuracy", gap(main, ("DPO", "accuracy"), ("best of n", "accuracy")),
                  "+.3f")
    lesson.number("gap_accuracy_ppo", gap(main, ("DPO", "accuracy"), ("PPO", "accuracy")), "+.3f")


def frontier(main, limits):
    """Reward over KL: the limit, where each beta aims, where each method ended."""
    figure, axis = lesson.panels(height=3.9)
    for number, limit in enumerate(limits):
        axis.plot(limit["kls"], limit["rewards"], color="grey", alpha=0.5, linewidth=1,
                  label=None if number else "limit for any policy")
    for name, colour in COLOUR.items():
        axis.plot(of_seeds(main, name, "kl"), of_seeds(main, name, "true_reward"), "o",
                  color=colour, label=NAMES[name], markersize=6)
    for name in ("PPO", "DPO"):
        aims = [limit["aims"][name] for limit in limits]
        axis.plot(of_seeds(aims, "kl"), of_seeds(aims, "true_reward"), "*", color=COLOUR[name],
                  markersize=11, markeredgecolor="white", markeredgewidth=0.6,
                  label=f"where {name}'s beta aims")
        for key in ("kl", "true_reward"):
            lesson.number(f"aim_{key}_{name.lower()}", of_seeds(aims, key), ".2f")
            lesson.number(f"{key}_over_aim_{name.lower()}", [
                run[name][key] - aim[key] for run, aim in zip(main, aims, strict=True)], "+.2f")
    furthest = max(of_seeds(main, "PPO", "kl") + of_seeds(main, "DPO", "kl"))
    axis.set(xlabel="KL from the SFT model (nats per response)", xlim=(-0.1, furthest + 0.3),
             ylabel="true reward (held-out prompts)",
             title=f"Same pairs, same start, three methods ({len(main)} seeds)")
    axis.legend(loc="lower right", ncols=2)
    lesson.figure("frontier", figure, "Share of the gain that was possible at each one's KL: "
                  + ", ".join(f"{NAMES[name]} {spread(of_seeds(main, name, 'share'), '.2f')}"
                              for name in NAMES if name != "SFT")
                  + " (means of five seeds, 95 % intervals).")


# --- wrong learning rates -------------------------------------------------------------------------

def rates(runs):
    factors = list(runs[0]["DPO"])
    kinds = (("true_reward", "true reward (held-out prompts)"),
             ("kl", "KL from SFT (nats per response)"))
    figure, axes = lesson.panels(2)
    for axis, (key, label) in zip(axes, kinds, strict=True):
        for shift, name in ((0.97, "DPO"), (1.03, "PPO")):
            error_bars(axis, [shift * float(factor) for factor in factors],
                       [of_seeds(runs, name, factor, key) for factor in factors], COLOUR[name],
                       name)
        axis.set(xscale="log", xlabel="learning rate / that of the recipe", ylabel=label)
        axis.set_xticks([float(factor) for factor in factors], factors)
        axis.minorticks_off()
    axes[1].set(yscale="log")
    start = mean(of_seeds(lesson.kept("main"), "SFT", "true_reward"))
    axes[0].axhline(start, color="grey", linestyle=":")
    axes[0].text(1, start, "SFT", va="bottom", fontsize=8, color="#444444")
    axes[0].legend(loc="lower left")
    ends = [f"{name} ends {spread(of_seeds(runs, name, '10', 'kl'), '.1f')} nats from SFT with a "
            f"true reward of {spread(of_seeds(runs, name, '10', 'true_reward'), '.1f')}"
            for name in ("DPO", "PPO")]
    lesson.figure("rates", figure, "At ten times the learning rate " + ", and ".join(ends)
                  + " (five seeds, 95 % intervals).")
    for name in ("DPO", "PPO"):
        for factor in factors:
            for key in ("true_reward", "kl"):
                lesson.number(f"{key}_{name.lower()}_x{factor}",
                              of_seeds(runs, name, factor, key), ".2f")
        for what, key in (("loss", "true_reward"), ("kl_rise", "kl")):
            lesson.number(f"{what}_{name.lower()}_x3",
                          gap(runs, (name, "3", key), (name, "1", key)), "+.2f")
    for name, said in lesson.kept("says_at_x10").items():
        lesson.number(f"says_{name.lower()}", repr(said["answer"][:60]).replace("`", "'"))
        lesson.number(f"asked_{name.lower()}", said["prompt"])


# --- few pairs ------------------------------------------------------------------------------------

def few_pairs(runs):
    rows = []
    for count in runs[0]:
        for name in ("DPO", "PPO"):
            rows.append([count, NAMES[name],
                         *(spread(of_seeds(runs, count, name, key), form) for key, form in
                           (("true_reward", ".2f"), ("kl", ".2f"), ("right_share", ".2f"),
                            ("accuracy", ".3f")))])
    lesson.table("few", ["different pairs", "", "true reward", "KL", "right answers",
                         "preference accuracy (PPO: of its reward model)"], rows)
    few, many = runs[0]
    for name in ("DPO", "PPO"):
        lesson.number(f"few_change_{name.lower()}", gap(
            runs, (few, name, "true_reward"), (many, name, "true_reward")), "+.2f")
        lesson.number(f"few_change_kl_{name.lower()}", gap(
            runs, (few, name, "kl"), (many, name, "kl")), "+.2f")
    for which, count in (("few", few), ("many", many)):
        lesson.number(f"{which}_gap", gap(runs, (count, "PPO", "true_reward"),
                                          (count, "DPO", "true_reward")), "+.2f")
        lesson.number(f"{which}_gap_accuracy", gap(runs, (count, "DPO", "accuracy"),
                                                   (count, "PPO", "accuracy")), "+.3f")
        lesson.number(f"{which}_kl_dpo", of_seeds(runs, count, "DPO", "kl"), ".2f")


# --- prompts of another kind ----------------------------------------------------------------------

LABELS = {"SFT": "SFT", "DPO": "DPO", "PPO": "PPO",
          "DPO, labels for all": "DPO, labels for\nall kinds",
          "PPO, labels for all": "PPO, labels for\nall kinds"}


def another_kind(runs):
    figures = of_seeds(runs, "figures")
    colours = [COLOUR[name.split(",")[0]] for name in LABELS]
    figure, axes = lesson.panels(2, height=3.6, sharey=True)
    for axis, key, label in ((axes[0], "true_reward", "true reward"),
                             (axes[1], "obedient", "share answered in a sentence")):
        for row, (name, colour) in enumerate(zip(LABELS, colours, strict=True)):
            values = of_seeds(figures, name, key)
            axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.75)
        axis.set(xlabel=f"{label} (a dot per seed)", ylim=(len(LABELS) - 0.5, -0.5))
    axes[0].set_yticks(range(len(LABELS)), LABELS.values())
    lesson.figure("shifted", figure, "Asked for a sentence, which no pair asks for: "
                  + ", ".join(f"{' '.join(LABELS[name].split())} "
                              f"{spread(of_seeds(figures, name, 'true_reward'), '.2f')}"
                              for name in LABELS) + " (true reward, five seeds, 95 % intervals).")
    for name in LABELS:
        short = name.lower().replace(",", "").replace(" ", "_")
        for key in ("true_reward", "obedient"):
            lesson.number(f"{key}_{short}_new", of_seeds(figures, name, key), ".2f")
    for short, more, less in (
            ("unlabelled", "DPO", "PPO"), ("habit_dpo", "DPO", "SFT"), ("habit_ppo", "PPO", "SFT"),
            ("labels_dpo", "DPO, labels for all", "DPO"),
            ("labels_ppo", "PPO, labels for all", "PPO")):
        lesson.number(f"gap_{short}", gap(figures, (more, "true_reward"), (less, "true_reward")),
                      "+.2f")
        lesson.number(f"gap_obedient_{short}", gap(figures, (more, "obedient"),
                                                   (less, "obedient")), "+.2f")
    for kind in ("known", "new"):
        lesson.number(f"reward_accuracy_{kind}", of_seeds(runs, "accuracy", kind), ".3f")
    counts = of_seeds(runs, "prompts")
    lesson.number("new_prompts", f"{min(counts)} to {max(counts)}")


# --- the two pipelines ----------------------------------------------------------------------------

def bent_arrow(axis, start, end, bend, colour, label, at):
    """An arrow (from, to: points on the grid) beside the straight ones, and its label."""
    (x0, y0), (x1, y1) = ((COLUMN * column, -ROW * row) for column, row in (start, end))
    axis.annotate("", (x1, y1), (x0, y0), arrowprops={
        "arrowstyle": "-|>", "color": colour, "linewidth": 1.4,
        "connectionstyle": f"arc3,rad={bend}"})
    axis.text(COLUMN * at[0], -ROW * at[1], label, ha="center", fontsize=7.5, color=colour)


def pipelines():
    figure, (left, right) = lesson.panels(2)
    figure.set_size_inches(10.4, 3.7)
    draw_pipeline(left, {
        "pairs": Box(0, 1.5, "preference\npairs", "data"),
        "policy": Box(1.25, 1, "policy", "trained"),
        "reference": Box(1.25, 2, "reference\n(SFT)", "frozen"),
        "loss": Box(2.5, 1.5, "DPO loss", "data"),
    }, [("pairs", "policy", ""), ("pairs", "reference", ""), ("policy", "loss", "log-probs"),
        ("reference", "loss", "log-probs")])
    bent_arrow(left, (2.5, 1.2), (1.6, 0.95), 0.35, COLOURS[1], "gradient", (2.45, 0.75))
    left.set_title("DPO: two models, one trained")
    rows = {"policy": ("policy", "trained", "log-probs"),
            "reference": ("reference\n(SFT)", "frozen", "log-probs"),
            "reward": ("reward\nmodel", "frozen", "score"),
            "value": ("value\nmodel", "trained", "value")}
    boxes = {name: Box(1.25, row, text, look) for row, (name, (text, look, _))
             in enumerate(rows.items())}
    draw_pipeline(right, boxes | {
        "answers": Box(0, 1.5, "prompts and\nown answers", "data"),
        "loss": Box(2.5, 1.5, "KL, advantage,\nPPO loss", "data"),
    }, [("answers", name, "") for name in rows]
        + [(name, "loss", label) for name, (_, _, label) in rows.items()])
    bent_arrow(right, (0.9, -0.05), (0, 1.2), 0.35, "#444444", "samples", (0.1, 0.2))
    bent_arrow(right, (2.5, 1.2), (1.6, -0.05), 0.35, COLOURS[1], "gradient", (2.4, 0.2))
    bent_arrow(right, (2.5, 1.8), (1.6, 3.05), -0.35, COLOURS[1], "gradient", (2.4, 2.95))
    right.set_title("RLHF: four models, two trained")
    lesson.figure("pipelines", figure, "DPO reads pairs that were there before training began. PPO "
                  "reads the policy's own answers, with two more models, one of which was trained "
                  "on the pairs before.")


main = lesson.kept("main")
side_by_side(main, lesson.kept("seconds"))
differences(main)
frontier(main, lesson.kept("limits"))
rates(lesson.kept("rates"))
few_pairs(lesson.kept("few"))
another_kind(lesson.kept("kinds"))
pipelines()
lesson.number("bayes", lesson.kept("bayes"), ".3f")
lesson.number("false_alarms", f"{lesson.kept('false_alarms'):.0%}".replace("%", " %"))
lesson.done()
