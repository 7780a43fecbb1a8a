"""The reader is made of the articles as they are, and needs nothing from outside."""

import json
import re
from html.parser import HTMLParser

import pytest

from lessons.course import LESSONS, names

pytest.importorskip("markdown_it", reason="the reader is built with the extra [lessons]")
from lessons.page import page, spaced

SITE = LESSONS / "site"


class Page(HTMLParser):
    """What a page holds: its ids, what it links to, what it loads, and its formulas."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads, self.formulas = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.loads += [found[name] for name in ("src", "data", "srcset") if name in found]
        self.loads += [found["href"]] if tag == "link" else []
        self.formulas += tag == "math"


@pytest.fixture(scope="module")
def text() -> str:
    return (SITE / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(text) -> Page:
    return Page(text)


def test_the_page_is_made_of_the_articles_as_they_are(text):
    assert text == page(), "run python -m lessons.build --text"


def test_every_lesson_is_a_section(parsed):
    assert {"start", "loss-plot", "frontier-plot", "playground", *names()} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_slider_of_lesson_7_has_its_runs_and_both_closed_forms(text):
    found = json.loads(re.search(r'id="runs">(.+?)</script>', text)[1])
    assert {run["method"] for run in found["runs"]} == {"DPO", "PPO", "best of n"}
    assert {"strength", "kl", "true_reward"} <= set.intersection(*map(set, found["runs"]))
    lengths = {len(found[curve][name]) for curve in ("limit", "proxy_optimum")
               for name in ("beta", "kl", "true_reward")}
    assert len(lengths) == 1


def test_every_link_within_the_page_and_to_a_file_leads_somewhere(parsed):
    inside = {link[1:] for link in parsed.links if link.startswith("#")}
    assert inside <= set(parsed.ids)
    files = {link.split("#")[0] for link in parsed.links if not re.match(r"#|https?:", link)}
    assert files and all((SITE / file).exists() for file in files)


def test_it_loads_nothing_from_the_network(parsed, text):
    assert parsed.loads and all((SITE / file).exists() for file in parsed.loads)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)


def test_it_is_small_enough_to_send_around(text):
    assert len(text.encode()) < 4_000_000


def test_every_formula_was_rendered(parsed, text):
    assert parsed.formulas > 20
    left_over = r"\\(frac|sum|log|pi|mathbb|left|right|begin|text)\b"
    assert "$$" not in text and not re.search(left_over, text)


def test_formulas_are_spaced_as_tex_would():
    convert = pytest.importorskip("latex2mathml.converter").convert
    formula = spaced(convert(r"\max_\pi -\log \pi + \log(x) = -x - y", display="block"))
    assert formula.count('<mo form="prefix">&#x02212;</mo>') == 1  # behind =, not the difference
    assert formula.count("<mi>log</mi><mspace") == 1               # not in front of a bracket
    assert "<munder><mo>max</mo>" in formula
    formula = spaced(convert(r"\beta \log \left[ \sum_{t=1}^T \max(x, y) \right]", display="block"))
    assert formula.count('</mi><mspace width="0.17em"/><mi>log</mi>') == 1
    assert "<munderover><mo>&#x02211;</mo>" in formula
    assert 'rspace="0">max</mo>' in formula


def test_figures_open_on_a_tap(text):
    assert text.count("<img ") == text.count('<a class="figure"')
