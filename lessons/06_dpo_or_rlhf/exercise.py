"""Write it yourself, then:  python -m lessons 06 --check"""

from torch import Tensor


def token_rewards(scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor,
                  beta: float) -> Tensor:
    """What RLHF pays each token: its price of KL, and on the last one the score of the answer.

        r_t = - beta log pi(a_t|s_t)/ref(a_t|s_t)  +  [t is the last token of the answer] s(x, y)

    Args: scores (B,); logps and ref_logps, (B, T), of the sampled tokens; mask (B, T), True on the
    answer, which is in one piece.  Returns: (B, T), 0 outside the mask.
    Three tokens, a nat likelier than under the reference, less likely, and likelier, at beta 0.5:

    >>> logps, ref_logps = torch.tensor([[-1.0, -2.0, -2.0]]), torch.tensor([[-2.0, -1.0, -3.0]])
    >>> mask = torch.tensor([[True, True, True]])
    >>> token_rewards(torch.tensor([3.0]), logps, ref_logps, mask, beta=0.5)
    tensor([[-0.5000,  0.5000,  2.5000]])
    """
    raise NotImplementedError("write me")
