"""Write it yourself, then:  python -m lessons 13 --check"""

from torch import Tensor


def best_and_worst(scores: Tensor, finished: Tensor) -> Tensor:
    """What a round of online DPO learns from: of each prompt's responses, the best and the worst.

    Only responses that ended by themselves count. A prompt whose counted responses all score the
    same, or that has fewer than two of them, teaches nothing.

    Args: scores (P, k), of the k responses to each of P prompts, and finished (P, k), bool.
    Returns: (P, 2), int64: the columns of the best and of the worst response, or -1 and -1.

    >>> scores = torch.tensor([[0.5, 2.0, -1.0], [1.0, 1.0, 3.0]])
    >>> finished = torch.tensor([[True, True, True], [True, True, False]])
    >>> best_and_worst(scores, finished)
    tensor([[ 1,  2],
            [-1, -1]])
    """
    raise NotImplementedError("write me")
