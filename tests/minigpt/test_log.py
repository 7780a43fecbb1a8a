import json

import pytest
import torch

from minigpt.log import MetricLog
from minigpt.run_folder import RunFolder, read_history


def log_of(folder=None):
    """A log that says of every line which one it is."""
    written = []

    def position():
        written.append(1)
        return {"global_step": len(written)}
    return MetricLog(folder, torch.device("cpu"), position)


def tensors(**metrics):
    return {name: torch.tensor(value) for name, value in metrics.items()}


def test_the_metrics_of_a_step_are_the_weighted_sums_over_its_microbatches():
    log = log_of()
    log.add(tensors(loss=4.0, accuracy=1.0), 0.25)
    log.add(tensors(loss=8.0, accuracy=0.0), 0.75)
    log.write({"grad_norm": 3.0})
    log.add(tensors(loss=1.0, accuracy=0.5), 1.0)
    log.write({"grad_norm": 2.0})
    assert log.history == {"loss": [7.0, 1.0], "accuracy": [0.25, 0.5], "grad_norm": [3.0, 2.0],
                           "global_step": [1, 2]}
    assert log.last("loss") == 1.0


def test_every_step_is_a_line_of_the_run_folder(tmp_path):
    log = log_of(RunFolder(str(tmp_path), {}))
    for loss in (3.0, 2.0):
        log.add(tensors(loss=loss), 1.0)
        log.write({})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"loss": 3.0, "global_step": 1},
                                                    {"loss": 2.0, "global_step": 2}]
    assert read_history(tmp_path) == log.history


def test_remembered_lines_are_history_and_not_written_again(tmp_path):
    log = log_of(RunFolder(str(tmp_path), {}))
    log.remember({"loss": 5.0, "global_step": 1})
    assert log.last("loss") == 5.0
    assert not (tmp_path / "metrics.jsonl").exists()


def test_what_is_logged_is_the_mean_over_the_processes(monkeypatch):
    def doubled(values, device):  # as if another process had logged the same
        return {name: 2 * value for name, value in values.items()}
    monkeypatch.setattr("minigpt.distributed.totals", doubled)
    monkeypatch.setattr("minigpt.distributed.world_size", lambda: 2)
    log = log_of()
    log.add(tensors(loss=3.0), 2 * 0.5)
    log.write({"grad_norm": 1.0})
    assert (log.last("loss"), log.last("grad_norm")) == pytest.approx((3.0, 1.0))
