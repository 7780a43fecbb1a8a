"""Files -> rows: JSON Lines, JSON, CSV and Parquet, each but the last also gzipped.

JSON Lines, a list of rows, columns of lists, `{"data": [...]}` and the tables of pandas are told
apart by their content, CSV's separator by its first line, UTF-16 and gzip by their first bytes.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, cast

from minigpt.errors import UserError


class DataError(UserError):
    """A row or a file that cannot be used; the message names the row and says what to change.

    reason: the same without the place, to count rows with the same fault.
    """

    def __init__(self, message: str, reason: str | None = None):
        super().__init__(message)
        self.reason = reason or message


JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
CSV_ENDINGS = (".csv", ".tsv")
ENDINGS = (*JSON_ENDINGS, *CSV_ENDINGS, ".parquet")
# {"data": [...]}: where the rows of a file are
WRAPPERS = ("data", "rows", "examples", "train", "validation", "eval", "dev", "test")
SEPARATORS = ",;\t"
MARK = "\ufeff"  # which Excel writes before the first letter

Place = str
Row = Any  # a mapping, if the row can be used


def files_of(paths: Sequence[str | Path]) -> list[Path]:
    """The files that these are; of a folder, the files of rows in it, in order of their names.

    Raises DataError if a folder has none, FileNotFoundError if there is no such path.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            path.stat()  # raises FileNotFoundError
            found.append(path)
            continue
        inside = sorted(file for file in path.iterdir() if file.is_file()
                        and not file.name.startswith(".") and _ending(file) in ENDINGS)
        if not inside:
            raise DataError(f"{path}: no file of rows in this folder ({', '.join(ENDINGS)})")
        found += inside
    return found


def read_rows(path: str | Path) -> Iterator[tuple[Place, Row]]:
    """(where it is, row) for each row of a file.

    A row of CSV with too many cells comes as the DataError that it is.
    Raises FileNotFoundError, or DataError naming the file and the line if the file is broken.
    """
    path = Path(path)
    ending = _ending(path)
    if ending not in ENDINGS:
        raise DataError(f"{path}: unknown kind of file (accepted: {', '.join(ENDINGS)}, the text "
                        "files also with .gz)")
    try:
        with path.open("rb") as raw:
            if ending == ".parquet":
                yield from _parquet(raw)
                return
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(raw) if zipped else raw as file:
                text = _decoded(cast(BinaryIO, file))
                yield from _csv(text) if ending in CSV_ENDINGS else _json(text)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from error
    except DataError as error:
        raise DataError(f"{path}, {error}", error.reason) from error


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _decoded(file: BinaryIO) -> io.StringIO:
    """The text of a file: UTF-8, or UTF-16 if it begins with that mark.

    Such a mark may also stand inside, where several files were joined.
    """
    content = file.read()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"line {line}: not UTF-8 ({error.reason}): save the file as "
                        "UTF-8") from error
    if "\0" in text[:4]:
        raise DataError("line 1: not UTF-8 (it begins as UTF-16 or UTF-32 does): save the file as "
                        "UTF-8")
    return io.StringIO(text.lstrip(MARK).replace("\n" + MARK, "\n"), newline="")


# --- JSON -----------------------------------------------------------------------------------------


def _json(text: io.StringIO) -> Iterator[tuple[Place, Row]]:
    """JSON Lines if the first line is a whole value, else one JSON document."""
    filled = (line for line in text if line.strip())
    first, second = next(filled, ""), next(filled, None)
    text.seek(0)
    if first.lstrip()[:1] == "[" or not _is_json(first):
        yield from _document(text.read())
    elif second is None:  # one line: a row, or a document on one line
        for place, row in _lines(text):
            rows = _unwrapped(row)
            yield from [(place, row)] if rows is None else _numbered(rows)
    else:
        yield from _lines(text)


def _lines(text: Iterable[str]) -> Iterator[tuple[Place, Row]]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield f"line {number}", _parsed(line, number)


def _document(text: str) -> Iterator[tuple[Place, Row]]:
    if not text.strip():
        return iter(())
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        others = [] if text.lstrip()[:1] == "[" else text.splitlines()[1:3]
        if any(line.lstrip()[:1] == "{" and _is_json(line) for line in others):
            return _lines(io.StringIO(text))  # JSON Lines, the first of which is broken
        line = getattr(error, "lineno", 1)
        raise DataError(f"line {line}: not valid JSON ({error})") from error
    rows = content if isinstance(content, list) else _unwrapped(content)
    return _numbered([content] if rows is None else rows)


def _numbered(rows: Iterable[Row]) -> Iterator[tuple[Place, Row]]:
    return ((f"row {number}", row) for number, row in enumerate(rows))


def _unwrapped(content: Any) -> list[Row] | None:
    """The rows of one JSON value: {"data": [...]} or `rows_of_columns`; None if it is a row."""
    if not isinstance(content, Mapping):
        return None
    tables = {name: rows for name in WRAPPERS
              if (rows := _rows_of_table(content.get(name))) is not None}
    if len(tables) > 1:
        raise DataError(f"line 1: rows in several places ({', '.join(tables)}): save each as a "
                        "file of its own")
    for rows in tables.values():
        return rows
    return rows_of_columns(content)


def _rows_of_table(table: Any) -> list[Row] | None:
    if isinstance(table, list) and table and all(isinstance(row, Mapping) for row in table):
        return table
    return rows_of_columns(table) if isinstance(table, Mapping) else None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # broken, or nested without end
        raise DataError(f"line {number}: not valid JSON ({error})") from error


# --- CSV ------------------------------------------------------------------------------------------


def _csv(text: io.StringIO) -> Iterator[tuple[Place, Row]]:
    csv.field_size_limit(2**31 - 1)  # a long answer is no error
    head = next((line for line in text if line.strip()), "")
    text.seek(0)
    reader = csv.reader(text, strict=True, delimiter=_separator(head))
    columns: list[str] | None = None
    last = 0
    try:
        for cells in reader:
            last = reader.line_num
            if not any(cell.strip() for cell in cells) or (columns is None and cells[0] == "sep="):
                continue  # Excel reads its separator from a first line `sep=;`
            if columns is None:
                columns = _columns(cells, last)
            elif any(cell.strip() for cell in cells[len(columns):]):
                reason = (f"more cells than the {len(columns)} columns of the first line (a text "
                          "that contains the separator needs quotes)")
                yield f"line {last}", DataError(reason)
            else:
                filled = zip_longest(columns, cells[:len(columns)])
                yield f"line {last}", {name: cell for name, cell in filled if name or cell}
    except csv.Error as error:
        raise DataError(f"line {last + 1}: not valid CSV ({error})") from error


def _separator(head: str) -> str:
    """The separator that occurs most often in the first line, outside of quotes."""
    outside = "".join(head.split('"')[::2])
    return max(SEPARATORS, key=outside.count)


def _columns(cells: Sequence[str], line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    lower = [name.lower() for name in names]
    for name in lower:
        if name and lower.count(name) > 1:
            raise DataError(f"line {line}: the column {name!r} occurs twice: which one is meant? "
                            "Rename or remove one")
    return names


# --- Parquet --------------------------------------------------------------------------------------


def _parquet(file: BinaryIO) -> Iterator[tuple[Place, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("Parquet needs the package pyarrow: pip install pyarrow") from error
    try:
        rows = parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"not a whole Parquet file ({error})") from error
    yield from _numbered(rows)


# --- tables ---------------------------------------------------------------------------------------


def rows_of_columns(table: Mapping) -> list[Any] | None:
    """The rows of a table that is a single object; None if it is not, but a single row.

        {"prompt": ["a", "b"], "chosen": [...]}             columns of lists
        {"prompt": {"0": "a", "1": "b"}, "chosen": ...}     cells by their row's number (pandas)
        {"0": {"prompt": "a", "chosen": ...}, "1": ...}     rows by their number (orient="index")
        {"columns": ["prompt", ...], "data": [["a", ...]]}  rows without names (orient="split")
    """
    names, rows = table.get("columns", ""), table.get("data", "")
    if is_list(names) and is_list(rows) and all(
            is_list(row) and len(row) == len(names) for row in rows):
        return [dict(zip(names, row, strict=True)) for row in rows]
    if _is_numbered(table) and all(isinstance(row, Mapping) for row in table.values()):
        return list(table.values())
    columns = [list(column.values()) if _is_numbered(column) else column
               for column in table.values()]
    if not columns or not all(map(is_list, columns)) or len(set(map(len, columns))) > 1:
        return None
    if not any(_is_column(column) for column in columns):
        return None
    return [dict(zip(table, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _is_numbered(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and \
        all(str(key).isdigit() for key in value)


def _is_column(cells: Sequence[Any]) -> bool:
    """Whether these can only be the cells of a column: texts, or whole conversations."""
    filled = [cell for cell in cells if not is_null(cell)]
    return len(filled) > 0 and (
        all(isinstance(cell, str) for cell in filled)
        or all(is_list(cell) and len(cell) > 0 and isinstance(cell[0], Mapping) for cell in filled))


# --- cells ----------------------------------------------------------------------------------------


def is_list(value: Any) -> bool:
    """Whether this is a list, or what stands for one in Python: a tuple or an array."""
    if isinstance(value, list | tuple):
        return True
    return not isinstance(value, str | Mapping) and hasattr(value, "tolist") and \
        len(getattr(value, "shape", ())) > 0


def is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # pandas' empty cell


def is_blank(value: Any) -> bool:
    """Whether there is nothing in this cell: null, white space, or an empty list."""
    if isinstance(value, str):
        return not value or value.isspace()
    return is_null(value) or (is_list(value) and len(value) == 0)


# --- writing --------------------------------------------------------------------------------------


def save_jsonl(rows: Iterable[Mapping], path: str | Path) -> None:
    """Write one JSON object a line, in UTF-8."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
