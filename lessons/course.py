"""How the scripts of a lesson report their results.

A lesson has up to four scripts:

    lesson.py        what a reader runs, in two minutes: one seed, the main finding
    experiments.py   what the article's numbers come from: sweeps over seeds and settings, minutes
    figures.py       the article's numbers, tables and figures, drawn from what experiments.py kept
    solutions.py     the worked exercises

    lesson = Lesson("05_dpo")                                # in lessons/05_dpo/lesson.py
    for beta in lesson.progress(betas): ...
    lesson.table("sweep", ["beta", "KL"], [["0.1", "2.3"]], title="A lower beta goes further")
    lesson.number("loss_at_start", losses[0], ".4f")
    lesson.figure("margins", figure, "The margin grows while both log-probabilities fall.")
    lesson.done()

    lesson = Lesson("05_dpo", "experiments")                 # in experiments.py
    lesson.keep("kl", {"0.1": [2.2, 2.4, 2.3]})              # anything that JSON can hold
    lesson.done()

    lesson = Lesson("05_dpo", "figures")                     # in figures.py
    kl = lesson.kept("kl")                                   # what experiments.py kept
    lesson.number("kl_at_0_1", kl["0.1"], ".2f")             # mean ± half of its 95% interval
    lesson.done()

`python -m lessons.build` runs the scripts and fills their results into the articles.  A script run
by hand saves to runs/lessons/ instead, and changes no article.
"""

import ast
import builtins
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from lessons.verdict import half_width
from minigpt.disk import write_json
from minigpt.errors import UserError
from minigpt.plots import pyplot

Item = TypeVar("Item")
LESSONS = Path(__file__).parent
RUNS = Path("runs/lessons")  # below the current folder
SCRIPTS = ("lesson", "experiments", "figures", "solutions")
NOTEBOOKS = ("lesson", "solutions")  # of these there are notebooks, too
NEEDED = "building the lessons needs more packages: pip install -e '.[lessons]' -c constraints.txt"
STYLE = {"figure.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": "lessons",
         "axes.titlesize": 10, "legend.frameon": False, "legend.fontsize": 8.5,
         "lines.linewidth": 1.8}


class Lesson:
    """The results of one script in the folder lessons/<name>/.

    quick: a short run that only shows that the script works (`python -m lessons 05 --quick`).
    Raises UserError if matplotlib is missing.
    """

    def __init__(self, name: str, script: str = "lesson"):
        self.name, self.script = name, script
        self.quick = os.environ.get("LESSONS_QUICK") == "1"
        self.folder = Path(os.environ.get("LESSONS_OUT", RUNS)) / name
        self.results: dict[str, Any] = {"numbers": {}, "tables": {}, "figures": {}, "data": {}}
        self.started = time.process_time()
        self.article = results_of(name).get(script, self.results)
        self.plt = pyplot()
        if self.plt is None:
            raise UserError("the lessons need matplotlib: pip install matplotlib")
        self.plt.rcParams.update(STYLE)
        torch.set_num_threads(1)  # enough for such small models; a fixed number makes runs repeat

    def pick(self, full: Any, quick: Any) -> Any:
        """One of two values: `quick` in a quick run, else `full`."""
        return quick if self.quick else full

    def progress(self, items: Iterable[Item], what: str = "runs") -> Iterable[Item]:
        """The items, behind a progress bar."""
        return tqdm(items, desc=what, disable=None, leave=False)

    def panels(self, count: int = 1, height: float = 3.4, **options: Any) -> tuple[Any, Any]:
        """A figure with `count` panels side by side, and its axes: matplotlib's `subplots`."""
        return self.plt.subplots(1, count, figsize=(max(5.4, 4.1 * count), height),
                                 layout="constrained", **options)

    def keep(self, name: str, value: Any) -> None:
        """Save what figures.py will read: numbers, lists and dicts with strings as keys."""
        self._keep("data", name, json.loads(json.dumps(value)))

    def kept(self, name: str) -> Any:
        """What experiments.py kept under this name.

        Raises UserError if it has not run, KeyError if it kept no such thing.
        """
        return self.experiments["data"][name]

    @cached_property
    def experiments(self) -> dict[str, Any]:
        """All that experiments.py saved.  Raises UserError if it has not run."""
        path = self.folder / "experiments.json"
        if not path.exists():
            raise UserError(f"figures.py draws what experiments.py kept, and there is no {path}: "
                            f"python -m lessons {self.name[:2]} --experiments")
        return json.loads(path.read_text(encoding="utf-8"))

    def number(self, name: str, value: float | str | Sequence[float], form: str = ".3f") -> None:
        """Save a number as the article prints it; several as `spread` does."""
        text = value if isinstance(value, str) else spread(value, form)
        self._keep("numbers", name, text)
        if self.script != "figures":
            said = self.article["numbers"].get(name, text)
            print(f"{name.replace('_', ' ')}: {text}"
                  + f"   (in the article: {said})" * (said != text))

    def table(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Any]],
              title: str = "") -> None:
        """Save a table, and print it with aligned columns, below its title."""
        cells = [[str(cell) for cell in row] for row in (head, *rows)]
        self._keep("tables", name, cells)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        print("\n" + f"{title}\n\n" * bool(title) + "\n".join(lines) + "\n")

    def figure(self, name: str, figure: Any, caption: str) -> None:
        """Save figures/<name>.svg and .png, and show it in a notebook.

        The caption states the finding.
        """
        from PIL import Image as Pillow  # comes with matplotlib

        self._keep("figures", name, caption)
        (self.folder / "figures").mkdir(parents=True, exist_ok=True)
        path = self.folder / "figures" / f"{name}.png"
        figure.savefig(path, dpi=self.pick(160, 40))
        picture = Pillow.open(path).convert("RGB")
        # 128 colours look the same and take a third of the space
        picture.quantize(128, dither=Pillow.Dither.NONE).save(path, optimize=True)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        self.plt.close(figure)
        if hasattr(builtins, "get_ipython"):
            from IPython.display import Image, display

            display(Image(path, width=min(900, int(figure.get_figwidth() * 95))))
        print(f"{caption}\n({os.path.relpath(path)})\n")

    def done(self) -> None:
        """Write all results to <script>.json; the last call of a script."""
        seconds = time.process_time() - self.started
        self.results |= {"seconds": round(seconds),
                         "script": fingerprint(LESSONS / self.name / f"{self.script}.py")}
        if self.script == "figures":
            self.results["made_from"] = hash_of(self.experiments["data"])
        results = {kind: value for kind, value in self.results.items() if value != {}}
        write_json(self.folder / f"{self.script}.json", results)
        article = os.path.relpath(LESSONS / self.name / "README.md")
        meaningless = "; the results of a quick run are meaningless" * self.quick
        print(f"{seconds:.0f} seconds of one core{meaningless}.\n"
              f"The results are in {os.path.relpath(self.folder)}. The article: {article}")

    def _keep(self, kind: str, name: str, value: Any) -> None:
        if name in self.results[kind]:
            raise ValueError(f"{self.name}: there is already a {name!r} among the {kind}")
        self.results[kind][name] = value


def spread(value: float | Sequence[float], form: str = ".3f") -> str:
    """Format one number, or several (one per seed) as mean ± half of its 95% interval."""
    values = value if isinstance(value, Sequence) else [value]
    if len(values) == 1:
        return format(values[0], form)
    return f"{mean(values):{form}} ± {half_width(values):{form.lstrip('+')}}"


def names() -> list[str]:
    """The folder names of the lessons, in order."""
    return sorted(path.parent.name for path in LESSONS.glob("[0-9][0-9]_*/README.md"))


def find(number: str) -> str:
    """The folder name of a lesson, from its number or name.  Raises UserError if there is none."""
    found = [name for name in names() if name == number or name.split("_")[0] == number.zfill(2)]
    if not found:
        raise UserError(f"there is no lesson {number!r}; the lessons are {', '.join(names())}")
    return found[0]


def title_and_question(name: str) -> tuple[str, str]:
    """The title and the question at the top of the article."""
    title, _, question = (LESSONS / name / "README.md").read_text(encoding="utf-8").splitlines()[:3]
    return title.lstrip("# "), question.strip("*")


def results_of(name: str) -> dict[str, dict[str, Any]]:
    """Script -> its results when the article was built."""
    paths = {script: LESSONS / name / f"{script}.json" for script in SCRIPTS}
    empty: dict[str, Any] = {"numbers": {}, "tables": {}, "figures": {}}
    return {script: empty | json.loads(path.read_text(encoding="utf-8"))
            for script, path in paths.items() if path.exists()}


def run_times(name: str) -> list[str]:
    """How long each script of a lesson that trains takes; "" for one that it does not have."""
    results = results_of(name)
    return [run_time(results[script]["seconds"]) if script in results else ""
            for script in ("lesson", "experiments", "solutions")]


def run_time(seconds: int) -> str:
    """47 -> "47 s", 360 -> "6 min"."""
    return f"{seconds} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def scripts_of(name: str) -> list[str]:
    """The scripts that a lesson has."""
    return [script for script in SCRIPTS if (LESSONS / name / f"{script}.py").exists()]


def fingerprint(script: Path) -> str:
    """A hash of the code of a script, unaffected by its comments and layout."""
    return hash_of(ast.dump(ast.parse(script.read_text(encoding="utf-8"))))


def hash_of(value: Any) -> str:
    """A short hash of anything that JSON can hold."""
    text = value if isinstance(value, str) else json.dumps(value)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
