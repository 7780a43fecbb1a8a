"""Without a clone: what is in the wheel, and that commands work, and write, in any folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lessons.build import INSTALL
from lessons.course import LESSONS, NOTEBOOKS, names, results_of, scripts_of
from lessons.models import RECIPES

ROOT = Path(__file__).parents[1]
PACKAGES = ("minigpt", "data", "sft", "reward", "ppo", "dpo", "lessons")


def run(folder, *arguments):
    """Python in this folder, with the library on its path as if it were installed."""
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_wheel_holds_all_that_a_reader_runs_and_reads(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="too old to build the wheel")
    source, junk = tmp_path / "source", shutil.ignore_patterns("__pycache__", "runs", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = run(source, "-c", "from setuptools import build_meta; build_meta.build_wheel('..')")
    assert built.returncode == 0, built.stderr
    wheel, = tmp_path.glob("*.whl")
    assert wheel.name in INSTALL
    inside = set(zipfile.ZipFile(wheel).namelist())

    code = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).glob("*.py")}
    of_lessons = {f"lessons/{name}/{file}" for name in names() for file in
                  ("README.md", "exercise.py", "check.py",
                   *(f"{script}.{kind}" for script in scripts_of(name) for kind in ("py", "json")),
                   *(f"{script}.ipynb" for script in NOTEBOOKS))}
    figures = {f"lessons/{name}/figures/{figure}.svg" for name in names()
               for results in results_of(name).values() for figure in results["figures"]}
    assert code | of_lessons | figures | {
        "lessons/README.md", "lessons/cheatsheet.md", "lessons/site/index.html", "dpo/py.typed",
        "lessons/notes/family.md", "lessons/figures/frontier.png", "lessons/models/models.json",
        *(f"lessons/models/{name}.pt" for name in RECIPES)} <= inside
    assert not any(name.startswith(("tests/", "runs/")) or "__pycache__" in name for name in inside)
    assert wheel.stat().st_size < 8e6


def test_a_lesson_writes_below_the_current_folder_and_nowhere_else(tmp_path):
    pytest.importorskip("matplotlib")
    lesson = LESSONS / "09_exact_optimum"
    before = {path: path.stat().st_mtime for path in lesson.rglob("*")}
    done = run(tmp_path, "-m", "lessons", "09", "--solutions", "--quick")
    assert done.returncode == 0, done.stderr
    out = Path("runs/lessons", lesson.name)
    assert f"The results are in {out}" in done.stdout
    assert json.loads((tmp_path / out / "solutions.json").read_text())["numbers"]
    assert {path: path.stat().st_mtime for path in lesson.rglob("*")} == before


@pytest.mark.parametrize("command", ["dpo.main", "sft.main", "ppo.main", "lessons.compare",
                                     "minigpt.chat"])
def test_where_another_data_hides_ours_a_command_says_so_in_one_line(tmp_path, command):
    (tmp_path / "data.py").write_text("rows = []")
    done = run(tmp_path, "-m", command, "--help")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path / 'data.py'} hides this library's package `data`, since Python looks in "
        "the current folder first: rename it, or start the command in another folder\n")
