"""Checked rows -> the examples that a loop batches: the step from text to ids, the same for every stage."""

from collections.abc import Mapping, Sequence

from data.preferences import check_preferences, check_sft
from minigpt.batching import Row, tokenize_examples


def sft_examples(rows: Sequence[Mapping], max_seq_len: int) -> list[tuple[Row, ...]]:
    """Demonstrations -> examples of one row."""
    return tokenize_examples([[(row["prompt"], row["response"])] for row in check_sft(rows)], max_seq_len)


def preference_examples(rows: Sequence[Mapping], max_seq_len: int) -> list[tuple[Row, ...]]:
    """Preferences -> examples of two rows, chosen first."""
    return tokenize_examples([[(row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])]
                              for row in check_preferences(rows)], max_seq_len)
