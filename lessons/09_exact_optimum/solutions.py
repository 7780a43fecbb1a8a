# %% [markdown]
# # 9. The exact optimum: the exercises, worked
# Predict first, then run: `python -m lessons 09 --solutions`.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor

from dpo import dpo_loss
from lessons.course import Lesson, spread

lesson = Lesson("09_exact_optimum", "solutions")
BETA = 0.5
REF = torch.tensor([.25, .20, .15, .12, .09, .07, .05, .035, .025, .01], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 0.5, -0.5, 1.0, 0.2, -1.0, 1.5, 0.8, 2.0, 2.5], dtype=torch.float64)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).where(p.exp() > 0, 0.0).sum(-1)   # 0 log 0 = 0


def optimum(reward: Tensor = REWARD, beta: float = BETA, ref: Tensor = REF) -> Tensor:
    return (ref + reward / beta).log_softmax(-1)


star = optimum()

# %% [markdown]
# ## 1. Twice the price
# For a slight tilt KL is Var(r) / (2 beta^2) and the gain Var(r) / beta: a quarter, and a half.

# %%
variance = float(REF.exp() @ REWARD.square() - (REF.exp() @ REWARD).square())
rows = []
for beta in (0.5, 1.0, 2.0, 4.0, 8.0):
    pi = optimum(beta=beta)
    rows.append([f"{beta:g}", f"{kl(pi, REF):.4f}", f"{variance / (2 * beta**2):.4f}",
                 f"{pi.exp() @ REWARD - REF.exp() @ REWARD:.4f}", f"{variance / beta:.4f}"])
    lesson.number(f"kl_at_{beta:g}", float(kl(pi, REF)), ".4f")
    lesson.number(f"gain_at_{beta:g}", float(pi.exp() @ REWARD - REF.exp() @ REWARD))
lesson.table("double", ["β", "KL", "Var(r) / (2β²)", "gain in reward", "Var(r) / β"], rows,
             title="The optimum at each beta, and the rule of thumb")

# %% [markdown]
# ## 2. Five more for every answer
# The optimum stays; beta log Z grows by five; the gradient from samples gets noise unless a
# baseline takes it away.

# %%
more = REWARD + 5
lesson.number("shift_moves", float((optimum(more) - star).abs().max()), ".0e")
values = [float(BETA * torch.logsumexp(REF + reward / BETA, 0)) for reward in (REWARD, more)]
lesson.number("shift_of_value", values[1] - values[0])


def gradient_noise(reward: Tensor, baseline: float, batch: int = 256, draws: int = 2000) -> float:
    """Root mean square distance of the gradient of one batch from its mean, at the reference."""
    generator = torch.Generator().manual_seed(0)
    count = batch * lesson.pick(draws, 20)
    answers = torch.multinomial(REF.exp(), count, True, generator=generator).view(-1, batch)
    scores = F.one_hot(answers, 10) - REF.exp()                     # grad log pi(y) of softmax
    gradients = (scores * (reward[answers] - baseline)[..., None]).mean(1)       # (draws, 10)
    return float((gradients - gradients.mean(0)).square().sum(1).mean().sqrt())


mean = float(REF.exp() @ REWARD)
lesson.number("noise_before", gradient_noise(REWARD, 0.0), ".4f")
lesson.number("noise_shifted", gradient_noise(more, 0.0), ".4f")
lesson.number("noise_baseline", gradient_noise(more, mean + 5), ".4f")

# %% [markdown]
# ## 3. An answer that the reference cannot give
# Take j, the best answer, away from the reference: a little at a time, then altogether.

# %%
rows = []
for chance in (1e-2, 1e-4, 1e-8, 1e-16, 0.0):
    p = REF.exp().clone()
    p[9] = chance
    ref = (p / p.sum()).log()
    pi = optimum(ref=ref)
    rows.append([f"{chance:g}", f"{pi[9].exp():.2g}", f"{kl(pi, ref):.3f}",
                 f"{BETA * torch.logsumexp(ref + REWARD / BETA, 0):.3f}"])
lesson.table("zero", ["ref(j)", "π*(j)", "KL(π* ‖ ref)", "β log Z"], rows,
             title="The best answer, made ever rarer in the reference")
policy = REF.clone().requires_grad_()
won, _ = dpo_loss(policy[9:], policy[:1], ref[9:], ref[:1], BETA)    # from elsewhere: j beats a
lost, _ = dpo_loss(policy[:1], policy[9:], ref[:1], ref[9:], BETA)   # and the other way round
won.backward()
lesson.number("zero_won", f"{abs(won.item()):g}")
lesson.number("zero_gradient", f"{policy.grad.abs().max():g}")
lesson.number("zero_lost", f"{lost.item():g}")

# %% [markdown]
# ## 4. How many pairs until KL(pi || pi*) is below 0.01?

# %%
def shares_of_pairs(source: Tensor) -> Tensor:
    shares = source.exp()[:, None] * source.exp() * torch.sigmoid(REWARD[:, None] - REWARD)
    shares.fill_diagonal_(0)
    return shares / shares.sum()


def pairs_needed(source: Tensor, beta: float, kl_wanted: float = 0.01) -> int:
    """From E KL = tr(S H+) / (2 beta^2 N), a formula of the article."""
    shares = shares_of_pairs(source)
    chance = torch.sigmoid(REWARD[:, None] - REWARD)
    weights = (shares + shares.T) * chance * (1 - chance)
    information = torch.diag(weights.sum(1)) - weights
    pi = optimum(beta=beta).exp()
    variances = torch.diag(pi) - pi[:, None] * pi
    trace = float(torch.trace(variances @ torch.linalg.pinv(information)))
    return round(trace / (2 * beta**2 * kl_wanted))


def draw_wins(source: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Wins (10, 10) of `count` pairs of different answers from `source`."""
    drawn = torch.multinomial(shares_of_pairs(source).flatten(), count, True, generator=generator)
    return torch.bincount(drawn, minlength=100).view(10, 10).double()


def dpo(wins: Tensor, beta: float = BETA) -> Tensor:
    """Full-batch DPO from the reference on each of S sets of wins: (S, 10, 10) -> (S, 10)."""
    theta = REF.expand(wins.shape[:-1]).clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.05)
    for _ in range(lesson.pick(1000, 5)):
        rewards = beta * (theta.log_softmax(-1) - REF)
        margins = rewards[..., :, None] - rewards[..., None, :]
        loss = -(wins * F.logsigmoid(margins)).sum() / wins[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return theta.detach().log_softmax(-1)


many = range(lesson.pick(40, 2))
even = torch.full_like(REF, 0.1).log()
rows = []
for name, source, beta in (("the reference", REF, 0.5), ("all answers alike", even, 0.5),
                           ("the reference", REF, 1.0)):
    needed = pairs_needed(source, beta)
    count = lesson.pick(needed, 100)
    wins = torch.stack([draw_wins(source, count, torch.Generator().manual_seed(seed))
                        for seed in many])
    reached = kl(dpo(wins, beta), optimum(beta=beta)).tolist()
    rows.append([name, f"{beta:g}", f"{needed:,}", spread(reached, ".4f")])
lesson.number("needed_ref", rows[0][2])
lesson.number("needed_even", rows[1][2])
lesson.number("needed_beta_1", rows[2][2])
lesson.table("needed", ["pairs from", "β", "pairs needed, by the formula",
                        "KL(π ‖ π*) with that many"], rows, title="Pairs for a KL of 0.01")

# %% [markdown]
# ## 5. The same number of pairs, from the policy as it learns
# Rounds: DPO on all pairs so far, then new pairs from the policy that came out.

# %%
total = lesson.pick(3000, 60)
rows, ends = [], {}
for rounds in (1, 3, 10):
    generators = [torch.Generator().manual_seed(seed) for seed in many]
    policies = REF.expand(len(many), 10)
    wins = torch.zeros(len(many), 10, 10, dtype=torch.float64)
    for _ in range(rounds):
        wins = wins + torch.stack([
            draw_wins(policy, total // rounds, generator)
            for policy, generator in zip(policies, generators, strict=True)])
        policies = dpo(wins)
    ends[rounds] = kl(policies, star).tolist()
    with_j = float((wins[:, 9].sum(-1) + wins[:, :, 9].sum(-1)).mean())
    rows.append([str(rounds), spread(ends[rounds], ".4f"), f"{with_j:.0f}"])
lesson.number("one_round", ends[1], ".3f")
lesson.number("ten_rounds", ends[10], ".3f")
lesson.number("total_pairs", f"{total:,}")
lesson.number("many_solutions", str(len(many)))
lesson.table("rounds", ["rounds", "KL(π ‖ π*)", "pairs that contain j, the best"], rows,
             title=f"{total:,} pairs in all")
lesson.done()
