"""PPO's policy and value losses, as pure functions on (B, T) tensors: column t is about token t."""

import torch
from torch import Tensor

from minigpt.metrics import masked, masked_mean

LARGEST_LOG_RATIO = 40.0  # e^40: above it a ratio counts as that, or its gradient would be NaN


def ppo_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor,
             clip: float = 0.2) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate objective (Schulman et al. 2017, arXiv:1707.06347, eq. 7), negated.

        rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)
        L = - mean_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)

    Args: log-probabilities of the sampled tokens now and at the rollout, in nats, their advantages
    and the response mask, each (B, T); clip is eps.
    Returns: the loss (0-d, differentiable) and detached metrics.  On the first update after a
    rollout the two policies are the same, so `val/ratio` is 1 and `policy/approxkl_avg` is 0: the
    best single check of a PPO implementation.
    """
    log_ratio = masked(logps - old_logps, mask)
    advantages = masked(advantages, mask)
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)
    with torch.no_grad():
        metrics = {
            "policy/approxkl_avg": masked_mean(log_ratio.square(), mask) / 2,  # k2, KL(old || new)
            "policy/clipfrac_avg":
                masked_mean((ratio * advantages > clipped * advantages).float(), mask),
            "val/ratio": masked_mean(ratio, mask),
            "loss/policy_avg": loss.detach(),
        }
    return loss, metrics


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor,
               clip: float = 0.2) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the values, clipped around the values at the rollout.

        L = 1/2 mean_t max( (V_t - R_t)^2, (clip(V_t, V_old - eps, V_old + eps) - R_t)^2 )

    The clipping is not in the PPO paper but in OpenAI's code (Huang et al. 2022, "The 37
    Implementation Details of Proximal Policy Optimization", detail 9).

    Args: values now and at the rollout, returns and the response mask, each (B, T); clip is eps.
    Returns: the loss (0-d, differentiable) and detached metrics.
    """
    values, old_values, returns = (masked(x, mask) for x in (values, old_values, returns))
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    errors, clipped_errors = (values - returns).square(), (clipped - returns).square()
    loss = 0.5 * masked_mean(torch.maximum(errors, clipped_errors), mask)
    with torch.no_grad():
        metrics = {"loss/value_avg": loss.detach(),
                   "val/clipfrac_avg": masked_mean((clipped_errors > errors).float(), mask)}
    return loss, metrics
