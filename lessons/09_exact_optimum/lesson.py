# %% [markdown]
# # 9. The exact optimum
# One prompt, ten answers: the best policy is a formula. Do DPO and PPO reach it?

# %%
import torch
from torch import Tensor

from dpo import dpo_loss
from lessons.course import Lesson
from minigpt.plots import COLOURS
from ppo import gae, ppo_loss

lesson = Lesson("09_exact_optimum")
torch.manual_seed(0)
STEPS = lesson.pick(1000, 20)
BETA, NAMES = 0.5, "abcdefghij"     # the better answers are the rarer ones
REF = torch.tensor([.25, .20, .15, .12, .09, .07, .05, .035, .025, .01], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 0.5, -0.5, 1.0, 0.2, -1.0, 1.5, 0.8, 2.0, 2.5], dtype=torch.float64)


def kl(p: Tensor, q: Tensor) -> float:  # of log-probabilities
    return float((p.exp() * (p - q)).sum())


# %% [markdown]
# ## The optimum, in closed form
# The reference tilted by exp(r / beta). Its objective is beta log Z, and no policy has more.

# %%
star = (REF + REWARD / BETA).log_softmax(0)
lesson.number("objective_of_the_optimum", float(star.exp() @ REWARD) - BETA * kl(star, REF), ".6f")
lesson.number("beta_log_Z", float(BETA * torch.logsumexp(REF + REWARD / BETA, 0)), ".6f")

# %% [markdown]
# ## DPO, on pairs of answers from the reference
# Bradley-Terry decides who wins a pair. With few pairs, the same loss has another minimum.

# %%
def draw_pairs(count: int) -> tuple[Tensor, Tensor]:
    first, second = torch.stack([torch.multinomial(REF.exp(), 2) for _ in range(count)]).T
    first_wins = torch.rand(count) < torch.sigmoid(REWARD[first] - REWARD[second])
    return first.where(first_wins, second), second.where(first_wins, first)


def dpo(pairs: int) -> tuple[Tensor, list[float]]:
    winners, losers = draw_pairs(pairs)
    theta, distances = REF.clone().requires_grad_(), []
    optimizer = torch.optim.Adam([theta], lr=0.05)
    for _ in range(STEPS):
        logps = theta.log_softmax(0)
        distances.append(kl(logps.detach(), star))
        loss, _ = dpo_loss(logps[winners], logps[losers], REF[winners], REF[losers], BETA)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return theta.detach().log_softmax(0), distances


# %% [markdown]
# ## PPO, on its own samples
# An answer is one token, so a rollout is a column. The baseline is the last rollout's mean return.

# %%
def ppo(batch: int = 256) -> tuple[Tensor, list[float]]:
    theta, distances, baseline = REF.clone().requires_grad_(), [], 0.0
    mask = torch.ones(batch, 1, dtype=torch.bool)
    for step in range(STEPS):
        logps = theta.log_softmax(0)
        distances.append(kl(logps.detach(), star))
        if step % 4 == 0:                                   # four updates on each rollout
            old = logps.detach()
            answers = torch.multinomial(old.exp(), batch, replacement=True)
            rewards = (REWARD - BETA * (old - REF))[answers][:, None]               # (B, 1)
            advantages, returns = gae(rewards, torch.full_like(rewards, baseline), mask)
            baseline = float(returns.mean())
        loss, _ = ppo_loss(logps[answers][:, None], old[answers][:, None], advantages, mask, 0.2)
        theta.data -= torch.autograd.grad(loss, theta)[0]   # plain gradient descent at rate 1
    return theta.detach().log_softmax(0), distances


# %% Who gets there?
runs = {"PPO": ppo(), "DPO, 30,000 pairs": dpo(30_000), "DPO, 100 pairs": dpo(100)}
policies = {"reference": REF, "π*": star} | {name: policy for name, (policy, _) in runs.items()}
lesson.table("reached", ["policy", "mean reward", "KL(π ‖ π*)", "probability of j, the best"],
             [[name, f"{pi.exp() @ REWARD:.2f}", f"{kl(pi, star):.4f}", f"{pi[9].exp():.1%}"]
              for name, pi in policies.items()], title="Ten answers, one optimum")
figure, (left, right) = lesson.panels(2, height=3.6)
for number, (name, pi) in enumerate(policies.items()):
    style = {"color": ("#999999", "black", *COLOURS)[number], "label": name}
    left.bar([k + 0.17 * (number - 2) for k in range(10)], pi.exp().tolist(), 0.17, **style)
    if name in runs:
        right.plot(range(1, STEPS + 1), runs[name][1], **style)
left.set_xticks(range(10), [f"{NAMES[k]}\n{REWARD[k]:g}" for k in range(10)])
left.set(xlabel="answer, and its reward", ylabel="probability")
left.legend()
right.set(xlabel="update", ylabel="KL(π ‖ π*), nats", xscale="log", yscale="log")
lesson.figure("optimum", figure, "Left: PPO and DPO on 30,000 pairs end close to the optimum. "
              "Right: DPO on 100 pairs gets closer for a while, then moves away again.")
lesson.done()
