"""Write them yourself, then:  python -m lessons 08 --check"""

from torch import Tensor


def kl_k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """The plain estimate of KL(pi || ref) from tokens a that were sampled from pi.

        k1 = log pi(a)/ref(a)

    Args: log-probabilities of the sampled tokens, of any shape.  Returns: an estimate for each.
    A token with probability 0.5 that the reference gives 0.25:

    >>> kl_k1(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
    tensor([0.6931])
    """
    raise NotImplementedError("write me")


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """The estimate that is never negative.  Its mean under pi is the KL too.

        k3 = e^u - 1 - u        u = log ref(a)/pi(a)

    Args, returns: as kl_k1.
    The same token: 1/2 - 1 + log 2.

    >>> kl_k3(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
    tensor([0.1931])
    """
    raise NotImplementedError("write me")
