# %% [markdown]
# # 14. Several objectives: the exercises, worked
# Predict first, then run: `python -m lessons 14 --solutions`.

# %%
import math
from statistics import mean

import torch

from data.world import World, WorldConfig
from lessons.course import Lesson, results_of
from lessons.start import DPO, LONGEST_ANSWER, REWARD, starting_point
from minigpt.evaluation import evaluate_policy
from minigpt.recipes import combined
from ppo.train import PPOConfig, ppo_training
from reward.combine import Ensemble
from reward.start import train_centered
from reward.train import RewardConfig

lesson = Lesson("14_several_objectives", "solutions")
start = starting_point(quick=lesson.quick)
world = start.world

# %% [markdown]
# ## 1. Write it yourself: the Pareto front
# Of the policies that the article measured, in means over its seeds.


# %%
def pareto(points):
    """(N, K) -> (N,): whether no other point is at least as good on all, and better on one."""
    as_good = (points[None] >= points[:, None]).all(-1)   # [i, j]: j is as good as i on all
    better = (points[None] > points[:, None]).any(-1)     # ... and better on one
    return ~(as_good & better).any(1)


kept = results_of(lesson.name)["experiments"]["data"]
names, points = [], []
for road, of_seeds in kept["roads"].items():
    weights = kept["shares"][1:-1] if len(of_seeds[0]) < len(kept["shares"]) else kept["shares"]
    for place, weight in enumerate(weights):
        names.append((road, f"{weight:.0%}"))
        points.append([mean(of_seed[place][key] for of_seed in of_seeds)
                       for key in ("helpful", "polite")])
found = pareto(torch.tensor(points)).tolist()
lesson.table("front", ["method", "weight on helpful", "helpful", "polite"],
             [[*name, f"{helpful:+.2f}", f"{polite:+.2f}"] for name, (helpful, polite), on
              in sorted(zip(names, points, found, strict=True), key=lambda one: one[1]) if on],
             title=f"On the front: {sum(found)} of {len(found)} policies")

# %% [markdown]
# ## 2. To vote, or to add up?
# Pairs in which one answer is more helpful and the other more polite. How often is the more helpful
# one chosen, if everybody weighs both, and if half look only at facts and half only at manners?


# %%
def chosen_rate(gap):
    """How often Bradley-Terry annotators choose the answer whose reward is higher by this gap."""
    return 1 / (1 + math.exp(-gap / world.config.temperature))


gaps = {}
for row in world.preferences[:lesson.pick(4000, 96)]:
    (h1, p1), (h2, p2) = (world.reward_parts(row["prompt"], row[side])
                          for side in ("chosen", "rejected"))
    if (h1 - h2) * (p1 - p2) < 0:
        gap = abs(round(h1 - h2, 2)), -abs(p1 - p2)
        gaps[gap] = gaps.get(gap, 0) + 1
commonest = sorted(gaps, key=gaps.get, reverse=True)[:5]
lesson.table("votes", ["helpful gap", "polite gap", "pairs", "everybody weighs both",
                       "half and half"],
             [[f"{helpful:+.2f}", f"{polite:+.1f}", gaps[helpful, polite],
               f"{chosen_rate(helpful + polite):.0%}",
               f"{(chosen_rate(2 * helpful) + chosen_rate(2 * polite)) / 2:.0%}"]
              for helpful, polite in commonest],
             title="How often the more helpful answer is chosen, in the five commonest conflicts")

# %% [markdown]
# ## 3. The scale of a reward
# Multiply the score of the polite reward model by 3, and leave the weights at 50 : 50.


# %%
def labels(weight):
    config = WorldConfig(**{**vars(world.config), "label_helpful_weight": 2 * weight,
                            "label_polite_weight": 2 * (1 - weight)})
    return World(config, start.seed).preferences[:lesson.pick(1000, 32)]


def both(prompts, texts):
    parts = [world.reward_parts(*pair) for pair in zip(prompts, texts, strict=True)]
    helpful, polite = zip(*parts, strict=True)
    return {"helpful": mean(helpful), "polite": mean(polite)}


def trained(rewards, weights):
    """Both objectives and the KL after RLOO on the rewards with these weights, as table cells."""
    settings = {**combined(["lesson", "rloo"], PPOConfig), "advantage": "rloo", "batch_size": 64,
                "kl_coeff": DPO["beta"], "num_episodes": lesson.pick(25, 2)}
    policy, _, _ = ppo_training(start.fresh_policy(), start.sft,
                                Ensemble(rewards, weights=weights), world.prompts, **settings)
    said = evaluate_policy(policy, start.sft, world.heldout_prompts, lesson.pick(32, 1),
                           LONGEST_ANSWER, 0, both)
    return [f"{said['helpful']:+.2f}", f"{said['polite']:+.2f}",
            f"{said['kl_nats_per_response']:.2f}"]


rewards = [train_centered(start.sft, labels(weight), world.prompts,
                          RewardConfig(**REWARD | {"num_epochs": 1}), LONGEST_ANSWER)[0][0]
           for weight in lesson.progress((1.0, 0.0), "reward models")]
tripled = [rewards[0], Ensemble([rewards[1]], weights=[3.0])]
lesson.table("scales", ["polite score", "weights", "helpful", "polite", "KL (nats)"], [
    ["unchanged", "50 : 50", *trained(rewards, [0.5, 0.5])],
    ["times 3", "50 : 50", *trained(tripled, [0.5, 0.5])],
    ["unchanged", "25 : 75", *trained(rewards, [0.25, 0.75])]],
    title="The same weights, another scale")
lesson.done()
