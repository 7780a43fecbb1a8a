"""The key-value cache, with which generating a token costs one column instead of all of them.

Responses to the same prompt share its keys and values, so a step reads them only once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.fast import by_row
from minigpt.processor import onednn_matmul

COLUMNS_AT_ONCE = 32  # when the room for responses is used up, it grows by this many tokens


class KeyValueCache:
    """Keys and values of P prompts, and of B responses to them.

    The prompts are read first, in one call of `MiniGPT.hidden_states`: (P, S) tokens, padded on the
    right.  Each later call reads one more token of every response, (B, 1), which sees its own
    prompt and what its response has so far.

    Args:
        prompt_lengths: (P,), in tokens.
        prompt_of: (B,), which prompt each response answers.
    """

    def __init__(self, prompt_lengths: Tensor, prompt_of: Tensor):
        self.prompts: list[tuple[Tensor, Tensor]] = []  # of each layer: keys, values (P, H, S, K)
        self.responses: list[Tensor] = []               # of each layer: (2, B, H, room, K)
        self.columns_read = 0                           # of the responses
        # Which prompts' keys and values are kept, in this order.
        self.rows = torch.arange(len(prompt_lengths), device=prompt_of.device)
        if len(prompt_lengths) * prompt_of.bincount().max() > 2 * len(prompt_of):
            # One prompt has so many responses that most of the table below would be left over:
            # give each response its own copy of its prompt's keys and values.
            self.rows, prompt_of = prompt_of, torch.arange(len(prompt_of), device=prompt_of.device)
        self._arrange(prompt_lengths[self.rows], prompt_of)

    def attend(self, attention: Callable[..., Tensor], layer: int, q: Tensor, k: Tensor,
               v: Tensor) -> Tensor:
        """Store k and v, and attend to all that each query may see: (B, H, T, K) -> (B, T, H, K).

        In the first call B is P.
        """
        if layer == len(self.prompts):
            self.prompts.append((k[self.rows].contiguous(), v[self.rows].contiguous()))
            self.responses.append(self._room(k))
            return by_row(attention, q, k, v, None)
        self.columns_read += layer == 0
        if self.columns_read > self.responses[layer].shape[3]:
            self.responses[layer] = torch.cat((self.responses[layer], self._room(k)), 3)
        for kept, new in zip(self.responses[layer], (k, v), strict=True):
            kept[:, :, self.columns_read - 1] = new[:, :, 0]
        with onednn_matmul(False):  # products so small are faster by MKL
            return self._attend_from_responses(layer, q * q.shape[-1] ** -0.5).transpose(1, 2)

    def _room(self, k: Tensor) -> Tensor:
        return k.new_empty(2, len(self.prompt_of), k.shape[1], COLUMNS_AT_ONCE, k.shape[3])

    def _attend_from_responses(self, layer: int, q: Tensor) -> Tensor:
        """The formula of attention, with one softmax over two products: (B, H, 1, K) -> the same.
        """
        prompt_keys, prompt_values = self.prompts[layer]
        keys, values = self.responses[layer][:, :, :, :self.columns_read]     # (B, H, n, K)
        of_prompt = self._by_prompt(q) @ prompt_keys.transpose(-1, -2)         # (P, H, G, S)
        of_prompt = self._by_response(of_prompt)                               # (B, H, 1, S)
        if self.hidden is not None:
            of_prompt = of_prompt.masked_fill(self.hidden, -torch.inf)
        scores = [of_prompt, q @ keys.transpose(-1, -2)]                       # and (B, H, 1, n)
        of_prompt, own = torch.cat(scores, -1).softmax(-1).split([s.shape[-1] for s in scores], -1)
        return self._by_response(self._by_prompt(of_prompt) @ prompt_values) + own @ values

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these responses and drop the others, which have ended."""
        for layer, kept in enumerate(self.responses):
            self.responses[layer] = kept[:, rows]
        used, prompt_of = self.prompt_of[rows].unique(return_inverse=True)
        lengths = self.prompt_lengths[used]
        if len(used) < len(self.prompt_lengths):
            columns = slice(int(lengths.max()))
            self.prompts = [(keys[:, :, columns][used], values[:, :, columns][used])
                            for keys, values in self.prompts]
        self._arrange(lengths, prompt_of)

    # The queries of all responses to one prompt go into one product with its keys.  For that, a
    # table has a row for each prompt, with G places, as many as the prompt with the most responses
    # needs.  A place left over holds response 0 again; what comes out there is not used.

    def _arrange(self, prompt_lengths: Tensor, prompt_of: Tensor) -> None:
        self.prompt_lengths, self.prompt_of = prompt_lengths, prompt_of
        rows_of: list[list[int]] = [[] for _ in prompt_lengths]
        for row, prompt in enumerate(prompt_of.tolist()):
            rows_of[prompt].append(row)
        self.most = max(map(len, rows_of))                                     # G
        table = [row for rows in rows_of for row in rows + [0] * (self.most - len(rows))]
        place = [0] * len(prompt_of)
        for prompt, rows in enumerate(rows_of):
            for nth, row in enumerate(rows):
                place[row] = prompt * self.most + nth
        self.table, self.place = (torch.tensor(rows, device=prompt_of.device)
                                  for rows in (table, place))                  # (P G), (B)
        self.in_order = table == list(range(len(prompt_of)))  # then nothing has to be moved
        columns = torch.arange(int(prompt_lengths.max()), device=prompt_of.device)
        hidden = columns >= prompt_lengths[prompt_of, None, None, None]        # (B, 1, 1, S)
        self.hidden = hidden if hidden.any() else None

    def _by_prompt(self, x: Tensor) -> Tensor:
        """(B, H, 1, X) -> (P, H, G, X)."""
        x = x[:, :, 0] if self.in_order else x[:, :, 0].index_select(0, self.table)
        return x.unflatten(0, (-1, self.most)).transpose(1, 2)

    def _by_response(self, x: Tensor) -> Tensor:
        """(P, H, G, X) -> (B, H, 1, X)."""
        x = x.transpose(1, 2).flatten(0, 1)
        return (x if self.in_order else x.index_select(0, self.place))[:, :, None]
