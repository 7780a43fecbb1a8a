"""Write it yourself, then:  python -m lessons 05 --check"""

from torch import Tensor


def dpo_loss(policy_logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The DPO loss (Rafailov et al. 2023, eq. 7), from the log-probabilities of tokens.

        log pi(y|x) = sum_t log pi(y_t | x, y_<t)        over the tokens of the response
        D = log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)
        L = - E[ log sigmoid(beta D) ]

    Args: policy_logps and ref_logps (B, 2, T), in nats, and mask (B, 2, T), True on the tokens of a
    response, EOS included: of each pair first the chosen response y_w, then the rejected y_l.
    Returns: a number, 0-d: the mean over the B pairs.
    A chosen response of two tokens, each a nat likelier than under the reference, and beta 0.5:

    >>> policy_logps = torch.tensor([[[-1.0, -1.0], [-2.0, -2.0]]])
    >>> ref_logps, mask = torch.full((1, 2, 2), -2.0), torch.ones(1, 2, 2).bool()
    >>> dpo_loss(policy_logps, ref_logps, mask, beta=0.5)
    tensor(0.3133)
    """
    raise NotImplementedError("write me")
