# %% [markdown]
# # 4. PPO: the exercises, worked
# Predict first, then run: `python -m lessons 04 --solutions`.

# %%
import torch

from lessons.course import Lesson, spread
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt.batching import collate
from minigpt.evaluation import evaluate_policy
from minigpt.examples import tokenize_example
from minigpt.kl import kl_k1
from minigpt.logprobs import token_logps
from minigpt.sampling import sample_ids
from ppo.train import ppo_training
from reward.evaluate import score
from reward.model import RewardModel

lesson = Lesson("04_ppo", "solutions")
SEEDS = lesson.pick((0, 1, 2, 3, 4), (0, 1))
LONGEST = lesson.pick(LONGEST_ANSWER, 8)
EPISODES = lesson.pick(20, 1)
starts = [starting_point(seed, quick=lesson.quick) for seed in SEEDS]
first = starts[0]


def practice(start):
    return start.world.prompts[:lesson.pick(None, 6)]


def train(start, reward=None, **changes):
    """The recipe with some changes, in 20 episodes: the policy."""
    options = {**PPO, "max_new_tokens": LONGEST, "num_episodes": EPISODES, **changes}
    return ppo_training(start.fresh_policy(), start.sft, reward or start.reward, practice(start),
                        seed=start.seed, **options)[0]


def results(start, policy):
    """What a policy says to held-out prompts, and what the reward model thinks of it."""
    def judge(prompts, texts):
        proxy = float(score(start.reward, prompts, texts).mean())
        return {"proxy": proxy, **start.world.measure(prompts, texts)}
    return evaluate_policy(policy, start.sft, start.world.heldout_prompts[:lesson.pick(None, 4)],
                           lesson.pick(16, 1), LONGEST, start.seed, judge)


WHAT = {"true_reward": ("true reward", ".2f"), "proxy": ("score", ".1f"),
        "kl_nats_per_response": ("KL (nats)", ".1f"), "response_bytes": ("bytes", ".0f"),
        "right_share": ("right", ".2f")}
HEAD = [says for says, _ in WHAT.values()]


def cells(runs):
    """A row of a table, from the results of one seed or of several."""
    columns = {what: [run[what] for run in runs] for what in WHAT}
    return [spread(values if len(values) > 1 else values[0], WHAT[what][1])
            for what, values in columns.items()]


# %% [markdown]
# ## 1. The price of KL
# One seed: an illustration.

# %%
BETAS = (0.001, 0.02, 0.5, 2.0)
sweep = [results(first, train(first, kl_coeff=beta)) for beta in lesson.progress(BETAS, "betas")]
lesson.table("beta_sweep", ["beta", *HEAD],
             [[f"{beta:g}", *cells([found])] for beta, found in zip(BETAS, sweep, strict=True)],
             title="Twenty episodes at four betas, seed 0")
lesson.number("kl_at_the_lowest_beta", sweep[0]["kl_nats_per_response"], ".1f")
lesson.number("kl_at_the_highest_beta", sweep[-1]["kl_nats_per_response"], ".1f")


# %% [markdown]
# ## 2. A reward that likes length
# The reward model and half a point for each byte of the answer, counted from the first byte or
# from the 25th. On paper the two are the same: they differ by a constant. One seed again.

# %%
class LikesLength(RewardModel):
    """A reward model that pays a prize for every byte of the answer above `usual`."""

    prize, usual = 0.5, 0

    def rewards(self, batch):
        return super().rewards(batch) + self.prize * (batch.response_masks.sum(-1) - self.usual)


def liking_length(reward, usual):
    hacked = LikesLength(**reward.settings)
    hacked.load_state_dict(reward.state_dict())
    hacked.usual = usual
    return hacked.eval()


PRIZES = {"from_0": (0, 0.1), "above_24": (24, 0.1), "above_24_held": (24, 2.0)}
hacked = {name: results(first, train(first, liking_length(first.reward, usual), kl_coeff=beta))
          for name, (usual, beta) in lesson.progress(PRIZES.items(), "prizes")}
lesson.table("hack", ["bytes paid for", "beta", *HEAD],
             [[f"above {usual}" if usual else "all", f"{beta:g}", *cells([hacked[name]])]
              for name, (usual, beta) in PRIZES.items()], title="Half a point a byte, seed 0")
for name, found in hacked.items():
    lesson.number(f"hack_{name}_response_bytes", found["response_bytes"], ".0f")
    lesson.number(f"hack_{name}_true_reward", found["true_reward"], ".2f")


# %% [markdown]
# ## 3. REINFORCE: no value model, no clipping, one step a rollout
# The whole answer is one action; its advantage is its score less beta KL, less the batch's mean.

# %%
def reinforce(start, beta=PPO["kl_coeff"], lr=PPO["lr"]):
    policy = start.fresh_policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    prompts = [tokenize_example(prompt, [], policy.max_seq_len) for prompt in practice(start)]
    generator = torch.Generator().manual_seed(start.seed)
    for _ in range(EPISODES):
        answers = sample_ids(policy, [list(example.prompt) for example in prompts], LONGEST,
                             generator=generator)
        batch = collate([example._replace(responses=(bytes(ids),))
                         for example, ids in zip(prompts, answers, strict=True)])
        logps = token_logps(policy, batch).sum(1)                       # (B,), with a gradient
        with torch.no_grad():
            kl = kl_k1(logps, token_logps(start.sft, batch).sum(1))
            rewards = start.reward(batch.token_ids, batch.lengths) - beta * kl             # (B,)
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        tokens = batch.response_mask.sum(1).float().mean()              # per token, as in PPO
        loss = -(advantages * logps).mean() / tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return policy.eval()


plain = [results(start, reinforce(start)) for start in lesson.progress(starts, "REINFORCE")]
one_pass = [results(start, train(start, ppo_epochs=1)) for start in lesson.progress(starts, "PPO")]
lesson.table("reinforce", ["method", *HEAD],
             [["REINFORCE, one step a rollout", *cells(plain)],
              ["PPO, one step a rollout", *cells(one_pass)]],
             title="Five seeds, mean and half of the 95 % interval")
gaps = [a["true_reward"] - b["true_reward"] for a, b in zip(plain, one_pass, strict=True)]
lesson.number("reinforce_gap", gaps, "+.2f")
lesson.done()
