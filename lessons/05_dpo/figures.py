"""The numbers, tables and figures of lesson 5, from what experiments.py kept."""

from statistics import mean

from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.verdict import half_width
from minigpt.plots import COLOURS

lesson = Lesson("05_dpo", "figures")
settings, sft, bayes = (lesson.kept(name) for name in ("settings", "sft", "bayes"))
sweep, optimum, rates = (lesson.kept(name) for name in ("sweep", "optimum", "rates"))
memory = lesson.kept("memory")
BETAS, KINDS = list(sweep), settings["kinds"]


def column(runs, name):
    """One figure of several runs, one a seed."""
    return [run[name] for run in runs]


def share(runs, kind):
    """The share of one kind of answers, one a seed."""
    return [run["kinds"][KINDS.index(kind)] for run in runs]


def kl_of(runs):
    values = column(runs, "kl")
    return spread(values, ".1f" if mean(values) > 1 else ".2f")


def last_losses(runs):
    return [mean(run["losses"][-10:]) for run in runs]


def minus(some, others):
    """Paired differences, one a seed."""
    return [a - b for a, b in zip(some, others, strict=True)]


def bars(axis, xs, values, **options):
    """Means over the seeds, with 95% confidence intervals."""
    axis.errorbar(xs, [mean(each) for each in values], [half_width(each) for each in values],
                  marker="o", capsize=3, **options)


# %% Numbers

lesson.number("pairs", f"{settings['pairs']:,}")
lesson.number("temperature", f"{settings['temperature']}")
lesson.number("parameters", f"{settings['parameters']:,}")
lesson.number("steps", str(len(sweep["2"][0]["losses"])))
lesson.number("bayes", mean(bayes), ".2f")
lesson.number("sft_reward", column(sft, "reward"), ".2f")
lesson.number("sft_broken", share(sft, "broken"), ".2f")
for beta, runs in sweep.items():
    name = beta.replace(".", "_")
    lesson.number(f"kl_at_{name}", kl_of(runs))
    lesson.number(f"reward_at_{name}", column(runs, "reward"), ".2f")
    lesson.number(f"accuracy_at_{name}", column(runs, "accuracy"), ".2f")
    for kind in ("flawless", "broken"):
        lesson.number(f"{kind}_at_{name}", share(runs, kind), ".2f")
        lesson.number(f"{kind}_optimum_at_{name}", share(optimum[beta], kind), ".2f")
lesson.number("chosen_fell_at_2", column(sweep["2"], "chosen_fell"), ".2f")
lesson.number("reward_change_at_0_1", minus(column(sweep["0.1"], "reward"), column(sft, "reward")),
              "+.2f")
for name, form in (("reward", ".2f"), ("accuracy", ".2f")):
    for beta in ("0.1", "8"):
        lesson.number(f"{name}_2_over_{beta.replace('.', '_')}",
                      minus(column(sweep["2"], name), column(sweep[beta], name)), form)
lesson.number("p_chosen_sft", mean(column(sft, "p_chosen")), ".3f")
lesson.number("p_chosen_at_2", mean(column(sweep["2"], "p_chosen")), ".3f")
lesson.number("p_chosen_change_at_2", minus(column(sweep["2"], "p_chosen"),
                                            column(sft, "p_chosen")), ".3f")
small = lesson.kept("small_loss")
for name in ("kl", "reward"):
    lesson.number(f"{name}_small_loss_change",
                  minus(column(small, name), column(sweep["2"], name)), "+.2f")
lesson.number("accuracy_reward_model", lesson.kept("reward_model"), ".2f")
lesson.number("accuracy_below_reward_model",
              minus(lesson.kept("reward_model"), column(sweep["2"], "accuracy")), ".3f")
slow = rates["1e-06"]
lesson.number("reward_change_lr_1e6", minus(column(slow, "reward"), column(sft, "reward")), ".2f")
lesson.number("margin_lr_1e6", minus(column(slow, "chosen"), column(slow, "rejected")), ".2f")
lesson.number("few", str(settings["few"]))
lesson.number("passes", str(settings["passes"][-1]))
for name, values in memory.items():
    lesson.number(f"accuracy_{name.split()[0].replace('-', '')}", values[-1], ".2f")

# %% Tables

forms = {"accuracy": ".2f", "reward": ".2f", "right": ".2f", "bytes": ".0f"}
rows = [["SFT", "0", "0.5", *(spread(column(sft, name), forms[name])
                              for name in ("reward", "right", "bytes"))]]
rows += [[beta, kl_of(runs), *(spread(column(runs, name), form) for name, form in forms.items())]
         for beta, runs in sweep.items()]
lesson.table("sweep", ["beta", "KL (nats)", "accuracy, held out", "true reward", "right answers",
                       "bytes"], rows)
lesson.table("displacement", ["beta", "chosen, optimum", "chosen, measured", "rejected, optimum",
                              "rejected, measured"],
             [[beta, *(spread(column(runs[beta], side), ".1f") for side in ("chosen", "rejected")
                       for runs in (optimum, sweep))] for beta in BETAS])
lesson.table("slopes", ["beta", "optimum, 1 / (T beta)", "measured"],
             [[beta, f"{1 / (settings['temperature'] * float(beta)):.2f}",
               spread(column(runs, "slope"), ".2f")] for beta, runs in sweep.items()])
lesson.table("rates", ["learning rate", "loss, last 10 steps", "KL (nats)", "accuracy, held out",
                       "true reward"],
             [[lr.replace("-0", "-"), spread(last_losses(rates[lr]), ".2f"), kl_of(rates[lr]),
               *(spread(column(rates[lr], name), ".2f") for name in ("accuracy", "reward"))]
              for lr in sorted(rates, key=float)])

# %% Figures

figure, axis = lesson.panels(height=3.4)
draw_pipeline(axis, {
    "pairs": Box(0, 0, "prompt, chosen,\nrejected", "data"),
    "policy": Box(1.35, 0, "policy", "trained"),
    "loss": Box(2.7, 0, "DPO loss", "data"),
    "reference": Box(0, 1, "reference\n(SFT model)", "frozen"),
    "kept": Box(2.7, 1, "two log-probs\nfor each pair", "data"),
}, [("pairs", "policy", "every step"), ("policy", "loss", "two log-probs"),
    ("pairs", "reference", ""), ("reference", "kept", "once, before the first step"),
    ("kept", "loss", "")])
lesson.figure("pipeline", figure, "DPO holds two models and samples nothing. The policy is "
              "trained; the frozen reference is read once, before the first step.")

figure, axes = lesson.panels(3)
for axis, name, label in zip(axes, ("kl", "accuracy", "reward"), (
        "KL from SFT (nats per response)", "accuracy on held-out pairs", "true reward"),
        strict=True):
    xs = [float(beta) for beta in BETAS]
    bars(axis, xs, [column(runs, name) for runs in sweep.values()], color=COLOURS[0])
    axis.set(xlabel="beta", ylabel=label, xscale="log", xticks=xs, xticklabels=BETAS)
    axis.minorticks_off()
axes[0].set_yscale("log")
axes[0].set_yticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
axes[0].minorticks_off()
axes[1].set_ylim(0.5, 1)
axes[1].axhline(mean(bayes), color="grey", linestyle=":")
axes[1].text(xs[0], mean(bayes) + 0.008, "the true reward itself", fontsize=8, color="#444444")
level = mean(column(sft, "reward"))
axes[2].axhline(level, color="grey", linestyle=":")
axes[2].text(xs[-1], level + 0.05, "SFT", fontsize=8, color="#444444", ha="right")
drops = [mean(column(sweep["2"], name)) - mean(column(sweep["0.1"], name))
         for name in ("accuracy", "reward")]
lesson.figure("sweep", figure, "The lower beta is, the further the policy goes (left). From beta 2 "
              f"down to 0.1 its accuracy falls by only {drops[0]:.2f} (middle), but the true "
              f"reward of its own answers by {drops[1]:.1f} (right). Bars: 95% confidence "
              f"intervals over {len(sft)} seeds.")

figure, axis = lesson.panels(height=4.0)
rows = [("SFT", sft)]
for beta in reversed(BETAS):
    rows += [(f"beta {beta}: optimum", optimum[beta]), (f"beta {beta}: measured", sweep[beta])]
left = [0.0] * len(rows)
for kind, colour in zip(KINDS, (COLOURS[2], COLOURS[5], COLOURS[4], COLOURS[1]), strict=True):
    widths = [mean(share(runs, kind)) for _, runs in rows]
    axis.barh(range(len(rows)), widths, left=left, color=colour, label=kind, height=0.75)
    left = [a + b for a, b in zip(left, widths, strict=True)]
axis.set_yticks(range(len(rows)), [name for name, _ in rows])
axis.invert_yaxis()
axis.grid(False)
axis.set(xlabel=f"share of sampled answers (mean of {len(sft)} seeds)", xlim=(0, 1))
figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
lesson.figure("where", figure, f"At beta 0.1 {mean(share(sweep['0.1'], 'broken')):.0%} of the "
              "policy's answers are broken, where the optimum has "
              f"{mean(share(optimum['0.1'], 'broken')):.0%}. At beta 2 it is "
              f"{mean(share(sweep['2'], 'broken')):.0%}, for the SFT model "
              f"{mean(share(sft, 'broken')):.0%}.")

figure, axis = lesson.panels()
for (name, values), colour in zip(memory.items(), (COLOURS[1], COLOURS[0]), strict=True):
    bars(axis, settings["passes"], values, color=colour, label=name)
axis.axhline(mean(bayes), color="grey", linestyle=":")
axis.text(settings["passes"][-1], mean(bayes) - 0.022, "the true reward itself", fontsize=8,
          color="#444444", ha="right")
axis.set(xlabel=f"passes over {settings['few']} pairs", ylabel="preference accuracy",
         xscale="log", ylim=(0.5, 1.02), xticks=settings["passes"],
         xticklabels=settings["passes"])
axis.minorticks_off()
axis.legend(loc="lower right")
lesson.figure("memory", figure, f"Read {settings['passes'][-1]} times, {settings['few']} pairs are "
              f"ranked {mean(memory['training pairs'][-1]):.0%} right, which is more than the true "
              f"reward itself can do with noisy labels ({mean(bayes):.0%}); held-out pairs only "
              f"{mean(memory['held-out pairs'][-1]):.0%}. Bars: 95% confidence intervals over "
              f"{len(sft)} seeds.")
lesson.done()
