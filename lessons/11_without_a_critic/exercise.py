"""Write them yourself, then:  python -m lessons 11 --check"""

from torch import Tensor


def rloo_advantages(scores: Tensor) -> Tensor:
    """REINFORCE leave-one-out: each score less the mean of the others in its group.

        A_i = R_i - 1/(k - 1) sum_{j != i} R_j

    Args: scores (P, k), k responses to each of P prompts.  Returns: (P, k).
    The other two score 1 on average, so a 4 is 3 better than expected:

    >>> rloo_advantages(torch.tensor([[4.0, 2.0, 0.0]]))
    tensor([[ 3.,  0., -3.]])
    """
    raise NotImplementedError("write me")


def grpo_advantages(scores: Tensor) -> Tensor:
    """Group relative advantages: each group shifted to mean 0 and scaled to standard deviation 1.

        A_i = (R_i - mean_j R_j) / std_j R_j

    The std is the one with k - 1 below the sum.  A group whose scores are all equal gets 0.

    Args: scores (P, k).  Returns: (P, k).
    Mean 2, standard deviation 2:

    >>> grpo_advantages(torch.tensor([[4.0, 2.0, 0.0]])).round(decimals=2)
    tensor([[ 1.,  0., -1.]])
    """
    raise NotImplementedError("write me")
