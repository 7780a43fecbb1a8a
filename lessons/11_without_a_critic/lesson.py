# %% [markdown]
# # 11. Without a critic
# The article is README.md beside this file. Run this from the shell (`python -m lessons 11`) or
# cell by cell.

# %%
import time

import torch

from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt import generate
from minigpt.batching import collate
from minigpt.examples import tokenize_example
from minigpt.logprobs import token_logps
from minigpt.recipes import ADVANTAGE_SETTINGS
from ppo.advantages import grpo_advantages, rloo_advantages
from ppo.loss import ppo_loss
from ppo.rollout import RolloutMaker
from ppo.train import ppo_training
from reward.combine import as_reward
from reward.evaluate import score

lesson = Lesson("11_without_a_critic")
start = starting_point(quick=lesson.quick)
longest = lesson.pick(LONGEST_ANSWER, 8)

# %% [markdown]
# ## Two groups
# Four answers to one prompt. Each is compared with the other three: no value model is needed.
# Where all four score the same, there is nothing to compare.

# %%
rows = []
for prompt in ("In a sentence: Name the colour of coal.", "In one word: Work out 1 plus 2."):
    group = generate(start.sft, [prompt] * 4, longest, seed=0)
    scores = score(start.reward, [prompt] * 4, [answer.ids for answer in group])[None]   # (1, 4)
    rloo, grpo = rloo_advantages(scores)[0], grpo_advantages(scores)[0]
    rows += [[prompt, answer.text, f"{s:.1f}", f"{a:+.1f}", f"{b:+.1f}"]
             for answer, s, a, b in zip(group, scores[0], rloo, grpo, strict=True)]
lesson.table("group", ["prompt", "answer", "score", "RLOO's advantage", "GRPO's"], rows,
             title="What RLOO and GRPO make of four answers each")

# %% [markdown]
# ## Three ways to compare, equally many answers
# PPO asks its value model what was to be expected; RLOO and GRPO ask the rest of the group.

# %%
policies, rows = {"SFT": start.sft}, []
for name, advantage, models in (("PPO", "gae", 4), ("RLOO", "rloo", 3), ("GRPO", "grpo", 3)):
    settings = {**PPO, "num_episodes": lesson.pick(40, 2), "batch_size": 48,
                **ADVANTAGE_SETTINGS.get(advantage, {}), "max_new_tokens": longest}
    policies[name], began = start.fresh_policy(), time.process_time()
    ppo_training(policies[name], start.sft, start.reward, start.world.prompts,
                 advantage=advantage, **settings)
    seconds, found = time.process_time() - began, start.measure(policies[name])
    rows.append([name, models, f"{seconds:.0f}",
                 f"{found['true_reward']:.2f}", f"{found['kl_nats_per_response']:.1f}"])
lesson.table("first_look", ["", "models in memory", "seconds", "true reward", "KL (nats)"], rows,
             title=f"{settings['num_episodes'] * 48:,} answers each; SFT's true reward is "
                   f"{start.measure(start.sft)['true_reward']:.2f}")

# %%
question = start.world.heldout_prompts[3]
print(f"The most likely answers to {question!r}:")
for name, policy in policies.items():
    print(f"    {name:<6}{generate(policy, [question], longest, greedy=True)[0].text}")

# %% [markdown]
# ## Why GRPO's loss says 0
# The advantages of a group sum to 0, and before the first step every ratio is 1. So the loss is 0
# as a mean over answers. Its gradient is not, and the gradient is what trains.

# %%
policy = start.fresh_policy().requires_grad_(True)
roll_out = RolloutMaker(start.sft, as_reward(start.reward), longest, 1.0, samples_per_prompt=4)
prompts = collate([tokenize_example(text, [], policy.max_seq_len) for text in
                   start.world.prompts[:12]])
rollout = roll_out(policy, prompts, 0.0, torch.Generator().manual_seed(0))
advantages = rollout.batch.on_tokens(grpo_advantages(rollout.scores))
logps = token_logps(policy, rollout.batch)
ratios = (logps - rollout.logps).exp()
each = rollout.batch.response_sums(ratios * advantages) / rollout.batch.response_lengths   # (12, 4)
by_answer, (by_token, _) = -each.mean(), ppo_loss(logps, rollout.logps, advantages, rollout.mask)
gradient = torch.autograd.grad(by_token, list(policy.parameters()))
lesson.number("loss_by_answer", f"{abs(float(by_answer.detach())):.4f}")
lesson.number("loss_by_token", float(by_token.detach()), ".4f")
lesson.number("gradient_norm", float(torch.cat([g.flatten() for g in gradient]).norm()), ".2f")
lesson.done()
