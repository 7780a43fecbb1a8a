"""A report: sections that are written once, and shown as Markdown, as an HTML page, and as text."""

import base64
import html
import re
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from minigpt.disk import replace_text

WIDTH = 100  # of a terminal, in characters
NARROWEST = 8  # column of a table there
NUMBERS = re.compile(r"[-+±\d.,%()\s]*|nan")  # what a column of numbers has in its cells
WARNING = "warning: "  # begins a paragraph that nobody should overlook


class Command(NamedTuple):
    """A command line, to be copied into a terminal."""

    line: str


Table = list[list[str]]             # the header, and the rows; a cell may have several lines
Part = str | Table | Path | Command  # a paragraph, a table, a picture in the report's folder, ...


class Section(NamedTuple):
    title: str
    parts: Sequence[Part]


def save_report(folder: str | Path, title: str, sections: Sequence[Section]) -> str:
    """Write report.md and report.html into the folder; returns a line that says so."""
    markdown, page = Path(folder) / "report.md", Path(folder) / "report.html"
    replace_text(markdown, as_markdown(title, sections))
    replace_text(page, as_html(title, sections))
    return f"report: {page} (for a browser) and {markdown}"


def printable(text: str) -> str:
    """The text on its lines, with what cannot be seen written out: a model may say any byte."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def number_columns(table: Table) -> list[bool]:
    """Which columns hold nothing but numbers; they are aligned on the right."""
    return [all(NUMBERS.fullmatch(cell) for cell in cells)
            for _, *cells in zip(*table, strict=True)]


# --- Markdown -------------------------------------------------------------------------------------


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as GitHub's Markdown; pictures are links to their files."""
    blocks = [f"# {_escaped(title)}"]
    for section in sections:
        blocks += [f"## {_escaped(section.title)}", *map(_in_markdown, section.parts)]
    return "\n\n".join(blocks) + "\n"


def _in_markdown(part: Part) -> str:
    match part:
        case Path():
            return f"![{part.stem.replace('_', ' ')}]({part.name})"
        case Command():
            return f"```bash\n{part.line}\n```"
        case str():
            return _escaped(part)
    head, *rows = (f"| {' | '.join(map(_escaped, row))} |" for row in part)
    rule = "".join("| ---: " if right else "| --- " for right in number_columns(part)) + "|"
    return "\n".join([head, rule, *rows])


def _escaped(text: str) -> str:
    """The text as it is: nothing in it formats, links, or ends a table's cell."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", printable(text)).replace("\n", " ")


# --- HTML -----------------------------------------------------------------------------------------

STYLE = """
:root { --ink: #1c1c1c; --paper: #fff; --faint: #5c5c5c; --line: #d9d9d9; --shade: #f5f5f3; \
--mark: #d55e00; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #dedede; --paper: #161719; --faint: #a3a3a3; --line: #3a3c40; --shade: #212327; \
--mark: #f08a4b; }
}
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink); \
background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p { max-width: 44rem; overflow-wrap: anywhere; }
.warning { border-left: 4px solid var(--mark); padding-left: 0.8rem; font-weight: 600; }
img { display: block; max-width: 100%; height: auto; margin: 1rem 0; background: #fff; \
border-radius: 6px; }
pre { background: var(--shade); padding: 0.8rem 1rem; border-radius: 6px; \
font: 0.85rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; \
overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.4; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem; white-space: pre-line; \
border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
th { vertical-align: bottom; } td:first-child { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: pre; }
@media (max-width: 40rem) { table { font-size: 0.8rem; } th, td { padding: 0.3rem 0.35rem; } \
td:not(.number) { min-width: 5.5rem; overflow-wrap: anywhere; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } table { font-size: 8pt; } \
.wide { overflow: visible; } h2 { break-after: avoid; } tr, img, pre { break-inside: avoid; } }
"""


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The report as one page that needs nothing else: pictures are in it."""
    blocks = [f"<h1>{_quoted(title)}</h1>"]
    for section in sections:
        blocks += [f"<h2>{_quoted(section.title)}</h2>", *map(_in_html, section.parts)]
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_quoted(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        *blocks, "</body>\n</html>\n"])


def _in_html(part: Part) -> str:
    match part:
        case Path():
            data = base64.b64encode(part.read_bytes()).decode("ascii")
            alt = part.stem.replace("_", " ")
            return f'<img alt="{alt}" src="data:image/png;base64,{data}">'
        case Command():
            return f"<pre><code>{_quoted(part.line)}</code></pre>"
        case str():
            mark = ' class="warning"' if part.startswith(WARNING) else ""
            return f"<p{mark}>{_quoted(part)}</p>"
    numbers = number_columns(part)

    def row(cells: Sequence[str], tag: str) -> str:
        marks = (' class="number"' if right else "" for right in numbers)
        return "<tr>" + "".join(f"<{tag}{mark}>{_quoted(cell)}</{tag}>"
                                for mark, cell in zip(marks, cells, strict=True)) + "</tr>"

    head, *rows = part
    return "\n".join(['<div class="wide"><table>', row(head, "th"),
                      *(row(cells, "td") for cells in rows), "</table></div>"])


def _quoted(text: str) -> str:
    return html.escape(printable(text))


# --- text -----------------------------------------------------------------------------------------


def as_text(section: Section) -> str:
    """The section for a terminal, without its pictures; "" if it has nothing else."""
    parts = [_in_text(part) for part in section.parts if not isinstance(part, Path)]
    return section.title + "\n" + "\n\n".join(parts) if parts else ""


def _in_text(part: str | Table | Command) -> str:
    match part:
        case Command():
            return part.line
        case str():
            return textwrap.fill(printable(part), WIDTH)
    return _aligned(part) if all(number_columns(part)[1:]) else _listed(part)


def _aligned(table: Table) -> str:
    """A table of numbers.  A header of several words takes several lines."""
    head, *rows = table
    widths = [max(NARROWEST, *(len(line) for cell in (*title.split(), *column)
                               for line in cell.split("\n")))
              for title, column in zip(head, zip(*rows, strict=True), strict=True)]
    titles = [textwrap.wrap(cell, width) for cell, width in zip(head, widths, strict=True)]
    height = max(map(len, titles))
    cells = [[[""] * (height - len(title)) + title for title in titles],
             *([cell.split("\n") for cell in row] for row in rows)]
    right = number_columns(table)
    return "\n".join("  ".join(text.rjust(width) if is_right else text.ljust(width)
                               for text, width, is_right in zip(line, widths, right,
                                                                strict=True)).rstrip()
                     for row in cells for line in zip_longest(*row, fillvalue=""))


def _listed(table: Table) -> str:
    """A table of texts, row by row: the first cell, and below it the others with their names."""
    (_, *names), *rows = table
    width = max(map(len, names)) + 2
    lines = []
    for first, *cells in rows:
        lines.append(f"  {printable(first)}")
        for name, cell in zip(names, cells, strict=True):
            text = printable(cell).replace("\n", "\n" + " " * (4 + width))
            lines.append(f"    {name + ':':<{width}}{text}")
    return "\n".join(lines)
