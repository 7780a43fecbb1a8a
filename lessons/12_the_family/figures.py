"""The figures and tables of lesson 12, from what experiments.py kept."""

from statistics import mean

from lessons.course import Lesson, spread
from lessons.verdict import half_width
from minigpt.plots import COLOURS

lesson = Lesson("12_the_family", "figures")
NAMES = {"dpo": "DPO", "ipo": "IPO", "hinge": "hinge", "cdpo": "cDPO", "robust_dpo": "robust DPO",
         "apo_zero": "APO-zero", "apo_down": "APO-down", "dpop": "DPOP",
         "length_normalised_dpo": "DPO per token", "dpo_nll": "DPO + NLL", "simpo": "SimPO",
         "orpo": "ORPO", "kto": "KTO"}
LABEL_ABOVE = ("ipo", "kto", "apo_zero", "orpo", "simpo", "hinge", "dpo")  # in the figure
losses, sft = lesson.kept("losses"), lesson.kept("sft")


def values(of_seeds, key):
    return [figures[key] for figures in of_seeds]


def cells(of_seeds, forms):
    """The table cells of one method: mean ± half of its 95 % interval."""
    return [spread(values(of_seeds, key), form) for key, form in forms.items()]


def difference(of_seeds, others, key, form):
    """The mean difference, seed by seed, and half of its 95 % interval."""
    return spread([a - b for a, b in zip(values(of_seeds, key), values(others, key), strict=True)],
                form)


# %% The frontier
limit = lesson.kept("limit")
kls = [mean(column) for column in zip(*(one["kl"] for one in limit), strict=True)]
rewards = [mean(column) for column in zip(*(one["reward"] for one in limit), strict=True)]
figure, axis = lesson.panels(height=5.0)
figure.set_figwidth(7.6)
axis.plot(kls, rewards, color="black")
for number, (loss, of_seeds) in enumerate(losses.items()):
    kl, reward = values(of_seeds, "kl"), values(of_seeds, "reward")
    half = half_width(reward) if len(reward) > 1 else 0
    axis.errorbar(mean(kl), mean(reward), half, color=COLOURS[number % len(COLOURS)], marker="o",
                  capsize=2, alpha=0.8)
    above = 1 if loss in LABEL_ABOVE else -1
    axis.annotate(NAMES[loss], (mean(kl), mean(reward) + above * half), (0, above * 9),
                  textcoords="offset points", ha="center", va="center", fontsize=8)
axis.plot(0, mean(values(sft, "reward")), marker="*", markersize=11, color="grey")
axis.annotate("SFT", (0, mean(values(sft, "reward"))), (14, 0), textcoords="offset points",
              va="center", fontsize=8)
axis.annotate("limit", (kls[-1], rewards[-1]), (6, 0), textcoords="offset points", va="center",
              fontsize=8)
axis.set(xlabel="KL from SFT (nats per response)", ylabel="true reward",
         xlim=(-0.05, 1.1 * max(mean(values(of_seeds, "kl")) for of_seeds in losses.values())))
lesson.figure("frontier", figure, f"{len(losses)} losses on the same 2,000 pairs: they differ in "
              "how far they go, but most reach about the same true reward. The limit is the best "
              f"possible at each KL. Means of {len(sft)} seeds, with 95 % intervals.")
order = sorted(losses, key=lambda loss: -mean(values(losses[loss], "share")))
lesson.table("family", ["loss", "share of the possible gain", "true reward", "KL (nats)",
                        "accuracy, held out", "bytes", "broken"],
             [["SFT", "-", spread(values(sft, "reward"), ".2f"), "0", "0.5",
               spread(values(sft, "bytes"), ".0f"), spread(values(sft, "broken"), ".0%")]]
             + [[NAMES[loss], *cells(losses[loss], {"share": ".0%", "reward": ".2f", "kl": ".2f",
                                                    "accuracy": ".3f", "bytes": ".0f",
                                                    "broken": ".0%"})] for loss in order])
lesson.number("losses", str(len(losses)))
lesson.number("seeds", str(len(sft)))
lesson.table("against_dpo", ["loss", "share minus DPO's, in points"],
             [[NAMES[loss], spread([100 * (a - b) for a, b in zip(
                 values(losses[loss], "share"), values(losses["dpo"], "share"), strict=True)],
                 "+.0f")] for loss in order if loss != "dpo"])


for loss in ("ipo", "kto"):
    own = losses.get(loss, losses["dpo"])  # a quick run has not all of them
    lesson.number(f"{loss}_less_dpo", spread([100 * (a - b) for a, b in zip(
        values(own, "share"), values(losses["dpo"], "share"), strict=True)], "+.0f"))

# %% Each where it should help
def small_table(name, kept, forms, head, names=None):
    """One row for each method of what was kept under a name, its first figure also less DPO's."""
    runs = lesson.kept(kept)
    first, key = next(iter(runs.values())), next(iter(forms))
    lesson.table(name, head, [
        [(names or {}).get(method, method), *cells(of_seeds, forms),
         "" if of_seeds is first else difference(of_seeds, first, key,
                                                 "+" + forms[key].lstrip("+"))]
        for method, of_seeds in runs.items()])


small_table("noise", "noise", {"reward": ".2f", "share": ".0%", "accuracy": ".3f"},
            ["loss", "true reward", "share", "accuracy, clean labels", "reward minus DPO's"])
small_table("length", "length", {"bytes": ".0f", "reward": ".2f", "share": ".0%"},
            ["loss", "bytes", "true reward", "share", "bytes minus DPO's"], NAMES)
small_table("low_beta", "low_beta", {"broken": ".0%", "chosen": "+.1f", "rejected": "+.1f",
                                     "reward": ".2f"},
            ["loss", "broken answers", "log-ratio, chosen", "log-ratio, rejected", "true reward",
             "broken minus DPO's"], NAMES)
small_table("thumbs", "thumbs", {"reward": ".2f", "kl": ".2f", "accuracy": ".3f"},
            ["KTO on", "true reward", "KL (nats)", "accuracy, held out",
             "reward minus the first row's"])
noise, length = lesson.kept("noise"), lesson.kept("length")
lesson.number("noise_ipo", difference(noise["IPO"], noise["DPO"], "reward", "+.2f"))
lesson.number("noise_cdpo", difference(noise["cDPO"], noise["DPO"], "reward", "+.2f"))
lesson.number("noise_robust", difference(noise["robust DPO"], noise["DPO"], "reward", "+.2f"))
lesson.number("length_simpo", difference(length["simpo"], length["dpo"], "bytes", "+.0f"))
lesson.number("length_per_token", difference(length["length_normalised_dpo"], length["dpo"],
                                             "bytes", "+.0f"))
lesson.number("bytes_dpo_clean", mean(values(losses["dpo"], "bytes")), ".0f")
lesson.number("bytes_dpo_long", mean(values(length["dpo"], "bytes")), ".0f")
figure, axes = lesson.panels(2, height=3.2)
low_beta = lesson.kept("low_beta")
for axis, key, label in zip(axes, ("broken", "chosen"),
                            ("broken answers", "log pi / ref of chosen (nats)"), strict=True):
    for number, of_seeds in enumerate(low_beta.values()):
        axis.bar(number, mean(values(of_seeds, key)), color=COLOURS[number], width=0.6)
        axis.plot([number] * len(of_seeds), values(of_seeds, key), "k.", markersize=5)
    axis.set_xticks(range(len(low_beta)), [NAMES[loss] for loss in low_beta])
    axis.set(ylabel=label)
    axis.grid(axis="x", visible=False)
axes[1].axhline(0, color="grey", linewidth=1)
for loss, of_seeds in low_beta.items():
    lesson.number(f"broken_{loss}", mean(values(of_seeds, "broken")), ".0%")
lesson.figure("displacement", figure, "At beta 0.1 DPO makes even the chosen answers less likely, "
              "and many of its own answers are broken. With the two losses that hold the chosen "
              "ones up, both happen less. Each point is a seed.")
lesson.done()
