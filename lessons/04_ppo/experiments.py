"""The runs behind the article on PPO, over five seeds; figures.py draws what is kept here."""

# %%
import tempfile

import torch

from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt import generate
from minigpt.batching import collate
from minigpt.evaluation import evaluate_policy
from minigpt.examples import tokenize_example
from minigpt.kl import exact_kl, kl_k1, kl_k2, kl_k3
from minigpt.logprobs import logps_of, response_logits
from minigpt.run_folder import read_history
from ppo.advantages import gae, whiten
from ppo.train import ppo_training
from reward.evaluate import score

lesson = Lesson("04_ppo", "experiments")
SEEDS = lesson.pick((0, 1, 2, 3, 4), (0, 1))
LONGEST = lesson.pick(LONGEST_ANSWER, 8)
HELD_OUT = lesson.pick(None, 4)   # so many of the prompts, None: all
starts = [starting_point(seed, quick=lesson.quick) for seed in SEEDS]


# %%
def train(start, episodes, **changes):
    """The recipe with some changes: the policy, and the log of its episodes."""
    policy = start.fresh_policy()
    options = {**PPO, "max_new_tokens": LONGEST, "num_episodes": episodes, **changes}
    with tempfile.TemporaryDirectory() as folder:
        ppo_training(policy, start.sft, start.reward, start.world.prompts[:HELD_OUT],
                     seed=start.seed, measure=start.world.measure, out=folder, **options)
        return policy, read_history(folder)


def results(start, policy):
    """What a policy says to held-out prompts, and what the reward model thinks of it."""
    def judge(prompts, texts):
        proxy = float(score(start.reward, prompts, texts).mean())
        return {"proxy": proxy, **start.world.measure(prompts, texts)}
    return evaluate_policy(policy, start.sft, start.world.heldout_prompts[:HELD_OUT],
                           lesson.pick(16, 1), LONGEST, start.seed, judge)


def rewards_to_go(rollout):
    """Advantages without a value model: all that comes from a token on, whitened."""
    no_values = torch.zeros_like(rollout.rewards)
    advantages, _ = gae(rollout.rewards, no_values, rollout.mask, lam=1.0)
    return whiten(advantages, rollout.mask)


# %% [markdown]
# ## The recipe, with and without its KL penalty

# %%
CURVES = ["objective/scores", "true_reward", "objective/kl_exact", "objective/entropy",
          "policy/clipfrac_avg", "val/clipfrac_avg", "val/explained_variance", "val/first_ratio"]
policies, measured, curves = {}, {}, {}
measured["sft"] = [results(start, start.sft) for start in starts]
for name, changes in {"long": {}, "long_no_kl": {"kl_coeff": 0.0}}.items():
    runs = [train(start, lesson.pick(60, 2), **changes)
            for start in lesson.progress(starts, name)]
    policies[name] = [policy for policy, _ in runs]
    measured[name] = [results(*pair) for pair in zip(starts, policies[name], strict=True)]
    curves[name] = {curve: [[round(value, 6) for value in history[curve]] for _, history in runs]
                    for curve in CURVES}

# %% [markdown]
# ## One thing changed

# %%
NO_CLIP = {"clip": 1e9, "max_approxkl": 1e9}
CHANGES = {
    "recipe": {},
    "wrong_sign": {"kl_estimator": lambda logps, ref_logps: ref_logps - logps},
    "no_clip": NO_CLIP,
    "eight": {"ppo_epochs": 8},
    "eight_no_clip": {"ppo_epochs": 8, **NO_CLIP},
    "no_value": {"advantage": rewards_to_go},
    "lambda_0": {"lam": 0.0},
    "fast": {"lr": 10 * PPO["lr"]},
}
scores = {}
for name, changes in CHANGES.items():
    runs = [train(start, lesson.pick(20, 1), **changes)
            for start in lesson.progress(starts, name)]
    policies[name] = [policy for policy, _ in runs]
    measured[name] = [results(*pair) for pair in zip(starts, policies[name], strict=True)]
    scores[name] = [history["objective/scores"] for _, history in runs]
    print(name, [round(run["true_reward"], 2) for run in measured[name]], flush=True)
lesson.keep("measured", measured)
lesson.keep("curves", curves)
lesson.keep("scores", scores)


# %% [markdown]
# ## Three estimators of the KL, against the exact one

# %%
@torch.no_grad()
def estimates(start, policy, reference):
    """k1, k2, k3 and the exact KL(policy || reference) at each token that the policy sampled."""
    prompts = start.world.heldout_prompts[:HELD_OUT] * lesson.pick(32, 2)
    answers = generate(policy, prompts, LONGEST, seed=1)
    batch = collate([tokenize_example(prompt, [answer.ids], policy.max_seq_len)
                     for prompt, answer in zip(prompts, answers, strict=True)])
    tokens = batch.token_ids[batch.response_mask]
    logits, ref_logits = response_logits(policy, batch), response_logits(reference, batch)
    both = logps_of(logits, tokens), logps_of(ref_logits, tokens)
    return {"k1": kl_k1(*both), "k2": kl_k2(*both), "k3": kl_k3(*both),
            "exact": exact_kl(logits, ref_logits)}


def summary(values):
    """Mean and standard deviation of each estimate, and how often k1 is negative."""
    return {"mean": {name: float(value.mean()) for name, value in values.items()},
            "sd": {name: float(value.std()) for name, value in values.items()},
            "k1_negative": float((values["k1"] < 0).float().mean())}


policies["near"] = [train(start, lesson.pick(3, 1))[0] for start in starts]
estimators = {name: [summary(estimates(start, policy, start.sft))
                     for start, policy in zip(starts, policies[name], strict=True)]
              for name in ("near", "long", "long_no_kl", "wrong_sign")}
estimators["of_reference_samples"] = [
    summary(estimates(start, start.sft, policy))
    for start, policy in zip(starts, policies["long"], strict=True)]
lesson.keep("estimators", estimators)
lesson.done()
