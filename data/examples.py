"""Checked rows -> the examples that a loop batches: from text to ids, the same for every stage."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data.files import DataError
from data.preferences import Rows, check_preferences, check_sft
from minigpt.examples import (
    Example,
    NoRoomError,
    print_row_count,
    tokenize_example,
    tokenize_examples,
)


def sft_examples(rows: Rows, max_seq_len: int) -> list[Example]:
    """Demonstrations -> examples of one response."""
    return tokenize_examples([(row["prompt"], [row["response"]]) for row in check_sft(rows)],
                             max_seq_len)


def preference_examples(rows: Rows, max_seq_len: int) -> list[Example]:
    """Preferences -> examples of two responses, chosen first, for training.

    Pairs that do not fit, or whose responses are identical once truncated, are left out and
    counted.
    Raises ValueError if none is left.
    """
    examples = tokenize_examples(_pairs(check_preferences(rows)), max_seq_len)
    same = [index for index, example in enumerate(examples) if is_tie(example)]
    print_row_count("left out pairs that are identical once truncated:", same, len(examples),
                    max_seq_len)
    kept = [example for example in examples if not is_tie(example)]
    if not kept:
        raise DataError("every pair is identical once truncated: raise max_seq_len")
    return kept


def measured_examples(rows: Rows, max_seq_len: int) -> list[Example]:
    """Preferences -> examples of two responses, chosen first, one for each row.

    Raises DataError naming the row if one cannot be used or leaves no room for a response.
    """
    examples = []
    for index, (prompt, responses) in enumerate(_pairs(check_preferences(rows, allow_ties=True))):
        try:
            examples.append(tokenize_example(prompt, responses, max_seq_len))
        except NoRoomError as error:
            raise DataError(f"row {index}: {error}") from error
    truncated = [index for index, example in enumerate(examples) if example.is_truncated]
    print_row_count("truncated a response in", truncated, len(examples), max_seq_len)
    return examples


def is_tie(example: Example) -> bool:
    """Whether the two responses of a pair are the same ids."""
    return example.responses[0] == example.responses[1]


def with_exact_ties(values: Tensor, examples: Sequence[Example]) -> Tensor:
    """Values of both responses (N, 2), made equal where these are: their rounding may differ."""
    ties = torch.tensor([is_tie(example) for example in examples])
    return torch.where(ties[:, None], values[:, :1], values)


def _pairs(records: Sequence[Mapping]) -> list[tuple[str, list[str]]]:
    return [(row["prompt"], [row["chosen"], row["rejected"]]) for row in records]
