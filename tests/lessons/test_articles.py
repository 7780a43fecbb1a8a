"""The articles say what their scripts said and what the code is; what they name exists."""

import ast
import json
import re
import runpy
from functools import cache
from pathlib import Path

import pytest

import lessons.articles
import lessons.canary
from dpo.loss import LOSSES
from lessons.articles import ROOT, render, slug
from lessons.build import INSTALL
from lessons.course import LESSONS, NOTEBOOKS, fingerprint, hash_of, names, results_of, scripts_of

ARTICLES = [*(LESSONS / name / "README.md" for name in names()), LESSONS / "README.md",
            LESSONS / "cheatsheet.md"]
SECTIONS = ["The question", "The idea", "Run it", "The derivation", "The code", "What to look for",
            "What breaks, and why", "Exercises", "Three questions", "Further reading"]
NEEDS = {"10_on_a_pretrained_model": ("transformers", "peft", "gguf")}  # the extra [pretrained]
PACKAGES = ("minigpt", "data", "sft", "reward", "ppo", "dpo", "lessons", "tests")
of_every_article = pytest.mark.parametrize("path", ARTICLES, ids=lambda path: path.parent.name)
of_every_lesson = pytest.mark.parametrize("name", names())
of_every_script = pytest.mark.parametrize("name, script", [
    (name, script) for name in names() for script in scripts_of(name)])


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The headings of a Markdown file as GitHub names them in a link."""
    titles = re.findall(r"^#+ (.+)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {slug(title) for title in titles}


@cache
def in_the_code(pattern: str) -> set[str]:
    """Whatever fits this pattern in the Python files of the project."""
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {found for path in sources
            for found in re.findall(pattern, path.read_text(encoding="utf-8"))}


NAMES = r"[\w/]+"         # of functions, settings and metrics
FILES = r"[\w-]+\.\w+"  # that the code writes


@of_every_article
def test_numbers_tables_figures_and_excerpts_are_up_to_date(path):
    assert path.read_text(encoding="utf-8") == render(path), "run python -m lessons.build --text"


@of_every_article
def test_no_line_begins_with_a_number_mark(path):
    """Markdown would end the paragraph there."""
    assert not re.search(r"^ *<!-- =", path.read_text(encoding="utf-8"), re.MULTILINE)


@of_every_script
def test_the_results_are_those_of_the_script_as_it_is(name, script):
    made_by = results_of(name)[script]["script"]
    assert made_by == fingerprint(LESSONS / name / f"{script}.py"), \
        f"run python -m lessons.build {name}"


@of_every_lesson
def test_the_figures_are_of_the_experiments_as_they_are(name):
    results = results_of(name)
    assert results["figures"]["made_from"] == hash_of(results["experiments"]["data"]), \
        f"run python -m lessons.build {name} --figures"


@of_every_lesson
@pytest.mark.parametrize("script", NOTEBOOKS)
def test_the_notebook_has_the_cells_of_the_script_and_their_outputs(name, script):
    notebook = json.loads((LESSONS / name / f"{script}.ipynb").read_text(encoding="utf-8"))
    assert "".join(notebook["cells"][0]["source"]) == INSTALL
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    whole = ast.parse((LESSONS / name / f"{script}.py").read_text(encoding="utf-8"))
    assert ast.dump(ast.parse(code)) == ast.dump(whole)
    assert all(cell["execution_count"] for cell in cells) and any(cell["outputs"] for cell in cells)
    assert not any(each.get("name") == "stderr" for cell in cells for each in cell["outputs"])


@of_every_lesson
@pytest.mark.parametrize("scripts", [["lesson"], ["experiments", "figures"], ["solutions"]],
                         ids=lambda scripts: scripts[0])
def test_every_script_runs(name, scripts, tmp_path, monkeypatch):
    for package in ("matplotlib", *NEEDS.get(name, ())):
        pytest.importorskip(package)
    monkeypatch.setenv("LESSONS_QUICK", "1")
    monkeypatch.setenv("LESSONS_OUT", str(tmp_path))
    for script in [script for script in scripts if script in scripts_of(name)]:
        runpy.run_path(str(LESSONS / name / f"{script}.py"), run_name="__main__")
        said = json.loads((tmp_path / name / f"{script}.json").read_text(encoding="utf-8"))
        in_article = results_of(name)[script]
        for kind in ("numbers", "tables", "figures", "data"):
            assert set(said.get(kind, [])) == set(in_article.get(kind, []))


@of_every_lesson
def test_a_lesson_is_short_enough_to_be_read_and_run(name):
    """The script on two screens; two minutes of one core, but for the one on a large model."""
    script = (LESSONS / name / "lesson.py").read_text(encoding="utf-8").splitlines()
    assert len(script) <= 100
    if name != "10_on_a_pretrained_model":  # 135 million weights
        assert results_of(name)["lesson"]["seconds"] < 120


def prose(text: str) -> list[str]:
    """The words of an article that are no code, table, formula on a line of its own, or mark."""
    text = re.sub(r"<!-- (table|figure|code|age) .*?<!-- / -->|<!--.*?-->|\$\$.*?\$\$", "",
                  without_code(text), flags=re.DOTALL)
    return re.sub(r"^\|.*$", "", text, flags=re.MULTILINE).split()


@of_every_lesson
def test_an_article_is_short_and_soon_says_how_to_run_it(name):
    text = (LESSONS / name / "README.md").read_text(encoding="utf-8")
    assert len(prose(text.partition("\n## Exercises\n")[0])) <= 2500
    assert len(prose(text.partition("\n## Run it\n")[0])) <= 600
    assert "<!-- age of its numbers -->" in text


def test_numbers_of_another_library_are_said_to_be_older(tmp_path, monkeypatch):
    today = {"dpo": [0.69, 0.68]}
    monkeypatch.setattr(lessons.canary, "LESSONS", tmp_path)
    monkeypatch.setattr(lessons.canary, "canaries", lambda lesson: today)
    folder = tmp_path / "05_dpo"
    folder.mkdir()
    article = folder / "README.md"
    article.write_text("<!-- age of its numbers --><!-- / -->\n", encoding="utf-8")
    monkeypatch.setattr(lessons.articles, "results_of", lambda name: {})
    for stored, older in (([0.69, 0.6805], False), ([0.69, 0.682], True), ([0.69], True)):
        (folder / "canary.json").write_text(json.dumps({"dpo": stored}), encoding="utf-8")
        assert ("older than the code" in render(article)) == older


@of_every_lesson
def test_every_article_has_the_same_sections(name):
    """An appendix may stand before the last."""
    text = without_code((LESSONS / name / "README.md").read_text(encoding="utf-8"))
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [section for section in sections if section != "Appendix"] == SECTIONS
    assert re.match(rf"# {int(name[:2])}\. \w", text)


@of_every_lesson
def test_every_article_asks_three_questions_and_names_its_exercise(name):
    text = (LESSONS / name / "README.md").read_text(encoding="utf-8")
    asked = text.partition("\n## Three questions\n")[2].partition("\n## ")[0]
    folded = re.findall(r"<details><summary>([^<]+\?[^<]*)</summary>\n\n(.+?)\n\n</details>", asked,
                        re.DOTALL)
    assert len(folded) == 3 and all(len(answer) > 100 for _, answer in folded)
    assert "[exercise.py](exercise.py)" in text
    assert f"`python -m lessons {name[:2]} --check`" in text


def test_the_cheat_sheet_has_every_loss_and_estimator():
    text = (LESSONS / "cheatsheet.md").read_text(encoding="utf-8")
    functions = [loss.__name__ for loss in LOSSES.values()] + [
        "kto_loss", "sft_loss", "bradley_terry_loss", "gae", "ppo_loss", "value_loss",
        "rloo_advantages", "grpo_advantages", "kl_k1", "kl_k2", "kl_k3", "best_of_n_kl", "Frontier"]
    assert all(f"[`{function}`](" in text for function in functions)


@of_every_lesson
def test_every_figure_is_there_and_shown(name):
    made = {figure for results in results_of(name).values() for figure in results["figures"]}
    article = (LESSONS / name / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"<!-- figure (\w+) -->", article))
    files = {path.stem for kind in ("svg", "png")
             for path in (LESSONS / name / "figures").glob(f"*.{kind}")}
    assert made == shown == files


@of_every_article
def test_every_link_leads_somewhere(path):
    text = without_code(path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if target.suffix == ".md" and anchor:
            assert anchor in anchors(target), link


@of_every_article
def test_every_name_and_option_is_in_the_code(path):
    text = without_code(path.read_text(encoding="utf-8"))
    text = re.sub(r"<!-- (figure|table) .*?<!-- / -->", "", text, flags=re.DOTALL)
    for name in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(r"[\w./-]+\.(py|md|json|jsonl|pt|csv|ipynb)", name):
            assert any(ROOT.rglob(Path(name).name)) or Path(name).name in in_the_code(FILES), name
        elif re.fullmatch(r"--[\w-]+", name):
            assert name[2:].replace("-", "_") in in_the_code(NAMES) | {"nproc_per_node"}, name
        elif re.fullmatch(r"[A-Za-z_]\w*([./]\w+)*(\(\))?", name) and re.search(r"[_.(/]", name):
            parts = re.split(r"\.", name.removesuffix("()"))
            assert all(part in in_the_code(NAMES) for part in parts), name
