"""Atomic writes, by the first process only."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from minigpt import distributed
from minigpt.errors import UserError


def make_folder(folder: Path) -> None:
    """Create a folder, if needed, and check that it is writable.  Raises UserError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): choose another --out") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call write(binary file) on a temporary file, flush it to disk, then rename it to `path`.

    If the process is killed in between, `path` is unchanged, and the temporary file stays until the
    next write replaces it.  With several processes only the first writes.
    """
    if distributed.rank() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically, replacing any old one."""
    write_atomically(Path(path), lambda file: file.write(text.encode("utf-8")))


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON atomically."""
    replace_text(path, json.dumps(content, indent=2) + "\n")
