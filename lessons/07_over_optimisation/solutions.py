# %% [markdown]
# # 7. Reward hacking and over-optimisation: the exercises, worked
# Predict first, then run: `python -m lessons 07 --solutions`.

# %%
import math
from statistics import mean

import torch

from lessons.course import Lesson
from lessons.limit import best_of_n_kl
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt import generate
from minigpt.evaluation import kl_to_reference, sample_responses
from ppo.train import ppo_training
from reward.evaluate import score
from reward.model import RewardModel

lesson = Lesson("07_over_optimisation", "solutions")
pairs, episodes, pool_size, samples = lesson.pick((1000, 24, 512, 16), (32, 2, 16, 2))
longest, batch_size = lesson.pick((LONGEST_ANSWER, 128), (8, 8))
few = starting_point(quick=lesson.quick, preference_rows=pairs)
biased = starting_point(quick=lesson.quick, preference_rows=pairs, length_bias=4.0)
world, prompts = few.world, few.world.heldout_prompts

# %% [markdown]
# The pool: SFT answers to every held-out prompt, and numbers about them, (prompts, answers).

# %%
texts = [[answer.text for answer in generate(few.sft, [prompt] * pool_size, longest, seed=number)]
         for number, prompt in enumerate(lesson.progress(prompts, "prompts"))]


def of_each(value):
    rows = [[value(prompt, text) for text in row]
            for prompt, row in zip(prompts, texts, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


def scores_of(model):
    found = {}
    for prompt, row in zip(prompts, texts, strict=True):
        different = sorted(set(row))
        rewards = score(model, [prompt] * len(different), different).tolist()
        found |= {(prompt, text): reward for text, reward in zip(different, rewards, strict=True)}
    return of_each(lambda prompt, text: found[prompt, text])


def at(scores, beta, *values):
    """KL of the closed form at this beta, and the means of these values under it."""
    log_weights = (scores / beta).log_softmax(-1)
    kl = (log_weights.exp() * (log_weights + math.log(scores.shape[1]))).sum(-1).mean()
    return [float(kl), *(float((log_weights.exp() * value).sum(-1).mean()) for value in values)]


true = of_each(world.true_reward)
words = of_each(lambda prompt, text: world.judge(prompt, text).words)
length = of_each(lambda prompt, text: len(text.encode()) + 1) / 10
few_scores, biased_scores = scores_of(few.reward), scores_of(biased.reward)

# %% [markdown]
# ## 1. Reward length, at a price of 0.1 a nat
# The reward is a tenth of a point for each byte of the answer. The closed form first, then PPO.

# %%
class Length(RewardModel):
    """As a reward: a tenth of the response's bytes, EOS included.

    Its weights serve only to start PPO's value model.
    """

    def rewards(self, batch):
        return batch.response_masks.sum(-1).float() / 10


def ppo(reward, kl_coeff):
    """A policy trained against this reward: what it says, in numbers, and one example."""
    policy = few.fresh_policy()
    recipe = {**PPO, "num_episodes": episodes, "batch_size": batch_size, "max_new_tokens": longest}
    ppo_training(policy, few.sft, reward, world.prompts, **recipe | {"kl_coeff": kl_coeff})
    asked, answers = sample_responses(policy, prompts, samples, longest, 0)
    said = [answer.text for answer in answers]
    return {"kl": kl_to_reference(policy, few.sft, asked, answers)["kl_nats_per_response"],
            "true": mean(map(world.true_reward, asked, said)),
            "length": mean(len(answer.ids) for answer in answers),
            "finished": mean(answer.finished for answer in answers),
            "example": generate(policy, prompts[:1], longest, greedy=True)[0].text}


torch.manual_seed(0)  # of the value model's head
kl, predicted, reward = at(length, 0.1, length, true)
lesson.number("length_sft", float(10 * length.mean()), ".0f")
lesson.number("length_predicted", 10 * predicted, ".0f")
lesson.number("length_predicted_kl", kl, ".1f")
lesson.number("length_predicted_true", reward, ".2f")
long = ppo(Length.from_policy(few.sft), 0.1)
lesson.number("length_seen", long["length"], ".0f")
lesson.number("length_seen_kl", long["kl"], ".1f")
lesson.number("length_seen_true", long["true"], ".2f")
lesson.number("length_finished", long["finished"], ".2f")
lesson.number("length_example", repr(long["example"]).replace("`", "'"))

# %% [markdown]
# ## 2. The KL of best-of-n
# With n = 64, for four ways to choose.

# %%
n = lesson.pick(64, 4)
in_bytes = of_each(lambda prompt, text: len(text.encode()))
above = (few_scores > few_scores.mean(-1, keepdim=True)).double()
rows = [["no ties: log n - (n - 1) / n", f"{math.log(n) - (n - 1) / n:.2f}"]]
ways = {"reward model": few_scores, "longest answer": in_bytes, "true reward": true,
        "above the mean or not": above}
for name, values in ways.items():
    rows.append([name, f"{mean(best_of_n_kl(row, n) for row in values):.2f}"])
lesson.table("bon", ["the best of n by", f"KL for n = {n}"], rows,
             title="What choosing costs")
lesson.number("bon_formula", rows[0][1])
lesson.number("bon_model", rows[1][1])
lesson.number("bon_truth", rows[3][1])
lesson.number("bon_yes_no", rows[4][1])
lesson.number("above_mean", float(above.mean()), ".2f")

# %% [markdown]
# ## 3. A penalty for length
# The labels of the biased proxy gave 4 points for 10 words, divided by the annotators' temperature.

# %%
exact = 4.0 / 10 / world.config.temperature
lesson.number("penalty_exact", exact, ".2f")
# what the proxy learned of both: least squares within each prompt
columns = torch.stack([true, words], -1)
columns = columns - columns.mean(1, keepdim=True)
centred = biased_scores - biased_scores.mean(1, keepdim=True)
weights = torch.linalg.lstsq(columns.flatten(0, 1), centred.flatten()[:, None]).solution[:, 0]
lesson.number("learned_true", float(weights[0]), ".2f")
lesson.number("learned_words", float(weights[1]), ".2f")
lesson.number("asked_true", 1 / world.config.temperature, ".2f")
rows, best = [], {}
for penalty in (0.0, float(weights[1]), exact, 2.0, 4.0):
    penalised = biased_scores - penalty * words
    curve = [at(penalised, beta, true, words) for beta in torch.logspace(1.5, -2, 80).tolist()]
    top, end = max(curve, key=lambda point: point[1]), curve[-1]
    rows.append([f"{penalty:.2f}", f"{top[1]:.2f} at {top[0]:.1f}", f"{end[1]:.2f}",
                 f"{end[2]:.1f}"])
    best[penalty] = top[1], end[1], end[2]
lesson.table("penalty", ["points off for each word", "best true reward, at KL",
                         "true reward at the far end", "words there"], rows,
             title="A penalty for length, against a proxy that likes it")
lesson.number("penalty_none_end", best[0.0][1], ".2f")
lesson.number("penalty_exact_end", best[exact][1], ".2f")
lesson.number("penalty_exact_best", best[exact][0], ".2f")
lesson.number("penalty_none_best", best[0.0][0], ".2f")
lesson.number("penalty_exact_words", best[exact][2], ".1f")
lesson.number("penalty_learned_best", best[float(weights[1])][0], ".2f")
lesson.number("penalty_learned_end", best[float(weights[1])][1], ".2f")

# %% [markdown]
# ## 4. Which beta spends one nat?
# A prediction from the spread of the scores alone, the closed form, and PPO at the price that the
# closed form names.

# %%
budget = 1.0
deviation = float(few_scores.var(-1, correction=0).mean().sqrt())
guess = deviation / math.sqrt(2 * budget)
low, high = 0.01, 100.0
while high / low > 1.001:  # the KL falls as beta rises
    middle = math.sqrt(low * high)
    low, high = (middle, high) if at(few_scores, middle)[0] > budget else (low, middle)
lesson.number("spread_of_scores", deviation, ".2f")
lesson.number("beta_guess", guess, ".2f")
lesson.number("beta_guess_kl", at(few_scores, guess)[0], ".2f")
lesson.number("beta_found", low, ".2f")
lesson.number("beta_found_true", at(few_scores, low, true)[1], ".2f")
spent = ppo(few.reward, low)
lesson.number("beta_ppo_kl", spent["kl"], ".2f")
lesson.number("beta_ppo_true", spent["true"], ".2f")

# %% [markdown]
# ## 5. More labels of the same annotators
# Four times as many pairs, honest and biased. The closed form at the best beta and at the far end.

# %%
rows = []
for bias in (0.0, 4.0):
    for count in (pairs, 4 * pairs):
        start = starting_point(quick=lesson.quick, preference_rows=count, length_bias=bias)
        values = scores_of(start.reward)
        curve = [at(values, beta, true, words) for beta in torch.logspace(1.5, -2, 80).tolist()]
        top, end = max(curve, key=lambda point: point[1]), curve[-1]
        rows.append([f"{count:,}", f"{bias:g}", f"{top[1]:.2f} at {top[0]:.1f}",
                     f"{end[1]:.2f}", f"{end[2]:.1f}"])
        name = f"{'biased' if bias else 'honest'}_{'more' if count > pairs else 'few'}"
        lesson.number(f"{name}_best", top[1], ".2f")
        lesson.number(f"{name}_end", end[1], ".2f")
lesson.table("labels", ["pairs", "length bias", "best true reward, at KL",
                        "true reward at the far end", "words there"], rows,
             title="More labels of the same annotators")
lesson.done()
