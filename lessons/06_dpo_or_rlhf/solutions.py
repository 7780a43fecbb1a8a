# %% [markdown]
# # 6. DPO or RLHF: the exercises, worked
# Predict first, then run: `python -m lessons 06 --solutions`.  Five seeds, so it takes minutes:
# DPO reads 2,000 pairs, PPO runs for a quarter of its recipe's episodes.

# %%
import copy
import math

import torch

from dpo import dpo_train
from lessons.course import Lesson, spread
from lessons.start import DPO, LONGEST_ANSWER, PPO, REWARD, starting_point
from minigpt.evaluation import sample_responses
from ppo import ppo_training
from reward import score
from reward.start import train_centered
from reward.train import RewardConfig

lesson = Lesson("06_dpo_or_rlhf", "solutions")
PAIRS, EPISODES, TOKENS = lesson.pick((2000, 15, LONGEST_ANSWER), (8, 1, 6))
starts = [starting_point(seed, quick=lesson.quick) for seed in range(lesson.pick(5, 2))]


def run_dpo(start, pairs):
    return dpo_train(start.fresh_policy(), start.sft, pairs, seed=start.seed, **DPO)[0]


def run_ppo(start, reward, policy, reference):
    """PPO from a copy of `policy`, with the KL counted from `reference`."""
    settings = PPO | {"num_episodes": EPISODES, "max_new_tokens": TOKENS}
    prompts = start.world.prompts[:lesson.pick(None, 4)]
    return ppo_training(copy.deepcopy(policy), reference, reward, prompts, seed=start.seed,
                        **settings)[0]


def reward_model(start, pairs):
    (model,), _, _ = train_centered(start.sft, pairs, start.world.prompts,
                                    RewardConfig(seed=start.seed, **REWARD), TOKENS, samples=4)
    return model


def report(name, title, policies):
    """A table of what policies say, one of each seed behind a label.  Returns their figures."""
    found, rows = {}, []
    for label, of_seeds in policies.items():
        figures = [start.measure(policy, samples=lesson.pick(32, 1))
                   for start, policy in zip(starts, of_seeds, strict=True)]
        found[label] = {key: [each[key] for each in figures]
                        for key in ("true_reward", "kl_nats_per_response", "right_share")}
        rows.append([label, *(spread(values, ".2f") for values in found[label].values())])
    lesson.table(name, ["", "true reward", "KL from SFT (nats)", "right answers"], rows, title)
    return found


def difference(name, more, less):
    """A number: how much larger a figure is, within each seed."""
    lesson.number(name, [a - b for a, b in zip(more, less, strict=True)], "+.2f")


# %% [markdown]
# ## 1. One label in five is flipped
# With noise e, an annotator who would choose the first answer with probability P now does so with
# (1 - e) P + e (1 - P).  The log-odds of that can never pass log((1 - e) / e).

# %%
NOISE = 0.2
lesson.number("noise_cap", math.log((1 - NOISE) / NOISE), ".2f")
trained = {f"{method}, {labels} labels": []
           for method in ("DPO", "PPO") for labels in ("clean", "noisy")}
for start in lesson.progress(starts, "seeds"):
    clean = start.world.preferences[:PAIRS]
    generator = torch.Generator().manual_seed(start.seed)
    flipped = torch.rand(len(clean), generator=generator) < NOISE
    noisy = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} if flip else row
             for row, flip in zip(clean, flipped.tolist(), strict=True)]
    for labels, pairs in (("clean", clean), ("noisy", noisy)):
        reward = reward_model(start, pairs)
        trained[f"DPO, {labels} labels"].append(run_dpo(start, pairs))
        trained[f"PPO, {labels} labels"].append(run_ppo(start, reward, start.sft, start.sft))
found = report("noise", "Exercise 1: one label in five is flipped", trained)
for method in ("DPO", "PPO"):
    for key, short in (("true_reward", "reward"), ("kl_nats_per_response", "kl")):
        difference(f"noise_changes_{method.lower()}_{short}", found[f"{method}, noisy labels"][key],
                   found[f"{method}, clean labels"][key])

# %% [markdown]
# ## 2. Another reference in the second stage
# DPO first, then PPO: once with its KL counted from the SFT model, once from the DPO model that it
# starts from.

# %%
after_dpo = trained["DPO, clean labels"]
second = {"KL counted from the SFT model": [], "KL counted from the DPO model": []}
for start, dpo in zip(lesson.progress(starts, "seeds"), after_dpo, strict=True):
    for label, reference in zip(second, (start.sft, dpo), strict=True):
        second[label].append(run_ppo(start, start.reward, dpo, reference))
from_sft, from_dpo = report("references", "Exercise 2: PPO after DPO", second).values()
for key, short in (("true_reward", "reward"), ("kl_nats_per_response", "kl")):
    difference(f"reference_changes_{short}", from_dpo[key], from_sft[key])

# %% [markdown]
# ## 3. Best-of-n on top of DPO
# The reward model picks from the DPO model's answers instead of the SFT model's.

# %%
N, GROUPS = lesson.pick((16, 8), (2, 1))
alone, best = [], []
for start, dpo in zip(starts, after_dpo, strict=True):
    prompts, answers = sample_responses(dpo, start.world.heldout_prompts, N * GROUPS, TOKENS,
                                        start.seed)
    rewards = torch.tensor([start.world.true_reward(prompt, answer.text)
                            for prompt, answer in zip(prompts, answers, strict=True)]).view(-1, N)
    scores = score(start.reward, prompts, [answer.ids for answer in answers]).view(-1, N)
    alone.append(float(rewards.mean()))
    best.append(float(rewards.gather(1, scores.argmax(1, keepdim=True)).mean()))
lesson.number("dpo_alone", alone, ".2f")
lesson.number("dpo_best", best, ".2f")
difference("best_gain", best, alone)

# %% [markdown]
# ## 4. What does a model of 7 billion weights need?
# Mixed precision: 2 bytes per weight to compute with.  A trained model also needs 2 for its
# gradient, 4 for the exact weights and 8 for Adam's two moments.

# %%
WEIGHTS, FROZEN, TRAINED = 7e9, 2, 2 + 2 + 4 + 8
for name, trained_models, frozen_models in (("dpo", 1, 1), ("dpo_kept", 1, 0), ("ppo", 2, 2),
                                            ("reward", 1, 0)):
    lesson.number(f"gb_{name}", WEIGHTS * (trained_models * TRAINED + frozen_models * FROZEN) / 1e9,
                  ".0f")
lesson.number("gb_weights_only", 2 * WEIGHTS * FROZEN / 1e9, ".0f")
lesson.done()
