# %% [markdown]
# # 6. DPO or RLHF: the exercises, worked
# Predict first, then run: `python -m lessons 06 --solutions`.

# %%
import copy
import math
from statistics import mean

import torch

from dpo import dpo_train
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, PPO, starting_point
from minigpt.evaluation import sample_responses
from ppo import ppo_training
from reward import score

lesson = Lesson("06_dpo_or_rlhf", "solutions")
SEEDS = (0, 1)
HALF = lesson.pick(4000, 8)     # pairs
EPISODES = lesson.pick(30, 1)
TOKENS = lesson.pick(LONGEST_ANSWER, 6)
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in SEEDS}


def run_dpo(start, rows):
    return dpo_train(start.fresh_policy(), start.sft, rows, **DPO)[0]


def run_ppo(start, reward, policy, reference):
    """PPO from a copy of `policy`, with the KL counted from `reference`."""
    policy = copy.deepcopy(policy)
    prompts = start.world.prompts[:lesson.pick(None, 4)]
    return ppo_training(policy, reference, reward, prompts,
                        **{**PPO, "num_episodes": EPISODES, "max_new_tokens": TOKENS})[0]


def look(start, policy):
    """What the policy says to held-out prompts."""
    return start.measure(policy, samples=lesson.pick(16, 1))


def keep(name, figures):
    """Mean and spread over the seeds of what `measure` says."""
    for key, short in (("true_reward", "reward"), ("kl_nats_per_response", "kl"), ("right_share", "right")):
        lesson.number(f"{name}_{short}", [each[key] for each in figures], ".2f")


# %% [markdown]
# ## 1. One label in five is flipped
# With noise e, an annotator who would choose the first answer with probability P now does so with (1 - e) P + e (1 - P).
# The log-odds of that can never pass log((1 - e) / e).

# %%
NOISE = 0.2
lesson.number("noise_cap", math.log((1 - NOISE) / NOISE), ".2f")
noisy_dpo, noisy_ppo, clean_dpo, clean_ppo, half_dpo = [], [], [], [], {}
for seed, start in starts.items():
    noisy = starting_point(seed, quick=lesson.quick, label_noise=NOISE)
    half_dpo[seed] = run_dpo(start, start.world.preferences[:HALF])
    clean_dpo.append(look(start, half_dpo[seed]))
    noisy_dpo.append(look(start, run_dpo(start, noisy.world.preferences[:HALF])))
    clean_ppo.append(look(start, run_ppo(start, start.reward, start.sft, start.sft)))
    noisy_ppo.append(look(start, run_ppo(start, noisy.reward, start.sft, start.sft)))
for name, figures in (("noisy_dpo", noisy_dpo), ("noisy_ppo", noisy_ppo), ("clean_dpo", clean_dpo),
                      ("clean_ppo", clean_ppo)):
    keep(name, figures)

# %% [markdown]
# ## 2. Another reference in the second stage
# DPO first, then PPO: once with its KL counted from the SFT model, once from the DPO model that it starts from.

# %%
from_sft, from_dpo = [], []
for seed, start in starts.items():
    from_sft.append(look(start, run_ppo(start, start.reward, half_dpo[seed], start.sft)))
    from_dpo.append(look(start, run_ppo(start, start.reward, half_dpo[seed], half_dpo[seed])))
keep("reference_sft", from_sft)
keep("reference_dpo", from_dpo)

# %% [markdown]
# ## 3. Best-of-n on top of DPO
# The reward model picks from the DPO model's answers instead of the SFT model's.

# %%
N, GROUPS = lesson.pick((16, 8), (2, 1))
picked = {"alone": [], "best": []}
for seed, start in starts.items():
    asked, answers = sample_responses(half_dpo[seed], start.world.heldout_prompts, N * GROUPS,
                                      TOKENS, seed)
    scores = score(start.reward, asked, [answer.ids for answer in answers]).view(-1, N)
    rewards = torch.tensor([start.world.true_reward(p, a.text) for p, a in zip(asked, answers, strict=True)]).view(-1, N)
    picked["alone"].append(float(rewards.mean()))
    picked["best"].append(float(rewards.gather(1, scores.argmax(1, keepdim=True)).mean()))
for name, values in picked.items():
    lesson.number(f"dpo_{name}", values, ".2f")
lesson.number("best_of", str(N))
lesson.number("best_gain", mean(picked["best"]) - mean(picked["alone"]), ".2f")

# %% [markdown]
# ## 4. What does a model of 7 billion weights need?
# Mixed precision: 2 bytes a weight to compute with; a trained model also 2 for its gradient, 4 for the exact weights and
# 8 for Adam's two moments.

# %%
WEIGHTS, FROZEN, TRAINED = 7e9, 2, 2 + 2 + 4 + 8
for name, trained, frozen in (("dpo", 1, 1), ("dpo_kept", 1, 0), ("ppo", 2, 2), ("reward", 1, 0)):
    lesson.number(f"gb_{name}", WEIGHTS * (trained * TRAINED + frozen * FROZEN) / 1e9, ".0f")
lesson.number("gb_weights_only", 2 * WEIGHTS * FROZEN / 1e9, ".0f")
lesson.done()
