"""Preference and SFT records: read, check, write.

Inside the library a preference is {"prompt", "chosen", "rejected"} and a demonstration {"prompt", "response"}; other
people's spellings are accepted where data comes in, and nowhere else.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

SPELLINGS = {
    "prompt": ("prompt", "instruction", "question"),
    "chosen": ("chosen", "preferred"),
    "rejected": ("rejected", "dispreferred"),
    "response": ("response", "output", "completion", "answer"),
}
PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected")
SFT_COLUMNS = ("prompt", "response")

Record = dict[str, str]


class DataError(ValueError):
    """A row or a file that cannot be used; the message names the row and what to change."""


def check_preferences(rows: Sequence[Mapping], where: str = "row {}") -> list[Record]:
    """Rows with any accepted spelling -> {"prompt", "chosen", "rejected"}, in order.

    Raises DataError naming the row (counted from 0): a column is missing, a field is empty or no text, or chosen and
    rejected are identical, which no loss can learn from.
    """
    records = [_record(row, PREFERENCE_COLUMNS, where.format(number)) for number, row in enumerate(rows)]
    for number, record in enumerate(records):
        if record["chosen"] == record["rejected"]:
            raise DataError(f"{where.format(number)}: chosen and rejected are identical ({record['chosen'][:40]!r}), "
                            "so there is nothing to prefer: drop the row")
    return _not_empty(records)


def check_sft(rows: Sequence[Mapping], where: str = "row {}") -> list[Record]:
    """Rows with any accepted spelling -> {"prompt", "response"}; an empty prompt means plain text.

    A preference row counts as a demonstration of its chosen response.  Raises DataError as `check_preferences` does.
    """
    records = []
    for number, row in enumerate(rows):
        if isinstance(row, Mapping) and not _columns(row, "response") and _columns(row, "chosen"):
            row = {**row, "response": row[_columns(row, "chosen")[0]]}
        records.append(_record(row, SFT_COLUMNS, where.format(number), may_be_empty=("prompt",)))
    return _not_empty(records)


def load_preferences(path: str | Path) -> list[Record]:
    """The preference rows of a JSONL file, checked.  Raises DataError naming file, line and what to change."""
    return _load(path, check_preferences)


def load_sft(path: str | Path) -> list[Record]:
    """The demonstrations of a JSONL file, checked.  Raises DataError naming file, line and what to change."""
    return _load(path, check_sft)


def save_jsonl(rows: Iterable[Mapping], path: str | Path) -> None:
    """One JSON object a line, UTF-8."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def split_by_prompt(rows: Sequence[Record], heldout_share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training rows, held-out rows): whole prompts, so that none stands on both sides.

    Raises DataError if there are fewer than two different prompts.
    """
    import random

    prompts = sorted({row["prompt"] for row in rows})
    if len(prompts) < 2:
        raise DataError("a held-out part needs at least two different prompts")
    count = min(len(prompts) - 1, max(1, round(heldout_share * len(prompts))))
    heldout = set(random.Random(seed).sample(prompts, count))
    return [r for r in rows if r["prompt"] not in heldout], [r for r in rows if r["prompt"] in heldout]


def _load(path: str | Path, check) -> list[Record]:
    rows, lines = [], []
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except ValueError as error:  # broken JSON or broken UTF-8
                raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
            lines.append(number)
    try:
        return check(rows)
    except DataError as error:
        raise DataError(_with_line(str(error), path, lines)) from error


def _with_line(message: str, path: str | Path, lines: list[int]) -> str:
    """'row 3: ...' -> 'FILE, line 5: ...' (blank lines are not rows)."""
    head, _, rest = message.partition(": ")
    return f"{path}, line {lines[int(head[4:])]}: {rest}" if head.startswith("row ") else f"{path}: {message}"


def _columns(row: Mapping, column: str) -> list[str]:
    return [spelling for spelling in SPELLINGS[column] if spelling in row]


def _record(row: Mapping, columns: Sequence[str], where: str, may_be_empty: Sequence[str] = ()) -> Record:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected an object with named columns, found {type(row).__name__}")
    record = {}
    for column in columns:
        found = _columns(row, column)
        if not found:
            accepted = ", ".join(SPELLINGS[column])
            raise DataError(f"{where}: no column for the {column} (accepted: {accepted}); the columns found are "
                            f"{', '.join(map(str, row)) or 'none'}")
        value = row[found[0]]
        if not isinstance(value, str):
            raise DataError(f"{where}: column {found[0]!r} is {type(value).__name__}, not text")
        if not value.strip() and column not in may_be_empty:
            raise DataError(f"{where}: column {found[0]!r} is empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: column {found[0]!r} holds half a surrogate pair, which is no text") from error
        record[column] = value
    return record


def _not_empty(records: list[Record]) -> list[Record]:
    if not records:
        raise DataError("there are no rows")
    return records
