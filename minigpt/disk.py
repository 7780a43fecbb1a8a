"""Files that are written whole or not at all, and by the first process alone."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from minigpt import distributed


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call write(binary file) on a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    A kill in between leaves `path` as it was, and a temporary file that the next write takes over.  With several
    processes only the first writes: the others would write the same.
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
    """The new content of a text file."""
    write_atomically(Path(path), lambda file: file.write(text.encode("utf-8")))


def write_json(path: str | Path, content: Any) -> None:
    """A JSON file that people can read too."""
    replace_text(path, json.dumps(content, indent=2) + "\n")
