"""The experiments of lesson 7: five seeds, a quarter of an hour of one core."""

import copy
import math
from dataclasses import replace
from statistics import mean

import torch

from data.world import World
from dpo.train import dpo_train
from lessons.course import Lesson
from lessons.limit import BETAS, Frontier, best_of_n_kl
from lessons.start import DPO, LONGEST_ANSWER, PPO, REWARD, starting_point
from minigpt import generate
from minigpt.evaluation import kl_to_reference, sample_responses
from ppo.train import ppo_training
from reward.combine import Ensemble
from reward.evaluate import accuracy_by_fault, evaluate_reward_accuracy, reward_margins, score
from reward.start import fresh_reward_model, train_centered
from reward.train import RewardConfig, train_reward_model

lesson = Lesson("07_over_optimisation", "experiments")
SEEDS = lesson.pick((0, 1, 2, 3, 4), (0, 1))
PAIRS = lesson.pick(1000, 32)             # of a project that could afford few
POOL, SAMPLES = lesson.pick((512, 16), (16, 2))  # answers to a held-out prompt: of SFT, of a policy
NS = lesson.pick((1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 4, 16))
DPO_BETAS = lesson.pick((0.3, 1.0, 2.0, 8.0), (0.3, 2.0))
KL_COEFFS = lesson.pick((0.02, 0.1, 0.3, 1.0), (0.02, 1.0))
LOW, FIRM = KL_COEFFS[0], 1.0             # prices of a nat: PPO let loose, PPO held
LONGEST = lesson.pick(LONGEST_ANSWER, 8)
WATCH_EVERY = lesson.pick(3, 1)           # episodes
FEW_PAIRS_DPO = {**DPO, "num_epochs": lesson.pick(3, 1)}
CONSTANT_PPO = {**PPO, "num_episodes": lesson.pick(24, 2), "batch_size": lesson.pick(128, 8),
                "max_new_tokens": LONGEST, "final_lr": 1.0}  # no schedule: longer is harder
PROXIES = {"many": {}, "few": {"preference_rows": PAIRS},
           "biased": {"preference_rows": PAIRS, "length_bias": 4.0}}
GRID = BETAS[::4]


def listed(tensor):
    """A tensor as JSON can hold it, rounded."""
    return tensor.double().round(decimals=4).tolist()


# --- what is said of answers ---------------------------------------------------------------------

def judged(world, prompt, text):
    """What the world says of an answer.  Broken: a word that does not exist, or no end."""
    found = world.judge(prompt, text)
    return {"true_reward": world.true_reward(prompt, text), "words": found.words,
            "right": found.right, "polite": found.tone == "polite", "evasive": found.evasive,
            "obedient": found.obedient, "unknown": found.unknown_words,
            "broken": found.unknown_words > 0 or not found.complete}


def columns(rows):
    """A list of dicts as a dict of tensors."""
    return {name: torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
            for name in rows[0]}


def look(start, policy, judges, seed=0):
    """Means over a policy's answers to the held-out prompts; judges: reward models by name.

    *_whole: over the answers that are not broken (0 if all are).
    """
    prompts, answers = sample_responses(policy, start.world.heldout_prompts, SAMPLES, LONGEST, seed)
    texts = [answer.text for answer in answers]
    said = columns([judged(start.world, *pair) for pair in zip(prompts, texts, strict=True)])
    said |= {name: score(model, prompts, texts).double() for name, model in judges.items()}
    whole = 1 - said["broken"]
    said |= {f"{name}_whole": said[name] * whole / whole.mean().clamp_min(1e-9)
             for name in ("true_reward", *judges)}
    kl = kl_to_reference(policy, start.sft, prompts, answers)["kl_nats_per_response"]
    return {"kl": kl, **{name: round(float(value.mean()), 4) for name, value in said.items()}}


# --- the closed form: every policy is a set of weights on SFT's own answers ----------------------

class Pool:
    """SFT answers to every held-out prompt; said: what the world says of each, (P, n) by name."""

    def __init__(self, start):
        self.prompts = start.world.heldout_prompts
        self.texts = [[answer.text for answer in generate(start.sft, [prompt] * POOL, LONGEST,
                                                          seed=number)]
                      for number, prompt in enumerate(self.prompts)]
        said = columns([judged(start.world, prompt, text) for prompt, texts
                        in zip(self.prompts, self.texts, strict=True) for text in texts])
        self.said = {name: value.view(-1, POOL) for name, value in said.items()}
        self.limit = Frontier(self.said["true_reward"])

    def scores(self, model):
        """The model's reward of every answer, (P, n).

        A text is scored once: in batches of different padding it might not tie with itself.
        """
        rows = []
        for prompt, texts in zip(self.prompts, self.texts, strict=True):
            different = sorted(set(texts))
            found = dict(zip(different, score(model, [prompt] * len(different), different).tolist(),
                             strict=True))
            rows.append([found[text] for text in texts])
        return torch.tensor(rows, dtype=torch.float64)


def tilt(scores, betas=GRID):
    """Log of what each answer weighs under ref exp(score / beta) / Z: (betas, P, n)."""
    return (scores / betas[:, None, None]).log_softmax(-1)


def kl_of(log_weights):
    """In nats, the mean over prompts: (betas,)."""
    return (log_weights.exp() * (log_weights + math.log(log_weights.shape[-1]))).sum(-1).mean(-1)


def mean_of(log_weights, values):
    return (log_weights.exp() * values).sum(-1).mean(-1)


def covariance(log_weights, a, b):
    """Within each prompt, then the mean over prompts: (betas,)."""
    weights = log_weights.exp()
    return ((weights * a * b).sum(-1) - (weights * a).sum(-1) * (weights * b).sum(-1)).mean(-1)


def curve(pool, scores):
    """What the perfect optimiser of these scores gets, at each beta of the grid."""
    weights, truth = tilt(scores), pool.said["true_reward"]
    variances = [covariance(weights, values, values) for values in (scores, truth)]
    correlation = covariance(weights, scores, truth) / (variances[0] * variances[1]).sqrt()
    found = {"kl": kl_of(weights), "proxy": mean_of(weights, scores), "correlation": correlation}
    found |= {name: mean_of(weights, pool.said[name])
              for name in ("true_reward", "words", "right", "broken")}
    slope = {"slope_predicted": correlation[0] * (2 * variances[1][0]).sqrt(),
             "slope_seen": (found["true_reward"][0] - pool.limit.start) / found["kl"][0].sqrt()}
    return {name: listed(value) for name, value in (found | slope).items()}


def optimum(pool, scores, beta):
    """The perfect optimiser at one price of a nat."""
    weights = tilt(scores, torch.tensor([beta], dtype=torch.float64))
    return {"kl": float(kl_of(weights)), **{name: round(float(mean_of(weights, pool.said[name])), 4)
                                            for name in ("true_reward", "broken")}}


def best_of(pool, scores, n):
    """The same figures as `look`, of the best-scored of n answers (ties: any of them)."""
    said = {**pool.said, "proxy": scores, "whole": 1 - pool.said["broken"]}
    said |= {f"{name}_whole": said[name] * said["whole"] for name in ("true_reward", "proxy")}
    total = {name: torch.zeros((), dtype=torch.float64) for name in said}
    for prompt, s in enumerate(scores):
        _, group, counts = s.unique(return_inverse=True, return_counts=True)
        up_to = counts.double().cumsum(0) / len(s)
        chosen = up_to**n - (up_to - counts / len(s)).clamp_min(0) ** n  # each group of one score
        weight = (chosen / counts)[group]
        for name, values in said.items():
            total[name] += (weight * values[prompt]).sum() / len(scores)
    for name in ("true_reward_whole", "proxy_whole"):
        total[name] /= total["whole"].clamp_min(1e-9)
    return {"kl": mean(best_of_n_kl(s, n) for s in scores),
            **{name: listed(value) for name, value in total.items()}}


# --- training ------------------------------------------------------------------------------------

def by_dpo(start, beta):
    policy = start.fresh_policy()
    dpo_train(policy, start.sft, start.world.preferences, **FEW_PAIRS_DPO | {"beta": beta},
              seed=start.seed)
    return policy


def by_ppo(start, proxy, kl_coeff, **options):
    """A policy trained against a proxy, and a copy of it from the end of each episode."""
    policy, copies = start.fresh_policy(), []

    def keep_copy(prompts, texts):
        copies.append(copy.deepcopy(policy).eval())
        return {}

    ppo_training(policy, start.sft, proxy, start.world.prompts, measure=keep_copy, seed=start.seed,
                 **CONSTANT_PPO | {"kl_coeff": kl_coeff, **options})
    return policy, copies


def more_proxies(start, rows, seed, members=1):
    """Reward models made like that of `starting_point`, from these pairs, with other seeds."""
    config = RewardConfig(seed=seed, **REWARD)
    return train_centered(start.sft, rows, start.world.prompts, config, LONGEST, members, 4)[0]


def shared_errors(scores, others, truth):
    """The correlation of two models' errors: of the scores less what the truth explains of them."""
    truth = truth - truth.mean(-1, keepdim=True)
    errors = []
    for s in (scores, others):
        s = s - s.mean(-1, keepdim=True)
        errors.append((s - (s * truth).sum() / truth.square().sum() * truth).flatten())
    return float(torch.corrcoef(torch.stack(errors))[0, 1])


# --- one seed ------------------------------------------------------------------------------------

def closed_forms(pool, starts, scores, members, other):
    """What needs no policy: curves, reward models in numbers, ensembles for best-of-n."""
    truth = pool.said["true_reward"]
    by_member = torch.stack([scores["few"], *(pool.scores(model) for model in members)])
    combined = {"one": scores["few"], "mean": by_member.mean(0), "minimum": by_member.amin(0)}
    accuracy = {name: evaluate_reward_accuracy(start.reward, start.world.heldout_preferences)
                for name, start in starts.items()}
    accuracy["other"] = evaluate_reward_accuracy(other, starts["few"].world.heldout_preferences)
    return {"limit": {"kl": listed(pool.limit.kls[::4]),
                      "true_reward": listed(pool.limit.rewards[::4])},
            "sft": {name: round(float(value.mean()), 4) for name, value in pool.said.items()},
            "curves": {name: curve(pool, scores[name]) for name in starts},
            "bayes": starts["many"].world.bayes_accuracy(starts["many"].world.heldout_preferences),
            "accuracy": accuracy,
            "ensembles": {name: {"best": max(curve(pool, s)["true_reward"]),
                                 "end": curve(pool, s)["true_reward"][-1],
                                 "best_of_n": best_of(pool, s, NS[-1])["true_reward"]}
                          for name, s in combined.items()},
            "shared_errors": {
                "same pairs": shared_errors(by_member[0], by_member[1], truth),
                "other pairs": shared_errors(scores["few"], pool.scores(other), truth)}}


def sweeps(start, pool, scores, judges):
    """Best-of-n, DPO and PPO against the proxy of few pairs; DPO's policy at the lowest beta, and
    PPO's copies at the lowest price."""
    runs, loose = [], {}

    def keep(method, strength, seen, **more):
        kept = ("kl", "true_reward", "proxy", "broken", "true_reward_whole", "proxy_whole")
        runs.append({"method": method, "strength": strength, "seed": start.seed,
                     **{name: round(seen[name], 4) for name in kept}, **more})

    for n in NS:
        keep("best of n", n, best_of(pool, scores, n))
    for beta in DPO_BETAS:
        policy = by_dpo(start, beta)
        loose.setdefault("DPO", policy)
        keep("DPO", beta, look(start, policy, judges), optimum=optimum(pool, scores, beta))
    for kl_coeff in KL_COEFFS:
        policy, copies = by_ppo(start, start.reward, kl_coeff)
        keep("PPO", kl_coeff, look(start, policy, judges), optimum=optimum(pool, scores, kl_coeff))
        loose.setdefault("PPO", copies)
    return runs, loose["DPO"], loose["PPO"]


def cures(start, many, ensemble, along, checkpoints):
    """The same PPO at the low price, treated; the first two cures choose a checkpoint."""
    found, stops = {}, {}
    for judge in ("true_reward", "other"):
        judgements = [seen[judge] for seen in along]
        stop = judgements.index(max(judgements))
        stops[judge] = stop * WATCH_EVERY
        found[f"stop by {judge}"] = look(start, checkpoints[stop], {}, seed=77)  # fresh samples
    trials = {"target_kl": (start.reward, {"target_kl": 1.0,  # half a rollout: prices move fast
                                           "kl_horizon": len(start.world.prompts) // 2}),
              "minimum": (ensemble, {}), "many": (many.reward, {})}
    for name, (proxy, options) in trials.items():
        found[name] = look(start, by_ppo(start, proxy, LOW, **options)[0], {})
    return found, stops


def samples(starts, policies):
    """Three prompts; the most likely answer of each policy and four sampled ones, with scores."""
    world, rows = starts["few"].world, []
    for begin in ("What", "In one word", "In a sentence"):
        prompt = next((prompt for prompt in world.heldout_prompts if prompt.startswith(begin)),
                      world.heldout_prompts[0])
        for name, (policy, proxy) in policies.items():
            answers = generate(policy, [prompt], LONGEST, greedy=True) \
                + generate(policy, [prompt] * 4, LONGEST, seed=0)
            for text in [answer.text for answer in answers]:
                rows.append([prompt, name, text.replace("`", "'"),
                             listed(score(proxy, [prompt], [text]))[0],
                             round(world.true_reward(prompt, text), 4)])
    return rows


def one_seed(seed):
    """All of this lesson with one seed, as JSON can hold it."""
    starts = {name: starting_point(seed, lesson.quick, **options)
              for name, options in PROXIES.items()}
    few, many = starts["few"], starts["many"]
    pool = Pool(few)  # the SFT models are the same for all three
    scores = {name: pool.scores(start.reward) for name, start in starts.items()}
    members = more_proxies(few, few.world.preferences, 100 + seed, members=2)
    other, = more_proxies(few, many.world.preferences[:PAIRS], 1000 + seed)  # pairs of its own
    judges = {"proxy": few.reward, "other": other}
    found = closed_forms(pool, starts, scores, members, other)
    found["runs"], dpo, copies = sweeps(few, pool, scores["few"], judges)
    checkpoints = [few.sft, *copies[WATCH_EVERY - 1::WATCH_EVERY]]
    found["along"] = [look(few, policy, judges) for policy in checkpoints]
    biased, _ = by_ppo(starts["biased"], starts["biased"].reward, LOW)
    found["hacked"] = {"sft": found["along"][0], "few": found["along"][-1],
                       "biased": look(starts["biased"], biased,
                                      {"proxy": starts["biased"].reward})}
    found["cures"], found["stops"] = cures(few, many, Ensemble([few.reward, *members], "min"),
                                           found["along"], checkpoints)
    found["samples"] = samples(starts, {"SFT": (few.sft, few.reward), "DPO": (dpo, few.reward),
                                        "few": (copies[-1], few.reward),
                                        "biased": (biased, starts["biased"].reward)})
    return found


seeds = [one_seed(seed) for seed in lesson.progress(SEEDS, "seeds")]


# --- what lessons/reader/frontier.html shows -----------------------------------------------------

def average(curves):
    """A closed form of the slider: the mean over seeds at each beta."""
    return {"beta": listed(GRID), **{
        name: listed(torch.tensor([curve[name] for curve in curves]).double().mean(0))
        for name in ("kl", "true_reward")}}


lesson.keep("frontier", {
    "runs": [run for found in seeds for run in found.pop("runs")],
    "limit": average([found["limit"] for found in seeds]),
    "proxy_optimum": average([found["curves"]["few"] for found in seeds])})
lesson.keep("seeds", seeds)


# --- forty-two facts: are they learned last? One seed --------------------------------------------

facts = starting_point(0, lesson.quick, facts=lesson.pick(42, 8), **lesson.pick(
    {"plain_rows": 14_000, "sft_rows": 15_000, "preference_rows": 800}, {}))
pairs = World(replace(facts.world.config, preference_rows=lesson.pick(16_000, 64)), 0).preferences
config = {**REWARD, "num_epochs": 1}
by_pairs = {}
for count in lesson.pick((800, 4_000, 16_000), (32, 64)):
    model, _, _ = train_reward_model(fresh_reward_model(facts.sft, RewardConfig(**config)),
                                     pairs[:count], **config)
    margins = reward_margins(model, facts.world.heldout_preferences)
    by_pairs[str(count)] = accuracy_by_fault(facts.world, facts.world.heldout_preferences, margins)
lesson.keep("facts", {"sft_right": facts.measure(facts.sft, SAMPLES)["right_share"],
                      "by_pairs": by_pairs})
lesson.done()
