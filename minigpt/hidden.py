"""Whether another `data` hides this library's package of that name, as one beside a program may.

Python looks in the current folder first.  The losses need no `data`, so `from dpo import dpo_loss`
works there all the same; but a command (`python -m dpo.main`) does, and says so.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("minigpt", "data", "sft", "reward", "ppo", "dpo", "lessons")


def end_a_command_without_data() -> None:
    """End the program, with one sentence, if it is a command of ours and finds another `data`."""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv[:-1] else ""
    found = find_spec("data") if module.split(".")[0] in PACKAGES else None
    if found is None or found.origin is None:
        return
    ours = Path(__file__).parents[1] / "data" / "__init__.py"
    if Path(found.origin).resolve() != ours.resolve():
        sys.exit(f"error: {found.origin} hides this library's package `data`, since Python looks "
                 "in the current folder first: rename it, or start the command in another folder")


end_a_command_without_data()
