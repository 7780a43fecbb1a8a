import json
import signal
from dataclasses import dataclass

import pytest
import torch

from minigpt import MiniGPT, save_checkpoint
from minigpt.command import begin, check_device, load_model, report, run_command
from minigpt.errors import UserError
from minigpt.options import option
from reward import RewardModel


@dataclass
class Shape:
    side_length: int = option(10, "of the square")


@dataclass
class Command:
    device: str = option("cpu", "cpu, cuda or mps")
    quick: bool = option(False, "be quick")
    out: str | None = option(None, "folder of the run")
    resume: bool = option(False, "continue the run")
    overwrite: bool = option(False, "replace the run")


def begin_in(folder, *argv):
    return begin("", argv, Shape, Command, out=str(folder))


# --- the beginning -------------------------------------------------------------------------------


def test_config_and_summary_are_written_and_printed(tmp_path, capsys):
    shape, command = begin_in(tmp_path, "--quick")
    assert (shape, command) == (Shape(), Command(quick=True, out=str(tmp_path)))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["side_length"] == 10 and written["quick"] is True
    report("Title", {"loss": 0.123456, "steps": 7}, str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"loss": 0.123456, "steps": 7}
    printed = capsys.readouterr().out
    assert "Title" in printed and "0.1235" in printed and "7" in printed


def test_a_device_that_is_not_there_raises(tmp_path):
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"--device tpu.*cpu"):
        check_device("tpu")
    with pytest.raises(UserError, match=r"--device tpu.*cpu"):
        begin_in(tmp_path / "run", "--device", "tpu")
    assert not (tmp_path / "run").exists()


def test_a_command_refuses_a_folder_with_another_run_and_continues_only_with_the_same_settings(
        tmp_path):
    begin_in(tmp_path)
    begin_in(tmp_path)  # nothing came of the first but its config.json
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"another run.*--resume.*--overwrite"):
        begin_in(tmp_path)
    begin_in(tmp_path, "--resume")
    kept = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"begun with side_length=10, not with side_length=99"):
        begin_in(tmp_path, "--resume", "--side-length", "99")
    assert (tmp_path / "config.json").read_bytes() == kept
    begin_in(tmp_path, "--overwrite", "--side-length", "99")
    assert json.loads((tmp_path / "config.json").read_text())["side_length"] == 99


def test_a_damaged_config_is_refused_by_name(tmp_path):
    begin_in(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "config.json").write_text('{"side_len')
    with pytest.raises(UserError, match=r"config\.json is damaged.*--overwrite"):
        begin_in(tmp_path, "--resume")


def test_overwriting_deletes_the_runs_below_too_and_nothing_else(tmp_path):
    begin_in(tmp_path)
    kept = [tmp_path / "notes.txt", tmp_path / "mine" / "model.pt"]
    base = tmp_path / "sft" / "base"
    gone = [tmp_path / "model.pt", base / "state.pt", base / "metrics.jsonl"]
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    begin_in(tmp_path, "--overwrite")
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    with pytest.raises(UserError, match="choose one"):
        begin_in(tmp_path, "--resume", "--overwrite")


def test_a_checkpoint_of_the_wrong_kind_is_refused_with_its_option(tmp_path, make_model,
                                                                   weights_equal):
    model, path = make_model(), str(tmp_path / "model.pt")
    save_checkpoint(model, path)
    assert weights_equal(load_model(path, MiniGPT, "--init", "cpu"), model)
    with pytest.raises(UserError, match=r"--reward .*model\.pt holds a MiniGPT.*RewardModel"):
        load_model(path, RewardModel, "--reward", "cpu")


# --- the end -------------------------------------------------------------------------------------


def exit_code_of(main):
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code


def test_what_a_user_can_fix_ends_in_one_line_and_our_own_mistake_in_a_traceback(capsys):
    def fail(error):
        raise error
    assert exit_code_of(lambda: fail(UserError("fix this"))) == 1
    assert capsys.readouterr().err == "error: fix this\n"
    with pytest.raises(ValueError, match="ours"):
        run_command(lambda: fail(ValueError("ours")))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_of_training_ends_a_command_with_its_exit_code(number, code):
    assert exit_code_of(lambda: signal.raise_signal(number)) == code
