"""Rows in files: JSON Lines, JSON and CSV, plain or gzipped."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, cast

from minigpt.errors import UserError


class DataError(UserError):
    """A row or file that cannot be used; the message says where it is and what to change."""


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) for each row of a .jsonl, .json or .csv file, or of one gzipped (.csv.gz).

    The place ("line 3", "row 2") is for messages.
    Raises FileNotFoundError, or DataError naming the file and the line.
    """
    name = Path(path).name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    if kind not in READERS:
        raise DataError(f"{path}: unknown file extension (accepted: {', '.join(READERS)}, each "
                        "also with .gz)")
    with Path(path).open("rb") as raw, gzip.open(raw) if name.endswith(".gz") else raw as file:
        try:
            yield from READERS[kind](cast(BinaryIO, file))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a valid gzip file ({error})") from error
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
    csv.field_size_limit(2**31 - 1)  # the default rejects long answers
    columns = None
    last = 0
    # Bytes that are not UTF-8 become lone surrogates; encode() finds them once the line is known.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            for cells in reader:
                "".join(cells).encode()
                last = reader.line_num
                if columns is None:
                    columns = cells
                elif len(cells) > len(columns):
                    raise DataError(f"line {last}: more cells than the {len(columns)} columns of "
                                    "the header (a text that contains a comma needs quotes)")
                elif cells:
                    yield f"line {last}", dict(zip_longest(columns, cells))
        except (csv.Error, UnicodeEncodeError) as error:
            raise DataError(f"line {last + 1}: not valid CSV ({error})") from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, or too deep
        raise DataError(f"{where}: not valid JSON ({error})") from error


READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}


def save_jsonl(rows: Iterable[Mapping], path: str | Path) -> None:
    """Write one JSON object per line, in UTF-8; folders are made as needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
