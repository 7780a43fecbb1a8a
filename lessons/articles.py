"""Fill the articles: results of their scripts and excerpts of the code, at or between markers.

    It ranks 0.93 of them right, before 0.51. <!-- = accuracy: 0.93; before: 0.51 -->
                                                         numbers from lesson.py or solutions.py: the
                                                         mark stands behind them, with their names
                                                         and values in the order of the text
    <!-- table sweep --> ... <!-- / -->                  a table from them
    <!-- figure margins --> ... <!-- / -->               a figure from them, with its caption
    <!-- code dpo/loss.py dpo_loss --> ... <!-- / -->    a function, class or method (Class.method),
                                                         without its docstring
    <!-- code dpo/loss.py "margins =" "loss =" --> ... <!-- / -->
                                                         from one line with this text to another
    <!-- age of its numbers --> ... <!-- / -->           a word where the code has changed since
    <!-- table lessons --> ... <!-- / -->                the list of lessons (in lessons/README.md)

`python -m lessons.build` writes what is between a marker and its end, and replaces the numbers that
a mark names (a new one may begin as `? <!-- = accuracy: ? -->`); a test checks that all is up to
date.
"""

import ast
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

from lessons.canary import numbers_are_older
from lessons.course import LESSONS, names, results_of, run_times, title_and_question

ROOT = LESSONS.parent
MARKER = re.compile(r"<!-- (table|figure|code|age) (.+?) -->(.*?)<!-- / -->", re.DOTALL)
OLDER = ("\n\n> The numbers below are older than the code: it has changed since, and a run today "
         "gives others.\n\n")
NUMBERS = re.compile(r"<!-- =(\s+)(.+?) -->", re.DOTALL)


def render(path: Path) -> str:
    """The text of the article at this path, with every marker filled.

    Raises ValueError if a marker refers to something that does not exist, or if a number that a
    mark names is not in front of it.
    """
    results = {"all": {"tables": {"lessons": list_of_lessons()}}} if path.parent == LESSONS \
        else results_of(path.parent.name)

    def fill(marker: re.Match) -> str:
        kind, what = marker[1], marker[2]
        try:
            if kind == "code":
                text = excerpt(path, *shlex.split(what))
            elif kind == "age":
                text = OLDER if numbers_are_older(path.parent.name) else ""
            else:
                text = said(results, kind, what)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{path}: <!-- {kind} {what} --> refers to something that does not "
                             f"exist ({error})") from error
        return f"<!-- {kind} {what} -->{text}<!-- / -->"

    text = MARKER.sub(fill, path.read_text(encoding="utf-8"))
    try:
        return with_numbers(text, everything(results, "numbers"))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: a mark of numbers refers to something that does not exist "
                         f"({error})") from error


def with_numbers(text: str, numbers: dict[str, str]) -> str:
    """The text with new values for the numbers that its marks name.

    A mark belongs to the text of its block that stands in front of it, back to the mark before. Its
    last number is the last such text there, the one before is searched in front of that, and so on.
    Raises KeyError for a name without a number, ValueError if an old value is not in front or a new
    one holds "--", which would end a comment on GitHub.
    """
    for mark in reversed(list(NUMBERS.finditer(text))):
        pairs = re.split(r"(;\s+)(?=[\w.]+: )", mark[2])  # separators in the odd places
        begin = max(text.rfind("\n\n", 0, mark.start()), text.rfind("-->", 0, mark.start()), 0)
        front = text[begin:mark.start()]
        end = len(front)
        for place in reversed(range(0, len(pairs), 2)):
            name, old = pairs[place].split(": ", 1)
            words = r"\s+".join(map(re.escape, old.split(" ")))  # a line may end between them
            number = re.compile(rf"(?<![\w.]){words}(?!\w|[.,]\d)")
            found = list(number.finditer(front, 0, end))
            if not found:
                raise ValueError(f"no {old!r} in front of the mark of {name}")
            if "--" in numbers[name]:
                raise ValueError(f"{name} holds --, which a comment must not")
            end = found[-1].start()
            front = front[:end] + numbers[name] + front[found[-1].end():]
            pairs[place] = f"{name}: {numbers[name]}"
        text = f"{text[:begin]}{front}<!-- ={mark[1]}{''.join(pairs)} -->{text[mark.end():]}"
    return text


def everything(results: dict[str, Any], kind: str) -> dict[str, Any]:
    """All numbers, tables or figures of a lesson's scripts, by name."""
    return {name: value for script in results.values()
            for name, value in script.get(kind, {}).items()}


def said(results: dict[str, Any], kind: str, what: str) -> str:
    """A table or figure from the results of a lesson's scripts, as Markdown."""
    value = everything(results, f"{kind}s")[what]
    if kind == "table":
        return f"\n\n{as_table(value)}\n\n"
    caption = value.replace("*", "\\*")  # a * (as in pi*) would end the italics
    return f"\n\n![{caption}](figures/{what}.svg)\n\n*{caption}*\n\n"


def list_of_lessons() -> list[list[str]]:
    """A table of the lessons: linked title, question, and the run times of their scripts."""
    rows = [["lesson", "its question", "lesson.py", "experiments.py", "solutions.py"]]
    for name in names():
        title, question = title_and_question(name)
        rows.append([f"[{title}]({name}/README.md)", question, *run_times(name)])
    return rows


def as_table(rows: list[list[str]]) -> str:
    """Rows of cells, the header first, as a Markdown table."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head),
                      *("| " + " | ".join(row) + " |" for row in body)])


def excerpt(article: Path, file: str, first: str, last: str | None = None) -> str:
    """Part of a source file as Markdown, with a link to its lines.

    The function or class named `first`; or, if `last` is given, everything from the first line that
    contains `first` to the next one that contains `last`.
    Raises ValueError if there is no such part, OSError if there is no such file.
    """
    path = ROOT / file if "/" in file else article.parent / file
    source = path.read_text(encoding="utf-8").splitlines()
    begin, end, hidden = by_name(source, first) if last is None else by_lines(source, first, last)
    lines = [line for number, line in enumerate(source[begin:end], begin) if number not in hidden]
    link = "../" * len(article.parent.relative_to(ROOT).parts) + file if "/" in file else file
    code = textwrap.dedent("\n".join(lines))
    return f"\n\n[{file}]({link}#L{begin + 1}-L{end})\n\n```python\n{code}\n```\n\n"


def by_name(source: list[str], name: str) -> tuple[int, int, range]:
    """-> (first line, one past the last, lines of the docstring) of a function or class, from 0."""
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
    """As `by_name`, from the first line that contains `first` to the next that contains `last`."""
    begin = next((number for number, line in enumerate(source) if first in line), None)
    if begin is None:
        raise ValueError(f"no line with {first!r}")
    end = next((number for number in range(begin, len(source)) if last in source[number]), None)
    if end is None:
        raise ValueError(f"no line with {last!r} below it")
    return begin, end + 1, range(0)


def slug(title: str) -> str:
    """The anchor of a heading, on GitHub and on the single-page reader."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
