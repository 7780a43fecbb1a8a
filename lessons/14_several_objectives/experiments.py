"""The numbers of lesson 14: two objectives, weighed when pairs are labelled or a policy trained."""

import copy
import time
from statistics import mean

import torch

from data.world import World, WorldConfig
from dpo import dpo_train
from lessons.course import Lesson
from lessons.limit import BETAS, Frontier
from lessons.start import DPO, LONGEST_ANSWER, REWARD, starting_point
from minigpt.evaluation import evaluate_policy
from minigpt.recipes import combined
from minigpt.sampling import generate
from ppo.train import PPOConfig, ppo_training
from reward.combine import Ensemble
from reward.evaluate import evaluate_reward_accuracy, reward_margins
from reward.start import train_centered
from reward.train import RewardConfig

lesson = Lesson("14_several_objectives", "experiments")
seeds = lesson.pick((0, 1, 2, 3, 4), (0,))
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
SHARES = lesson.pick((0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0))  # on helpful; rest: polite
BETWEEN = [share for share in SHARES if 0 < share < 1]
count = lesson.pick(1600, 32)    # pairs, the same ones for every road, each read once
samples = lesson.pick(32, 1)     # answers to each held-out prompt
TOTAL = 2.0                      # of the two weights in the labels
BETA = DPO["beta"]               # RLHF's kl_coeff, too: the two then have the same optimum


def labels(start, share):
    """The world's pairs, as annotators label them who weigh helpful and polite like this.

    At a share of one half they are the world's own, whose true reward is helpful + polite."""
    config = WorldConfig(**{**vars(start.world.config), "label_helpful_weight": TOTAL * share,
                            "label_polite_weight": TOTAL * (1 - share)})
    return World(config, start.seed).preferences[:count]


# %% The roads
def reward_models(start):
    """One for each objective, trained on labels that see this objective alone."""
    config = RewardConfig(**REWARD | {"seed": start.seed, "num_epochs": 1})
    return [train_centered(start.sft, labels(start, share), start.world.prompts, config,
                           LONGEST_ANSWER, samples=4)[0][0] for share in (1.0, 0.0)]


def by_rlhf(start, models, share):
    """Weights on the rewards: RLOO on the weighted sum of the two reward models."""
    settings = {**combined(["lesson", "rloo"], PPOConfig), "advantage": "rloo", "seed": start.seed,
                "kl_coeff": BETA, "num_episodes": lesson.pick(30, 2),
                "batch_size": lesson.pick(64, 16)}
    return ppo_training(start.fresh_policy(), start.sft,
                        Ensemble(models, weights=[share, 1 - share]), start.world.prompts,
                        **settings)[0]


def dpo(start, rows):
    return dpo_train(start.fresh_policy(), start.sft, rows,
                     **{**DPO, "batch_size": 16, "seed": start.seed})[0]


def mixed(start, share):
    """Weights as shares of the pairs: some are labelled for helpful alone, the rest for polite."""
    first = round(share * count)
    return labels(start, 1.0)[:first] + labels(start, 0.0)[first:]


def relabelled(start, models, share):
    """The pairs as the weighted sum of the two reward models labels them: nobody is asked again."""
    rows = labels(start, 1.0)
    margins = reward_margins(Ensemble(models, weights=[share, 1 - share]), rows)
    coins = torch.rand(len(rows), generator=torch.Generator().manual_seed(start.seed))
    return [row if keep else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
            for row, keep in zip(rows, coins < margins.sigmoid(), strict=True)]


def soup(helpful, polite, share):
    """A policy whose weights are the weighted mean of two policies' weights."""
    policy, theirs, others = copy.deepcopy(helpful), helpful.state_dict(), polite.state_dict()
    policy.load_state_dict({name: share * theirs[name] + (1 - share) * others[name]
                            for name in theirs})
    return policy


# %% What is measured
def accuracies(start, models):
    """On held-out pairs that differ in the objective: how often its reward model ranks them."""
    found = []
    for place, model in enumerate(models):
        rows = []
        for row in start.world.heldout_preferences:
            first, second = (start.world.reward_parts(row["prompt"], row[side])[place]
                             for side in ("chosen", "rejected"))
            if first != second:
                better, worse = ("chosen", "rejected") if first > second else ("rejected", "chosen")
                rows.append({**row, "chosen": row[better], "rejected": row[worse]})
        found.append(evaluate_reward_accuracy(model, rows))
    return found


def pair_kinds(start):
    """Of the training pairs: how many tie in an objective, and in how many the two disagree."""
    gaps = [[a - b for a, b in zip(*(start.world.reward_parts(row["prompt"], row[side])
                                     for side in ("chosen", "rejected")), strict=True)]
            for row in labels(start, 1.0)]
    return {"tie_helpful": mean(helpful == 0 for helpful, _ in gaps),
            "tie_polite": mean(polite == 0 for _, polite in gaps),
            "conflict": mean(helpful * polite < 0 for helpful, polite in gaps)}


def pool_of(start):
    """(helpful, polite) of many SFT answers to each held-out prompt: (P, n, 2)."""
    prompts, n = start.world.heldout_prompts, lesson.pick(256, 16)
    return torch.tensor([[start.world.reward_parts(prompt, answer.text) for answer in
                          generate(start.sft, [prompt] * n, LONGEST_ANSWER, seed=number)]
                         for number, prompt in enumerate(prompts)], dtype=torch.float64)


def weighted(parts, share):
    return share * parts[..., 0] + (1 - share) * parts[..., 1]


def tilted(parts, share, scales):
    """The best policy, SFT x exp(weighted reward / scale), for S scales: helpful, polite, KL."""
    rewards = weighted(parts, share)
    weights = (rewards / scales[:, None, None]).softmax(-1)                       # (S, P, n)
    kls = torch.special.xlogy(weights, weights * rewards.shape[1]).sum(-1).mean(-1)
    return torch.cat([(weights[..., None] * parts).sum(-2).mean(1), kls[:, None]], 1)  # (S, 3)


def limit(parts, shares, kls):
    """For each KL: (helpful, polite) of the best policy at this KL, for each share."""
    paths = [tilted(parts, share, BETAS) for share in shares]
    return [[path[(path[:, 2] - kl).abs().argmin(), :2].tolist() for path in paths] for kl in kls]


def figures_of(start, policy):
    """The means of both objectives over answers to held-out prompts, and the KL."""
    def both(prompts, texts):
        parts = [start.world.reward_parts(*pair) for pair in zip(prompts, texts, strict=True)]
        helpful, polite = zip(*parts, strict=True)
        return {"helpful": mean(helpful), "polite": mean(polite)}

    said = evaluate_policy(policy, start.sft, start.world.heldout_prompts, samples, LONGEST_ANSWER,
                           start.seed, both)
    return {"helpful": said["helpful"], "polite": said["polite"], "bytes": said["response_bytes"],
            "kl": said["kl_nats_per_response"]}


# %% Run
roads = {"RLHF": [], "labels": [], "mixed": [], "relabelled": [], "soup": []}
others = {name: [] for name in ("sft", "optimum", "limit", "accuracies", "pairs",
                                "reward_seconds")}


def timed(make, *arguments):
    """What make(*arguments) returns, and the seconds it took."""
    began = time.process_time()
    return make(*arguments), time.process_time() - began


def measured(start, parts, share, policy, seconds=0.0):
    """The figures of a policy, and its share of the gain that is possible at its KL."""
    found = figures_of(start, policy)
    worth = share * found["helpful"] + (1 - share) * found["polite"]
    of_gain = Frontier(weighted(parts, share)).share_of_gain(worth, found["kl"])
    return {**found, "worth": worth, "share_of_gain": of_gain, "seconds": seconds}


for start in lesson.progress(starts.values(), "seeds"):
    parts = pool_of(start)
    models, seconds = timed(reward_models, start)
    roads["RLHF"].append([measured(start, parts, share, *timed(by_rlhf, start, models, share))
                          for share in SHARES])
    policies = [timed(dpo, start, labels(start, share)) for share in SHARES]
    roads["labels"].append([measured(start, parts, share, *policy)
                            for share, policy in zip(SHARES, policies, strict=True)])
    roads["mixed"].append([measured(start, parts, share, *timed(dpo, start, mixed(start, share)))
                           for share in BETWEEN])
    roads["relabelled"].append([
        measured(start, parts, share, *timed(dpo, start, relabelled(start, models, share)))
        for share in BETWEEN])
    (polite, _), *_, (helpful, _) = policies
    roads["soup"].append([measured(start, parts, share, soup(helpful, polite, share))
                          for share in BETWEEN])
    scale = torch.tensor([BETA * start.world.config.temperature / TOTAL], dtype=torch.float64)
    others["optimum"].append([tilted(parts, share, scale)[0].tolist() for share in SHARES])
    others["limit"].append(limit(parts, lesson.pick((0, .1, .25, .4, .5, .6, .75, .9, 1), (0, 1)),
                                 (0.5, 1.0, 2.0)))
    others["sft"].append(figures_of(start, start.sft))
    others["accuracies"].append(accuracies(start, models))
    others["pairs"].append(pair_kinds(start))
    others["reward_seconds"].append(seconds)
lesson.keep("shares", list(SHARES))
lesson.keep("roads", roads)      # road -> seed -> share -> figures
for name, of_seeds in others.items():
    lesson.keep(name, of_seeds)  # one value a seed
lesson.done()
