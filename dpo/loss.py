"""The DPO loss, as a pure function on tensors."""

import torch.nn.functional as F
from torch import Tensor

from minigpt.metrics import check_vectors, preference_accuracy


def dpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor,
             ref_rejected_logps: Tensor, beta: float = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

        L = - E[ log sigmoid( beta * (log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)) ) ]

    Beta does not merely scale the loss: it stands inside the sigmoid, so it sets how far apart the
    log-ratios must be before a pair counts as learned.  With a low beta the policy goes far from
    the reference; a high one holds it back.

    Args: four (B,) tensors of *summed* response log-probabilities in nats, EOS included; beta > 0.
    Returns: the mean loss (0-d, differentiable) and detached metrics (0-d) under TRL's names.  At
    policy == reference the loss is log 2 = 0.6931 and every margin 0; `rewards/accuracies` counts
    such a tie as one half.
    Raises ValueError if the four are not real, of one size (B,), B > 0, or beta is not positive.

    >>> import torch
    >>> logps = torch.tensor([-12.0, -9.5])
    >>> loss, metrics = dpo_loss(logps, logps - 1, logps, logps - 1)
    >>> round(loss.item(), 4), metrics["rewards/margins"].item()
    (0.6931, 0.0)
    """
    check_vectors("dpo_loss", policy_chosen_logps=policy_chosen_logps,
                  policy_rejected_logps=policy_rejected_logps, ref_chosen_logps=ref_chosen_logps,
                  ref_rejected_logps=ref_rejected_logps)
    if not 0 < beta < float("inf"):
        raise ValueError(f"dpo_loss: beta={beta} must be above 0 and finite")
    chosen_rewards = beta * (policy_chosen_logps - ref_chosen_logps)        # (B,) eq. 5, but for
    rejected_rewards = beta * (policy_rejected_logps - ref_rejected_logps)  # (B,) beta log Z(x),
    margins = chosen_rewards - rejected_rewards                             # (B,) which cancels
    loss = -F.logsigmoid(margins).mean()
    metrics = {
        "rewards/chosen": chosen_rewards.mean(),
        "rewards/rejected": rejected_rewards.mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": preference_accuracy(margins),
        "logps/chosen": policy_chosen_logps.mean(),
        "logps/rejected": policy_rejected_logps.mean(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
