import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import dpo.main
import ppo.main
import reward.main
from minigpt import MiniGPT, load_checkpoint, processor, save_checkpoint
from minigpt.command import begin, check_device, load_model, report, run_command
from minigpt.errors import UserError
from minigpt.log import MetricLog
from minigpt.metrics import interval
from minigpt.options import option
from minigpt.run_folder import FILES, holds_run
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
    report("Title", str(tmp_path), {"loss": 0.123456, "steps": 7}, warnings=["hot"], sections=[],
           settings=[shape, command], talk=["a b"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"loss": 0.123456, "steps": 7}
    printed = capsys.readouterr().out
    assert "Title\nwarning: hot" in printed and "0.1235" in printed and "7" in printed
    assert printed.endswith("\npython -m minigpt.chat 'a b'\n")
    kept = (tmp_path / "report.md").read_text()
    assert "# Title" in kept and "warning: hot" in kept and "| loss | 0.1235 |" in kept
    assert "| quick | True | False | the command line |" in kept and "side_length=10" in kept


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
    begin_in(tmp_path)  # it ended before its first step
    (tmp_path / "metrics.jsonl").write_text("{}\n")
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
    (tmp_path / "metrics.jsonl").write_text("{}\n")
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
        path.write_text("content")
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


# --- continuing, and being stopped anywhere ------------------------------------------------------

LITTLE = ["--facts", "2", "--plain-rows", "16", "--sft-rows", "16", "--preference-rows", "16",
          "--heldout-rows", "8", "--samples", "1", "--max-new-tokens", "4"]
PAIRS = [{"prompt": f"{n}?", "chosen": f"{n} thanks", "rejected": f"{n} no"} for n in range(40)]


def write_rows(path, rows=PAIRS):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines_of(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.fixture
def start(tmp_path, make_model):
    save_checkpoint(make_model(spread=1), tmp_path / "start.pt")
    return tmp_path / "start.pt"


def test_a_fresh_command_trains_what_it_starts_from_in_folders_of_its_own(tmp_path):
    out = tmp_path / "run"
    dpo.main.main(["--out", str(out), *LITTLE])
    for folder in (out, out / "sft", out / "sft" / "base"):
        assert holds_run(folder) and lines_of(folder)
    figures = json.loads((out / "summary.json").read_text())
    name = "preference_accuracy_heldout"
    low, high = interval(figures[name], 8)
    assert (figures[f"{name}_low"], figures[f"{name}_high"], figures[f"{name}_pairs"]) == \
        (low, high, 8)
    with pytest.raises(UserError, match="holds another run"):
        dpo.main.main(["--out", str(out), *LITTLE])
    model = (out / "model.pt").read_bytes()
    dpo.main.main(["--out", str(out), *LITTLE, "--resume"])  # all of it is there
    assert (out / "model.pt").read_bytes() == model


def test_a_reward_models_report_carries_the_interval_of_its_accuracy(tmp_path, start):
    reward.main.main(["--out", str(tmp_path / "run"), "--init", str(start), *LITTLE])
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())
    low, high = interval(figures["accuracy_heldout"], 8)
    assert [figures[f"accuracy_heldout_{name}"] for name in ("low", "high", "pairs")] == \
        [low, high, 8]


def test_a_resumed_command_takes_the_same_rows_and_models_at_another_path(tmp_path, start):
    rows = write_rows(tmp_path / "rows.jsonl")
    heldout = write_rows(tmp_path / "heldout.jsonl", PAIRS[:6])
    judge = tmp_path / "reward.pt"
    save_checkpoint(RewardModel.from_policy(load_model(str(start), MiniGPT, "--init", "cpu")),
                    judge)
    for stage, more in ((dpo, ["--num-epochs", "1"]), (ppo, ["--num-episodes", "1"])):
        out = tmp_path / stage.__name__

        def run(*paths, stage=stage, more=more, out=out):
            names = ["--data", "--eval-data", "--init", "--reward"][:len(paths)]
            flags = [word for pair in zip(names, map(str, paths), strict=True) for word in pair]
            stage.main.main(["--out", str(out), "--samples", "1", "--max-new-tokens", "4", *more,
                             *flags, *(["--resume"] if out.exists() else [])])
        own = [judge] if stage is ppo else []
        run(rows, heldout, start, *own)
        log, model = lines_of(out), (out / "model.pt").read_bytes()
        moved = [shutil.copy(path, tmp_path / f"moved-{index}-{stage.__name__}{path.suffix}")
                 for index, path in enumerate(map(Path, (rows, heldout, start, *own)))]
        run(*moved)
        assert (lines_of(out), (out / "model.pt").read_bytes()) == (log, model)
        assert json.loads((out / "config.json").read_text())["data"] == [str(moved[0])]

        others = write_rows(moved[0], [{**row, "chosen": row["chosen"] + "!"} for row in PAIRS])
        if stage is dpo:  # PPO reads the prompts alone
            with pytest.raises(UserError, match="begun with examples="):
                run(others, *moved[1:])
        write_rows(moved[0], [{**row, "prompt": row["prompt"] + "!"} for row in PAIRS])
        with pytest.raises(UserError, match="begun with examples="):
            run(*moved)
        write_rows(moved[0])
        for index in range(2, len(moved)):  # the models
            kept = moved[index].read_bytes()
            other = load_checkpoint(moved[index])
            with torch.no_grad():
                next(other.parameters())[65, 0] += 1
            save_checkpoint(other, moved[index])
            with pytest.raises(UserError, match="begun with weights_at_start="):
                run(*moved)
            moved[index].write_bytes(kept)
        if stage is ppo:  # the same weights, but read in another way
            other = load_checkpoint(judge)
            other.pooling = "mean"
            save_checkpoint(other, moved[3])
            with pytest.raises(UserError, match="begun with weights_at_start="):
                run(*moved)


def test_a_run_that_ended_before_its_first_step_does_not_block_its_folder(tmp_path, start):
    flags = ["--out", str(tmp_path / "run"), "--init", str(start)]
    rows = tmp_path / "rows.jsonl"
    for rows_there in (None, []):  # no file; a file without rows
        if rows_there is not None:
            write_rows(rows, rows_there)
        with pytest.raises((UserError, OSError)):
            dpo.main.main([*flags, "--data", str(rows)])
    write_rows(rows)

    def fail(*arguments):
        raise UserError("before the first step")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpo.train.logps_of_examples", fail)
        with pytest.raises(UserError, match="before the first step"):
            dpo.main.main([*flags, "--data", str(rows), "--num-epochs", "1"])
    assert lines_of(tmp_path / "run") == []
    dpo.main.main([*flags, "--data", str(rows), "--num-epochs", "1", "--beta", "0.2", "--samples",
                   "1", "--max-new-tokens", "4"])
    assert lines_of(tmp_path / "run")


def test_a_folder_that_is_no_commands_is_not_emptied(tmp_path):
    begin_in(tmp_path / "runs" / "mine")
    kept = tmp_path / "runs" / "mine" / "metrics.jsonl"
    kept.write_text("{}\n")
    begin_in(tmp_path / "runs", "--overwrite")
    assert kept.read_text() == "{}\n"


def stop_at(monkeypatch, place, number):
    def stop(*arguments, **options):
        signal.raise_signal(number)
        raise AssertionError("it went on")
    monkeypatch.setattr(place, stop)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("place", "saved"), [
    ("dpo.main.load_task", "config.json"),
    ("dpo.main.starting_point", "config.json"),
    ("dpo.train.preference_examples", "config.json"),
    ("dpo.main.save_checkpoint", "config.json, state.pt, metrics.jsonl"),
    ("dpo.main.implicit_rewards", "config.json, state.pt, metrics.jsonl, model.pt"),
    ("minigpt.command.save_report",
     "config.json, state.pt, metrics.jsonl, model.pt, summary.json")])
def test_a_signal_outside_the_training_says_in_a_line_what_is_saved_and_what_is_missing(
        tmp_path, start, monkeypatch, capsys, number, code, place, saved):
    rows, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    flags = ["--out", str(out), "--init", str(start), "--data", rows, "--num-epochs", "1",
             "--samples", "1", "--max-new-tokens", "4"]
    stop_at(monkeypatch, place, number)
    assert exit_code_of(lambda: dpo.main.main(flags)) == code
    missing = [name for name in FILES if name not in saved.split(", ")] or ["nothing"]
    assert capsys.readouterr().err.strip() == \
        f"stopped. {out} has {saved}, and lacks {', '.join(missing)}: the same command with " \
        "--resume continues"
    monkeypatch.undo()
    dpo.main.main([*flags, "--resume"])
    assert all((out / name).exists() for name in FILES)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_training_is_said_once(tmp_path, start, monkeypatch, capsys, number, code):
    rows, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    write = MetricLog.write

    def write_and_be_told(self, metrics):
        write(self, metrics)
        signal.raise_signal(number)
    monkeypatch.setattr(MetricLog, "write", write_and_be_told)
    assert exit_code_of(lambda: dpo.main.main(
        ["--out", str(out), "--init", str(start), "--data", rows])) == code
    said = capsys.readouterr()
    assert said.err == "" or "stopped" not in said.err
    assert said.out.count("stopped after step 1 of") == 1


def test_a_signal_before_a_command_has_a_folder_says_so(capsys):
    assert exit_code_of(lambda: signal.raise_signal(signal.SIGINT)) == 130
    assert capsys.readouterr().err == \
        "\nstopped. No run had begun, so there is nothing to continue\n"


def test_what_is_not_finite_ends_a_command_in_one_line_and_is_not_saved(tmp_path, start,
                                                                        monkeypatch, capsys):
    rows, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    step = processor.AdamW.step

    def step_and_break(self, *arguments):
        step(self, *arguments)
        with torch.no_grad():
            self.param_groups[0]["params"][0][0] = float("nan")
    monkeypatch.setattr(processor.AdamW, "step", step_and_break)
    assert exit_code_of(lambda: dpo.main.main(
        ["--out", str(out), "--init", str(start), "--data", rows, "--num-epochs", "1",
         "--batch-size", "999"])) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: after step 1 ") and said.count("\n") == 0
    assert not (out / "model.pt").exists() and not (out / "state.pt").exists()
