"""Files of rows: JSON Lines, JSON and CSV, each also gzipped."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from minigpt.cli import UserError


class DataError(UserError):
    """A row or a file that cannot be used; the message names the row and what to change."""


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) for each row of a .jsonl, .json or .csv file, or one of them with .gz behind.

    Raises FileNotFoundError, or DataError naming the file and the line.
    """
    name = Path(path).name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    if kind not in READERS:
        raise DataError(f"{path}: cannot tell the kind of file from its ending (accepted: {', '.join(READERS)}, each also "
                        "with .gz)")
    with Path(path).open("rb") as raw, gzip.open(raw) if name.endswith(".gz") else raw as file:
        try:
            yield from READERS[kind](file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file ({error})") from error
        except DataError as error:
            raise DataError(f"{path}, {error}") from error


def _json_lines(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"line {number}", _parse(line, f"line {number}")


def _json(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    rows = _parse(file.read(), "whole file")
    if not isinstance(rows, list):
        raise DataError(f"whole file: expected a list of rows [...], found {type(rows).__name__}")
    for number, row in enumerate(rows):
        yield f"row {number}", row


def _csv(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # a long answer is no error
    columns, last = None, 0
    # A byte that is no UTF-8 comes through as half a surrogate pair, so that the line it stands in can be named.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            for cells in reader:
                "".join(cells).encode()
                last = reader.line_num
                if columns is None:
                    columns = cells
                elif len(cells) > len(columns):
                    raise DataError(f"line {last}: more cells than the {len(columns)} columns of the first line (a comma "
                                    "inside a text needs quotes around it)")
                elif cells:
                    yield f"line {last}", dict(zip_longest(columns, cells))
        except (csv.Error, UnicodeEncodeError) as error:
            raise DataError(f"line {last + 1}: not valid CSV ({error})") from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, nested without end
        raise DataError(f"{where}: not valid JSON ({error})") from error


READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}


def save_jsonl(rows: Iterable[Mapping], path: str | Path) -> None:
    """One JSON object a line, UTF-8."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
