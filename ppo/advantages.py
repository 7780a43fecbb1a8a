"""Advantages: from rewards and values, (B, T) by token, or from groups of scores, (P, k).

A group is k responses to one prompt.  Each is compared with the others, so no value model is needed
to say what was to be expected.
"""

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

    Args: rewards, values and mask, each (B, T), or (B, k, T) with one response a row; the mask is
    True on the response tokens, which are contiguous in each row.
    Returns: advantages and returns, shaped alike, detached, 0 outside the mask.
    Raises ValueError if the shapes differ.
    """
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(f"gae: rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and "
                         f"mask {tuple(mask.shape)} must have the same shape")
    rewards, values = masked(rewards.detach(), mask), masked(values.detach(), mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[..., 0])
    for t in reversed(range(values.shape[-1])):
        delta = rewards[..., t] + gamma * next_value - values[..., t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[..., t]
        next_value = values[..., t]
        advantages[..., t] = next_advantage
    return advantages, advantages + values


def rloo_advantages(scores: Tensor) -> Tensor:
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740).

        A_i = R_i - 1/(k - 1) sum_{j != i} R_j

    The baseline does not depend on response i, so the gradient is unbiased.

    Args: scores (P, k), k responses to each of P prompts.  Returns: (P, k).
    Raises ValueError unless k is at least 2.

    >>> rloo_advantages(torch.tensor([[4.0, 1.0, 1.0]])).tolist()
    [[3.0, -1.5, -1.5]]
    """
    k = group_size("rloo_advantages", scores)
    return centred(scores) * (k / (k - 1))


def rloo_to_go(values: Tensor, masks: Tensor) -> Tensor:
    """`rloo_advantages` at each token, of what comes after it in its response.

        G_t = sum_{s > t} v_s         A_{i, t} = G_{i, t} - 1/(k - 1) sum_{j != i} G_{j, t}

    t counts from the first token of each response; G is 0 where a response has ended.

    Args: values (B, T) of k responses a row; masks (B, k, T), True on the tokens of each.
    Returns: (B, T), 0 outside the masks.
    """
    values = masked(values[:, None], masks)                                    # (B, k, T)
    to_go = values.flip(-1).cumsum(-1).flip(-1) - values
    T, k = values.shape[-1], values.shape[1]
    columns, starts = torch.arange(T, device=values.device), masks.int().argmax(-1, keepdim=True)
    aligned = to_go.gather(-1, (starts + columns).clamp(max=T - 1))   # by place in the response
    others = (aligned.sum(1, keepdim=True) - aligned) / (k - 1)
    baseline = others.gather(-1, (columns - starts).clamp(min=0))
    return masked(to_go - baseline, masks).sum(1)


def grpo_advantages(scores: Tensor, scale_by_std: bool = True) -> Tensor:
    """Group relative advantages (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

        A_i = (R_i - mean_j R_j) / std_j R_j          (std of n - 1; 0 where all are equal)

    Without the division (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783) this is RLOO's times
    (k - 1) / k.  With it a group counts as much as any other however little its scores differ; with
    k = 2 only the sign of the difference is left.

    Args: scores (P, k).  Returns: (P, k).
    Raises ValueError unless k is at least 2.
    """
    group_size("grpo_advantages", scores)
    if not scale_by_std:
        return centred(scores)
    return centred(scores) / (scores.std(1, keepdim=True) + 1e-4)  # as its authors' code: not 0 / 0


def group_size(function: str, scores: Tensor) -> int:
    """k of scores (P, k).  Raises ValueError unless there is something to compare with."""
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(f"{function}: scores are {tuple(scores.shape)}, but (P, k) with k >= 2 is "
                         "needed: a response is compared with the others to its prompt")
    return scores.shape[1]


def centred(scores: Tensor) -> Tensor:
    """Scores (P, k) less the mean of their group; exactly 0 where rounding would leave a rest."""
    less_mean = scores - scores.mean(1, keepdim=True)
    return less_mean.masked_fill(flat_groups(scores)[:, None], 0.0)


def flat_groups(scores: Tensor) -> Tensor:
    """(P,), True where all k scores of a group are equal, so that it teaches nothing.

    Up to rounding: equal responses in other columns of a row score a little differently.
    """
    return torch.isclose(scores.amax(1), scores.amin(1), rtol=1e-5, atol=1e-6)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x shifted and scaled to mean 0 and variance 1 where the mask is True; 0 elsewhere."""
    x = masked(x, mask)
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    return masked((x - mean) * (variance + 1e-8).rsqrt(), mask)
