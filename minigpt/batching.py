"""Rows of text -> padded batches of like length.

A *row* is one prompt with one response; an *example* is what one loss term needs: one row for SFT, two (chosen,
rejected) for a preference.  A batch of B examples of k rows each is (k * B, T), first rows first, so a loop over
pairs splits any per-row result with `.chunk(2)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.tokenizer import EOS, PAD, SEP, encode

Text = str | list[int]  # a response: its text, or the very ids that a model generated


class Row(NamedTuple):
    token_ids: list[int]
    response_start: int  # the first response token; all before it is prompt and SEP
    is_cut: bool         # the response did not fit, so it ends without EOS


class NoRoomError(ValueError):
    """The prompt alone fills max_seq_len, so there is no room for a response."""


def tokenize_prompt(prompt: str, max_seq_len: int) -> list[int]:
    """`prompt SEP`; an empty prompt is `EOS`, since plain text begins where the text before it ended.

    Raises NoRoomError unless at least one more token fits.
    """
    ids = [*encode(prompt), SEP] if prompt else [EOS]
    if len(ids) >= max_seq_len:
        raise NoRoomError(f"the prompt {prompt[:40]!r}... takes {len(ids)} of max_seq_len={max_seq_len} tokens "
                          "and leaves no room for a response: shorten it or raise max_seq_len")
    return ids


def tokenize_row(prompt: str, response: Text, max_seq_len: int) -> Row:
    """`prompt SEP response EOS`, cut at max_seq_len.

    A cut response loses its EOS: a text that stops in the middle must not teach the model that it ended there.
    Given as ids (from `generate`), the response is used as it stands, so that what is scored is what was sampled.
    """
    start = tokenize_prompt(prompt, max_seq_len)
    ids = start + ([*encode(response), EOS] if isinstance(response, str) else list(response))
    return Row(ids[:max_seq_len], len(start), len(ids) > max_seq_len)


def tokenize_examples(examples: Sequence[Sequence[tuple[str, Text]]], max_seq_len: int) -> list[tuple[Row, ...]]:
    """Examples of (prompt, response) -> examples of rows, with one printed line if any was cut or dropped.

    Raises ValueError if nothing is left.
    """
    kept, dropped, cut = [], [], []
    for number, example in enumerate(examples):
        try:
            rows = tuple(tokenize_row(prompt, response, max_seq_len) for prompt, response in example)
        except NoRoomError:
            dropped.append(number)
            continue
        if any(row.is_cut for row in rows):
            cut.append(number)
        kept.append(rows)
    print_count("response cut short in", cut, len(examples), max_seq_len)
    print_count("no room for a response, so dropped:", dropped, len(examples), max_seq_len)
    if not kept:
        raise ValueError("no row is left to train on" if examples else "rows is empty: there is nothing to train on")
    return kept


def print_count(what: str, rows: Sequence[int], of: int, max_seq_len: int) -> None:
    """One line that says how many rows did not fit and names the first few; nothing if all did."""
    if rows:
        print(f"max_seq_len={max_seq_len}: {what} {len(rows)} of {of} rows (the first: {list(rows[:5])})")


@dataclass
class Batch:
    """R = k * B rows, padded on the right to T columns.

    token_ids (R, T); response_mask (R, T), True on response tokens, EOS included; lengths (R,), the real tokens of
    each row; examples (B,), which examples these are.
    """

    token_ids: Tensor
    response_mask: Tensor
    lengths: Tensor
    examples: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def collate(rows: Sequence[Row], examples: Sequence[int] = ()) -> Batch:
    """Pad rows to the longest of them."""
    lengths = torch.tensor([len(row.token_ids) for row in rows])
    T = int(lengths.max())
    token_ids = torch.tensor([row.token_ids + [PAD] * (T - len(row.token_ids)) for row in rows])
    starts = torch.tensor([row.response_start for row in rows])
    columns = torch.arange(T)
    response_mask = (columns >= starts[:, None]) & (columns < lengths[:, None])
    return Batch(token_ids, response_mask, lengths, torch.tensor(examples, dtype=torch.long))


class Batches:
    """Examples in shuffled batches of like length; the order of epoch e follows from (seed, e) alone.

    sorted_together: how many batches' worth of shuffled examples are sorted by length at a time (1: not at all).
    """

    def __init__(self, examples: Sequence[tuple[Row, ...]], batch_size: int, seed: int = 0, sorted_together: int = 32):
        self.examples, self.batch_size, self.seed, self.sorted_together = examples, batch_size, seed, sorted_together
        self._lengths = torch.tensor([max(len(row.token_ids) for row in example) for example in examples])

    def __len__(self) -> int:
        """Batches in one epoch; the last may be smaller, and no row is left out."""
        return -(-len(self.examples) // self.batch_size)

    def collate(self, numbers: Sequence[int]) -> Batch:
        members = zip(*(self.examples[n] for n in numbers), strict=True)  # all first rows, then all second rows
        return collate([row for member in members for row in member], numbers)

    def epoch(self, epoch: int) -> list[list[int]]:
        """The example numbers of each batch of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.examples), generator=generator)
        batches = []
        for pool in order.split(self.batch_size * self.sorted_together):
            pool = pool[self._lengths[pool].argsort(stable=True)]  # little padding, and still much shuffling
            batches += [batch.tolist() for batch in pool.split(self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def in_order(self) -> list[list[int]]:
        """Every example once, sorted by length: for evaluation, where order does not matter and padding does."""
        return [batch.tolist() for batch in self._lengths.argsort(stable=True).split(self.batch_size)]


@torch.no_grad()
def score_examples(score_rows: Callable[[Batch], Tensor], batches: Batches, device: torch.device) -> Tensor:
    """Apply a function (Batch -> one number a row) to every example once: (N, k) for N examples of k rows."""
    k = len(batches.examples[0])
    scores = torch.zeros(len(batches.examples), k, device=device)
    for numbers in batches.in_order():
        batch = batches.collate(numbers).to(device)
        scores[batch.examples] = score_rows(batch).float().view(k, -1).T
    return scores
