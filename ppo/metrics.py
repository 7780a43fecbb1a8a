"""The figures of one PPO episode, under TRL's names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from minigpt import distributed
from ppo.advantages import flat_groups
from ppo.rollout import Rollout


def rollout_metrics(rollout: Rollout, kl_coeff: float) -> dict[str, float]:
    """Scores, KL and lengths of a rollout; KL in nats per response."""
    kl = rollout.batch.response_sums(rollout.kl).mean()
    score, non_score_reward = rollout.scores.mean(), -kl_coeff * kl
    metrics: dict[str, Tensor | float] = {
        "objective/scores": score,
        "objective/kl": kl,
        "objective/kl_exact": rollout.exact_kl.mean(),
        "objective/entropy": rollout.entropy,
        "objective/non_score_reward": non_score_reward,
        "objective/rlhf_reward": score + non_score_reward,
        "objective/kl_coeff": kl_coeff,
        # a count over all processes, of which the log takes the mean
        "val/num_eos_tokens": rollout.finished.sum() * distributed.world_size(),
        "val/response_tokens": rollout.batch.response_lengths.float().mean(),
    }
    if rollout.scores.shape[1] > 1:
        metrics["val/flat_groups"] = \
            flat_groups(rollout.scores).sum() * distributed.world_size()  # a count, too
    return {name: float(value) for name, value in metrics.items()}


class UpdateMetrics:
    """Collects the metrics of an episode's minibatches; each comes in weighted parts."""

    def __init__(self, device: torch.device):
        self._device = device
        self._ended: list[dict[str, float]] = []
        self._current: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Tensor], weight: Tensor | float) -> None:
        """Add one part of the current minibatch."""
        for name, value in metrics.items():
            self._current[name] = self._current.get(name, 0.0) + float(value * weight)

    def approxkl(self) -> float:
        """How far the policy is from the rollout's on the current minibatch, in nats per token."""
        current = {"kl": self._current["policy/approxkl_avg"]}
        return distributed.means(current, self._device)["kl"]

    def end_minibatch(self, grad_norm: float) -> None:
        """The optimizer has stepped."""
        self._ended.append({**self._current, "grad_norm": grad_norm})
        self._current = {}

    def means(self) -> dict[str, float]:
        """Means over the minibatches; one that was too far away to be used has no grad_norm."""
        logged = self._ended + [self._current] * bool(self._current)
        values = {name: [step[name] for step in logged if name in step] for name in logged[0]}
        values.setdefault("grad_norm", [0.0])  # if no update was made
        return {**{name: sum(v) / len(v) for name, v in values.items()},
                "val/first_ratio": logged[0]["val/ratio"], "val/updates": len(self._ended)}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant."""
    returns, values = returns[mask], values[mask]
    variance = returns.var(correction=0).clamp_min(1e-8)
    return float(1 - (returns - values).var(correction=0) / variance)
