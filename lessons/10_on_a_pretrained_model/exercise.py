"""Write it yourself, then:  python -m lessons 10 --check"""

from torch import Tensor


def response_logps(logits: Tensor, token_ids: Tensor, prompt_lengths: Tensor,
                   lengths: Tensor) -> Tensor:
    """The log-probability of each response, summed over its tokens, in nats.

        log p(y | x) = sum_t log p(y_t | x, y_<t)

    Args: logits (B, T, V), whose column t is about token t + 1; token_ids (B, T); prompt_lengths
    (B,), how many tokens of a row are the prompt; lengths (B,), how many are prompt and response.
    What follows is padding, and its id is that of the token that ends a response.  Returns: (B,).
    A model that knows nothing of V = 10 tokens pays log 10 = 2.3026 for each of two:

    >>> ids = torch.tensor([[5, 6, 7, 2, 2]])
    >>> response_logps(torch.zeros(1, 5, 10), ids, torch.tensor([2]), torch.tensor([4]))
    tensor([-4.6052])
    """
    raise NotImplementedError("write me")
