"""What makes the model fast on a CPU.  Each function here computes a plain formula, faster:

    by_token(layer, x)                 layer(x)
    by_row(attention, q, k, v, mask)   attention(q, k, v, mask)
    select(x, (rows, columns))         x[rows, columns]
    weighted_sum(x, weight)            x @ weight

Two things cost time on a CPU.  What does not fit into the CPU cache is read from memory again by
the next operation: so long inputs are worked on in pieces.  And oneDNN, which multiplies, prepares
itself for every new shape of matrix: so there are few shapes.  The sizes below were chosen by
measured speed and memory (lessons/notes/speed.md).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.processor import size_step

Positions = tuple[Tensor, Tensor]  # rows (N,) and columns (N,) of N tokens of a batch

BYTES_AT_ONCE = 2048  # for each feature of a token: 512 tokens in float32, 1024 in bfloat16
SCORES_BYTES = 8 * 2**20  # attention scores at once


def by_token(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """layer(x), for a layer that works on each token (..., D) alone.

    On a CPU, at most 512 or (in bfloat16) 1024 tokens at a time, the last filled up with zeros.
    """
    if x.device.type != "cpu":
        return layer(x)
    tokens, at_once = x.flatten(0, -2), BYTES_AT_ONCE // product_dtype(x).itemsize
    step = min(128, size_step(len(tokens), 4 if len(tokens) < 512 else 8))
    missing = -len(tokens) % step  # few shapes, and little waste
    if missing == 0 and len(tokens) <= at_once:
        return layer(x)
    pieces = F.pad(tokens, (0, 0, 0, missing)).split(at_once)
    return torch.cat([layer(piece) for piece in pieces])[:len(tokens)].view(*x.shape[:-1], -1)


def by_row(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor,
           mask: Tensor | None) -> Tensor:
    """attention(q, k, v, mask), causal if there is no mask, with the heads last: (B, T, H, K).

    On a CPU the formula is twice as fast as PyTorch's fused kernel, if it is given few enough rows
    at a time that their scores stay in the CPU cache.  Its price is memory: for the gradient it
    keeps B H T T probabilities.  The fused kernel is used on a GPU.
    """
    T = q.shape[2]
    if q.device.type != "cpu":
        heads = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return heads.transpose(1, 2)
    if mask is None:
        mask = torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)
    mask = mask.expand(len(q), 1, T, T)
    rows = SCORES_BYTES / (q.shape[1] * T * T * q.element_size())
    rows = 2 ** int(math.log2(max(1, rows)))  # a power of two, for few shapes
    pieces = zip(*(x.split(rows) for x in (q, k, v, mask)), strict=True)
    with torch.autocast("cpu", enabled=False):  # q, k and v are in the right precision already
        return torch.cat([attention(*piece).transpose(1, 2) for piece in pieces])


def select(x: Tensor, at: Positions) -> Tensor:
    """x[rows, columns], (B, T, D) -> (N, D); the gradient is many times faster."""
    rows, columns = at
    return x.flatten(0, 1).index_select(0, rows * x.shape[1] + columns)


def weighted_sum(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight, (..., D), (D,) -> (...), without a shape of matrix product for every size of x.
    """
    return (x * weight).sum(-1)


def additive_mask(visible: Tensor, x: Tensor) -> Tensor:
    """What attention adds to its scores, made once for all layers: (B, T, S) -> (B, 1, T, S).

    0 where visible, -inf elsewhere.
    """
    zeros = torch.zeros(visible.shape, dtype=product_dtype(x), device=x.device)
    return zeros.masked_fill(~visible, -torch.inf)[:, None]


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision in which x would be multiplied: its own, or autocast's."""
    autocast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
