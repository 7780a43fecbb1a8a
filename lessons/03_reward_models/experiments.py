# %% [markdown]
# # 3. Reward models: the experiments
# What the article's numbers come from. Five seeds: five worlds, SFT models and reward models.

# %%
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from data.examples import preference_examples
from data.world import CORES, RAMBLING, WORD, World
from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, REWARD, SIZE, Start, starting_point
from minigpt.batching import Batches, collate
from minigpt.evaluation import sample_responses
from minigpt.examples import tokenize_example
from minigpt.training import TrainingLoop
from reward.evaluate import (
    accuracy_by_fault,
    calibration,
    evaluate_reward_accuracy,
    reward_margins,
    score,
)
from reward.loss import bradley_terry_loss
from reward.model import RewardModel
from reward.train import RewardConfig, train_reward_model

lesson = Lesson("03_reward_models", "experiments")
starts = [starting_point(seed, quick=lesson.quick) for seed in range(lesson.pick(5, 2))]
temperature = starts[0].world.config.temperature
few, many = lesson.pick((125, 4000), (12, 48))
lesson.keep("sizes", {"few": few, "many": many, "all": starts[0].world.config.preference_rows,
                      "heldout": len(starts[0].world.heldout_preferences)})

# %% [markdown]
# ## The models that ship: 8,000 pairs, read twice


# %%
def shipped_model(start: Start) -> dict[str, float]:
    world, heldout = start.world, start.world.heldout_preferences
    return {"bayes": world.bayes_accuracy(heldout),
            "heldout": evaluate_reward_accuracy(start.reward, heldout),
            "train": evaluate_reward_accuracy(start.reward, world.preferences[:1000]),
            # the bias began at 0, has no gradient, and was then moved so that the mean is 0
            "mean_before_centring": -start.reward.head.bias.item()}


def beside_the_truth(start: Start) -> dict[str, float]:
    """Scores and true rewards of what the SFT model says, over all prompts and within each."""
    world = start.world
    prompts, samples = sample_responses(start.sft, world.heldout_prompts, lesson.pick(32, 4),
                                        LONGEST_ANSWER, seed=1)
    truth = torch.tensor([world.true_reward(prompt, sample.text)
                          for prompt, sample in zip(prompts, samples, strict=True)])
    scores = score(start.reward, prompts, [sample.ids for sample in samples])
    truths, believed = (of.view(len(world.heldout_prompts), -1) for of in (truth, scores))
    xs, ys = ((of - of.mean(1, keepdim=True)).flatten() for of in (truths, believed))
    return {"correlation": correlation(truth, scores), "within_prompts": correlation(xs, ys),
            "slope": float(xs @ ys / (xs @ xs)),
            "offsets": float((temperature * believed - truths).mean(1).std())}


def correlation(xs: Tensor, ys: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([xs.double(), ys.double()]))[0, 1])


lesson.keep("shipped", [shipped_model(start) for start in starts])
lesson.keep("truth", [beside_the_truth(start) for start in starts])

# %% [markdown]
# ## A fresh head: how large should its weights be?


# %%
def fresh_head(start: Start, std: float) -> dict[str, float]:
    torch.manual_seed(start.seed)
    model = RewardModel.from_policy(start.sft)
    torch.nn.init.normal_(model.head.weight, std=std)
    rows = start.world.heldout_preferences
    prompts, chosen, rejected = ([row[key] for row in rows] for key in rows[0])
    scores = [score(model, prompts, of) for of in (chosen, rejected)]
    loss, metrics = bradley_terry_loss(*scores)
    return {"size": float(torch.cat(scores).square().mean().sqrt()), "loss": float(loss),
            "accuracy": float(metrics["accuracy"])}


stds = {"0": 0.0, "1 / sqrt(d + 1)": (SIZE["embed_dim"] + 1) ** -0.5, "1": 1.0}
lesson.keep("heads", {name: [fresh_head(start, std) for start in starts]
                      for name, std in stds.items()})

# %% [markdown]
# ## Where is the score read?
# Rows of `prompt SEP response EOS PAD PAD ...`, padded to all that the model can read.


# %%
@torch.no_grad()
def read_everywhere(model: RewardModel, prompts: Sequence[str],
                    responses: Sequence[str]) -> dict[str, Tensor]:
    """What the head says of each response at four places."""
    examples = [tokenize_example(prompt, [response], model.max_seq_len)
                for prompt, response in zip(prompts, responses, strict=True)]
    batch = collate(examples, multiple_of=model.max_seq_len)
    values = model.head_values(model.trunk.hidden_states(batch.token_ids))  # (B, T)
    last, edge = batch.lengths - 1, model.max_seq_len - 1
    columns = {"EOS": last, "last byte before EOS": last - 1,
               "first PAD": (last + 1).clamp(max=edge), "last column": torch.full_like(last, edge)}
    return {place: values.gather(1, column[:, None])[:, 0] for place, column in columns.items()}


def read_at_each_place(start: Start) -> dict[str, dict[str, float]]:
    rows = start.world.heldout_preferences[:lesson.pick(400, 24)]
    prompts, chosen, rejected = ([row[key] for row in rows] for key in rows[0])
    up, down = (read_everywhere(start.reward, prompts, of) for of in (chosen, rejected))
    at_eos = torch.cat([up["EOS"], down["EOS"]])
    return {place: {"accuracy": float((up[place] > down[place]).float().mean()),
                    "agreement": correlation(torch.cat([up[place], down[place]]), at_eos)}
            for place in up}


lesson.keep("reading", [read_at_each_place(start) for start in starts])

# %% [markdown]
# ## Which fault is learned first?
# The loop of `train_reward_model`, with a look at the held-out pairs now and then.

# %%
RECIPE = {**REWARD, "num_epochs": 1}
MARKS = lesson.pick((0, 12, 25, 50, 75, 100, 200, 500), (0, 6))


def train_and_watch(model: RewardModel, world: World,
                    seed: int) -> tuple[RewardModel, dict[int, dict[str, float]]]:
    """Train in place; also the accuracy on each fault, by the step."""
    watched = {}

    def look(step: int) -> None:
        margins = reward_margins(model, world.heldout_preferences)
        watched[step] = accuracy_by_fault(world, world.heldout_preferences, margins)

    config = RewardConfig(**RECIPE, seed=seed)
    examples = preference_examples(world.preferences[:many], model.max_seq_len)
    batches = Batches(examples, config.batch_size, config.seed)
    loop = TrainingLoop({"reward": model.train()}, config, batches, len(batches))
    for batch in loop.whole_batches():
        if loop.step in MARKS:
            look(loop.step)
        with loop.optimizer.precision():
            loss, metrics = bradley_terry_loss(*model.rewards(batch).unbind(1))
        loop.optimizer.backward(loss)
        loop.log.add({"loss": loss, **metrics}, batch.weight)
        loop.log.write({"grad_norm": loop.optimizer.step()})
    look(loop.step)
    return model.eval(), watched


def from_scratch(world: World, seed: int) -> dict[int, dict[str, float]]:
    torch.manual_seed(seed)
    return train_and_watch(RewardModel(**SIZE), world, seed)[1]


def from_sft(start: Start) -> tuple[RewardModel, dict[int, dict[str, float]]]:
    torch.manual_seed(start.seed)
    return train_and_watch(RewardModel.from_policy(start.sft), start.world, start.seed)


def oracle(world: World) -> dict[str, float]:
    """The accuracy on each fault of whoever knows the true reward."""
    return accuracy_by_fault(world, world.heldout_preferences, true_margins(world))


def true_margins(world: World) -> Tensor:
    """By how much the chosen answer of each held-out pair is truly better."""
    return torch.tensor([world.true_reward(row["prompt"], row["chosen"])
                         - world.true_reward(row["prompt"], row["rejected"])
                         for row in world.heldout_preferences])


fair, watched = zip(*map(from_sft, lesson.progress(starts, "from SFT")), strict=True)
larger = [World(replace(start.world.config, facts=42), start.seed) for start in starts]
lesson.keep("bias_moved", max(abs(model.head.bias.item()) for model in fair))
lesson.keep("faults", {
    "from the SFT model, 8 facts": watched,
    "from scratch, 8 facts": [from_scratch(start.world, start.seed)
                              for start in lesson.progress(starts, "from scratch")],
    "from scratch, 42 facts": [from_scratch(world, world.seed)
                               for world in lesson.progress(larger, "42 facts")]})
lesson.keep("oracle", [oracle(start.world) for start in starts])

# %% [markdown]
# ## Few pairs, flipped labels, annotators who like length


# %%
def trained(start: Start, world: World, pairs: int = many) -> RewardModel:
    """From the SFT model, on the first pairs of this world, `many // pairs` times over."""
    torch.manual_seed(start.seed)
    model = RewardModel.from_policy(start.sft)
    options = {**REWARD, "num_epochs": many // pairs, "seed": start.seed}
    return train_reward_model(model, world.preferences[:pairs], **options)[0]


def taught_by(start: Start, **change: float) -> RewardModel:
    """Learned from other annotators, who label the same pairs."""
    return trained(start, World(replace(start.world.config, **change), start.seed))


BIAS = 4.0
taught = {
    "fair": fair,
    "few": [trained(start, start.world, few) for start in lesson.progress(starts, "few pairs")],
    "a fifth flipped": [taught_by(start, label_noise=0.2)
                        for start in lesson.progress(starts, "label noise")],
    "all flipped": [taught_by(starts[0], label_noise=1.0)],
    "like length": [taught_by(start, length_bias=BIAS)
                    for start in lesson.progress(starts, "length bias")]}


def error_of(bins: list[dict[str, float]]) -> float:
    """The mean distance between predicted and observed preference rates."""
    return sum(abs(b["predicted"] - b["observed"]) * b["pairs"] for b in bins) \
        / sum(b["pairs"] for b in bins)


def measures(start: Start, model: RewardModel, pairs: int) -> dict[str, float]:
    margins = reward_margins(model, start.world.heldout_preferences)
    faults = accuracy_by_fault(start.world, start.world.heldout_preferences, margins)
    return {"heldout": float((margins > 0).float().mean()),
            "train": evaluate_reward_accuracy(model, start.world.preferences[:min(pairs, 1000)]),
            "margin": float(margins.abs().mean()),
            "calibration_error": error_of(calibration(margins)),
            "wrong": faults.get("wrong", 0.5), "rambling": faults.get("rambling", 0.5)}


lesson.keep("annotators", {
    name: [measures(start, model, few if name == "few" else many)
           for start, model in zip(starts, models, strict=False)]
    for name, models in taught.items()})

# %% [markdown]
# ## Is it as sure as it should be? And what does noise do to the margins?
# The held-out pairs of all seeds together, in bins.

# %%
BINS = lesson.pick(6, 3)


def heldout_margins(models: Sequence[RewardModel]) -> Tensor:
    return torch.cat([reward_margins(model, start.world.heldout_preferences)
                      for start, model in zip(starts, models, strict=False)])


def margins_over_truth(models: Sequence[RewardModel]) -> list[tuple[float, float]]:
    """The mean true difference in each bin, and the mean margin for the better answer."""
    truth = torch.cat([true_margins(start.world)
                       for start, _ in zip(starts, models, strict=False)])
    margins = heldout_margins(models) * torch.where(truth >= 0, 1, -1)
    return [(float(truth[part].abs().mean()), float(margins[part].mean()))
            for part in truth.abs().argsort().tensor_split(BINS)]


lesson.keep("calibration", {name: calibration(heldout_margins(taught[name]), BINS)
                            for name in ("fair", "few")})
lesson.keep("noise", {name: margins_over_truth(taught[name])
                      for name in ("fair", "a fifth flipped", "all flipped")})

# %% [markdown]
# ## Length
# A right answer to every question, and more and more phrases behind it that say nothing.

# %%
questions = starts[0].world.questions  # the same in every seed
prompts = [question.wordings[0] for question in questions]
padded = [[" ".join([CORES["plain"].format(question.answer), *RAMBLING[:count]])
           for question in questions] for count in range(4)]
words = [sum(len(WORD.findall(text)) for text in texts) / len(texts) for texts in padded]


def beyond_the_bare_answer(rewards: Sequence[Tensor]) -> list[float]:
    """The mean reward at each length, minus that of the bare answer."""
    means = torch.stack([of.double().mean() for of in rewards])
    return (means - means[0]).tolist()


def believed(model: RewardModel) -> list[float]:
    return beyond_the_bare_answer([temperature * score(model, prompts, texts) for texts in padded])


truth = beyond_the_bare_answer([torch.tensor(list(map(starts[0].world.true_reward, prompts, texts)))
                                for texts in padded])
lesson.keep("length", {
    "words": words, "true": truth,
    "wanted": [value + BIAS * (count - words[0]) / 10
               for value, count in zip(truth, words, strict=True)],
    "fair": [believed(model) for model in fair],
    "biased": [believed(model) for model in taught["like length"]]})
lesson.done()
