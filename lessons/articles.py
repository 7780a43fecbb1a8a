"""What an article takes from its scripts and from the code, put where its marks ask for it.

    <!-- = accuracy -->0.93 ± 0.01<!-- / -->             a number of lesson.py or solutions.py
    <!-- table sweep --> ... <!-- / -->                  a table of theirs
    <!-- figure margins --> ... <!-- / -->               a figure, with its caption
    <!-- code dpo/loss.py dpo_loss --> ... <!-- / -->    a function (or Class.method), without its docstring
    <!-- code dpo/loss.py "margins =" "loss =" --> ... <!-- / -->     from one line to another, in a file
    <!-- table lessons --> ... <!-- / -->                in lessons/README.md: the list of the lessons

What stands between a mark and its end is written by `python -m lessons.build`, and a test holds it to be up to date.
"""

import ast
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

from lessons.course import LESSONS, names, results_of, title_and_question

ROOT = LESSONS.parent
MARK = re.compile(r"<!-- (=|table|figure|code) (.+?) -->(.*?)<!-- / -->", re.DOTALL)


def render(path: Path) -> str:
    """The article at this path as it should be.  Raises ValueError if it asks for what is not there."""
    results = results_of(path.parent.name) if path.parent != LESSONS else {"all": {"tables": {"lessons": list_of_lessons()}}}

    def fill(mark: re.Match) -> str:
        kind, what = mark[1], mark[2]
        try:
            text = excerpt(path, *shlex.split(what)) if kind == "code" else said(results, kind, what)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{path}: <!-- {kind} {what} --> asks for what is not there ({error})") from error
        return f"<!-- {kind} {what} -->{text}<!-- / -->"
    return MARK.sub(fill, path.read_text(encoding="utf-8"))


def said(results: dict[str, Any], kind: str, what: str) -> str:
    """A number, a table or a figure of the lesson's scripts, as Markdown."""
    kinds = {"=": "numbers", "table": "tables", "figure": "figures"}
    everything = {name: value for script in results.values() for name, value in script[kinds[kind]].items()}
    value = everything[what]
    if kind == "=":
        return value
    if kind == "table":
        return f"\n\n{as_table(value)}\n\n"
    caption = value.replace("*", "\\*")  # as in pi*, which would end the italics
    return f"\n\n![{caption}](figures/{what}.svg)\n\n*{caption}*\n\n"


def list_of_lessons() -> list[list[str]]:
    """Number and title with a link, the question, and how long the two scripts take."""
    rows = [["lesson", "its question", "script", "solutions"]]
    for name in names():
        title, question = title_and_question(name)
        rows.append([f"[{title}]({name}/README.md)", question,
                     *(run_time(results["seconds"]) for results in results_of(name).values())])
    return rows


def run_time(seconds: int) -> str:
    return f"{seconds} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def as_table(rows: list[list[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head),
                      *("| " + " | ".join(row) + " |" for row in body)])


def excerpt(article: Path, file: str, first: str, last: str | None = None) -> str:
    """Part of a source file with a link to its lines, as Markdown: a function by its name, or from the line that has
    `first` in it to the next that has `last`."""
    path = ROOT / file if "/" in file else article.parent / file
    source = path.read_text(encoding="utf-8").splitlines()
    begin, end, hidden = by_name(source, first) if last is None else by_lines(source, first, last)
    lines = [line for number, line in enumerate(source[begin:end], begin) if number not in hidden]
    link = "../" * len(article.parent.relative_to(ROOT).parts) + file if "/" in file else file
    return (f"\n\n[{file}]({link}#L{begin + 1}-L{end})\n\n```python\n" + textwrap.dedent("\n".join(lines)) + "\n```\n\n")


def by_name(source: list[str], name: str) -> tuple[int, int, range]:
    """Where a function, a class or Class.method stands, and the lines of its docstring."""
    nodes: list[Any] = ast.parse("\n".join(source)).body
    for part in name.split("."):
        found = [node for node in nodes if getattr(node, "name", None) == part]
        if not found:
            raise ValueError(f"no {name}")
        node, nodes = found[0], found[0].body
    text = node.body[0] if ast.get_docstring(node) else None
    hidden = range(text.lineno - 1, text.end_lineno) if text else range(0)
    return node.lineno - 1, node.end_lineno, hidden


def by_lines(source: list[str], first: str, last: str) -> tuple[int, int, range]:
    begin = next((number for number, line in enumerate(source) if first in line), None)
    if begin is None:
        raise ValueError(f"no line with {first!r}")
    end = next((number for number in range(begin, len(source)) if last in source[number]), None)
    if end is None:
        raise ValueError(f"no line with {last!r} below it")
    return begin, end + 1, range(0)


def slug(title: str) -> str:
    """A heading as links to it spell it, on GitHub and on our own page."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
