"""Write it yourself, then:  python -m lessons 14 --check"""

from torch import Tensor


def pareto(points: Tensor) -> Tensor:
    """Which policies are on the Pareto front.

    A policy is dominated if another is at least as good on every objective and better on one. The
    front is all that are not dominated.

    Args: points (N, K): of N policies, the K objectives, each of them the higher the better.
    Returns: (N,), bool.

    >>> pareto(torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0]]))
    tensor([ True,  True, False])
    """
    raise NotImplementedError("write me")
