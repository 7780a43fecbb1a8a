# %% [markdown]
# # 4. PPO: the exercises, worked
# Predict first, then run: `python -m lessons 04 --solutions`.

# %%
from statistics import mean

import torch

from lessons.course import Lesson, spread
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt.batching import collate
from minigpt.evaluation import evaluate_policy
from minigpt.examples import tokenize_example
from minigpt.kl import kl_k1
from minigpt.logprobs import token_logps
from minigpt.plots import COLOURS
from minigpt.sampling import sample_ids
from ppo.train import ppo_training
from reward.evaluate import score
from reward.model import RewardModel

lesson = Lesson("04_ppo", "solutions")
SEEDS = (0, 1)
LONGEST = lesson.pick(LONGEST_ANSWER, 8)
EPISODES = lesson.pick(20, 1)
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in SEEDS}


def practice(start) -> list[str]:
    return start.world.prompts[:lesson.pick(None, 6)]


def train(start, reward=None, **changes):
    """The recipe with some changes: the policy, and the KL of each episode."""
    policy = start.fresh_policy()
    options = {**PPO, "max_new_tokens": LONGEST, "num_episodes": EPISODES, **changes}
    policy, _, kls = ppo_training(policy, start.sft, reward or start.reward, practice(start), seed=start.seed, **options)
    return policy, kls


def results(start, policy) -> dict[str, float]:
    def judge(prompts, texts):
        return {"proxy": float(score(start.reward, prompts, texts).mean()), **start.world.measure(prompts, texts)}
    return evaluate_policy(policy, start.sft, start.world.heldout_prompts[:lesson.pick(None, 4)], lesson.pick(16, 1),
                           LONGEST, start.seed, judge)


WHAT = {"true_reward": ".2f", "proxy": ".2f", "kl_nats_per_response": ".2f", "response_bytes": ".0f", "right_share": ".2f"}


def keep(name: str, measured: list[dict[str, float]]) -> list[str]:
    """Numbers of the article, and cells of its tables."""
    cells = {what: spread([m[what] for m in measured], form) for what, form in WHAT.items()}
    for what, cell in cells.items():
        lesson.number(f"{name}_{what}", cell)
    return list(cells.values())


HEAD = ["true reward", "score", "KL (nats)", "bytes", "right"]

# %% [markdown]
# ## 1. The price of KL

# %%
rows = []
for beta in (0.001, 0.02, 0.5, 2.0):
    measured = [results(start, train(start, kl_coeff=beta)[0]) for start in starts.values()]
    rows.append([f"{beta:g}", *keep(f"beta_{beta:g}".replace(".", "_"), measured)])
lesson.table("beta_sweep", ["beta", *HEAD], rows)

# %% [markdown]
# ## 2. A reward that likes length
# The reward model and half a point for each byte of the answer, counted from the first byte or from the 25th. On paper the
# two are the same: they differ by a constant.

# %%
class LikesLength(RewardModel):
    """A reward model that pays a prize for every byte of the answer above `usual`."""

    prize, usual = 0.5, 0

    def rewards(self, batch):
        return super().rewards(batch) + self.prize * (batch.response_masks.sum(-1) - self.usual)


def liking_length(reward: RewardModel, usual: int) -> RewardModel:
    hacked = LikesLength(**reward.settings)
    hacked.load_state_dict(reward.state_dict())
    hacked.usual = usual
    return hacked.eval()


rows = []
for name, usual, beta in (("from_0", 0, 0.1), ("above_24", 24, 0.1), ("above_24_held", 24, 2.0)):
    measured = [results(start, train(start, liking_length(start.reward, usual), kl_coeff=beta)[0])
                for start in starts.values()]
    rows.append([f"above {usual}" if usual else "all", f"{beta:g}", *keep(f"hack_{name}", measured)])
lesson.table("hack", ["bytes paid for", "beta", *HEAD], rows)

# %% [markdown]
# ## 3. REINFORCE: no value model, no clipping, one step a rollout
# The whole answer is one action; its advantage is its score less beta KL, less the mean of the batch.

# %%
def reinforce(start, beta: float = PPO["kl_coeff"], lr: float = PPO["lr"]):
    policy = start.fresh_policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    prompts = [tokenize_example(prompt, [], policy.max_seq_len) for prompt in practice(start)]
    generator = torch.Generator().manual_seed(start.seed)
    for _ in range(EPISODES):
        answers = sample_ids(policy, [list(example.prompt) for example in prompts], LONGEST, generator=generator)
        batch = collate([example._replace(responses=(bytes(ids),)) for example, ids in zip(prompts, answers, strict=True)])
        logps = token_logps(policy, batch).sum(1)               # (B,), with a gradient
        with torch.no_grad():
            kl = kl_k1(logps, token_logps(start.sft, batch).sum(1))
            rewards = start.reward(batch.token_ids, batch.lengths) - beta * kl             # (B,)
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        loss = -(advantages * logps).mean() / batch.response_mask.sum(1).float().mean()    # per token, as in PPO
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return policy.eval()


plain = [results(start, reinforce(start)) for start in starts.values()]
one_pass = [results(start, train(start, ppo_epochs=1)[0]) for start in starts.values()]
lesson.table("reinforce", ["method", *HEAD], [["REINFORCE, one step a rollout", *keep("reinforce", plain)],
                                              ["PPO, one step a rollout", *keep("one_pass", one_pass)]])

# %% [markdown]
# ## 4. Let beta find the KL
# An adaptive coefficient that begins ten times too small, with two horizons.

# %%
rows, figure_kls = [], {}
for horizon in (500, 48):
    runs = [train(start, kl_coeff=0.05, target_kl=1.0, kl_horizon=horizon) for start in starts.values()]
    rows.append([str(horizon), *keep(f"horizon_{horizon}", [results(start, policy) for start, (policy, _) in
                                                            zip(starts.values(), runs, strict=True)])])
    figure_kls[horizon] = [kls for _, kls in runs]
    lesson.number(f"last_kl_{horizon}", [mean(kls[-5:]) for kls in figure_kls[horizon]], ".2f")
lesson.table("adaptive", ["horizon", *HEAD], rows)
figure, axis = lesson.panels(height=3.0)
for (horizon, runs), colour in zip(figure_kls.items(), COLOURS, strict=False):
    for number, kls in enumerate(runs):
        axis.plot(range(1, len(kls) + 1), kls, color=colour, alpha=0.7,
                  label=f"horizon {horizon} responses" if number == 0 else None)
axis.axhline(1, color="grey", linestyle=":")
axis.text(1, 1.05, "target", fontsize=8, color="#444444")
axis.set(xlabel="episode", ylabel="KL (nats per response)", title="Adaptive beta, from 0.05")
axis.legend(loc="best")
changes = [1 + 0.2 * 48 / horizon for horizon in (500, 48)]
lesson.figure("adaptive", figure, f"In {EPISODES} episodes of 48 responses beta can grow at most "
              f"{changes[0] ** EPISODES:.1f} times with a horizon of 500 responses, and {changes[1] ** EPISODES:.0f} times "
              "with one of 48.")
lesson.done()
