# %% [markdown]
# # 13. Round after round
# The article is README.md beside this file. Run this from the shell (`python -m lessons 13`) or
# cell by cell: three rounds of two methods, in about a minute.

# %%
import torch

from dpo import dpo_train
from dpo.rounds import OnlineConfig, dpo_rounds
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, SFT, starting_point
from minigpt.judged import RoundsConfig, sample_judged
from minigpt.plots import COLOURS
from reward.evaluate import score
from sft.rounds import RejectionConfig, sft_rounds
from sft.train import SFTConfig

lesson = Lesson("13_round_after_round")
start = starting_point(quick=lesson.quick)
prompts, rounds = start.world.prompts, lesson.pick(3, 1)
ROUND = {"rounds": 1, "judge": "reward model", "round_prompts": lesson.pick(192, 8)}


def judge(prompts, responses):
    """What rounds ask for: a score for each response. Here the reward model gives it."""
    return score(start.reward, prompts, responses).tolist()


# %% [markdown]
# ## What a round learns from
# Eight answers of the model's own to one prompt, as the judge ranks them.

# %%
one = RoundsConfig(**ROUND | {"round_prompts": 1})
(asked, answers, scores), = sample_judged(start.sft, prompts, judge, one, LONGEST_ANSWER, 3)[0]
ranked = sorted(zip(scores, answers, strict=True), reverse=True)
lesson.table("ranked", ["score", "true reward", "answer"],
             [[f"{value:+.2f}", f"{start.world.true_reward(asked, text):+.2f}", text]
              for value, text in ranked], title=f"Answers to: {asked}")

# %% [markdown]
# ## Rounds
# Online DPO learns best against worst; rejection sampling imitates the best. Offline DPO reads as
# many given pairs, once.


# %%
def online(policy, seed):
    return dpo_rounds(policy, start.sft, prompts, judge, OnlineConfig(**ROUND),
                      DPOConfig(**DPO | {"seed": seed, "batch_size": 16}), LONGEST_ANSWER)[0]


def rejection(policy, seed):
    return sft_rounds(policy, prompts, judge, RejectionConfig(**ROUND),
                      SFTConfig(**SFT | {"seed": seed}), LONGEST_ANSWER)[0]


def measured(policy):
    said = start.measure(policy, lesson.pick(32, 1))
    return said["kl_nats_per_response"], said["true_reward"]


paths = {}
for name, one_round in (("online DPO", online), ("rejection sampling", rejection)):
    policy, paths[name] = start.fresh_policy(), [measured(start.sft)]
    for seed in lesson.progress(range(rounds), name):
        policy = one_round(policy, seed)
        paths[name].append(measured(policy))
given = start.world.preferences[:rounds * ROUND["round_prompts"]]
policy, _, _ = dpo_train(start.fresh_policy(), start.sft, given, **{**DPO, "batch_size": 16})
paths["DPO, one pass"] = [measured(start.sft), measured(policy)]

# %%
lesson.table("paths", ["", *(f"round {n}" for n in range(rounds + 1))],
             [[name, *(f"{reward:+.2f} at {kl:.1f} nats" for kl, reward in path)]
              for name, path in paths.items()], title="True reward, at a KL from SFT")
figure, axis = lesson.panels(height=3.6)
axis.plot(start.frontier.kls, start.frontier.rewards, color="black", label="limit")
for (name, path), colour in zip(paths.items(), COLOURS, strict=False):
    axis.plot(*torch.tensor(path).T, "o-", color=colour, label=name)
axis.set(xlabel="KL from SFT (nats per response)", ylabel="true reward")
axis.legend()
lesson.figure("one_seed", figure, "Rejection sampling walks along the limit, round after round; "
              "online DPO stays where beta holds it. One seed.")
lesson.done()
