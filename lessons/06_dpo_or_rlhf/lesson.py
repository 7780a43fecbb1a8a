# %% [markdown]
# # 6. DPO or RLHF
# One SFT model, 8,000 preference pairs, three ways to use them.  Write down a guess first: which
# ends with the best answers, and which goes furthest from the SFT model?  (The article: README.md.)

# %%
from statistics import mean

import torch

from dpo import dpo_train, evaluate_preference_accuracy
from lessons.course import Lesson
from lessons.limit import Frontier, best_of_n_kl
from lessons.start import DPO, LONGEST_ANSWER, PPO, starting_point
from minigpt import generate
from minigpt.evaluation import sample_responses
from minigpt.plots import COLOURS
from ppo import ppo_training
from reward import evaluate_reward_accuracy, score

lesson = Lesson("06_dpo_or_rlhf")
start = starting_point(quick=lesson.quick)
world, sft, reward = start.world, start.sft, start.reward
N, POOL = lesson.pick((16, 256), (2, 4))
PAIRS, EPISODES, TOKENS = lesson.pick((8000, 60, LONGEST_ANSWER), (16, 1, 6))

# %% [markdown]
# ## 1. Best of 16: train nothing, choose among the SFT model's answers
# The reward model, trained on the same pairs, picks one answer of every 16.

# %%
prompts, answers = sample_responses(sft, world.heldout_prompts, POOL, TOKENS, seed=0)
true = torch.tensor([world.true_reward(p, a.text) for p, a in zip(prompts, answers, strict=True)])
scores = score(reward, prompts, [answer.ids for answer in answers])
groups = scores.view(len(world.heldout_prompts), -1, N)      # (prompts, groups, n)
best = true.view_as(groups).gather(-1, groups.argmax(-1, keepdim=True))
best_of_n = {"true_reward": float(best.mean()),
             "kl_nats_per_response": mean(best_of_n_kl(each.flatten(), N) for each in groups)}

# %% [markdown]
# ## 2. DPO: train the policy on the pairs themselves

# %%
dpo, _, _ = dpo_train(start.fresh_policy(), sft, world.preferences[:PAIRS], **DPO)

# %% [markdown]
# ## 3. RLHF: let PPO climb the reward model with the policy's own answers

# %%
settings = PPO | {"num_episodes": EPISODES, "max_new_tokens": TOKENS}
ppo, _, _ = ppo_training(start.fresh_policy(), sft, reward, world.prompts, **settings)

# %% [markdown]
# ## Side by side
# The share compares the gain in true reward with the best that any policy could gain at the same
# KL.  We can know that only because this world's true reward is known.

# %%
limit = Frontier(true.view(-1, POOL))
arms = {"SFT": start.measure(sft), f"best of {N}": best_of_n, "PPO": start.measure(ppo),
        "DPO": start.measure(dpo)}
pairs = world.heldout_preferences[:lesson.pick(None, 8)]
ranks = {f"best of {N}": evaluate_reward_accuracy(reward, pairs),
         "PPO": evaluate_preference_accuracy(ppo, sft, pairs),
         "DPO": evaluate_preference_accuracy(dpo, sft, pairs)}
points = {name: (arm["kl_nats_per_response"], arm["true_reward"]) for name, arm in arms.items()}
shares = {name: limit.share_of_gain(true_reward, kl) for name, (kl, true_reward) in points.items()}
lesson.table("one_run", ["", "true reward", "KL (nats)", "share of possible gain", "ranks pairs"],
             [[name, f"{true_reward:+.2f}", f"{kl:.2f}",
               *([f"{shares[name]:.0%}", f"{ranks[name]:.0%}"] if name in ranks else ["-", "-"])]
              for name, (kl, true_reward) in points.items()],
             title="On held-out prompts and pairs")

# %%
figure, axis = lesson.panels(height=3.6)
axis.plot(limit.kls, limit.rewards, color="grey", label="limit for any policy")
for (name, point), colour in zip(points.items(), ("#777777", *COLOURS[2::-1]), strict=True):
    axis.plot(*point, "o", color=colour, markersize=9)
    axis.annotate(name, point, xytext=(9, -4), textcoords="offset points")
axis.set(xlabel="KL from the SFT model (nats per response)", ylabel="true reward",
         xlim=(-0.1, 3.6), title="Seed 0: how far each went, and what it got for it")
axis.legend(loc="lower right")
lesson.figure("one_run", figure, "Seed 0: " + ", ".join(
    f"{name} keeps {shares[name]:.0%}" for name in ranks) + " of the gain possible at its KL.")

# %% [markdown]
# ## Two prompts, four answers to each
# The most likely answer of each policy; of 16 answers, the one that the reward model likes best.

# %%
asked = [world.heldout_prompts[number] for number in (3, 1)]
said = {name: [answer.text for answer in generate(policy, asked, TOKENS, greedy=True)]
        for name, policy in (("SFT", sft), ("PPO", ppo), ("DPO", dpo))}
said[f"best of {N}"] = [answers[POOL * number + int(groups[number, 0].argmax())].text
                        for number in (3, 1)]
lesson.table("answers", ["says (its true reward)", *asked],
             [[name, *(f"{text!r} ({world.true_reward(prompt, text):+.1f})"
                       for prompt, text in zip(asked, texts, strict=True))]
              for name, texts in said.items()], title="Who says what")
lesson.done()
