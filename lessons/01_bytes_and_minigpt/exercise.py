"""Write it yourself, then:  python -m lessons 01 --check"""

from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention that looks back, never ahead.

        a_t = sum_{s <= t} w_ts v_s
        w_ts = exp(q_t . k_s / sqrt(K)) / sum_{u <= t} exp(q_t . k_u / sqrt(K))

    Args: queries, keys and values, (B, T, K) each.  Returns: (B, T, K).
    With queries of 0 every visible byte counts alike, so values of 1, 2 and 6 give:

    >>> q, k, v = torch.zeros(1, 3, 1), torch.ones(1, 3, 1), torch.tensor([[[1.0], [2.0], [6.0]]])
    >>> causal_attention(q, k, v).flatten()
    tensor([1.0000, 1.5000, 3.0000])
    """
    raise NotImplementedError("write me")
