"""The SFT loss: cross-entropy on the response, and on nothing else."""

from torch import Tensor


def sft_loss(logps: Tensor, response_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the response tokens, normalised by how many there are in the batch.

        L = - sum_t m_t log p(x_t | x_<t) / sum_t m_t        m_t = 1 on the response and its EOS, 0 on prompt and padding

    Args: logps (B, T), log-probability of each token (see `minigpt.logprobs.token_logps`); response_mask (B, T).
    Returns: the loss in nats per token (0-d, differentiable; ln 256 = 5.545 for an untrained model) and metrics.
    Raises ValueError if no token is a response token.
    """
    if not response_mask.any():
        raise ValueError("sft_loss: response_mask is empty, so there is no token to learn from")
    loss = -(logps * response_mask).sum() / response_mask.sum()
    probability = (logps.detach().exp() * response_mask).sum() / response_mask.sum()
    return loss, {"mean_token_probability": probability}
