"""Texts -> examples: a prompt and its responses as ids, truncated to fit the model.

An *example* is what one term of a loss needs: a prompt with one response (SFT), with two (chosen
and rejected), or with none (a prompt for PPO to answer).
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from minigpt.errors import UserError
from minigpt.tokenizer import EOS, SEP, encode

MOST_RESPONSES = 8  # in one row; in longer rows attention costs more than the prompt did
Text = str | list[int]  # a response: its text, or the ids that a model generated


class Example(NamedTuple):
    """Ids are stored as bytes (every id is one), since there may be a million rows."""

    prompt: bytes                  # SEP included
    responses: tuple[bytes, ...]   # EOS included
    is_truncated: bool = False     # a response did not fit, so it ends without EOS

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


class NoRoomError(UserError):
    """The prompt alone fills max_seq_len, so there is no room for a response."""


def check_texts(name: str, texts: Sequence) -> None:
    """Raises TypeError if this is one string, whose letters would each count as a text."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} is a single string, but a list of texts is needed: "
                        f"{name}=[{texts[:40]!r}]")


def tokenize_prompt(prompt: str, max_seq_len: int) -> list[int]:
    """`prompt SEP`; an empty prompt is `EOS`, since plain text begins where another text ended.

    Raises NoRoomError unless at least one more token fits.
    """
    ids = [*encode(prompt), SEP] if prompt else [EOS]
    if len(ids) >= max_seq_len:
        raise NoRoomError(f"the prompt {prompt[:40]!r}... takes {len(ids)} of max_seq_len="
                          f"{max_seq_len} tokens and leaves no room for a response: shorten it "
                          "or raise max_seq_len")
    return ids


def tokenize_example(prompt: str, responses: Sequence[Text], max_seq_len: int) -> Example:
    """`prompt SEP` and each `response EOS`, truncated so that both together fit into max_seq_len.

    A truncated response loses its EOS: a text that stops in the middle must not teach the model to
    end there.  A response given as ids (from `generate`) is used as it is, so that what is scored
    is what was sampled.  Raises NoRoomError if the prompt leaves no room; TypeError if responses is
    a single string.
    """
    check_texts("responses", responses)
    prompt_ids = tokenize_prompt(prompt, max_seq_len)
    room = max_seq_len - len(prompt_ids)
    ids = [[*encode(r), EOS] if isinstance(r, str) else list(r) for r in responses]
    return Example(bytes(prompt_ids), tuple(bytes(i[:room]) for i in ids),
                   is_truncated=any(len(i) > room for i in ids))


def tokenize_responses(prompts: Sequence[str], responses: Sequence[Text],
                       max_seq_len: int) -> list[Example]:
    """One response to each prompt -> examples, which together hold the responses in their order.

    Where every k responses in a row answer the same prompt, as samples do, they share an example,
    so that the prompt is read once for them.  A response that has to be truncated is one that its
    example names, so then there is an example for each.
    """
    pairs = list(zip(prompts, responses, strict=True))
    k = max(k for k in range(1, MOST_RESPONSES + 1) if len(pairs) % k == 0
            and all(len(set(prompts[i:i + k])) == 1 for i in range(0, len(pairs), k)))
    examples = [tokenize_example(pairs[i][0], [response for _, response in pairs[i:i + k]],
                                 max_seq_len) for i in range(0, len(pairs), k)]
    if k > 1 and any(example.is_truncated for example in examples):
        return [tokenize_example(prompt, [response], max_seq_len) for prompt, response in pairs]
    return examples


def each_once(prompts: Sequence[str],
              responses: Sequence[Text]) -> tuple[list[str], list[Text], list[int]]:
    """Each distinct response to a prompt once: prompts, responses, and each given one's place.

    Samples repeat each other, most after training, and what is computed of one holds for all that
    are like it.  Those to a prompt stand together and fill rows (the last is repeated for that), so
    that `tokenize_responses` reads the prompt once for MOST_RESPONSES of them.  Where this would
    save nothing, all stay as they are.
    """
    keys = [(prompt, response if isinstance(response, str) else tuple(response))
            for prompt, response in zip(prompts, responses, strict=True)]
    different: dict[str, dict[Hashable, Text]] = {}
    for (prompt, key), response in zip(keys, responses, strict=True):
        different.setdefault(prompt, {})[key] = response
    once: list[tuple[str, Text]] = []
    places: dict[Hashable, int] = {}
    for prompt, answers in different.items():
        places |= {(prompt, key): len(once) + number for number, key in enumerate(answers)}
        rows = list(answers.values())
        rows += rows[-1:] * (-len(rows) % MOST_RESPONSES)
        once += [(prompt, response) for response in rows]
    if len(once) >= len(keys):
        return list(prompts), list(responses), list(range(len(keys)))
    return [prompt for prompt, _ in once], [response for _, response in once], \
        [places[key] for key in keys]


def tokenize_examples(rows: Sequence[tuple[str, Sequence[Text]]],
                      max_seq_len: int) -> list[Example]:
    """(prompt, responses) -> examples; prints one line if any row was truncated or dropped.

    Raises ValueError if no row is left.
    """
    kept, dropped, truncated = [], [], []
    for index, (prompt, responses) in enumerate(rows):
        try:
            kept.append(tokenize_example(prompt, responses, max_seq_len))
        except NoRoomError:
            dropped.append(index)
            continue
        if kept[-1].is_truncated:
            truncated.append(index)
    print_row_count("truncated a response in", truncated, len(rows), max_seq_len)
    print_row_count("no room for a response, so dropped", dropped, len(rows), max_seq_len)
    if not kept:
        raise ValueError("no row is left to train on" if rows else
                         "rows is empty: there is nothing to train on")
    return kept


def print_row_count(what: str, indices: Sequence[int], total: int, max_seq_len: int) -> None:
    """Print how many rows did not fit, and the first five; nothing if all did."""
    if indices:
        print(f"max_seq_len={max_seq_len}: {what} {len(indices)} of {total} rows "
              f"(the first: {list(indices[:5])})")
