"""Preference and SFT records: check, load, truncate, split.

Inside the library a preference is {"prompt", "chosen", "rejected"} and a demonstration {"prompt",
"response"}.  Other layouts and spellings (`data.layouts`) are accepted only where data comes in.
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

    Raises DataError, naming the row (counted from 0), if a column is missing, a field is empty or
    not text, or chosen and rejected are identical, since no loss can learn from that.
    """
    records = [preference(row, f"row {index}")[0] for index, row in enumerate(rows)]
    for index, record in enumerate(records):
        if record["chosen"] == record["rejected"]:
            raise DataError(f"row {index}: chosen and rejected are identical "
                            f"({record['chosen'][:40]!r}), so there is nothing to prefer: drop the "
                            "row")
    return _not_empty(records)


def check_sft(rows: Sequence[Mapping]) -> list[Record]:
    """Rows in any accepted layout -> {"prompt", "response"}; an empty prompt means plain text.

    A preference row counts as a demonstration of its chosen response.
    Raises DataError, naming the row, if a column is missing or a field is not usable.
    """
    return _not_empty([demonstration(row, f"row {index}")[0] for index, row in enumerate(rows)])


def preference(row: Mapping, where: str) -> tuple[Record, str]:
    """One row -> (record, layout it was in).  Raises DataError beginning with `where`."""
    columns, layout = preference_columns(_mapping(row, where), where)
    return _record(columns, PREFERENCE_COLUMNS, where), layout


def demonstration(row: Mapping, where: str) -> tuple[Record, str]:
    """One row -> (record, layout it was in).  Raises DataError beginning with `where`."""
    columns, layout = demonstration_columns(_mapping(row, where), where)
    return _record(columns, SFT_COLUMNS, where, may_be_empty=("prompt",)), layout


def load_preferences(path: str | Path) -> list[Record]:
    """Load and check the preference rows of a file; one printed line says what was found.

    Pairs of identical responses are left out, and another line counts them.
    Raises FileNotFoundError, or DataError naming the file, the line and what to change.
    """
    return [record for _, record in read_records(path, preference)]


def load_sft(path: str | Path) -> list[Record]:
    """Load and check the demonstrations of a file; one printed line says what was found.

    Raises FileNotFoundError, or DataError naming the file, the line and what to change.
    """
    return [record for _, record in read_records(path, demonstration)]


def read_records(path: str | Path, read: Callable[[Mapping, str], tuple[Record, str]]
                 ) -> list[tuple[str, Record]]:
    """(place in the file, record) for each row; `read` is `preference` or `demonstration`."""
    records: list[tuple[str, Record]] = []
    same: list[str] = []
    layouts: Counter[str] = Counter()
    for place, row in read_rows(path):
        record, layout = read(row, f"{path}, {place}")
        layouts[layout] += 1
        if "chosen" in record and record["chosen"] == record["rejected"]:
            same.append(place)
        else:
            records.append((place, record))
    if layouts:
        print(f"{path}: {layouts.total()} rows of {', '.join(record)}, found as "
              f"{' and '.join(layouts)}")
    if same:
        print(f"{path}: left out {len(same)} rows whose chosen and rejected are identical (the "
              f"first: {', '.join(same[:5])})")
    if not records:
        raise DataError(f"{path}: there are no rows"
                        + " whose chosen and rejected differ" * bool(same))
    return records


# --- rows that are too long -----------------------------------------------------------------------

TRUNCATION_CHOICES = ("prompt", "response", "row")
SHORTEST_PROMPT = 16  # tokens; a prompt truncated to fewer says too little


def truncate_records(records: Sequence[tuple[str, Record]], max_seq_len: int, long_rows: str
                     ) -> list[Record | None]:
    """`truncate_record` on the record of each (place, record).

    Prints one line on truncated rows and one on dropped rows, each with the first places.
    Raises DataError if every row is dropped.
    """
    fitted = [truncate_record(record, max_seq_len, long_rows) for _, record in records]
    pairs = list(zip(records, fitted, strict=True))
    truncated = [place for (place, old), new in pairs if new is not None and new != old]
    dropped = [place for (place, _), new in pairs if new is None]
    kept = len(records) - len(dropped)
    for what, places in (("truncated the prompt on the left in", truncated),
                         ("dropped as too long:", dropped)):
        if places:
            print(f"max_seq_len={max_seq_len}: kept {kept} of {len(records)} rows; {what} "
                  f"{len(places)} (the first: {', '.join(places[:5])})")
    if not kept:
        raise DataError(f"no row fits into max_seq_len={max_seq_len}: raise it")
    return fitted


def truncate_record(record: Record, max_seq_len: int, long_rows: str) -> Record | None:
    """The record, truncated if it is longer than max_seq_len tokens; None means: drop the row.

    A prompt or response of N bytes takes N + 1 tokens.  long_rows is what happens to a longer row:

        "prompt"      its prompt is truncated on the left; it is dropped if too little is left
        "response"    it is returned as it is, and `minigpt.examples` truncates the response, which
                      then has no EOS; it is dropped if the prompt leaves no room for a response
        "row"         it is dropped
    """
    prompt = record["prompt"].encode()
    longest = max(len(text.encode()) + 1 for name, text in record.items() if name != "prompt")
    room = max_seq_len - 1 - (longest if long_rows != "response" else 1)  # bytes for the prompt
    if len(prompt) <= room:
        return record
    if long_rows == "prompt" and room >= SHORTEST_PROMPT:
        return {**record, "prompt": prompt[-room:].decode(errors="ignore")}  # no partial character
    return None


# --- the held-out split ---------------------------------------------------------------------------


def heldout_prompts(prompts: Iterable[str], share: float, seed: int) -> set[str]:
    """Which prompts are held out: about this share of them, and at least one.

    Each prompt is decided by a hash of it and the seed, whatever the other prompts are, so SFT and
    the later stages agree even if they read different rows.
    Raises DataError if there are fewer than two different prompts.
    """
    def draw(prompt: str) -> float:
        digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    different = sorted(set(prompts), key=draw)
    if len(different) < 2:
        raise DataError("a held-out split needs at least two different prompts")
    return {prompt for prompt in different[:-1] if draw(prompt) < share} or {different[0]}


def _mapping(row: Mapping, where: str) -> Mapping:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected an object with named columns, found "
                        f"{type(row).__name__}")
    return row


def _record(row: Mapping, columns: Sequence[str], where: str,
            may_be_empty: Sequence[str] = ()) -> Record:
    record = {}
    for column in columns:
        name = spelled(row, column)
        if name is None:
            raise DataError(f"{where}: no column for the {column} (accepted: "
                            f"{', '.join(SPELLINGS[column])}); the columns found are "
                            f"{', '.join(map(str, row)) or 'none'}")
        value = row[name]
        if not isinstance(value, str):
            raise DataError(f"{where}: column {name!r} is {type(value).__name__}, not text")
        if not value.strip() and column not in may_be_empty:
            raise DataError(f"{where}: column {name!r} is empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: column {name!r} contains a lone surrogate, which is not "
                            "valid text") from error
        record[column] = value
    return record


def _not_empty(records: list[Record]) -> list[Record]:
    if not records:
        raise DataError("there are no rows")
    return records
