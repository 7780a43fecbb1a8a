# %% [markdown]
# # 14. Several objectives
# The article is README.md beside this file. Run this from the shell (`python -m lessons 14`) or
# cell by cell: two objectives, weighed in two places, in about a minute.

# %%
from statistics import mean

from data.world import World, WorldConfig
from dpo import dpo_train
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, REWARD, starting_point
from minigpt.evaluation import sample_responses
from minigpt.plots import COLOURS
from minigpt.recipes import combined
from ppo.train import PPOConfig, ppo_training
from reward.combine import Ensemble
from reward.start import train_centered
from reward.train import RewardConfig

lesson = Lesson("14_several_objectives")
start = starting_point(quick=lesson.quick)
count = lesson.pick(1000, 32)
SHARES = (0.25, 0.75)  # of the weight on being helpful; the rest is on being polite


def labels(share):
    """The world's pairs as annotators label them who weigh helpful and polite like this."""
    config = WorldConfig(**{**vars(start.world.config), "label_helpful_weight": 2 * share,
                            "label_polite_weight": 2 * (1 - share)})
    return World(config, start.seed).preferences


def measured(policy):
    """The means of both dimensions over answers to held-out prompts."""
    prompts, answers = sample_responses(policy, start.world.heldout_prompts,
                                        lesson.pick(16, 1), LONGEST_ANSWER, seed=0)
    parts = [start.world.reward_parts(prompt, answer.text)
             for prompt, answer in zip(prompts, answers, strict=True)]
    return tuple(map(mean, zip(*parts, strict=True)))


# %% [markdown]
# ## One pair, two annotators
# The one who looks at manners alone and the one who looks at facts alone.

# %%
both = zip(labels(1.0), labels(0.0), strict=True)
helpful, polite = next((a, b) for a, b in both if a["chosen"] == b["rejected"])
print(f"prompt              {helpful['prompt']}\n"
      f"the helpful answer  {helpful['chosen']}\n"
      f"the polite answer   {polite['chosen']}\n")

# %% [markdown]
# ## Weights when the labels are made: DPO

# %%
points = {"SFT": [measured(start.sft)], "DPO, weighed labels": [], "RLOO, weighed rewards": []}
for share in lesson.progress(SHARES, "DPO"):
    policy, _, _ = dpo_train(start.fresh_policy(), start.sft, labels(share)[:count],
                             **{**DPO, "batch_size": 16})
    points["DPO, weighed labels"].append(measured(policy))

# %% [markdown]
# ## Weights when the policy is trained: two reward models, RLOO

# %%
rewards = []
for share in lesson.progress((1.0, 0.0), "reward models"):
    config = RewardConfig(**REWARD | {"num_epochs": 1})
    (model,), _, _ = train_centered(start.sft, labels(share)[:2 * count], start.world.prompts,
                                    config, LONGEST_ANSWER)
    rewards.append(model)
for share in lesson.progress(SHARES, "RLOO"):
    settings = {**combined(["lesson", "rloo"], PPOConfig), "advantage": "rloo", "batch_size": 64,
                "num_episodes": lesson.pick(25, 2)}
    policy, _, _ = ppo_training(start.fresh_policy(), start.sft,
                                Ensemble(rewards, weights=[2 * share, 2 * (1 - share)]),
                                start.world.prompts, **settings)
    points["RLOO, weighed rewards"].append(measured(policy))

# %%
rows = [[name, "-" if name == "SFT" else f"{share:.0%}", f"{helpful:+.2f}", f"{polite:+.2f}"]
        for name, found in points.items()
        for share, (helpful, polite) in zip(SHARES, found, strict=False)]
lesson.table("one_seed", ["", "weight on helpful", "helpful", "polite"], rows,
             title="Where each road ends")
figure, axis = lesson.panels(height=3.6)
for (name, found), colour in zip(points.items(), ("grey", *COLOURS), strict=False):
    axis.plot(*zip(*found, strict=True), "o-", color=colour, label=name)
axis.set(xlabel="helpful (mean of the true dimension)", ylabel="polite")
axis.legend()
lesson.figure("one_seed", figure, "Both roads trade one objective for the other as their weights "
              "say. One seed.")
lesson.done()
