"""The numbers of lesson 14: two objectives, weighed when labels are made or when a policy is."""

from statistics import mean

import torch

from data.world import World, WorldConfig
from dpo import dpo_train
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, REWARD, starting_point
from minigpt.evaluation import sample_responses
from minigpt.recipes import combined
from minigpt.sampling import generate
from ppo.train import PPOConfig, ppo_training
from reward.combine import Ensemble
from reward.evaluate import evaluate_reward_accuracy
from reward.start import train_centered
from reward.train import RewardConfig

lesson = Lesson("14_several_objectives", "experiments")
seeds = lesson.pick((0, 1, 2, 3, 4), (0,))
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
SHARES = lesson.pick((0.0, 0.25, 0.5, 0.75, 1.0), (0.5,))  # of the weight: helpful; rest: polite
count = lesson.pick(2000, 32)    # pairs for DPO, each read once
samples = lesson.pick(32, 1)     # answers to each held-out prompt
TOTAL = 2.0                      # the two weights' sum, as in the world's own true reward (1 + 1)
lesson.keep("shares", list(SHARES))


def labels(start, share):
    """The world's pairs, as annotators with these weights label them."""
    config = WorldConfig(**{**vars(start.world.config), "label_helpful_weight": TOTAL * share,
                            "label_polite_weight": TOTAL * (1 - share)})
    return World(config, start.seed).preferences


def figures_of(start, policy):
    """The mean of both dimensions over answers to the held-out prompts, and the KL."""
    prompts, answers = sample_responses(policy, start.world.heldout_prompts, samples,
                                        LONGEST_ANSWER, start.seed)
    parts = [start.world.reward_parts(prompt, answer.text)
             for prompt, answer in zip(prompts, answers, strict=True)]
    return {"helpful": mean(part[0] for part in parts), "polite": mean(part[1] for part in parts),
            "kl": start.measure(policy, samples)["kl_nats_per_response"]}


def reward_models(start):
    """One reward model for each dimension, trained on labels that see this dimension alone."""
    models, accuracies = [], []
    for share in (1.0, 0.0):
        rows = labels(start, share)
        config = RewardConfig(**REWARD | {"seed": start.seed, "num_epochs": 1})
        (model,), _, _ = train_centered(start.sft, rows[count:2 * count],
                                        start.world.prompts, config, LONGEST_ANSWER, samples=4)
        models.append(model)
        accuracies.append(evaluate_reward_accuracy(model, rows[-lesson.pick(500, 16):]))
    return models, accuracies


def by_rlhf(start, models, share):
    """Weights when the policy is trained: one policy from two reward models."""
    reward = Ensemble(models, weights=[TOTAL * share, TOTAL * (1 - share)])
    settings = {**combined(["lesson", "rloo"], PPOConfig), "advantage": "rloo", "seed": start.seed,
                "num_episodes": lesson.pick(40, 2), "batch_size": lesson.pick(64, 16)}
    return ppo_training(start.fresh_policy(), start.sft, reward, start.world.prompts,
                        **settings)[0]


def dpo(start, rows):
    return dpo_train(start.fresh_policy(), start.sft, rows,
                     **{**DPO, "batch_size": 16, "seed": start.seed})[0]


def by_labels(start, share):
    """Weights when the labels are made: annotators who weigh both."""
    return dpo(start, labels(start, share)[:count])


def by_mixing(start, share):
    """Weights as shares of the pairs: some labelled for one dimension alone, some for the other.

    With one share alone it is `by_labels`."""
    helpful, polite = labels(start, 1.0), labels(start, 0.0)
    first = round(share * count)
    return dpo(start, helpful[:first] + polite[first:count])


def limit(start, shares, kls):
    """The best mixes: SFT answers tilted by the weighted reward, to each of these KLs.

    -> for each KL, the (helpful, polite) of every share."""
    pools = [generate(start.sft, [prompt] * lesson.pick(256, 16), LONGEST_ANSWER, seed=n)
             for n, prompt in enumerate(start.world.heldout_prompts)]
    parts = torch.tensor([[start.world.reward_parts(prompt, answer.text) for answer in pool]
                          for prompt, pool in zip(start.world.heldout_prompts, pools,
                                                  strict=True)])                # (P, n, 2)
    return [[tilted(parts, share, kl) for share in shares] for kl in kls]


def tilted(parts, share, kl):
    """(helpful, polite) of the pool, tilted to this KL (by bisection on the logarithm of beta)."""
    reward = TOTAL * (share * parts[..., 0] + (1 - share) * parts[..., 1])      # (P, n)
    low, high = -6.0, 6.0
    for _ in range(40):
        middle = (low + high) / 2
        weights = (reward * 2.718281828 ** -middle).softmax(1)
        found = float((weights * (weights * reward.shape[1]).clamp(min=1e-30).log()).sum(1).mean())
        low, high = (middle, high) if found > kl else (low, middle)
    return (weights[..., None] * parts).sum(1).mean(0).tolist()


roads, accuracies = {"RLHF": [], "labels": [], "mixed": []}, []
for start in lesson.progress(starts.values(), "seeds"):
    models, of_seed = reward_models(start)
    accuracies.append(of_seed)
    roads["RLHF"].append([figures_of(start, by_rlhf(start, models, w)) for w in SHARES])
    roads["labels"].append([figures_of(start, by_labels(start, w)) for w in SHARES])
    roads["mixed"].append([figures_of(start, by_mixing(start, w)) for w in SHARES if 0 < w < 1])
lesson.keep("roads", roads)      # road -> seed -> share -> figures
lesson.keep("reward_accuracies", accuracies)
lesson.keep("sft", [figures_of(start, start.sft) for start in starts.values()])
lesson.keep("limit", [limit(start, lesson.pick((0, .1, .25, .4, .5, .6, .75, .9, 1), (0, 1)),
                            (0.5, 1.0, 2.0)) for start in starts.values()])
lesson.done()
