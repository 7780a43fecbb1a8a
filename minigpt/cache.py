"""The key-value cache, with which generating a token costs one column instead of all of them.

Responses to the same prompt share its keys and values, which a step reads only once for all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.fast import by_row
from minigpt.processor import onednn_matmul


class KeyValueCache:
    """Keys and values of P prompts, and of B responses to them.

    The prompts are read first, in one call of `MiniGPT.hidden_states`: (P, S) tokens, padded on the
    right.  Each later call reads one more token of every response, (B, 1), which sees its own
    prompt and what its response has so far.

    Args:
        prompt_lengths: (P,), in tokens.
        prompt_of: (B,), which prompt each response answers.
        max_new_tokens: how many tokens of a response there is room for.
    """

    def __init__(self, prompt_lengths: Tensor, prompt_of: Tensor, max_new_tokens: int):
        self.prompts: list[tuple[Tensor, Tensor]] = []  # of each layer: keys, values (P, H, S, K)
        self.responses: list[Tensor] = []               # of each layer: (2, B, H, max_new, K)
        self.max_new_tokens = max_new_tokens
        self.columns_read = 0                           # of the responses
        self._arrange(prompt_lengths, prompt_of)

    def attend(self, attention: Callable[..., Tensor], layer: int, q: Tensor, k: Tensor,
               v: Tensor) -> Tensor:
        """Keep k and v; attention to all that each query may see: (B, H, T, K) -> (B, T, H, K)."""
        if layer == len(self.prompts):
            self.prompts.append((k.contiguous(), v.contiguous()))
            shape = (2, len(self.prompt_of), k.shape[1], self.max_new_tokens, k.shape[3])
            self.responses.append(k.new_empty(shape))
            return by_row(attention, q, k, v, None)
        self.columns_read += layer == 0
        for kept, new in zip(self.responses[layer], (k, v), strict=True):
            kept[:, :, self.columns_read - 1] = new[:, :, 0]
        with onednn_matmul(False):  # products so small are faster by MKL
            return self._attend_from_responses(layer, q * q.shape[-1] ** -0.5).transpose(1, 2)

    def _attend_from_responses(self, layer: int, q: Tensor) -> Tensor:
        """The formula of attention, with one softmax over two products: (B, H, 1, K) -> the same.
        """
        prompt_keys, prompt_values = self.prompts[layer]
        keys, values = self.responses[layer][:, :, :, :self.columns_read]     # (B, H, n, K)
        of_prompt = self._by_prompt(q) @ prompt_keys.transpose(-1, -2)         # (P, H, G, S)
        scores = [self._by_response(of_prompt) + self.mask, q @ keys.transpose(-1, -2)]
        of_prompt, own = torch.cat(scores, -1).softmax(-1).split([s.shape[-1] for s in scores], -1)
        return self._by_response(self._by_prompt(of_prompt) @ prompt_values) + own @ values

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these responses and drop the others, which have ended."""
        self.responses = [kept[:, rows] for kept in self.responses]
        used, prompt_of = self.prompt_of[rows].unique(return_inverse=True)
        lengths = self.prompt_lengths[used]
        if len(used) < len(self.prompt_lengths):
            columns = slice(int(lengths.max()))
            self.prompts = [(keys[used][:, :, columns], values[used][:, :, columns])
                            for keys, values in self.prompts]
        self._arrange(lengths, prompt_of)

    # Queries of the same prompt multiply its keys together.  So there is a table with a row for
    # each prompt, as long as the most responses that one of them has; in its empty places another
    # response is computed, for nobody.

    def _arrange(self, prompt_lengths: Tensor, prompt_of: Tensor) -> None:
        self.prompt_lengths, self.prompt_of = prompt_lengths, prompt_of
        counts = prompt_of.bincount(minlength=len(prompt_lengths))
        shape = (len(counts), int(counts.max()))
        order = prompt_of.argsort(stable=True)
        nth = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[
            prompt_of[order]]                                  # of its prompt's responses
        self.place = torch.empty_like(order)                   # (B,), in the table
        self.place[order] = prompt_of[order] * shape[1] + nth
        self.table = torch.zeros_like(counts).repeat_interleave(shape[1])
        self.table[self.place] = torch.arange(len(order), device=order.device)
        self.shape = shape
        columns = torch.arange(int(prompt_lengths.max()), device=order.device)
        hidden = columns >= prompt_lengths[prompt_of, None, None, None]
        self.mask = torch.zeros(hidden.shape, device=order.device).masked_fill(hidden, -torch.inf)

    def _by_prompt(self, x: Tensor) -> Tensor:
        """(B, H, 1, X) -> (P, H, G, X)."""
        return x[:, :, 0].index_select(0, self.table).unflatten(0, self.shape).transpose(1, 2)

    def _by_response(self, x: Tensor) -> Tensor:
        """(P, H, G, X) -> (B, H, 1, X)."""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.place)[:, :, None]
