from dataclasses import dataclass

import pytest

import data.main
import dpo.main
import ppo.main
import reward.main
import sft.main
from minigpt.options import option, parse
from minigpt.recipes import RECIPES, Recipe


@dataclass
class Shape:
    side_length: int = option(10, "of the square")
    scale: float = option(0.5, "of the drawing")
    name: str | None = option(None, "of the square")
    kind: str = option("round", "of the corners", choices=("round", "sharp"))
    filled: bool = option(False, "fill it")
    framed: bool = option(True, "frame it")


@dataclass
class Command:
    quick: bool = option(False, "be quick")
    data: str | None = option(None, "a file of squares")
    name: str | None = option(None, "of the square")


@pytest.fixture
def shape_recipes(monkeypatch):
    quick = Recipe("quick", {"Shape": {"side_length": 3, "name": "quick"}})
    few_rows = Recipe("data", {"Shape": {"side_length": 5}})
    monkeypatch.setitem(RECIPES, "quick", quick)
    monkeypatch.setitem(RECIPES, "few rows", few_rows)


def test_without_options_every_setting_has_its_default():
    assert parse("", [], Shape) == [Shape()]


def test_options_are_read_with_their_types():
    argv = ["--side-length", "7", "--scale", "2", "--name", "a", "--kind", "sharp"]
    shape, = parse("", argv, Shape)
    assert shape == Shape(7, 2.0, "a", "sharp")
    assert isinstance(shape.scale, float)


def test_booleans_are_switches_and_a_true_one_can_be_turned_off():
    assert parse("", ["--filled"], Shape)[0].filled is True
    assert parse("", [], Shape)[0].framed is True
    assert parse("", ["--no-framed"], Shape)[0].framed is False


def test_a_field_that_two_dataclasses_share_is_one_option():
    command, shape = parse("", ["--name", "both"], Command, Shape)
    assert command.name == shape.name == "both"


def test_a_recipe_overrides_defaults_and_typed_options_override_the_recipe(shape_recipes):
    command, shape = parse("", ["--quick"], Command, Shape, side_length=20, scale=0.1)
    assert command.quick
    assert (shape.side_length, shape.scale, shape.name) == (3, 0.1, "quick")
    _, shape = parse("", ["--quick", "--side-length", "8"], Command, Shape, side_length=20)
    assert (shape.side_length, shape.name) == (8, "quick")
    _, shape = parse("", [], Command, Shape, side_length=20)
    assert (shape.side_length, shape.name) == (20, None)


def test_one_line_says_which_recipe_is_in_use_and_what_it_set(shape_recipes, capsys):
    parse("", ["--quick"], Command, Shape)
    assert capsys.readouterr().out == "recipe 'quick' (--quick): side_length=3, name=quick\n"
    parse("", ["--quick", "--side-length", "8"], Command, Shape)
    assert capsys.readouterr().out == "recipe 'quick' (--quick): name=quick\n"
    parse("", ["--quick", "--data", "rows.csv"], Command, Shape)
    assert capsys.readouterr().out.splitlines() == ["recipe 'quick' (--quick): name=quick",
                                                    "recipe 'few rows' (--data): side_length=5"]
    parse("", [], Command, Shape)
    assert capsys.readouterr().out == ""


def test_the_recipe_is_printed_by_the_first_process_alone(shape_recipes, monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        parse("", ["--quick"], Command, Shape)
        assert capsys.readouterr().out.count("\n") == lines


BAD_OPTIONS = [["--side-length", "x"], ["--kind", "square"], ["--sides", "4"], ["left"]]


@pytest.mark.parametrize("argv", BAD_OPTIONS)
def test_bad_options_end_the_program(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        parse("", argv, Shape)
    assert ended.value.code == 2
    assert argv[0] in capsys.readouterr().err


COMMANDS = [data.main, sft.main, reward.main, ppo.main, dpo.main]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda module: module.__name__)
def test_every_command_explains_its_options(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--out", "--seed", "--quick"))
