"""Preference and SFT records: check, load, make them fit, split.

Inside the library a preference is {"prompt", "chosen", "rejected"} and a demonstration {"prompt", "response"}; the
layouts and spellings of others (`data.layouts`) are accepted where data comes in, and nowhere else.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    records, places = _load(path, preference)
    same = [place for place, record in zip(places, records, strict=True) if record["chosen"] == record["rejected"]]
    if same:
        print(f"{path}: left out {len(same)} rows whose chosen and rejected are identical (the first: "
              f"{', '.join(same[:5])})")
    return _not_empty([record for record in records if record["chosen"] != record["rejected"]], f"{path}: ")


def load_sft(path: str | Path) -> list[Record]:
    """The demonstrations of a file, checked; what they were read as is printed in one line.

    Raises DataError naming file, line and what to change.
    """
    return _not_empty(_load(path, demonstration)[0], f"{path}: ")


def _load(path: str | Path, read: Callable[[Mapping, str], tuple[Record, str]]) -> tuple[list[Record], list[str]]:
    records, places, layouts = [], [], Counter()
    for place, row in read_rows(path):
        record, layout = read(row, f"{path}, {place}")
        records.append(record)
        places.append(place)
        layouts[layout] += 1
    if records:
        print(f"{path}: {len(records)} rows of {', '.join(records[0])}, found as {' and '.join(layouts)}")
    return records, places


# --- rows that are too long -------------------------------------------------------------------------------------------

WHAT_GIVES_WAY = ("prompt", "response", "row")
SHORTEST_PROMPT = 16  # tokens: what is left of a prompt that was cut to less says too little


def make_fit(records: Sequence[Record], max_seq_len: int, gives_way: str) -> list[Record]:
    """The records whose prompt and responses fit into max_seq_len tokens, with a printed line if any was cut, another if
    any was dropped (rows are counted from 0, among those that can be used at all).

    gives_way: "prompt" (it loses its beginning; a row with too little left of it is dropped), "response" (left as it
    is here: `minigpt.batching` cuts it and takes away its EOS, so that the model does not learn to stop there; only a
    prompt without room for any response is dropped), or "row" (dropped).  A prompt of N bytes takes N + 1 tokens, and
    so does a response.
    """
    kept, cut, dropped = [], [], []
    for number, record in enumerate(records):
        prompt = record["prompt"].encode()
        longest = max(len(text.encode()) + 1 for name, text in record.items() if name != "prompt")
        room = max_seq_len - 1 - (longest if gives_way != "response" else 1)  # bytes that the prompt may take
        if len(prompt) <= room:
            kept.append(record)
        elif gives_way == "prompt" and room >= SHORTEST_PROMPT:
            kept.append({**record, "prompt": prompt[-room:].decode(errors="ignore")})  # whole letters only
            cut.append(number)
        else:
            dropped.append(number)
    for what, rows in (("prompt cut from the left in", cut), ("too long and dropped:", dropped)):
        if rows:
            print(f"max_seq_len={max_seq_len}: kept {len(kept)} of {len(records)} rows; {what} {len(rows)} (the first: rows "
                  f"{', '.join(map(str, rows[:5]))})")
    if not kept:
        raise DataError(f"no row fits into max_seq_len={max_seq_len}: raise it")
    return kept


# --- a held-out part --------------------------------------------------------------------------------------------------


def split_by_prompt(rows: Sequence[Record], heldout_share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training rows, held-out rows): whole prompts, so that none stands on both sides.

    Raises DataError if there are fewer than two different prompts.
    """
    prompts = sorted({row["prompt"] for row in rows})
    if len(prompts) < 2:
        raise DataError("a held-out part needs at least two different prompts")
    count = min(len(prompts) - 1, max(1, round(heldout_share * len(prompts))))
    heldout = set(random.Random(seed).sample(prompts, count))
    return [r for r in rows if r["prompt"] not in heldout], [r for r in rows if r["prompt"] in heldout]


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


def _not_empty(records: list[Record], where: str = "") -> list[Record]:
    if not records:
        raise DataError(f"{where}there are no rows")
    return records
