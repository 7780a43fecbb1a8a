"""What the numbers of lesson 5 come from: four values of beta, three learning rates, few pairs.

    python -m lessons 05 --experiments
"""

import math

import torch
import torch.nn.functional as F

from data.examples import preference_examples
from dpo import dpo_loss, dpo_train, evaluate_preference_accuracy, implicit_rewards
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, starting_point
from minigpt.batching import Batches
from minigpt.evaluation import sample_responses
from minigpt.logprobs import logps_of_examples
from reward.evaluate import evaluate_reward_accuracy

lesson = Lesson("05_dpo", "experiments")
SEEDS = lesson.pick((0, 1, 2, 3, 4), (0, 1))
BETAS = (0.1, 0.5, 2.0, 8.0)
SIDES = ("chosen", "rejected")
COUNT = lesson.pick(4000, 32)     # pairs, half of those there are
SAMPLES = lesson.pick(16, 1)      # answers to each held-out prompt
FEW = lesson.pick(64, 16)
PASSES = lesson.pick((1, 2, 4, 8, 16), (1, 2))
starts = [starting_point(seed, quick=lesson.quick) for seed in SEEDS]
temperature = starts[0].world.config.temperature  # of the annotators


def trained(start, rows=None, loss=dpo_loss, **changes):
    """A policy after DPO on these rows, by default the first COUNT pairs; and its losses."""
    rows = start.world.preferences[:COUNT] if rows is None else rows
    policy, losses, _ = dpo_train(start.fresh_policy(), start.sft, rows, loss=loss,
                                  **DPO | {"seed": start.seed} | changes)
    return policy, losses


# What a policy does, and what the optimum would do -----------------------------------------------

KINDS = ("flawless", "not polite, else flawless", "faulty", "broken")


def kind_of(world, prompt, text):
    """An index of KINDS; an answer is broken if it has unknown words or no end."""
    judgement = world.judge(prompt, text)
    if judgement.unknown_words or not judgement.complete:
        return 3
    return {(): 0, ("not polite",): 1}.get(tuple(judgement.faults), 2)


def look_at(start, policy, samples):
    """True rewards and kinds of sampled answers to the held-out prompts: (prompts, samples) each."""  # noqa: E501
    prompts, answers = sample_responses(policy, start.world.heldout_prompts, samples,
                                        LONGEST_ANSWER, start.seed)
    texts = [(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
    rewards = torch.tensor([start.world.true_reward(*text) for text in texts])
    kinds = torch.tensor([kind_of(start.world, *text) for text in texts])
    return rewards.view(-1, samples), kinds.view(-1, samples)


def true_rewards(start):
    """Of the held-out pairs, chosen and rejected: (N, 2)."""
    return torch.tensor([[start.world.true_reward(row["prompt"], row[side]) for side in SIDES]
                         for row in start.world.heldout_preferences])


def measured(start, policy):
    """What this policy does on held-out prompts and pairs."""
    heldout = start.world.heldout_preferences
    log_ratios = torch.stack(implicit_rewards(policy, start.sft, heldout, beta=1.0), 1)  # (N, 2)
    truth = true_rewards(start)
    margins, differences = (log_ratios @ torch.tensor([1.0, -1.0]),
                            truth @ torch.tensor([1.0, -1.0]))
    logps = logps_of_examples(policy, Batches(preference_examples(heldout, policy.max_seq_len), 64))
    said = start.measure(policy, SAMPLES)
    _, kinds = look_at(start, policy, SAMPLES)
    return {"kl": said["kl_nats_per_response"], "reward": said["true_reward"],
            "right": said["right_share"], "bytes": said["response_bytes"],
            "accuracy": float(((margins > 0) + 0.5 * (margins == 0)).mean()),
            "slope": float((margins * differences).sum() / differences.square().sum()),
            "chosen": float(log_ratios[:, 0].mean()), "rejected": float(log_ratios[:, 1].mean()),
            "chosen_fell": float((log_ratios[:, 0] < 0).float().mean()),
            "p_chosen": float(logps[:, 0].exp().mean()),
            "kinds": F.one_hot(kinds, len(KINDS)).float().mean((0, 1)).tolist()}


def optimum(start, pool, beta):
    """What the SFT model tilted by r / (T beta) would do; Z comes from a pool of its answers."""
    rewards, kinds = pool
    tilt = rewards / (temperature * beta)                                      # (prompts, samples)
    log_z = tilt.logsumexp(1) - math.log(tilt.shape[1])                        # (prompts,)
    prompts = start.world.heldout_prompts
    of_row = torch.tensor([prompts.index(row["prompt"]) for row in start.world.heldout_preferences])
    log_ratios = true_rewards(start) / (temperature * beta) - log_z[of_row, None]        # (N, 2)
    shares = (F.one_hot(kinds, len(KINDS)) * tilt.softmax(1)[..., None]).sum(1).mean(0)
    return {"chosen": float(log_ratios[:, 0].mean()), "rejected": float(log_ratios[:, 1].mean()),
            "kinds": shares.tolist()}


lesson.keep("settings", {"pairs": COUNT, "temperature": temperature, "few": FEW,
                         "parameters": starts[0].sft.count_parameters(), "passes": PASSES,
                         "kinds": KINDS})
lesson.keep("sft", [measured(start, start.sft) for start in starts])
lesson.keep("bayes", [start.world.bayes_accuracy(start.world.heldout_preferences)
                      for start in starts])
lesson.keep("reward_model", [
    evaluate_reward_accuracy(start.reward, start.world.heldout_preferences) for start in starts])

# Four values of beta ------------------------------------------------------------------------------

pools = [look_at(start, start.sft, lesson.pick(256, 4)) for start in starts]
sweep, wanted = {}, {}
for beta in lesson.progress(BETAS, "values of beta"):
    runs = [(start, *trained(start, beta=beta)) for start in starts]
    sweep[f"{beta:g}"] = [measured(start, policy) | {"losses": losses}
                          for start, policy, losses in runs]
    wanted[f"{beta:g}"] = [optimum(start, pool, beta)
                           for start, pool in zip(starts, pools, strict=True)]
lesson.keep("sweep", sweep)
lesson.keep("optimum", wanted)


# Is beta a scale of the loss?  Divide the loss by 20, and the norm at which gradients are clipped

def a_twentieth(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
                beta):
    loss, metrics = dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps,
                             ref_rejected_logps, beta)
    return loss / 20, metrics


lesson.keep("small_loss", [
    measured(start, trained(start, loss=a_twentieth, beta=2.0, max_grad_norm=1 / 20)[0])
    for start in lesson.progress(starts, "a twentieth of the loss")])

# The learning rate --------------------------------------------------------------------------------

rates = {"1e-04": sweep["2"]}
for lr in lesson.progress((1e-6, 1e-3), "learning rates"):
    runs = [(start, *trained(start, lr=lr)) for start in starts]
    rates[f"{lr:.0e}"] = [measured(start, policy) | {"losses": losses}
                          for start, policy, losses in runs]
lesson.keep("rates", rates)

# A few pairs, read many times ---------------------------------------------------------------------

memory = {"training pairs": [], "held-out pairs": []}
for passes in lesson.progress(PASSES, "passes over few pairs"):
    for kind in memory.values():
        kind.append([])
    for start in starts:
        few = start.world.preferences[:FEW]
        policy, _ = trained(start, few, num_epochs=passes, batch_size=8)
        for name, rows in (("training pairs", few),
                           ("held-out pairs", start.world.heldout_preferences)):
            memory[name][-1].append(evaluate_preference_accuracy(policy, start.sft, rows))
lesson.keep("memory", memory)
lesson.done()
