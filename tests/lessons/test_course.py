"""How articles take numbers, tables, figures and code: on an article made for the test."""

import json

import pytest

import lessons.articles
from lessons.__main__ import main
from lessons.articles import excerpt, render, slug, with_numbers
from lessons.course import find, fingerprint, names, results_of, run_time, run_times, spread
from minigpt.errors import UserError

RESULTS = {"numbers": {"accuracy": "0.93 ± 0.01"},
           "tables": {"sweep": [["beta", "KL"], ["0.1", "2|3"]]},
           "figures": {"margins": "Near pi* the margin grows."}}


@pytest.fixture
def article(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons.articles, "results_of", lambda name: {"lesson": RESULTS})
    return tmp_path / "README.md"


def test_marks_are_filled_and_filling_twice_changes_nothing(article):
    article.write_text("It is old. <!-- = accuracy: old -->\n\n"
                       "<!-- table sweep --><!-- / -->\n\n"
                       "<!-- figure margins --><!-- / -->\n", encoding="utf-8")
    once = render(article)
    assert "It is 0.93 ± 0.01. <!-- = accuracy: 0.93 ± 0.01 -->" in once
    assert "| beta | KL |\n| --- | --- |\n| 0.1 | 2\\|3 |" in once
    assert "](figures/margins.svg)" in once and "*Near pi\\* the margin grows.*" in once
    article.write_text(once, encoding="utf-8")
    assert render(article) == once


@pytest.mark.parametrize("mark", [
    "= nothing: 1", "table nothing", "figure nothing", "code dpo/loss.py no_such_function",
    "code no/such/file.py x", 'code dpo/loss.py "no such line" "loss"'])
def test_a_marker_of_something_that_does_not_exist_is_an_error_that_names_it(article, mark):
    article.write_text(f"1 <!-- {mark} --><!-- / -->", encoding="utf-8")
    with pytest.raises(ValueError, match="refers to something that does not exist"):
        render(article)


def test_a_mark_replaces_its_numbers_in_the_order_of_the_text_and_no_others():
    text = ("3 worlds. <!-- = n: 3 -->\n\n"
            "Of 3 in 0.3 or 13: 3, 3,\nthen 4\n± 1. <!-- =\nn: 3; n: 3;\n m: 4 ± 1 --> No 4, 3.\n")
    assert with_numbers(text, {"n": "5±1", "m": "3"}) == (
        "5±1 worlds. <!-- = n: 5±1 -->\n\n"
        "Of 3 in 0.3 or 13: 5±1, 5±1,\nthen 3. <!-- =\nn: 5±1; n: 5±1;\n m: 3 --> No 4, 3.\n")


@pytest.mark.parametrize("text", [
    "0.5 <!-- = n: 5 -->", "5\n\n<!-- = n: 5 -->", "5, 6 <!-- = n: 6; n: 5 -->",
    "5 <!-- = n: 5 --> <!-- = n: 5 -->"])
def test_a_mark_whose_number_is_not_in_front_of_it_is_an_error(text):
    with pytest.raises(ValueError, match="in front of the mark of n"):
        with_numbers(text, {"n": "7"})


def test_a_number_that_would_end_a_comment_is_an_error():
    with pytest.raises(ValueError, match="a comment must not"):
        with_numbers("5 <!-- = n: 5 -->", {"n": "--lr"})


def test_an_excerpt_is_the_function_without_its_docstring(tmp_path):
    source = ('class A:\n    def f(self):\n        """Say\n        why."""\n'
              '        return 1  # one\n')
    (tmp_path / "code.py").write_text(source, encoding="utf-8")
    text = excerpt(tmp_path / "README.md", "code.py", "A.f")
    assert "[code.py](code.py#L2-L5)" in text and "def f(self):\n    return 1  # one\n" in text


def test_an_excerpt_may_go_from_one_line_to_another(tmp_path):
    (tmp_path / "code.py").write_text("a = 1\n    b = 2\n    c = 3\nd = 4\n", encoding="utf-8")
    text = excerpt(tmp_path / "README.md", "code.py", "b =", "c =")
    assert "```python\nb = 2\nc = 3\n```" in text


def test_several_values_become_mean_and_spread():
    assert spread([1.0, 2.0, 3.0], ".1f") == "2.0 ± 2.5"  # 4.30 / 3 ** 0.5
    assert spread([1.0, 3.0], "+.1f") == "+2.0 ± 12.7"
    assert spread(0.25, ".0%") == "25%"


def test_a_fingerprint_sees_what_a_script_does_and_not_how_it_is_laid_out(tmp_path):
    script, prints = tmp_path / "s.py", []
    for source in ("x = 1\n", "# why\nx  =  1\n", "x = 2\n"):
        script.write_text(source, encoding="utf-8")
        prints.append(fingerprint(script))
    assert prints[0] == prints[1] != prints[2]


def test_slug_and_run_time_read_as_they_should():
    assert slug('A win rate "above 55 %"') == "a-win-rate-above-55-"
    assert (run_time(47), run_time(360)) == ("47 s", "6 min")


def test_a_lesson_is_found_by_number_or_name_and_a_wrong_one_is_named():
    assert find("5") == find("05") == find("05_dpo") == "05_dpo"
    with pytest.raises(UserError, match="no lesson '77'"):
        find("77")


def test_the_list_names_every_lesson_with_its_run_times(capsys):
    main([])
    printed = capsys.readouterr().out
    for name in names():
        assert f"{name} " in printed and run_times(name)[0] in printed


def test_results_are_plain_json():
    for name in names():
        assert json.loads(json.dumps(results_of(name))) == results_of(name)
