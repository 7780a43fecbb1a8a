"""Preference and SFT records: check, load, make them fit, split.

Inside the library a preference is {"prompt", "chosen", "rejected"} and a demonstration {"prompt", "response"}; the
layouts and spellings of others (`data.layouts`) are accepted where data comes in, and nowhere else.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data.files import DataError, read_rows
from data.layouts import SPELLINGS, demonstration_columns, preference_columns, spelled

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected")
SFT_COLUMNS = ("prompt", "response")

Record = dict[str, str]


def check_preferences(rows: Sequence[Mapping]) -> list[Record]:
    """Rows in any accepted layout -> {"prompt", "chosen", "rejected"}, in order.

    Raises DataError naming the row (counted from 0): a column is missing, a field is empty or no text, or chosen and
    rejected are identical, which no loss can learn from.
    """
    records = [preference(row, f"row {number}")[0] for number, row in enumerate(rows)]
    for number, record in enumerate(records):
        if record["chosen"] == record["rejected"]:
            raise DataError(f"row {number}: chosen and rejected are identical ({record['chosen'][:40]!r}), "
                            "so there is nothing to prefer: drop the row")
    return _not_empty(records)


def check_sft(rows: Sequence[Mapping]) -> list[Record]:
    """Rows in any accepted layout -> {"prompt", "response"}; an empty prompt means plain text.

    A preference row counts as a demonstration of its chosen response.  Raises DataError as `check_preferences` does.
    """
    return _not_empty([demonstration(row, f"row {number}")[0] for number, row in enumerate(rows)])


def preference(row: Mapping, where: str) -> tuple[Record, str]:
    """One row -> (its record, the layout it was in).  Raises DataError beginning with `where`."""
    columns, layout = preference_columns(_mapping(row, where), where)
    return _record(columns, PREFERENCE_COLUMNS, where), layout


def demonstration(row: Mapping, where: str) -> tuple[Record, str]:
    """One row -> (its record, the layout it was in).  Raises DataError beginning with `where`."""
    columns, layout = demonstration_columns(_mapping(row, where), where)
    return _record(columns, SFT_COLUMNS, where, may_be_empty=("prompt",)), layout


def load_preferences(path: str | Path) -> list[Record]:
    """The preference rows of a file, checked; what they were read as is printed in one line.

    A pair of identical responses is left out and counted in another line.
    Raises DataError naming file, line and what to change.
    """
    return [record for _, record in read_records(path, preference)]


def load_sft(path: str | Path) -> list[Record]:
    """The demonstrations of a file, checked; what they were read as is printed in one line.

    Raises DataError naming file, line and what to change.
    """
    return [record for _, record in read_records(path, demonstration)]


def read_records(path: str | Path, read: Callable[[Mapping, str], tuple[Record, str]]) -> list[tuple[str, Record]]:
    """(where it stands in the file, record) for each row; `read` is `preference` or `demonstration`."""
    records, same, layouts = [], [], Counter()
    for place, row in read_rows(path):
        record, layout = read(row, f"{path}, {place}")
        layouts[layout] += 1
        if "chosen" in record and record["chosen"] == record["rejected"]:
            same.append(place)
        else:
            records.append((place, record))
    if layouts:
        print(f"{path}: {layouts.total()} rows of {', '.join(record)}, found as {' and '.join(layouts)}")
    if same:
        print(f"{path}: left out {len(same)} rows whose chosen and rejected are identical (the first: "
              f"{', '.join(same[:5])})")
    if not records:
        raise DataError(f"{path}: there are no rows" + " whose chosen and rejected differ" * bool(same))
    return records


# --- rows that are too long -------------------------------------------------------------------------------------------

WHAT_GIVES_WAY = ("prompt", "response", "row")
SHORTEST_PROMPT = 16  # tokens: what is left of a prompt that was cut to less says too little


def make_fit(records: Sequence[tuple[str, Record]], max_seq_len: int, gives_way: str) -> list[Record | None]:
    """Each (place, record) made to fit into max_seq_len tokens, or None where that cannot be; what was cut and what was
    dropped is printed, a line for each, with the first places.  Raises DataError if nothing is left."""
    fitted = [fit(record, max_seq_len, gives_way) for _, record in records]
    cut = [place for (place, old), new in zip(records, fitted, strict=True) if new is not None and new != old]
    dropped = [place for (place, _), new in zip(records, fitted, strict=True) if new is None]
    kept = len(records) - len(dropped)
    for what, places in (("prompt cut from the left in", cut), ("too long and dropped:", dropped)):
        if places:
            print(f"max_seq_len={max_seq_len}: kept {kept} of {len(records)} rows; {what} {len(places)} (the first: "
                  f"{', '.join(places[:5])})")
    if not kept:
        raise DataError(f"no row fits into max_seq_len={max_seq_len}: raise it")
    return fitted


def fit(record: Record, max_seq_len: int, gives_way: str) -> Record | None:
    """The record if its prompt and responses fit, else what is left of it, if anything.

    gives_way: "prompt" (it loses its beginning; a row with too little left of it is dropped), "response" (left as it
    is here: `minigpt.batching` cuts it and takes away its EOS, so that the model does not learn to stop there; only a
    prompt without room for any response is dropped), or "row" (dropped).  A prompt of N bytes takes N + 1 tokens, and
    so does a response.
    """
    prompt = record["prompt"].encode()
    longest = max(len(text.encode()) + 1 for name, text in record.items() if name != "prompt")
    room = max_seq_len - 1 - (longest if gives_way != "response" else 1)  # bytes that the prompt may take
    if len(prompt) <= room:
        return record
    if gives_way == "prompt" and room >= SHORTEST_PROMPT:
        return {**record, "prompt": prompt[-room:].decode(errors="ignore")}  # whole letters only
    return None


# --- a held-out part --------------------------------------------------------------------------------------------------


def heldout_prompts(prompts: Iterable[str], share: float, seed: int) -> set[str]:
    """Which prompts are held out: about this share of them, and at least one.

    Whether a prompt is follows from it and the seed alone, so that SFT and the stages after it agree even where they
    read different rows.  Raises DataError if there are fewer than two different prompts.
    """
    def draw(prompt: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8], "big") / 2**64

    different = sorted(set(prompts), key=draw)
    if len(different) < 2:
        raise DataError("a held-out part needs at least two different prompts")
    return {prompt for prompt in different[:-1] if draw(prompt) < share} or {different[0]}


def _mapping(row: Mapping, where: str) -> Mapping:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected an object with named columns, found {type(row).__name__}")
    return row


def _record(row: Mapping, columns: Sequence[str], where: str, may_be_empty: Sequence[str] = ()) -> Record:
    record = {}
    for column in columns:
        name = spelled(row, column)
        if name is None:
            raise DataError(f"{where}: no column for the {column} (accepted: {', '.join(SPELLINGS[column])}); the columns "
                            f"found are {', '.join(map(str, row)) or 'none'}")
        value = row[name]
        if not isinstance(value, str):
            raise DataError(f"{where}: column {name!r} is {type(value).__name__}, not text")
        if not value.strip() and column not in may_be_empty:
            raise DataError(f"{where}: column {name!r} is empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: column {name!r} holds half a surrogate pair, which is no text") from error
        record[column] = value
    return record


def _not_empty(records: list[Record]) -> list[Record]:
    if not records:
        raise DataError("there are no rows")
    return records
