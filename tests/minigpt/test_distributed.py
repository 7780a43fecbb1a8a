"""Two processes do what one does: the same losses, the same weights, to float32 rounding."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from minigpt import distributed, load_checkpoint
from minigpt.batching import Batches
from minigpt.errors import UserError
from minigpt.examples import Example
from minigpt.settings import TrainingConfig
from minigpt.training import deal

SCRIPT = Path(__file__).with_name("small_run.py")
ROOT = SCRIPT.parents[2]
STAGES = ["sft", "reward", "dpo", "ppo", "rounds"]


def launch(processes, out, batch_size, *stages_and_flags):
    """The finished process of `small_run.py`, alone or under torchrun."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone",
                    "--nproc-per-node", str(processes)]
    return subprocess.run([*command, str(SCRIPT), str(out), str(batch_size), *stages_and_flags],
                          cwd=ROOT, timeout=120, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained(processes, batch_size, *flags) -> the folder of a run of STAGES, and what it said.

    Starting the processes takes longer than all that they train, so each is started once for all
    tests, and for all workers of pytest: they share the folder above their own.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared

    def run(processes, batch_size, *flags):
        out = shared / f"trained-{processes}-{batch_size}{''.join(flags)}"
        said = out / "stdout.txt"
        with FileLock(f"{out}.lock"):
            if not said.exists():
                done = launch(processes, out, batch_size, *STAGES, *flags)
                assert done.returncode == 0, done.stderr
                said.write_text(done.stdout)
        return out, said.read_text()
    return run


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def compared(stage, line):
    """The metrics of a line that must agree.

    Not the rewards themselves: their zero drifts by rounding, and an extreme is the mean of the
    parts' own.
    """
    free = ("min_reward", "mean_reward", "max_reward") if stage == "reward" else ()
    return {name: value for name, value in line.items() if name not in free}


# weights of a reward model that only shift all rewards: free, so moved by rounding alone
SHIFTS = ("head.bias", "trunk.final_norm.bias")


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_two_processes_at_half_the_batch_repeat_one(stage, trained):
    (one, _), (two, said) = trained(1, 8), trained(2, 4)
    assert said.count(f"{stage}: only the first process is heard") == 1
    alone, together = lines_of(one / stage), lines_of(two / stage)
    assert len(alone) == 12  # 30 examples in batches of 8, 8, 8 and 6: the last deals 3 to each
    for a, b in zip(alone, together, strict=True):
        assert compared(stage, b) == pytest.approx(compared(stage, a), rel=1e-4, abs=1e-5)
    models = [load_checkpoint(folder / stage / "model.pt") for folder in (one, two)]
    other = torch.load(two / stage / "rank1.pt", weights_only=True)
    for name, weight in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], other[name])
        if name not in SHIFTS:
            found = models[1].state_dict()[name]
            torch.testing.assert_close(found, weight, rtol=0, atol=2e-5)


def test_ppo_in_two_processes_is_reproducible_and_keeps_them_together(trained, tmp_path):
    done = launch(2, tmp_path, 4, "ppo")
    assert done.returncode == 0, done.stderr
    one, two = trained(2, 4)[0] / "ppo", tmp_path / "ppo"
    assert lines_of(one) == lines_of(two)
    model = load_checkpoint(one / "model.pt").state_dict()
    other = torch.load(one / "rank1.pt", weights_only=True)
    assert all(torch.equal(weight, other[name]) for name, weight in model.items())
    first = lines_of(one)[0]
    assert first["val/first_ratio"] == pytest.approx(1, abs=1e-5)
    assert first["val/response_tokens"] <= 8


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_a_model_spread_over_two_processes_learns_what_a_whole_one_does(stage, trained):
    whole, spread = (trained(2, 4, *flags)[0] / stage for flags in ((), ("--shard",)))
    for a, b in zip(lines_of(whole), lines_of(spread), strict=True):
        assert compared(stage, b) == pytest.approx(compared(stage, a), rel=1e-3, abs=1e-4)
    models = [load_checkpoint(folder / "model.pt").state_dict() for folder in (whole, spread)]
    for name, weight in models[0].items():
        if name not in SHIFTS:
            torch.testing.assert_close(models[1][name], weight, rtol=0, atol=5e-5)


def test_a_spread_run_that_died_resumes(trained, tmp_path):
    whole = trained(2, 4, "--shard")[0] / "dpo"
    assert launch(2, tmp_path, 4, "dpo", "--shard", "--die-at", "5").returncode != 0
    resumed = launch(2, tmp_path, 4, "dpo", "--shard", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("metrics.jsonl", "model.pt"):
        assert (tmp_path / "dpo" / name).read_bytes() == (whole / name).read_bytes()


def test_a_process_that_dies_takes_the_job_down_and_the_job_resumes(trained, tmp_path):
    whole, folder = trained(2, 4)[0] / "dpo", tmp_path / "dpo"
    started = time.monotonic()
    dead = launch(2, tmp_path, 4, "dpo", "--die-at", "5")
    assert dead.returncode != 0
    assert time.monotonic() - started < 60
    assert "small_run.py FAILED" in dead.stderr and "exitcode  : 9" in dead.stderr
    assert not (folder / "model.pt").exists()
    wrong = launch(1, tmp_path, 4, "dpo", "--resume")
    assert wrong.returncode == 1
    assert "processes=2" in wrong.stderr.split("not with")[0]
    resumed = launch(2, tmp_path, 4, "dpo", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    models = [load_checkpoint(each / "model.pt").state_dict() for each in (folder, whole)]
    assert all(torch.equal(weight, models[1][name]) for name, weight in models[0].items())


def test_rounds_in_two_processes_sample_once_and_learn_the_same(trained):
    folder = trained(2, 4)[0] / "rounds"
    model = load_checkpoint(folder / "model.pt").state_dict()
    other = torch.load(folder / "rank1.pt", weights_only=True)
    assert all(torch.equal(weight, other[name]) for name, weight in model.items())
    rows = [json.loads(line) for line in (folder / "round-1" / "rows.jsonl").open()]
    prompts = [row["prompt"] for row in rows]
    assert 12 < len(rows) <= 24 and len(set(prompts)) == len(prompts)  # of 24 of the 30 prompts


def test_spreading_needs_torchrun():
    with pytest.raises(UserError, match=r"only one.*torchrun"):
        TrainingConfig(shard=True)


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 9])
def test_shares_of_a_list_come_together_in_its_order(monkeypatch, processes):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share_of(range(7)))
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "all_gather_object",
                        lambda found, mine: found.__setitem__(slice(None), shares))
    assert distributed.all_shares(shares[0]) == list(range(7))


# --- how a batch is dealt out --------------------------------------------------------------------

EXAMPLES = [Example(b"?", (bytes(range(n + 1)),)) for n in range(7)]


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("by_tokens", [False, True])
@pytest.mark.parametrize("most_tokens", [1, 20, sys.maxsize])
def test_every_example_is_dealt_once_and_the_weights_average_to_one(
        monkeypatch, processes, accumulate, by_tokens, most_tokens):
    monkeypatch.setattr("minigpt.distributed.world_size", lambda: processes)
    batches, dealt, total, counts = Batches(EXAMPLES, 7), [], 0.0, set()
    for rank in range(processes):
        monkeypatch.setattr("minigpt.distributed.rank", lambda rank=rank: rank)
        pieces, weights = deal(batches, list(range(7)), accumulate, by_tokens, most_tokens)
        counts.add(len(pieces))
        for piece, weight in zip(pieces, weights, strict=True):
            assert piece  # something to run, even where it counts 0
            longest = max(EXAMPLES[i].num_tokens for i in piece)
            assert len(piece) == 1 or len(piece) * longest <= most_tokens
            if weight:
                dealt += piece
                sizes = [i + 1 for i in piece] if by_tokens else [1] * len(piece)
                share = sum(sizes) / (28 if by_tokens else 7)
                assert weight / processes == pytest.approx(share)
            total += weight / processes
    assert sorted(dealt) == list(range(7))
    assert total == pytest.approx(1)
    assert len(counts) == 1
