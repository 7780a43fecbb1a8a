"""The numbers of lesson 13: one pass over given pairs, beside rounds on one's own answers."""

import copy
import math
import random

from dpo import dpo_train, evaluate_preference_accuracy
from dpo.rounds import OnlineConfig, dpo_rounds
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, REWARD, SFT, starting_point
from minigpt.evaluation import sample_responses
from minigpt.judged import RoundsConfig
from reward.evaluate import evaluate_reward_accuracy, score
from reward.train import train_reward_model
from sft.rounds import RejectionConfig, sft_rounds
from sft.train import SFTConfig

lesson = Lesson("13_round_after_round", "experiments")
seeds = lesson.pick((0, 1, 2, 3, 4), (0,))
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
ROUNDS = lesson.pick(4, 2)
PROMPTS = lesson.pick(256, 8)     # answered in a round
NEW_PAIRS = lesson.pick(256, 8)   # labelled anew in a round, where the reward model is refreshed
samples = lesson.pick(32, 1)      # answers to each held-out prompt, to measure
JUDGE = "our own function"        # what the rounds' settings name is not read by the loops
lesson.keep("settings", {"rounds": ROUNDS, "prompts": PROMPTS, "new_pairs": NEW_PAIRS,
                         "samples_per_prompt": RoundsConfig.samples_per_prompt})


def labelled(start, policy, prompts, count, seed):
    """Pairs of the policy's own answers, labelled as the world's annotators label."""
    rng = random.Random(seed)
    asked = [rng.choice(prompts) for _ in range(count)]
    prompts, answers = sample_responses(policy, asked, 2, LONGEST_ANSWER, seed)
    rows = []
    for n in range(0, len(prompts), 2):
        first, second = (answer.text for answer in answers[n:n + 2])
        if first.strip() and second.strip() and first != second:
            lead = (start.world.label_reward(prompts[n], first)
                    - start.world.label_reward(prompts[n], second))
            if rng.random() > 1 / (1 + math.exp(-lead / start.world.config.temperature)):
                first, second = second, first
            rows.append({"prompt": prompts[n], "chosen": first, "rejected": second})
    return rows


def figures_of(start, policy, reward):
    """What a policy does on held-out prompts, and what the reward model thinks of it."""
    said = start.measure(policy, samples)
    prompts, answers = sample_responses(policy, start.world.heldout_prompts, samples,
                                        LONGEST_ANSWER, start.seed)
    gain, kl = said["true_reward"], said["kl_nats_per_response"]
    own = labelled(start, policy, start.world.heldout_prompts, lesson.pick(200, 8), 1)
    own_truth = [start.world.true_reward(row["prompt"], row["chosen"])
                 > start.world.true_reward(row["prompt"], row["rejected"]) for row in own]
    return {"reward": gain, "kl": kl, "share": start.frontier.share_of_gain(gain, kl),
            "right": said["right_share"], "bytes": said["response_bytes"],
            "proxy": float(score(reward, prompts, [answer.text for answer in answers]).mean()),
            "own_pairs": len(own), "label_agrees": sum(own_truth) / max(1, len(own)),
            "judge_accuracy": evaluate_reward_accuracy(reward, own),
            "accuracy": evaluate_preference_accuracy(policy, start.sft,
                                                     start.world.heldout_preferences)}


def one_round(kind, policy, start, judge, seed, before):
    """One round of DPO on best against worst, or of SFT on the best, of eight answers."""
    if kind == "rejection":
        config = RejectionConfig(rounds=1, judge=JUDGE, round_prompts=PROMPTS)
        return sft_rounds(policy, start.world.prompts, judge, config,
                          SFTConfig(**SFT | {"seed": seed}), LONGEST_ANSWER)[0]
    online = OnlineConfig(rounds=1, judge=JUDGE, round_prompts=PROMPTS)
    return dpo_rounds(policy, before, start.world.prompts, judge, online,
                      DPOConfig(**DPO | {"seed": seed, "batch_size": 16}), LONGEST_ANSWER)[0]


def refreshed(start, reward, policy, seed):
    """The reward model, trained further on new labels of the policy's answers and as many old."""
    new = labelled(start, policy, start.world.prompts, NEW_PAIRS, seed)
    old = random.Random(seed).sample(start.world.preferences, len(new))
    settings = {**REWARD, "num_epochs": 1, "lr": REWARD["lr"] / 3, "seed": seed}
    return train_reward_model(reward, new + old, **settings)[0]


def road(start, kind, refresh=False, reference="start"):
    """The figures after each round, from the SFT model's own on."""
    policy, reward = start.fresh_policy(), copy.deepcopy(start.reward)
    history = [figures_of(start, policy, reward)]
    for number in range(1, ROUNDS + 1):
        seed = 100 * start.seed + number

        def judge(prompts, responses, model=reward):
            return score(model, prompts, responses).tolist()

        before = copy.deepcopy(policy) if reference == "last" else start.sft
        policy = one_round(kind, policy, start, judge, seed, before)
        history.append(figures_of(start, policy, reward))
        if refresh:
            reward = refreshed(start, reward, policy, seed)
    return history


def offline(start):
    """One pass over as many given pairs as the rounds of online DPO see."""
    rows = start.world.preferences[:ROUNDS * PROMPTS]
    policy, _, _ = dpo_train(start.fresh_policy(), start.sft, rows,
                             **{**DPO, "batch_size": 16, "seed": start.seed})
    return [figures_of(start, start.sft, start.reward), figures_of(start, policy, start.reward)]


ROADS = {
    "online DPO": {"kind": "dpo"},
    "online DPO, refreshed": {"kind": "dpo", "refresh": True},
    "online DPO, from the last round": {"kind": "dpo", "reference": "last"},
    "rejection sampling": {"kind": "rejection"},
    "rejection sampling, refreshed": {"kind": "rejection", "refresh": True},
}
lesson.keep("offline", [offline(start) for start in lesson.progress(starts.values(), "offline")])
lesson.keep("roads", {name: [road(start, **how) for start in starts.values()]
                      for name, how in lesson.progress(ROADS.items(), "roads")})
lesson.done()
