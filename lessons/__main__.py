"""List the lessons:  python -m lessons
run one:  python -m lessons 05 [--experiments | --solutions] [--quick]
check what you wrote:  python -m lessons 05 --check [FILE]"""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from lessons.course import LESSONS, find, names, run_times, title_and_question
from lessons.exercises import check
from minigpt.command import run_command


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lessons", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", nargs="?", help="number or name (default: list them)")
    scripts = parser.add_mutually_exclusive_group()
    scripts.add_argument("--experiments", action="store_true",
                         help="make all numbers and figures of its article, in minutes")
    scripts.add_argument("--solutions", action="store_true",
                         help="run the worked solutions of its exercises")
    parser.add_argument("--quick", action="store_true",
                        help="seconds instead of minutes, with meaningless results")
    parser.add_argument("--check", nargs="?", const="", metavar="FILE",
                        help="check your answer to its exercise, in its exercise.py or in FILE")
    options = parser.parse_args(argv)
    if options.check is not None:
        if options.lesson is None or options.solutions or options.quick or options.experiments:
            parser.error("--check needs the number of a lesson and goes with no other option: "
                         "python -m lessons 05 --check")
        right, said = check(options.lesson, options.check or None)
        print(said)
        if not right:
            sys.exit(1)
        return
    if options.lesson is None:
        print(f"{'':<28} {'lesson':>8} {'experiments':>12} {'solutions':>10}   title")
        for name in names():
            lesson, experiments, solutions = run_times(name)
            print(f"{name:<28} {lesson:>8} {experiments:>12} {solutions:>10}   "
                  f"{title_and_question(name)[0]}")
        folder = f"{os.path.relpath(LESSONS)}/05_..."
        print(f"\npython -m lessons 05 runs one; its article is {folder}/README.md"
              f"\npython -m lessons 05 --check checks what you wrote in {folder}/exercise.py")
        return
    os.environ["LESSONS_QUICK"] = "1" if options.quick else "0"
    chosen = ("solutions",) if options.solutions else \
        ("experiments", "figures") if options.experiments else ("lesson",)
    for script in chosen:
        runpy.run_path(str(LESSONS / find(options.lesson) / f"{script}.py"), run_name="__main__")


if __name__ == "__main__":
    run_command(main)
