"""Advantages from rewards and values.  All tensors are (B, T): column t is about token t."""

import torch
from torch import Tensor

from minigpt.metrics import masked, masked_mean


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0,
        lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}
        R_t     = A_t + V_t

    V_t is the value of the state *before* token t.  V and A are 0 after a response's last token.

    Args: rewards, values and mask, each (B, T); the mask is True on the response tokens, which are
    contiguous in each row.
    Returns: advantages and returns, each (B, T), detached, 0 outside the mask.
    Raises ValueError if the shapes differ.
    """
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(f"gae: rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and "
                         f"mask {tuple(mask.shape)} must have the same shape")
    rewards, values = masked(rewards.detach(), mask), masked(values.detach(), mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x shifted and scaled to mean 0 and variance 1 where the mask is True; 0 elsewhere."""
    x = masked(x, mask)
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    return masked((x - mean) * (variance + 1e-8).rsqrt(), mask)
