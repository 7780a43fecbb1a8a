# %% [markdown]
# # 8. When it goes wrong: what the article's numbers come from
# Each mistake is made on purpose beside a healthy run. The subtle ones are compared over five
# seeds; the loud ones, and PPO, are shown on seed 0.

# %%
import copy
import json
import math
import random
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data.examples import sft_examples
from dpo import dpo_train, evaluate_preference_accuracy, implicit_rewards
from dpo.train import ADVICE
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, PPO, SFT, starting_point
from minigpt import EOS, PAD, SEP, generate
from minigpt.batching import Batches
from minigpt.evaluation import sample_responses, signs_of_collapse
from minigpt.training import TrainingLoop
from ppo import gae
from ppo.train import ppo_training
from sft.evaluate import evaluate_loss
from sft.loss import sft_loss
from sft.train import SFTConfig

lesson = Lesson("08_when_it_goes_wrong", "experiments")
seeds = lesson.pick(range(5), range(2))
starts = [starting_point(seed, quick=lesson.quick) for seed in seeds]
start = starts[0]
samples = lesson.pick(16, 1)  # answers to each held-out prompt


def mean_of_last(values: list[float], count: int) -> float:
    return sum(values[-count:]) / len(values[-count:])


# %% [markdown]
# ## SFT: one right way to say what counts, and five wrong ones
# Each function returns the ids, which of them count, and how far ahead a row of logits is taken to
# look.

# %%
def right(batch):
    return batch.token_ids, batch.response_mask, 1


def pad_is_eos(batch):
    ids = batch.token_ids.masked_fill(batch.token_ids == PAD, EOS)
    return ids, (batch.segments != 0) & (ids != EOS), 1  # hides padding, and with it every end


def prompt_not_masked(batch):
    return batch.token_ids, batch.segments >= 0, 1


def mask_one_late(batch):
    mask = batch.response_mask.roll(1, dims=1)     # cut to fit the logits, but laid on the labels
    return batch.token_ids, mask, 1


def labels_not_shifted(batch):
    return batch.token_ids, batch.response_mask, 0  # asked for the token that it has just read


def labels_shifted_twice(batch):
    return batch.token_ids, batch.response_mask, 2  # by the caller, and once more by the model


def loss_of(model, batch, what_counts):
    """Mean of -log p over what counts."""
    ids, counts, ahead = what_counts(batch)
    logits = model(ids)[:, :ids.shape[1] - ahead]
    targets, counts = ids[:, ahead:], counts[:, ahead:]
    return F.cross_entropy(logits[counts], targets[counts])


def train_sft(start, examples, what_counts):
    """From the base model, with the library's schedule; the loss of every step."""
    model = copy.deepcopy(start.base).train()
    batches = Batches(examples, SFT["batch_size"], start.seed)
    loop = TrainingLoop({"model": model}, SFTConfig(**SFT), batches, len(batches))
    for batch in loop.whole_batches():
        loss = loss_of(model, batch, what_counts)
        loop.optimizer.backward(loss)
        loop.log.add({"loss": loss}, batch.weight)
        loop.log.write({"grad_norm": loop.optimizer.step()})
    return model.eval(), loop.log.history["loss"]


# %% [markdown]
# ## Look at what is fed, before training anything

# %%
def shown(ids: list[int]) -> str:
    names = {EOS: "<EOS>", PAD: "<PAD>", SEP: "<SEP>"}
    return "`" + "".join(names.get(i) or chr(i) for i in ids) + "`"


WAYS = (right, pad_is_eos, prompt_not_masked, mask_one_late, labels_not_shifted,
        labels_shifted_twice)
row = next(row for row in start.world.sft_rows if len(row["response"]) < 14)
one = Batches(sft_examples([row, start.world.sft_rows[0]], 128), 2).collate([0, 1])
rows = []
for what_counts in WAYS:
    ids, counts, ahead = what_counts(one)
    columns = [c for c in range(ahead, ids.shape[1]) if counts[0, c]]
    scored = [int(ids[0, c]) for c in columns]
    rows.append([f"`{what_counts.__name__}`", shown(scored),
                 shown([int(ids[0, columns[0] - ahead])]), shown(scored[:1]),
                 str(scored.count(EOS))])
lesson.keep("targets", rows)
lesson.keep("example_row", f"{row['prompt']} {row['response']}")

# %% [markdown]
# ## Train all of them, from the same base model on the same rows

# %%
count = lesson.pick(1920, 24)
LONGEST = 56  # tokens of prompt and response, where they are cut
SFT_RUNS = {"healthy": right, "PAD is EOS": pad_is_eos, "prompt not masked": prompt_not_masked,
            "mask one late": mask_one_late, "labels not shifted": labels_not_shifted,
            "labels shifted twice": labels_shifted_twice, "cut, no EOS": right,
            "cut, EOS put back": right}
SUBTLE = ("healthy", "PAD is EOS", "prompt not masked", "mask one late")


def examples_for(name: str, start):
    rows = start.world.sft_rows[:count]
    if not name.startswith("cut"):
        return sft_examples(rows, 128)
    cut = sft_examples(rows, LONGEST)  # the library takes the EOS of a cut response away
    if name == "cut, no EOS":
        return cut
    return [e._replace(responses=(e.responses[0][:-1] + bytes([EOS]),)) if e.is_truncated else e
            for e in cut]


def judged(start, model) -> dict[str, float]:
    """What only samples, and a held-out loss with the right mask, can tell."""
    prompts, answers = sample_responses(model, start.world.heldout_prompts, samples,
                                        LONGEST_ANSWER, start.seed)
    judgements = [start.world.judge(prompt, answer.text)
                  for prompt, answer in zip(prompts, answers, strict=True)]
    return {"heldout": evaluate_loss(model, start.world.heldout_sft_rows),
            "ends": sum(answer.finished for answer in answers) / len(answers),
            "whole": sum(judgement.complete for judgement in judgements) / len(answers),
            "right": sum(judgement.right for judgement in judgements) / len(answers)}


question = start.world.heldout_prompts[0]
sft, says = {}, {}
for name, what_counts in lesson.progress(SFT_RUNS.items(), "SFT runs"):
    for here in starts if name in SUBTLE else starts[:1]:
        model, losses = train_sft(here, examples_for(name, here), what_counts)
        sft.setdefault(name, []).append({"first": losses[0], "last": mean_of_last(losses, 30),
                                         **judged(here, model)})
        if here is start:
            answer = generate(model, [question], 64, greedy=True)[0]
            says[name] = answer.text.replace("`", "'")
lesson.keep("sft", sft)
lesson.keep("says", says)
lesson.keep("sft_steps", len(losses))
lesson.keep("question", question)
lesson.keep("cut", {"tokens": LONGEST, "share": sum(
    e.is_truncated for e in examples_for("cut, no EOS", start)) / count})


# %% [markdown]
# ## Step 0 of DPO: all margins are 0, or something is wrong already

# %%
def with_dropout(model, rate: float = 0.1):
    """GPT-2's dropout, on what each part adds to the residual stream; in training mode only."""
    for block in model.blocks:
        for part in (block.attention.out, block.ff_out):
            part.register_forward_hook(
                lambda part, inputs, output: F.dropout(output, rate, part.training))
    return model


def other_sft(start):
    """An SFT model as good as this seed's, and not the same."""
    return starts[start.seed - 1].sft


def step_zero(policy, reference, pairs) -> Tensor:
    """beta (log-ratio of chosen less log-ratio of rejected) of every pair, before any training."""
    chosen, rejected = implicit_rewards(policy, reference, pairs, DPO["beta"])
    return chosen - rejected


zero, margins_at_zero = {}, {}
for here in starts:
    pairs = here.world.preferences[:lesson.pick(512, 32)]
    torch.manual_seed(here.seed)
    for name, policy, reference in (
            ("its own copy", here.fresh_policy().eval(), here.sft),
            ("its own copy, dropout 0.01", with_dropout(here.fresh_policy(), 0.01).train(),
             here.sft),
            ("its own copy, dropout 0.1", with_dropout(here.fresh_policy()).train(), here.sft),
            ("an SFT model of another seed", here.fresh_policy().eval(), other_sft(here)),
            ("the base model", here.fresh_policy().eval(), here.base)):
        margins = step_zero(policy, reference, pairs)
        if here is start:
            margins_at_zero[name] = margins.tolist()
        zero.setdefault(name, []).append({
            "loss": float(-F.logsigmoid(margins).mean()), "margin": float(margins.mean()),
            "size": float(margins.abs().mean()),
            "expected": math.log(2) - float(margins.mean()) / 2
            + float(margins.square().mean()) / 8,
            "accuracy": float(((margins > 0).float() + 0.5 * (margins == 0).float()).mean())})
lesson.keep("step_zero", zero)
lesson.keep("margins_at_zero", margins_at_zero)


# %% [markdown]
# ## DPO: rate, beta, reference, labels, repeated rows, a batch of one
# `metrics.jsonl` is the log that a user sees, and all that is read here.

# %%
def logged(train, *args, **options):
    """Run a training loop in a folder of its own: its model, and the curves of its log."""
    with tempfile.TemporaryDirectory() as folder:
        model = train(*args, out=folder, overwrite=True, **options)[0]
        log = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in log]
    return model, {name: [line[name] for line in lines] for name in lines[0]}


def swapped(rows):
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


DPO_RUNS = {  # name: (reference, rows, what differs from the recipe)
    "healthy": lambda s, rows: (s.sft, rows, {}),
    "other SFT as reference": lambda s, rows: (other_sft(s), rows, {}),
    "labels swapped": lambda s, rows: (s.sft, swapped(rows), {}),
    "same 32 pairs": lambda s, rows: (s.sft, rows[:32] * (len(rows) // 32), {}),
    "dropout on": lambda s, rows: (s.sft, rows, {}),
    "base as reference": lambda s, rows: (s.base, rows, {}),
    "beta 0.05": lambda s, rows: (s.sft, rows, {"beta": 0.05}),
    "rate x 30": lambda s, rows: (s.sft, rows, {"lr": 30 * DPO["lr"]}),
    "batch of one": lambda s, rows: (s.sft, rows[:lesson.pick(60, 10)],
                                     {"batch_size": 1, "lr": 30 * DPO["lr"]}),
}
SUBTLE_DPO = ("healthy", "other SFT as reference", "labels swapped", "same 32 pairs", "dropout on")


def dpo_run(name: str, here) -> tuple[dict[str, float], list[str]]:
    """What the log of one run says, what it hides, and the warnings of the library."""
    rows = here.world.preferences[:lesson.pick(2016, 64)]
    reference, rows, changed = DPO_RUNS[name](here, rows)
    policy = here.fresh_policy()
    if name == "dropout on":
        policy = with_dropout(policy)
    torch.manual_seed(here.seed)
    policy, log = logged(dpo_train, policy, reference, rows, **DPO | changed)
    measured = here.measure(policy, samples)
    margin = mean_of_last(log["rewards/margins"], 10)
    return {"first_loss": log["loss"][0], "first_accuracy": log["rewards/accuracies"][0],
            "last_loss": mean_of_last(log["loss"], 10),
            "last_accuracy": mean_of_last(log["rewards/accuracies"], 10),
            "last_margin": margin, "nats": margin / changed.get("beta", DPO["beta"]),
            "largest": max(map(abs, log["rewards/margins"])),
            "zero_share": sum(loss < 0.0005 for loss in log["loss"]) / len(log["loss"]),
            "on_32": evaluate_preference_accuracy(policy, reference, rows[:32]),
            "heldout": evaluate_preference_accuracy(policy, here.sft,
                                                    here.world.heldout_preferences),
            "kl": measured["kl_nats_per_response"], "reward": measured["true_reward"],
            }, signs_of_collapse(measured, ADVICE)


dpo, signs = {}, {}
for name in lesson.progress(DPO_RUNS, "DPO runs"):
    for here in starts if name in SUBTLE_DPO else starts[:1]:
        results, signs[name] = dpo_run(name, here)
        dpo.setdefault(name, []).append(results)
lesson.keep("dpo", dpo)
lesson.keep("signs", signs["rate x 30"])
lesson.keep("sft_reward", [here.measure(here.sft, samples)["true_reward"] for here in starts])
lesson.keep("bayes", start.world.bayes_accuracy(start.world.heldout_preferences))

# %% [markdown]
# ## A held-out set that is not one: repeated rows dealt out at random
# 64 different pairs, 32 times each, are shuffled and split: most held-out rows have twins.

# %%
leaks = []
for here in lesson.progress(starts, "leaks"):
    rows = here.world.preferences[:64] * lesson.pick(32, 2)
    random.Random(here.seed).shuffle(rows)
    split = len(rows) // 10
    held, training = rows[:split], rows[split:]
    policy, _, _ = dpo_train(here.fresh_policy(), here.sft, training, seed=here.seed, **DPO)
    twins = {json.dumps(row) for row in training}
    honest = here.world.heldout_preferences
    leaks.append({"twins": sum(json.dumps(row) in twins for row in held) / len(held),
                  "leaked": evaluate_preference_accuracy(policy, here.sft, held),
                  "honest": evaluate_preference_accuracy(policy, here.sft, honest)})
lesson.keep("leaks", leaks)


# %% [markdown]
# ## PPO: rate, the sign of the KL, dropout, answers cut short
# A short run of the recipe (seed 0).

# %%
def flipped_kl(logps, ref_logps):
    return ref_logps - logps    # the right one: logps - ref_logps


PPO_RUNS = {"healthy": {}, "rate x 10": {"lr": 10 * PPO["lr"]},
            "KL sign flipped": {"kl_estimator": flipped_kl}, "dropout on": {},
            "at most 12 tokens": {"max_new_tokens": 12}, "kl_coeff 0.01": {"kl_coeff": 0.01}}
ppo, ppo_curves = {}, {}
size = {"num_episodes": lesson.pick(20, 2), "batch_size": len(start.world.prompts)}
for name, changed in lesson.progress(PPO_RUNS.items(), "PPO runs"):
    policy = start.fresh_policy()
    if name == "dropout on":
        policy = with_dropout(policy)
    torch.manual_seed(0)
    policy, log = logged(ppo_training, policy, start.sft, start.reward, start.world.prompts,
                         **PPO | size | changed)
    measured = start.measure(policy, samples)
    ppo_curves[name] = {key: log[key] for key in ("objective/scores", "objective/kl",
                                                  "objective/kl_exact")}
    ppo[name] = {"ratio": log["val/first_ratio"][0], "score": log["objective/scores"][-1],
                 "kl": log["objective/kl"][-1], "exact": log["objective/kl_exact"][-1],
                 "first_exact": log["objective/kl_exact"][0], "updates": sum(log["val/updates"]),
                 "ends": log["val/num_eos_tokens"][0] / size["batch_size"],
                 "reward": measured["true_reward"], "bytes": measured["response_bytes"],
                 "true_kl": measured["kl_nats_per_response"],
                 "max": max(log["objective/kl_exact"])}
lesson.keep("ppo", ppo)
lesson.keep("ppo_curves", ppo_curves)
lesson.keep("episodes", size["num_episodes"])

# %% [markdown]
# ## A score behind the end of an answer
# Five tokens, the last of them EOS, then one PAD. How much of a score of 1 arrives at the EOS?

# %%
mask = torch.tensor([[True] * 5 + [False]])
mask_and_pad = torch.ones(1, 6, dtype=torch.bool)
values = torch.zeros(1, 6)
on_eos, on_pad = torch.eye(6)[4:5], torch.eye(6)[5:6]     # where the score stands
lesson.keep("score_placed", {
    "on EOS": float(gae(on_eos, values, mask)[0][0, 4]),
    "on PAD, with a value there": float(gae(on_pad, values, mask_and_pad)[0][0, 4]),
    "on PAD, masked": float(gae(on_pad, values, mask)[0][0, 4])})


# %% [markdown]
# ## What the library refuses, and what it says

# %%
def message(action) -> str:
    try:
        action()
    except (ValueError, FloatingPointError) as error:  # DataError and UserError are ValueErrors
        return f"{type(error).__name__}: {error}"
    raise AssertionError("the library did not refuse this")


def poisoned():
    policy = start.fresh_policy()
    policy.final_norm.weight.data[0] = math.nan
    return policy


few = start.world.preferences[:8]
same = [{"prompt": "Capital of Peru?", "chosen": "Lima.", "rejected": "Lima."}]
no_rejected = [{"prompt": "Hello?", "chosen": "Hi."}]
no_mask = torch.zeros(2, 4, dtype=torch.bool)
REFUSALS = {
    "policy and reference are one object": lambda: dpo_train(start.sft, start.sft, few),
    "chosen and rejected are the same": lambda: dpo_train(start.fresh_policy(), start.sft, same),
    "a column is missing": lambda: dpo_train(start.fresh_policy(), start.sft, no_rejected),
    "the mask is empty": lambda: sft_loss(torch.zeros(2, 4), no_mask),
    "a prompt fills the context": lambda: generate(start.sft, ["why? " * 40], 8),
    "a weight is NaN": lambda: dpo_train(poisoned(), start.sft, few),
}
lesson.keep("refusals", [[name, message(action)] for name, action in REFUSALS.items()])
lesson.done()
