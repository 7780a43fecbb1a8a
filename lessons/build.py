"""Rebuild the lessons:  python -m lessons.build [05 07 ...]

Runs the scripts of each lesson as notebooks, saves these with their outputs (lesson.ipynb,
solutions.ipynb), and fills numbers, tables, figures and code excerpts into the articles.  `--text`
only fills the articles, from saved results; `--site` only builds lessons/site/ from the articles;
`--models` only trains the models in lessons/models/.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lessons.articles import render
from lessons.course import LESSONS, NEEDED, SCRIPTS, find, names
from minigpt.command import run_command
from minigpt.errors import UserError

INSTALL = """\
> This needs the library and matplotlib. In a clone: `pip install -e ".[plots]" -c constraints.txt`.
> Without one, from the wheel that `pip wheel . --no-deps` makes in a clone:
> `pip install "alignment_from_scratch-0.1.0-py3-none-any.whl[plots]"`.
>
> It runs in any folder, and writes to `runs/lessons/` there."""  # the first cell of a notebook


def run_as_notebook(script: Path) -> None:
    """Run a script of `# %%` cells as a notebook, and save that with its outputs beside the script.

    Its first cell, which the script has not, says what to install.
    Raises UserError if a package is missing, nbclient's CellExecutionError if a cell fails.
    """
    try:
        import jupytext
        from nbclient import NotebookClient
        from nbformat.v4 import new_markdown_cell
    except ImportError as error:
        raise UserError(NEEDED) from error
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # ids are random by default, and would differ in every build
    notebook.cells.insert(0, new_markdown_cell(INSTALL, id="install"))
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3",
                                        "language": "python"}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(LESSONS.parent)}}).execute()
    jupytext.write(notebook, script.with_suffix(".ipynb"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lessons.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", nargs="*", help="numbers of lessons (without any: all)")
    parser.add_argument("--text", action="store_true",
                        help="run nothing; fill the articles from saved results")
    parser.add_argument("--site", action="store_true", help="run nothing; build lessons/site/")
    parser.add_argument("--models", action="store_true",
                        help="run no lesson; train the models that ship with the lessons")
    options = parser.parse_args(argv)
    if not (LESSONS.parent / "pyproject.toml").exists():
        raise UserError(f"lessons are built in a clone, and {LESSONS} is in none")
    chosen = [find(number) for number in options.lesson] or names()
    if options.models:
        from lessons.models import build_models

        build_models()
        return
    if options.site:
        from lessons.page import build_site

        print(f"site: {build_site()}")
        return
    os.environ |= {"LESSONS_OUT": str(LESSONS), "LESSONS_QUICK": "0"}
    scripts = [LESSONS / name / f"{script}.py" for name in chosen for script in SCRIPTS]
    for script in tqdm([] if options.text else scripts, desc="scripts", disable=None):
        tqdm.write(f"{script.relative_to(LESSONS)} ...")
        run_as_notebook(script)
    for path in [LESSONS / name / "README.md" for name in chosen] + [LESSONS / "README.md"]:
        path.write_text(render(path), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
