# %% [markdown]
# # 9. The exact optimum: what the article's numbers come from
# Part 1 is a bandit of ten answers, part 2 a language of 364. Everything is exact where it can be;
# what is sampled is repeated over five seeds, and pairs of the bandit over twenty.

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
from lessons.course import Lesson
from minigpt import EOS, MiniGPT, decode, encode
from minigpt.batching import Batch, collate
from minigpt.examples import Example, tokenize_prompt
from minigpt.kl import exact_kl, kl_k1, kl_k2, kl_k3
from minigpt.logprobs import place, response_logits, response_logps, token_logps
from ppo import gae, ppo_loss, ppo_training
from ppo.advantages import whiten
from reward import RewardModel
from reward.loss import bradley_terry_loss
from sft.train import sft_train

lesson = Lesson("09_exact_optimum", "experiments")
BETA = 0.5
REF = torch.tensor([.25, .20, .15, .12, .09, .07, .05, .035, .025, .01], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 0.5, -0.5, 1.0, 0.2, -1.0, 1.5, 0.8, 2.0, 2.5], dtype=torch.float64)
EVEN = torch.full_like(REF, 0.1).log()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities (..., answers)."""
    return (p.exp() * (p - q)).sum(-1)


def short(values) -> list[float]:
    """To five digits, which is all that a figure shows."""
    return [float(f"{float(value):.5g}") for value in values]


def objective(logps: Tensor, beta: float = BETA) -> Tensor:
    """What RLHF maximises: E[r] - beta KL(pi || ref)."""
    return (logps.exp() * (REWARD - beta * (logps - REF))).sum(-1)


def optimum(beta: float = BETA) -> Tensor:
    """log pi*: the reference, tilted by the reward."""
    return (REF + REWARD / beta).log_softmax(-1)


def best_of_n(ref: Tensor, reward: Tensor, n: int) -> Tensor:
    """log-probabilities of the best of n samples of the reference; ties are drawn by lot."""
    p = ref.exp()
    up_to = (p * (reward <= reward[:, None])).sum(-1)   # F(r): the share of no better answers
    below = (p * (reward < reward[:, None])).sum(-1)    # F(r-): the share of worse ones
    best = p / (up_to - below) * (up_to**n - below.clamp_min(0)**n)
    return best.clamp_min(1e-300).log()


star = optimum()
value = BETA * torch.logsumexp(REF + REWARD / BETA, 0)   # beta log Z
torch.manual_seed(0)
errors = []
for _ in range(1000):   # J(pi) = beta log Z - beta KL(pi || pi*) for any pi, not only near pi*
    pi = (3 * torch.randn(10, dtype=torch.float64)).log_softmax(0)
    errors.append(abs(float(objective(pi) - (value - BETA * kl(pi, star)))))
lesson.keep("bandit", {"beta": BETA, "kl_star": float(kl(star, REF)), "value": float(value),
                       "objective": float(objective(star)), "start_kl": float(kl(REF, star)),
                       "reward_ref": float(REF.exp() @ REWARD),
                       "reward_star": float(star.exp() @ REWARD), "gibbs_error": max(errors)})

# %% [markdown]
# ## Three ways there
# Exact gradient ascent, DPO with unlimited data, PPO with samples.

# %%
def exact_ascent(steps: int, lr: float = 1.0) -> list[float]:
    theta, distances = REF.clone().requires_grad_(), []
    for _ in range(steps):
        logps = theta.log_softmax(0)
        distances.append(float(kl(logps.detach(), star)))
        theta.data += lr * torch.autograd.grad(objective(logps), theta)[0]
    return distances


def expected_dpo_loss(logps: Tensor, shares: Tensor, ref: Tensor = REF,
                      beta: float = BETA) -> Tensor:
    """dpo_loss over all pairs; shares (..., Y, Y): how often the row's answer beats the other."""
    rewards = beta * (logps - ref)                                  # implicit rewards
    margins = rewards[..., :, None] - rewards[..., None, :]
    return -(shares * F.logsigmoid(margins)).sum((-1, -2))


def shares_of_pairs(source: Tensor, reward: Tensor = REWARD) -> Tensor:
    """The share of each (winner, loser) among Bradley-Terry's pairs of answers from `source`."""
    shares = source.exp()[:, None] * source.exp() * torch.sigmoid(reward[:, None] - reward)
    shares.fill_diagonal_(0)
    return shares / shares.sum()


def dpo_descent(shares: Tensor, steps: int, lr: float = 0.05,
                beta: float = BETA) -> tuple[Tensor, list[Tensor]]:
    """Full-batch DPO from the reference, on one data set or on several at once (S, 10, 10)."""
    theta = REF.expand(shares.shape[:-1]).clone().requires_grad_()
    optimizer, distances = torch.optim.Adam([theta], lr=lr), []
    for _ in range(steps):
        logps = theta.log_softmax(-1)
        distances.append(kl(logps.detach(), optimum(beta)))
        optimizer.zero_grad()
        expected_dpo_loss(logps, shares, beta=beta).sum().backward()
        optimizer.step()
    return theta.detach().log_softmax(-1), distances


def ppo_ascent(seed: int, rollouts: int, beta: float = BETA, whitened: bool = False,
               decay: bool = False, lr: float = 1.0, passes: int = 4, clip: float = 0.2,
               batch: int = 256) -> tuple[Tensor, list[float]]:
    """The library's gae and ppo_loss; an answer is one token, the baseline the last mean return."""
    generator = torch.Generator().manual_seed(seed)
    theta, mask = REF.clone().requires_grad_(), torch.ones(batch, 1, dtype=torch.bool)
    baseline, distances = 0.0, []
    for rollout in range(rollouts):
        old = theta.detach().log_softmax(0)
        distances.append(float(kl(old, optimum(beta))))
        answers = torch.multinomial(old.exp(), batch, True, generator=generator)
        rewards = (REWARD - beta * (old - REF))[answers][:, None]                   # (B, 1)
        advantages, returns = gae(rewards, torch.full_like(rewards, baseline), mask)
        baseline = float(returns.mean())
        if whitened:
            advantages = whiten(advantages, mask)
        rate = lr * (1 - rollout / rollouts) if decay else lr
        for _ in range(passes):
            new = theta.log_softmax(0)[answers][:, None]
            loss, _ = ppo_loss(new, old[answers][:, None], advantages, mask, clip)
            theta.data -= rate * torch.autograd.grad(loss, theta)[0]
    return theta.detach().log_softmax(0), distances


# %%
steps, seeds = lesson.pick(3000, 20), range(lesson.pick(5, 2))
rollouts = lesson.pick(300, 4)
exact = exact_ascent(steps)
reached, path = dpo_descent(shares_of_pairs(REF), lesson.pick(1500, 20))
lesson.keep("exact", {"100": exact[min(100, steps - 1)], "end": exact[-1], "steps": steps})
lesson.keep("dpo_infinite_error", float((reached - star).abs().max()))

winners, losers = torch.tensor([(i, j) for i in range(10) for j in range(10) if i != j]).T
pi = torch.randn(10, dtype=torch.float64).log_softmax(0)
by_library, _ = dpo_loss(pi[winners], pi[losers], REF[winners], REF[losers], BETA)
by_sum = expected_dpo_loss(pi, (1 - torch.eye(10, dtype=torch.float64)) / 90)
assert abs(by_library - by_sum) < 1e-12, "the sum over all pairs must be the library's loss"

KINDS = {"plain": {}, "whitened": {"whitened": True}, "decayed": {"whitened": True, "decay": True}}
lesson.keep("ppo_paths", {kind: [short(ppo_ascent(seed, rollouts, **options)[1]) for seed in seeds]
                          for kind, options in lesson.progress(KINDS.items(), "PPO")})
lesson.keep("clip", {
    name: [ppo_ascent(seed, lesson.pick(100, 3), lr=3.0, passes=16, clip=clip)[1][-1]
           for seed in seeds]
    for name, clip in (("0.05", 0.05), ("0.2", 0.2), ("none", 1e9))})

# %% [markdown]
# ## The frontier: all betas at once

# %%
def on_the_plane(pi: Tensor) -> list[float]:
    """KL from the reference, and expected reward."""
    return [float(kl(pi, REF)), float(pi.exp() @ REWARD)]


tilted = [optimum(float(beta)) for beta in torch.logspace(1.5, -1.5, 2000, dtype=torch.float64)]
frontier = [on_the_plane(pi) for pi in tilted]
points = {"reference": [*on_the_plane(REF), None]}
for beta in (2.0, BETA, 0.2):
    by_dpo, _ = dpo_descent(shares_of_pairs(REF), lesson.pick(1500, 20), beta=beta)
    by_ppo, _ = ppo_ascent(0, rollouts, beta)
    for name, pi in (("π*", optimum(beta)), ("DPO", by_dpo), ("PPO", by_ppo)):
        points[f"{name}, β = {beta:g}"] = [*on_the_plane(pi), abs(float(kl(pi, optimum(beta))))]
gaps = []   # how far best-of-n is below the frontier at its own KL
for n in (2, 4, 16, 64):
    pi = best_of_n(REF, REWARD, n)
    points[f"best of {n}"] = [*on_the_plane(pi), None]
    nearest = min(frontier, key=lambda point: abs(point[0] - float(kl(pi, REF))))
    gaps.append(nearest[1] - float(pi.exp() @ REWARD))
lesson.keep("frontier", [short(point) for point in frontier[::20]])
lesson.keep("points", points)
lesson.keep("bon_gap", max(gaps))

# %% [markdown]
# ## Finite pairs: how far DPO stays from the optimum

# %%
def draw_pairs(source: Tensor, reward: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Winners and losers of `count` pairs, drawn from what `shares_of_pairs` says."""
    shares = shares_of_pairs(source, reward).flatten()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(shares, count, True, generator=generator)
    return drawn // len(source), drawn % len(source)


def counted(pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Shares (10, 10) of the pairs in which the row's answer beat the column's."""
    winners, losers = pairs
    wins = torch.bincount(10 * winners + losers, minlength=100).view(10, 10)
    return wins.double() / len(winners)


def expected_kl_times_pairs(source: Tensor, beta: float = BETA) -> float:
    """N times the mean KL(pi || pi*) after DPO on N pairs, for large N: tr(S H+) / (2 beta^2)."""
    shares = shares_of_pairs(source)
    pairs = shares + shares.T                               # the share of each unordered pair
    chance = torch.sigmoid(REWARD[:, None] - REWARD)
    weights = pairs * chance * (1 - chance)
    information = torch.diag(weights.sum(1)) - weights      # H: what one pair says of the rewards
    pi = optimum(beta).exp()
    variances = torch.diag(pi) - pi[:, None] * pi           # S: of the answers, under pi*
    return float(torch.trace(variances @ torch.linalg.pinv(information))) / (2 * beta**2)


def has_an_optimum(shares: Tensor) -> bool:
    """Does every answer, over some chain of wins, beat every other?

    Only then is there a finite maximum of the likelihood.
    """
    beats = ((shares > 0) | torch.eye(10, dtype=torch.bool)).double()
    for _ in range(4):
        beats = (beats @ beats > 0).double()
    return bool(beats.all())


counts = lesson.pick((100, 300, 1000, 3000, 10_000, 30_000, 100_000), (100, 300))
many = range(lesson.pick(20, 2))
finite = {}
for name, source in {"the reference": REF, "all answers alike": EVEN}.items():
    for count in lesson.progress(counts, f"pairs from {name}"):
        shares = torch.stack([counted(draw_pairs(source, REWARD, count, seed)) for seed in many])
        _, path = dpo_descent(shares, lesson.pick(1000, 5))
        finite.setdefault(name, {})[str(count)] = {
            "end": short(path[-1]), "best": short(torch.stack(path).amin(0)),
            "theory": expected_kl_times_pairs(source) / count,
            "exists": sum(map(has_an_optimum, shares)) / len(many)}
lesson.keep("finite", finite)

# %% [markdown]
# ## DPO is the two stages in one: fit a reward to the same pairs, then tilt

# %%
def minimise(loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The ten numbers at which a loss is least, to the last digits."""
    numbers = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=lesson.pick(500, 3), tolerance_grad=1e-12,
                                  tolerance_change=0, line_search_fn="strong_wolfe")

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
lesson.keep("two_stage_difference", float((direct - staged).abs().max()))

# %% [markdown]
# ## Coverage: two answers that no pair contains

# %%
shares = shares_of_pairs(REF)
shares[8:] = shares[:, 8:] = 0
shares = shares / shares.sum()
uncovered, _ = dpo_descent(shares, lesson.pick(1500, 20))
pushed = []
for push in torch.linspace(-4, 8, 121).tolist():   # add `push` to the logits of the two
    logps = (uncovered + torch.tensor([0.0] * 8 + [push] * 2)).log_softmax(0)
    pushed.append([float(logps[8:].exp().sum()), float(expected_dpo_loss(logps, shares)),
                   float(objective(logps))])
lesson.keep("uncovered", {
    "log_ratios": (uncovered - REF)[8:].tolist(), "star_log_ratios": (star - REF)[8:].tolist(),
    "share": float(uncovered[8:].exp().sum()), "star_share": float(star[8:].exp().sum()),
    "ref_share": float(REF[8:].exp().sum()), "pushed": pushed})

# %% [markdown]
# ## Labels that never err: the better answer always wins

# %%
def ipo_loss(logps: Tensor, shares: Tensor, beta: float) -> Tensor:
    """IPO (Azar et al. 2023): the log-ratios of a pair differ by 1 / (2 beta), and by no more."""
    log_ratios = logps - REF
    return (shares * (log_ratios[:, None] - log_ratios - 1 / (2 * beta)).square()).sum()


certain = REF.exp()[:, None] * REF.exp() * (REWARD[:, None] > REWARD)
certain = certain / certain.sum()
certain_steps, drift = lesson.pick(3000, 20), {}
for name, loss_of in (("DPO", expected_dpo_loss), ("IPO", ipo_loss)):
    for beta in (0.1, 1.0):
        theta = REF.clone().requires_grad_()
        optimizer, apart = torch.optim.Adam([theta], lr=0.05), []
        for _ in range(certain_steps):
            logps = theta.log_softmax(0)
            log_ratios = (logps - REF).detach()
            apart.append(float(log_ratios[9] - log_ratios[5]))   # best answer against worst
            optimizer.zero_grad()
            loss_of(logps, certain, beta=beta).backward()
            optimizer.step()
        drift[f"{name}, β = {beta:g}"] = short(apart[9::10])     # every tenth step
lesson.keep("certain", drift)

# %% [markdown]
# ## An optimum out of reach
# One number only: log pi = log ref + w * place of the answer. Each aim has its own best w.

# %%
widths = torch.linspace(-4, 16, 2001, dtype=torch.float64)
places = torch.linspace(0, 1, 10, dtype=torch.float64)
family = (REF + widths[:, None] * places).log_softmax(-1)
AIMS = {"RLHF's objective (PPO)": objective(family), "KL(π* ‖ π)": -kl(star, family),
        "DPO, pairs from the reference": -expected_dpo_loss(family, shares_of_pairs(REF)),
        "DPO, all answers alike": -expected_dpo_loss(family, shares_of_pairs(EVEN)),
        "DPO, pairs from π*": -expected_dpo_loss(family, shares_of_pairs(star))}
stops = {}
for name, scores in AIMS.items():
    at = int(scores.argmax())
    stops[name] = [float(widths[at]), float(objective(family[at])),
                   float(kl(family[at], star)), float(kl(star, family[at]))]
lesson.keep("unreachable", stops)
lesson.keep("family", [short(widths[::20]), short(objective(family)[::20])])

# %% [markdown]
# ## Part 2: a language of four keys, small enough to write down
# A MiniGPT that can only type `(`, `)`, `x` and "end", and at most five tokens: 364 answers, cut
# ones included.

# %%
KEYS, LONGEST, PROMPT = "()x", 5, "?"
TINY = {"embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 8, "ff_dim": 64}


class FourKeys(MiniGPT):
    """MiniGPT with all other bytes switched off."""

    keys = torch.tensor([*encode(KEYS), EOS])
    can_type = torch.zeros(256, dtype=torch.bool).index_fill_(0, keys, True)

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
    """In place of a reward model, the truth: 1 for each matched pair, -1/2 for a loose bracket."""

    def rewards(self, batch: Batch) -> Tensor:
        return torch.tensor([[pairs - 0.5 * loose]
                             for pairs, loose in map(brackets, batch.token_ids.tolist())])


answers = [[*encode("".join(keys)), EOS]
           for n in range(LONGEST) for keys in itertools.product(KEYS, repeat=n)]
answers += [encode("".join(keys)) for keys in itertools.product(KEYS, repeat=LONGEST)]   # cut
prompt = bytes(tokenize_prompt(PROMPT, 8))
everything = collate([Example(prompt, (bytes(ids),)) for ids in answers])
features = torch.tensor([[*brackets(ids), ids[-1] != EOS] for ids in answers]).double()
worth = torch.tensor([1.0, -0.5, -1.0], dtype=torch.float64)   # matched, loose, no end
true_reward = features @ worth


def logps_of_all(model: MiniGPT) -> Tensor:
    """log pi of every answer there is, with its gradient: (364,)."""
    return response_logps(model, everything)[:, 0].double()


def train_reference(seed: int) -> FourKeys:
    """An SFT model of random keys: of four keys each is pressed as often; "end" is one of them."""
    generator = torch.Generator().manual_seed(seed)
    typed = torch.randint(0, 4, (lesson.pick(2500, 100), LONGEST - 1), generator=generator)
    texts = ["".join(KEYS[key] for key in itertools.takewhile(lambda key: key < 3, keys))
             for keys in typed.tolist()]
    torch.manual_seed(seed)
    rows = [{"prompt": PROMPT, "response": text} for text in texts if text]
    return sft_train(FourKeys(**TINY), rows, 2, lr=3e-3, batch_size=32, seed=seed)[0]


# %%
steps, episodes = lesson.pick(300, 3), lesson.pick(45, 2)
sizes = lesson.pick((300, 3000, 30_000), (100, 200, 300))


class Language:
    """One reference, its optimum, and policies trained to it in every way.

    distances: method -> KL(pi || pi*) over training.
    """

    def __init__(self, seed: int):
        self.seed, self.reference = seed, train_reference(seed)
        self.ref = ref = logps_of_all(self.reference).detach()
        self.target = (ref + true_reward / BETA).log_softmax(0)
        shares = shares_of_pairs(ref, true_reward)
        self.policies, self.pairs, self.distances = {}, {}, {}
        self.train("exact gradient",
                   lambda logps: -(logps.exp() * (true_reward - BETA * (logps - ref))).sum())
        self.train("DPO, unlimited pairs", lambda logps: expected_dpo_loss(logps, shares, ref))
        self.train_by_ppo(lesson.pick(256, 64))
        for size in sizes:
            self.pairs[size] = draw_pairs(ref, true_reward, size, seed)
            self.train(f"DPO, {size:,} pairs", partial(self.loss_of_pairs, *self.pairs[size]))

    def loss_of_pairs(self, winners: Tensor, losers: Tensor, logps: Tensor) -> Tensor:
        ref = self.ref
        return dpo_loss(logps[winners], logps[losers], ref[winners], ref[losers], BETA)[0]

    def distance(self, policy: MiniGPT) -> float:
        return float(kl(logps_of_all(policy).detach(), self.target))

    def train(self, method: str, loss_of: Callable[[Tensor], Tensor], lr: float = 4e-3) -> None:
        """Minimise a loss of the log-probabilities of all answers."""
        policy = self.policies[method] = copy.deepcopy(self.reference)
        optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        path = self.distances[method] = []
        for _ in range(steps):
            logps = logps_of_all(policy)
            path.append(float(kl(logps.detach(), self.target)))
            optimizer.zero_grad()
            loss_of(logps).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        path.append(self.distance(policy))

    def train_by_ppo(self, rollout: int) -> None:
        """The library's loop, with the truth for a reward model."""
        policy = self.policies["PPO"] = copy.deepcopy(self.reference)
        path = self.distances["PPO"] = [self.distance(policy)]
        torch.manual_seed(self.seed)
        ppo_training(policy, self.reference, BracketReward(**TINY), [PROMPT] * rollout,
                     num_episodes=episodes, lr=3e-3, kl_coeff=BETA, batch_size=rollout,
                     samples_per_prompt=1, minibatch_size=64, max_new_tokens=LONGEST,
                     seed=self.seed, measure=lambda *_: path.append(self.distance(policy)) or {})


languages = [Language(seed) for seed in lesson.progress(seeds, "languages")]
first = languages[0]
lesson.keep("language", {
    "answers": len(answers), "steps": steps, "episodes": episodes,
    "off_one": max(abs(float(each.ref.exp().sum()) - 1) for each in languages),
    "start": [float(kl(each.ref, each.target)) for each in languages],
    "reward_ref": [float(each.ref.exp() @ true_reward) for each in languages],
    "reward_star": [float(each.target.exp() @ true_reward) for each in languages],
    "kl_star": [float(kl(each.target, each.ref)) for each in languages]})
lesson.keep("likeliest", [[decode(answers[k]), float(true_reward[k]), float(first.ref[k].exp()),
                           float(first.target[k].exp())]
                          for k in first.target.exp().topk(5).indices.tolist()])
lesson.keep("distances", {method: [short(each.distances[method]) for each in languages]
                          for method in first.distances})

# %% [markdown]
# ## The same pairs, another class of rewards
# What a reward model may gain: three numbers are easier to learn than 364, or than a network.

# %%
def tilt_by_fitted_reward(ref: Tensor, pairs: tuple[Tensor, Tensor], inputs: Tensor) -> Tensor:
    """Stage one: fit reward = inputs @ weights to the pairs. Stage two, exactly: tilt by it."""
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(lesson.pick(600, 3)):
        rewards = inputs @ weights
        loss, _ = bradley_terry_loss(rewards[pairs[0]], rewards[pairs[1]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (ref + (inputs @ weights).detach() / BETA).log_softmax(0)


table = torch.eye(len(answers), dtype=torch.float64)
lesson.keep("classes", {str(size): {
    kind: [float(kl(tilt_by_fitted_reward(each.ref, each.pairs[size], inputs), each.target))
           for each in languages]
    for kind, inputs in (("three", features), ("table", table))} for size in sizes})

# %% [markdown]
# ## The estimators of KL, in expectation; answers in no pair; best-of-n

# %%
models = first.policies["PPO"], first.reference
with torch.no_grad():
    mask = everything.response_mask
    new, old = (token_logps(model, everything) for model in models)
    exact = place(exact_kl(*(response_logits(model, everything) for model in models)), mask)
    pi = logps_of_all(models[0])
estimators = {}
for name, each in (("kl_k1", kl_k1(new, old)), ("kl_k2", kl_k2(new, old)),
                   ("kl_k3", kl_k3(new, old)), ("exact_kl", exact)):
    sums = (each * mask).sum(1).double()                        # of one answer
    mean = float(pi.exp() @ sums)
    estimators[name] = [mean, float(pi.exp() @ (sums - mean).square()) ** 0.5]
lesson.keep("estimators", {"enumerated": float(kl(pi, first.ref)), **estimators})

drawn = torch.cat(first.pairs[sizes[0]]).bincount(minlength=len(answers))
learned = logps_of_all(first.policies[f"DPO, {sizes[0]:,} pairs"]).detach() - first.ref
wanted = first.target - first.ref
lesson.keep("unseen", {name: {"answers": int(which.sum()), "correlation": float(
    torch.corrcoef(torch.stack([wanted[which], learned[which]]))[0, 1])}
    for name, which in (("never", drawn == 0), ("seen", drawn > 0))})
lesson.keep("best_of_64", {"formula": math.log(64) - 63 / 64,
                           "bandit": float(kl(best_of_n(REF, REWARD, 64), REF)),
                           "brackets": float(kl(best_of_n(first.ref, true_reward, 64), first.ref))})
lesson.done()
