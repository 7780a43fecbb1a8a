"""Write it yourself, then:  python -m lessons 03 --check"""

from torch import Tensor


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """The mean of minus the log-probability of the annotators' choices.

        P(chosen beats rejected) = sigmoid(m)        m = r_chosen - r_rejected
        L = - 1/N sum_i log sigmoid(m_i)

    Args: rewards (N,) each.  Returns: a number, 0-d.
    A margin of 1 means that annotators choose so in sigmoid(1) = 0.73 of cases, and costs:

    >>> bradley_terry_loss(torch.tensor([3.0]), torch.tensor([2.0]))
    tensor(0.3133)
    """
    raise NotImplementedError("write me")
