import copy
import json
import math
import signal
from types import SimpleNamespace

import pytest
import torch

from data.examples import sft_examples
from dpo import dpo_train
from minigpt import processor
from minigpt.batching import Batches
from minigpt.checkpoint import load_state
from minigpt.errors import UserError
from minigpt.log import MetricLog
from minigpt.run_folder import read_history
from minigpt.settings import EpochConfig, TrainingConfig
from minigpt.training import Stopped, TrainingLoop
from minigpt.weights import first_not_finite
from ppo import ppo_training
from reward import RewardModel, train_reward_model
from sft import sft_train


def batches_of(rows, batch_size=4):
    return Batches(sft_examples(rows, 64), batch_size)


ROWS = [{"prompt": "a", "response": "b" * n} for n in range(1, 9)]


def train(loop, loss_of):
    """Make the steps of the loop, each with the loss that loss_of(token_ids) returns."""
    for microbatches in loop.steps():
        for batch in microbatches:
            loss = loss_of(batch.token_ids)
            loop.optimizer.backward(batch.weight * loss)
            loop.log.add({"loss": loss}, batch.weight)
        loop.log.write({"grad_norm": loop.optimizer.step()})


# --- one step ------------------------------------------------------------------------------------


def test_logged_learning_rate_is_peak_times_schedule(make_model):
    model = make_model()
    loop = TrainingLoop({"model": model}, TrainingConfig(lr=3e-3), batches_of(ROWS), 8)
    train(loop, lambda ids: model(ids).logsumexp(-1).mean())
    expected = [3e-3 * loop.optimizer.schedule(step) for step in range(8)]
    assert loop.log.history["learning_rate"] == pytest.approx(expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_raises_naming_the_step_and_changes_no_weight(
        make_model, weights_of, weights_equal, bad):
    model, kept = make_model(), {}
    loop = TrainingLoop({"model": model}, TrainingConfig(), batches_of(ROWS), 8)

    def loss_of(ids):
        loss = model(ids).logsumexp(-1).mean()
        if loop.step < 3:
            return loss
        kept.update(weights_of(model))
        return loss * bad
    with pytest.raises(FloatingPointError, match="step 4"):
        train(loop, loss_of)
    assert weights_equal(model, kept)
    assert loop.step == len(loop.log.history["loss"]) == 3


def test_a_model_that_overflows_raises_through_the_public_loop(make_model, recited, weights_of,
                                                               weights_equal):
    model = make_model()
    with torch.no_grad():
        model.token_embedding.weight.mul_(1e38)
    kept = weights_of(model)
    with pytest.raises(FloatingPointError, match="step 1"):
        sft_train(model, recited)
    assert weights_equal(model, kept)


# --- the loop and its log ------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_every_row_is_trained_on_once_an_epoch(make_model, whole):
    loop = TrainingLoop({"model": make_model()}, EpochConfig(), batches_of(ROWS, 3), 6)
    seen = []
    if whole:
        for batch in loop.whole_batches():
            seen += batch.indices.tolist()
    else:
        for microbatches in loop.steps(accumulate=2):
            for batch in microbatches:
                seen += batch.indices.tolist()
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))
    assert seen[:8] != seen[8:]


def test_log_has_one_line_a_step_and_counts_real_tokens(make_model, recited, tmp_path):
    model = make_model()
    _, losses = sft_train(model, recited, num_epochs=3, batch_size=5, out=str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == losses
    assert [line["global_step"] for line in lines] == list(range(1, 10))
    assert [line["epoch"] for line in lines] == pytest.approx([n / 3 for n in range(9)])
    an_epoch = sum(len((row["prompt"] + row["response"]).encode()) + 2 for row in recited)
    num_tokens = [line["num_tokens"] for line in lines]
    assert num_tokens[2::3] == [an_epoch, 2 * an_epoch, 3 * an_epoch]
    assert all(math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0 for line in lines)
    assert read_history(tmp_path)["loss"] == losses


def test_a_fresh_run_begins_its_log_anew(make_model, recited, tmp_path):
    for overwrite in (False, True):
        sft_train(make_model(), recited, batch_size=4, out=str(tmp_path), overwrite=overwrite)
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_folder_with_another_run_is_refused_and_left_as_it_was(make_model, recited, tmp_path):
    sft_train(make_model(), recited, batch_size=4, out=str(tmp_path))
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"holds another run.*--resume.*--overwrite"):
        sft_train(make_model(), recited, batch_size=4, out=str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


# --- the same result in another way --------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 3, 12, 50])
def test_accumulated_gradients_give_the_weights_of_the_whole_batch(make_model, recited, accumulate):
    models, logs = [], []
    for parts in (1, accumulate):
        model, losses = sft_train(make_model(spread=1), recited, 3, lr=1e-3, batch_size=12,
                                  accumulate=parts, precision="float32")
        models.append(model)
        logs.append(losses)
    for whole, parts in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert logs[1] == pytest.approx(logs[0], abs=1e-5)


def test_a_batch_divided_by_its_tokens_gives_the_same_weights(make_model, recited, monkeypatch):
    models, passes, backward = [], [], torch.Tensor.backward

    def counted_backward(loss):
        passes.append(loss)
        return backward(loss)
    monkeypatch.setattr(torch.Tensor, "backward", counted_backward)
    for most in (10**9, 40):
        monkeypatch.setattr("minigpt.training.most_tokens", lambda device, most=most: most)
        passes.clear()
        model, _ = sft_train(make_model(spread=1), recited, 3, lr=1e-3, batch_size=12,
                             precision="float32")
        models.append(model)
        assert (len(passes) > 3 * -(-len(recited) // 12)) == (most == 40)
    for whole, parts in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_accumulated_metrics_are_those_of_the_whole_batch(make_model, recited, tmp_path):
    logs = []
    for parts in (1, 4):
        out = tmp_path / str(parts)
        sft_train(make_model(), recited, 1, batch_size=12, accumulate=parts, precision="float32",
                  out=str(out))
        logs.append({name: values[0] for name, values in read_history(out).items()})
    assert logs[1] == pytest.approx(logs[0], abs=1e-4)


def test_same_seed_same_bits_and_another_seed_others(make_model, recited, weights_equal):
    models = [sft_train(make_model(), recited, 3, batch_size=4, seed=seed)[0]
              for seed in (1, 1, 2)]
    assert weights_equal(models[0], models[1])
    assert not weights_equal(models[0], models[2])


def test_resumed_sft_repeats_the_unbroken_run_bit_for_bit(make_model, recited, check_resume):
    def train(out, resume):
        return sft_train(make_model(), recited, 3, batch_size=4, accumulate=2, weight_decay=0.1,
                         save_every=2, out=out, resume=resume)[0]
    check_resume(train)


def test_a_finished_run_resumes_to_itself(make_model, recited, tmp_path, weights_equal):
    first, losses = sft_train(make_model(), recited, 2, batch_size=4, out=str(tmp_path))
    again, same = sft_train(make_model(), recited, 2, batch_size=4, out=str(tmp_path), resume=True)
    assert weights_equal(first, again)
    assert same == losses


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(make_model, recited, tmp_path,
                                                                    weights_equal):
    first, _ = sft_train(make_model(), recited, out=str(tmp_path / "a"), resume=True)
    assert weights_equal(first, sft_train(make_model(), recited)[0])


@pytest.mark.parametrize(("what", "change"), [
    ("weights_at_start", {"model": 9}), ("examples", {"rows": 11}), ("lr", {"lr": 0.5})])
def test_resuming_another_run_raises_naming_what_differs(make_model, recited, tmp_path, what,
                                                         change):
    sft_train(make_model(), recited, 2, batch_size=4, out=str(tmp_path))
    settings = {"model": 0, "rows": 12, "lr": 1.5e-3, **change}
    model, rows = make_model(settings["model"]), recited[12 - settings["rows"]:]
    with pytest.raises(UserError, match=rf"state\.pt says that this run was begun with {what}="):
        sft_train(model, rows, 2, settings["lr"], batch_size=4, out=str(tmp_path), resume=True)


def test_a_log_that_was_truncated_is_not_continued(make_model, recited, tmp_path):
    sft_train(make_model(), recited, 2, batch_size=4, out=str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl has fewer lines"):
        sft_train(make_model(), recited, 2, batch_size=4, out=str(tmp_path), resume=True)


def test_a_full_disk_loses_no_earlier_checkpoint(make_model, recited, tmp_path, monkeypatch,
                                                 weights_equal):
    def run(name, **more):
        return sft_train(make_model(), recited, 4, batch_size=4, out=str(tmp_path / name),
                         save_every=3, **more)[0]
    whole = run("whole")
    saves, save = [], torch.save

    def save_until_full(state, file):
        saves.append(state["step"])
        if len(saves) == 3:
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        save(state, file)
    monkeypatch.setattr(torch, "save", save_until_full)
    message = r"No space left.*last good checkpoint is .*state\.pt.*--resume"
    with pytest.raises(UserError, match=message):
        run("full")
    assert saves == [3, 6, 9]
    assert load_state(tmp_path / "full" / "state.pt")["step"] == 6
    monkeypatch.undo()
    assert weights_equal(run("full", resume=True), whole)


def test_a_disk_without_room_is_an_error_before_the_training(make_model, recited, tmp_path,
                                                             monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"has 0 MB free.*checkpoints need 1 MB"):
        sft_train(make_model(), recited, out=str(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_folder_that_cannot_be_written_is_an_error_before_the_training(make_model, recited,
                                                                         tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written.*another --out"):
        sft_train(make_model(), recited, out=str(tmp_path / "file" / "run"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_its_step_with_a_checkpoint_and_its_exit_code(
        make_model, recited, tmp_path, capsys, weights_equal, number):
    def run(name, **more):
        return sft_train(make_model(), recited, 3, batch_size=4, out=str(tmp_path / name), **more)
    whole, losses = run("whole")
    write = MetricLog.write

    def write_and_be_told(self, metrics):
        write(self, metrics)
        if self.last("global_step") == 5:
            signal.raise_signal(number)
    handler = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch, \
            pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
        patch.setattr(MetricLog, "write", write_and_be_told)
        run("told")
    if number == signal.SIGINT:
        assert stopped.type is Stopped
    else:
        assert stopped.value.code == 143
    assert signal.getsignal(number) is handler
    assert "stopped after step 5 of 9" in capsys.readouterr().out
    again, same = run("told", resume=True)
    assert weights_equal(again, whole)
    assert same == losses


def test_a_loss_that_is_not_finite_names_the_rows_and_the_last_good_checkpoint(make_model,
                                                                               tmp_path):
    model, config = make_model(), TrainingConfig(out=str(tmp_path), save_every=1)
    loop = TrainingLoop({"model": model}, config, batches_of(ROWS), 4)

    def loss_of(ids):
        loss = model(ids).logsumexp(-1).mean()
        return loss if loop.step == 0 else loss * float("nan")
    message = r"step 2.*last good checkpoint is .*state\.pt.*\[\d, \d, \d, \d\]"
    with pytest.raises(FloatingPointError, match=message):
        train(loop, loss_of)


def test_resuming_with_another_number_of_steps_raises(make_model, recited, tmp_path):
    sft_train(make_model(), recited, 2, batch_size=4, out=str(tmp_path))
    with pytest.raises(ValueError, match=r"state\.pt.*steps=6.*steps=12"):
        sft_train(make_model(), recited, 4, batch_size=4, out=str(tmp_path), resume=True)


def test_bfloat16_trains_beside_float32(make_model, recited):
    losses = [sft_train(make_model(spread=1), recited, 40, lr=3e-3, batch_size=12,
                        precision=precision)[1]
              for precision in ("float32", "bfloat16")]
    assert losses[1] != losses[0]
    assert losses[1][-1] < losses[1][0] - 2
    assert abs(losses[1][-1] - losses[0][-1]) < 0.2


def test_bfloat16_is_over_when_the_run_is(make_model, recited):
    sft_train(make_model(), recited, precision="bfloat16")
    assert not torch.is_autocast_enabled("cpu")
    assert make_model()(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.float32


# --- what is not finite ---------------------------------------------------------------------------

STAGES = ["sft", "reward", "dpo", "ppo"]


def train_stage(stage, model, rows, **options):
    """Six rows of a stage in two optimizer steps (of PPO: two episodes), but for the options."""
    reference, options = copy.deepcopy(model), {"batch_size": 3, **options}
    if stage == "sft":
        return sft_train(model, [{"prompt": row["prompt"], "response": row["chosen"]}
                                 for row in rows], **options)
    if stage == "reward":
        return train_reward_model(RewardModel.from_policy(model), rows, 1, **options)
    if stage == "dpo":
        return dpo_train(model, reference, rows, **options)
    options = {"num_episodes": 2, "minibatch_size": 3, "ppo_epochs": 1, **options}
    return ppo_training(model, reference, RewardModel.from_policy(reference),
                        [row["prompt"] for row in rows], max_new_tokens=4, **options)


@pytest.fixture
def break_step(monkeypatch):
    """break_step(n, value): the n-th step of AdamW leaves this value in a weight."""
    def broken(number, value):
        steps, step = [], processor.AdamW.step

        def step_and_break(self, *args):
            step(self, *args)
            steps.append(1)
            if len(steps) == number:
                with torch.no_grad():
                    self.param_groups[0]["params"][-1].view(-1)[7] = value
        monkeypatch.setattr(processor.AdamW, "step", step_and_break)
    return broken


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_last_step_that_breaks_a_weight_raises_and_is_not_saved(make_model, make_pairs, tmp_path,
                                                                  break_step, stage, value):
    rows = make_pairs(6)
    break_step(2, value)
    message = r"after step 2 '.*' of the .* is not finite, so it is not saved\. "
    with pytest.raises(FloatingPointError, match=message + "There is no checkpoint yet"):
        train_stage(stage, make_model(), rows, out=str(tmp_path / "run"))
    assert not (tmp_path / "run" / "state.pt").exists()
    break_step(2, value)
    with pytest.raises(FloatingPointError, match=message + r"The last good checkpoint is .*state"):
        train_stage(stage, make_model(), rows, out=str(tmp_path / "run"), overwrite=True,
                    save_every=1)
    saved = load_state(tmp_path / "run" / "state.pt")
    assert saved["step"] == 1
    assert all(first_not_finite(weights) is None for weights in saved["models"].values())
    break_step(2, value)
    with pytest.raises(FloatingPointError, match=message + "There is no checkpoint, since the run"):
        train_stage(stage, make_model(), rows)


@pytest.mark.parametrize("stage", STAGES)
def test_an_only_step_that_breaks_a_weight_raises_and_is_not_saved(make_model, make_pairs, tmp_path,
                                                                   break_step, stage):
    break_step(1, math.nan)
    options = {"num_episodes": 1} if stage == "ppo" else {}
    with pytest.raises(FloatingPointError, match="after step 1"):
        train_stage(stage, make_model(), make_pairs(3), out=str(tmp_path / "run"), **options)
    assert not (tmp_path / "run" / "state.pt").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_in_between_that_breaks_a_weight_ends_the_run_soon(make_model, make_pairs, tmp_path,
                                                                  break_step, stage):
    break_step(1, math.nan)
    with pytest.raises(FloatingPointError, match="There is no checkpoint yet"):
        train_stage(stage, make_model(), make_pairs(6), out=str(tmp_path / "run"))
    assert not (tmp_path / "run" / "state.pt").exists()
