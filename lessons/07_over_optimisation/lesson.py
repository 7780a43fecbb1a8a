# %% [markdown]
# # 7. Reward hacking and over-optimisation
# Push a policy against a reward model, harder and harder: what does the model say, what is true?

# %%
from statistics import mean

import torch

from lessons.course import Lesson
from lessons.limit import best_of_n_kl
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt import generate
from minigpt.plots import COLOURS
from ppo.train import ppo_training
from reward.evaluate import evaluate_reward_accuracy, score

lesson = Lesson("07_over_optimisation")
longest = lesson.pick(LONGEST_ANSWER, 8)

# %% [markdown]
# ## The proxy: a reward model of 1,000 pairs, labelled by honest annotators

# %%
start = starting_point(quick=lesson.quick, preference_rows=lesson.pick(1000, 32))
world = start.world
lesson.number("held-out_accuracy_of_the_proxy",
              evaluate_reward_accuracy(start.reward, world.heldout_preferences), ".2f")

# %% [markdown]
# ## Push with best-of-n
# The SFT model answers every held-out prompt many times. Of N answers in the order of their scores,
# the one at rank i is the best of n with probability (i / N)^n - ((i - 1) / N)^n.

# %%
pool, ns = lesson.pick(256, 16), lesson.pick((1, 4, 16, 64, 256), (1, 4))
scores, truth = [], []
for number, prompt in enumerate(lesson.progress(world.heldout_prompts, "answers")):
    answers = [a.text for a in generate(start.sft, [prompt] * pool, longest, seed=number)]
    scores.append(score(start.reward, [prompt] * pool, answers))
    truth.append(torch.tensor([world.true_reward(prompt, answer) for answer in answers]))
scores, order = torch.stack(scores).sort(-1)  # (prompts, N)
truth = torch.stack(truth).gather(-1, order)
upper = torch.arange(1, pool + 1) / pool
best_of = []  # n, KL, proxy, true reward
for n in ns:
    chosen = upper**n - (upper - 1 / pool) ** n
    proxy, true = ((chosen * values).sum(-1).mean().item() for values in (scores, truth))
    best_of.append([n, mean(best_of_n_kl(row, n) for row in scores), proxy, true])


def two_digits(rows):
    return [[name, *(f"{value:.2f}" for value in row)] for name, *row in rows]


lesson.table("best_of_n", ["n", "KL (nats)", "proxy", "true reward"], two_digits(best_of),
             title="Best of n: the proxy rises at every step, the true reward turns down")

# %% [markdown]
# ## Push with PPO
# A nat of KL costs 0.02, next to nothing. The true reward of each rollout is only written down.

# %%
episodes, policy, true = lesson.pick(24, 2), start.fresh_policy(), []


def watch(prompts, texts):
    true.append(world.measure(prompts, texts)["true_reward"])
    return {}


_, proxy, kl = ppo_training(policy, start.sft, start.reward, world.prompts, measure=watch, **PPO | {
    "num_episodes": episodes, "kl_coeff": 0.02, "final_lr": 1.0, "max_new_tokens": longest})
along = [[f"{i + 1}-{i + 4}", *(mean(values[i:i + 4]) for values in (kl, proxy, true))]
         for i in range(0, episodes, 4)]
lesson.table("ppo", ["episodes", "KL (nats)", "proxy", "true reward"], two_digits(along),
             title="PPO at kl_coeff 0.02: the same, and further from the SFT model")
figure, axes = lesson.panels(2, sharey=True)
for axis, rows, what in zip(axes, (best_of, along), ("best of n", "episodes of PPO"), strict=True):
    names, _, proxy, true = zip(*rows, strict=True)
    axis.plot([str(name) for name in names], proxy, "o-", color=COLOURS[1], label="proxy")
    axis.plot([str(name) for name in names], true, "s-", color="black", label="true reward")
    axis.set(xlabel=what, ylabel="mean over answers")
axes[0].legend()
lesson.figure("turn", figure, "One proxy, two ways to push, one seed: the proxy rises, the true "
              "reward rises and falls.")

# %% [markdown]
# ## The most likely answers, before and after

# %%
rows = []
for prompt in world.heldout_prompts[:4]:
    for name, model in (("SFT", start.sft), ("PPO", policy)):
        answer = generate(model, [prompt], longest, greedy=True)[0].text.replace("`", "'")
        rows.append([prompt, name, answer, f"{score(start.reward, [prompt], [answer]).item():+.1f}",
                     f"{world.true_reward(prompt, answer):+.1f}"])
lesson.table("answers", ["prompt", "policy", "answer", "proxy", "true reward"], rows,
             title="What the proxy likes")
lesson.done()
