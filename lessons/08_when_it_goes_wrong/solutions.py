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
seeds = lesson.pick(range(5), range(2))
starts = [starting_point(seed, quick=lesson.quick) for seed in seeds]
start = starts[0]
samples = lesson.pick(16, 1)  # answers to each held-out prompt

# %% [markdown]
# ## 1. Patient A: PPO, a score that does not move and a KL below 0
# The sampler never gets the new weights: every rollout comes from the SFT model, and is scored as
# if the policy had said it.

# %%
def stale(policy, *args, **options):
    return sample_ids(start.sft, *args, **options)  # the right one: sample_ids(policy, ...)


def ppo_log(sampler):
    with tempfile.TemporaryDirectory() as folder:
        size = {"num_episodes": lesson.pick(20, 2), "batch_size": len(start.world.prompts)}
        policy, _, _ = ppo_training(start.fresh_policy(), start.sft, start.reward,
                                    start.world.prompts, sample=sampler, out=folder, **PPO | size)
        log = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return policy, [json.loads(line) for line in log]


logs = {}
for name, sampler in lesson.progress((("healthy", sample_ids), ("patient A", stale)), "PPO"):
    policy, logs[name] = ppo_log(sampler)
    key = name.replace(" ", "_")
    measured = start.measure(policy, samples)
    kls = [line["objective/kl"] for line in logs[name][-5:]]
    lesson.number(f"{key}_kl", sum(kls) / len(kls), ".1f")
    lesson.number(f"{key}_ratio", logs[name][-1]["val/first_ratio"], ".4f")
    lesson.number(f"{key}_real_kl", measured["kl_nats_per_response"], ".1f")
    lesson.number(f"{key}_reward", measured["true_reward"], ".2f")

# %% [markdown]
# ## 2. Patient B: two runs whose loss stays at 0.6931
# Both compare the policy with itself. B1 lets the gradient through both sides, B2 only through the
# policy's.

# %%
def train_against_itself(start, detached: bool):
    policy = start.fresh_policy().train()
    pairs = preference_examples(start.world.preferences[:lesson.pick(2016, 64)], 128)
    batches = Batches(pairs, DPO["batch_size"], start.seed)
    loop = TrainingLoop({"policy": policy}, DPOConfig(**DPO), batches, len(batches))
    for batch in loop.whole_batches():                          # one optimizer step each
        logps = response_logps(policy, batch)                               # (B, 2)
        ref_logps = logps.detach() if detached else logps
        loss, metrics = dpo_loss(*logps.unbind(1), *ref_logps.unbind(1), DPO["beta"])
        loop.optimizer.backward(loss)
        loop.log.add({"loss": loss, **metrics}, batch.weight)
        loop.log.write({"grad_norm": loop.optimizer.step()})
    return policy.eval(), loop.log.history


itself, histories = {"B1": [], "B2": []}, {}
for name, patients in (("B1", starts[:1]), ("B2", starts)):
    for here in lesson.progress(patients, name):
        policy, history = train_against_itself(here, detached=name == "B2")
        histories.setdefault(name, history)
        measured = here.measure(policy, samples)
        itself[name].append({"loss": history["loss"][-1], "grad": history["grad_norm"][0],
                             "kl": measured["kl_nats_per_response"],
                             "reward": measured["true_reward"],
                             "ends": measured["finished_share"]})
    for key, form in (("loss", ".4f"), ("grad", ".1f"), ("kl", ".0f"), ("reward", ".1f"),
                      ("ends", ".2f")):
        values = [result[key] for result in itself[name]]
        lesson.number(f"{name}_{key}", values if len(values) > 1 else values[0], form)

# %%
figure, axes = lesson.panels(3)
for name, colour in (("healthy", COLOURS[0]), ("patient A", COLOURS[1])):
    for axis, metric, label in ((axes[0], "objective/scores", "mean score"),
                                (axes[1], "objective/kl", "logged KL (nats per response)")):
        values = [line[metric] for line in logs[name]]
        axis.plot(range(1, len(values) + 1), values, color=colour, label=name)
        axis.set(xlabel="episode", ylabel=label, title="Patient A (PPO)")
axes[0].legend()
axes[1].axhline(0, color="grey", linestyle=":", linewidth=1)
for name, colour in (("B1", COLOURS[2]), ("B2", COLOURS[1])):
    axes[2].plot(histories[name]["grad_norm"], color=colour, label=f"{name}, gradient norm")
axes[2].plot(histories["B1"]["loss"], color="#555555", linestyle="--", label="both, loss")
axes[2].set(xlabel="optimizer step", ylabel="loss (nats); gradient norm", yscale="symlog",
            title="Patients B1 and B2 (DPO)")
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
            part.register_forward_hook(
                lambda part, inputs, output: F.dropout(output, 0.1, part.training))
    return model.train()


pairs = start.world.preferences[:lesson.pick(512, 32)]
sizes = {}
for here in lesson.progress(starts, "step 0"):
    torch.manual_seed(here.seed)
    batches = Batches(preference_examples(pairs, 128), 64)
    fine = logps_of_examples(here.sft, batches)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = logps_of_examples(here.sft, batches)
    policy, beta = copy_of(here.sft).eval(), DPO["beta"]
    for name, (chosen, rejected) in {
            "C1": (beta * (coarse - fine)).unbind(1),
            "C2": implicit_rewards(policy, here.base, pairs, beta),
            "C3": implicit_rewards(policy, here.sft, pairs, beta),
            "C4": implicit_rewards(dropped(copy_of(here.sft)), here.sft, pairs, beta)}.items():
        margins = chosen - rejected
        sizes.setdefault(name, []).append((float(margins.abs().mean()),
                                           float(-F.logsigmoid(margins).mean())))
for name, values in sizes.items():
    lesson.number(f"{name}_size", [size for size, _ in values], ".2f")
    lesson.number(f"{name}_loss", [loss for _, loss in values], ".3f")

# %% [markdown]
# ## 4. Patient D: the loss is good and the answers are not
# Trained on `prompt SEP response`, asked with `prompt`: the same bytes but for one.

# %%
asked_right, asked_bare, losses = [], [], []
for here in lesson.progress(starts, "patient D"):
    prompts = [prompt for prompt in here.world.heldout_prompts for _ in range(samples)]
    answers = [answer.text
               for answer in generate(here.sft, prompts, LONGEST_ANSWER, seed=here.seed)]
    torch.manual_seed(here.seed)
    bare = [decode(ids) for ids in sample_ids(here.sft, [encode(prompt) for prompt in prompts],
                                              LONGEST_ANSWER)]
    asked_right.append(here.world.measure(prompts, answers)["right_share"])
    asked_bare.append(here.world.measure(prompts, bare)["right_share"])
    losses.append(evaluate_loss(here.sft, here.world.heldout_sft_rows))
    if here is start:
        lesson.number("D_asked", prompts[0])
        lesson.number("D_says", repr(bare[0][:60].replace("`", "'")))
lesson.number("D_loss", losses, ".2f")
lesson.number("D_right", asked_bare, ".2f")
lesson.number("D_right_as_trained", asked_right, ".2f")
lesson.done()
