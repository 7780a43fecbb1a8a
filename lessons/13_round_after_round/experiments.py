"""The numbers of lesson 13: the same labels read once, or turned into a judge for many rounds."""

import copy
import random

import torch

from dpo import dpo_train
from dpo.rounds import OnlineConfig, dpo_rounds, pairs_of
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, REWARD, SFT, starting_point
from minigpt.evaluation import kl_to_reference, sample_responses
from minigpt.judged import RoundsConfig, sample_judged
from reward.evaluate import score
from reward.start import fresh_reward_model
from reward.train import RewardConfig, train_reward_model
from sft.rounds import RejectionConfig, sft_rounds
from sft.train import SFTConfig

lesson = Lesson("13_round_after_round", "experiments")
seeds = lesson.pick((0, 1, 2, 3, 4), (0,))
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
ROUNDS = lesson.pick(6, 2)
PROMPTS = lesson.pick(128, 8)    # answered in a round
LABELS = ROUNDS * PROMPTS        # the annotators' work that every road starts from
MORE = LABELS + (ROUNDS - 1) * PROMPTS  # and that of a judge that is refreshed between rounds
SAMPLES = lesson.pick(16, 2)     # answers to each held-out prompt, to measure
STEPS = {**DPO, "batch_size": 16}
for start in starts.values():
    start.pool = lesson.pick(128, 16)  # a quarter of the usual: the limit matters below 4 nats
lesson.keep("settings", {"rounds": ROUNDS, "prompts": PROMPTS, "labels": LABELS,
                         "all_labels": MORE,
                         "answers": RoundsConfig.samples_per_prompt})


# %% What judges an answer
def reward_model(start, labels):
    """A reward model of so many of the given pairs."""
    config = RewardConfig(seed=start.seed, **REWARD)
    rows = start.world.preferences[:labels]
    return train_reward_model(fresh_reward_model(start.sft, config), rows, **vars(config))[0]


def judge_of(model):
    """The scores of a reward model, as rounds ask for them."""
    return lambda prompts, responses: score(model, prompts, responses).tolist()


def annotators(start):
    """Scores whose Bradley-Terry choices are those of the world's annotators."""
    def judge(prompts, responses):
        return [start.world.label_reward(*pair) / start.world.config.temperature
                for pair in zip(prompts, responses, strict=True)]
    return judge


def refreshed(start, model, policy, seed):
    """The reward model after an epoch on new labels of the policy's answers and as many old."""
    two = RoundsConfig(rounds=1, samples_per_prompt=2, round_prompts=PROMPTS)
    judged, _ = sample_judged(policy, start.world.prompts, annotators(start), two, LONGEST_ANSWER,
                              seed)
    new = pairs_of(judged, "bradley-terry", seed)
    old = random.Random(seed).sample(start.world.preferences[:LABELS], len(new))
    settings = {**REWARD, "num_epochs": 1, "lr": REWARD["lr"] / 3, "seed": seed}
    return train_reward_model(copy.deepcopy(model), new + old, **settings)[0]


firsts = {seed: reward_model(start, LABELS) for seed, start in starts.items()}


# %% What is measured
def right_order(truth, scores):
    """The share of pairs of answers to one prompt that the scores order as the truth does."""
    truth, scores = (values[:, :, None] - values[:, None] for values in (truth, scores))
    return float((truth * scores > 0)[truth > 0].float().mean())


def figures_of(start, policy, now=None):
    """Of a policy's answers to held-out prompts: the truth, the first judge's view, the present's.
    """
    first = firsts[start.seed]
    asked, answers = sample_responses(policy, start.world.heldout_prompts, SAMPLES, LONGEST_ANSWER,
                                      start.seed)
    texts = [answer.text for answer in answers]
    truth = torch.tensor([start.world.true_reward(*pair)
                          for pair in zip(asked, texts, strict=True)])
    scores = [score(model, asked, texts) for model in (first, now or first)]
    kl = kl_to_reference(policy, start.sft, asked, answers)["kl_nats_per_response"]
    orders = [right_order(truth.view(-1, SAMPLES), values.view(-1, SAMPLES)) for values in scores]
    return {"reward": float(truth.mean()), "kl": kl, "score": float(scores[0].mean()),
            "share": start.frontier.share_of_gain(float(truth.mean()), kl),
            "right": start.world.measure(asked, texts)["right_share"],
            "bytes": sum(len(text.encode()) for text in texts) / len(texts),
            "distinct": len(set(zip(asked, texts, strict=True))) / len(texts),
            "first_order": orders[0], "order": orders[1]}


# %% One round, and a road of them
def online(start, policy, judge, seed, prompts=PROMPTS, **how):
    """A round of DPO on the policy's own answers, by default best against worst of eight."""
    config = OnlineConfig(rounds=1, round_prompts=prompts, **how)
    return dpo_rounds(policy, start.sft, start.world.prompts, judge, config,
                      DPOConfig(**STEPS | {"seed": seed}), LONGEST_ANSWER)[0]


def rejection(start, policy, judge, seed):
    """A round of SFT on the best of eight."""
    config = RejectionConfig(rounds=1, round_prompts=PROMPTS)
    return sft_rounds(policy, start.world.prompts, judge, config,
                      SFTConfig(**SFT | {"seed": seed}), LONGEST_ANSWER)[0]


def road(start, one_round, labels=LABELS, refresh=False, **how):
    """The figures after each round, from the SFT model's own on, with a reward model as judge."""
    policy = start.fresh_policy()
    now = firsts[start.seed] if labels == LABELS else reward_model(start, labels)
    history = [figures_of(start, policy, now)]
    for number in range(1, ROUNDS + 1):
        seed = 100 * start.seed + number
        if refresh and number > 1:
            now = refreshed(start, now, policy, seed)
        policy = one_round(start, policy, judge_of(now), seed, **how)
        history.append(figures_of(start, policy, now))
    return history


def by_annotators(start):
    """Rounds without a reward model: annotators compare two answers to each prompt."""
    policy = start.fresh_policy()
    for number in range(1, ROUNDS + 1):
        policy = online(start, policy, annotators(start), 100 * start.seed + number,
                        samples_per_prompt=2, pairs="bradley-terry")
    return figures_of(start, policy)


def at_once(start):
    """All prompts in a single round: as many pairs, none fresher than the SFT model."""
    return figures_of(start, online(start, start.fresh_policy(), judge_of(firsts[start.seed]),
                                    100 * start.seed, LABELS))


def offline(start):
    """One pass over the given pairs that the judge learned from."""
    return figures_of(start, dpo_train(start.fresh_policy(), start.sft,
                                       start.world.preferences[:LABELS],
                                       **STEPS, seed=start.seed)[0])


ROADS = {
    "online DPO": {"one_round": online},
    "online DPO, from the last round": {"one_round": online, "reference": "last"},
    "rejection sampling": {"one_round": rejection},
    "rejection sampling, refreshed judge": {"one_round": rejection, "refresh": True},
    "rejection sampling, more labels first": {"one_round": rejection, "labels": MORE},
}
ENDS = {"DPO, one pass": offline, "online DPO, in one round": at_once,
        "online DPO, annotators": by_annotators}
lesson.keep("ends", {name: [end(start) for start in starts.values()]
                     for name, end in lesson.progress(ENDS.items(), "without rounds")})
lesson.keep("roads", {name: [road(start, **how) for start in starts.values()]
                      for name, how in lesson.progress(ROADS.items(), "rounds")})
lesson.done()
