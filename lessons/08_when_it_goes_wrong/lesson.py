# %% [markdown]
# # 8. When it goes wrong
# Three training runs with one mistake each: the usual curve looks fine, another number does not.

# %%
import copy
import json
from pathlib import Path

from data.examples import sft_examples
from dpo import dpo_train, evaluate_preference_accuracy
from lessons.course import RUNS, Lesson
from lessons.start import DPO, PPO, SFT, starting_point
from minigpt import EOS, generate
from minigpt.batching import Batches
from minigpt.kl import kl_k1
from minigpt.logprobs import token_logps
from minigpt.plots import COLOURS, running_mean
from minigpt.training import TrainingLoop
from ppo.train import ppo_training
from sft.loss import sft_loss
from sft.train import SFTConfig

lesson = Lesson("08_when_it_goes_wrong")
start = starting_point(quick=lesson.quick)
world = start.world

# %% [markdown]
# ## SFT: PAD is EOS
# The mask hides every token with the id of PAD. If EOS has that id, no end is ever trained.

# %%
def train_sft(pad_is_eos: bool):
    model, losses = copy.deepcopy(start.base).train(), []
    batches = Batches(sft_examples(world.sft_rows[:1920], model.max_seq_len), SFT["batch_size"])
    loop = TrainingLoop({"model": model}, SFTConfig(**SFT), batches, len(batches))
    for batch in loop.whole_batches():
        mask = batch.response_mask & ~(pad_is_eos & (batch.token_ids == EOS))
        loss, _ = sft_loss(token_logps(model, batch), mask)
        loop.optimizer.backward(loss)
        loop.optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


sft_losses, ends, rows = {}, {}, []
for name in ("healthy", "PAD is EOS"):
    model, sft_losses[name] = train_sft(pad_is_eos=name == "PAD is EOS")
    ends[name] = start.measure(model)["finished_share"]
    says = generate(model, world.heldout_prompts[:1], 64, greedy=True)[0].text
    rows.append([name, f"{sum(sft_losses[name][-30:]) / 30:.2f}", f"{ends[name]:.0%}", f"`{says}`"])
lesson.table("says", ["run", "loss it reports at the end", "answers that end", "it says"], rows,
             title=f"Question: {world.heldout_prompts[0]}")

# %% [markdown]
# ## DPO: swapped labels
# Somebody exchanged two columns: every answer called chosen is the one that was rejected.

# %%
pairs = world.preferences[:2016]
swapped = [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]
dpo_losses, accuracy = {}, {}
for name, rows in {"healthy": pairs, "labels swapped": swapped}.items():
    policy, dpo_losses[name], _ = dpo_train(start.fresh_policy(), start.sft, rows, **DPO)
    accuracy[name] = evaluate_preference_accuracy(policy, start.sft, world.heldout_preferences)
lesson.number("DPO_loss_at_step_0", dpo_losses["healthy"][0], ".4f")

# %% [markdown]
# ## PPO: the sign of the KL is flipped
# With `log ref - log pi` in place of `log pi - log ref` the penalty pays for moving away.

# %%
scores, kls = {}, {}
short = PPO | {"num_episodes": lesson.pick(12, 2), "batch_size": 48, "overwrite": True}
for name, kl in {"healthy": kl_k1, "sign flipped": lambda pi, ref: ref - pi}.items():
    folder = f"{RUNS}/{lesson.name}/{name}"
    _, scores[name], exact = ppo_training(start.fresh_policy(), start.sft, start.reward,
                                          world.prompts, kl_estimator=kl, out=folder, **short)
    log = Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kls[f"{name}, logged"] = [json.loads(line)["objective/kl"] for line in log]
kls["sign flipped, exact"] = exact

# %% What everybody watches (top), and what gives the mistake away (bottom)
figure, axes = lesson.plt.subplots(2, 3, figsize=(11, 5.8), layout="constrained")
for axis, curves, title, label in (
        (axes[0, 0], sft_losses, "SFT, PAD is EOS", "loss it reports (nats)"),
        (axes[0, 1], dpo_losses, "DPO, labels swapped", "loss it reports (nats)"),
        (axes[0, 2], scores, "PPO, sign of the KL flipped", "mean score"),
        (axes[1, 2], kls, "", "KL (nats per response)")):
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        axis.plot(running_mean(values, max(1, len(values) // 24)), color=colour, label=name)
    axis.set(title=title, ylabel=label, xlabel="episode" if axis in axes[:, 2] else "step")
    axis.legend()
axes[1, 2].set_yscale("symlog")
for axis, bars in ((axes[1, 0], ends), (axes[1, 1], accuracy)):
    axis.bar(bars.keys(), bars.values(), 0.5, color=COLOURS)
    axis.set(ylim=(0, 1.05), ylabel="answers that end" if bars is ends else "held-out accuracy")
lesson.figure("silent", figure, "Three broken runs (seed 0). Top: the usual curves say nothing, "
              "or say it late. Bottom: in each of them one number gives the mistake away.")
lesson.done()
