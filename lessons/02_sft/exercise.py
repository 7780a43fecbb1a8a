"""Write it yourself, then:  python -m lessons 02 --check"""

from torch import Tensor


def sft_loss(logits: Tensor, token_ids: Tensor, response_mask: Tensor) -> Tensor:
    """The mean negative log-likelihood of the response tokens of a batch, in nats per token.

        L = - sum_t m_t log p(z_t | z_<t) / sum_t m_t        both sums over all rows of the batch

    Args: logits (B, T, V), whose column t is about token t + 1; token_ids (B, T); response_mask
    (B, T), True on the response and its EOS, False on prompt and padding.  Returns: a number, 0-d.
    A model that knows nothing of V = 256 bytes pays log 256 for each:

    >>> mask = torch.tensor([[False, True, True]])
    >>> sft_loss(torch.zeros(1, 3, 256), torch.tensor([[7, 8, 9]]), mask)
    tensor(5.5452)
    """
    raise NotImplementedError("write me")
