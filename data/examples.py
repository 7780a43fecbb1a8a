"""Checked rows -> the examples that a loop batches: from text to ids, the same for every stage."""

from bisect import bisect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data.files import DataError
from data.layouts import Record
from data.preferences import Rows, check_labels, check_preferences, check_sft, check_unpaired
from minigpt.examples import (
    Example,
    NoRoomError,
    check_texts,
    print_row_count,
    tokenize_example,
    tokenize_examples,
)


def sft_examples(rows: Rows, max_seq_len: int) -> list[Example]:
    """Demonstrations -> examples of one response."""
    return tokenize_examples([(row["prompt"], [row["response"]]) for row in check_sft(rows)],
                             max_seq_len)


def plain_text_rows(texts: Sequence[str]) -> list[dict[str, str]]:
    """Plain text is a response to an empty prompt."""
    check_texts("texts", texts)
    return [{"prompt": "", "response": text} for text in texts]


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


def unpaired_examples(rows: Rows,
                      max_seq_len: int) -> tuple[list[Example], list[Example], Tensor]:
    """Unpaired rows -> (examples of one response, mismatched examples, labels (N,) bool).

    Mismatched example i has the prompt of example i and the completion of a row with another
    prompt, for the reference point of KTO (Ethayarajh et al. 2024, arXiv:2402.01306).
    Rows without room for a response are left out and counted.
    Raises DataError if all rows have the same label or the same prompt, ValueError if none is left.
    """
    records = check_unpaired(rows)
    examples = tokenize_examples([(row["prompt"], [row["completion"]]) for row in records],
                                 max_seq_len)
    kept = [row for row in records if len(row["prompt"].encode()) + 1 < max_seq_len]
    check_labels([row["label"] for row in kept])
    mismatched = [tokenize_example(row["prompt"], [kept[other]["completion"]], max_seq_len)
                  for row, other in zip(kept, _others(kept), strict=True)]
    return examples, mismatched, torch.tensor([row["label"] for row in kept])


def _others(rows: Sequence[Record]) -> list[int]:
    """For each row another one, whose prompt differs.

    It is the next such row, in a circle, behind the one that the row before took: a shift by 1 if
    all prompts differ, by 2 if they come in pairs, so that rejected answers are taken, too.
    """
    prompts = [row["prompt"] for row in rows]
    changes = [i for i, prompt in enumerate(prompts) if prompt != prompts[i - 1]]
    if not changes:
        raise DataError("every row has the same prompt, so no answer can be mismatched and KTO has "
                        "no reference point: bring rows with other prompts")
    others, other = [], 0
    for prompt in prompts:
        other = (other + 1) % len(prompts)
        if prompts[other] == prompt:
            other = changes[bisect(changes, other) % len(changes)]  # the next prompt, in the circle
        others.append(other)
    return others


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
