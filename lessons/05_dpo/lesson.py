# %% [markdown]
# # 5. DPO
# The article is README.md beside this file. Run this from the shell (`python -m lessons 05`) or cell by cell.

# %%
import math
from statistics import mean, stdev

import torch
import torch.nn.functional as F

from data.examples import preference_examples
from dpo import DPOConfig, dpo_loss, dpo_train, evaluate_preference_accuracy, implicit_rewards
from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.start import DPO, LONGEST_ANSWER, starting_point
from minigpt.batching import Batches
from minigpt.evaluation import sample_responses
from minigpt.logprobs import logps_of_examples, response_logps
from minigpt.plots import COLOURS, running_mean
from minigpt.training import TrainingLoop
from reward.evaluate import evaluate_reward_accuracy

lesson = Lesson("05_dpo")
seeds = lesson.pick((0, 1, 2), (0, 1))
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
count = lesson.pick(4000, 32)  # half of the pairs, each of them seen once
temperature = starts[0].world.config.temperature  # of the annotators
lesson.number("pairs", f"{count:,}")
lesson.number("temperature", f"{temperature}")
lesson.number("parameters", f"{starts[0].sft.count_parameters():,}")

# %% [markdown]
# ## The loop, in plain sight
# `dpo.train.dpo_train` with a loss of your choice, and with all that it logged.

# %%
def train(policy, reference, rows, loss_of=dpo_loss, **changes):
    config = DPOConfig(**{**DPO, **changes})
    batches = Batches(preference_examples(rows, policy.max_seq_len), config.batch_size, config.seed)
    loop = TrainingLoop({"policy": policy.train()}, config, batches,
                        config.num_epochs * len(batches))
    optimizer, log = loop.optimizer, loop.log
    ref_logps = logps_of_examples(reference, batches)            # (N, 2), once: it never changes
    for batch in loop.whole_batches():                           # one optimizer step each
        with optimizer.precision():
            chosen_logps, rejected_logps = response_logps(policy, batch).unbind(1)   # (B,) each
            ref_chosen_logps, ref_rejected_logps = ref_logps[batch.indices].unbind(1)
            loss, metrics = loss_of(chosen_logps, rejected_logps, ref_chosen_logps,
                                    ref_rejected_logps, config.beta)
        optimizer.backward(loss)
        log.add({"loss": loss, **metrics}, batch.weight)
        log.write({"grad_norm": optimizer.step()})               # clip, step
    return policy.eval(), log.history


# %% [markdown]
# ## What the optimum asks for
# Annotators at temperature T choose as if the reward were r / T, so the optimum of DPO is the SFT model tilted by
# r / (T beta). Samples of the SFT model, weighted so, say what such a policy would answer.

# %%
KINDS = ("flawless", "not polite, else flawless", "faulty", "broken")  # broken: unknown words, or no end


def kind_of(world, prompt, text):
    judgement = world.judge(prompt, text)
    if judgement.unknown_words or not judgement.complete:
        return 3
    return {(): 0, ("not polite",): 1}.get(tuple(judgement.faults), 2)


def look_at(start, policy, samples):
    """The true rewards and the kinds of a policy's answers to the held-out prompts: (prompts, samples) each."""
    prompts, answers = sample_responses(policy, start.world.heldout_prompts, samples,
                                        LONGEST_ANSWER, start.seed)
    texts = [(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
    rewards = torch.tensor([start.world.true_reward(*text) for text in texts])
    kinds = torch.tensor([kind_of(start.world, *text) for text in texts])
    return rewards.view(-1, samples), kinds.view(-1, samples)


pools = {seed: look_at(start, start.sft, lesson.pick(256, 4)) for seed, start in starts.items()}


def asked(start, beta):
    """What the optimum would do at this beta: log-ratios of the held-out pairs (N, 2), and the shares of KINDS (4,)."""
    world, (rewards, kinds) = start.world, pools[start.seed]
    tilt = rewards / (temperature * beta)
    log_z = tilt.logsumexp(1) - math.log(tilt.shape[1])                            # (prompts,)
    number = {prompt: n for n, prompt in enumerate(world.heldout_prompts)}
    ratios = [[world.true_reward(row["prompt"], row[side]) / (temperature * beta) - float(log_z[number[row["prompt"]]])
               for side in ("chosen", "rejected")] for row in world.heldout_preferences]
    return torch.tensor(ratios), F.one_hot(kinds, 4).mul(tilt.softmax(1)[..., None]).sum(1).mean(0)


# %% [markdown]
# ## Four values of beta

# %%
def figures_of(start, policy):
    """What this policy does on held-out prompts and pairs."""
    heldout = start.world.heldout_preferences
    ratios = torch.stack(implicit_rewards(policy, start.sft, heldout, beta=1.0), 1)   # (N, 2): log pi / ref
    truth = torch.tensor([[start.world.true_reward(row["prompt"], row[side]) for side in ("chosen", "rejected")]
                          for row in heldout])
    margins, differences = ratios[:, 0] - ratios[:, 1], truth[:, 0] - truth[:, 1]
    logps = logps_of_examples(policy, Batches(preference_examples(heldout, policy.max_seq_len), 64))
    _, kinds = look_at(start, policy, lesson.pick(16, 1))
    said = start.measure(policy, lesson.pick(16, 1))
    return {"kl": said["kl_nats_per_response"], "reward": said["true_reward"], "right": said["right_share"],
            "bytes": said["response_bytes"], "accuracy": evaluate_preference_accuracy(policy, start.sft, heldout),
            "chosen": float(ratios[:, 0].mean()), "rejected": float(ratios[:, 1].mean()),
            "slope": float((margins * differences).sum() / differences.square().sum()),
            "chosen_fell": float((ratios[:, 0] < 0).float().mean()),
            "p_chosen": float(logps[:, 0].exp().mean()), "p_rejected": float(logps[:, 1].exp().mean()),
            "kinds": F.one_hot(kinds, 4).float().mean((0, 1)).tolist()}


betas = (0.1, 0.5, 2.0, 8.0)
histories, found, wanted = {}, {}, {}
for beta in betas:
    for seed, start in starts.items():
        policy, history = train(start.fresh_policy(), start.sft, start.world.preferences[:count], beta=beta, seed=seed)
        histories[beta, seed], found[beta, seed] = history, figures_of(start, policy)
        ratios, kinds = asked(start, beta)
        wanted[beta, seed] = {"chosen": float(ratios[:, 0].mean()), "rejected": float(ratios[:, 1].mean()),
                              "slope": 1 / (temperature * beta), "kinds": kinds.tolist()}
before = {seed: figures_of(start, start.sft) for seed, start in starts.items()}


def over_seeds(name, beta=None, source=None):
    source = found if source is None else source
    return [(before[seed] if beta is None else source[beta, seed])[name] for seed in seeds]


def average(name, beta=None, source=None):
    return mean(over_seeds(name, beta, source))


def share(kind, beta=None, source=None):
    """The shares of one of KINDS, one a seed."""
    return [shares[KINDS.index(kind)] for shares in over_seeds("kinds", beta, source)]


lesson.number("loss_at_start", histories[2.0, 0]["loss"][0], ".4f")
lesson.number("margin_at_start", abs(histories[2.0, 0]["rewards/margins"][0]), ".4f")
lesson.number("steps", str(len(histories[2.0, 0]["loss"])))
lesson.number("sft_reward", over_seeds("reward"), ".2f")
lesson.number("sft_right", over_seeds("right"), ".2f")
for beta in betas:
    name = f"{beta:g}".replace(".", "_")
    lesson.number(f"kl_at_{name}", over_seeds("kl", beta), ".2f")
    lesson.number(f"reward_at_{name}", over_seeds("reward", beta), ".2f")
    lesson.number(f"accuracy_at_{name}", over_seeds("accuracy", beta), ".3f")
    lesson.number(f"chosen_at_{name}", over_seeds("chosen", beta), ".2f")
    lesson.number(f"rejected_at_{name}", over_seeds("rejected", beta), ".2f")
    lesson.number(f"chosen_asked_at_{name}", over_seeds("chosen", beta, wanted), ".2f")
    for kind in ("broken", "flawless"):
        lesson.number(f"{kind}_at_{name}", share(kind, beta), ".2f")
        lesson.number(f"{kind}_asked_at_{name}", share(kind, beta, wanted), ".2f")
lesson.number("broken_sft", share("broken"), ".2f")
lesson.number("right_at_2", over_seeds("right", 2.0), ".2f")
lesson.number("chosen_fell_at_2", over_seeds("chosen_fell", 2.0), ".2f")

forms = {"kl": ".2f", "accuracy": ".3f", "reward": ".2f", "right": ".2f", "bytes": ".0f"}
rows = [["SFT", "0", "0.5", *(spread(over_seeds(name), forms[name]) for name in ("reward", "right", "bytes")), "", ""]]
for beta in betas:
    rows.append([f"{beta:g}", *(spread(over_seeds(name, beta), form) for name, form in forms.items()),
                 f"{1 / (temperature * beta):.2f}", spread(over_seeds("slope", beta), ".2f")])
lesson.table("sweep", ["beta", "KL (nats)", "accuracy, held out", "true reward", "right", "bytes", "slope, optimum",
                       "slope, measured"], rows)

rows = []
for beta in (None, *betas):
    cells = ["SFT", "", "0", "", "0"] if beta is None else [f"{beta:g}"] + [
        spread(over_seeds(side, beta, source), ".2f") for side in ("chosen", "rejected") for source in (wanted, found)]
    probabilities = [average(name, beta) for name in ("p_chosen", "p_rejected")]
    rows.append(cells + [f"{p:.3f}" for p in (*probabilities, 1 - sum(probabilities))])
lesson.table("displacement", ["beta", "chosen, optimum", "chosen, measured", "rejected, optimum",
                              "rejected, measured", "P(chosen)", "P(rejected)", "P(all others)"], rows)

# %%
figure, axes = lesson.panels(3)
for axis, name, label in zip(axes, ("kl", "accuracy", "reward"),
                             ("KL from SFT (nats per response)", "accuracy on held-out pairs", "true reward"), strict=True):
    points = [over_seeds(name, beta) for beta in betas]
    axis.errorbar(betas, [mean(values) for values in points], [stdev(values) for values in points], marker="o", capsize=3,
                  color=COLOURS[0])
    axis.set(xlabel="beta", ylabel=label, xscale="log", xticks=betas, xticklabels=[f"{beta:g}" for beta in betas])
    axis.minorticks_off()
axes[0].set_yscale("log")
bayes = mean(start.world.bayes_accuracy(start.world.heldout_preferences) for start in starts.values())
lesson.number("bayes", bayes, ".3f")
axes[1].set_ylim(0.5, 1)
axes[1].axhline(bayes, color="grey", linestyle=":")
axes[1].text(betas[0], bayes + 0.008, "the true reward itself", fontsize=8, color="#444444")
axes[2].axhline(average("reward"), color="grey", linestyle=":")
axes[2].text(betas[-1], average("reward") + 0.05, "SFT", fontsize=8, color="#444444", ha="right")
low, high = betas[0], betas[-1]
ranked = [average("accuracy", beta) for beta in betas]
lesson.figure("sweep", figure, f"From beta {low:g} to {high:g} the KL goes from {average('kl', low):.1f} to "
              f"{average('kl', high):.2f} nats and the true reward from {average('reward', low):.2f} to "
              f"{average('reward', high):.2f}, while the accuracy stays between {min(ranked):.2f} and "
              f"{max(ranked):.2f}. Bars: standard deviation over {len(seeds)} seeds.")

# %% [markdown]
# ## Both log-probabilities fall
# Every pair is seen once, so each point is of pairs that were not trained on yet.

# %%
figure, axes = lesson.panels(2)
for axis, beta in zip(axes, (2.0, 0.1), strict=True):
    for side, colour in (("chosen", COLOURS[0]), ("rejected", COLOURS[1])):
        for seed in seeds:
            ratios = [reward / beta for reward in histories[beta, seed][f"rewards/{side}"]]
            axis.plot(range(1, len(ratios) + 1), running_mean(ratios, 10), color=colour, alpha=0.75,
                      label=side if seed == seeds[0] else None)
    axis.axhline(0, color="grey", linestyle=":", linewidth=1)
    axis.set(xlabel="optimizer step", ylabel="log pi / ref (nats per response)", title=f"beta {beta:g}")
axes[0].legend(loc="center right")
lesson.figure("logps", figure, f"Only the gap is trained, and both lines may fall. By the end the chosen responses of "
              f"held-out pairs have moved by {average('chosen', 2.0):.2f} nats at beta 2 and by "
              f"{average('chosen', 0.1):.1f} at beta 0.1, the rejected by {average('rejected', 2.0):.2f} and "
              f"{average('rejected', 0.1):.1f}. One line a seed, each point the mean of the last 10 steps.")

# %% [markdown]
# ## Where the probability goes

# %%
figure, axis = lesson.panels(height=4.0)
rows = [("SFT", over_seeds("kinds"))]
for beta in reversed(betas):
    rows += [(f"beta {beta:g}: asked", over_seeds("kinds", beta, wanted)),
             (f"beta {beta:g}: found", over_seeds("kinds", beta))]
left = [0.0] * len(rows)
for n, (kind, colour) in enumerate(zip(KINDS, (COLOURS[2], COLOURS[5], COLOURS[4], COLOURS[1]), strict=True)):
    widths = [mean(shares[n] for shares in shares_of_seeds) for _, shares_of_seeds in rows]
    axis.barh(range(len(rows)), widths, left=left, color=colour, label=kind, height=0.75)
    left = [a + b for a, b in zip(left, widths, strict=True)]
axis.set_yticks(range(len(rows)), [name for name, _ in rows])
axis.invert_yaxis()
axis.grid(False)
axis.set(xlabel=f"share of sampled answers (mean of {len(seeds)} seeds)", xlim=(0, 1))
figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
lesson.figure("where", figure, f"Broken answers: {mean(share('broken')):.0%} of the SFT model's, "
              f"{mean(share('broken', 2.0)):.0%} at beta 2, {mean(share('broken', 0.1)):.0%} at beta 0.1. "
              f"The optimum at 0.1 would have {mean(share('broken', 0.1, wanted)):.0%}.")

# %% [markdown]
# ## Is beta just a scale?
# The loss twenty times smaller, and the length to which gradients are clipped; against a beta twenty times smaller.

# %%
def a_twentieth(*logps_and_beta):
    loss, metrics = dpo_loss(*logps_and_beta)
    return loss / 20, metrics


kls, rewards = [], []
for seed, start in starts.items():
    policy, _ = train(start.fresh_policy(), start.sft, start.world.preferences[:count], a_twentieth, beta=2.0, seed=seed,
                      max_grad_norm=1 / 20)
    said = start.measure(policy, lesson.pick(16, 1))
    kls.append(said["kl_nats_per_response"])
    rewards.append(said["true_reward"])
lesson.number("kl_small_loss", kls, ".2f")
lesson.number("reward_small_loss", rewards, ".2f")

# %% [markdown]
# ## The learning rate

# %%
rates = (1e-6, 1e-4, 1e-3)
of_rate = {(1e-4, seed): found[2.0, seed] | {"loss": mean(histories[2.0, seed]["loss"][-10:])} for seed in seeds}
for lr in (1e-6, 1e-3):
    for seed, start in starts.items():
        policy, history = train(start.fresh_policy(), start.sft, start.world.preferences[:count], lr=lr, seed=seed)
        of_rate[lr, seed] = figures_of(start, policy) | {"loss": mean(history["loss"][-10:])}
for lr in rates:
    name = f"{lr:.0e}".replace("-0", "")
    lesson.number(f"reward_lr_{name}", over_seeds("reward", lr, of_rate), ".2f")
    lesson.number(f"accuracy_lr_{name}", over_seeds("accuracy", lr, of_rate), ".3f")
    lesson.number(f"kl_lr_{name}", over_seeds("kl", lr, of_rate), ".2f")
    lesson.number(f"loss_lr_{name}", over_seeds("loss", lr, of_rate), ".3f")
lesson.table("rates", ["learning rate", "loss, last 10 steps", "KL (nats)", "accuracy, held out", "true reward"],
             [[f"{lr:.0e}".replace("e-0", "e-"), *(spread(over_seeds(name, lr, of_rate), form) for name, form in
               (("loss", ".3f"), ("kl", ".2f"), ("accuracy", ".3f"), ("reward", ".2f")))] for lr in rates])

# %% [markdown]
# ## Accuracy on the pairs you trained on
# A few pairs, read many times.

# %%
few, passes = lesson.pick(64, 16), lesson.pick((1, 2, 4, 8, 16), (1, 2))
accuracies = {"training pairs": [], "held-out pairs": []}
for epochs in passes:
    scores = []
    for seed, start in starts.items():
        rows = start.world.preferences[:few]
        policy, _, _ = dpo_train(start.fresh_policy(), start.sft, rows,
                                 **{**DPO, "num_epochs": epochs, "batch_size": 8, "seed": seed})
        scores.append([evaluate_preference_accuracy(policy, start.sft, some)
                       for some in (rows, start.world.heldout_preferences[:300])])
    for name, values in zip(accuracies, zip(*scores, strict=True), strict=True):
        accuracies[name].append(list(values))
lesson.number("few", str(few))
lesson.number("passes", str(passes[-1]))
lesson.number("accuracy_train", accuracies["training pairs"][-1], ".3f")
lesson.number("accuracy_heldout", accuracies["held-out pairs"][-1], ".3f")
figure, axis = lesson.panels()
for (name, values), colour in zip(accuracies.items(), (COLOURS[1], COLOURS[0]), strict=True):
    axis.errorbar(passes, [mean(v) for v in values], [stdev(v) for v in values], marker="o", capsize=3, color=colour,
                  label=name)
axis.axhline(bayes, color="grey", linestyle=":")
axis.text(passes[0], bayes + 0.007, "the true reward itself", fontsize=8, color="#444444")
axis.set(xlabel=f"passes over {few} pairs", ylabel="preference accuracy", xscale="log", ylim=(0.5, 1.02), xticks=passes,
         xticklabels=passes)
axis.minorticks_off()
axis.legend(loc="lower right")
lesson.figure("memory", figure, f"After {passes[-1]} passes over {few} pairs the policy ranks "
              f"{mean(accuracies['training pairs'][-1]):.1%} of them right, more than the true reward itself would "
              f"({bayes:.1%} of noisy labels), and {mean(accuracies['held-out pairs'][-1]):.1%} of held-out pairs. "
              f"Mean and standard deviation of {len(seeds)} seeds.")

# %% [markdown]
# ## The policy as a reward model

# %%
lesson.number("accuracy_reward_model", [evaluate_reward_accuracy(start.reward, start.world.heldout_preferences)
                                        for start in starts.values()], ".3f")

# %% [markdown]
# ## The family: losses of the margin

# %%
D = torch.linspace(-6, 6, 401, requires_grad=True)  # the margin before beta, in nats: log-ratio of chosen minus rejected
beta, noise = 1.0, 0.2
losses = {
    "DPO": -F.logsigmoid(beta * D),
    "hinge": torch.relu(1 - beta * D),
    "IPO": (D - 1 / (2 * beta)) ** 2,
    f"cDPO, noise {noise}": -(1 - noise) * F.logsigmoid(beta * D) - noise * F.logsigmoid(-beta * D),
    f"robust, noise {noise}": (-(1 - noise) * F.logsigmoid(beta * D) + noise * F.logsigmoid(-beta * D)) / (1 - 2 * noise),
}
figure, axes = lesson.panels(2, height=3.6)
for (name, loss), colour, line in zip(losses.items(), COLOURS, ("-", "--", "-.", (0, (5, 1, 1, 1)), ":"), strict=False):
    slope, = torch.autograd.grad(loss.sum(), D, retain_graph=True)
    axes[0].plot(D.detach(), loss.detach(), color=colour, linestyle=line)
    axes[1].plot(D.detach(), -slope, color=colour, linestyle=line, label=name)
axes[0].set(xlabel="margin D (nats)", ylabel="loss", ylim=(-2.2, 5), title="loss")
axes[1].set(xlabel="margin D (nats)", ylabel="push on the margin, -dL/dD", ylim=(-1.2, 2), title="how hard it pushes")
axes[1].axhline(0, color="grey", linewidth=1, linestyle=":")
axes[1].legend(loc="upper right")
lesson.figure("family", figure, "Five losses of one margin, at beta 1. DPO pushes ever less but never stops, the robust "
              "loss keeps a least push above 0, hinge stops at 1 / beta, IPO and cDPO pull back beyond a target of their own.")

# %% [markdown]
# ## The whole of it

# %%
figure, axis = lesson.panels(height=3.4)
axis.figure.set_figwidth(8.2)
draw_pipeline(axis, {
    "pairs": Box(0, 0.5, "prompt, chosen,\nrejected", "data"),
    "policy": Box(1.15, 0, "policy", "trained"), "reference": Box(1.15, 1, "reference\n(SFT model)", "frozen"),
    "margin": Box(2.5, 0.5, "margin", "data"), "loss": Box(3.5, 0.5, "DPO loss", "data"),
}, [("pairs", "policy", "every step"), ("pairs", "reference", "once"), ("policy", "margin", "2 log-probs"),
    ("reference", "margin", "2 log-probs"), ("margin", "loss", "")])
lesson.figure("pipeline", figure, "Two models in memory and no sampling: the policy is trained, the reference is read "
              "once, before the first step, and could then be put away.")
lesson.done()
