import json
import signal
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import data.main
import dpo.main
import ppo.main
import reward.main
import sft.main
from data.world import WorldConfig
from dpo.train import DPOConfig
from minigpt.cli import CommandConfig, UserError, check_device, open_run, option, parse, report, run
from ppo.train import PPOConfig
from reward.train import RewardConfig
from sft.train import SFTConfig


@dataclass
class Shape:
    QUICK: ClassVar[dict] = {"side_length": 3, "name": "quick"}

    side_length: int = option(10, "of the square")
    scale: float = option(0.5, "of the drawing")
    name: str | None = option(None, "of the square")
    kind: str = option("round", "of the corners", choices=("round", "sharp"))
    filled: bool = option(False, "fill it")
    framed: bool = option(True, "frame it")


@dataclass
class Command:
    quick: bool = option(False, "be quick")
    name: str | None = option(None, "of the square")


def test_without_options_every_setting_has_its_default():
    assert parse("", [], Shape) == [Shape()]


def test_options_are_read_with_their_types():
    shape, = parse("", ["--side-length", "7", "--scale", "2", "--name", "a", "--kind", "sharp"], Shape)
    assert shape == Shape(7, 2.0, "a", "sharp")
    assert isinstance(shape.scale, float)


def test_booleans_are_switches_and_a_true_one_can_be_turned_off():
    assert parse("", ["--filled"], Shape)[0].filled is True
    assert parse("", [], Shape)[0].framed is True
    assert parse("", ["--no-framed"], Shape)[0].framed is False


def test_a_field_that_two_dataclasses_share_is_one_option():
    command, shape = parse("", ["--name", "both"], Command, Shape)
    assert command.name == shape.name == "both"


def test_quick_overrides_defaults_and_typed_options_override_quick():
    command, shape = parse("", ["--quick"], Command, Shape, side_length=20, scale=0.1)
    assert command.quick and (shape.side_length, shape.scale, shape.name) == (3, 0.1, "quick")
    _, shape = parse("", ["--quick", "--side-length", "8"], Command, Shape, side_length=20)
    assert (shape.side_length, shape.name) == (8, "quick")
    _, shape = parse("", [], Command, Shape, side_length=20)
    assert (shape.side_length, shape.name) == (20, None)


@pytest.mark.parametrize("argv", [["--side-length", "x"], ["--kind", "square"], ["--sides", "4"], ["left"]])
def test_bad_options_end_the_program(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        parse("", argv, Shape)
    assert ended.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_every_quick_setting_of_the_library_is_a_setting():
    for config in (CommandConfig, SFTConfig, RewardConfig, PPOConfig, DPOConfig, WorldConfig):
        config(**getattr(config, "QUICK", {}))


@pytest.mark.parametrize("command", [data.main, sft.main, reward.main, ppo.main, dpo.main], ids=lambda m: m.__name__)
def test_every_command_explains_its_options(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--out", "--seed", "--quick"))


def test_config_and_summary_are_written_and_printed(tmp_path, capsys):
    open_run(str(tmp_path), False, False, "cpu", Shape(), Command(quick=True))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["side_length"] == 10 and written["quick"] is True
    report("Title", {"loss": 0.123456, "steps": 7}, str(tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text()) == {"loss": 0.123456, "steps": 7}
    printed = capsys.readouterr().out
    assert "Title" in printed and "0.1235" in printed and "7" in printed


def test_a_device_that_is_not_there_raises():
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"--device tpu.*cpu"):
        check_device("tpu")


def test_a_command_refuses_a_folder_with_another_run_and_goes_on_only_with_the_same_settings(tmp_path):
    open_run(str(tmp_path), False, False, "cpu", Shape())
    open_run(str(tmp_path), False, False, "cpu", Shape())  # nothing came of the first but its config.json
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"another run.*--resume.*--overwrite"):
        open_run(str(tmp_path), False, False, "cpu", Shape())
    open_run(str(tmp_path), True, False, "cpu", Shape())
    kept = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match="begun with side_length=10"):
        open_run(str(tmp_path), True, False, "cpu", Shape(side_length=99))
    assert (tmp_path / "config.json").read_bytes() == kept
    open_run(str(tmp_path), False, True, "cpu", Shape(side_length=99))


def end_of(main):
    with pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code


def test_what_a_user_can_mend_ends_in_one_line_and_a_mistake_of_ours_in_a_traceback(capsys):
    def fail(error):
        raise error
    assert end_of(lambda: fail(UserError("mend this"))) == 1
    assert capsys.readouterr().err == "error: mend this\n"
    with pytest.raises(ValueError, match="ours"):
        run(lambda: fail(ValueError("ours")))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_of_training_ends_a_command_with_its_exit_code(number, code):
    handler = signal.getsignal(signal.SIGTERM)
    assert end_of(lambda: signal.raise_signal(number)) == code
    signal.signal(signal.SIGTERM, handler)


def test_overwriting_takes_away_the_runs_below_too_and_nothing_else(tmp_path):
    open_run(str(tmp_path), False, False, "cpu", Shape())
    kept = [tmp_path / "notes.txt", tmp_path / "mine" / "model.pt"]
    gone = [tmp_path / "model.pt", tmp_path / "sft" / "base" / "state.pt", tmp_path / "sft" / "base" / "metrics.jsonl"]
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    open_run(str(tmp_path), False, True, "cpu", Shape())
    assert all(path.exists() for path in kept) and not any(path.exists() for path in gone)
    with pytest.raises(UserError, match="choose one"):
        open_run(str(tmp_path), True, True, "cpu", Shape())
