"""Dataclasses of settings: checked when they are made, and options of the command line."""

import argparse
import difflib
import operator
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from minigpt.errors import UserError
from minigpt.recipes import RECIPES, Times, combined, print_recipe, recipe


def option(default: Any, help: str, choices: tuple | None = None, *, at_least: float | None = None,
           above: float | None = None, at_most: float | None = None,
           below: float | None = None, positional: bool = False) -> Any:
    """A dataclass field that is also a command-line option with this help text.

    choices, at_least, above, at_most, below: the values that it may have.
    positional: its value (of a list: its values) stands on the command line without a flag.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "at_least": at_least,
                                            "above": above, "at_most": at_most, "below": below,
                                            "positional": positional})


LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le,
          "below": operator.lt}


@dataclass
class Settings:
    """A dataclass whose fields are options.  Raises UserError, naming the first that is wrong."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for setting in fields(self):
            value = getattr(self, setting.name)
            wrong = fault(value, hints[setting.name], setting.metadata)
            if wrong is not None:
                raise UserError(f"{setting.name}={value!r} {wrong} (on the command line "
                                f"{flag_of(setting.name)})")


def fault(value: Any, hint: Any, limits: Mapping[str, Any]) -> str | None:
    """What is wrong with the value of a setting of this type, in words; None if nothing is.

    limits: those of `option`.
    """
    kinds, choices = _kinds(hint), limits.get("choices")
    if value is None:
        return None if type(None) in kinds else "must have a value"
    kind = next(kind for kind in kinds if kind is not type(None))
    if kind is bool:
        return None if isinstance(value, bool) else "must be True or False"
    if kind is str:
        if not isinstance(value, str):
            return "must be text"
        return f"must be one of {', '.join(choices)}" if choices and value not in choices else None
    if get_origin(kind) is list:
        item, = get_args(kind)
        if not isinstance(value, list):
            return "must be a list"
        faults = [fault(one, item, limits) for one in value]
        return next((f"holds {one!r}, which {wrong}" for one, wrong
                     in zip(value, faults, strict=True) if wrong), None)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return "must be a whole number" if kind is int else "must be a number"
    if not abs(value) <= sys.float_info.max:  # nan is not, either
        return "must be finite"
    for name, keeps in LIMITS.items():
        limit = limits.get(name)
        if limit is not None and not keeps(value, limit):
            return f"must be {name.replace('_', ' ')} {limit:g}"
    return None


def flag_of(name: str) -> str:
    """batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def parse(description: str, argv: Sequence[str] | None, *configs: type,
          **defaults: Any) -> list[Any]:
    """One instance of each dataclass in `configs`, filled from the command line.

    A field that two of them share is one option.  What the user typed wins over the recipes of
    --quick and --data (minigpt/recipes.py), these win over `defaults`, and these over the fields'
    own.  So do the recipes of a method (--loss simpo), which win over the others.  The recipes in
    use are printed with what they set.
    """
    parser = _parser(description, configs)
    parser.set_defaults(**defaults)
    typed = parser.parse_args(argv)
    in_use, of_recipes = recipes_in_use(configs, vars(typed))
    parser.set_defaults(**of_recipes)
    values = vars(parser.parse_args(argv))
    for name in in_use:
        _print_recipe(name, configs, values, of_recipes)
    return [config(**{f.name: values[f.name] for f in fields(config)}) for config in configs]


def recipes_in_use(configs: Sequence[type],
                   values: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The recipes that these options ask for, and what they set together."""
    in_use = [name for name in RECIPES if RECIPES[name].is_used(values)]
    settings: dict[str, Any] = {}
    for config in configs:
        settings |= combined(in_use, config)
    return in_use, settings


def chosen_settings(configs: Sequence[Any]) -> list[list[str]]:
    """A table of the settings that are not the defaults, and of who chose them."""
    values = {name: value for config in configs for name, value in vars(config).items()}
    defaults = {setting.name: setting.default for config in configs for setting in fields(config)}
    in_use, of_recipes = recipes_in_use([type(config) for config in configs], values)
    chosen_by = {key: f"recipe '{name}' ({RECIPES[name].flag})" for name in in_use
                 for config in configs for key in recipe(name, type(config))}
    rows = [[name, as_typed(value), as_typed(defaults[name]),
             chosen_by[name] if of_recipes.get(name) == value else "the command line"]
            for name, value in values.items() if name not in ("out", "resume", "overwrite")
            and (value != defaults[name] or of_recipes.get(name, value) != value)]
    return [["setting", "value", "default", "chosen by"], *rows]


def as_typed(value: Any) -> str:
    """The value of a setting as the command line has it; a dash for none."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)


UNKNOWN = "unrecognized arguments: "


class _Parser(argparse.ArgumentParser):
    """Argparse, but an error is one line, and one in an option's name offers the nearest."""

    def error(self, message: str) -> NoReturn:
        if message.startswith(UNKNOWN):
            unknown = message.removeprefix(UNKNOWN).split(" ")[0].split("=")[0]
            near = difflib.get_close_matches(unknown, self._option_string_actions)
            near.sort(key=lambda flag: flag[:3] != unknown[:3])  # rather one that starts alike
            message = f"there is no option {unknown}"
            message += f": did you mean {near[0]}?" if near else ""
        print(f"error: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and defaults where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser(description: str, configs: Sequence[type]) -> argparse.ArgumentParser:
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=_Help)
    for config in configs:
        group, hints = parser.add_argument_group(config.__name__), get_type_hints(config)
        for setting in fields(config):
            flag = flag_of(setting.name)
            if flag in parser._option_string_actions:
                continue
            default = setting.default if setting.default is not MISSING else None
            kind = _argument(hints[setting.name], default, setting.metadata["choices"])
            if setting.metadata["positional"]:
                flag, kind = setting.name, kind | {"nargs": "*" if "nargs" in kind else "?"}
            group.add_argument(flag, default=default, help=setting.metadata["help"], **kind)
    return parser


def _argument(hint: Any, default: Any, choices: tuple | None) -> dict[str, Any]:
    """How argparse reads a setting of this type; an option that is left out may stay None."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    kind = next(kind for kind in _kinds(hint) if kind is not type(None))
    if get_origin(kind) is list:
        return {"nargs": "+", "type": get_args(kind)[0]}
    return {"type": kind, "choices": choices}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a setting may have: float | None -> (float, None)."""
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


def _print_recipe(name: str, configs: Sequence[type], values: dict[str, Any],
                  of_recipes: dict[str, Any]) -> None:
    """One line with the settings that this recipe gave the run; the first process prints it."""
    chosen = {key: values[key] for config in configs for key, value in recipe(name, config).items()
              if values[key] == (of_recipes[key] if isinstance(value, Times) else value)}
    if os.environ.get("RANK", "0") == "0":
        print_recipe(name, chosen)
