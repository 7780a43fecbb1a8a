"""The figures and tables of lesson 14, from what experiments.py kept."""

from statistics import mean

from lessons.course import Lesson, spread
from minigpt.plots import COLOURS

lesson = Lesson("14_several_objectives", "figures")
shares, roads, sft = (lesson.kept(name) for name in ("shares", "roads", "sft"))
NAMES = {"RLHF": "RLHF: weights on two reward models", "labels": "DPO: weighed labels",
         "mixed": "DPO: labels of two kinds, mixed"}
WEIGHTS = {"RLHF": shares, "labels": shares, "mixed": [w for w in shares if 0 < w < 1]}


def said(numbers, form):
    return spread(numbers if len(numbers) > 1 else numbers[0], form)


def values(road, share, key):
    """A figure at this weight, one value a seed."""
    place = WEIGHTS[road].index(share)
    return [of_seed[place][key] for of_seed in roads[road]]


lesson.number("seeds", str(len(sft)))
helpful, polite = zip(*lesson.kept("reward_accuracies"), strict=True)
lesson.number("accuracy_helpful", said(list(helpful), ".2f"))
lesson.number("accuracy_polite", said(list(polite), ".2f"))
FORMS = {"helpful": "+.2f", "polite": "+.2f", "kl": ".2f"}
lesson.table("roads", ["road", "weight on helpful", "helpful", "polite", "KL (nats)"],
             [["SFT", "-", *(said([one[key] for one in sft], form) for key, form in FORMS.items())]]
             + [[NAMES[road], f"{share:.0%}", *(said(values(road, share, key), form)
                                               for key, form in FORMS.items())]
                for road in NAMES for share in WEIGHTS[road]])

# %% What each road's policy is worth under the weights that it was given
lesson.table("worth", ["weight on helpful", *NAMES.values(), "RLHF less weighed labels"], [
    [f"{share:.0%}", *(said(worth[road], "+.2f") if road in worth else "" for road in NAMES),
     said([a - b for a, b in zip(worth["RLHF"], worth["labels"], strict=True)], "+.2f")]
    for share in shares for worth in [{
        road: [2 * (share * h + (1 - share) * p)
               for h, p in zip(values(road, share, "helpful"), values(road, share, "polite"),
                               strict=True)]
        for road in NAMES if share in WEIGHTS[road]}]])

# %% The Pareto front
figure, axis = lesson.panels(height=4.4)
figure.set_figwidth(7.4)
limits = lesson.kept("limit")  # seed -> KL -> share -> (helpful, polite)
for number, kl in enumerate(("0.5", "1", "2")):
    front = [[mean(one[number][place][axis_] for one in limits)
              for place in range(len(limits[0][number]))] for axis_ in (0, 1)]
    axis.plot(*front, color="black", alpha=0.35 + 0.3 * number, linewidth=1.2,
              label=f"best possible at {kl} nats")
for (road, name), colour in zip(NAMES.items(), COLOURS, strict=False):
    middle = [[mean(values(road, share, key)) for share in WEIGHTS[road]]
              for key in ("helpful", "polite")]
    axis.plot(*middle, "o-", color=colour, label=name, markersize=5)
axis.plot(mean(one["helpful"] for one in sft), mean(one["polite"] for one in sft), "*",
          color="grey", markersize=12, label="SFT")
axis.set(xlabel="helpful (mean of the true dimension)",
         ylabel="polite (mean of the true dimension)")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
lesson.figure("front", figure, "From all weight on polite (upper left) to all on helpful (lower "
              "right): what each road trades for what. Black: the best trade at three distances "
              "from SFT. Means over seeds.")
lesson.done()
