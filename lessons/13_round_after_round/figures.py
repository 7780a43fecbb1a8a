"""The figures and tables of lesson 13, from what experiments.py kept."""

from statistics import mean

from lessons.course import Lesson, spread
from lessons.verdict import half_width
from minigpt.plots import COLOURS

lesson = Lesson("13_round_after_round", "figures")
roads, settings = lesson.kept("roads"), lesson.kept("settings")
for name, value in settings.items():
    lesson.number(name, str(value))
ROUNDS = settings["rounds"]
HALF = ROUNDS // 2
REJECTION, REFRESHED, MORE = list(roads)[2:]
FORMS = {"reward": "+.2f", "kl": "+.2f", "score": "+.2f", "order": "+.3f"}
# road -> the figures of its last policy, one dict a seed
ends = lesson.kept("ends") | {name: [run[-1] for run in runs] for name, runs in roads.items()}
OFFLINE, AT_ONCE, ANNOTATORS, ONLINE, LAST = list(ends)[:5]


def after(name, number, key):
    """A figure of a road after a round, one value a seed."""
    return [run[number][key] for run in roads[name]]


def difference(first, second, key):
    """What the last policy of one road has more than that of another, seed by seed."""
    return spread([a[key] - b[key] for a, b in zip(ends[first], ends[second], strict=True)],
                FORMS[key])


def change(name, key, since, until=ROUNDS):
    """How a figure of a road changed between two rounds."""
    return spread([b - a for a, b in zip(after(name, since, key), after(name, until, key),
                                       strict=True)], FORMS[key])


# %% Where each road ends
LABELS = {REFRESHED: settings["all_labels"], MORE: settings["all_labels"]}
SAMPLED = {OFFLINE: 0, ANNOTATORS: 2 * settings["labels"]}
sft = {key: after(ONLINE, 0, key) for key in ("reward", "order")}
lesson.table("ends", ["", "labels", "answers sampled", "true reward", "KL (nats)",
                      "reward minus DPO's", "KL minus DPO's"],
             [["SFT", "", "", spread(sft["reward"], ".2f"), "0", "", ""]] + [
    [name, f"{LABELS.get(name, settings['labels']):,}",
     f"{SAMPLED.get(name, settings['labels'] * settings['answers']):,}",
     spread([one["reward"] for one in of_seeds], ".2f"),
     spread([one["kl"] for one in of_seeds], ".2f"),
     *(difference(name, OFFLINE, key) if name != OFFLINE else "" for key in ("reward", "kl"))]
    for name, of_seeds in ends.items()])
for name, first, second in (("online", ONLINE, OFFLINE), ("annotators", ANNOTATORS, OFFLINE),
                            ("fresh", ONLINE, AT_ONCE), ("last", LAST, ONLINE),
                            ("rejection", REJECTION, OFFLINE), ("refreshed", REFRESHED, REJECTION),
                            ("spent_late", REFRESHED, MORE)):
    for key in ("reward", "kl"):
        lesson.number(f"{name}_{key}", difference(first, second, key))

# %% The second half of the rounds, and the judge
lesson.table("second_half", [f"rounds {HALF + 1} to {ROUNDS}", "first judge's score",
                             "true reward", "its judge orders correctly: SFT's answers",
                             "the final policy's answers", "difference"],
             [[name, change(name, "score", HALF), change(name, "reward", HALF),
               spread(after(name, 0, "order"), ".2f"), spread(after(name, ROUNDS, "order"), ".2f"),
               change(name, "order", 0)]
              for name in roads])
for short, name in (("online", ONLINE), ("last", LAST), ("rejection", REJECTION)):
    for key in ("score", "reward"):
        lesson.number(f"half_{short}_{key}", change(name, key, HALF))
lesson.number("order_sft", mean(sft["order"]), ".2f")
lesson.number("order_end", mean(after(REJECTION, ROUNDS, "order")), ".2f")
lesson.number("own_less_first", spread([one["order"] - one["first_order"]
                                      for one in ends[REFRESHED]], "+.3f"))
for key, form in (("kl", ".1f"), ("distinct", ".0%")):
    lesson.number(f"rejection_end_{key}", mean(after(REJECTION, ROUNDS, key)), form)
lesson.number("rejection_first_kl", spread(after(REJECTION, 1, "kl"), ".2f"))
lesson.number("distinct_sft", mean(after(REJECTION, 0, "distinct")), ".0%")

# %% Round by round
figure, axes = lesson.panels(3, height=4.2)
rounds = range(ROUNDS + 1)
shown = [ONLINE, LAST, REJECTION, REFRESHED]
for axis, key, label in zip(axes, ("reward", "score", "kl"),
                            ("true reward", "first judge's score", "KL from SFT (nats)"),
                            strict=True):
    for number, name in enumerate(shown):
        columns = [after(name, n, key) for n in rounds]
        if key == "score":  # its zero is arbitrary, another in each seed
            columns = [[a - b for a, b in zip(column, columns[0], strict=True)]
                       for column in columns]
        halves = [half_width(column) if len(column) > 1 else 0 for column in columns]
        axis.errorbar([n + 0.06 * number for n in rounds], list(map(mean, columns)), halves,
                      marker="o", markersize=4, capsize=2, elinewidth=0.8,
                      linestyle="--" if name == REFRESHED else "-", color=COLOURS[number],
                      label=name)
    axis.set(xlabel="round", ylabel=label + " (gain)" * (key == "score"), xticks=list(rounds))
axes[0].axhline(mean(one["reward"] for one in ends[OFFLINE]), color="black", linestyle=":",
                label=OFFLINE)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
lesson.figure("rounds", figure, "Six rounds of training on a judge's verdicts. Its score rises, "
              "but in the end five seeds cannot tell the true reward of any method from that of "
              "one pass of DPO. Of these methods only the one tied to the start stays near SFT. "
              f"Means of {len(ends[OFFLINE])} seeds, with 95 % intervals.")
lesson.done()
