# %% [markdown]
# # 9. The exact optimum
# The article is README.md beside this file. Run this from the shell (`python -m lessons 09`) or cell by cell.

# %%
import copy
import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo import dpo_loss
from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from minigpt import EOS, MiniGPT, decode, encode
from minigpt.batching import Batch, collate
from minigpt.examples import Example, tokenize_prompt
from minigpt.kl import exact_kl, kl_k1, kl_k2, kl_k3
from minigpt.logprobs import place, response_logits, response_logps, token_logps
from minigpt.plots import COLOURS
from ppo import gae, ppo_loss, ppo_training
from ppo.advantages import whiten
from reward import RewardModel
from reward.loss import bradley_terry_loss
from sft.train import sft_train

lesson = Lesson("09_exact_optimum")
BLUE, RED, GREEN, PINK, ORANGE, SKY = COLOURS
GREY = "#777777"

# %% [markdown]
# ## Part 1: a bandit. One prompt, ten answers, everything known
# The better an answer, the rarer it is: that is what makes the task one.

# %%
NAMES = "abcdefghij"
BETA = 0.5
REF = torch.tensor([.25, .20, .15, .12, .09, .07, .05, .035, .025, .01], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 0.5, -0.5, 1.0, 0.2, -1.0, 1.5, 0.8, 2.0, 2.5], dtype=torch.float64)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities (..., answers)."""
    return (p.exp() * (p - q)).sum(-1)


def objective(logps: Tensor, beta: float = BETA) -> Tensor:
    """What RLHF maximises: E[r] - beta KL(pi || ref)."""
    return (logps.exp() * (REWARD - beta * (logps - REF))).sum(-1)


def optimum(beta: float = BETA) -> Tensor:
    """log pi*: the reference, tilted by the reward."""
    return (REF + REWARD / beta).log_softmax(-1)


def best_of_n(ref: Tensor, reward: Tensor, n: int) -> Tensor:
    """log-probabilities of the best of n samples of the reference; a tie goes to any of those that tie."""
    p = ref.exp()
    up_to = (p * (reward <= reward[:, None])).sum(-1)   # F(r): the share of answers no better than this one
    below = (p * (reward < reward[:, None])).sum(-1)    # F(r-)
    return (p / (up_to - below) * (up_to**n - below.clamp_min(0)**n)).clamp_min(1e-300).log()


star = optimum()
value = BETA * torch.logsumexp(REF + REWARD / BETA, 0)   # beta log Z
lesson.number("beta", str(BETA))
lesson.number("kl_star", float(kl(star, REF)))
lesson.number("reward_ref", float(REF.exp() @ REWARD))
lesson.number("reward_star", float(star.exp() @ REWARD))
lesson.number("value_star", float(value), ".6f")
lesson.number("objective_star", float(objective(star)), ".6f")
lesson.number("start_kl", float(kl(REF, star)))
torch.manual_seed(0)
worst = 0.0
for _ in range(1000):   # J(pi) = beta log Z - beta KL(pi || pi*) for any pi, not only near the optimum
    pi = (3 * torch.randn(10, dtype=torch.float64)).log_softmax(0)
    worst = max(worst, abs(float(objective(pi) - (value - BETA * kl(pi, star)))))
lesson.number("gibbs_error", worst, ".0e")

# %% [markdown]
# ## Three ways there
# Exact gradient ascent, DPO with unlimited data, PPO with samples.

# %%
def exact_ascent(steps: int, lr: float = 1.0) -> list[float]:
    theta, gone = REF.clone().requires_grad_(), []
    for _ in range(steps):
        logps = theta.log_softmax(0)
        gone.append(float(kl(logps.detach(), star)))
        (gradient,) = torch.autograd.grad(objective(logps), theta)
        theta.data += lr * gradient
    return gone


def expected_dpo_loss(logps: Tensor, shares: Tensor, ref: Tensor = REF, beta: float = BETA) -> Tensor:
    """dpo_loss over all pairs at once; shares (..., answers, answers): how often the row's answer beats the column's."""
    rewards = beta * (logps - ref)                                  # implicit rewards
    margins = rewards[..., :, None] - rewards[..., None, :]
    return -(shares * F.logsigmoid(margins)).sum((-1, -2))


def shares_of_pairs(source: Tensor, reward: Tensor = REWARD) -> Tensor:
    """Pairs of two different answers from `source`, labelled by Bradley-Terry: the share of each (winner, loser)."""
    shares = source.exp()[:, None] * source.exp() * torch.sigmoid(reward[:, None] - reward)
    shares.fill_diagonal_(0)
    return shares / shares.sum()


def dpo_descent(shares: Tensor, steps: int, lr: float = 0.05, beta: float = BETA) -> tuple[Tensor, list[Tensor]]:
    """Full-batch DPO from the reference; shares may be of many data sets (S, 10, 10), each then trains its own policy."""
    theta = REF.expand(shares.shape[:-1]).clone().requires_grad_()
    optimizer, gone = torch.optim.Adam([theta], lr=lr), []
    for _ in range(steps):
        logps = theta.log_softmax(-1)
        gone.append(kl(logps.detach(), optimum(beta)))
        optimizer.zero_grad()
        expected_dpo_loss(logps, shares, beta=beta).sum().backward()
        optimizer.step()
    return theta.detach().log_softmax(-1), gone


def ppo_ascent(seed: int, rollouts: int, beta: float = BETA, whitened: bool = False, decay: bool = False, lr: float = 1.0,
               passes: int = 4, clip: float = 0.2, batch: int = 256) -> tuple[Tensor, list[float]]:
    """The library's gae and ppo_loss on answers of one token; the baseline is the mean return of the rollout before."""
    generator = torch.Generator().manual_seed(seed)
    theta, mask, baseline, gone = REF.clone().requires_grad_(), torch.ones(batch, 1, dtype=torch.bool), 0.0, []
    for rollout in range(rollouts):
        with torch.no_grad():
            logps = theta.log_softmax(0)
            gone.append(float(kl(logps, optimum(beta))))
            answers = torch.multinomial(logps.exp(), batch, True, generator=generator)
            rewards = (REWARD - beta * (logps - REF))[answers][:, None]                  # (B, 1)
            advantages, returns = gae(rewards, torch.full_like(rewards, baseline), mask)
            baseline = float(returns.mean())
            if whitened:
                advantages = whiten(advantages, mask)
        rate = lr * (1 - rollout / rollouts) if decay else lr
        for _ in range(passes):
            loss, _ = ppo_loss(theta.log_softmax(0)[answers][:, None], logps[answers][:, None], advantages, mask, clip)
            (gradient,) = torch.autograd.grad(loss, theta)
            theta.data -= rate * gradient
    return theta.detach().log_softmax(0), gone


# %%
steps = lesson.pick(3000, 20)
seeds = list(range(lesson.pick(10, 2)))
paths = {"exact": exact_ascent(steps)}
reached, paths["dpo"] = dpo_descent(shares_of_pairs(REF), steps)
paths["dpo"] = [float(gone) for gone in paths["dpo"]]
lesson.number("dpo_infinite_error", float((reached - star).abs().max()), ".0e")
lesson.number("exact_100", paths["exact"][min(100, steps - 1)])
lesson.number("exact_500", paths["exact"][min(500, steps - 1)], ".1e")
lesson.number("exact_end", paths["exact"][-1], ".1e")
lesson.number("steps", f"{steps:,}")

one_of_each = [(i, j) for i in range(10) for j in range(10) if i != j]   # every ordered pair once
first, second = torch.tensor(one_of_each).T
torch.manual_seed(0)
pi = torch.randn(10, dtype=torch.float64).log_softmax(0)
by_library, _ = dpo_loss(pi[first], pi[second], REF[first], REF[second], BETA)
by_sum = expected_dpo_loss(pi, (1 - torch.eye(10, dtype=torch.float64)) / 90)
assert abs(by_library - by_sum) < 1e-12, "the sum over all pairs must be the library's loss"

rollouts = lesson.pick(300, 4)
kinds = {"plain": {}, "whitened": {"whitened": True}, "decayed": {"whitened": True, "decay": True}}
ppo = {kind: [ppo_ascent(seed, rollouts, **options)[1] for seed in seeds] for kind, options in kinds.items()}
for kind, runs in ppo.items():
    lesson.number(f"ppo_{kind}_15", [gone[min(15, rollouts - 1)] for gone in runs], ".3f")
    lesson.number(f"ppo_{kind}_end", [gone[-1] for gone in runs], ".1e")
lesson.number("rollouts", str(rollouts))
lesson.number("seeds", str(len(seeds)))

figure, (left, right) = lesson.panels(2, height=3.6)
left.plot(range(1, steps + 1), paths["exact"], color=BLUE, label="exact gradient")
left.plot(range(1, steps + 1), [max(gone, 1e-12) for gone in paths["dpo"]], color=GREEN, label="DPO, unlimited data")
left.set(xscale="log", yscale="log", xlabel="step", ylabel="KL(π ‖ π*), nats", ylim=(1e-10, 3), title="Without noise")
left.legend(loc="lower left")
for runs, colour, label in zip(ppo.values(), (BLUE, RED, ORANGE),
                               ("as it is", "advantages whitened", "whitened, rate decays to 0"), strict=True):
    for number, gone in enumerate(runs[:5]):
        right.plot(range(1, rollouts + 1), gone, color=colour, alpha=0.55, linewidth=1, label=label if number == 0 else None)
right.set(yscale="log", xlabel="rollout of 256 answers", ylabel="KL(π ‖ π*), nats", title="PPO, five seeds each")
right.legend(loc="upper right")
lesson.figure("meet", figure, "Left: both exact methods go to the same optimum; the gradient of the reward slows down where "
              "answers are rare. Right: PPO goes there as well, unless whitening keeps its noise at full size "
              f"({lesson.results['numbers']['ppo_plain_end']} nats without it, "
              f"{lesson.results['numbers']['ppo_whitened_end']} with it, at the end).")

# %% [markdown]
# ## The clip is a guard rail, not a part of the optimum

# %%
rows = []
for clip, name in ((0.05, "0.05"), (0.2, "0.2"), (1e9, "none")):
    cells = []
    for lr, passes in ((1.0, 4), (3.0, 16)):
        ends = [ppo_ascent(seed, lesson.pick(100, 3), lr=lr, passes=passes, clip=clip)[1] for seed in seeds[:3]]
        cells += [f"{sum(gone[min(10, len(gone) - 1)] for gone in ends) / len(ends):.4f}",
                  f"{sum(gone[-1] for gone in ends) / len(ends):.4f}"]
    rows.append([name, *cells])
lesson.table("clip", ["clip", "gentle: after 10 rollouts", "after 100", "12 times the step: after 10 rollouts", "after 100"],
             rows)

# %% [markdown]
# ## The frontier: all betas at once

# %%
betas = torch.logspace(1.5, -1.5, 2000, dtype=torch.float64)
tilted = torch.stack([optimum(float(beta)) for beta in betas])
frontier = kl(tilted, REF), tilted.exp() @ REWARD
points = {}
for beta in (2.0, BETA, 0.2):
    points[f"DPO, β = {beta}"] = dpo_descent(shares_of_pairs(REF), lesson.pick(1500, 20), beta=beta)[0]
    points[f"PPO, β = {beta}"] = ppo_ascent(0, rollouts, beta)[0]
chosen = {n: best_of_n(REF, REWARD, n) for n in (2, 4, 16, 64)}
lesson.table("frontier", ["policy", "KL from the reference", "expected reward", "KL(π ‖ π*)"],
             [["reference", "0.000", f"{REF.exp() @ REWARD:.3f}", "-"]]
             + [[f"π*, β = {beta}", f"{kl(optimum(beta), REF):.3f}", f"{optimum(beta).exp() @ REWARD:.3f}", "0"]
                for beta in (2.0, BETA, 0.2)]
             + [[name, f"{kl(pi, REF):.3f}", f"{pi.exp() @ REWARD:.3f}",
                 f"{abs(float(kl(pi, optimum(float(name.split()[-1]))))):.1e}"]
                for name, pi in points.items()]
             + [[f"best of {n}", f"{kl(pi, REF):.3f}", f"{pi.exp() @ REWARD:.3f}", "-"] for n, pi in chosen.items()])
figure, (left, right) = lesson.panels(2, height=3.6)
width = 0.2
for number, (pi, name, colour) in enumerate(((REF, "reference", GREY), (optimum(2.0), "π*, β = 2", SKY),
                                             (star, f"π*, β = {BETA}", BLUE), (optimum(0.2), "π*, β = 0.2", PINK))):
    left.bar([k + (number - 1.5) * width for k in range(10)], pi.exp().tolist(), width, color=colour, label=name)
left.set_xticks(range(10), [f"{name}\n{r:g}" for name, r in zip(NAMES, REWARD.tolist(), strict=True)], fontsize=8)
left.set(xlabel="answer, and its reward", ylabel="probability", title="The reference, tilted")
left.legend(loc="upper center")
right.plot(*frontier, color="black", label="π* for every β (exact)")
for kind, policies, look in (("DPO, unlimited data", [pi for name, pi in points.items() if "DPO" in name],
                              {"marker": "s", "color": GREEN, "markersize": 9, "markerfacecolor": "none"}),
                             ("PPO", [pi for name, pi in points.items() if "PPO" in name],
                              {"marker": "x", "color": RED, "markersize": 7}),
                             ("best of 2, 4, 16, 64", list(chosen.values()), {"marker": "^", "color": ORANGE})):
    right.plot([float(kl(pi, REF)) for pi in policies], [float(pi.exp() @ REWARD) for pi in policies], linestyle="",
               markeredgewidth=1.8, label=kind, **look)
right.set(xlabel="KL(π ‖ ref), nats", ylabel="expected reward", title="Reward and its price")
right.legend(loc="lower right")
gaps = []   # how far best-of-n is below the frontier at its own KL
for pi in chosen.values():
    nearest = (frontier[0] - kl(pi, REF)).abs().argmin()
    gaps.append(float(frontier[1][nearest] - pi.exp() @ REWARD))
lesson.number("bon_gap", max(gaps))
lesson.figure("frontier", figure, "Left: a smaller β moves more of the probability to the better answers. Right: DPO "
              f"and PPO at three values of β lie on the frontier; best-of-n falls short of it by at most {max(gaps):.3f}.")

# %% [markdown]
# ## Finite pairs: how far DPO stays from the optimum
# Theory for many pairs: the errors of the rewards have the covariance of Bradley-Terry's maximum likelihood, and the KL
# is half their variance under pi*, over beta squared.

# %%
def draw_pairs(source: Tensor, reward: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Winners and losers of `count` pairs, drawn from what `shares_of_pairs` says."""
    shares = shares_of_pairs(source, reward)
    drawn = torch.multinomial(shares.flatten(), count, True, generator=torch.Generator().manual_seed(seed))
    return drawn // len(source), drawn % len(source)


def counted(pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Shares (answers, answers) of the pairs in which the row's answer beat the column's."""
    winners, losers = pairs
    return torch.bincount(10 * winners + losers, minlength=100).view(10, 10).double() / len(winners)


def expected_kl_times_pairs(source: Tensor, beta: float = BETA) -> float:
    """N times the mean KL(pi || pi*) after DPO on N pairs, for large N: tr(S H+) / (2 beta^2)."""
    shares = shares_of_pairs(source)
    pairs = shares + shares.T                                        # the share of each unordered pair
    chance = torch.sigmoid(REWARD[:, None] - REWARD)
    weights = pairs * chance * (1 - chance)
    information = torch.diag(weights.sum(1)) - weights               # H: what one pair says of the rewards
    pi = optimum(beta).exp()
    variances = torch.diag(pi) - pi[:, None] * pi                    # S: of the answers, under pi*
    return float(torch.trace(variances @ torch.linalg.pinv(information))) / (2 * beta**2)


def has_an_optimum(shares: Tensor) -> bool:
    """Does every answer, over some chain of wins, beat every other?  Only then is the likelihood's maximum finite."""
    beats = ((shares > 0) | torch.eye(10, dtype=torch.bool)).double()
    for _ in range(4):
        beats = (beats @ beats > 0).double()
    return bool(beats.all())


counts = lesson.pick((100, 300, 1000, 3000, 10_000, 30_000, 100_000), (100, 300))
many = range(lesson.pick(20, 2))
sources = {"the reference": REF, "all answers alike": torch.full_like(REF, 0.1).log()}
found, best, exists = {}, {}, {}
for name, source in sources.items():
    for count in counts:
        shares = torch.stack([counted(draw_pairs(source, REWARD, count, seed)) for seed in many])
        _, gone = dpo_descent(shares, lesson.pick(1000, 5))
        found[name, count], best[name, count] = gone[-1], torch.stack(gone).amin(0)
        exists[name, count] = sum(map(has_an_optimum, shares)) / len(many)
constants = {name: expected_kl_times_pairs(source) for name, source in sources.items()}
lesson.number("many", str(len(many)))
lesson.number("constant_ref", constants["the reference"], ".0f")
lesson.number("constant_uniform", constants["all answers alike"], ".0f")
lesson.table("pairs", ["pairs from", "pairs", "KL(π ‖ π*) at the end", "theory", "at its best moment",
                       "seeds with a finite optimum"],
             [[name, f"{count:,}", spread(found[name, count].tolist(), ".4f"),
               f"{constants[name] / count:.4f}", f"{best[name, count].mean():.4f}", f"{exists[name, count]:.0%}"]
              for name in sources for count in counts])

# %% [markdown]
# ## DPO is the two stages in one: fit a reward to the same pairs, then tilt

# %%
def minimise(loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The ten numbers at which a loss is least, to the last digits."""
    numbers = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=lesson.pick(500, 3), tolerance_grad=1e-12, tolerance_change=0,
                                  line_search_fn="strong_wolfe")

    def again() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(numbers)
        loss.backward()
        return loss
    optimizer.step(again)
    return numbers.detach()


def by_dpo(logits: Tensor) -> Tensor:
    logps = logits.log_softmax(0)
    return dpo_loss(logps[winners], logps[losers], REF[winners], REF[losers], BETA)[0]


winners, losers = draw_pairs(REF, REWARD, 3000, seed=0)
direct = minimise(by_dpo).log_softmax(0)
fitted = minimise(lambda rewards: bradley_terry_loss(rewards[winners], rewards[losers])[0])
staged = (REF + fitted / BETA).log_softmax(0)
lesson.number("two_stage_difference", float((direct - staged).abs().max()), ".0e")

# %% [markdown]
# ## Coverage: two answers that no pair contains

# %%
shares = shares_of_pairs(REF)
shares[8:] = shares[:, 8:] = 0
uncovered, _ = dpo_descent(shares / shares.sum(), lesson.pick(1500, 20))
log_ratios = uncovered - REF
lesson.number("unseen_log_ratio_i", float(log_ratios[8]), ".4f")
lesson.number("unseen_log_ratio_j", float(log_ratios[9]), ".4f")
lesson.number("star_log_ratio_i", float((star - REF)[8]), ".2f")
lesson.number("star_log_ratio_j", float((star - REF)[9]), ".2f")
lesson.number("unseen_share", float(uncovered[8:].exp().sum()), ".3f")
lesson.number("star_share", float(star[8:].exp().sum()), ".2f")
lesson.number("uncovered_kl", float(kl(uncovered, star)), ".3f")
pushed, losses, objectives = [], [], []
for push in torch.linspace(-4, 8, 121).tolist():   # add `push` to the logits of the two
    logps = (uncovered + torch.tensor([0.0] * 8 + [push] * 2)).log_softmax(0)
    pushed.append(float(logps[8:].exp().sum()))
    losses.append(float(expected_dpo_loss(logps, shares / shares.sum())))
    objectives.append(float(objective(logps)))
lesson.number("loss_range", max(losses) - min(losses), ".0e")
lesson.number("best_share_at", pushed[objectives.index(max(objectives))], ".2f")

figure, (left, right) = lesson.panels(2, height=3.6)
for name, colour in zip(sources, (RED, BLUE), strict=True):
    values = torch.stack([found[name, count] for count in counts])
    left.plot(counts, values.mean(1), "o-", color=colour, label=f"pairs from {name}")
    left.fill_between(counts, values.quantile(0.1, 1), values.quantile(0.9, 1), color=colour, alpha=0.15, linewidth=0)
    left.plot(counts, [constants[name] / count for count in counts], ":", color=colour)
left.set(xscale="log", yscale="log", xlabel="pairs", ylabel="KL(π ‖ π*), nats", title="DPO on finite pairs (dotted: theory)")
left.legend(loc="lower left")
right.plot(pushed, losses, color=GREEN, label="DPO's loss")
right.plot(pushed, objectives, color=BLUE, label="E[r] - β KL")
right.axvline(float(REF[8:].exp().sum()), color=GREY, linestyle=":", linewidth=1)
right.text(float(REF[8:].exp().sum()) + 0.02, 0.1, "reference", fontsize=8, color=GREY)
right.axvline(float(star[8:].exp().sum()), color=GREY, linestyle="--", linewidth=1)
right.text(float(star[8:].exp().sum()) + 0.02, 0.1, "π*", fontsize=8, color=GREY)
right.set(xlabel="probability of the two answers in no pair", ylabel="loss, or objective", title="What the pairs cannot say",
          ylim=(0, 1))
right.legend(loc="lower right")
lesson.figure("pairs", figure, f"Left: KL falls as 1/N, and pairs from the reference need "
              f"{constants['the reference'] / constants['all answers alike']:.1f} times as many as even ones (mean of "
              f"{len(many)} seeds; bands hold 80 % of them). Right: DPO's loss is flat, to {max(losses) - min(losses):.0e}, "
              "in what it was not shown; the RLHF objective is not.")

# %% [markdown]
# ## Labels without doubt: an answer that always wins

# %%
def ipo_loss(logps: Tensor, shares: Tensor, beta: float) -> Tensor:
    """IPO (Azar et al. 2023): the log-ratios of a pair shall differ by 1 / (2 beta), and by no more."""
    log_ratios = logps - REF
    return (shares * (log_ratios[:, None] - log_ratios - 1 / (2 * beta)).square()).sum()


certain = REF.exp()[:, None] * REF.exp() * (REWARD[:, None] > REWARD)   # the better one wins, always
certain = certain / certain.sum()
steps = lesson.pick(10_000, 20)
drift = {}
for name, loss_of, beta, lr in (("DPO, β = 0.1", expected_dpo_loss, 0.1, 0.05), ("DPO, β = 1", expected_dpo_loss, 1.0, 0.05),
                                ("IPO, β = 0.1", ipo_loss, 0.1, 0.05), ("IPO, β = 1", ipo_loss, 1.0, 0.05)):
    theta = REF.clone().requires_grad_()
    optimizer, drift[name] = torch.optim.Adam([theta], lr=lr), []
    for _ in range(steps):
        logps = theta.log_softmax(0)
        apart = (logps - REF)[9] - (logps - REF)[5]   # best answer against worst, in nats
        drift[name].append((float(apart.detach()), float(kl(logps.detach(), REF))))
        optimizer.zero_grad()
        (loss_of(logps, certain, beta=beta)).backward()
        optimizer.step()
for name, key in zip(drift, ("dpo_low", "dpo_high", "ipo_low", "ipo_high"), strict=True):
    lesson.number(f"{key}_tenth", drift[name][steps // 10 - 1][0], ".1f")
    lesson.number(f"{key}_apart", drift[name][-1][0], ".1f")
    lesson.number(f"{key}_kl", drift[name][-1][1], ".2f")
lesson.number("certain_steps", f"{steps:,}")

# %% [markdown]
# ## An optimum that cannot be reached
# One number only: log pi = log ref + w * place of the answer. Now the aim of each method decides where it stops.

# %%
widths = torch.linspace(-4, 16, 2001, dtype=torch.float64)
family = (REF + widths[:, None] * torch.linspace(0, 1, 10, dtype=torch.float64)).log_softmax(-1)
heights = objective(family)
rows, stops = [], {}
for name, scores in (("RLHF's objective (PPO)", heights),
                     ("KL(π* ‖ π)", -kl(star, family)),
                     ("DPO, pairs from the reference", -expected_dpo_loss(family, shares_of_pairs(REF))),
                     ("DPO, all answers alike", -expected_dpo_loss(family, shares_of_pairs(sources["all answers alike"]))),
                     ("DPO, pairs from π*", -expected_dpo_loss(family, shares_of_pairs(star)))):
    at = int(scores.argmax())
    stops[name] = at
    rows.append([name, f"{widths[at]:.2f}", f"{heights[at]:.3f}", f"{kl(family[at], star):.3f}",
                 f"{kl(star, family[at]):.3f}"])
lesson.table("unreachable", ["what is optimised", "w", "E[r] - β KL", "KL(π ‖ π*)", "KL(π* ‖ π)"], rows)
figure, (left, right) = lesson.panels(2, height=3.6)
for (name, path), colour, style in zip(drift.items(), (RED, RED, BLUE, BLUE), ("-", "--", "-", "--"), strict=True):
    left.plot(range(1, steps + 1), [apart for apart, _ in path], style, color=colour, label=name)
left.set(xscale="log", xlabel="step", ylabel="log-ratio, best minus worst, nats", title="The better answer always wins")
left.legend(loc="upper left")
right.plot(widths, heights, color="black")
for (name, at), colour, mark in zip(stops.items(), (BLUE, PINK, RED, ORANGE, GREEN), "oDs^v", strict=True):
    right.plot(float(widths[at]), float(heights[at]), mark, color=colour, markersize=8, label=name)
right.set(xlabel="w, the policy's only number", ylabel="E[r] - β KL", title="Where each method stops", ylim=(-0.2, 0.75))
right.legend(loc="lower right")
lesson.figure("apart", figure, f"Left: with labels that never err DPO's log-ratios still grow after {steps:,} steps, at "
              "either β; IPO's stand still. Right: when no policy of the family is π*, each aim has its own best one, and "
              "DPO's depends on where its pairs come from.")

# %% [markdown]
# ## Part 2: a language of four keys, small enough to write down
# A MiniGPT that can only type `(`, `)`, `x` and "end", and at most five tokens: 364 answers, cut ones included.

# %%
KEYS, LONGEST, PROMPT = "()x", 5, "?"
TINY = {"embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 8, "ff_dim": 64}


class FourKeys(MiniGPT):
    """MiniGPT with all other bytes switched off."""

    can_type = torch.zeros(256, dtype=torch.bool).index_fill_(0, torch.tensor([*encode(KEYS), EOS]), True)

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden).masked_fill(~self.can_type, -1e4)


def brackets(ids: list[int]) -> tuple[int, int]:
    """How many brackets of an answer are matched (pairs), and how many are loose."""
    open_now = pairs = loose = 0
    for byte in ids:
        if byte == ord("("):
            open_now += 1
        elif byte == ord(")") and open_now:
            open_now, pairs = open_now - 1, pairs + 1
        elif byte == ord(")"):
            loose += 1
    return pairs, loose + open_now


class BracketReward(RewardModel):
    """Stands where a reward model would, and knows the truth: 1 for each matched pair, -1/2 for each loose bracket."""

    def rewards(self, batch: Batch) -> Tensor:
        return torch.tensor([[pairs - 0.5 * loose]
                             for pairs, loose in map(brackets, batch.token_ids.tolist())])


answers = [[*encode("".join(keys)), EOS] for n in range(LONGEST) for keys in itertools.product(KEYS, repeat=n)]
answers += [encode("".join(keys)) for keys in itertools.product(KEYS, repeat=LONGEST)]   # those that are cut
everything = collate([Example(bytes(tokenize_prompt(PROMPT, 8)), (bytes(ids),)) for ids in answers])
features = torch.tensor([[*brackets(ids), ids[-1] != EOS] for ids in answers]).double()   # matched, loose, cut
true_reward = features @ torch.tensor([1.0, -0.5, -1.0], dtype=torch.float64)             # cut: the missing-EOS penalty
lesson.number("answers", str(len(answers)))


def logps_of_all(model: MiniGPT) -> Tensor:
    """log pi of every answer there is, with its gradient: (364,)."""
    return response_logps(model, everything)[:, 0].double()


def train_reference(seed: int) -> FourKeys:
    """An SFT model of random keys: of four keys each is pressed as often, and "end" is one of them."""
    generator = torch.Generator().manual_seed(seed)
    typed = torch.randint(0, 4, (lesson.pick(2500, 100), LONGEST - 1), generator=generator).tolist()
    texts = ["".join(KEYS[key] for key in itertools.takewhile(lambda key: key < 3, keys)) for keys in typed]
    torch.manual_seed(seed)
    return sft_train(FourKeys(**TINY), [{"prompt": PROMPT, "response": text} for text in texts if text], 2, lr=3e-3,
                     batch_size=32, seed=seed)[0]


# %%
steps, seeds = lesson.pick(480, 3), lesson.pick((0, 1, 2), (0, 1))
episodes, rollout = lesson.pick(60, 2), lesson.pick(256, 64)
sizes = lesson.pick((300, 3000, 30_000), (100, 200, 300))


class Languages:
    """One reference, its optimum, and policies trained to it in every way: KL(pi || pi*) over training by method."""

    def __init__(self, seed: int):
        self.seed, self.reference = seed, train_reference(seed)
        self.ref = ref = logps_of_all(self.reference).detach()
        self.target = (ref + true_reward / BETA).log_softmax(0)
        shares = shares_of_pairs(ref, true_reward)
        self.policies, self.pairs, self.gone = {}, {}, {}
        self.train("exact gradient", lambda logps: -(logps.exp() * (true_reward - BETA * (logps - ref))).sum())
        self.train("DPO, unlimited pairs", lambda logps: expected_dpo_loss(logps, shares, ref))
        self.train_by_ppo()
        for size in sizes:
            winners, losers = self.pairs[size] = draw_pairs(ref, true_reward, size, seed)
            self.train(f"DPO, {size:,} pairs", partial(self.loss_of_pairs, winners, losers))

    def loss_of_pairs(self, winners: Tensor, losers: Tensor, logps: Tensor) -> Tensor:
        return dpo_loss(logps[winners], logps[losers], self.ref[winners], self.ref[losers], BETA)[0]

    def distance(self, policy: MiniGPT) -> float:
        return float(kl(logps_of_all(policy).detach(), self.target))

    def train(self, method: str, loss_of: Callable[[Tensor], Tensor], lr: float = 4e-3) -> None:
        """Minimise a loss of the log-probabilities of all answers."""
        policy = copy.deepcopy(self.reference)
        optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        gone = self.gone[method] = []
        for _ in range(steps):
            logps = logps_of_all(policy)
            gone.append(float(kl(logps.detach(), self.target)))
            optimizer.zero_grad()
            loss_of(logps).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        gone.append(self.distance(policy))
        self.policies[method] = policy

    def train_by_ppo(self) -> None:
        """The library's loop, with the truth for a reward model."""
        policy = self.policies["PPO"] = copy.deepcopy(self.reference)
        gone = self.gone["PPO"] = [self.distance(policy)]
        torch.manual_seed(self.seed)
        ppo_training(policy, self.reference, BracketReward(**TINY), [PROMPT] * rollout, num_episodes=episodes, lr=3e-3,
                     kl_coeff=BETA, batch_size=rollout, minibatch_size=64, max_new_tokens=LONGEST, seed=self.seed,
                     measure=lambda *_: gone.append(self.distance(policy)) or {})


languages = [Languages(seed) for seed in seeds]
first = languages[0]
methods = list(first.gone)
runs = {(method, language.seed): language.gone[method] for language in languages for method in methods}
ref, target = first.ref, first.target
lesson.number("total", max(abs(float(each.ref.exp().sum()) - 1) for each in languages), ".0e")
lesson.number("language_start", [float(kl(each.ref, each.target)) for each in languages], ".2f")
lesson.number("language_reward_ref", [float(each.ref.exp() @ true_reward) for each in languages], ".2f")
lesson.number("language_reward_star", [float(each.target.exp() @ true_reward) for each in languages], ".2f")
lesson.number("language_kl_star", [float(kl(each.target, each.ref)) for each in languages], ".2f")
lesson.table("likeliest", ["answer", "reward", "reference", "π*"], [
    [f"`{decode(answers[k])}`" if decode(answers[k]) else "(nothing)", f"{true_reward[k]:g}", f"{ref[k].exp():.4f}",
     f"{target[k].exp():.4f}"] for k in target.exp().topk(5).indices.tolist()])
rows = []
for number, method in enumerate(methods):
    gone = [each.gone[method] for each in languages]
    at_end, at_best = [path[-1] for path in gone], [min(path) for path in gone]
    moments = [round(path.index(min(path)) * steps / (len(path) - 1)) for path in gone]
    lesson.number(f"end_{number}", at_end)
    lesson.number(f"best_{number}", at_best)
    rows.append([method, spread(at_end), spread(at_best), ", ".join(map(str, moments))])
lesson.table("language", ["method", "KL(π ‖ π*) at the end", "at its best moment", "which came at step"], rows)

figure, (left, right) = lesson.panels(2, height=3.6)
for axis, shown, colours in ((left, methods[:3], (BLUE, GREEN, RED)), (right, methods[3:], (ORANGE, PINK, SKY))):
    for method, colour in zip(shown, colours, strict=False):
        for seed in seeds:
            gone = runs[method, seed]
            axis.plot([step * steps / (len(gone) - 1) for step in range(len(gone))], gone, color=colour, alpha=0.7,
                      linewidth=1.3, label=method if seed == 0 else None)
    axis.set(yscale="log", xlabel="optimizer step", ylim=(4e-4, 12))
left.set(ylabel="KL(π ‖ π*), nats", title="The true reward, or pairs without end")
right.set(ylabel="KL(π ‖ π*), nats", title="A fixed set of pairs")
left.legend(loc="upper right")
right.legend(loc="lower left")
ends = {method: sum(runs[method, seed][-1] for seed in seeds) / len(seeds) for method in methods}
lesson.figure("language", figure, f"All {len(answers)} answers enumerated, three seeds. Left: exact gradient, PPO and DPO "
              f"come within {max(ends[method] for method in methods[:3]):.3f} nats of π*. Right: on fixed pairs DPO comes "
              f"near and, where they are few, leaves again ({sizes[0]} pairs: {ends[methods[3]]:.2f} nats at the end).")

# %% [markdown]
# ## The same pairs, another class of rewards
# What a reward model may gain: three numbers are easier to learn than 364, or than a network.

# %%
def tilt_by_fitted_reward(ref: Tensor, pairs: tuple[Tensor, Tensor], inputs: Tensor) -> Tensor:
    """Stage one: fit reward = inputs @ weights to the pairs. Stage two, exactly: tilt the reference by it."""
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(lesson.pick(600, 3)):
        rewards = inputs @ weights
        loss, _ = bradley_terry_loss(rewards[pairs[0]], rewards[pairs[1]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (ref + (inputs @ weights).detach() / BETA).log_softmax(0)


rows = []
for number, size in enumerate(sizes):
    cells = {"three": [], "table": []}
    for each in languages:
        for kind, inputs in (("three", features), ("table", torch.eye(len(answers), dtype=torch.float64))):
            cells[kind].append(float(kl(tilt_by_fitted_reward(each.ref, each.pairs[size], inputs), each.target)))
    direct = [each.gone[f"DPO, {size:,} pairs"] for each in languages]
    lesson.number(f"three_{number}", cells["three"], ".4f")
    lesson.number(f"table_{number}", cells["table"], ".2f")
    rows.append([f"{size:,}", spread(cells["three"], ".4f"), spread(cells["table"]), spread([gone[-1] for gone in direct]),
                 spread([min(gone) for gone in direct])])
lesson.table("classes", ["pairs", "reward of 3 numbers, then tilt", f"reward of {len(answers)} numbers, then tilt",
                         "DPO on MiniGPT, at the end", "DPO on MiniGPT, at its best moment"], rows)

# %% [markdown]
# ## The estimators of KL, in expectation

# %%
models = first.policies["PPO"], first.reference
with torch.no_grad():
    mask = everything.response_mask
    new, old = (token_logps(model, everything) for model in models)
    heads = [response_logits(model, everything) for model in models]
    exact = place(exact_kl(*heads), mask)
    probability = logps_of_all(models[0]).exp()
enumerated = float(kl(probability.log(), ref))
rows = [["enumerated", f"{enumerated:.4f}", "-"]]
for name, each in (("`kl_k1`", kl_k1(new, old)), ("`kl_k2`", kl_k2(new, old)), ("`kl_k3`", kl_k3(new, old)),
                   ("`exact_kl`", exact)):
    sums = (each * mask).sum(1).double()                        # of one answer
    mean = float(probability @ sums)
    rows.append([name, f"{mean:.4f}", f"{float(probability @ (sums - mean).square()) ** 0.5:.3f}"])
    lesson.number(f"error_{name.strip('`')}", abs(mean - enumerated), ".0e" if name != "`kl_k2`" else ".3f")
lesson.table("estimators", ["sum over the tokens of an answer", "mean over π (exact)", "spread of one answer"], rows)

# %% [markdown]
# ## What the network says of answers that it never saw; and best-of-n, exactly

# %%
drawn = torch.cat(first.pairs[sizes[0]]).bincount(minlength=len(answers))
learned = logps_of_all(first.policies[f"DPO, {sizes[0]:,} pairs"]).detach() - ref
wanted = true_reward / BETA - torch.logsumexp(ref + true_reward / BETA, 0)   # log pi*/ref
never, seen = drawn == 0, drawn > 0
lesson.number("never_drawn", str(int(never.sum())))
for name, which in (("seen", seen), ("never", never)):
    lesson.number(f"correlation_{name}", float(torch.corrcoef(torch.stack([wanted[which], learned[which]]))[0, 1]), ".2f")
lesson.number("error_seen", float((learned - wanted)[seen].abs().mean()), ".2f")
lesson.number("error_never", float((learned - wanted)[never].abs().mean()), ".2f")
numbers = [2**k for k in range(lesson.pick(13, 4))]
true_kls = {"the bandit": [float(kl(best_of_n(REF, REWARD, n), REF)) for n in numbers],
            "brackets": [float(kl(best_of_n(ref, true_reward, n), ref)) for n in numbers]}
formula = [math.log(n) - (n - 1) / n for n in numbers]
at = lesson.pick(6, 3)   # n = 64
lesson.number("bon_n", str(numbers[at]))
lesson.number("bon_formula", formula[at], ".2f")
lesson.number("bon_bandit", true_kls["the bandit"][at], ".2f")
lesson.number("bon_brackets", true_kls["brackets"][at], ".2f")
figure, (left, right) = lesson.panels(2, height=3.6)
left.plot(wanted[seen], learned[seen], ".", color=BLUE, alpha=0.6, label="in the pairs")
left.plot(wanted[never], learned[never], "x", color=RED, markersize=6, label="in no pair")
ends = [float(wanted.min()), float(wanted.max())]
left.plot(ends, ends, ":", color="black", linewidth=1)
left.set(xlabel="log π*/ref, nats", ylabel="log π/ref learned, nats", title=f"DPO on {sizes[0]:,} pairs, answer by answer")
left.legend(loc="lower right")
right.plot(numbers, formula, ":", color="black", label="log n - (n - 1)/n")
for (name, values), colour in zip(true_kls.items(), (BLUE, ORANGE), strict=True):
    right.plot(numbers, values, "o-", color=colour, markersize=4, label=name)
right.set(xscale="log", xlabel="n", ylabel="KL(best of n ‖ ref), nats", title="Best-of-n, exactly")
right.legend(loc="upper left")
lesson.figure("unseen", figure, f"Left: the network also moves the {int(never.sum())} answers that no pair contains, by "
              "what it learned from others (dotted: the target). Right: the formula in common use is an upper bound, "
              "and where answers repeat or tie, the KL stops growing.")

# %% [markdown]
# ## The whole of it

# %%
figure, axis = lesson.panels(height=3.8)
figure.set_size_inches(8.2, 3.8)
draw_pipeline(axis, {
    "known": Box(0, 1, "reference, and the\nreward of all answers", "frozen"),
    "star": Box(1.25, 0, "π* in closed form", "data"), "pairs": Box(1.25, 1, "pairs, labelled", "data"),
    "scored": Box(1.25, 2, "the policy's answers,\nscored", "data"),
    "policy": Box(2.5, 1.5, "policy", "trained"), "gap": Box(2.5, 0, "KL(π ‖ π*)", "data"),
}, [("known", "star", "tilt"), ("known", "pairs", "sample, label"), ("known", "scored", "score"), ("pairs", "policy", "DPO"),
    ("scored", "policy", "PPO"), ("star", "gap", ""), ("policy", "gap", "all answers")])
lesson.figure("pipeline", figure, "Two models in memory (PPO keeps a value function as well). The reward is a table, and so "
              "is the optimum that every method is held to.")
lesson.done()
