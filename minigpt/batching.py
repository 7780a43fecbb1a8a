"""Examples -> padded batches, in a shuffled order.

An example takes one row of a batch, and its responses share the prompt, which is read only once:

    prompt SEP  response 1 EOS  [response 2 EOS ...]  PAD PAD ...          token_ids
    0 0 0  0    1 1 1 1 1  1     2 2 2 2 2 2 2  2     -1  -1               segments

To the model each response looks as if it stood alone behind the prompt (minigpt/masks.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minigpt.examples import Example
from minigpt.processor import size_step
from minigpt.seeding import seeded
from minigpt.tokenizer import PAD


@dataclass
class Batch:
    """B examples, padded on the right to T columns.

    token_ids (B, T); segments (B, T): 0 on the prompt, j on response j with its EOS, -1 on padding;
    indices (B,): which examples these are; weight: what the mean loss over this batch counts in the
    optimizer step that it is a part of (1 where it is the whole).
    """

    token_ids: Tensor
    segments: Tensor
    indices: Tensor
    weight: float = 1.0

    @property
    def response_mask(self) -> Tensor:
        """(B, T), True on the tokens of responses."""
        return self.segments > 0

    @property
    def response_masks(self) -> Tensor:
        """(B, k, T), True on the tokens of response j of k."""
        k = int(self.segments.max())
        numbers = torch.arange(1, k + 1, device=self.segments.device)
        return self.segments[:, None] == numbers[:, None]

    @property
    def lengths(self) -> Tensor:
        """(B,), the tokens of each row without its padding."""
        return (self.segments >= 0).sum(1)

    @property
    def response_lengths(self) -> Tensor:
        """(B, k), the tokens of each response, EOS included."""
        return self.response_masks.sum(-1)

    @property
    def last_columns(self) -> Tensor:
        """(B, k), the column of each response's last token."""
        columns = torch.arange(self.segments.shape[1], device=self.segments.device)
        return (self.response_masks * columns).argmax(-1)

    def response_sums(self, values: Tensor) -> Tensor:
        """Values of tokens (B, T), summed over each response: (B, k)."""
        return (values[:, None] * self.response_masks).sum(-1)

    def on_tokens(self, values: Tensor) -> Tensor:
        """A value for each response (B, k), put on each of its tokens, and 0 elsewhere: (B, T)."""
        return values.gather(1, (self.segments - 1).clamp(min=0)) * self.response_mask

    def without_prompts(self) -> "Batch":
        """The same responses, read as if they had no prompt: its tokens count as padding."""
        return replace(self, segments=self.segments.masked_fill(self.segments == 0, -1))

    def apart(self) -> "Batch":
        """The same responses, each in a row of its own behind its prompt: (B k, T)."""
        masks = self.response_masks                                                # (B, k, T)
        k = masks.shape[1]
        kept = (masks | (self.segments == 0)[:, None]).flatten(0, 1)               # (B k, T)
        columns = (~kept).int().argsort(dim=1, stable=True)[:, :int(kept.sum(1).max())]
        token_ids, segments = (of_rows.repeat_interleave(k, 0).gather(1, columns)
                               for of_rows in (self.token_ids, self.segments))
        padding = ~kept.gather(1, columns)
        return Batch(token_ids.masked_fill(padding, PAD),
                     segments.clamp(max=1).masked_fill(padding, -1),
                     self.indices.repeat_interleave(k), self.weight)

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.token_ids.to(device), self.segments.to(device), self.indices.to(device),
                     self.weight)


def collate(examples: Sequence[Example], indices: Sequence[int] = (),
            multiple_of: int = 1) -> Batch:
    """Pad examples to the longest of them, rounded up to a multiple."""
    longest = max(example.num_tokens for example in examples)
    T = math.ceil(longest / multiple_of) * multiple_of
    token_ids, segments = [], []
    for prompt, responses, _ in examples:
        segment = [0] * len(prompt)
        for j, response in enumerate(responses, start=1):
            segment += [j] * len(response)
        padding = T - len(segment)
        token_ids.append([*b"".join((prompt, *responses)), *[PAD] * padding])
        segments.append(segment + [-1] * padding)
    return Batch(torch.tensor(token_ids), torch.tensor(segments),
                 torch.tensor(indices, dtype=torch.long))


def length_step(longest: int) -> int:
    """Rows are padded to a multiple of this, so that there are few lengths (minigpt/fast.py)."""
    return max(8, size_step(longest))


class Batches:
    """Examples in shuffled batches of similar length; epoch e's order depends on (seed, e) alone.

    Shuffled examples are sorted by length within pools of `pool_batches` batches; with 1 the order
    of the batches is wholly random.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int = 0,
                 pool_batches: int = 32):
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.pool_batches = pool_batches
        self._lengths = torch.tensor([example.num_tokens for example in examples])

    def __len__(self) -> int:
        """Batches in one epoch; the last may be smaller, and no row is left out."""
        return math.ceil(len(self.examples) / self.batch_size)

    def collate(self, indices: Sequence[int]) -> Batch:
        """These examples, padded to one of few lengths (which may be longer than max_seq_len)."""
        longest = max(self.examples[i].num_tokens for i in indices)
        return collate([self.examples[i] for i in indices], indices, length_step(longest))

    def epoch(self, epoch: int) -> list[list[int]]:
        """The indices of each batch of this epoch."""
        generator = seeded(self.seed, "data order", epoch)
        order = torch.randperm(len(self.examples), generator=generator)
        batches: list[list[int]] = []
        for pool in order.split(self.batch_size * self.pool_batches):
            pool = pool[self._lengths[pool].argsort(stable=True)]  # little padding, well shuffled
            batches += [batch.tolist() for batch in pool.split(self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def by_length(self) -> list[list[int]]:
        """Every example once, sorted by length: for evaluation, where the order is of no matter."""
        order = self._lengths.argsort(stable=True)
        return [batch.tolist() for batch in order.split(self.batch_size)]
