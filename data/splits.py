"""Records that are too long, and records that are held out."""

import hashlib
from collections.abc import Iterable, Sequence

from data.files import DataError
from data.layouts import Record
from data.preferences import Located

TRUNCATION_CHOICES = ("prompt", "response", "row")
SHORTEST_PROMPT = 16  # tokens; a prompt truncated to fewer says too little


# --- too long -------------------------------------------------------------------------------------


def truncate_records(records: Sequence[Located], max_seq_len: int,
                     long_rows: str) -> list[Located]:
    """The records that fit, truncated where they are longer; see `truncate_record`.

    Prints one line on truncated rows and one on dropped rows, each with the first places.
    Raises DataError if every row is dropped.
    """
    kept, truncated, dropped = [], [], []
    for located in records:
        record = truncate_record(located.record, max_seq_len, long_rows)
        if record is None:
            dropped.append(located.place)
            continue
        if record != located.record:
            truncated.append(located.place)
        kept.append(located._replace(record=record))
    for what, places in (("truncated the prompt on the left in", truncated),
                         ("dropped as too long:", dropped)):
        if places:
            print(f"max_seq_len={max_seq_len}: kept {len(kept)} of {len(records)} rows; {what} "
                  f"{len(places)} (the first: {', '.join(places[:5])})")
    if not kept:
        raise DataError(f"no row fits into max_seq_len={max_seq_len}: raise it")
    return kept


def truncate_record(record: Record, max_seq_len: int, long_rows: str) -> Record | None:
    """The record, truncated if it is longer than max_seq_len tokens; None means: drop the row.

    A prompt or response of N bytes takes N + 1 tokens.  long_rows is what happens to a longer row:

        "prompt"      its prompt is truncated on the left; it is dropped if too little is left
        "response"    it is returned as it is, and `minigpt.examples` truncates the response, which
                      then has no EOS; it is dropped if the prompt leaves no room for a response
        "row"         it is dropped
    """
    prompt = record["prompt"].encode()
    longest = max((len(text.encode()) + 1 for name, text in record.items()
                   if name not in ("prompt", "label")), default=1)
    room = max_seq_len - 1 - (longest if long_rows != "response" else 1)  # bytes for the prompt
    if len(prompt) <= room:
        return record
    if long_rows == "prompt" and room >= SHORTEST_PROMPT:
        return {**record, "prompt": prompt[-room:].decode(errors="ignore")}  # no partial character
    return None


# --- held out -------------------------------------------------------------------------------------


def loose(prompt: str) -> str:
    """A prompt without its case and white space: two that differ only in those are the same."""
    return " ".join(prompt.split()).casefold()


def heldout_prompts(prompts: Iterable[str], share: float, seed: int) -> set[str]:
    """Which prompts are held out, as `loose` makes them: about this share, and at least one.

    Each prompt is decided by a hash of it and the seed, whatever the other prompts are, so SFT and
    the later stages agree even if they read different rows.
    Raises DataError if there are fewer than two different prompts.
    """
    def draw(prompt: str) -> float:
        digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    different = sorted({loose(prompt) for prompt in prompts}, key=draw)
    if len(different) < 2:
        raise DataError("a held-out split needs at least two different prompts")
    return {prompt for prompt in different[:-1] if draw(prompt) < share} or {different[0]}


def split_records(records: Sequence[Located],
                  heldout: set[str]) -> tuple[list[Record], list[Record]]:
    """(training records, held-out records), by the group of each; no prompt is in both."""
    train = [located.record for located in records if loose(located.group) not in heldout]
    held = [located.record for located in records if loose(located.group) in heldout]
    return without_prompts_of(train, held), held


def without_prompts_of(train: Sequence[Record], heldout: Sequence[Record]) -> list[Record]:
    """The training records whose prompts are not held out (truncation may make two the same)."""
    held = {loose(record["prompt"]) for record in heldout if record["prompt"]}
    return [record for record in train if loose(record["prompt"]) not in held]
