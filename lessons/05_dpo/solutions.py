# %% [markdown]
# # 5. DPO: the exercises, worked
# Predict first, then run: `python -m lessons 05 --solutions`. Its five seeds need four more start
# models, which are trained the first time.

# %%
import json
import random
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from data.examples import preference_examples
from dpo import dpo_train, evaluate_preference_accuracy, implicit_rewards
from lessons.course import Lesson, spread
from lessons.start import DPO, starting_point

lesson = Lesson("05_dpo", "solutions")
seeds = lesson.pick((0, 1, 2, 3, 4), (0, 1))
starts = [starting_point(seed, quick=lesson.quick) for seed in seeds]
count = lesson.pick(1000, 32)
lesson.number("pairs_solutions", f"{count:,}")
lesson.number("seeds_solutions", str(len(seeds)))


# %% [markdown]
# ## One way to train, and one table
# What varies is the name of the loss and its settings.

# %%
def train(start, rows, **settings):
    """A policy, and its log: a dictionary for each step."""
    with TemporaryDirectory() as folder:
        policy, _, _ = dpo_train(start.fresh_policy(), start.sft, rows, out=folder,
                                 **DPO | {"seed": start.seed} | settings)
        log = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8")
    return policy, [json.loads(line) for line in log.splitlines()]


def results(start, policy):
    said = start.measure(policy, samples=lesson.pick(16, 1))
    heldout = start.world.heldout_preferences[:300]
    chosen, _ = implicit_rewards(policy, start.sft, heldout, beta=1.0)
    return {"kl": said["kl_nats_per_response"], "reward": said["true_reward"],
            "accuracy": evaluate_preference_accuracy(policy, start.sft, heldout),
            "chosen": float(chosen.mean())}


def compare(name, title, ways, change=lambda rows, seed: rows):
    """A table with a row for each way to train, and the logs: way -> one for each seed."""
    forms = {"kl": ".2f", "reward": ".2f", "accuracy": ".2f", "chosen": ".2f"}
    rows, logs = [], {}
    for way, settings in lesson.progress(ways.items(), name):
        runs = [train(start, change(start.world.preferences[:count], start.seed), **settings)
                for start in starts]
        values = [results(start, policy) for start, (policy, _) in zip(starts, runs, strict=True)]
        rows.append([way, *(spread([value[column] for value in values], form)
                            for column, form in forms.items())])
        logs[way] = [log for _, log in runs]
    lesson.table(name, ["loss", "KL (nats)", "true reward", "accuracy", "chosen log-ratio"], rows,
                 title=title)
    return logs


# %% [markdown]
# ## 1. Sum or mean?

# %%
tokens = mean(len(response) for row in preference_examples(
    starts[0].world.preferences[:count], starts[0].sft.max_seq_len) for response in row.responses)
lesson.number("mean_tokens", tokens, ".0f")
compare("lengths", "Sums of log-ratios, and means per token", {
    "sums, beta 2": {"beta": 2.0},
    "means, beta 2": {"loss": "length_normalised_dpo", "beta": 2.0},
    "means, beta 2 x length": {"loss": "length_normalised_dpo", "beta": 2.0 * tokens}})

# %% [markdown]
# ## 2. DPO + alpha SFT
# At beta 0.5, where the chosen responses lose much.

# %%
compare("alpha", "DPO and alpha times the loss of SFT on the chosen", {
    f"beta 0.5, alpha {alpha}": {"loss": "dpo_nll", "beta": 0.5, "nll_weight": alpha}
    for alpha in (0.0, 1.0, 10.0)})


# %% [markdown]
# ## 3. Wrong labels
# A fifth of the pairs flipped, and three losses.

# %%
NOISE = 0.2
lesson.number("noise", f"{NOISE:.0%}")


def flipped(rows, seed):
    rng = random.Random(seed)
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]}
            if rng.random() < NOISE else row for row in rows]


compare("noise", "Every fifth label is wrong", {
    "DPO": {},
    "cDPO": {"loss": "cdpo", "label_smoothing": NOISE},
    "robust": {"loss": "robust_dpo", "label_smoothing": NOISE}}, flipped)

# %% [markdown]
# ## 4. KTO, with and without its reference point
# With z = 0 KTO on pairs is half of APO-zero's loss. Its batches hold single responses.

# %%
logs = compare("kto", "KTO, and the same with z = 0", {
    "KTO": {"loss": "kto", "batch_size": 2 * DPO["batch_size"]},
    "APO-zero (z = 0)": {"loss": "apo_zero"}})
points = [[step["reference_point"] for step in log] for log in logs["KTO"]]
lesson.number("kto_point", [mean(of_run) for of_run in points], ".2f")
lesson.number("kto_point_share", [mean(point > 0 for point in of_run) for of_run in points], ".2f")
lesson.done()
