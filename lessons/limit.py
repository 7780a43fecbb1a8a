"""The limit: the best true reward that any policy can have at a given KL from the SFT model.

The policy that maximises E[r] - beta KL(pi || ref) is the reference tilted by the reward,

    pi*(y|x) = ref(y|x) exp(r(x, y) / beta) / Z(x)        (Rafailov et al. 2023, eq. 4)

so as beta falls from infinity to 0, it traces the frontier of reward over KL.  Given n samples from
the reference for a prompt, sample i has the weight w_i = exp(r_i / beta) / sum_j exp(r_j / beta),
and the two coordinates are

    reward = sum_i w_i r_i              KL = sum_i w_i log(n w_i) = E[r] / beta - log Z

n samples cannot show a KL above log n; a policy further away is compared with the last point.
"""

import math

import torch
from torch import Tensor

BETAS = torch.logspace(2, -2, 200, dtype=torch.float64)  # from hardly tilted to the best sample


class Frontier:
    """The best reward at each KL, given the true rewards (P, n) of n reference samples per prompt.

    kls, rewards: (200,), means over prompts at each beta.  starts: (P,) the reference's own mean
    reward for each prompt, and start, their mean.  bound: log n, in nats.
    """

    def __init__(self, rewards: Tensor):
        rewards = rewards.double()
        n = rewards.shape[1]
        log_weights = (rewards / BETAS[:, None, None]).log_softmax(-1)          # (200, P, n)
        weights = log_weights.exp()
        self.rewards = (weights * rewards).sum(-1).mean(-1)
        self.kls = (weights * (log_weights + math.log(n))).sum(-1).mean(-1)
        self.starts, self.bound = rewards.mean(-1), math.log(n)
        self.start = float(self.starts.mean())

    def reward_at(self, kl: float) -> float:
        """The best reward at this KL (in nats), interpolated between the nearest two points."""
        above = int((self.kls < kl).sum())
        if above == 0:
            return self.start
        if above == len(self.kls):
            return float(self.rewards[-1])
        left, right = above - 1, above
        share = (kl - self.kls[left]) / (self.kls[right] - self.kls[left])
        return float(self.rewards[left] + share * (self.rewards[right] - self.rewards[left]))

    def share_of_gain(self, reward: float, kl: float) -> float:
        """The gain over the reference, divided by the best possible at this KL; nan if 0."""
        possible = self.reward_at(kl) - self.start
        return (reward - self.start) / possible if possible > 1e-6 else float("nan")

    def shares_of_gain(self, rewards: Tensor, kl: float) -> Tensor:
        """What each prompt's reward (P,) adds to `share_of_gain`, which is the mean of these."""
        possible = self.reward_at(kl) - self.start
        return (rewards.double() - self.starts) / (possible if possible > 1e-6 else float("nan"))


def best_of_n_kl(scores: Tensor, n: int) -> float:
    """KL from the reference to best-of-n, in nats, given the scores (N,) of samples for one prompt.

    With F the cumulative distribution of the scores, the best of n has the score s with probability
    F(s)^n - F(s-)^n.  Without ties the KL is log n - (n - 1) / n; ties reduce it (Beirami et al.
    2024, arXiv:2401.01879).
    """
    _, counts = scores.cpu().unique(return_counts=True)
    p = counts.double() / counts.sum()
    up_to = p.cumsum(0)
    q = up_to**n - (up_to - p).clamp_min(0) ** n
    return float(torch.xlogy(q, q / p).sum())
