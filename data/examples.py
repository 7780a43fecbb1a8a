"""Checked rows -> the examples that a loop batches: the step from text to ids, the same for every stage."""

from collections.abc import Mapping, Sequence

from data.preferences import check_preferences, check_sft
from minigpt.batching import Example, tokenize_examples


def sft_examples(rows: Sequence[Mapping], max_seq_len: int) -> list[Example]:
    """Demonstrations -> examples of one response."""
    return tokenize_examples([(row["prompt"], [row["response"]]) for row in check_sft(rows)], max_seq_len)


def preference_examples(rows: Sequence[Mapping], max_seq_len: int) -> list[Example]:
    """Preferences -> examples of two responses, chosen first."""
    return tokenize_examples([(row["prompt"], [row["chosen"], row["rejected"]])
                              for row in check_preferences(rows)], max_seq_len)
