# %% [markdown]
# # 8. When it goes wrong: the exercises, worked
# Four patients. Diagnose first, then run: `python -m lessons 08 --solutions`.

# %%
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from data.examples import preference_examples
from dpo import dpo_loss, implicit_rewards
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, PPO, starting_point
from minigpt import MiniGPT, copy_model_weights, decode, encode, generate
from minigpt.batching import Batches
from minigpt.logprobs import logps_of_examples, response_logps
from minigpt.plots import COLOURS
from minigpt.sampling import sample_ids
from minigpt.training import TrainingLoop
from ppo.train import ppo_training
from sft.evaluate import evaluate_loss

lesson = Lesson("08_when_it_goes_wrong", "solutions")
seeds = lesson.pick((0, 1, 2), (0, 1))
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
start = starts[0]
samples = lesson.pick(16, 1)  # answers to each held-out prompt

# %% [markdown]
# ## 1. Patient A: PPO, a score that does not move and a KL below 0
# The sampler never gets the new weights: every rollout comes from the SFT model, and is scored as if the policy had said it.

# %%
def stale(policy, *args, **options):
    return sample_ids(start.sft, *args, **options)  # the right one: sample_ids(policy, ...)


def ppo_log(sampler):
    with tempfile.TemporaryDirectory() as folder:
        episodes, size = lesson.pick((20, 128), (2, 16))
        policy, _, _ = ppo_training(
            start.fresh_policy(), start.sft, start.reward, start.world.prompts, sample=sampler,
            out=folder, **{**PPO, "num_episodes": episodes, "batch_size": size})
        return policy, [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


logs = {}
for name, sampler in (("healthy", sample_ids), ("patient A", stale)):
    policy, logs[name] = ppo_log(sampler)
    key = name.replace(" ", "_")
    measured = start.measure(policy, samples)
    lesson.number(f"{key}_kl", sum(line["objective/kl"] for line in logs[name][-5:]) / len(logs[name][-5:]), ".2f")
    lesson.number(f"{key}_ratio", logs[name][-1]["val/first_ratio"], ".4f")
    lesson.number(f"{key}_real_kl", measured["kl_nats_per_response"], ".2f")
    lesson.number(f"{key}_reward", measured["true_reward"], ".2f")

# %% [markdown]
# ## 2. Patient B: two runs whose loss stays at 0.6931
# Both compare the policy with itself. B1 lets the gradient through both sides, B2 only through the policy's.

# %%
def train_against_itself(start, detached: bool):
    policy = start.fresh_policy().train()
    pairs = preference_examples(start.world.preferences[:lesson.pick(2016, 64)], 128)
    batches = Batches(pairs, DPO["batch_size"], start.seed)
    loop = TrainingLoop({"policy": policy}, DPOConfig(**DPO), batches, len(batches))
    optimizer, log = loop.optimizer, loop.log
    for batch in loop.whole_batches():                          # one optimizer step each
        with optimizer.precision():
            logps = response_logps(policy, batch)                           # (B, 2)
            ref_logps = logps.detach() if detached else logps
            loss, metrics = dpo_loss(*logps.unbind(1), *ref_logps.unbind(1), DPO["beta"])
        optimizer.backward(loss)
        log.add({"loss": loss, **metrics}, batch.weight)
        log.write({"grad_norm": optimizer.step()})              # clip, step
    return policy.eval(), log.history


itself = {"B1": [], "B2": []}
histories = {}
for name, detached in (("B1", False), ("B2", True)):
    for seed in seeds:
        policy, history = train_against_itself(starts[seed], detached)
        histories.setdefault(name, history)
        measured = starts[seed].measure(policy, samples)
        itself[name].append({"loss": history["loss"][-1], "grad": history["grad_norm"][0],
                             "kl": measured["kl_nats_per_response"], "reward": measured["true_reward"],
                             "ends": measured["finished_share"]})
    for key, form in (("loss", ".4f"), ("grad", ".1f"), ("kl", ".1f"), ("reward", ".2f"), ("ends", ".2f")):
        lesson.number(f"{name}_{key}", [result[key] for result in itself[name]], form)

# %%
figure, axes = lesson.panels(3)
for name, colour in (("healthy", COLOURS[0]), ("patient A", COLOURS[1])):
    for axis, metric, label in ((axes[0], "objective/scores", "mean score"),
                                (axes[1], "objective/kl", "KL (nats a response)")):
        axis.plot(range(1, len(logs[name]) + 1), [line[metric] for line in logs[name]], color=colour, label=name)
        axis.set(xlabel="episode", ylabel=label, title="Patient A (PPO)")
axes[0].legend()
axes[1].axhline(0, color="grey", linestyle=":", linewidth=1)
for name, colour in (("B1", COLOURS[2]), ("B2", COLOURS[1])):
    axes[2].plot(histories[name]["grad_norm"], color=colour, label=f"{name}, length of the gradient")
axes[2].plot(histories["B1"]["loss"], color="#555555", linestyle="--", label="both, loss")
axes[2].set(xlabel="optimizer step", ylabel="loss; gradient norm", title="Patients B1 and B2 (DPO)", yscale="symlog")
axes[2].legend(fontsize=7.5)
lesson.figure("patients", figure, "Patients A and B (seed 0). What is wrong with them?")

# %% [markdown]
# ## 3. Patient C: four logs of step 0
# Which is the dropout, which the other reference, which the other precision, and which is in order?

# %%
def copy_of(model):
    """A copy whose first weights are drawn: the random numbers of dropout come after these."""
    return copy_model_weights(model, MiniGPT(**model.settings))


def dropped(model):
    for block in model.blocks:
        for part in (block.attention.out, block.ff_out):
            part.register_forward_hook(lambda part, inputs, output: F.dropout(output, 0.1, part.training))
    return model.train()


pairs = start.world.preferences[:lesson.pick(512, 32)]
sizes = {}
for seed in seeds:
    here = starts[seed]
    torch.manual_seed(seed)
    batches = Batches(preference_examples(pairs, 128), 64)
    fine = logps_of_examples(here.sft, batches)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = logps_of_examples(here.sft, batches)
    for name, chosen, rejected in (
            ("C1", *(DPO["beta"] * (coarse - fine)).unbind(1)),
            ("C2", *implicit_rewards(copy_of(here.sft).eval(), here.base, pairs, DPO["beta"])),
            ("C3", *implicit_rewards(copy_of(here.sft).eval(), here.sft, pairs, DPO["beta"])),
            ("C4", *implicit_rewards(dropped(copy_of(here.sft)), here.sft, pairs, DPO["beta"]))):
        margins = chosen - rejected
        sizes.setdefault(name, []).append((float(margins.abs().mean()), float(-F.logsigmoid(margins).mean())))
for name, values in sizes.items():
    lesson.number(f"{name}_size", [size for size, _ in values], ".3f")
    lesson.number(f"{name}_loss", [loss for _, loss in values], ".4f")

# %% [markdown]
# ## 4. Patient D: the loss is good and the answers are not
# Trained on `prompt SEP response`, asked with `prompt`: the same bytes but for one.

# %%
shares = {"asked as it was trained": [], "patient D": []}
losses = []
for seed in seeds:
    here = starts[seed]
    prompts = [prompt for prompt in here.world.heldout_prompts for _ in range(samples)]
    with_separator = [answer.text for answer in generate(here.sft, prompts, LONGEST_ANSWER, seed=seed)]
    torch.manual_seed(seed)
    bare = [decode(ids) for ids in sample_ids(here.sft, [encode(prompt) for prompt in prompts], LONGEST_ANSWER)]
    shares["asked as it was trained"].append(here.world.measure(prompts, with_separator)["right_share"])
    shares["patient D"].append(here.world.measure(prompts, bare)["right_share"])
    losses.append(evaluate_loss(here.sft, here.world.heldout_sft_rows))
    if seed == seeds[0]:
        lesson.number("D_asked", prompts[0])
        lesson.number("D_says", repr(bare[0][:60].replace("`", "'")))
lesson.number("D_loss", losses, ".3f")
lesson.number("D_right", shares["patient D"], ".2f")
lesson.number("D_right_as_trained", shares["asked as it was trained"], ".2f")
lesson.done()
