"""The runs behind the article on PPO without its critic, over five seeds; figures.py draws them."""

# %%
import tempfile
import time
from functools import partial
from statistics import mean

from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt.evaluation import evaluate_policy
from minigpt.recipes import ADVANTAGE_SETTINGS
from minigpt.run_folder import read_history
from ppo.train import ppo_training

lesson = Lesson("11_without_a_critic", "experiments")
SEEDS = lesson.pick((0, 1, 2, 3, 4), (0, 1))
EPISODES = lesson.pick(40, 2)
LONGER = lesson.pick({"rloo": 72, "grpo": 62}, {"rloo": 3, "grpo": 3})  # as long as PPO's EPISODES
ANSWERS = 48  # in every rollout: to 48 prompts, or four to each of 12
LONGEST = lesson.pick(LONGEST_ANSWER, 8)


# %% [markdown]
# ## What is taken away, step by step

# %%
def plain_reinforce(rollout):
    """The return itself, compared with nothing."""
    return rollout.batch.on_tokens(rollout.batch.response_sums(rollout.rewards))


def reinforce(rollout):
    """The return less the mean of the batch."""
    returns = rollout.batch.response_sums(rollout.rewards)
    return rollout.batch.on_tokens(returns - returns.mean())


RLOO = {"advantage": "rloo", **ADVANTAGE_SETTINGS["rloo"]}
GRPO = {"advantage": "grpo", **ADVANTAGE_SETTINGS["grpo"]}
RUNS = {
    "ppo": {"advantage": "gae"},
    "no_baseline": {"advantage": plain_reinforce},
    "batch_mean": {"advantage": reinforce},
    "rloo": RLOO,
    "one_pass": {**RLOO, "ppo_epochs": 1},     # one step on each rollout: the ratio is always 1
    "grpo": GRPO,
    "rloo_longer": {**RLOO, "num_episodes": LONGER["rloo"]},
    "grpo_longer": {**GRPO, "num_episodes": LONGER["grpo"]},
    "grpo_verified": {**GRPO, "reward": "verify"},
}


# %%
def train(start, reward=None, **settings):
    """A policy trained from SFT, the log of its episodes, and the seconds it took."""
    policy = start.fresh_policy()
    reward = start.world.verify if reward == "verify" else start.reward
    options = {**PPO, "num_episodes": EPISODES, "batch_size": ANSWERS, "save_every": 1000,
               "max_new_tokens": LONGEST, **settings}
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        ppo_training(policy, start.sft, reward, start.world.prompts, seed=start.seed, out=folder,
                     measure=start.world.measure, **options)
        return policy, read_history(folder), time.process_time() - began


def judge(world, prompts, texts):
    """The true reward of answers, and the shares of them that are right, polite and rude."""
    tones = [world.judge(prompt, text).tone for prompt, text in zip(prompts, texts, strict=True)]
    return {**world.measure(prompts, texts), "verified": mean(world.verify(prompts, texts)),
            "polite": mean(tone == "polite" for tone in tones),
            "rude": mean(tone == "rude" for tone in tones)}


def results(start, policy):
    """What a policy says to held-out prompts."""
    found = evaluate_policy(policy, start.sft, start.world.heldout_prompts, lesson.pick(32, 1),
                            LONGEST, start.seed, partial(judge, start.world))
    share = start.frontier.share_of_gain(found["true_reward"], found["kl_nats_per_response"])
    return found | {"share": share}


# %%
CURVES = ("objective/scores", "true_reward", "right_share", "objective/kl_exact", "grad_norm",
          "loss/policy_avg", "val/flat_groups")
runs = {name: [] for name in ("sft", *RUNS)}  # name -> seed after seed
for seed in SEEDS:
    start = starting_point(seed, quick=lesson.quick)
    runs["sft"].append(results(start, start.sft) | {"share": 0.0})
    for name in lesson.progress(RUNS, f"seed {seed}"):
        policy, history, seconds = train(start, **RUNS[name])
        curves = {curve: [round(value, 4) for value in history[curve]]
                  for curve in CURVES if curve in history}
        runs[name].append(results(start, policy) | {"seconds": seconds, "curves": curves})
lesson.keep("runs", runs)
lesson.keep("answers", ANSWERS)
lesson.done()
