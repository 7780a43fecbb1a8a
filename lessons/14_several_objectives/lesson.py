# %% [markdown]
# # 14. Several objectives
# Two objectives, weighted in three places, in half a minute. The article is README.md beside this.

# %%
import copy

from data.world import World, WorldConfig
from dpo import dpo_train
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, REWARD, starting_point
from minigpt.evaluation import sample_responses
from minigpt.recipes import combined
from minigpt.sampling import generate
from ppo.train import PPOConfig, ppo_training
from reward.combine import Ensemble
from reward.start import train_centered
from reward.train import RewardConfig

lesson = Lesson("14_several_objectives")
start = starting_point(quick=lesson.quick)
count, samples = lesson.pick((1000, 16), (32, 1))  # pairs; answers to each held-out prompt
WEIGHTS = (0.0, 0.5, 1.0)  # on being helpful; the rest is on being polite


def labels(weight):
    """The same pairs, labelled by annotators who weigh helpful and polite like this."""
    config = WorldConfig(**{**vars(start.world.config), "label_helpful_weight": 2 * weight,
                            "label_polite_weight": 2 * (1 - weight)})
    return World(config, start.seed).preferences[:count]


# %% [markdown]
# ## One pair, two annotators: one looks only at facts, the other only at manners

# %%
parts = start.world.reward_parts  # (prompt, answer) -> (helpful, polite), the true ones
pair = next(row for row in start.world.preferences for (helpful, polite), (helpful2, polite2) in
            [[parts(row["prompt"], row[side]) for side in ("chosen", "rejected")]]
            if helpful > helpful2 and polite < polite2)
print(f"prompt          {pair['prompt']}\nmore helpful    {pair['chosen']}\n"
      f"more polite     {pair['rejected']}\n")

# %% [markdown]
# ## Weights on the labels: DPO

# %%
roads = {"DPO, weighted labels": [
    dpo_train(start.fresh_policy(), start.sft, labels(weight), **{**DPO, "batch_size": 16})[0]
    for weight in lesson.progress(WEIGHTS, "DPO")]}

# %% [markdown]
# ## Weights on the rewards: two reward models, and RLOO on their weighted sum

# %%
rewards = [train_centered(start.sft, labels(weight), start.world.prompts,
                          RewardConfig(**REWARD | {"num_epochs": 1}), LONGEST_ANSWER)[0][0]
           for weight in lesson.progress((1.0, 0.0), "reward models")]
settings = {**combined(["lesson", "rloo"], PPOConfig), "advantage": "rloo", "batch_size": 64,
            "kl_coeff": DPO["beta"], "num_episodes": lesson.pick(25, 2)}
roads["RLHF, weighted rewards"] = [
    ppo_training(start.fresh_policy(), start.sft, Ensemble(rewards, weights=[weight, 1 - weight]),
                 start.world.prompts, **settings)[0]
    for weight in lesson.progress(WEIGHTS, "RLOO")]

# %% [markdown]
# ## No training at all: the mean of the two extreme DPO policies' weights

# %%
most_polite, _, most_helpful = roads["DPO, weighted labels"]
soup, theirs = copy.deepcopy(most_helpful), most_polite.state_dict()
soup.load_state_dict({name: (own + theirs[name]) / 2 for name, own in soup.state_dict().items()})
roads["DPO, soup"] = [most_polite, soup, most_helpful]


# %%
def measured(policy):
    """(helpful, polite), means over answers to held-out prompts."""
    asked = sample_responses(policy, start.world.heldout_prompts, samples, LONGEST_ANSWER, seed=0)
    found = [parts(prompt, answer.text) for prompt, answer in zip(*asked, strict=True)]
    return [sum(column) / len(column) for column in zip(*found, strict=True)]


rows, (figure, axis) = [], lesson.panels(height=3.6)
for road, policies in roads.items():
    points = [measured(policy) for policy in policies]
    rows += [[road, f"{weight:.0%}", *(f"{value:+.2f}" for value in point)]
             for weight, point in zip(WEIGHTS, points, strict=True)]
    axis.plot(*zip(*points, strict=True), "o-", label=road)
axis.plot(*measured(start.sft), "*", color="grey", markersize=11, label="SFT")
axis.set(xlabel="helpful (mean of the true dimension)", ylabel="polite")
axis.legend()
lesson.table("one_seed", ["method", "weight on helpful", "helpful", "polite"], rows, "Methods")
lesson.figure("one_seed", figure, "One seed: more weight on helpful always costs manners.")

# %%
for weight, policy in zip(WEIGHTS, roads["RLHF, weighted rewards"], strict=True):
    answer, = generate(policy, [pair["prompt"]], LONGEST_ANSWER, greedy=True)
    print(f"RLHF with {weight:.0%} on helpful says: {answer.text}")
lesson.done()
