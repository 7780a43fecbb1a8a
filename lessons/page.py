"""The single-page reader: all articles in one HTML file that needs neither server nor network.

Formulas become MathML, which browsers render natively; code is highlighted here; the figures are
the files of the articles.
"""

import html
import json
import os
import re
from pathlib import Path
from typing import Any

from lessons.articles import slug
from lessons.course import LESSONS, NEEDED, names, results_of, title_and_question
from lessons.playground import READER, filled, playground
from lessons.start import MODELS
from minigpt.disk import write_atomically
from minigpt.errors import UserError

SITE = LESSONS / "site"


def build_site() -> Path:
    """Write lessons/site/index.html and return its path.

    Raises UserError if a package is missing.
    """
    path = SITE / "index.html"
    SITE.mkdir(exist_ok=True)
    write_atomically(path, lambda file: file.write(page().encode("utf-8")))
    return path


def page() -> str:
    """The whole page as HTML.  Raises UserError if a package is missing."""
    parser = markdown()
    return filled(
        "frame.html",
        style=code_colours() + (READER / "style.css").read_text(encoding="utf-8"),
        reader=(READER / "reader.js").read_text(encoding="utf-8"),
        sliders=(READER / "sliders.js").read_text(encoding="utf-8"),
        runs=json.dumps(results_of("07_over_optimisation")["experiments"]["data"]["frontier"],
                        separators=(",", ":")),
        navigation="\n".join(f'<li><a href="#{name}">'
                             f'{html.escape(title_and_question(name)[0])}</a></li>'
                             for name in names()),
        articles="\n".join(article(parser, name, path) for name, path in sections().items()),
        playground=playground(MODELS))


def sections() -> dict[str, Path]:
    """The id of each section on the page, in order, and the file that it is made from."""
    return {"start": LESSONS / "README.md",
            **{name: LESSONS / name / "README.md" for name in names()},
            "cheatsheet": LESSONS / "cheatsheet.md"}


def article(parser: Any, name: str, path: Path) -> str:
    """One article as a section, with links to other sections and to files relative to the page.

    <!-- slider loss --> in an article is where the page shows lessons/reader/loss.html.
    """
    text = re.sub(r"<!-- slider (\w+) -->", lambda slider: filled(f"{slider[1]}.html"),
                  path.read_text(encoding="utf-8"))
    text = parser.render(re.sub(r" ?<!--.*?-->", "", text, flags=re.DOTALL))
    text = re.sub(r'(href|src)="([^"]+)"',
                  lambda found: f'{found[1]}="{target(path, found[2])}"', text)
    text = re.sub(r'<img src="([^"]+)"[^>]*>',
                  lambda image: f'<a class="figure" href="{image[1]}">{image[0]}</a>', text)
    text = re.sub(r'(\(?)(<span class="math inline">.*?</span>)([.,;:?)]*)', whole, text)
    text = re.sub(r"<h([1-6])>(.*?)</h\1>",
                  lambda found: heading(name, int(found[1]), found[2]), text)
    text = text.replace("<th></th>", "<td></td>")  # an empty cell heads nothing
    text = text.replace("<table>", '<div class="wide"><table>') \
        .replace("</table>", "</table></div>")
    return f'<section class="article" id="{name}">\n{text}</section>'


def whole(found: re.Match[str]) -> str:
    """A formula in a line, together with the punctuation that must not part from it."""
    return f'<span class="whole">{found[0]}</span>' if found[1] or found[3] else found[0]


def heading(name: str, level: int, text: str) -> str:
    """A heading with an anchor and a link to it."""
    if level == 1:
        return f"<h1>{text}</h1>"
    place = f"{name}-{slug(html.unescape(re.sub('<.*?>', '', text)))}"
    link = f'<a class="here" href="#{place}" aria-label="link to this section">#</a>'
    return f'<h{level} id="{place}">{text} {link}</h{level}>'


def target(path: Path, link: str) -> str:
    """A link in this article, rewritten for the page: to a section, or to a file from SITE."""
    if re.match(r"https?:|data:", link):
        return link
    file, _, anchor = link.partition("#")
    to = Path(os.path.normpath(path.parent / file)) if file else path
    for name, section in sections().items():
        if to == section:
            return f"#{name}" + (f"-{anchor}" if anchor else "")
    return Path(os.path.relpath(to, SITE)).as_posix() + (f"#{anchor}" if anchor else "")


def markdown() -> Any:
    """A Markdown parser with tables, formulas and highlighted code."""
    try:
        from latex2mathml.converter import convert
        from markdown_it import MarkdownIt
        from mdit_py_plugins.dollarmath import dollarmath_plugin
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import get_lexer_by_name
    except ImportError as error:
        raise UserError(NEEDED) from error

    def colour(code: str, language: str, attributes: str) -> str:
        return highlight(code, get_lexer_by_name(language or "text"), HtmlFormatter(nowrap=True))

    def formula(tex: str, options: dict[str, Any]) -> str:
        return spaced(convert(tex, display="block" if options["display_mode"] else "inline"))

    parser = MarkdownIt("commonmark", {"html": True, "highlight": colour}).enable("table")
    return parser.use(dollarmath_plugin, renderer=formula, allow_digits=True, double_inline=True)


def spaced(formula: str) -> str:
    """MathML with the spaces that TeX would set: around a function's name, and none behind a sign;
    and with what a maximum or a sum in brackets is over below it."""
    opening = "&#x00028;|&#x0005B;|&#x0003D;|&#x0002C;"  # ( [ = ,
    formula = re.sub(r"<mi>(log|exp)</mi>(?!<mo[^>]*>&#x00028;)",
                     r'<mi>\1</mi><mspace width="0.17em"/>', formula)
    formula = re.sub(r"(</m(?:i|n|sub|sup|frac)>|<mo[^>]*>(?:&#x00029;|&#x02207;)</mo>)"
                     r"<mi>(log|exp)</mi>", r'\1<mspace width="0.17em"/><mi>\2</mi>', formula)
    formula = re.sub(rf"((?:<mo[^>]*>(?:{opening})</mo>|<mrow>))<mo>&#x02212;</mo>",
                     r'\1<mo form="prefix">&#x02212;</mo>', formula)
    formula = re.sub(r"<msubsup>(<mo>&#x02211;</mo>(?:(?!<msubsup>).)*?)</msubsup>",
                     r"<munderover>\1</munderover>", formula)
    formula = re.sub(r"<mo>(max|min)</mo>(?=(?:<mrow>)?<mo[^>]*>(?:&#x00028;|\()</mo>)",
                     r'<mo lspace="0.17em" rspace="0">\1</mo>', formula)
    return re.sub(r"<msub><mo>(max|min)</mo>(<mi>[^<]*</mi>)</msub>",
                  r"<munder><mo>\1</mo>\2</munder>", formula)


def code_colours() -> str:
    """CSS for the highlighted code, for light and dark mode."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=style).get_style_defs("pre")
                   for style in ("xcode", "monokai"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
