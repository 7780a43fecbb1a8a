import copy
from dataclasses import replace

import pytest
import torch

from data.task import Task
from minigpt import MiniGPT, save_checkpoint
from minigpt.checkpoint import load_checkpoint
from minigpt.command import CommandConfig
from minigpt.errors import UserError
from reward import RewardModel
from sft import sft_train
from sft.start import plain_text_rows, starting_point, train_base_model, train_sft_model
from sft.train import SFTConfig

PLAIN_TEXT = [f"fact {n} is true." for n in range(20)]


@pytest.fixture
def task(recited):
    """A file's task: no world and, until it is given some, no plain text."""
    return Task(max_seq_len=64, sft_rows=recited, heldout_sft_rows=recited[:2], preferences=[],
                heldout_preferences=[])


@pytest.fixture
def config(tmp_path):
    return SFTConfig(out=str(tmp_path / "run"))


def test_plain_text_is_a_response_to_an_empty_prompt():
    assert plain_text_rows(["a", "b"]) == [{"prompt": "", "response": "a"},
                                           {"prompt": "", "response": "b"}]


def test_without_plain_text_the_base_model_stays_fresh(task, config, weights_equal):
    torch.manual_seed(3)
    fresh = MiniGPT(max_seq_len=64)
    base = train_base_model(task, replace(config, seed=3))
    assert weights_equal(base, fresh)
    assert base.max_seq_len == 64 and not base.training


def test_the_base_model_reads_the_plain_text_once_in_a_folder_of_its_own(task, config, tmp_path,
                                                                         weights_equal):
    config = replace(config, num_epochs=3)
    base = train_base_model(replace(task, plain_text=PLAIN_TEXT), config)
    torch.manual_seed(0)
    settings = {**vars(config), "num_epochs": 1, "lr": config.base_lr, "out": None}
    by_hand, losses = sft_train(MiniGPT(max_seq_len=64), plain_text_rows(PLAIN_TEXT), **settings)
    assert weights_equal(base, by_hand) and not base.training
    lines = (tmp_path / "run" / "base" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(losses) == 3  # 20 texts in batches of 8


def test_the_sft_model_is_a_copy_that_reads_demonstrations_and_a_share_of_plain_text(
        task, config, make_model, weights_equal, weights_of):
    base = make_model(spread=1)
    kept = weights_of(base)
    config = replace(config, out=None, plain_share=0.5)
    model, losses = train_sft_model(base, replace(task, plain_text=PLAIN_TEXT), config)
    rows = task.sft_rows + plain_text_rows(PLAIN_TEXT[:6])  # half as many as there are rows
    by_hand, expected = sft_train(copy.deepcopy(base), rows, **vars(config))
    assert weights_equal(model, by_hand) and losses == expected
    assert weights_equal(base, kept) and not weights_equal(model, kept)


def test_the_starting_point_is_the_model_that_init_names(task, config, make_model, tmp_path,
                                                         weights_equal):
    model = make_model()
    save_checkpoint(model, tmp_path / "model.pt")
    found = starting_point(task, CommandConfig(init=str(tmp_path / "model.pt")), config)
    assert weights_equal(found, model)


def test_a_reward_model_is_no_starting_point(task, config, small, tmp_path):
    save_checkpoint(RewardModel(**small), tmp_path / "reward.pt")
    with pytest.raises(UserError, match=r"--init .*reward\.pt holds a RewardModel.*MiniGPT"):
        starting_point(task, CommandConfig(init=str(tmp_path / "reward.pt")), config)


def test_without_init_an_sft_model_is_trained_in_the_folder_of_the_run(task, config, tmp_path,
                                                                       weights_equal, capsys):
    found = starting_point(task, CommandConfig(), config)
    assert "training an SFT model" in capsys.readouterr().out
    folder = tmp_path / "run" / "sft"
    assert weights_equal(load_checkpoint(folder / "model.pt"), found)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 100  # the recipe for few rows: passes over 12 rows until so many steps
