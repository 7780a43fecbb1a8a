"""Write them yourself, then:  python -m lessons 04 --check"""

from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}        V and A are 0 after a response's last token

    Args: rewards, values and mask, (B, T) each; the mask is True on the response, which is in one
    piece, and what stands elsewhere means nothing.  Returns: advantages (B, T), 0 outside the mask.
    A score of 1 comes with the last token, where 0.5 was expected; lam carries it back:

    >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> gae(rewards, values, torch.tensor([[True, True]]), gamma=1.0, lam=0.9)
    tensor([[0.4500, 0.5000]])
    """
    raise NotImplementedError("write me")


def ppo_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor,
             clip: float) -> Tensor:
    """The clipped surrogate objective, negated.

        rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)
        L = - mean_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)

    Args: log-probabilities of the sampled tokens now and at the rollout, their advantages, and the
    mask of the response, (B, T) each; clip is eps.  Returns: a number, 0-d.
    A good token that has become 1.5 times as likely counts as if it were 1.2 times:

    >>> logps, old_logps = torch.tensor([[0.3]]).log(), torch.tensor([[0.2]]).log()
    >>> ppo_loss(logps, old_logps, torch.tensor([[1.0]]), torch.tensor([[True]]), clip=0.2)
    tensor(-1.2000)
    """
    raise NotImplementedError("write me")
