"""Rebuild the lessons:  python -m lessons.build [05 07 ...]

Runs the scripts of each lesson, lesson.py and solutions.py as notebooks that are saved with their
outputs; fills numbers, tables, figures and code excerpts into the articles; and makes the one-page
reader, lessons/site/.  `--figures` leaves out the long part and draws anew what experiments.py
kept; `--text` runs no script at all: do that after a change of the code; `--models` only trains the
models in lessons/models/.
"""

import argparse
import os
import runpy
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lessons.articles import render
from lessons.canary import CANARY, canaries
from lessons.course import LESSONS, NEEDED, NOTEBOOKS, SCRIPTS, find, names, scripts_of
from lessons.page import build_site
from minigpt.command import run_command
from minigpt.disk import write_json
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
    for cell in notebook.cells:
        if "outputs" in cell:  # without progress bars, and without warnings that name local paths
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    jupytext.write(notebook, script.with_suffix(".ipynb"))


def run(script: Path) -> None:
    """Run a script of a lesson, and save what it says.  The numbers of experiments.py are those of
    the library as it is now, and a canary beside them tells when they no longer are."""
    if script.stem in NOTEBOOKS:
        run_as_notebook(script)
        return
    runpy.run_path(str(script), run_name="__main__")
    if script.stem == "experiments":
        write_json(script.parent / CANARY, canaries(script.parent.name))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lessons.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", nargs="*", help="numbers of lessons (without any: all)")
    less = parser.add_mutually_exclusive_group()
    less.add_argument("--text", action="store_true",
                      help="run no script; fill the articles from saved results")
    less.add_argument("--figures", action="store_true",
                      help="run no script but figures.py, on what experiments.py kept")
    less.add_argument("--models", action="store_true",
                      help="run no lesson; train the models that ship with the lessons")
    options = parser.parse_args(argv)
    if not (LESSONS.parent / "pyproject.toml").exists():
        raise UserError(f"lessons are built in a clone, and {LESSONS} is in none")
    chosen = [find(number) for number in options.lesson] or names()
    if options.models:
        from lessons.models import build_models

        build_models()
        return
    os.environ |= {"LESSONS_OUT": str(LESSONS), "LESSONS_QUICK": "0"}
    wanted = [] if options.text else ["figures"] if options.figures else SCRIPTS
    scripts = [LESSONS / name / f"{script}.py" for name in chosen for script in scripts_of(name)
               if script in wanted]
    for script in tqdm(scripts, desc="scripts", disable=None):
        tqdm.write(f"{script.relative_to(LESSONS)} ...")
        run(script)
    for path in [LESSONS / name / "README.md" for name in chosen] + [LESSONS / "README.md"]:
        path.write_text(render(path), encoding="utf-8")
    print(f"The page with all lessons: {os.path.relpath(build_site())}")


if __name__ == "__main__":
    run_command(main)
