# %% [markdown]
# # 4. PPO
# A policy learns from a score. Half a minute of one core; the article is README.md beside this.

# %%
import copy
import tempfile

import torch

from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt import EOS, generate
from minigpt.batching import collate
from minigpt.examples import tokenize_example
from minigpt.plots import COLOURS, running_mean
from minigpt.run_folder import read_history
from ppo.advantages import gae
from ppo.rollout import RolloutMaker
from ppo.train import ppo_training

lesson = Lesson("04_ppo")
start = starting_point(0, quick=lesson.quick)
recipe = {**PPO, "num_episodes": lesson.pick(60, 2),
          "max_new_tokens": lesson.pick(LONGEST_ANSWER, 8)}

# %% [markdown]
# ## Train: policy and value model change, reference and reward model stay

# %%
policy, value_model = start.fresh_policy(), copy.deepcopy(start.reward)
with tempfile.TemporaryDirectory() as folder:
    ppo_training(policy, start.sft, start.reward, start.world.prompts, value_model=value_model,
                 measure=start.world.measure, out=folder, **recipe)
    history = read_history(folder)

# %% [markdown]
# ## Two numbers to check before anything else
# Before the first update the policy is still its own past, and still the reference.

# %%
lesson.number("ratio_at_the_first_update", history["val/first_ratio"][0], ".6f")
lesson.number("KL_in_the_first_episode", history["objective/kl_exact"][0], ".6f")

# %% [markdown]
# ## How the run went

# %%
PANELS = {"Score and true reward": [("objective/scores", "score"), ("true_reward", "true reward")],
          "KL to the reference (nats)": [("objective/kl_exact", "per response")],
          "Tokens per response": [("val/response_tokens", "with EOS")]}
figure, axes = lesson.panels(3, height=3.0)
for axis, (title, lines) in zip(axes, PANELS.items(), strict=True):
    for (name, label), colour in zip(lines, COLOURS[1:], strict=False):
        episodes = range(1, len(history[name]) + 1)
        axis.plot(episodes, history[name], color=colour, alpha=0.25, linewidth=1)
        axis.plot(episodes, running_mean(history[name], 5), color=colour, label=label)
    axis.set(title=title, xlabel="episode")
    axis.legend()
lesson.figure("one_run", figure, "One run, seed 0 (faint: each episode; strong: mean of five). The "
              "score rises, the true reward rises with it, and the KL levels off.")

# %% [markdown]
# ## Before and after, on prompts that no training has seen

# %%
before, after = start.measure(start.sft), start.measure(policy)
ROWS = {"true_reward": "true reward", "right_share": "share of right answers",
        "kl_nats_per_response": "KL (nats per response)", "response_bytes": "bytes per answer"}
lesson.table("before_after", ["", "SFT", "PPO"],
             [[says, f"{before[key]:.2f}", f"{after[key]:.2f}"] for key, says in ROWS.items()],
             title="Held-out prompts, 16 answers each")
prompts = start.world.heldout_prompts[:5]
said = [generate(model, prompts, recipe["max_new_tokens"], seed=3) for model in (start.sft, policy)]
lesson.table("answers", ["prompt", "SFT", "PPO"],
             [[prompt, old.text, new.text]
              for prompt, old, new in zip(prompts, *said, strict=True)], title="One answer each")

# %% [markdown]
# ## Who gets the credit for an answer?
# The score arrives with EOS. GAE hands it back to the tokens before; lambda says how far.

# %%
one = collate([tokenize_example(prompts[-1], [], policy.max_seq_len)])
roll_out = RolloutMaker(start.sft, start.reward, recipe["max_new_tokens"], missing_eos_penalty=1.0)
rollout = roll_out(policy, one, PPO["kl_coeff"], torch.Generator().manual_seed(0))
with torch.no_grad():
    values = value_model.values(rollout.batch)
advantages = [gae(rollout.rewards, values, rollout.mask, lam=lam)[0] for lam in (0.0, 0.95, 1.0)]
columns = torch.stack([rollout.rewards, values, *advantages], dim=-1)[rollout.mask]
tokens = rollout.batch.token_ids[rollout.mask].tolist()
lesson.table("credit", ["token", "reward", "value before it", "A (lambda 0)", "A (0.95)", "A (1)"],
             [["EOS" if token == EOS else repr(chr(token)), *(f"{number:+.2f}" for number in row)]
              for token, row in zip(tokens, columns.tolist(), strict=True)],
             title=f"{prompts[-1]}  {rollout.texts()[1][0]}")
lesson.done()
