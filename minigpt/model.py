"""MiniGPT: a pre-norm GPT over bytes, with its key-value cache, in one file.

    tokens -> embedding + learned position -> num_layers x [attention, feed-forward] -> norm -> logits

Shapes: B rows, T tokens, D embed_dim, H heads, K = D / H, V vocabulary.  There is no dropout anywhere: rows are seen
few times, and a policy and a reference that differ by a dropout mask would have a log-ratio that means nothing.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.processor import onednn_multiplies, step_between_sizes
from minigpt.tokenizer import VOCAB_SIZE

M = TypeVar("M", bound=nn.Module)
Places = tuple[Tensor, Tensor]  # rows (N,) and columns (N,) of N tokens of a batch


class KeyValueCache:
    """Keys and values of the columns read so far, so that a new token costs one column instead of all of them.

    All rows of a batch are read column by column, whatever their lengths; which of the columns a row may see is for
    the caller of `MiniGPT.hidden_states` to say.
    """

    def __init__(self, model: "MiniGPT", batch_size: int, columns: int):
        shape = (model.num_layers, 2, batch_size, model.num_heads, columns, model.embed_dim // model.num_heads)
        self.memory = torch.empty(shape, device=model.device)
        self.length = 0  # columns that have been read

    def write(self, layer: int, keys_and_values: Tensor) -> Tensor:
        """Store those of T new columns, (2, B, H, T, K); return those of all columns, (2, B, H, S, K)."""
        if self.memory.dtype != keys_and_values.dtype:  # under autocast the projections decide
            self.memory = self.memory.to(keys_and_values.dtype)
        end = self.length + keys_and_values.shape[3]
        self.memory[layer, :, :, :, self.length:end] = keys_and_values
        return self.memory[layer, :, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (the others have finished)."""
        self.memory = self.memory[:, :, rows]


PIECE = 1024                # tokens
SCORES_BYTES = 8 * 2**20    # of attention


def in_pieces(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """layer(x) for a layer that looks at each token (..., D) alone: on a CPU for 1024 of them at a time, the last filled up
    with a few zeros.

    So what comes in between stays in the processor's own memory, and there are few shapes of matrix.
    """
    tokens = x.flatten(0, -2)
    missing = -len(tokens) % min(128, step_between_sizes(len(tokens)))
    if x.device.type != "cpu" or (missing == 0 and len(tokens) <= PIECE):
        return layer(x)
    pieces = F.pad(tokens, (0, 0, 0, missing)).split(PIECE)
    return torch.cat([layer(piece) for piece in pieces])[:len(tokens)].view(*x.shape[:-1], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K) + mask) v, (B, H, T, K) (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    q is (B, H, T, K), k and v are (B, H, S, K), and the mask (B, 1, T, S) is -inf where query t may not see key s, else 0.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.add_(mask).softmax(-1) @ v


def fast_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attention`, causal without a mask, the way that is fastest, with all heads side by side: (B, T, D)."""
    T, S = q.shape[2], k.shape[2]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and T > 1).transpose(1, 2).flatten(2)
    if T == 1:  # decoding: one query, which sees every key
        with onednn_multiplies(False):
            return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
    # The formula is twice as fast here as the fused kernel, for as many rows at a time as have scores that fit into the
    # processor's own memory; a power of two of them, for few shapes.  For the gradient it keeps B H T S probabilities.
    if mask is None:
        mask = torch.full((T, S), -torch.inf, dtype=q.dtype).triu(S - T + 1)
    rows = 2 ** int(math.log2(max(1, SCORES_BYTES / (q.shape[1] * T * S * q.element_size()))))
    pieces = zip(*(x.split(rows) for x in (q, k, v, mask.expand(len(q), 1, T, S))), strict=True)
    with torch.autocast("cpu", enabled=False):
        return torch.cat([attention(*piece).transpose(1, 2) for piece in pieces]).flatten(2)


def take(x: Tensor, at: Places) -> Tensor:
    """x[rows, columns], (B, T, D) -> (N, D), with a gradient that is many times faster."""
    rows, columns = at
    return x.flatten(0, 1).index_select(0, rows * x.shape[1] + columns)


class Attention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.out = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x: Tensor, layer: int, mask: Tensor | None, cache: KeyValueCache | None, at: Places | None) -> Tensor:
        B, T, D = x.shape
        qkv = in_pieces(self.qkv, x).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, kv = qkv.permute(2, 0, 3, 1, 4).split((1, 2))                                    # (1 and 2, B, H, T, K)
        k, v = kv if cache is None else cache.write(layer, kv)                              # each (B, H, S, K)
        y = fast_attention(q[0], k, v, mask)                                                # (B, T, D)
        return in_pieces(self.out, y if at is None else take(y, at))


class Block(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, ff_dim: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads)
        self.ff_norm = nn.LayerNorm(embed_dim)
        self.ff_in = nn.Linear(embed_dim, ff_dim)
        self.ff_out = nn.Linear(ff_dim, embed_dim)

    def forward(self, x: Tensor, layer: int, mask: Tensor | None, cache: KeyValueCache | None, at: Places | None) -> Tensor:
        """(B, T, D) -> (B, T, D), or only `at` N places: (N, D)."""
        attended = self.attention(self.attention_norm(x), layer, mask, cache, at)
        x = (x if at is None else take(x, at)) + attended
        return in_pieces(self.feed_forward, x)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.ff_out(F.gelu(self.ff_in(self.ff_norm(x))))


class MiniGPT(nn.Module):
    """The language model that every stage shares: 840,448 parameters at its defaults.

    Raises ValueError if num_heads does not divide embed_dim.
    """

    READ_WEIGHTS = ("hidden_states", "logits")  # the methods that do, called from outside

    def __init__(self, vocab_size: int = VOCAB_SIZE, embed_dim: int = 128, num_heads: int = 4, num_layers: int = 4,
                 max_seq_len: int = 128, ff_dim: int = 512):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
        self.vocab_size, self.embed_dim, self.num_heads = vocab_size, embed_dim, num_heads
        self.num_layers, self.max_seq_len, self.ff_dim = num_layers, max_seq_len, ff_dim
        self.token_embedding = nn.Embedding(vocab_size, embed_dim)  # also the output head (tied weights)
        self.position_embedding = nn.Embedding(max_seq_len, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, ff_dim) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(embed_dim)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """GPT-2's start: N(0, 0.02), biases 0, so the first prediction is near uniform and its loss near ln V."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # each block adds twice to the residual stream: keep its variance from growing
            for projection in (module.attention.out, module.ff_out):
                nn.init.normal_(projection.weight, std=0.02 / (2 * self.num_layers) ** 0.5)

    @property
    def settings(self) -> dict[str, int]:
        """The constructor's arguments, which a checkpoint keeps beside the weights."""
        names = ("vocab_size", "embed_dim", "num_heads", "num_layers", "max_seq_len", "ff_dim")
        return {name: getattr(self, name) for name in names}

    @property
    def device(self) -> torch.device:
        return self.token_embedding.weight.device

    def count_parameters(self) -> int:
        """The number of weights; the tied output head is counted once."""
        return sum(p.numel() for p in self.parameters())

    def hidden_states(self, token_ids: Tensor, positions: Tensor | None = None, visible: Tensor | None = None,
                      cache: KeyValueCache | None = None, at: Places | None = None) -> Tensor:
        """The normed last layer, (B, T) -> (B, T, D), or only `at` N places (rows, columns), (N, D): of these alone the
        last layer's output and feed-forward are computed.

        Without `positions` (B, T) column t stands at position t, and without `visible` (B, T, S), True where query t
        may see key s, each column sees those before it.  With a cache the S keys are those it holds and the T new
        ones; new columns after the first reading then come one at a time.
        Raises ValueError if T is longer than max_seq_len.
        """
        if positions is None:
            if self.max_seq_len < token_ids.shape[1]:
                raise ValueError(f"token_ids has {token_ids.shape[1]} columns, more than max_seq_len={self.max_seq_len}")
            positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        x, mask = self.token_embedding(token_ids) + self.position_embedding(positions), None
        if visible is not None:  # what attention adds to its scores: once here, and not again in every layer
            device = x.device
            dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else x.dtype
            mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, -torch.inf)[:, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, mask, cache, at if layer == self.num_layers - 1 else None)
        if cache is not None:
            cache.length += token_ids.shape[1]
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """The tied output head, (..., D) -> (..., V); in float32 under autocast too, since log-probabilities are small
        differences of large numbers."""
        with torch.autocast(hidden.device.type, enabled=False):
            weight = self.token_embedding.weight
            return in_pieces(lambda tokens: F.linear(tokens, weight), hidden.to(weight.dtype))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Next-token logits, (B, T) -> (B, T, V): row t predicts token t + 1."""
        return self.logits(self.hidden_states(token_ids))


def copy_model_weights(source: nn.Module, target: M) -> M:
    """Copy every weight of `source` into `target` (a deep copy: training one leaves the other) and return `target`.

    Raises ValueError if a name or a shape differs, naming the first that does, and then changes nothing.
    """
    theirs, ours = source.state_dict(), target.state_dict()
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in ours or name not in theirs:
            raise ValueError(f"copy_model_weights: only {'source' if name in theirs else 'target'} has {name!r}")
        if theirs[name].shape != ours[name].shape:
            raise ValueError(f"copy_model_weights: {name!r} is {tuple(theirs[name].shape)} in source "
                             f"but {tuple(ours[name].shape)} in target")
    target.load_state_dict(theirs)
    return target


def check_reference(policy: nn.Module, reference: nn.Module) -> None:
    """Raises ValueError if policy and reference are one object, or differ in shape.

    As one object the reference would move with the policy: every log-ratio stays 0, and nothing is learned.
    """
    if policy is reference:
        raise ValueError("policy and reference are the same object: make the reference a copy of its own, "
                         "reference = copy_model_weights(policy, MiniGPT(...))")
    if policy.settings != reference.settings:
        raise ValueError(f"policy and reference differ in shape: {policy.settings} and {reference.settings}")
