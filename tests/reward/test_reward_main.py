import json

import pytest
import torch

from data.world import World, WorldConfig
from minigpt import load_checkpoint, save_checkpoint
from minigpt.errors import UserError
from minigpt.options import parse
from reward import Ensemble, RewardModel, evaluate_reward_accuracy, score
from reward.evaluate import disagreement
from reward.main import main

WORLD = ["--facts", "2", "--preference-rows", "16", "--heldout-rows", "8"]
LITTLE = [*WORLD, "--samples", "1", "--max-new-tokens", "4", "--num-epochs", "1"]


@pytest.fixture
def command(tmp_path, make_model):
    """command(*options) -> the folder of a run from a small model that is saved beside it."""
    save_checkpoint(make_model(spread=1.0, max_seq_len=128), tmp_path / "start.pt")

    def run(*options, out="run"):
        main(["--out", str(tmp_path / out), "--init", str(tmp_path / "start.pt"), *LITTLE,
              *options])
        return tmp_path / out
    return run


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_several_members_are_reported_and_saved_together_and_each_for_itself(command,
                                                                             weights_equal):
    folder = command("--members", "3")
    ensemble = load_checkpoint(folder / "model.pt")
    assert type(ensemble) is Ensemble and ensemble.combine == "mean" and ensemble.weights is None
    for number, member in enumerate(ensemble.members, start=1):
        alone = load_checkpoint(folder / f"member_{number}" / "model.pt")
        assert type(alone) is RewardModel and weights_equal(alone, member)
    summary = summary_of(folder)
    settings, = parse("", WORLD, WorldConfig)
    rows = World(settings, 0).heldout_preferences
    for number, member in enumerate(ensemble.members, start=1):
        assert summary[f"accuracy_heldout_member_{number}"] == \
            evaluate_reward_accuracy(member, rows)
    assert summary["accuracy_heldout"] == evaluate_reward_accuracy(ensemble, rows)
    each = torch.stack([score(member, [row["prompt"] for row in rows] * 2,
                              [row[side] for side in ("chosen", "rejected") for row in rows])
                        for member in ensemble.members])
    assert summary["disagreement_heldout"] == pytest.approx(float(each.std(0).mean()), rel=1e-4)
    assert summary["disagreement_heldout"] == pytest.approx(disagreement(ensemble, rows)) != 0
    assert summary["models_in_memory"] == 3


def test_one_member_is_saved_as_a_reward_model_with_its_run_in_the_folder_itself(command):
    folder = command()
    assert type(load_checkpoint(folder / "model.pt")) is RewardModel
    assert (folder / "metrics.jsonl").exists() and not list(folder.glob("member*"))
    assert not [name for name in summary_of(folder) if "member" in name or "disagree" in name]


def test_members_are_resumed_and_are_part_of_what_a_run_was_begun_with(command):
    folder = command("--members", "2")
    before = {path: path.read_bytes() for path in folder.rglob("*.pt")}
    assert {path.relative_to(folder).as_posix() for path in before} == {
        "model.pt", *(f"member_{number}/{name}.pt" for number in (1, 2)
                      for name in ("model", "state"))}
    for path in before:
        if path.name == "model.pt":
            path.unlink()
    command("--members", "2", "--resume")
    assert {path: path.read_bytes() for path in folder.rglob("*.pt")} == before
    with pytest.raises(UserError, match="members=2, not with members=3"):
        command("--members", "3", "--resume")
    command("--members", "3", "--overwrite")
    assert len(load_checkpoint(folder / "model.pt").members) == 3
    with pytest.raises(UserError, match="members=0 must be at least 1"):
        command("--members", "0", out="other")
