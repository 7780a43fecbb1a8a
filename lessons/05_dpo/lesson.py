# %% [markdown]
# # 5. DPO
# The article is README.md beside this file. Run this from the shell (`python -m lessons 05`), cell
# by cell in an editor, or as a notebook.

# %%
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo import dpo_train, evaluate_preference_accuracy
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, starting_point
from minigpt import generate
from minigpt.plots import COLOURS, running_mean

lesson = Lesson("05_dpo")
start = starting_point(quick=lesson.quick)
world = start.world
pairs = world.preferences[:lesson.pick(4000, 32)]

# %% [markdown]
# ## What DPO learns from
# "Chosen" need not mean good. It only means that somebody preferred it to the rejected answer.

# %%
for pair in (pairs[2], pairs[0]):
    print(f"prompt    {pair['prompt']}")
    for side in ("chosen", "rejected"):
        reward = world.true_reward(pair["prompt"], pair[side])
        print(f"{side:9} {pair[side]}   (true reward {reward:+.2f})")
    print()

# %% [markdown]
# ## Train at four values of beta
# The same SFT model and the same pairs, each read once. Every step logs its metrics.

# %%
def train(beta):
    """The policy that DPO makes of the SFT model, and its log: a dictionary for each step."""
    with TemporaryDirectory() as folder:
        policy, _, _ = dpo_train(start.fresh_policy(), start.sft, pairs, out=folder,
                                 **DPO | {"beta": beta})
        log = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8")
    return policy, [json.loads(line) for line in log.splitlines()]


policies, logs = {"SFT": start.sft}, {}
for beta in lesson.progress((8.0, 2.0, 0.5, 0.1), "values of beta"):
    policies[f"beta {beta:g}"], logs[beta] = train(beta)
first_step = logs[2.0][0]
lesson.number("loss_at_start", first_step["loss"], ".4f")
lesson.number("margin_at_start", first_step["rewards/margins"], ".4f")

# %% [markdown]
# ## Ranking answers and writing them
# Both are measured on prompts that no training pair has.

# %%
rows = []
for name, policy in policies.items():
    said = start.measure(policy)
    accuracy = evaluate_preference_accuracy(policy, start.sft, world.heldout_preferences)
    rows.append([name, f"{said['kl_nats_per_response']:.2f}", f"{accuracy:.2f}",
                 f"{said['true_reward']:+.2f}"])
lesson.table("betas", ["policy", "KL (nats)", "accuracy on held-out pairs", "true reward"], rows,
             title="How far each policy went, how well it ranks, and how well it writes")

prompt = "In a sentence: Name the capital of Norway."
answers = [[name, *(generate(policy, [prompt], LONGEST_ANSWER, greedy=greedy, seed=0)[0].text
                    for greedy in (True, False))] for name, policy in policies.items()]
lesson.table("answers", ["policy", "most likely answer", "a sampled answer"], answers,
             title=f"Asked: {prompt}")

# %% [markdown]
# ## Both log-probabilities fall
# Every pair is read once, so each point is of pairs that the policy has not seen before.

# %%
figure, axes = lesson.panels(2)
ends = {}
for axis, beta in zip(axes, (2.0, 0.1), strict=True):
    for side, colour in (("chosen", COLOURS[0]), ("rejected", COLOURS[1])):
        curve = running_mean([step[f"rewards/{side}"] / beta for step in logs[beta]], 10)
        axis.plot(range(1, len(curve) + 1), curve, color=colour, label=side)
        ends[side, beta] = curve[-1]
    axis.axhline(0, color="grey", linestyle=":", linewidth=1)
    axis.set(xlabel="optimizer step", ylabel="log pi / pi_ref (nats per response)",
             title=f"beta {beta:g}")
axes[0].legend(loc="center right")
lesson.figure("logps", figure, "The loss only widens the gap, and both curves fall: at beta 2 the "
              f"chosen end at {ends['chosen', 2.0]:.1f} nats and the rejected at "
              f"{ends['rejected', 2.0]:.1f}, at beta 0.1 at {ends['chosen', 0.1]:.0f} and "
              f"{ends['rejected', 0.1]:.0f}. One run; each point is the mean of 10 steps.")
lesson.done()
