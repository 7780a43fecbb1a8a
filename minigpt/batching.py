"""Rows of text -> padded batches of like length.

An *example* is what one loss term needs: a prompt and its responses, one for SFT, two (chosen, rejected) for a
preference.  It takes one row of a batch, and its responses share the prompt, which is read once:

    prompt SEP  response 1 EOS  [response 2 EOS ...]  PAD PAD ...          token_ids
    0 0 0  0    1 1 1 1 1  1     2 2 2 2 2 2 2  2     -1  -1               segments

To the model each response looks as if it stood alone behind the prompt (`prompt_and_own`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.cli import UserError
from minigpt.processor import onednn_multiplies, step_between_sizes
from minigpt.tokenizer import EOS, PAD, SEP, encode

Text = str | list[int]  # a response: its text, or the very ids that a model generated


class Example(NamedTuple):
    prompt: bytes                   # ids, SEP included; every id is a byte, and a million rows had better stay small
    responses: tuple[bytes, ...]    # ids, EOS included
    is_cut: bool = False            # a response did not fit, so it ends without EOS

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


class NoRoomError(UserError):
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


def tokenize_example(prompt: str, responses: Sequence[Text], max_seq_len: int) -> Example:
    """`prompt SEP` and each `response EOS`, cut so that prompt and response fit into max_seq_len.

    A cut response loses its EOS: a text that stops in the middle must not teach the model that it ended there.
    Given as ids (from `generate`), a response is used as it stands, so that what is scored is what was sampled.
    """
    prompt_ids = tokenize_prompt(prompt, max_seq_len)
    room = max_seq_len - len(prompt_ids)
    ids = [[*encode(r), EOS] if isinstance(r, str) else list(r) for r in responses]
    return Example(bytes(prompt_ids), tuple(bytes(i[:room]) for i in ids), is_cut=any(len(i) > room for i in ids))


def tokenize_examples(examples: Sequence[tuple[str, Sequence[Text]]], max_seq_len: int) -> list[Example]:
    """(prompt, responses) -> examples, with one printed line if any was cut or dropped.

    Raises ValueError if nothing is left.
    """
    kept, dropped, cut = [], [], []
    for number, (prompt, responses) in enumerate(examples):
        try:
            kept.append(tokenize_example(prompt, responses, max_seq_len))
        except NoRoomError:
            dropped.append(number)
            continue
        if kept[-1].is_cut:
            cut.append(number)
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
    """B examples, padded on the right to T columns.

    token_ids (B, T); segments (B, T): 0 on the prompt, j on response j, EOS included, and -1 on padding;
    examples (B,), which examples these are.
    """

    token_ids: Tensor
    segments: Tensor
    examples: Tensor

    @property
    def response_mask(self) -> Tensor:
        """(B, T), True on the tokens of responses."""
        return self.segments > 0

    @property
    def members(self) -> Tensor:
        """(B, k, T), True on the tokens of response j of k."""
        numbers = torch.arange(1, int(self.segments.max()) + 1, device=self.segments.device)
        return self.segments[:, None] == numbers[:, None]

    @property
    def lengths(self) -> Tensor:
        """(B,), the real tokens of each row."""
        return (self.segments >= 0).sum(1)

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def collate(examples: Sequence[Example], numbers: Sequence[int] = (), columns: int = 1) -> Batch:
    """Pad examples to the longest of them, and on to a multiple of `columns`."""
    T = -(-max(example.num_tokens for example in examples) // columns) * columns
    token_ids, segments = [], []
    for prompt, responses, _ in examples:
        segment = [0] * len(prompt)
        for j, response in enumerate(responses, start=1):
            segment += [j] * len(response)
        token_ids.append([*b"".join((prompt, *responses)), *[PAD] * (T - len(segment))])
        segments.append(segment + [-1] * (T - len(segment)))
    return Batch(torch.tensor(token_ids), torch.tensor(segments), torch.tensor(numbers, dtype=torch.long))


def prompt_and_own(segments: Tensor, prompt: bool = True) -> tuple[Tensor, Tensor | None]:
    """What makes responses that share a row strangers to each other: positions (B, T) and visible (B, T, T).

    A token sees, of what stands before it, the prompt and its own response (without `prompt` the response alone), and
    stands at the position that follows from how many tokens it sees.  Padding stands at 0, where it harms nobody.  Where
    plain causal attention shows every token what it may see, visible is None.
    """
    if prompt and segments.max() < 2:
        return torch.arange(segments.shape[1], device=segments.device) * (segments >= 0), None
    visible = segments[:, :, None] == segments[:, None, :]
    if prompt:
        visible = visible | (segments == 0)[:, None, :]
    visible = visible.tril()
    return (visible.sum(-1) - 1) * (segments >= 0), visible


def predicted_from(segments: Tensor) -> Tensor:
    """The column whose hidden state predicts each response token: the one before it, and for the first token of any
    response the last of the prompt.  (B, T) long; meaningless outside responses."""
    columns = torch.arange(segments.shape[1], device=segments.device)
    last_of_prompt = (segments > 0).int().argmax(1, keepdim=True) - 1
    goes_on = torch.nn.functional.pad(segments[:, 1:] == segments[:, :-1], (1, 0))
    return torch.where(goes_on, columns - 1, last_of_prompt)


def predicting(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Where the N response tokens are predicted from, in row order: rows (N,), columns (N,)."""
    rows, columns = (segments > 0).nonzero(as_tuple=True)
    return rows, predicted_from(segments)[rows, columns]


class Batches:
    """Examples in shuffled batches of like length; the order of epoch e follows from (seed, e) alone.

    sorted_together: how many batches' worth of shuffled examples are sorted by length at a time (1: not at all).
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int = 0, sorted_together: int = 32):
        self.examples, self.batch_size, self.seed, self.sorted_together = examples, batch_size, seed, sorted_together
        self._lengths = torch.tensor([example.num_tokens for example in examples])

    def __len__(self) -> int:
        """Batches in one epoch; the last may be smaller, and no row is left out."""
        return -(-len(self.examples) // self.batch_size)

    def collate(self, numbers: Sequence[int]) -> Batch:
        """Padded to one of few lengths, which may be longer than max_seq_len."""
        longest = max(self.examples[n].num_tokens for n in numbers)
        return collate([self.examples[n] for n in numbers], numbers, columns=max(8, step_between_sizes(longest)))

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
@onednn_multiplies()
def score_examples(score: Callable[[Batch], Tensor], batches: Batches, device: torch.device) -> Tensor:
    """Apply a function (Batch of B examples -> (B, k) numbers) to every example once: (N, k)."""
    order = batches.in_order()
    scores = torch.cat([score(batches.collate(numbers).to(device)).float() for numbers in order])
    back = torch.tensor([number for numbers in order for number in numbers], device=device).argsort()
    return scores[back]
