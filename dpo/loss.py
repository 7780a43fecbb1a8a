"""DPO's loss and its family, as pure functions on tensors.

Each takes log-probabilities of whole responses, summed over their tokens, in nats, (B,), and
returns (loss, metrics): the mean loss (0-d, differentiable) and detached metrics (0-d) under TRL's
names.  A loss asks for what it needs, by name: some need no reference, some the lengths of the
responses in tokens, (B,).  Each raises ValueError on tensors that are not (B,), B > 0, and on a
setting out of range (dpo/checks.py).

In the equations c and r are the log-ratios log pi(y|x)/ref(y|x) of the chosen response y_w and of
the rejected y_l, D = c - r, |y| is a length, and s the sigmoid.  At policy == reference c, r and D
are 0.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo.checks import checked
from minigpt.metrics import preference_accuracy

__all__ = ["LOSSES", "apo_down_loss", "apo_zero_loss", "cdpo_loss", "dpo_loss", "dpo_nll_loss",
           "dpop_loss", "hinge_loss", "ipo_loss", "kto_loss", "kto_reference_point",
           "length_normalised_dpo_loss", "orpo_loss", "robust_dpo_loss", "simpo_loss"]

Result = tuple[Tensor, dict[str, Tensor]]


@checked
def dpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor,
             ref_rejected_logps: Tensor, beta: float = 0.1) -> Result:
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

    >>> logps = torch.tensor([-12.0, -9.5])
    >>> loss, metrics = dpo_loss(logps, logps - 1, logps, logps - 1)
    >>> round(loss.item(), 4), metrics["rewards/margins"].item()
    (0.6931, 0.0)
    """
    chosen_rewards = beta * (policy_chosen_logps - ref_chosen_logps)        # (B,) eq. 5, but for
    rejected_rewards = beta * (policy_rejected_logps - ref_rejected_logps)  # (B,) beta log Z(x),
    margins = chosen_rewards - rejected_rewards                             # (B,) which cancels
    loss = -F.logsigmoid(margins).mean()
    return loss, metrics_of(chosen_rewards, rejected_rewards, policy_chosen_logps,
                            policy_rejected_logps)


# --- with a reference -----------------------------------------------------------------------------


@checked
def ipo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor,
             ref_rejected_logps: Tensor, beta: float = 0.1) -> Result:
    """Identity preference optimisation (Azar et al. 2023, arXiv:2310.12036, eq. 17).

        L = E[ (D - 1 / (2 beta))^2 ]

    The margin has a target, so that labels that never err do not drive it to infinity.  At policy
    == reference: 1 / (4 beta^2).
    """
    c, r = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    loss = (c - r - 1 / (2 * beta)).square().mean()
    return loss, metrics_of(beta * c, beta * r, policy_chosen_logps, policy_rejected_logps)


@checked
def hinge_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor,
               ref_rejected_logps: Tensor, beta: float = 0.1) -> Result:
    """The hinge on the normalised likelihood (RSO, Liu et al. 2023, arXiv:2309.06657, eq. 12).

        L = E[ max(0, 1 - beta D) ]

    A pair whose margin has reached 1 has no gradient any more.  At policy == reference: 1.
    """
    c, r = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    loss = torch.relu(1 - beta * (c - r)).mean()
    return loss, metrics_of(beta * c, beta * r, policy_chosen_logps, policy_rejected_logps)


@checked
def cdpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor,
              ref_rejected_logps: Tensor, beta: float = 0.1,
              label_smoothing: float = 0.1) -> Result:
    """Conservative DPO (Mitchell 2023, ericmitchell.ai/cdpo.pdf, eq. 3).

        L = E[ -(1 - e) log s(beta D) - e log s(-beta D) ]        e = label_smoothing

    If a share e of the labels is wrong, this is the cross-entropy with the right ones; the margin
    has an optimum, log((1 - e) / e).  At e = 0 it is DPO; at policy == reference: log 2.
    """
    c, r = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    e = label_smoothing
    margins = beta * (c - r)
    loss = (-(1 - e) * F.logsigmoid(margins) - e * F.logsigmoid(-margins)).mean()
    return loss, metrics_of(beta * c, beta * r, policy_chosen_logps, policy_rejected_logps)


@checked
def robust_dpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
                    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float = 0.1,
                    label_smoothing: float = 0.1) -> Result:
    """Provably robust DPO (Chowdhury et al. 2024, arXiv:2403.00409).

        L = E[ -(1 - e) log s(beta D) + e log s(-beta D) ] / (1 - 2e)        e = label_smoothing

    If each label is flipped with probability e, its mean is DPO's loss with the right labels.  A
    single value may be negative, and falls without bound as the margin grows.  At e = 0 it is DPO;
    at policy == reference: log 2.
    """
    c, r = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    e = label_smoothing
    margins = beta * (c - r)
    loss = (-(1 - e) * F.logsigmoid(margins) + e * F.logsigmoid(-margins)).mean() / (1 - 2 * e)
    return loss, metrics_of(beta * c, beta * r, policy_chosen_logps, policy_rejected_logps)


@checked
def apo_zero_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
                  ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                  beta: float = 0.1) -> Result:
    """Anchored preference optimisation, zero (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7).

        L = E[ 1 - s(beta c) + s(beta r) ]

    Pulls the chosen response up and the rejected down, each on its own.  (The paper's loss is this
    less 1.)  At policy == reference: 1.
    """
    c, r = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    loss = (torch.sigmoid(-beta * c) + torch.sigmoid(beta * r)).mean()
    return loss, metrics_of(beta * c, beta * r, policy_chosen_logps, policy_rejected_logps)


@checked
def apo_down_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
                  ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                  beta: float = 0.1) -> Result:
    """Anchored preference optimisation, down (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8).

        L = E[ s(beta c) + 1 - s(beta D) ]

    For a policy that is already better than the chosen responses: both go down, the rejected
    faster.  (The paper's loss is this less 1.)  At policy == reference: 1, and only the rejected
    response has a gradient yet.
    """
    c, r = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    loss = (torch.sigmoid(beta * c) + torch.sigmoid(-beta * (c - r))).mean()
    return loss, metrics_of(beta * c, beta * r, policy_chosen_logps, policy_rejected_logps)


@checked
def dpop_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor,
              ref_rejected_logps: Tensor, beta: float = 0.1, lam: float = 5.0) -> Result:
    """DPO-positive (Pal et al. 2024, "Smaug", arXiv:2402.13228, eq. 3).

        L = - E[ log s( beta (D - lam max(0, -c)) ) ]

    Against displacement: a chosen response that becomes less likely than under the reference costs
    margin.  At lam = 0 it is DPO; at policy == reference: log 2.
    """
    c, r = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    loss = -F.logsigmoid(beta * (c - r - lam * torch.relu(-c))).mean()
    return loss, metrics_of(beta * c, beta * r, policy_chosen_logps, policy_rejected_logps)


@checked
def length_normalised_dpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
                               ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                               chosen_lengths: Tensor, rejected_lengths: Tensor,
                               beta: float = 5.0) -> Result:
    """DPO on log-ratios per token (Lambert et al. 2024, "Tulu 3", arXiv:2411.15124, eq. 6).

        L = - E[ log s( beta (c / |y_w| - r / |y_l|) ) ]

    A long response no longer has the larger say; beta is per token, so it is larger than DPO's.
    At policy == reference: log 2.
    """
    c, r = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    chosen_rewards, rejected_rewards = beta * c / chosen_lengths, beta * r / rejected_lengths
    loss = -F.logsigmoid(chosen_rewards - rejected_rewards).mean()
    return loss, metrics_of(chosen_rewards, rejected_rewards, policy_chosen_logps,
                            policy_rejected_logps)


@checked
def dpo_nll_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor,
                 ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, chosen_lengths: Tensor,
                 beta: float = 0.1, nll_weight: float = 1.0) -> Result:
    """DPO and imitation of the chosen response (Pang et al. 2024, arXiv:2404.19733).

        L = E[ -log s(beta D) - nll_weight log pi(y_w|x) / |y_w| ]

    Keeps the chosen response likely.  At nll_weight = 0 it is DPO.  (The paper's version 1 has the
    weight on the other term.)
    """
    loss, metrics = dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps,
                             ref_rejected_logps, beta)
    nll = -(policy_chosen_logps / chosen_lengths).mean()
    return loss + nll_weight * nll, {**metrics, "nll_loss": nll.detach()}


# --- without a reference --------------------------------------------------------------------------


@checked
def simpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, chosen_lengths: Tensor,
               rejected_lengths: Tensor, beta: float = 2.0, gamma: float = 0.5) -> Result:
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734, eq. 6).

        L = - E[ log s( beta log pi(y_w|x) / |y_w| - beta log pi(y_l|x) / |y_l| - gamma ) ]

    The reward is the mean log-probability of a token, and the margin must exceed gamma.  There is
    no reference, so nothing but the learning rate holds the policy back.
    """
    chosen_rewards = beta * policy_chosen_logps / chosen_lengths
    rejected_rewards = beta * policy_rejected_logps / rejected_lengths
    loss = -F.logsigmoid(chosen_rewards - rejected_rewards - gamma).mean()
    return loss, metrics_of(chosen_rewards, rejected_rewards, policy_chosen_logps,
                            policy_rejected_logps)


@checked
def orpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, chosen_lengths: Tensor,
              rejected_lengths: Tensor, lam: float = 0.1) -> Result:
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

        L = E[ -log P(y_w|x) - lam log s( log odds(y_w|x) - log odds(y_l|x) ) ]

    P(y|x) = exp(log pi(y|x) / |y|), the geometric mean of its tokens' probabilities; odds =
    P / (1 - P).  Imitation of the chosen response, with a penalty for the rejected; no reference.
    The metrics' rewards are lam log odds.
    """
    mean_logps = policy_chosen_logps / chosen_lengths
    chosen = log_odds(mean_logps)
    rejected = log_odds(policy_rejected_logps / rejected_lengths)
    loss = (-mean_logps - lam * F.logsigmoid(chosen - rejected)).mean()
    metrics = metrics_of(lam * chosen, lam * rejected, policy_chosen_logps, policy_rejected_logps)
    return loss, {**metrics, "nll_loss": -mean_logps.mean().detach()}


# --- unpaired -------------------------------------------------------------------------------------


@checked
def kto_loss(policy_logps: Tensor, ref_logps: Tensor, labels: Tensor, reference_point: Tensor,
             beta: float = 0.1, desirable_weight: float = 1.0,
             undesirable_weight: float = 1.0) -> Result:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8).

        rho(x, y) = log pi(y|x)/ref(y|x)
        L = E[ w_D (1 - s(beta (rho - z))) ]  over desirable responses,
            E[ w_U (1 - s(beta (z - rho))) ]  over undesirable ones; one mean over all of them

    A response is judged alone, against z, how far the policy has moved in general.  The weights
    even out unequal numbers of both kinds.  At policy == reference, with weights 1: 0.5.

    Args: log-probabilities (B,) of single responses; labels (B,), True on the desirable;
    reference_point (0-d): z, see `kto_reference_point`.
    The metrics: `rewards/signed`, beta rho, or minus that of an undesirable response;
    `rewards/accuracies`, the share of responses that are on their side of z.
    """
    if labels.shape != policy_logps.shape or labels.dtype != torch.bool:
        raise ValueError(f"kto_loss: labels {tuple(labels.shape)} of {labels.dtype} must be "
                         f"{tuple(policy_logps.shape)} of torch.bool, True on desirable responses")
    if reference_point.dim() or not reference_point.isfinite():
        raise ValueError(f"kto_loss: reference_point={reference_point} must be one finite number")
    z = reference_point.detach()
    rewards = beta * (policy_logps - ref_logps)                                         # (B,)
    signs = labels.to(rewards) * 2 - 1
    weights = torch.where(labels, rewards.new_tensor(desirable_weight),
                          rewards.new_tensor(undesirable_weight))
    margins = signs * (rewards - beta * z)
    loss = (weights * torch.sigmoid(-margins)).mean()
    metrics = {"rewards/signed": (signs * rewards).mean(), "reference_point": z,
               "rewards/accuracies": preference_accuracy(margins), "logps": policy_logps.mean()}
    return loss, {name: value.detach() for name, value in metrics.items()}


@checked
def kto_reference_point(policy_logps: Tensor, ref_logps: Tensor) -> Tensor:
    """z = max(0, mean log pi(y'|x)/ref(y'|x)) over answers y' to *other* prompts: 0-d, detached.

    An estimate of KL(pi || ref) that needs no sampling; its own answer would not be a fair measure.
    Raises ValueError if there is no such answer.
    """
    return (policy_logps - ref_logps).mean().clamp(min=0).detach()


# --- what they share ------------------------------------------------------------------------------


def log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean_logps); finite also where p rounds to 1."""
    mean_logps = mean_logps.clamp(max=-1e-6)
    return mean_logps - torch.log(-torch.expm1(mean_logps))


def metrics_of(chosen_rewards: Tensor, rejected_rewards: Tensor, policy_chosen_logps: Tensor,
               policy_rejected_logps: Tensor) -> dict[str, Tensor]:
    """Detached means over the batch, under TRL's names."""
    margins = chosen_rewards - rejected_rewards
    metrics = {
        "rewards/chosen": chosen_rewards.mean(),
        "rewards/rejected": rejected_rewards.mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": preference_accuracy(margins),
        "logps/chosen": policy_chosen_logps.mean(),
        "logps/rejected": policy_rejected_logps.mean(),
    }
    return {name: value.detach() for name, value in metrics.items()}


# What dpo_train(loss=...) and --loss call by name.
LOSSES: dict[str, Callable[..., Result]] = {
    loss.__name__.removesuffix("_loss"): loss for loss in (
        dpo_loss, ipo_loss, hinge_loss, cdpo_loss, robust_dpo_loss, apo_zero_loss, apo_down_loss,
        dpop_loss, length_normalised_dpo_loss, dpo_nll_loss, simpo_loss, orpo_loss)}
