"""Dataclasses of settings -> command-line options."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import MISSING, field, fields
from types import UnionType
from typing import Any, get_args, get_type_hints

from minigpt.recipes import RECIPES, recipe


def option(default: Any, help: str, choices: tuple | None = None) -> Any:
    """A dataclass field that is also a command-line option with this help text."""
    return field(default=default, metadata={"help": help, "choices": choices})


def parse(description: str, argv: Sequence[str] | None, *configs: type,
          **defaults: Any) -> list[Any]:
    """One instance of each dataclass in `configs`, filled from the command line.

    A field that two of them share is one option.  What the user typed wins over the recipes of
    --quick and --data (minigpt/recipes.py), these win over `defaults`, and these over the fields'
    own.  The recipes in use are printed with what they set.
    """
    parser = _parser(description, configs)
    parser.set_defaults(**defaults)
    typed = parser.parse_args(argv)
    in_use = [name for name in RECIPES if getattr(typed, RECIPES[name].option, None)]
    for name in in_use:
        for config in configs:
            parser.set_defaults(**recipe(name, config))
    values = vars(parser.parse_args(argv))
    for name in in_use:
        _print_recipe(name, configs, values)
    return [config(**{f.name: values[f.name] for f in fields(config)}) for config in configs]


def _parser(description: str, configs: Sequence[type]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for config in configs:
        group, hints = parser.add_argument_group(config.__name__), get_type_hints(config)
        for setting in fields(config):
            flag = "--" + setting.name.replace("_", "-")
            if flag in parser._option_string_actions:
                continue
            default = setting.default if setting.default is not MISSING else None
            kind: dict[str, Any]
            if hints[setting.name] is bool:
                kind = {"action": argparse.BooleanOptionalAction if default else "store_true"}
            else:
                kind = {"type": _plain_type(hints[setting.name]),
                        "choices": setting.metadata["choices"]}
            group.add_argument(flag, default=default, help=setting.metadata["help"], **kind)
    return parser


def _print_recipe(name: str, configs: Sequence[type], values: dict[str, Any]) -> None:
    """One line with the settings that this recipe gave the run; the first process prints it."""
    chosen = {key: value for config in configs for key, value in recipe(name, config).items()
              if values[key] == value}
    if chosen and os.environ.get("RANK", "0") == "0":
        print(f"recipe {name!r} (--{RECIPES[name].option}): "
              + ", ".join(f"{key}={value}" for key, value in chosen.items()))


def _plain_type(hint: Any) -> type:
    """str | None -> str: an option that is left out stays None."""
    if isinstance(hint, UnionType):
        return next(t for t in get_args(hint) if t is not type(None))
    return hint
