"""The numbers, tables and figures of the article, from what experiments.py kept."""

# %%
from statistics import mean

from lessons.course import Lesson, spread
from lessons.verdict import half_width
from minigpt.plots import COLOURS, running_mean

lesson = Lesson("11_without_a_critic", "figures")
runs, answers = lesson.kept("runs"), lesson.kept("answers")
NAMES = {"ppo": "PPO", "no_baseline": "no baseline", "batch_mean": "mean of the batch",
         "rloo": "RLOO", "one_pass": "RLOO, one pass", "grpo": "GRPO",
         "rloo_longer": "RLOO, longer", "grpo_longer": "GRPO, longer",
         "grpo_verified": "GRPO, verifiable reward", "sft": "SFT"}
COLOUR = {"ppo": COLOURS[0], "rloo": COLOURS[1], "grpo": COLOURS[2], "grpo_verified": COLOURS[4],
          "sft": "#999999"}


def of(name, what):
    """One figure of a run, seed after seed."""
    return [run[what] for run in runs[name]]


def curve(name, what, width=10):
    """A curve of a run, smoothed: its mean over the seeds, episode by episode."""
    of_seeds = [running_mean(run["curves"][what], width) for run in runs[name]]
    return [mean(values) for values in zip(*of_seeds, strict=True)]


def last_ten(name, what):
    """The mean of a curve over its last ten episodes, seed after seed."""
    return [mean(run["curves"][what][-10:]) for run in runs[name]]


def episodes(name):
    return len(runs[name][0]["curves"]["true_reward"])


# %% [markdown]
# ## Every method, in numbers

# %%
MODELS = {"sft": "", "ppo": "4", "grpo_verified": "2"}
HEAD = ["", "models", "answers", "seconds", "true reward", "KL (nats)", "share of possible gain"]


def row(name):
    """A line of the table of methods."""
    spent = [f"{episodes(name) * answers:,}", spread(of(name, "seconds"), ".0f")] \
        if name != "sft" else ["", ""]
    share = spread([100 * share for share in of(name, "share")], ".0f") + " %"
    return [NAMES[name], MODELS.get(name, "3"), *spent, spread(of(name, "true_reward"), ".2f"),
            spread(of(name, "kl_nats_per_response"), ".1f"), share if name != "sft" else ""]


lesson.table("methods", HEAD, [row(name) for name in (
    "sft", "ppo", "batch_mean", "no_baseline", "rloo", "one_pass", "grpo", "rloo_longer",
    "grpo_longer")])


def lead(name, other, what="true_reward"):
    """By how much one run is ahead of another, seed by seed."""
    return [a - b for a, b in zip(of(name, what), of(other, what), strict=True)]


for name, other in (("rloo", "ppo"), ("grpo", "ppo"), ("rloo_longer", "ppo"),
                    ("grpo_longer", "ppo"), ("rloo", "grpo"),
                    ("rloo_longer", "grpo_longer"), ("rloo", "batch_mean"), ("one_pass", "rloo"),
                    ("no_baseline", "batch_mean"), ("one_pass", "ppo")):
    lesson.number(f"{name}_over_{other}", lead(name, other), "+.2f")
for name, other in (("rloo", "ppo"), ("grpo", "ppo"), ("one_pass", "rloo"), ("rloo_longer", "ppo"),
                    ("grpo_longer", "ppo")):
    lesson.number(f"{name}_over_{other}_kl", lead(name, other, "kl_nats_per_response"), "+.1f")
for name in ("ppo", "rloo"):
    lesson.number(f"seconds_{name}", of(name, "seconds"), ".0f")
for name in ("rloo_longer", "grpo_longer"):
    lesson.number(f"time_of_{name}", mean(of(name, "seconds")) / mean(of("ppo", "seconds")), ".2f")

# %% [markdown]
# ## Equal answers, equal seconds

# %%
figure, axes = lesson.panels(2, height=3.7, sharey=True)
for place, name in enumerate(("ppo", "rloo", "grpo")):
    longer = name if name == "ppo" else f"{name}_longer"
    seconds = mean(of(longer, "seconds")) / episodes(longer)
    for axis, run, each in ((axes[0], name, answers), (axes[1], longer, seconds)):
        spent = [each * number for number in range(1, episodes(run) + 1)]
        axis.plot(spent, curve(run, "true_reward"), color=COLOUR[name], label=NAMES[name])
        reward = of(run, "true_reward")
        axis.errorbar(spent[-1] * (1.05 + 0.025 * place), mean(reward), half_width(reward),
                      color=COLOUR[name], marker="o", markersize=5, capsize=3)
axes[0].set(xlabel="answers sampled", ylabel="true reward", title="the same number of answers")
axes[1].set(xlabel="processor time (s)", title="about the same processor time")
axes[0].legend(loc="upper left")
lesson.figure("equal", figure,
              f"From SFT's {spread(of('sft', 'true_reward'), '.2f')}, all three rise. Five seeds "
              "can tell neither RLOO nor GRPO from PPO, on equally many answers (left) or in "
              "about the same processor time (right). Smoothed lines: rollouts on training "
              "prompts. Points: the final policies on held-out prompts, with 95 % intervals.")

# %% [markdown]
# ## The loss says nothing

# %%
figure, axes = lesson.panels(2, height=3.2)
for run in runs["grpo"]:
    axes[0].plot(run["curves"]["loss/policy_avg"], color=COLOUR["grpo"], alpha=0.35, linewidth=1)
    axes[1].plot(running_mean(run["curves"]["objective/scores"], 5), color=COLOUR["grpo"],
                 alpha=0.35, linewidth=1)
axes[0].axhline(0, color="black", linewidth=0.8)
axes[0].plot(curve("grpo", "loss/policy_avg"), color=COLOUR["grpo"])
axes[1].plot(curve("grpo", "objective/scores"), color=COLOUR["grpo"])
axes[0].set(xlabel="episode", ylabel="policy loss", title="GRPO's loss")
axes[1].set(xlabel="episode", ylabel="score of the reward model", title="what it learns")
lesson.number("loss_last_ten", last_ten("grpo", "loss/policy_avg"), ".3f")
lesson.number("grad_norm_last_ten", last_ten("grpo", "grad_norm"), ".2f")
rises = [end - run["curves"]["objective/scores"][0] for run, end in
         zip(runs["grpo"], last_ten("grpo", "objective/scores"), strict=True)]
lesson.number("score_rise", rises, ".1f")
lesson.figure("loss", figure, "GRPO's policy loss stays near 0 while the score in the same runs "
              f"rises by {spread(rises, '.1f')}. Thin lines: five seeds. Thick lines: their mean.")

# %% [markdown]
# ## A verifiable reward

# %%
REWARDS = {"sft": "SFT", "grpo": "reward model", "grpo_verified": "verifiable reward"}
groups = answers // 4
figure, axes = lesson.panels(2, height=3.2)
for name in ("grpo", "grpo_verified"):
    flat = [100 * count / groups for count in curve(name, "val/flat_groups")]
    axes[0].plot(flat, color=COLOUR[name], label=REWARDS[name])
    lesson.number(f"flat_last_{name}",
                  [100 * count / groups for count in last_ten(name, "val/flat_groups")], ".0f")
axes[0].set(xlabel="episode", ylabel="groups (%)", title="groups that all score the same",
            ylim=(0, 100))
axes[0].legend()
HABITS = {"right and\ncomplete": "verified", "polite": "polite", "rude": "rude"}
for number, name in enumerate(REWARDS):
    values = [[100 * share for share in of(name, habit)] for habit in HABITS.values()]
    axes[1].bar([place + 0.27 * (number - 1) for place in range(3)], list(map(mean, values)), 0.25,
                yerr=list(map(half_width, values)), capsize=3, color=COLOUR[name],
                label=REWARDS[name])
axes[1].set_xticks(range(3), HABITS)
axes[1].set(ylabel="held-out answers (%)", title="what each reward does to the answers")
axes[1].grid(axis="x", visible=False)
axes[1].legend()
lesson.figure("verifiable", figure,
              "A verifiable reward leaves most groups flat in the end (left). Each reward improves "
              "what it sees: the program counts only right and complete answers, the reward model "
              "sees tone as well (right). Five seeds, 95 % intervals.")
rows = []
for name, label in REWARDS.items():
    rows.append([label, *(spread([100 * share for share in of(name, habit)], ".0f") + " %"
                          for habit in HABITS.values()),
                 spread(of(name, "true_reward"), ".2f"),
                 spread(of(name, "kl_nats_per_response"), ".1f"),
                 spread(of(name, "response_bytes"), ".0f")])
lesson.table("rewards", ["GRPO learns from", "right and complete", "polite", "rude", "true reward",
                         "KL (nats)", "bytes"], rows)
for other, label in (("grpo", "learned"), ("sft", "sft")):
    for habit in HABITS.values():
        lesson.number(f"verified_over_{label}_{habit}", [
            100 * points for points in lead("grpo_verified", other, habit)], "+.0f")
lesson.number("verified_over_learned_true_reward", lead("grpo_verified", "grpo"), "+.2f")
lesson.done()
