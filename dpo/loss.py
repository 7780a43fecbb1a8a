"""The DPO loss, as pure functions on tensors."""

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor,
             ref_rejected_logps: Tensor, beta: float = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

        L = - E[ log sigmoid( beta * (log pi(y_w|x) / ref(y_w|x)  -  log pi(y_l|x) / ref(y_l|x)) ) ]

    Beta is no mere scale of the loss: it stands inside the sigmoid, so it sets how far the log-ratios must part
    before a pair counts as learned.  A low beta lets the policy go far from the reference, a high one holds it.

    Args: four (B,) tensors of *summed* response log-probabilities in nats, EOS included; beta > 0.
    Returns: the mean loss (0-d, differentiable) and detached metrics (0-d) under TRL's names.  At policy ==
    reference the loss is log 2 = 0.6931 and every margin 0; `rewards/accuracies` counts such a tie as one half.
    Raises ValueError if the shapes differ or beta is not positive.
    """
    shapes = {tuple(t.shape) for t in (policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)}
    if len(shapes) > 1:
        raise ValueError(f"dpo_loss: the four log-probability tensors differ in shape: {sorted(shapes)}")
    if beta <= 0:
        raise ValueError(f"dpo_loss: beta={beta} must be above 0")
    chosen_rewards = beta * (policy_chosen_logps - ref_chosen_logps)        # (B,) implicit reward (eq. 5) less beta log Z
    rejected_rewards = beta * (policy_rejected_logps - ref_rejected_logps)  # (B,) the same prompt, so the same Z
    margins = chosen_rewards - rejected_rewards                             # (B,) in which Z has cancelled
    loss = -F.logsigmoid(margins).mean()
    metrics = {
        "rewards/chosen": chosen_rewards.mean(),
        "rewards/rejected": rejected_rewards.mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": ((margins > 0).float() + 0.5 * (margins == 0).float()).mean(),
        "logps/chosen": policy_chosen_logps.mean(),
        "logps/rejected": policy_rejected_logps.mean(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
