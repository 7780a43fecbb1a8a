"""The limit: the best true reward that any policy can have at a given KL from the SFT model.

Among all policies, the one that maximises E[r] - beta KL(pi || ref) is the reference tilted by the reward,

    pi*(y|x) = ref(y|x) exp(r(x, y) / beta) / Z(x)                      (Rafailov et al. 2023, eq. 4)

so as beta runs from infinity to 0 it traces the frontier of reward over KL.  With n samples of the reference for a
prompt, each weighs w_i = exp(r_i / beta) / sum_j exp(r_j / beta), which gives both coordinates:

    reward = sum_i w_i r_i              KL = sum_i w_i log(n w_i) = E[r] / beta - log Z

With n samples no KL above log n can be seen; a policy further away is compared with the last point.
"""

import math

import torch
from torch import Tensor

BETAS = torch.logspace(2, -2, 200, dtype=torch.float64)  # from hardly any tilt to nearly the best sample alone


class Frontier:
    """Reward over KL, from true rewards of reference samples (P prompts, n samples).

    kls, rewards: (200,), means over prompts at each beta; start: the reference's own mean reward; bound: log n nats.
    """

    def __init__(self, rewards: Tensor):
        rewards = rewards.double()
        n = rewards.shape[1]
        log_weights = (rewards / BETAS[:, None, None]).log_softmax(-1)          # (200, P, n)
        weights = log_weights.exp()
        self.rewards = (weights * rewards).sum(-1).mean(-1)
        self.kls = (weights * (log_weights + math.log(n))).sum(-1).mean(-1)
        self.start, self.bound = float(rewards.mean()), math.log(n)

    def reward_at(self, kl: float) -> float:
        """The frontier's reward at this KL, between the two nearest points."""
        above = int((self.kls < kl).sum())
        if above == 0:
            return self.start
        if above == len(self.kls):
            return float(self.rewards[-1])
        left, right = above - 1, above
        share = (kl - self.kls[left]) / (self.kls[right] - self.kls[left])
        return float(self.rewards[left] + share * (self.rewards[right] - self.rewards[left]))

    def share_of_gain(self, reward: float, kl: float) -> float:
        """What a policy gained over the reference, relative to what was possible at its KL."""
        possible = self.reward_at(kl) - self.start
        return (reward - self.start) / possible if possible > 1e-6 else float("nan")


def best_of_n_kl(scores: Tensor, n: int) -> float:
    """KL from the reference of picking the best-scored of n samples, in nats, from one prompt's sample scores (N,).

    With F the distribution function of the scores, a score s is the best of n with probability F(s)^n - F(s-)^n.
    Where no two draws tie this is log n - (n - 1) / n; ties make it less (Beirami et al. 2024, arXiv:2401.01879).
    """
    _, counts = scores.cpu().unique(return_counts=True)
    p = counts.double() / counts.sum()
    up_to = p.cumsum(0)
    q = up_to**n - (up_to - p).clamp_min(0) ** n
    return float(torch.xlogy(q, q / p).sum())
