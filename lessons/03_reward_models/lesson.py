# %% [markdown]
# # 3. Reward models
# The article is README.md beside this file. Run this from the shell (`python -m lessons 03`) or cell by cell.

# %%
import random
from dataclasses import replace
from statistics import mean, stdev

import torch
from torch import Tensor

from data.examples import preference_examples
from data.world import CORES, POLITE, RAMBLING, WORD, World
from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.start import LONGEST_ANSWER, REWARD, SIZE, Start, kept, starting_point
from minigpt.batching import Batches, collate
from minigpt.evaluation import sample_responses
from minigpt.examples import tokenize_example
from minigpt.plots import COLOURS
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
from reward.start import center
from reward.train import RewardConfig, train_reward_model

lesson = Lesson("03_reward_models")
starts = [starting_point(seed, quick=lesson.quick) for seed in lesson.pick((0, 1, 2), (0, 1))]
start = starts[0]
temperature = start.world.config.temperature


def correlation(xs: Tensor, ys: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([xs.double(), ys.double()]))[0, 1])


# %% [markdown]
# ## How good is it? Held-out pairs, training pairs, and the best that anybody could do

# %%
bayes = [s.world.bayes_accuracy(s.world.heldout_preferences) for s in starts]
heldout = [evaluate_reward_accuracy(s.reward, s.world.heldout_preferences) for s in starts]
train = [evaluate_reward_accuracy(s.reward, s.world.preferences[:1000]) for s in starts]
lesson.number("bayes", bayes)
lesson.number("accuracy_heldout", heldout)
lesson.number("accuracy_train", train)
lesson.number("accuracy_relative", [accuracy / best for accuracy, best in zip(heldout, bayes, strict=True)])
lesson.number("pairs", f"{start.world.config.preference_rows:,}")
lesson.number("heldout_pairs", str(len(start.world.heldout_preferences)))
lesson.number("temperature", f"{temperature}")

# %% [markdown]
# ## The zero is free
# Move the head's bias by 5: every score moves by 5, and the loss does not move at all.

# %%
pairs = start.world.heldout_preferences
prompts, chosen, rejected = ([row[key] for row in pairs] for key in ("prompt", "chosen", "rejected"))
losses = []
for shift in (0.0, 5.0):
    with torch.no_grad():
        start.reward.head.bias += shift
    loss, _ = bradley_terry_loss(score(start.reward, prompts, chosen), score(start.reward, prompts, rejected))
    losses.append(float(loss))
with torch.no_grad():
    start.reward.head.bias -= 5.0
lesson.number("loss_heldout", losses[0], ".4f")
lesson.number("loss_shifted", losses[1], ".4f")
# The bias began at 0 and has no gradient; `center` then moved it by minus the mean that the SFT answers had.
lesson.number("zeros_before_centring", ", ".join(f"{-s.reward.head.bias.item():+.2f}" for s in starts))

# %% [markdown]
# ## A fresh head
# With rows of unit variance behind the last norm, std 1/sqrt(d + 1) makes scores of size 1. What else could one start with?

# %%
rows = []
few = pairs[:lesson.pick(200, 24)]
for name, std in (("0", 0.0), ("1 / sqrt(d + 1)", (SIZE["embed_dim"] + 1) ** -0.5), ("1", 1.0)):
    scores, losses, accuracies = [], [], []
    for seed in range(lesson.pick(10, 2)):
        torch.manual_seed(seed)
        model = RewardModel.from_policy(start.sft)
        torch.nn.init.normal_(model.head.weight, std=std)
        scores.append(score(model, prompts[:100], chosen[:100]))
        margins = reward_margins(model, few)
        losses.append(float(torch.nn.functional.softplus(-margins).mean()))
        accuracies.append(evaluate_reward_accuracy(model, few))
    rows.append([name, f"{torch.stack(scores).square().mean().sqrt():.2f}",
                 f"{mean(losses):.4f}", f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f}"])
    if name.startswith("1 /"):
        lesson.number("accuracy_fresh", accuracies, ".2f")
lesson.table("heads", ["std of the head's weights", "size of a score", "loss at the start", "accuracy"], rows)

# %% [markdown]
# ## Where is the score read?
# Rows of `prompt SEP response EOS PAD PAD ...`, padded to all that the model can read, and the head's value at four places.

# %%
@torch.no_grad()
def read_at(model: RewardModel, prompts: list[str], responses: list[str], place: str) -> Tensor:
    values = []
    for some in torch.arange(len(prompts)).split(64):
        batch = collate([tokenize_example(prompts[n], [responses[n]], model.max_seq_len) for n in some.tolist()],
                        multiple_of=model.max_seq_len)
        last, edge = batch.lengths - 1, model.max_seq_len - 1
        column = {"last byte before EOS": last - 1, "EOS": last, "first PAD": (last + 1).clamp(max=edge),
                  "last column": torch.full_like(last, edge)}[place]
        everywhere = model.head_values(model.trunk.hidden_states(batch.token_ids))   # (B, T)
        values.append(everywhere.gather(1, column[:, None])[:, 0])
    return torch.cat(values)


rows = []
for place in ("EOS", "last byte before EOS", "first PAD", "last column"):
    accuracies, agreements = [], []
    for s in starts:
        few = s.world.heldout_preferences[:lesson.pick(400, 24)]
        prompts, chosen, rejected = ([row[key] for row in few] for key in ("prompt", "chosen", "rejected"))
        values = [read_at(s.reward, prompts, responses, place) for responses in (chosen, rejected)]
        accuracies.append(float((values[0] > values[1]).float().mean()))
        agreements.append(correlation(torch.cat(values), score(s.reward, prompts * 2, chosen + rejected)))
    lesson.number("read_at_" + place.replace(" ", "_").lower(), accuracies)
    rows.append([place, spread(accuracies), spread(agreements, ".2f")])
lesson.table("reading", ["the head is read at", "held-out accuracy", "correlation with the score at EOS"], rows)

# %% [markdown]
# ## The loop, watched: which fault is learned first?
# The loop is that of `train_reward_model`, with a look at the held-out pairs now and then. One pass over the pairs.

# %%
RECIPE = {**REWARD, "num_epochs": 1}
EARLY = lesson.pick(100, 4)
MARKS = lesson.pick((0, 25, 50, EARLY, 150, 250, 400, 650), (0, EARLY))


def train_and_watch(model: RewardModel, world: World, seed: int) -> tuple[RewardModel, dict[int, dict[str, float]]]:
    """Train in place; also the accuracy on each fault, by the step."""
    config, watched = RewardConfig(**RECIPE, seed=seed), {}

    def look(step: int) -> None:
        margins = reward_margins(model, world.heldout_preferences)
        watched[step] = accuracy_by_fault(world, world.heldout_preferences, margins)

    batches = Batches(preference_examples(world.preferences, model.max_seq_len), config.batch_size, config.seed)
    loop = TrainingLoop({"reward": model.train()}, config, batches,
                        config.num_epochs * len(batches))
    optimizer, log = loop.optimizer, loop.log
    for batch in loop.whole_batches():                      # one optimizer step each
        if loop.step in MARKS:
            look(loop.step)
        with optimizer.precision():
            rewards = model.rewards(batch)                  # (B, 2): chosen, rejected
            loss, metrics = bradley_terry_loss(rewards[:, 0], rewards[:, 1])
        optimizer.backward(loss)
        log.add({"loss": loss, **metrics}, batch.weight)
        log.write({"grad_norm": optimizer.step()})          # clip, step
    look(loop.step)
    return model.eval(), watched


def centred(model: RewardModel, start: Start) -> RewardModel:
    """With its zero at the mean of the SFT model's own answers."""
    prompts, answers = sample_responses(start.sft, start.world.prompts, 4, LONGEST_ANSWER,
                                        start.seed)
    center(model, prompts, [answer.ids for answer in answers])
    return model


once, biases = [], []
curves = {"from the SFT model, 8 facts": [], "from scratch, 8 facts": [], "from scratch, 42 facts": []}
for s in starts:
    torch.manual_seed(s.seed)
    model, watched = train_and_watch(RewardModel.from_policy(s.sft), s.world, s.seed)
    biases.append(abs(model.head.bias.item()))
    once.append(centred(model, s))
    curves["from the SFT model, 8 facts"].append(watched)
for s in starts[:2]:
    for name, world in (("8 facts", s.world), ("42 facts", World(replace(s.world.config, facts=42), s.seed))):
        torch.manual_seed(s.seed)
        curves[f"from scratch, {name}"].append(train_and_watch(RewardModel(**SIZE), world, s.seed)[1])

lesson.number("bias_moved", f"{max(biases):.4f}")

# %%
FAULTS = ("wrong", "evasive", "rude", "not polite", "rambling", "ignores the request")


def true_margins(world: World) -> Tensor:
    """By how much the chosen answer of each held-out pair is truly better."""
    return torch.tensor([world.true_reward(row["prompt"], row["chosen"]) - world.true_reward(row["prompt"], row["rejected"])
                         for row in world.heldout_preferences])


oracles = [accuracy_by_fault(s.world, s.world.heldout_preferences, true_margins(s.world)) for s in starts]
steps = sorted(curves["from scratch, 8 facts"][0])
figure, axes = lesson.panels(3, height=3.8, sharey=True)
for axis, (name, runs) in zip(axes, curves.items(), strict=True):
    for fault, colour, marker in zip(FAULTS, COLOURS, "osv^Dx", strict=True):
        axis.plot(range(len(steps)), [mean(run[step].get(fault, 0.5) for run in runs) for step in steps], marker=marker,
                  markersize=4, color=colour, label=fault)
    axis.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    axis.set_xticks(range(len(steps)), steps)
    axis.set(xlabel="optimizer step (8 pairs each)", ylim=(0, 1.02), title=f"{name} (mean of {len(runs)} seeds)")
axes[0].set_ylabel("share of pairs ranked right")
axes[2].legend(title="rejected for being", fontsize=7.5, title_fontsize=8, loc="lower right")
rows = []
lesson.number("early", str(EARLY))
for fault in FAULTS:
    cells = [fault]
    for key, runs in zip(("sft", "scratch", "many"), curves.values(), strict=True):
        for when, step in (("early", EARLY), ("end", steps[-1])):
            accuracies = [run[step].get(fault, 0.5) for run in runs]
            lesson.number(f"{when}_{key}_{fault.replace(' ', '_')}", accuracies, ".2f")
            cells.append(spread(accuracies, ".2f"))
    rows.append([*cells, spread([run.get(fault, 0.5) for run in oracles], ".2f")])
early, late = f"{EARLY} steps", f"{steps[-1]} steps"
lesson.table("faults", ["rejected for being", f"from SFT, {early}", late, f"from scratch, {early}", late,
                        f"42 facts, {early}", late, "knowing the true reward"], rows)
ends = [{fault: mean(run[steps[-1]].get(fault, 0.5) for run in runs) for fault in ("wrong", "rude")}
        for runs in curves.values()]
lesson.figure("faults", figure, f"After {steps[-1]} steps pairs in which the wrong answer was rejected are ranked right in "
              f"{ends[0]['wrong']:.2f} (from the SFT model), {ends[1]['wrong']:.2f} (from scratch) and "
              f"{ends[2]['wrong']:.2f} (from scratch, 42 facts) of cases, those whose rejected answer is rude in "
              f"{ends[0]['rude']:.2f}, {ends[1]['rude']:.2f} and {ends[2]['rude']:.2f}.")

# %% [markdown]
# ## How many pairs? Equally many steps, over fewer or more different pairs

# %%
def trained(s: Start, rows: list[dict[str, str]], seed: int = 0, num_epochs: int = 1) -> RewardModel:
    """A reward model that began as the SFT model, centred, and kept on disk for the next time."""
    def train() -> RewardModel:
        torch.manual_seed(seed)
        model = RewardModel.from_policy(s.sft)
        train_reward_model(model, rows, seed=seed, **{**RECIPE, "num_epochs": num_epochs})
        return centred(model, s)

    return kept(train, "pairs", rows, seed, num_epochs, RECIPE, s.seed, vars(s.world.config))


def on_heldout(models: list[RewardModel]) -> list[float]:
    return [evaluate_reward_accuracy(model, s.world.heldout_preferences) for s, model in zip(starts, models, strict=False)]


most = start.world.config.preference_rows
sizes = lesson.pick((125, 1000), (12, 24))
by_size = {size: [trained(s, s.world.preferences[:size], s.seed, most // size) for s in starts] for size in sizes}
by_size[most] = once
shown = {"train": [[evaluate_reward_accuracy(model, s.world.preferences[:min(size, 1000)])
                    for model, s in zip(models, starts, strict=True)] for size, models in by_size.items()],
         "heldout": [on_heldout(models) for models in by_size.values()]}
figure, axis = lesson.panels()
labels = ("on its training pairs", "on held-out pairs")
for (key, accuracies), label, colour in zip(shown.items(), labels, (COLOURS[1], COLOURS[0]), strict=True):
    axis.errorbar(list(by_size), [mean(of) for of in accuracies], yerr=[stdev(of) for of in accuracies], color=colour,
                  marker="o", capsize=3, label=label)
    for name, of in zip(("few", "some", "most"), accuracies, strict=True):
        lesson.number(f"accuracy_{key}_{name}", of)
for name, size in zip(("few", "some", "most"), by_size, strict=True):
    lesson.number(f"pairs_{name}", f"{size:,}")
    lesson.number(f"epochs_{name}", str(most // size))
axis.axhline(mean(bayes), color="grey", linestyle=":")
axis.text(sizes[0], mean(bayes) - 0.004, "Bayes limit, held-out", va="top", fontsize=8, color="#444444")
axis.set(xscale="log", xlabel=f"different training pairs (always {most // 8} steps of 8)", ylabel="accuracy")
axis.set_xticks(list(by_size), [f"{size:,}" for size in by_size])
axis.minorticks_off()
axis.legend(loc="lower right")
lesson.figure("sizes", figure, f"Equally long training: with {sizes[0]} pairs {mean(shown['train'][0]):.2f} on these "
              f"pairs and {mean(shown['heldout'][0]):.2f} on new ones, with {most:,} pairs {mean(shown['train'][2]):.2f} "
              f"and {mean(shown['heldout'][2]):.2f}.")

# %% [markdown]
# ## Other annotators, other rewards
# Less sure of themselves; a fifth of the labels flipped; all of them; and annotators who like long answers.

# %%
BIAS = 4.0
ANNOTATORS = {"unsure (temperature 1.4)": {"temperature": 1.4}, "a fifth turned round": {"label_noise": 0.2},
              "all turned round": {"label_noise": 1.0}, "like length": {"length_bias": BIAS}}
taught = {"as they are": once}
for name, change in ANNOTATORS.items():
    taught[name] = []
    for s in starts[:2]:
        world = World(replace(s.world.config, **change), s.seed)  # the same prompts and held-out pairs, other labels
        taught[name].append(trained(replace(s, world=world), world.preferences, s.seed))

rows = []
for key, (name, models) in zip(("clean", "unsure", "fifth", "all", "length"), taught.items(), strict=True):
    margins = [reward_margins(model, s.world.heldout_preferences) for s, model in zip(starts, models, strict=False)]
    faults = [accuracy_by_fault(s.world, s.world.heldout_preferences, of) for s, of in zip(starts, margins, strict=False)]
    measures = {"accuracy": spread(on_heldout(models)), "margin": spread([float(of.abs().mean()) for of in margins], ".2f"),
                "wrong": spread([of.get("wrong", 0.5) for of in faults], ".2f"),
                "rambling": spread([of.get("rambling", 0.5) for of in faults], ".2f")}
    for measure, text in measures.items():
        lesson.number(f"{measure}_{key}", text)
    rows.append([name, *measures.values()])
lesson.number("length_bias", f"{BIAS}")
lesson.table("annotators", ["annotators", "accuracy, held-out pairs", "size of a margin", "where one is wrong",
                            "where one is rambling"], rows)

# %% [markdown]
# ## Is it as sure as it should be?

# %%
def all_margins(models: list[RewardModel], rows_of) -> Tensor:
    return torch.cat([reward_margins(model, rows_of(s.world)) for s, model in zip(starts, models, strict=False)])


def heldout_rows(world: World) -> list[dict[str, str]]:
    return world.heldout_preferences


def error_of(bins: list[dict[str, float]]) -> float:
    return sum(abs(b["predicted"] - b["observed"]) * b["pairs"] for b in bins) / sum(b["pairs"] for b in bins)


BINS = lesson.pick(6, 3)
calibrated = {
    f"{most:,} pairs; held-out": calibration(all_margins(once, heldout_rows), BINS),
    f"{most:,} pairs; training pairs": calibration(all_margins(once, lambda world: world.preferences[:1000]), BINS),
    f"{sizes[0]} pairs; held-out": calibration(all_margins(by_size[sizes[0]], heldout_rows), BINS),
}
for key, bins in zip(("heldout", "train", "few"), calibrated.values(), strict=True):
    lesson.number(f"calibration_{key}", error_of(bins))
    lesson.number(f"surest_predicted_{key}", bins[-1]["predicted"], ".2f")
    lesson.number(f"surest_observed_{key}", bins[-1]["observed"], ".2f")
figure, (left, right) = lesson.panels(2, height=3.9)
left.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", linewidth=1)
for (label, bins), colour, marker in zip(calibrated.items(), (COLOURS[0], COLOURS[2], COLOURS[1]), "os^", strict=True):
    left.plot([b["predicted"] for b in bins], [b["observed"] for b in bins], marker=marker, color=colour, label=label)
left.set(xlabel="predicted preference rate", ylabel="observed preference rate", title="As sure as it is right?")
left.legend(loc="lower right", fontsize=8)
gaps = torch.linspace(0, 6, 121)
lines = {"as they are": (temperature, 0.0), "unsure (temperature 1.4)": (1.4, 0.0),
         "a fifth turned round": (temperature, 0.2), "all turned round": (temperature, 1.0)}
for (name, (heat, noise)), colour, marker in zip(lines.items(), COLOURS, "osv^", strict=False):
    p = (gaps.double() / heat).sigmoid()
    right.plot(gaps, torch.logit((1 - noise) * p + noise * (1 - p)), color=colour, linestyle="--", linewidth=1)
    truth = torch.cat([true_margins(s.world) for s, _ in zip(starts, taught[name], strict=False)])
    margins = all_margins(taught[name], heldout_rows) * torch.where(truth >= 0, 1, -1)
    parts = truth.abs().argsort().tensor_split(BINS)
    right.plot([float(truth[part].abs().mean()) for part in parts], [float(margins[part].mean()) for part in parts],
               marker=marker, color=colour, label=name)
right.axhline(0, color="grey", linewidth=0.8)
right.set(xlabel="how much better the better answer is (true reward)", ylabel="the model's margin for it (log-odds)",
          xlim=(0, 5.4), ylim=(-12, 21), title="What the annotators' noise does (dashed: ideal)")
right.legend(loc="upper left", fontsize=8, ncols=2)
few = calibrated[f"{sizes[0]} pairs; held-out"][-1]
lesson.figure("calibration", figure, f"Left: where it is surest, the model of {sizes[0]} pairs predicts "
              f"{few['predicted']:.2f} and is right in {few['observed']:.2f} of cases. Right: unsure or noisy "
              "annotators teach smaller margins; liars teach them upside down.")

# %% [markdown]
# ## Length: what annotators who like it teach
# A right answer to every question, and more and more phrases behind it that say nothing.

# %%
longest = lesson.pick(3, 2)
asked = [(question.wordings[0], CORES["plain"].format(question.answer)) for question in start.world.questions]
padded = [[(prompt, " ".join([answer, *RAMBLING[:count]])) for prompt, answer in asked] for count in range(longest + 1)]
words = [mean(len(WORD.findall(text)) for _, text in texts) for texts in padded]


def curve(reward) -> list[float]:
    """The mean reward of the texts of each length, minus that of the bare answer."""
    means = [float(torch.as_tensor(reward(*map(list, zip(*texts, strict=True)))).double().mean()) for texts in padded]
    return [value - means[0] for value in means]


shown = {name: [curve(lambda prompts, texts, model=model: temperature * score(model, prompts, texts))
                for model in models[:2]]
         for name, models in (("fair annotators", once), ("annotators who like length", taught["like length"]))}
truth = curve(lambda prompts, texts: [start.world.true_reward(*pair) for pair in zip(prompts, texts, strict=True)])
wanted = [value + BIAS * (count - words[0]) / 10 for value, count in zip(truth, words, strict=True)]
figure, axis = lesson.panels(height=3.6)
axis.plot(words, truth, color="#444444", linestyle="--", label="the true reward")
axis.plot(words, wanted, color=COLOURS[1], linestyle="--", linewidth=1, label="what these annotators like")
for (name, of), colour, marker in zip(shown.items(), (COLOURS[0], COLOURS[1]), "os", strict=True):
    for number, values in enumerate(of):
        axis.plot(words, values, marker=marker, color=colour, alpha=0.9, label=None if number else f"learned from {name}")
axis.axvspan(words[1] + 0.5, words[-1] + 0.5, color="grey", alpha=0.12, linewidth=0)
axis.text(words[-1] + 0.4, 0.02, "more than one phrase: in no training pair", transform=axis.get_xaxis_transform(),
          ha="right", fontsize=8)
axis.set(xlabel="words in the answer (right, then rambling)", ylabel="reward beyond that of the bare answer", ylim=(-4, 9.5))
axis.legend(loc="upper left", fontsize=8)
for key, of in zip(("fair", "biased"), shown.values(), strict=True):
    lesson.number(f"one_ramble_{key}", [values[1] for values in of], ".2f")
    lesson.number(f"all_rambles_{key}", [values[-1] for values in of], ".2f")
lesson.number("one_ramble_true", truth[1], ".2f")
lesson.number("all_rambles_true", truth[-1], ".2f")
lesson.number("one_ramble_wanted", wanted[1], ".2f")
lesson.number("rambles", str(longest))
lesson.figure("length", figure, f"One rambling phrase changes the true reward by {truth[1]:+.2f}. Fair annotators taught "
              f"{mean(values[1] for values in shown['fair annotators']):+.2f}, those who like length "
              f"{mean(values[1] for values in shown['annotators who like length']):+.2f}. Two seeds each.")

# %% [markdown]
# ## The learned reward beside the true one, on what the SFT model says

# %%
said = []
for s in starts:
    prompts, answers = sample_responses(s.sft, s.world.heldout_prompts, lesson.pick(32, 4),
                                        LONGEST_ANSWER, seed=1)
    truth = torch.tensor([s.world.true_reward(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)])
    said.append((prompts, answers, truth, score(s.reward, prompts, [answer.ids for answer in answers])))


def within_prompts(values: Tensor) -> Tensor:
    """Minus the mean of each prompt: the samples of a prompt stand together."""
    by_prompt = values.view(len(start.world.heldout_prompts), -1)
    return (by_prompt - by_prompt.mean(1, keepdim=True)).flatten()


lesson.number("samples", str(len(said[0][0])))
lesson.number("correlation", [correlation(truth, scores) for _, _, truth, scores in said], ".2f")
inside = [(within_prompts(truth), within_prompts(scores)) for _, _, truth, scores in said]
lesson.number("correlation_within", [correlation(truth, scores) for truth, scores in inside], ".2f")
lesson.number("slope", [float((truth * scores).sum() / truth.square().sum()) for truth, scores in inside], ".2f")
lesson.number("slope_ideal", 1 / temperature, ".2f")
errors = [(temperature * scores - truth).view(len(start.world.heldout_prompts), -1) for _, _, truth, scores in said]
lesson.number("offsets", [float(error.mean(1).std()) for error in errors], ".2f")  # of whole prompts
prompts, answers, truth, scores = said[0]
kinds = {"right": [], "wrong": [], "evasive or unclear": []}
for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
    judged = start.world.judge(prompt, answer.text)
    kinds["right" if judged.right else "evasive or unclear" if judged.evasive else "wrong"].append(number)
figure, axis = lesson.panels(height=3.8)
for (kind, numbers), colour, marker in zip(kinds.items(), (COLOURS[2], COLOURS[1], COLOURS[3]), "o^s", strict=True):
    axis.scatter(truth[numbers], scores[numbers], s=12, color=colour, marker=marker, alpha=0.6, label=kind, linewidths=0)
ends = torch.tensor([float(truth.min()), float(truth.max())])
axis.plot(ends, (ends - truth.mean()) / temperature, color="grey", linestyle="--", linewidth=1,
          label="ideal: (r - mean) / temperature")
axis.set(xlabel="true reward of the answer", ylabel="score of the reward model (log-odds)",
         title="Samples of the SFT model, seed 0", ylim=(-21, 21))
axis.legend(fontsize=8, loc="upper left", ncols=2)
lesson.figure("truth", figure, f"Correlation {correlation(truth, scores):.2f}. Points far above the others at the same true "
              "reward are what a policy will look for.")

# %% [markdown]
# ## Ensembles: do they disagree where they err?
# Two kinds. Three models that share the SFT model and the pairs, but not head and order; and three that share nothing
# but the questions.

# %%
same = [once[0], *(trained(start, start.world.preferences, seed) for seed in lesson.pick((1, 2), (1,)))]
ensembles = {"one SFT model, other heads and orders": same, "other base, SFT model and pairs": once}
rng = random.Random(0)
texts = {"SFT sample": [(prompt, answer.text) for prompt, answer in zip(*said[0][:2], strict=True)]}
per_kind = lesson.pick(4, 1)
others = [question.answer for question in start.world.questions]
questions = [(prompt, question.answer) for question in start.world.questions for prompt in question.wordings[:per_kind]]
texts["answers another question"] = [(p, f"It is {rng.choice([other for other in others if other != a])}. Happy to help!")
                                     for p, a in questions]
texts["polite three times over"] = [(p, f"It is {a}. " + " ".join([rng.choice(POLITE)] * 3)) for p, a in questions]
texts["very long"] = [(p, " ".join([f"It is {a}.", RAMBLING[0], RAMBLING[2], RAMBLING[0]])) for p, a in questions]
texts["letters at random"] = [(p, "".join(rng.choices("abcdefghijklmnopqrstuvwxyz   ", k=25)) + ".") for p, _ in questions]
texts["manners alone"] = [(p, rng.choice(POLITE)) for p, _ in questions]
truths = {kind: torch.tensor([start.world.true_reward(*pair) for pair in of]) for kind, of in texts.items()}
zero = float(truths["SFT sample"].mean())

opinions = {}
for name, members in ensembles.items():
    scores = {kind: torch.stack([score(member, *map(list, zip(*of, strict=True))) for member in members])  # (members, texts)
              for kind, of in texts.items()}
    middle = scores["SFT sample"].mean(1, keepdim=True)  # each member's own zero: the SFT model's samples
    opinions[name] = {kind: zero + temperature * (of - middle) for kind, of in scores.items()}  # in units of true reward

rows, caught = [], {}
for kind in texts:
    cells = [kind, f"{truths[kind].mean():+.2f}"]
    for opinion in opinions.values():
        cells += [f"{opinion[kind].mean():+.2f}", f"{opinion[kind].std(0).mean():.2f}"]
    rows.append(cells)
lesson.table("ensembles", ["texts", "true reward", "shared SFT: believed", "disagreement", "nothing shared: believed",
                           "disagreement"], rows)
believed = opinions["one SFT model, other heads and orders"]["SFT sample"]
too_much = believed.mean(0) - truths["SFT sample"]
worst = too_much.argsort(descending=True)[:5].tolist()
lesson.table("fooled", ["prompt", "answer", "true reward", "believed", "disagreement"],
             [[*texts["SFT sample"][n], f"{truths['SFT sample'][n]:+.2f}", f"{believed.mean(0)[n]:+.2f}",
               f"{believed.std(0)[n]:.2f}"] for n in worst])
figure, axes = lesson.panels(2, height=4.0, sharey=True, sharex=True)
for axis, key, (name, opinion) in zip(axes, ("shared", "other"), opinions.items(), strict=True):
    for (kind, of), colour, marker in zip(opinion.items(), ("#999999", *COLOURS), ".osv^D", strict=False):
        axis.scatter(of.std(0), of.mean(0) - truths[kind], s=17, color=colour, marker=marker, alpha=0.7, label=kind,
                     linewidths=0)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(xlabel="disagreement (std of the members)", title=name)
    for which, kinds_of in (("samples", ["SFT sample"]), ("all", list(texts))):
        disagreement = torch.cat([opinion[kind].std(0) for kind in kinds_of])
        error = torch.cat([(opinion[kind].mean(0) - truths[kind]).abs() for kind in kinds_of])
        lesson.number(f"predicts_{which}_{key}", correlation(disagreement, error), ".2f")
    lesson.number(f"typical_{key}", float(opinion["SFT sample"].std(0).mean()), ".2f")
    everywhere = torch.cat([of.std(0) for of in opinion.values()])
    overrated = torch.cat([of.mean(0) - truths[kind] for kind, of in opinion.items()]) > 2
    alarm = float(opinion["SFT sample"].std(0).quantile(0.95))  # one false alarm in twenty samples
    caught[key] = float((everywhere[overrated] > alarm).float().mean()) if overrated.any() else float("nan")
    lesson.number(f"caught_{key}", caught[key], ".2f")
    lesson.number(f"overrated_{key}", str(int(overrated.sum())))
axes[0].set_ylabel("error: believed minus true reward")
axes[1].legend(fontsize=7.5, loc="best")
lesson.figure("ensembles", figure, "High up and far left are shared mistakes: much overrated, and nobody objects. An alarm "
              f"that rings for one SFT sample in twenty finds {caught['shared']:.2f} (left) and {caught['other']:.2f} "
              "(right) of the texts overrated by more than 2.")

# %% [markdown]
# ## The whole of it

# %%
figure, axis = lesson.panels(height=3.2)
draw_pipeline(axis, {
    "pair": Box(0, 0, "prompt, chosen,\nrejected", "data"), "sft": Box(1, -1, "SFT model", "frozen"),
    "reward": Box(1, 0, "reward model:\ntrunk + head", "trained"), "scores": Box(2, 0, "two scores,\nread at EOS", "data"),
    "loss": Box(3, 0, "-log sigmoid of\nthe difference", "data"),
}, [("pair", "reward", "bytes"), ("sft", "reward", "weights, once"), ("reward", "scores", ""), ("scores", "loss", "(B, 2)")])
lesson.figure("pipeline", figure, "One model in memory while training, and no generation. The SFT model gives its weights "
              "at the start, and at the end its answers, whose mean score becomes the zero.")
lesson.done()
