"""MiniGPT: a pre-norm GPT over bytes.

    tokens -> embedding + learned position -> layers x [attention, feed-forward] -> norm -> logits

Shapes: B rows, T tokens, S keys, D embed_dim, H heads, K = D / H, V vocabulary.  There is no
dropout: rows are seen only a few times, and if policy and reference dropped different units, their
log-ratio would mean nothing.

`by_token(layer, x)` is layer(x), `by_row(attention, ...)` is attention(...), and `select(x, at)` is
x[at]; how they save time on a CPU is explained in minigpt/fast.py, and can be skipped.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.cache import KeyValueCache
from minigpt.fast import Positions, additive_mask, by_row, by_token, select
from minigpt.tokenizer import VOCAB_SIZE


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K) + mask) v (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    q (B, H, T, K), k and v (B, H, S, K) -> (B, H, T, K).  The mask (B, 1, T, S) is 0 where query t
    may see key s, and -inf elsewhere.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.add_(mask).softmax(-1) @ v


class Attention(nn.Module):
    """What each token reads from the tokens that it may see."""

    def __init__(self, embed_dim: int, num_heads: int, layer: int):
        super().__init__()
        self.num_heads, self.layer = num_heads, layer
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.out = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D), before the output projection `out`.

        The block projects, since in the last layer it first drops the tokens that nobody reads.
        """
        B, T, D = x.shape
        qkv = by_token(self.qkv, x).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                   # (B, H, T, K)
        heads = by_row(attention, q, k, v, mask) if cache is None \
            else cache.attend(attention, self.layer, q, k, v)                  # (B, T, H, K)
        return heads.flatten(2)


class Block(nn.Module):
    """One layer: tokens look at one another, then each is worked on alone."""

    def __init__(self, embed_dim: int, num_heads: int, ff_dim: int, layer: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, layer)
        self.ff_norm = nn.LayerNorm(embed_dim)
        self.ff_in = nn.Linear(embed_dim, ff_dim)
        self.ff_out = nn.Linear(ff_dim, embed_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None,
                at: Positions | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), or (N, D) if only the tokens `at` N positions are needed."""
        attended = self.attention(self.attention_norm(x), mask, cache)
        if at is not None:
            x, attended = select(x, at), select(attended, at)
        x = x + by_token(self.attention.out, attended)
        return by_token(self.feed_forward, x)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.ff_out(F.gelu(self.ff_in(self.ff_norm(x))))


class MiniGPT(nn.Module):
    """The language model that every stage shares: 840,448 parameters at its defaults.

    Raises ValueError on a size that is not positive, or if num_heads does not divide embed_dim.
    """

    FORWARD_METHODS = ("hidden_states", "logits")  # what is called from outside (for FSDP's hooks)

    def __init__(self, vocab_size: int = VOCAB_SIZE, embed_dim: int = 128, num_heads: int = 4,
                 num_layers: int = 4, max_seq_len: int = 128, ff_dim: int = 512):
        super().__init__()
        self.settings = {"vocab_size": vocab_size, "embed_dim": embed_dim, "num_heads": num_heads,
                         "num_layers": num_layers, "max_seq_len": max_seq_len, "ff_dim": ff_dim}
        for name, size in self.settings.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
        self.max_seq_len = max_seq_len
        self.token_embedding = nn.Embedding(vocab_size, embed_dim)  # also the output head (tied)
        self.position_embedding = nn.Embedding(max_seq_len, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, ff_dim, layer)
                                    for layer in range(num_layers))
        self.final_norm = nn.LayerNorm(embed_dim)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """GPT-2's start: N(0, 0.02) and biases 0, so the first loss is close to ln V."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # adds to the residual stream twice: keep its variance down
            for projection in (module.attention.out, module.ff_out):
                nn.init.normal_(projection.weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)

    @property
    def device(self) -> torch.device:
        return self.token_embedding.weight.device

    def keep_layers(self, count: int | None) -> bool:
        """Drop the layers above the first `count` (None: none); returns whether any were dropped.
        """
        dropped = count is not None and count < len(self.blocks)
        if dropped:
            self.blocks = nn.ModuleList(list(self.blocks)[:count])
            self.settings["num_layers"] = len(self.blocks)
        return dropped

    def count_parameters(self) -> int:
        """The number of weights; the tied output head is counted once."""
        return sum(p.numel() for p in self.parameters())

    def hidden_states(self, token_ids: Tensor, positions: Tensor | None = None,
                      visible: Tensor | None = None, cache: KeyValueCache | None = None,
                      at: Positions | None = None) -> Tensor:
        """The output of the last layer, normed: (B, T) -> (B, T, D).

        Args:
            positions: (B, T), the position of each token; by default 0, 1, 2, ... in each row.
            visible: (B, T, S), True where query t may see key s; by default every token sees
                itself and those before it.
            cache: holds the keys and values read so far, and knows what each token may see: then
                `visible` must be None.  After the first call tokens come one at a time, with their
                positions.
            at: rows (N,) and columns (N,); the result is then (N, D), for these tokens alone.

        Raises ValueError if T is longer than max_seq_len, or if visible is given beside a cache.
        """
        if cache is not None and visible is not None:
            raise ValueError("with a cache, visible must be None: the cache knows what is seen")
        if positions is None:
            T = token_ids.shape[1]
            if self.max_seq_len < T:
                raise ValueError(f"token_ids has {T} columns, but max_seq_len={self.max_seq_len}")
            positions = torch.arange(T, device=token_ids.device)
        x = self.token_embedding(token_ids) + self.position_embedding(positions)
        mask = None if visible is None else additive_mask(visible, x)
        for block in self.blocks[:-1]:
            x = block(x, mask, cache)
        x = self.blocks[-1](x, mask, cache, at)
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """The tied output head, (..., D) -> (..., V).

        Not in bfloat16 under autocast: log-probabilities are small differences of large numbers.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            weight = self.token_embedding.weight
            return by_token(lambda tokens: F.linear(tokens, weight), hidden.to(weight.dtype))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Next-token logits, (B, T) -> (B, T, V): column t predicts token t + 1."""
        return self.logits(self.hidden_states(token_ids))
