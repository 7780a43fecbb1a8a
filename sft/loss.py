"""The SFT loss: cross-entropy on the response tokens only."""

from torch import Tensor

from minigpt.metrics import masked_mean


def sft_loss(logps: Tensor, response_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean negative log-likelihood of the response tokens of the batch.

        L = - sum_t m_t log p(x_t | x_<t) / sum_t m_t

    The mask m_t is 1 on the response and its EOS, and 0 on prompt and padding.

    Args: logps (B, T), the log-probability of each token (see `minigpt.logprobs.token_logps`);
    response_mask (B, T).
    Returns: the loss in nats per token (0-d, differentiable) and detached metrics.  An untrained
    model has a loss of about ln 256 = 5.545.
    Raises ValueError if the mask is empty.
    """
    if not response_mask.any():
        raise ValueError("sft_loss: response_mask is empty, so there is no token to learn from")
    loss = -masked_mean(logps, response_mask)
    return loss, {"mean_token_probability": masked_mean(logps.detach().exp(), response_mask)}
