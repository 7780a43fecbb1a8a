"""The figures and tables of lesson 14, from what experiments.py kept."""

from statistics import mean

from lessons.course import Lesson, spread
from lessons.verdict import half_width
from minigpt.plots import COLOURS

lesson = Lesson("14_several_objectives", "figures")
shares, roads, sft = (lesson.kept(name) for name in ("shares", "roads", "sft"))
between = [share for share in shares if 0 < share < 1]
NAMES = {"RLHF": "RLHF, weighted rewards", "labels": "DPO, weighted labels",
         "relabelled": "DPO, labels by the reward models", "mixed": "DPO, mixed labels",
         "soup": "DPO, soup"}
COLOUR = dict(zip(NAMES, COLOURS, strict=False))
FORMS = {"helpful": "+.2f", "polite": "+.2f", "kl": ".2f", "share_of_gain": ".0%"}


def values(road, share, key):
    """A figure of the policies at this weight, one value a seed."""
    place = (shares if len(roads[road][0]) == len(shares) else between).index(share)
    return [of_seed[place][key] for of_seed in roads[road]]


def averages(road, weights, key):
    """The mean of a figure over these weights, one value a seed."""
    return [mean(of_seed) for of_seed in
            zip(*(values(road, share, key) for share in weights), strict=True)]


def less(one, other):
    return [a - b for a, b in zip(one, other, strict=True)]


def points(of_gain):
    return [100 * share for share in of_gain]


# %% The world: what there is to trade
lesson.number("pairs", "1,600")  # `count` of experiments.py
for name, accuracies in zip(("helpful", "polite"), zip(*lesson.kept("accuracies"), strict=True),
                            strict=True):
    lesson.number(f"accuracy_{name}", spread(accuracies, ".2f"))
pairs = lesson.kept("pairs")
for kind in pairs[0]:
    lesson.number(kind, mean(of_seed[kind] for of_seed in pairs), ".0%")
optimum = lesson.kept("optimum")  # seed -> share -> (helpful, polite, KL)
best = [mean(of_seed[shares.index(share)][2] for share in between) for of_seed in optimum]
lesson.number("kl_optimum", mean(best), ".1f")
for road in ("RLHF", "labels"):
    lesson.number(f"overshoot_{road}", spread(less(averages(road, between, "kl"), best), "+.1f"))

# %% The two roads
lesson.table("roads", ["weight on helpful", "method", "helpful", "polite", "KL (nats)",
                       "share of the possible gain"],
             [["-", "SFT", *(spread([one[key] for one in sft], form) for key, form
                             in FORMS.items() if key in sft[0]), "-"]]
             + [[f"{share:.0%}", NAMES[road], *(spread(values(road, share, key), form)
                                                for key, form in FORMS.items())]
                for share in shares for road in ("RLHF", "labels")])


def differences(weights):
    """RLHF less weighted labels, in means over these weights: weighted reward, KL, share."""
    return [less(*(averages(road, weights, key) for road in ("RLHF", "labels")))
            for key in ("worth", "kl", "share_of_gain")]


def difference_row(name, weights):
    worth, kl, of_gain = differences(weights)
    return [name, spread(worth, "+.2f"), spread(kl, "+.2f"), spread(points(of_gain), "+.0f")]


lesson.table("against", ["weight on helpful", "weighted reward", "KL (nats)",
                         "share of the possible gain, in points"],
             [*(difference_row(f"{share:.0%}", [share]) for share in shares),
              difference_row("mean of all", shares)])
worth, kl, of_gain = differences(shares)
lesson.number("rlhf_less_labels", spread(worth, "+.2f"))
lesson.number("rlhf_less_labels_kl", spread(kl, "+.2f"))
lesson.number("rlhf_less_labels_share", spread(points(of_gain), "+.0f"))


# %% Does the weight steer?
def change(road, key, low, high):
    """What a figure gains from one weight to another, one value a seed."""
    return less(values(road, high, key), values(road, low, key))


lesson.table("steer", ["method", "helpful", "polite"],
             [[NAMES[road], *(spread(change(road, key, between[0], between[-1]), "+.2f")
                              for key in ("helpful", "polite"))] for road in NAMES])
for road in ("RLHF", "labels"):
    for key in ("helpful", "polite"):
        lesson.number(f"{road}_{key}_range",
                      spread(change(road, key, shares[0], shares[-1]), "+.2f"))
lesson.number("sft_bytes", mean(one["bytes"] for one in sft), ".0f")
lesson.number("RLHF_bytes_at_half", mean(values("RLHF", 0.5, "bytes")), ".0f")

# %% The ways that need no new labels
lesson.table("cheap", ["method", "weight on helpful", "helpful", "polite", "KL (nats)",
                       "share of the possible gain"],
             [[NAMES[road], f"{share:.0%}", *(spread(values(road, share, key), form)
                                             for key, form in FORMS.items())]
              for road in ("relabelled", "mixed", "soup") for share in between])
lesson.table("against_labels", ["method", "weighted reward", "KL (nats)",
                                "share of the possible gain, in points"], [
    [NAMES[road], *(spread(less(averages(road, between, key),
                                averages("labels", between, key)), form)
                    for key, form in (("worth", "+.2f"), ("kl", "+.2f"))),
     spread(points(less(averages(road, between, "share_of_gain"),
                      averages("labels", between, "share_of_gain"))), "+.0f")]
    for road in NAMES if road != "labels"])
for road in NAMES:
    if road != "labels":
        lesson.number(f"{road}_worth", spread(less(averages(road, between, "worth"),
                                                 averages("labels", between, "worth")), "+.2f"))
        lesson.number(f"{road}_share", spread(points(less(
            averages(road, between, "share_of_gain"),
            averages("labels", between, "share_of_gain"))), "+.0f"))
        lesson.number(f"{road}_polite_at_half", spread(less(
            values(road, 0.5, "polite"), values("labels", 0.5, "polite")), "+.2f"))

# %% What another pair of weights costs
seconds = {road: mean(averages(road, between, "seconds")) for road in NAMES}
reward_seconds = mean(lesson.kept("reward_seconds"))
lesson.table("cost", ["method", "before the first weights", "for each new pair of weights"], [
    [NAMES["RLHF"], f"2 labels a pair, two reward models ({reward_seconds:.0f} s)",
     f"one RLOO run ({seconds['RLHF']:.0f} s)"],
    [NAMES["labels"], "nothing", f"1 new label a pair, one DPO run ({seconds['labels']:.0f} s)"],
    [NAMES["relabelled"], f"2 labels a pair, two reward models ({reward_seconds:.0f} s)",
     f"one DPO run ({seconds['relabelled']:.0f} s)"],
    [NAMES["mixed"], "2 labels a pair", f"one DPO run ({seconds['mixed']:.0f} s)"],
    [NAMES["soup"], f"2 labels a pair, two DPO runs ({2 * seconds['labels']:.0f} s)", "nothing"]])

# %% The Pareto front
limits = lesson.kept("limit")  # seed -> KL -> share -> (helpful, polite)


def draw(axis, road, weights, **options):
    """A road from all weight on polite to all on helpful, with 95 % intervals of both means."""
    columns = [[values(road, share, key) for share in weights] for key in ("helpful", "polite")]
    middle = [[mean(of_seeds) for of_seeds in column] for column in columns]
    half = [[half_width(of_seeds) if len(of_seeds) > 1 else 0 for of_seeds in column]
            for column in columns]
    axis.errorbar(*middle, xerr=half[0], yerr=half[1], marker="o", markersize=5, elinewidth=0.8,
                  color=COLOUR[road], label=NAMES[road], **options)


figure, axes = lesson.panels(2, height=5.0, sharey=True, sharex=True)
figure.set_figwidth(9.6)
for axis in axes:
    for number, kl in enumerate(("0.5", "1", "2")):
        front = [[mean(one[number][place][side] for one in limits)
                  for place in range(len(limits[0][number]))] for side in (0, 1)]
        axis.plot(*front, color="black", alpha=0.3 + 0.3 * number, linewidth=1.1)
        axis.annotate(f"limit at {kl}", (front[0][0], front[1][0]), (-4, 0), ha="right",
                      textcoords="offset points", va="center", fontsize=8)
    axis.plot(*[mean(one[key] for one in sft) for key in ("helpful", "polite")], "*", color="grey",
              markersize=12, label="SFT", linestyle="none")
    axis.set(xlabel="helpful (mean of the true dimension)", xlim=(-0.1, 2.05))
axes[0].set(ylabel="polite (mean of the true dimension)")
axes[0].plot(*[[mean(of_seed[place][side] for of_seed in optimum) for place in range(len(shares))]
               for side in (0, 1)], "D", color="black", markersize=5, label="shared optimum")
draw(axes[0], "RLHF", shares)
draw(axes[0], "labels", shares)
draw(axes[1], "labels", shares, alpha=0.45)
for road in ("relabelled", "mixed", "soup"):
    draw(axes[1], road, between, linestyle="--")
for axis in axes:
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
lesson.figure("front", figure, "Each line goes from most weight on polite (left) to most on helpful"
              " (right). Left: RLHF and DPO, and the optimum that both aim at and miss. Right: "
              "three ways to get new weights without new labels. Black: the best possible at 0.5, "
              f"1 and 2 nats of KL. Means of {len(sft)} seeds, with 95 % intervals.")
lesson.done()
