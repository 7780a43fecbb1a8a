# %% [markdown]
# # 5. DPO: the exercises, worked
# Predict first, then run: `python -m lessons 05 --solutions`.

# %%
import random
from statistics import mean

import torch
import torch.nn.functional as F

from data.examples import preference_examples
from dpo import DPOConfig, evaluate_preference_accuracy, implicit_rewards
from lessons.course import Lesson, spread
from lessons.start import DPO, starting_point
from minigpt.batching import Batches
from minigpt.logprobs import logps_of_examples, response_logps
from minigpt.training import TrainingLoop

lesson = Lesson("05_dpo", "solutions")
seeds = (0, 1)
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
count = lesson.pick(1600, 32)
lesson.number("pairs_solutions", f"{count:,}")
lesson.number("seeds_solutions", str(len(seeds)))


# %% [markdown]
# ## The loop, with a place for any loss
# `loss_of` gets the log-probabilities of chosen and rejected (B, 2), those of the reference, and the lengths in tokens.

# %%
def train(start, rows, loss_of):
    policy = start.fresh_policy()
    config = DPOConfig(**{**DPO, "seed": start.seed})
    batches = Batches(preference_examples(rows, policy.max_seq_len), config.batch_size, config.seed)
    loop = TrainingLoop({"policy": policy.train()}, config, batches, len(batches))
    optimizer, log = loop.optimizer, loop.log
    ref_logps = logps_of_examples(start.sft, batches)
    for batch in loop.whole_batches():
        with optimizer.precision():
            logps, lengths = response_logps(policy, batch), batch.response_masks.sum(-1)
            loss = loss_of(logps, ref_logps[batch.indices], lengths)
        optimizer.backward(loss)
        log.add({"loss": loss}, batch.weight)
        log.write({"grad_norm": optimizer.step()})
    return policy.eval()


def dpo(beta):
    def loss_of(logps, ref_logps, lengths):
        chosen, rejected = (logps - ref_logps).unbind(1)
        return -F.logsigmoid(beta * (chosen - rejected)).mean()
    return loss_of


def results(start, policy):
    said = start.measure(policy, samples=lesson.pick(8, 1))
    heldout = start.world.heldout_preferences[:300]
    return {"kl": said["kl_nats_per_response"], "reward": said["true_reward"], "bytes": said["response_bytes"],
            "accuracy": evaluate_preference_accuracy(policy, start.sft, heldout),
            "chosen": float(implicit_rewards(policy, start.sft, heldout, beta=1.0)[0].mean())}


def compare(name, policies_of):
    """A table: one row for each way to train, mean and standard deviation over the seeds."""
    found = [policies_of(start) for start in starts.values()]
    forms = {"kl": ".2f", "reward": ".2f", "bytes": ".0f", "accuracy": ".3f", "chosen": ".2f"}
    rows = []
    for way in found[0]:
        values = [results(start, of_seed[way]) for start, of_seed in zip(starts.values(), found, strict=True)]
        rows.append([way, *(spread([value[column] for value in values], form) for column, form in forms.items())])
    lesson.table(name, ["loss", "KL (nats)", "true reward", "bytes", "accuracy", "chosen log-ratio"], rows)


# %% [markdown]
# ## 1. Sum or mean?

# %%
tokens = mean(len(response) for row in preference_examples(starts[0].world.preferences[:count], starts[0].sft.max_seq_len)
              for response in row.responses)
lesson.number("mean_tokens", tokens, ".0f")


def of_means(beta):
    def loss_of(logps, ref_logps, lengths):
        chosen, rejected = ((logps - ref_logps) / lengths).unbind(1)  # nats per token
        return -F.logsigmoid(beta * (chosen - rejected)).mean()
    return loss_of


compare("lengths", lambda start: {
    name: train(start, start.world.preferences[:count], loss_of) for name, loss_of in
    (("sums, beta 2", dpo(2.0)), ("means, beta 2", of_means(2.0)), ("means, beta 2 x length", of_means(2.0 * tokens)))})

# %% [markdown]
# ## 2. DPO + alpha SFT
# At beta 0.5, where the chosen responses lose much.

# %%
def dpo_and_nll(beta, alpha):
    def loss_of(logps, ref_logps, lengths):
        nll = (-logps[:, 0] / lengths[:, 0]).mean()  # of the chosen, in nats per token
        return dpo(beta)(logps, ref_logps, lengths) + alpha * nll
    return loss_of


compare("alpha", lambda start: {
    f"beta 0.5, alpha {alpha}": train(start, start.world.preferences[:count], dpo_and_nll(0.5, alpha))
    for alpha in (0, 1, 10)})

# %% [markdown]
# ## 3. Wrong labels
# A fifth of the pairs flipped, and three losses.

# %%
NOISE = 0.2
lesson.number("noise", f"{NOISE:.0%}")


def turned_round(rows, seed):
    rng = random.Random(seed)
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} if rng.random() < NOISE else row for row in rows]


def smoothed(beta, robust):
    def loss_of(logps, ref_logps, lengths):
        chosen, rejected = (logps - ref_logps).unbind(1)
        as_labelled, turned = (-F.logsigmoid(sign * beta * (chosen - rejected)) for sign in (1, -1))
        if robust:
            return ((1 - NOISE) * as_labelled - NOISE * turned).mean() / (1 - 2 * NOISE)
        return ((1 - NOISE) * as_labelled + NOISE * turned).mean()  # cDPO
    return loss_of


compare("noise", lambda start: {
    name: train(start, turned_round(start.world.preferences[:count], start.seed), loss_of) for name, loss_of in
    (("DPO", dpo(2.0)), ("cDPO", smoothed(2.0, robust=False)), ("robust", smoothed(2.0, robust=True)))})

# %% [markdown]
# ## 4. KTO, with and without its reference point
# The reference point z is the mean log-ratio of responses to the wrong prompts, not below 0 and without a gradient.

# %%
points = {seed: [] for seed in seeds}


def kto(start, rows, beta, with_point):
    policy = start.fresh_policy()
    config = DPOConfig(**{**DPO, "seed": start.seed})
    strangers = [{**other, "prompt": row["prompt"]} for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    batches, mismatched = (Batches(preference_examples(some, policy.max_seq_len), config.batch_size, config.seed)
                           for some in (rows, strangers))
    ref_logps, ref_mismatched = (logps_of_examples(start.sft, some) for some in (batches, mismatched))
    loop = TrainingLoop({"policy": policy.train()}, config, batches, len(batches))
    optimizer, log = loop.optimizer, loop.log
    for batch in loop.whole_batches():
        z = torch.zeros(())
        if with_point:
            with torch.no_grad(), optimizer.precision():
                logps = response_logps(policy, mismatched.collate(batch.indices.tolist()))
            z = (logps - ref_mismatched[batch.indices]).mean().clamp(min=0)
            points[start.seed].append(float(z))
        with optimizer.precision():
            log_ratios = response_logps(policy, batch) - ref_logps[batch.indices]
            good, bad = log_ratios.unbind(1)                     # never compared to each other
            losses = 2 - torch.sigmoid(beta * (good - z)) - torch.sigmoid(beta * (z - bad))
            loss = losses.mean() / 2
        optimizer.backward(loss)
        log.add({"loss": loss}, batch.weight)
        log.write({"grad_norm": optimizer.step()})
    return policy.eval()


compare("kto", lambda start: {
    "KTO": kto(start, start.world.preferences[:count], 2.0, with_point=True),
    "KTO, reference point 0": kto(start, start.world.preferences[:count], 2.0, with_point=False)})
lesson.number("kto_point", [mean(points[seed]) for seed in seeds], ".2f")
lesson.number("kto_point_share", [mean(point > 0 for point in points[seed]) for seed in seeds], ".2f")
lesson.done()
