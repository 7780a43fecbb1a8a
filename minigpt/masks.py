"""Which tokens see which, and from which token each response token is predicted.

Column t of the logits predicts token t + 1.  For responses that are given, this shift by one
happens in `predictor_columns` and nowhere else; sampling reads the same columns, the last token of
the prompt first (SEP, which counts as prompt).  `segments` is explained in minigpt/batching.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.fast import Positions


def positions_and_visibility(segments: Tensor,
                             window: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Positions (B, T) and visibility (B, T, T), with which each response seems to be the only one.

    Of the tokens before it, a token sees the prompt and its own response; their number is its
    position.  With a window it sees only itself and the nearest `window` - 1 of them.
    Padding, on either side, stands at position 0, where nothing reads it.
    Visibility is None if an ordinary causal mask is enough.
    """
    real = segments >= 0
    if window is None and segments.max() < 2 and real[:, 0].all() \
            and (real[:, 1:] <= real[:, :-1]).all():
        return torch.arange(segments.shape[1], device=segments.device) * real, None
    same_segment = segments[:, :, None] == segments[:, None, :]
    visible = (same_segment | (segments == 0)[:, None, :]).tril()
    positions = (visible.sum(-1) - 1) * real
    if window is not None:
        visible &= positions[:, :, None] - positions[:, None, :] < window
    return positions, visible


def predictor_columns(segments: Tensor) -> Tensor:
    """The column whose hidden state predicts each response token: (B, T) long.

    It is the column before, and for the first token of any response the last one of the prompt.
    Outside of responses the result means nothing.
    """
    columns = torch.arange(segments.shape[1], device=segments.device)
    last_of_prompt = (segments > 0).int().argmax(1, keepdim=True) - 1
    continues = F.pad(segments[:, 1:] == segments[:, :-1], (1, 0))
    return torch.where(continues, columns - 1, last_of_prompt)


def predictor_positions(segments: Tensor) -> Positions:
    """Where the N response tokens are predicted from, in row order: rows (N,), columns (N,)."""
    rows, columns = (segments > 0).nonzero(as_tuple=True)
    return rows, predictor_columns(segments)[rows, columns]
