"""Write it yourself, then:  python -m lessons 07 --check"""

from torch import Tensor


def best_of_n_kl(scores: Tensor, n: int) -> float:
    """The KL from the reference to best-of-n, in nats, where answers may tie.

        F(s): the share of reference answers that score s or less,  F_-(s): that score less than s
        p(s) = F(s) - F_-(s)            how often the reference has the score s
        q(s) = F(s)^n - F_-(s)^n        how often the best of n has it
        KL = sum_s q(s) log(q(s) / p(s))        over the different scores

    Args: scores (N,) of samples of the reference to one prompt, in any order.  Returns: a number.
    Of two answers that are equally likely the better is the best of 2 in three cases of four:
    3/4 log(3/2) + 1/4 log(1/2):

    >>> round(float(best_of_n_kl(torch.tensor([0.0, 1.0]), 2)), 4)
    0.1308
    """
    raise NotImplementedError("write me")
