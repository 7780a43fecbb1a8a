import base64

import pytest

from minigpt.figures import MEANINGS, figures_table, meaning, shown
from minigpt.report import (
    Command,
    Section,
    as_html,
    as_markdown,
    as_text,
    number_columns,
    printable,
    save_report,
)

EVIL = "<script>alert('x') & |</script>"


def test_nothing_that_a_model_says_is_markup_in_the_page(rows_of):
    sections = [Section(EVIL, [EVIL, [["prompt", EVIL], [EVIL, "a\nb"]], Command(EVIL)])]
    page = as_html(EVIL, sections)
    assert "<script" not in page and page.count("&lt;script&gt;alert(&#x27;x&#x27;) &amp; |") == 7
    assert rows_of(page) == [["prompt", EVIL], [EVIL, "a\nb"]]


def test_nothing_that_a_model_says_is_markup_in_markdown():
    table = [["prompt", "answer"], ["`a`", "*b* | [c](d) <e>\n\\f"]]
    assert as_markdown("T", [Section("S", [table])]) == (
        "# T\n\n## S\n\n| prompt | answer |\n| --- | --- |\n"
        "| \\`a\\` | \\*b\\* \\| \\[c\\](d) \\<e> \\\\f |\n")


@pytest.mark.parametrize(("text", "seen"), [
    ("a\nb é 🙂", "a\nb é 🙂"), ("\x1b[31m", "\\x1b[31m"), ("\x00\r", "\\x00\\r"),
    ("\u202e", "\\u202e"), ("\ud800", "\\ud800")])
def test_what_cannot_be_seen_is_written_out(text, seen):
    assert printable(text) == seen
    section = Section("S", [text, [["a", "b"], [text, text]]])
    for shown_as in (as_html("T", [section]), as_markdown("T", [section]), as_text(section)):
        shown_as.encode()
        assert seen == text or text not in shown_as


def test_a_picture_is_inside_the_page_and_a_link_in_markdown(tmp_path):
    picture = tmp_path / "two_curves.png"
    picture.write_bytes(b"not really")
    sections = [Section("Curves", [picture])]
    line = save_report(tmp_path, "T", sections)
    data = base64.b64encode(b"not really").decode()
    page = (tmp_path / "report.html").read_text()
    assert f'<img alt="two curves" src="data:image/png;base64,{data}">' in page
    assert "![two curves](two_curves.png)" in (tmp_path / "report.md").read_text()
    assert str(tmp_path / "report.html") in line and str(tmp_path / "report.md") in line
    assert as_text(sections[0]) == ""


def test_a_warning_stands_out():
    page = as_html("T", [Section("How it went", ["warning: too hot", "all is well"])])
    assert '<p class="warning">warning: too hot</p>' in page and "<p>all is well</p>" in page


def test_numbers_are_aligned_in_a_terminal_under_headers_of_several_lines():
    table = [["", "true reward", "share"], ["DPO", "+1.50 +-0.25\n(+1.00)", "87%"],
             ["SFT", "-", "-"]]
    assert number_columns(table) == [False, True, True]
    assert as_text(Section("How far", [table, "A word."])) == "\n".join([
        "How far",
        "           true reward     share",
        "DPO       +1.50 +-0.25       87%",
        "               (+1.00)",
        "SFT                  -         -", "", "A word."])


def test_texts_are_listed_in_a_terminal_with_their_names():
    table = [["prompt", "before", "after"], ["why?", "a", "b\nc"], ["5", "3.", "5."]]
    assert as_text(Section("Answers", [table])) == "\n".join([
        "Answers", "  why?", "    before: a", "    after:  b\n            c",
        "  5", "    before: 3.", "    after:  5."])


# --- figures --------------------------------------------------------------------------------------


def test_a_figure_has_its_interval_and_its_value_before_beside_it():
    summary = {"seconds": 12.34, "accuracy_heldout": 0.875, "accuracy_heldout_low": 0.8,
               "accuracy_heldout_high": 0.9, "accuracy_heldout_pairs": 80, "true_reward": 1.5,
               "true_reward_before": -0.25, "tokens_trained": 16000, "mine": 2}
    assert figures_table(summary) == [
        ["figure", "value", "meaning"],
        ["true_reward", "1.5000\n(before: -0.2500)", MEANINGS["true_reward"]],
        ["accuracy_heldout", "0.8750\n(0.80 to 0.90, 80 pairs)", MEANINGS["accuracy_heldout"]],
        ["tokens_trained", "16,000", MEANINGS["tokens_trained"]],
        ["seconds", "12.3", MEANINGS["*seconds"]], ["mine", "2", ""]]


def test_every_pattern_means_something_of_its_own():
    assert len(set(MEANINGS.values())) == len(MEANINGS)
    for pattern, text in MEANINGS.items():
        assert meaning(pattern.replace("*", "x")) == text  # none is hidden by one before it


@pytest.mark.parametrize(("value", "text"), [
    (0.69314, "0.6931"), (-9.5, "-9.5000"), (10.0, "10.0"), (1234.56, "1,234.6"),
    (840448, "840,448"), (1, "1")])
def test_how_a_figure_is_written(value, text):
    assert shown(value) == text
