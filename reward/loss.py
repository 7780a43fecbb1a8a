"""The reward model's loss: Bradley-Terry on pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.metrics import check_vectors, preference_accuracy


def bradley_terry_loss(chosen_rewards: Tensor,
                       rejected_rewards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the annotators' choices (Bradley & Terry 1952; Ouyang et al. 2022,
    arXiv:2203.02155, eq. 1).

        P(chosen beats rejected) = sigmoid(r_chosen - r_rejected)        L = - mean log P

    Only differences enter, so the rewards' zero is arbitrary (`reward.start.center` fixes it).

    Args: chosen_rewards, rejected_rewards, each (B,).
    Returns: the loss (0-d, differentiable; log 2 = 0.6931 where the model cannot tell) and detached
    metrics under TRL's names; `accuracy` counts a tie as one half.
    Raises ValueError if the two are not real, of one size (B,), B > 0.
    """
    check_vectors("bradley_terry_loss", chosen_rewards=chosen_rewards,
                  rejected_rewards=rejected_rewards)
    margins = chosen_rewards - rejected_rewards  # (B,)
    loss = -F.logsigmoid(margins).mean()
    margins = margins.detach()
    rewards = torch.cat([chosen_rewards, rejected_rewards]).detach()
    metrics = {
        "accuracy": preference_accuracy(margins),
        "margin": margins.mean(),
        "min_reward": rewards.min(),
        "mean_reward": rewards.mean(),
        "max_reward": rewards.max(),
    }
    return loss, metrics
