# %% [markdown]
# # 11. Without a critic: the exercises, worked
# Predict first, then run: `python -m lessons 11 --solutions`.

# %%
from statistics import mean

import torch

from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, MODELS, starting_point
from minigpt.batching import collate
from minigpt.checkpoint import load_checkpoint
from minigpt.evaluation import sample_responses
from minigpt.examples import tokenize_example
from minigpt.logprobs import token_logps
from ppo.advantages import grpo_advantages, rloo_advantages
from ppo.loss import ppo_loss
from ppo.rollout import RolloutMaker
from reward.combine import as_reward

lesson = Lesson("11_without_a_critic", "solutions")
start = starting_point(quick=lesson.quick)
longest = lesson.pick(LONGEST_ANSWER, 8)

# %% [markdown]
# ## 1. Another scale
# RLOO's advantages follow the scale of the scores, GRPO's do not. Neither sees a shift.

# %%
GROUPS = {"one of four is right": [1.0, 0.0, 0.0, 0.0],
          "ten times the scores": [10.0, 0.0, 0.0, 0.0],
          "five more for each": [6.0, 5.0, 5.0, 5.0], "two are right": [1.0, 1.0, 0.0, 0.0],
          "nearly a tie": [0.01, 0.0, 0.0, 0.0], "a tie": [1.0, 1.0, 1.0, 1.0]}


def listed(values):
    return ", ".join(f"{round(value, 2) + 0.0:g}" for value in values)


rows = []
for name, scores in GROUPS.items():
    rloo, grpo = (advantages(torch.tensor([scores]))[0].tolist()
                  for advantages in (rloo_advantages, grpo_advantages))
    rows.append([name, listed(scores), listed(rloo), listed(grpo)])
lesson.table("scales", ["", "scores", "RLOO's advantages", "GRPO's advantages"], rows,
             title="One group, on several scales")

# %% [markdown]
# ## 2. How many groups are flat?
# By the formula from each prompt's own p, by the formula from the mean p of all prompts, and
# counted on other answers.

# %%
policies = {"SFT": start.sft, "PPO": load_checkpoint(MODELS / "ppo.pt")}
samples, rows = lesson.pick(32, 16), []
prompts = lesson.pick(start.world.prompts, start.world.prompts[:4])


def verified(policy, seed):
    """(P, samples) of 0 and 1: which answers of a policy are right and complete."""
    repeated, answers = sample_responses(policy, prompts, samples, longest, seed)
    right = start.world.verify(repeated, [answer.text for answer in answers])
    return torch.tensor(right).view(-1, samples)


def flat(p, k):
    """The chance that k answers, each right with probability p, all score the same."""
    return float((p**k + (1 - p) ** k).mean())


for name, policy in policies.items():
    p, others = verified(policy, seed=0).mean(1), verified(policy, seed=1)
    lesson.number(f"right_{name}", float(p.mean()), ".2f")
    for k in (2, 4, 8, 16):
        groups = others.view(-1, k)
        counted = float((groups.amax(1) == groups.amin(1)).double().mean())
        rows.append([name, k, f"{flat(p, k):.0%}", f"{flat(p.mean(), k):.0%}", f"{counted:.0%}"])
        lesson.number(f"flat_{name}_{k}", counted, ".0%")
lesson.table("flat", ["answers of", "k", "from each prompt's p", "from the mean p", "counted"],
             rows, title="Groups that all score the same, by a verifiable reward")

# %% [markdown]
# ## 3. What a baseline is worth
# The gradients of many rollouts of the same SFT model: their mean is the same, their scatter is
# not.

# %%
policy = start.fresh_policy().requires_grad_(True)
roll_out = RolloutMaker(start.sft, as_reward(start.reward), longest, 1.0, samples_per_prompt=4)
questions = collate([tokenize_example(text, [], policy.max_seq_len)
                     for text in start.world.prompts[::4]])


def gradient(rollout, advantages):
    """Of the policy loss on one rollout, all weights in one row."""
    logps = token_logps(policy, rollout.batch)
    loss, _ = ppo_loss(logps, rollout.logps, rollout.batch.on_tokens(advantages), rollout.mask)
    gradients = torch.autograd.grad(loss, list(policy.parameters()))
    return torch.cat([each.flatten() for each in gradients])


BASELINES = {"none": lambda scores: scores, "less": lambda scores: scores - 10,
             "more": lambda scores: scores + 10,
             "batch_mean": lambda scores: scores - scores.mean(), "rloo": rloo_advantages}
LABELS = {"none": "none", "less": "none, every score 10 lower",
          "more": "none, every score 10 higher", "batch_mean": "mean of the batch",
          "rloo": "mean of the group's others (RLOO)"}
gradients = {name: [] for name in BASELINES}
for seed in lesson.progress(range(lesson.pick(60, 3)), "rollouts"):
    rollout = roll_out(policy, questions, 0.0, torch.Generator().manual_seed(seed))
    for name, advantages in BASELINES.items():
        gradients[name].append(gradient(rollout, advantages(rollout.scores)))
noise = {}
for name, drawn in gradients.items():
    middle = torch.stack(drawn).mean(0)
    noise[name] = mean(float((each - middle).square().sum()) for each in drawn) ** 0.5
    lesson.number(f"noise_{name}", noise[name] / noise["none"], ".2f")
lesson.table("noise", ["baseline", "noise of the gradient"],
             [[LABELS[name], f"{noise[name] / noise['none']:.2f}"] for name in BASELINES],
             title="Root mean square distance from the mean gradient; without a baseline it is 1")
lesson.done()
