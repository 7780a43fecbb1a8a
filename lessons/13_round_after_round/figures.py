"""The figures and tables of lesson 13, from what experiments.py kept."""

from statistics import mean

from lessons.course import Lesson, spread
from minigpt.plots import COLOURS

lesson = Lesson("13_round_after_round", "figures")
roads, offline, settings = (lesson.kept(name) for name in ("roads", "offline", "settings"))
for name, value in settings.items():
    lesson.number(name, str(value))
lesson.number("seeds", str(len(offline)))


def values(runs, key, number=-1):
    """A figure after a round (by default the last), one value a seed."""
    return [run[number][key] for run in runs]


def said(numbers, form):
    return spread(numbers if len(numbers) > 1 else numbers[0], form)


FORMS = {"reward": ".2f", "kl": ".2f", "share": ".0%", "right": ".0%", "proxy": ".2f",
         "judge_accuracy": ".2f"}
lesson.table("roads", ["after the last round", "true reward", "KL (nats)", "share", "right",
                       "reward model's score", "its accuracy on the policy's own pairs"],
             [[name, *(said(values(runs, key), form) for key, form in FORMS.items())]
              for name, runs in {"DPO, one pass": offline, **roads}.items()])
lesson.table("differences", ["", "true reward", "share, in points", "judge's accuracy"], [
    [name, *(said([factor * (a - b) for a, b in zip(values(roads[first], key),
                                                    values(roads[second], key), strict=True)],
                  form) for key, factor, form in (("reward", 1, "+.2f"), ("share", 100, "+.0f"),
                                                  ("judge_accuracy", 1, "+.2f")))]
    for name, first, second in (
        ("online DPO: refreshed less fixed", "online DPO, refreshed", "online DPO"),
        ("online DPO: last round less start as reference", "online DPO, from the last round",
         "online DPO"),
        ("rejection: refreshed less fixed", "rejection sampling, refreshed", "rejection sampling"),
        ("rejection less online DPO", "rejection sampling", "online DPO"))])
lesson.table("against_offline", ["", "true reward less offline DPO's"], [
    [name, said([a - b for a, b in zip(values(runs, "reward"), values(offline, "reward"),
                                       strict=True)], "+.2f")] for name, runs in roads.items()])

# %% The paths
figure, axes = lesson.panels(2, height=3.8)
rounds = range(len(next(iter(roads.values()))[0]))
for (name, runs), colour in zip(roads.items(), COLOURS, strict=False):
    line = "--" if "refreshed" in name else "-"
    kls, rewards, proxies = ([mean(values(runs, key, number)) for number in rounds]
                             for key in ("kl", "reward", "proxy"))
    axes[0].plot(kls, rewards, "o", linestyle=line, color=colour, markersize=4)
    axes[1].plot(rounds, [mean(values(runs, "judge_accuracy", n)) for n in rounds], "o",
                 linestyle=line, color=colour, markersize=4, label=name)
axes[0].plot(mean(values(offline, "kl")), mean(values(offline, "reward")), "k*", markersize=11,
             label="DPO, one pass")
axes[0].legend(loc="lower right")
axes[0].set(xlabel="KL from SFT (nats per response)", ylabel="true reward")
axes[1].set(xlabel="round", ylabel="reward model's accuracy\non the policy's own pairs",
            xticks=list(rounds))
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
lesson.figure("paths", figure, "Left: where each road leads, round by round (means over seeds). "
              "Right: the better the policy, the harder its answers are to tell apart.")
lesson.done()
