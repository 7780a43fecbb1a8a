# %% [markdown]
# # 8. When it goes wrong
# The article is README.md beside this file. Run this from the shell (`python -m lessons 08`) or cell by cell.

# %%
import copy
import json
import math
import random
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from data.examples import sft_examples
from dpo import dpo_train, evaluate_preference_accuracy, implicit_rewards
from dpo.train import ADVICE
from lessons.course import Lesson
from lessons.diagrams import Box, draw_pipeline
from lessons.start import DPO, LONGEST_ANSWER, PPO, SFT, starting_point
from minigpt import EOS, PAD, SEP, MiniGPT, copy_model_weights, generate
from minigpt.batching import Batches
from minigpt.evaluation import sample_responses, signs_of_collapse
from minigpt.plots import COLOURS, running_mean
from minigpt.training import TrainingLoop
from ppo.train import ppo_training
from reward.model import RewardModel
from sft.evaluate import evaluate_loss
from sft.loss import sft_loss
from sft.train import SFTConfig

lesson = Lesson("08_when_it_goes_wrong")
seeds = lesson.pick((0, 1, 2), (0, 1))
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
start = starts[0]
samples = lesson.pick(16, 1)  # answers to each held-out prompt
HEALTHY, BROKEN, THIRD = COLOURS[0], COLOURS[1], COLOURS[2]


def grid(rows: int, columns: int, height: float = 2.7):
    """A figure with a grid of panels, and its axes in reading order."""
    figure, axes = lesson.plt.subplots(rows, columns, figsize=(4.1 * columns, height * rows), layout="constrained",
                                       squeeze=False)
    return figure, axes.flatten()

# %% [markdown]
# ## SFT: one right way to say what counts, and five wrong ones
# Each function returns the ids, which of them count, and how far ahead a row of logits is taken to look.

# %%
def right(batch):
    return batch.token_ids, batch.response_mask, 1


def pad_is_eos(batch):
    ids = batch.token_ids.masked_fill(batch.token_ids == PAD, EOS)
    return ids, (batch.segments != 0) & (ids != EOS), 1  # hides the padding, and every end with it


def prompt_not_masked(batch):
    return batch.token_ids, batch.segments >= 0, 1


def mask_one_late(batch):
    return batch.token_ids, batch.response_mask.roll(1, dims=1), 1  # cut for the logits, used for the labels


def labels_not_shifted(batch):
    return batch.token_ids, batch.response_mask, 0  # each row of logits is asked for the token it has just read


def labels_shifted_twice(batch):
    return batch.token_ids, batch.response_mask, 2  # once by the caller, once more by the model


def loss_of(model, batch, what_counts):
    """Mean of -log p over what counts."""
    ids, counts, ahead = what_counts(batch)
    logits, targets, counts = model(ids)[:, :ids.shape[1] - ahead], ids[:, ahead:], counts[:, ahead:]
    return F.cross_entropy(logits[counts], targets[counts])


def train_sft(start, examples, what_counts):
    """From the base model, with the library's schedule; the loss of every step."""
    model = copy.deepcopy(start.base).train()
    batches = Batches(examples, SFT["batch_size"], start.seed)
    loop = TrainingLoop({"model": model}, SFTConfig(**SFT), batches, len(batches))
    optimizer, log = loop.optimizer, loop.log
    for batch in loop.whole_batches():                          # one optimizer step each
        with optimizer.precision():
            loss = loss_of(model, batch, what_counts)
        optimizer.backward(loss)
        log.add({"loss": loss}, batch.weight)
        log.write({"grad_norm": optimizer.step()})
    return model.eval(), log.history["loss"]

# %% [markdown]
# ## Look at what is fed, before training anything

# %%
def shown(ids: list[int]) -> str:
    return "`" + "".join({EOS: "<EOS>", PAD: "<PAD>", SEP: "<SEP>"}.get(i) or chr(i) for i in ids) + "`"


row = next(row for row in start.world.sft_rows if len(row["response"]) < 14)
one = Batches(sft_examples([row, start.world.sft_rows[0]], 128), 2).collate([0, 1])
rows = []
for what_counts in (right, pad_is_eos, prompt_not_masked, mask_one_late, labels_not_shifted, labels_shifted_twice):
    ids, counts, ahead = what_counts(one)
    columns = [c for c in range(ahead, ids.shape[1]) if counts[0, c]]
    scored = [int(ids[0, c]) for c in columns]
    rows.append([what_counts.__name__, shown(scored), shown([int(ids[0, columns[0] - ahead])]), shown(scored[:1]),
                 str(scored.count(EOS))])
lesson.table("targets", ["what counts", "scored targets", "the first row reads", "and must say", "ends scored"], rows)
lesson.number("example_row", f"{row['prompt']} {row['response']}")

# %% [markdown]
# ## Train all of them, from the same base model on the same rows

# %%
count = lesson.pick(2400, 24)
LONGEST = 56  # tokens of prompt and response, where they are cut
SFT_RUNS = {"healthy": right, "PAD is EOS": pad_is_eos, "prompt not masked": prompt_not_masked,
            "mask one late": mask_one_late, "labels not shifted": labels_not_shifted,
            "labels shifted twice": labels_shifted_twice, "cut, no EOS": right, "cut, EOS put back": right}
SUBTLE = ("healthy", "PAD is EOS", "prompt not masked", "mask one late")


def examples_for(name: str, start):
    rows = start.world.sft_rows[:count]
    if not name.startswith("cut"):
        return sft_examples(rows, 128)
    cut = sft_examples(rows, LONGEST)  # the library takes the EOS of a cut response away, and says so
    if name == "cut, no EOS":
        return cut
    return [e._replace(responses=(e.responses[0][:-1] + bytes([EOS]),)) if e.is_truncated else e
            for e in cut]


def judged(start, model) -> dict[str, float]:
    """What only samples and a held-out loss with the right mask can tell."""
    prompts, answers = sample_responses(model, start.world.heldout_prompts, samples,
                                        LONGEST_ANSWER, start.seed)
    judgements = [start.world.judge(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
    return {"heldout": evaluate_loss(model, start.world.heldout_sft_rows),
            "ends": sum(answer.finished for answer in answers) / len(answers),
            "whole": sum(judgement.complete for judgement in judgements) / len(answers),
            "right": sum(judgement.right for judgement in judgements) / len(answers)}


sft_curves, sft_results, says = {}, {}, {}
for name, what_counts in SFT_RUNS.items():
    for seed in seeds if name in SUBTLE else seeds[:1]:
        model, losses = train_sft(starts[seed], examples_for(name, starts[seed]), what_counts)
        results = {"first": losses[0], "last": sum(losses[-30:]) / len(losses[-30:]), **judged(starts[seed], model)}
        sft_results.setdefault(name, []).append(results)
        if seed == seeds[0]:
            sft_curves[name] = losses
            says[name] = generate(model, [start.world.heldout_prompts[0]], 64, greedy=True)[0].text.replace("`", "'")
lesson.number("question", start.world.heldout_prompts[0])
lesson.number("sft_steps", str(len(sft_curves["healthy"])))
cut_share = sum(e.is_truncated for e in examples_for("cut, no EOS", start)) / count
lesson.number("cut_share", cut_share, ".2f")
lesson.number("longest", str(LONGEST))
lesson.table("sft", ["run (seed 0)", "loss, first", "loss, last 30", "held-out loss", "ends", "whole sentences",
                     "right", "it says"],
             [[name, *(f"{results[0][key]:.2f}" for key in ("first", "last", "heldout", "ends", "whole", "right")),
               f"`{says[name][:44]!r}`"] for name, results in sft_results.items()])
for name in SUBTLE:
    key = name.lower().replace(" ", "_")
    for figure_name in ("first", "last", "heldout", "ends", "right"):
        lesson.number(f"sft_{key}_{figure_name}", [result[figure_name] for result in sft_results[name]], ".2f")

# %%
def tell(name: str) -> str:
    return f"ends {sft_results[name][0]['ends']:.2f}, held-out loss {sft_results[name][0]['heldout']:.2f}"


figure, axes = grid(3, 2)
for axis, names in zip(axes, (["PAD is EOS"], ["prompt not masked"], ["mask one late"], ["labels not shifted"],
                              ["labels shifted twice"], ["cut, no EOS", "cut, EOS put back"]), strict=True):
    for name, colour in zip(["healthy", *names], (HEALTHY, BROKEN, THIRD), strict=False):
        axis.plot(range(1, len(sft_curves[name]) + 1), running_mean(sft_curves[name], 10), color=colour, label=name)
    axis.set(title=" / ".join(names), xlabel="optimizer step", ylabel="loss it reports (nats)", ylim=(0, 6))
    axis.legend(loc="upper right")
    axis.text(0.97, 0.56, "\n".join(f"{name}:\n{tell(name)}" for name in ["healthy", *names]), transform=axis.transAxes,
              ha="right", va="top", fontsize=7.5, color="#333333")
lower = sum(sft_results[name][0]["last"] < sft_results["healthy"][0]["last"] for name in SFT_RUNS)
lesson.number("sft_lower", str(lower))
lesson.figure("sft", figure, f"SFT gone wrong in seven ways (seed 0): {lower} of the seven report a lower loss at the end "
              "than the healthy run. What gives them away is the loss under the right mask, and what they say.")

# %% [markdown]
# ## Step 0 of DPO: all margins are 0, or something is wrong already

# %%
def with_dropout(model, rate: float = 0.1):
    """GPT-2's dropout, on what each part adds to the residual stream; on in training mode only."""
    for block in model.blocks:
        for part in (block.attention.out, block.ff_out):
            part.register_forward_hook(lambda part, inputs, output: F.dropout(output, rate, part.training))
    return model


def step_zero(policy, reference, pairs) -> torch.Tensor:
    """beta (log-ratio of chosen less log-ratio of rejected) of every pair, before any training."""
    chosen, rejected = implicit_rewards(policy, reference, pairs, DPO["beta"])
    return chosen - rejected


def random_model(seed: int) -> MiniGPT:
    torch.manual_seed(100 + seed)
    return MiniGPT(**start.sft.settings).eval()


def other_sft(seed: int) -> MiniGPT:
    """An SFT model as good as this seed's, and not the same."""
    return starts[seeds[seeds.index(seed) - 1]].sft


zero, margins_at_zero = {}, {}
for seed in seeds:
    here = starts[seed]
    pairs = here.world.preferences[:lesson.pick(512, 32)]
    torch.manual_seed(seed)
    for name, policy, reference in (
            ("its own copy", here.fresh_policy().eval(), here.sft),
            ("its own copy, dropout 0.01", with_dropout(here.fresh_policy(), 0.01).train(), here.sft),
            ("its own copy, dropout 0.1", with_dropout(here.fresh_policy()).train(), here.sft),
            ("an SFT model of another seed", here.fresh_policy().eval(), other_sft(seed)),
            ("the base model", here.fresh_policy().eval(), here.base),
            ("a random model", here.fresh_policy().eval(), random_model(seed))):
        margins = step_zero(policy, reference, pairs)
        if seed == seeds[0]:
            margins_at_zero[name] = margins
        zero.setdefault(name, []).append({
            "loss": float(-F.logsigmoid(margins).mean()), "margin": float(margins.mean()),
            "size": float(margins.abs().mean()), "expected": math.log(2) - float(margins.mean()) / 2
            + float(margins.square().mean()) / 8,
            "accuracy": float(((margins > 0).float() + 0.5 * (margins == 0).float()).mean())})


def of_seeds(results: list[dict[str, float]], key: str, form: str = ".2f") -> str:
    values = [result[key] for result in results]
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:{form}} ± {spread:{form}}"


lesson.table("step_zero", ["reference", "loss", "mean margin", "mean size of a margin", "accuracy"],
             [[name, of_seeds(r, "loss", ".4f"), of_seeds(r, "margin"), of_seeds(r, "size"), of_seeds(r, "accuracy")]
              for name, r in zero.items()])
for key, form in (("loss", ".3f"), ("expected", ".3f"), ("size", ".2f"), ("margin", ".2f")):
    lesson.number(f"dropout_{key}", [r[key] for r in zero["its own copy, dropout 0.1"]], form)
    lesson.number(f"little_dropout_{key}", [r[key] for r in zero["its own copy, dropout 0.01"]], form)
    lesson.number(f"other_sft_{key}", [r[key] for r in zero["an SFT model of another seed"]], form)
lesson.number("base_margin", [r["margin"] for r in zero["the base model"]], ".0f")

figure, axis = lesson.panels(height=3.2)
for place, (name, margins) in enumerate(reversed(margins_at_zero.items())):
    jitter = torch.rand(len(margins), generator=torch.Generator().manual_seed(0)) * 0.5 - 0.25
    axis.scatter(margins, place + jitter, s=5, alpha=0.45, linewidths=0,
                 color=HEALTHY if name == "its own copy" else BROKEN)
axis.set_yticks(range(len(margins_at_zero)), list(reversed(margins_at_zero)))
axis.set_xscale("symlog", linthresh=1)
axis.set(xlabel="margin of one pair at step 0 (beta times nats)", title="What the policy is compared with")
exact = all(r["size"] == 0 for r in zero["its own copy"])
lesson.number("copy_size", f"{max(r['size'] for r in zero['its own copy']):.1f}")
lesson.figure("step_zero", figure, "Before training: against its own copy every margin is "
              f"{'exactly' if exact else 'nearly'} 0; one dot is one of {len(margins)} pairs (seed 0).")

# %% [markdown]
# ## DPO: rate, beta, reference, labels, repeated rows, a batch of one
# `metrics.jsonl` is the log that a user sees; it is all that is drawn below.

# %%
def logged(train, *args, **options):
    """Run a training loop of the library in a folder of its own: its model, and the curves of its metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        model = train(*args, out=folder, overwrite=True, **options)[0]
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return model, {name: [line[name] for line in lines] for name in lines[0]}


def swapped(rows):
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


DPO_RUNS = {  # name: (reference, rows, what differs from the recipe)
    "healthy": lambda s, rows: (s.sft, rows, {}),
    "rate x 30": lambda s, rows: (s.sft, rows, {"lr": 30 * DPO["lr"]}),
    "beta 0.05": lambda s, rows: (s.sft, rows, {"beta": 0.05}),
    "other SFT as reference": lambda s, rows: (other_sft(s.seed), rows, {}),
    "base as reference": lambda s, rows: (s.base, rows, {}),
    "random reference": lambda s, rows: (random_model(s.seed), rows, {}),
    "labels swapped": lambda s, rows: (s.sft, swapped(rows), {}),
    "same 32 pairs": lambda s, rows: (s.sft, rows[:32] * (len(rows) // 32), {}),
    "batch of one": lambda s, rows: (s.sft, rows[:lesson.pick(60, 10)], {"batch_size": 1, "lr": 30 * DPO["lr"]}),
    "dropout on": lambda s, rows: (s.sft, rows, {}),
}
SUBTLE_DPO = ("healthy", "other SFT as reference", "base as reference", "labels swapped", "same 32 pairs", "dropout on")
dpo_curves, dpo_results, dpo_signs = {}, {}, {}
for name, setup in DPO_RUNS.items():
    for seed in seeds if name in SUBTLE_DPO else seeds[:1]:
        here = starts[seed]
        reference, rows, changed = setup(here, here.world.preferences[:lesson.pick(2016, 64)])
        policy = with_dropout(here.fresh_policy()) if name == "dropout on" else here.fresh_policy()
        torch.manual_seed(seed)
        policy, curves = logged(dpo_train, policy, reference, rows, **{**DPO, **changed})
        measured = here.measure(policy, samples)
        last_margins = curves["rewards/margins"][-10:]
        last_margin = sum(last_margins) / len(last_margins)
        dpo_results.setdefault(name, []).append({
            "first_loss": curves["loss"][0], "first_accuracy": curves["rewards/accuracies"][0],
            "last_accuracy": sum(curves["rewards/accuracies"][-10:]) / len(curves["rewards/accuracies"][-10:]),
            "last_margin": last_margin, "nats": last_margin / changed.get("beta", DPO["beta"]),
            "last_loss": sum(curves["loss"][-10:]) / len(curves["loss"][-10:]),
            "on_32": evaluate_preference_accuracy(policy, reference, rows[:32]),
            "zero_share": sum(loss < 0.0005 for loss in curves["loss"]) / len(curves["loss"]),
            "largest": max(abs(margin) for margin in curves["rewards/margins"]),
            "heldout": evaluate_preference_accuracy(policy, here.sft, here.world.heldout_preferences),
            "kl": measured["kl_nats_per_response"], "reward": measured["true_reward"]})
        if seed == seeds[0]:
            dpo_curves[name], dpo_signs[name] = curves, signs_of_collapse(measured, ADVICE)
lesson.number("sft_reward", [starts[seed].measure(starts[seed].sft, samples)["true_reward"] for seed in seeds], ".2f")
lesson.number("bayes", start.world.bayes_accuracy(start.world.heldout_preferences), ".2f")
lesson.number("dpo_steps", str(len(dpo_curves["healthy"]["loss"])))
lesson.number("dpo_seeds", str(len(seeds)))
lesson.number("first_accuracy", ", ".join(f"{result['first_accuracy']:.2f}" for result in dpo_results["healthy"]))
lesson.number("swapped_one_less", [1 - result["heldout"] for result in dpo_results["labels swapped"]], ".2f")
lesson.table("dpo", ["run", "loss, step 0", "loss, last 10", "training accuracy, last 10",
                     "held-out accuracy", "KL (nats)", "true reward", "seeds"],
             [[name, *(of_seeds(r, key, form) if len(r) > 1 else format(r[0][key], form)
                       for key, form in (("first_loss", ".4f"), ("last_loss", ".2f"), ("last_accuracy", ".2f"),
                                         ("heldout", ".2f"), ("kl", ".1f"), ("reward", ".2f"))), str(len(r))]
              for name, r in dpo_results.items()])
for name, results in dpo_results.items():
    key = name.lower().replace(" ", "_").replace(".", "_")
    for figure_name, form in (("first_loss", ".4f"), ("heldout", ".2f"), ("kl", ".1f"), ("reward", ".2f"),
                              ("last_accuracy", ".2f"), ("last_margin", ".1f"), ("last_loss", ".2f"), ("on_32", ".2f"),
                              ("zero_share", ".2f"), ("largest", ".0f"), ("nats", ".1f")):
        values = [result[figure_name] for result in results]
        lesson.number(f"dpo_{key}_{figure_name}", values if len(values) > 1 else values[0], form)

# %%
figure, axes = grid(3, 2)
for axis, (name, metric, label, width) in zip(axes, (
        ("rate x 30", "loss", "loss", 1),
        ("beta 0.05", "logps/chosen", "log-prob of chosen (nats)", 5),
        ("other SFT as reference", "loss", "loss", 5),
        ("labels swapped", "rewards/accuracies", "training accuracy", 10),
        ("same 32 pairs", "rewards/accuracies", "training accuracy", 10),
        ("batch of one", "rewards/margins", "margin", 1)), strict=True):
    for run, colour in (("healthy", HEALTHY), (name, BROKEN)):
        values = dpo_curves[run][metric]
        axis.plot(range(len(values)), running_mean(values, width), color=colour, label=run)
        if metric == "rewards/accuracies":
            axis.plot(len(values) + 2, dpo_results[run][0]["heldout"], "D", color=colour, markersize=7, clip_on=False)
    axis.set(title=name, xlabel="optimizer step", ylabel=label)
    axis.legend(loc="upper right" if name == "batch of one" else "best")
    if metric == "rewards/accuracies":
        axis.set(ylim=(0, 1.02), title=f"{name} (diamonds: held out)")
        axis.axhline(0.5, color="grey", linestyle=":", linewidth=1)
for axis in (axes[0], axes[5]):
    axis.set_yscale("symlog", linthresh=1)
axes[5].set_ylim(-2e3, 1e5)
right_of_first = dpo_results["labels swapped"][0]
lesson.figure("dpo", figure, "DPO gone wrong (seed 0). Swapped labels draw the healthy curve in training: only held-out "
              f"pairs with labels that are known to be right ({right_of_first['heldout']:.2f}) give them away.")

# %% [markdown]
# ## A held-out set that is not: repeated rows dealt out at random
# 64 different pairs, 32 times each, are shuffled and split. Nearly every held-out row then has twins in training.

# %%
leaks = []
for seed in seeds:
    here = starts[seed]
    rows = here.world.preferences[:64] * lesson.pick(32, 2)
    random.Random(seed).shuffle(rows)
    split = len(rows) // 10
    held, training = rows[:split], rows[split:]
    policy, _, _ = dpo_train(here.fresh_policy(), here.sft, training, seed=seed, **DPO)
    twins = {json.dumps(row) for row in training}
    leaks.append({"twins": sum(json.dumps(row) in twins for row in held) / len(held),
                  "leaked": evaluate_preference_accuracy(policy, here.sft, held),
                  "honest": evaluate_preference_accuracy(policy, here.sft, here.world.heldout_preferences)})
for key in ("twins", "leaked", "honest"):
    lesson.number(f"leak_{key}", [leak[key] for leak in leaks], ".2f")

# %% [markdown]
# ## PPO: rate, the sign of the KL, dropout, answers cut short
# A short run of the recipe; one run estimates the KL by `kl_k1` with its sign flipped.

# %%
def kl_turned_round(logps, ref_logps):
    return ref_logps - logps  # the right one: logps - ref_logps


PPO_RUNS = {"healthy": {}, "rate x 10": {"lr": 10 * PPO["lr"]},
            "KL sign turned round": {"kl_estimator": kl_turned_round}, "dropout on": {},
            "at most 12 tokens": {"max_new_tokens": 12}, "kl_coeff 0.01": {"kl_coeff": 0.01}}
ppo_curves, ppo_results = {}, {}
episodes = lesson.pick(20, 2)
responses = lesson.pick(len(start.world.prompts), 16)  # in one rollout: one to each prompt
for name, changed in PPO_RUNS.items():
    policy = with_dropout(start.fresh_policy()) if name == "dropout on" else start.fresh_policy()
    torch.manual_seed(0)
    # a copy whose first weights are drawn: the random numbers of dropout come after these
    value_model = copy_model_weights(start.reward, RewardModel(**start.reward.settings))
    policy, curves = logged(ppo_training, policy, start.sft, start.reward, start.world.prompts,
                            value_model=value_model,
                            **{**PPO, "num_episodes": episodes, "batch_size": responses, **changed})
    ppo_curves[name], measured = curves, start.measure(policy, samples)
    ppo_results[name] = {"ratio": curves["val/first_ratio"][0], "approxkl": curves["policy/approxkl_avg"][0],
                         "score": curves["objective/scores"][-1], "kl": curves["objective/kl"][-1],
                         "exact": curves["objective/kl_exact"][-1], "first_exact": curves["objective/kl_exact"][0],
                         "updates": sum(curves["val/updates"]), "reward": measured["true_reward"],
                         "ends": curves["val/num_eos_tokens"][0] / responses,
                         "true_kl": measured["kl_nats_per_response"], "bytes": measured["response_bytes"],
                         "max": max(curves["objective/kl_exact"])}
lesson.number("episodes", str(episodes))
lesson.number("responses", str(responses))
lesson.table("ppo", ["run (seed 0)", "first ratio", "exact KL, episode 1", "ended, episode 1", "last score",
                     "last logged KL", "last exact KL", "true reward"],
             [[name, f"{r['ratio']:.6f}", f"{r['first_exact']:.2f}", f"{r['ends']:.2f}", f"{r['score']:.2f}",
               f"{r['kl']:.1f}", f"{r['exact']:.1f}", f"{r['reward']:.2f}"] for name, r in ppo_results.items()])
for name, results in ppo_results.items():
    key = name.lower().replace(" ", "_").replace(".", "_")
    for figure_name, form in (("ratio", ".4f"), ("score", ".2f"), ("kl", ".1f"), ("exact", ".1f"), ("reward", ".2f"),
                              ("ends", ".2f"), ("first_exact", ".2f"), ("approxkl", ".4f"), ("updates", ".0f"),
                              ("bytes", ".0f"), ("true_kl", ".1f"), ("max", ".0f")):
        lesson.number(f"ppo_{key}_{figure_name}", results[figure_name], form)

# %%
figure, axes = grid(4, 2)
shown_curves = (("rate x 10", "objective/scores", "mean score"),
                ("rate x 10", "objective/kl_exact", "exact KL (nats a response)"),
                ("KL sign turned round", "objective/scores", "mean score"),
                ("KL sign turned round", "objective/kl", "logged KL (nats a response)"),
                ("dropout on", "objective/scores", "mean score"),
                ("dropout on", "val/first_ratio", "ratio before the first update"),
                ("at most 12 tokens", "objective/scores", "mean score"),
                ("at most 12 tokens", "val/num_eos_tokens", f"responses that end, of {responses}"))
for axis, (name, metric, label) in zip(axes, shown_curves, strict=True):
    for run, colour in (("healthy", HEALTHY), (name, BROKEN)):
        axis.plot(range(1, episodes + 1), ppo_curves[run][metric], color=colour, label=run)
    axis.set(xlabel="episode", ylabel=label, title=name if label == "mean score" else f"{name}: what gives it away")
axes[3].plot(range(1, episodes + 1), ppo_curves["KL sign turned round"]["objective/kl_exact"], color=THIRD, linestyle="--",
             label="the same run, exact KL")
for axis in (axes[1], axes[3]):
    axis.set_yscale("symlog", linthresh=1)
for axis in axes:
    axis.legend(loc="best")
turned = ppo_results["KL sign turned round"]
lesson.figure("ppo", figure, "PPO gone wrong (seed 0). Left, the score that everybody watches; right, the number that "
              f"gives the failure away. With the sign flipped the log says a KL of {turned['kl']:.0f} nats, and it is "
              f"{turned['exact']:.0f}.")

# %% [markdown]
# ## What the library refuses, and what it says

# %%
def message(action) -> str:
    try:
        action()
    except (ValueError, FloatingPointError) as error:  # DataError and UserError are ValueErrors
        return f"{type(error).__name__}: {error}"
    return "(nothing)"


def poisoned():
    policy = start.fresh_policy()
    policy.final_norm.weight.data[0] = math.nan
    return policy


few = start.world.preferences[:8]
same = [{"prompt": "Capital of Peru?", "chosen": "Lima.", "rejected": "Lima."}]
refusals = {
    "policy and reference are one object": lambda: dpo_train(start.sft, start.sft, few),
    "chosen and rejected are the same": lambda: dpo_train(start.fresh_policy(), start.sft, same),
    "a column is missing": lambda: dpo_train(start.fresh_policy(), start.sft, [{"prompt": "Hello?", "chosen": "Hi."}]),
    "the mask is empty": lambda: sft_loss(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.bool)),
    "a prompt fills the context": lambda: generate(start.sft, ["why? " * 40], 8),
    "a weight is NaN": lambda: dpo_train(poisoned(), start.sft, few),
}
said = {name: message(action) for name, action in refusals.items()}
lesson.table("refusals", ["what is wrong", "what the library says"], [[name, text] for name, text in said.items()])
assert "(nothing)" not in said.values()
lesson.number("collapse", "; ".join(dpo_signs["rate x 30"]) or "(nothing)")

# %% [markdown]
# ## Where to look: the models in memory and the five checks

# %%
figure, axis = lesson.panels(height=4.4)
draw_pipeline(axis, {
    "rows": Box(0, 0, "rows", "data"), "batch": Box(1, 0, "ids and mask", "data"),
    "policy": Box(2, -0.6, "policy", "trained"), "reference": Box(2, 0.6, "reference", "frozen"),
    "loss": Box(3, 0, "loss, log", "data"), "says": Box(3.0, -1.2, "samples", "data"),
    "heldout": Box(3.0, 1.2, "held-out rows", "data"),
}, [("rows", "batch", "A"), ("batch", "policy", ""), ("batch", "reference", ""), ("policy", "loss", "B"),
    ("reference", "loss", "C"), ("policy", "says", "D"), ("heldout", "loss", "E")])
lesson.figure("pipeline", figure, "Five places to look. A: print what is scored. B, C: step 0, where policy and reference "
              "must agree. D: read samples. E: rows that were never trained on.")
lesson.done()
