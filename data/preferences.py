"""Preferences, demonstrations and prompts: checked rows of the caller, or loaded from files.

Inside the library a preference is {"prompt", "chosen", "rejected"}, a demonstration {"prompt",
"response"}, and an unpaired record {"prompt", "completion", "label"}, whose label is True for good.
Other layouts and spellings (data/layouts.py) are accepted only where data comes in.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from data.conversations import parsed_columns
from data.files import DataError, files_of, is_blank, read_rows, rows_of_columns
from data.layouts import (
    SPELLINGS,
    LeftOutError,
    Reading,
    Record,
    check_differ,
    read_demonstrations,
    read_preference,
    read_prompt,
    read_unpaired,
)

MOST_UNUSABLE_SHARE, MOST_UNUSABLE_ROWS = 0.1, 5  # above both, it is the wrong file or columns
MESSAGE_COLUMNS = {spelling: column in ("history", "messages")  # which hold nothing else
                   for column in ("prompt", "chosen", "rejected", "response", "history", "messages")
                   for spelling in SPELLINGS[column]}

Rows = Sequence[Mapping] | Mapping
Reader = Callable[[Any, str], Reading]


class Located(NamedTuple):
    """A record, where it is in its file, and what of its file must stay on one side of a split."""

    place: str
    record: Record
    group: str  # the first prompt of its row, or its text if that has no prompt
    demonstrations: Sequence[Record] = ()  # of a preference, see Reading


# --- rows of the caller ---------------------------------------------------------------------------


def check_preferences(rows: Rows, allow_ties: bool = False) -> list[Record]:
    """Rows in any accepted layout -> {"prompt", "chosen", "rejected"}, in order.

    Raises DataError, naming the row (counted from 0), if a column is missing, a field is empty or
    not text, or, unless ties are allowed, if chosen and rejected are identical.
    """
    records = _checked(rows, read_preference)
    if not allow_ties:
        for index, record in enumerate(records):
            check_differ(record, f"row {index}")
    return records


def check_sft(rows: Rows) -> list[Record]:
    """Rows in any accepted layout -> {"prompt", "response"}, one for each turn of an assistant.

    A preference row counts as a demonstration of its chosen response; an empty prompt means plain
    text.  Raises DataError, naming the row, if a column is missing or a field is not usable.
    """
    return _checked(rows, read_demonstrations)


def check_unpaired(rows: Rows) -> list[Record]:
    """Rows in any accepted layout -> {"prompt", "completion", "label"}, in order.

    A preference row gives two, its chosen response with True and its rejected one with False.
    Raises DataError, naming the row, if a column is missing, a field or a label is not usable, or
    chosen and rejected are identical.
    """
    return _checked(rows, read_unpaired)


def check_labels(labels: Sequence[bool]) -> None:
    """Raises DataError if all labels are the same."""
    if len(set(labels)) == 1:
        raise DataError(f"every row is labelled {'good' if labels[0] else 'bad'}: KTO needs some "
                        "of each")


def _checked(rows: Rows, read: Reader) -> list[Record]:
    given: list[Any] = list(rows)
    if isinstance(rows, Mapping):
        columns: list[Any] | None = rows_of_columns(rows)
        given = columns or [rows]
    if not given:
        raise DataError("there are no rows")
    return [record for index, row in enumerate(parsed_columns(given, MESSAGE_COLUMNS))
            for record in read(row, f"row {index}").records]


# --- rows of files --------------------------------------------------------------------------------


def load_preferences(path: str | Path, strict: bool = False) -> list[Record]:
    """Load the preference rows of a file or a folder; printed lines say what was found.

    A row that cannot be used is left out and counted, as is a pair of identical responses.
    Raises FileNotFoundError, or DataError naming file and line: the file is broken, has no usable
    row, or more than a tenth of it (and more than five rows) cannot be used; with `strict`, on the
    first such row.
    """
    return [located.record for located in read_records([path], read_preference, strict)]


def load_sft(path: str | Path, strict: bool = False) -> list[Record]:
    """Load the demonstrations of a file or a folder, one for each turn of an assistant.

    Rows labelled bad are left out and counted.  Otherwise as `load_preferences`.
    """
    return [located.record for located in read_records([path], read_demonstrations, strict)]


def load_unpaired(path: str | Path, strict: bool = False) -> list[Record]:
    """Load the unpaired rows of a file or a folder; a preference gives two, see `check_unpaired`.

    Rows labelled bad are kept.  Otherwise as `load_preferences`.
    """
    return [located.record for located in read_records([path], read_unpaired, strict)]


def load_prompts(path: str | Path, strict: bool = False) -> list[str]:
    """Load the prompts of a file or a folder, whatever answers stand beside them."""
    return [located.record["prompt"] for located in read_records([path], read_prompt, strict)]


def read_records(paths: Sequence[str | Path], read: Reader, strict: bool = False) -> list[Located]:
    """The records of these files and folders, with their places; see `load_preferences`."""
    records: list[Located] = []
    files = files_of(paths)
    for file in files:
        records += _records_of(file, read, strict, is_alone=len(files) == 1)
    if not records:
        raise DataError(f"{', '.join(map(str, paths))}: there are no rows that can be used")
    return records


class _Count:
    """Places by reason, in the order in which the reasons first occurred."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, reason: str, place: str) -> None:
        self.places.setdefault(reason, []).append(place)

    @property
    def total(self) -> int:
        return sum(map(len, self.places.values()))

    def __str__(self) -> str:
        return "; ".join(f"{reason}: {len(places)} ({_first(places)})"
                         for reason, places in self.places.items())


def _first(places: Sequence[str]) -> str:
    return ", ".join(places[:5]) + (", ..." if len(places) > 5 else "")


def _records_of(path: Path, read: Reader, strict: bool, is_alone: bool) -> list[Located]:
    places, rows = _columns_of(read_rows(path))
    records: list[Located] = []
    layouts, used, columns = Counter[str](), set[str](), dict[str, None]()
    unusable, left_out, heads = _Count(), _Count(), _Count()
    for place, row in zip(places, parsed_columns(rows, MESSAGE_COLUMNS), strict=True):
        if _is_repeated_head(row):
            heads.add("the column names again", place)
            continue
        try:
            if isinstance(row, DataError):
                raise DataError(f"{path}, {place}: {row}", row.reason)
            reading = read(row, f"{path}, {place}")
            layouts[reading.layout] += 1
            used |= reading.used
            columns |= {name: None for name in row
                        if name not in columns and not is_blank(row[name])}
            if "chosen" in reading.records[0]:
                check_differ(reading.records[0], f"{path}, {place}")
        except LeftOutError as error:
            left_out.add(error.reason, place)
            continue
        except DataError as error:
            if strict:
                raise
            unusable.add(error.reason, place)
            continue
        group = reading.group or _group(reading.records[0])
        records += [Located(place if is_alone else f"{path}, {place}", record, group,
                            reading.demonstrations) for record in reading.records]
    if unusable.total > max(MOST_UNUSABLE_SHARE * len(rows), MOST_UNUSABLE_ROWS) or \
            (unusable.total and not layouts and is_alone):
        raise DataError(f"{path}: {unusable.total} of {len(rows)} rows cannot be used, so this may "
                        f"be the wrong file, or its columns have other names: {unusable}")
    if layouts:
        unused = ", ".join(name or "(no name)" for name in columns if name not in used)
        kind = ", ".join(records[0].record) if records else "no records"
        _print(f"{path}: {len(records)} records of {kind} from {layouts.total()} rows, found as "
               f"{' and '.join(layouts)}" + (f"; columns not used: {unused}" if unused else ""))
    for count in (unusable, left_out, heads):
        if count.total:
            _print(f"{path}: left out {count.total} of {len(rows)} rows: {count}")
    return records


def _group(record: Record) -> str:
    """What a row is known by when rows are held out: its prompt, or the text that has none."""
    return record["prompt"] or record["response"]


def _print(line: str) -> None:
    print(line.encode("utf-8", "backslashreplace").decode())  # half a character may be in a name


def _columns_of(pairs: Iterable[tuple[str, Any]]) -> tuple[list[str], list[Any]]:
    """Places and rows, with the names of the columns in lower case."""
    places, rows = [], []
    for place, row in pairs:
        places.append(place)
        if isinstance(row, Mapping):
            names = _in_lower_case(tuple(row))
            if len(set(names)) == len(names):  # of two that become one, the reader complains
                row = dict(zip(names, row.values(), strict=True))
        rows.append(row)
    return places, rows


@lru_cache(maxsize=100)
def _in_lower_case(names: tuple) -> tuple[str, ...]:
    return tuple(str(name).strip().lower() for name in names)


def _is_repeated_head(row: Any) -> bool:
    return isinstance(row, Mapping) and len(row) > 0 and all(
        isinstance(value, str) and value.strip().lower() == name for name, value in row.items())
