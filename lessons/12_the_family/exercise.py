"""Write it yourself, then:  python -m lessons 12 --check"""

from torch import Tensor


def ipo_loss(margins: Tensor, beta: float) -> Tensor:
    """The IPO loss (Azar et al. 2023, eq. 17), from the margins of a batch.

        D = log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)
        L = E[ (D - 1 / (2 beta))^2 ]

    Args: margins (B,), the D of each pair, in nats; and beta.
    Returns: a number, 0-d.

    >>> ipo_loss(torch.tensor([0.0, 2.0]), beta=0.5)
    tensor(1.)
    """
    raise NotImplementedError("write me")


def simpo_loss(logps: Tensor, lengths: Tensor, beta: float, gamma: float) -> Tensor:
    """The SimPO loss (Meng et al. 2024, eq. 6): DPO without a reference, on means per token.

        L = - E[ log sigmoid( beta / |y_w| log pi(y_w|x) - beta / |y_l| log pi(y_l|x) - gamma ) ]

    Args: logps (B, 2), summed over the tokens of the chosen and of the rejected response, in nats;
    lengths (B, 2), the number of tokens of both; beta and gamma.
    Returns: a number, 0-d.
    A chosen response of 4 tokens at -0.5 nats each, a rejected one of 2 tokens at -1.0 each:

    >>> simpo_loss(torch.tensor([[-2.0, -2.0]]), torch.tensor([[4.0, 2.0]]), beta=2.0, gamma=1.0)
    tensor(0.6931)
    """
    raise NotImplementedError("write me")
