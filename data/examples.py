"""Rows of text -> the tokenized examples that every stage trains on."""

from collections.abc import Mapping, Sequence

from data.preferences import check_preferences, check_sft
from minigpt.examples import Example, tokenize_examples


def sft_examples(rows: Sequence[Mapping], max_seq_len: int) -> list[Example]:
    """Demonstrations -> examples with one response.  Raises DataError on a row that is unusable."""
    return tokenize_examples([(row["prompt"], [row["response"]]) for row in check_sft(rows)],
                             max_seq_len)


def preference_examples(rows: Sequence[Mapping], max_seq_len: int) -> list[Example]:
    """Preferences -> examples with two responses, chosen first.

    Raises DataError on a row that is unusable.
    """
    return tokenize_examples([(row["prompt"], [row["chosen"], row["rejected"]])
                              for row in check_preferences(rows)], max_seq_len)
