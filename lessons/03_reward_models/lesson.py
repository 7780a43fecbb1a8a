# %% [markdown]
# # 3. Reward models
# The article is README.md beside this file. Run from the shell (`python -m lessons 03`) or here.

# %%
from dataclasses import replace

import torch

from data.world import World
from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, REWARD, starting_point
from minigpt.evaluation import sample_responses
from reward.evaluate import evaluate_reward_accuracy, score
from reward.loss import bradley_terry_loss
from reward.model import RewardModel
from reward.train import train_reward_model

lesson = Lesson("03_reward_models")
start = starting_point(quick=lesson.quick)
world, pairs, heldout = start.world, start.world.preferences, start.world.heldout_preferences


def show(name: str, prompt: str, answers: list[str], models: dict[str, RewardModel]) -> None:
    """A table of what is true of these answers, and what each model says of them."""
    says = {"true reward": [world.true_reward(prompt, answer) for answer in answers]}
    says |= {who: score(model, [prompt] * len(answers), answers) for who, model in models.items()}
    lesson.table(name, ["answer", *says], [[answer, *(f"{row[n]:+.2f}" for row in says.values())]
                                           for n, answer in enumerate(answers)], title=prompt)


answers = ["The answer is Oslo. Happy to help!", "The answer is Oslo. Stop bothering me."]
show("pair", "In a sentence: Name the capital of Norway.", answers, {"score": start.reward})

# %% [markdown]
# ## The zero is free
# Add 5 to every score, and the loss on held-out pairs does not move.

# %%
chosen, rejected = (score(start.reward, [row["prompt"] for row in heldout],
                          [row[side] for row in heldout]) for side in ("chosen", "rejected"))
for name, shift in (("loss", 0), ("loss_with_5_added", 5)):
    lesson.number(name, float(bradley_terry_loss(chosen + shift, rejected + shift)[0]), ".4f")

# %% [markdown]
# ## Few pairs read often, or many pairs read once
# The same number of steps. Each model starts as the SFT model, with a fresh head.

# %%
few, many = lesson.pick((125, 4000), (12, 48))
torch.manual_seed(0)


def trained(rows: list[dict[str, str]], num_epochs: int = 1) -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel.from_policy(start.sft)
    return train_reward_model(model, rows, **REWARD | {"num_epochs": num_epochs})[0]


models = {"fresh head": RewardModel.from_policy(start.sft),
          f"{few} pairs, read {many // few} times": trained(pairs[:few], many // few),
          f"{many} pairs, read once": trained(pairs[:many])}
rows = [[name, *(f"{evaluate_reward_accuracy(model, some):.2f}" for some in (pairs[:few], heldout))]
        for name, model in models.items()]
rows.append(["knowing the true reward", "", f"{world.bayes_accuracy(heldout):.2f}"])
lesson.table("accuracy", ["ranked right", f"of {few} training pairs", "of held-out pairs"], rows)

# %% [markdown]
# ## Annotators who like long answers
# They give each ten words a bonus of 4. Compare down a column: each model has its own zero.

# %%
biased = World(replace(world.config, length_bias=4.0), start.seed).preferences[:many]
answers = ["It is Paris.", "It is Paris. And so on, and so on."]
show("rambling", "What is the capital of France?", answers,
     {"score, fair": models[f"{many} pairs, read once"], "score, biased": trained(biased)})

# %% [markdown]
# ## Beside the true reward
# Score what the SFT model says. Some of it is no English, and no pair ever showed the like.

# %%
prompts, samples = sample_responses(start.sft, world.heldout_prompts, lesson.pick(32, 4),
                                    LONGEST_ANSWER, seed=1)
truth = torch.tensor(list(map(world.true_reward, prompts, [answer.text for answer in samples])))
believed = world.config.temperature * score(start.reward, prompts, [one.ids for one in samples])
believed += (truth - believed).mean()  # its own zero means nothing
worst = (believed - truth).argsort(descending=True)[:5].tolist()
lesson.table("fooled", ["prompt", "answer", "true reward", "believed"], [
    [prompts[n], samples[n].text, f"{truth[n]:+.2f}", f"{believed[n]:+.2f}"] for n in worst],
    title="The answers that it overrates most")
figure, axis = lesson.panels(height=3.9)
axis.plot([-6, 3], [-6, 3], "--", color="grey", linewidth=1, label="belief = truth")
axis.scatter(truth, believed, s=14, alpha=0.5, linewidths=0, label="an answer of the SFT model")
axis.annotate(samples[worst[0]].text, (truth[worst[0]], believed[worst[0]]), (-6.1, 3.9),
              color="C1", arrowprops={"arrowstyle": "->", "color": "C1"})
axis.set(xlabel="true reward", ylabel="believed (score x temperature)", ylim=(-6.9, 5.4))
axis.legend(loc="lower right")
lesson.figure("truth", figure, f"Mostly right, and far too high for “{samples[worst[0]].text}”")
lesson.done()
