import copy

import pytest
import torch

from data.task import Task
from minigpt import load_checkpoint, save_checkpoint
from minigpt.command import CommandConfig
from minigpt.errors import UserError
from minigpt.evaluation import sample_responses
from reward import score, train_reward_model
from reward.evaluate import reward_margins
from reward.start import center, fresh_reward_model, reward_model_of, train_centered
from reward.train import RewardConfig


@pytest.fixture
def task(make_pairs):
    """A file's task, of which a reward model needs the preferences alone."""
    return Task(max_seq_len=64, sft_rows=[], heldout_sft_rows=[], preferences=make_pairs(20),
                heldout_preferences=[])


def answers_of(model, prompts, samples, seed):
    """The prompts, each as often as it is answered, and the ids of the answers."""
    asked, answers = sample_responses(model, prompts, samples, 12, seed)
    return asked, [answer.ids for answer in answers]


def test_a_fresh_reward_model_is_the_sft_model_with_a_head_from_the_seed(make_model,
                                                                         weights_equal):
    sft_model = make_model()
    config = RewardConfig(seed=1, pooling="mean", reads="response")
    model = fresh_reward_model(sft_model, config)
    assert weights_equal(model.trunk, sft_model)
    assert (model.pooling, model.reads) == ("mean", "response")
    assert weights_equal(model, fresh_reward_model(sft_model, config))
    assert not weights_equal(model, fresh_reward_model(sft_model, RewardConfig(seed=2)))


def test_center_makes_the_mean_zero_and_keeps_the_differences(make_reward, texts):
    model = make_reward()
    prompts, responses = zip(*texts, strict=True)
    before = score(model, prompts, responses)
    assert center(model, prompts, responses) == pytest.approx(float(before.mean()), abs=1e-5)
    after = score(model, prompts, responses)
    assert abs(float(after.mean())) < 1e-5
    torch.testing.assert_close(after - after[0], before - before[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_centered_model_is_trained_and_has_its_zero_at_the_sft_models_answers(
        reciter, make_pairs, weights_of, weights_equal, samples):
    rows, kept = make_pairs(40), weights_of(reciter)
    prompts = [row["prompt"] for row in rows[:10]]
    config = RewardConfig(seed=5)
    model, *logged = train_centered(reciter, rows, prompts, config, 12, samples=samples)
    assert not model.training
    asked, answers = answers_of(reciter, prompts, samples, seed=5)
    assert len(answers) == samples * len(prompts)
    assert abs(float(score(model, asked, answers).mean())) < 1e-5
    by_hand, *expected = train_reward_model(fresh_reward_model(reciter, config), rows,
                                            **vars(config))
    assert logged == expected
    torch.testing.assert_close(reward_margins(model, rows), reward_margins(by_hand, rows),
                               rtol=1e-4, atol=1e-5)
    assert weights_equal(reciter, kept)


def test_the_reward_model_of_a_file_is_loaded_as_it_is(make_model, make_reward, task, tmp_path,
                                                       weights_equal):
    reward = make_reward()
    save_checkpoint(reward, tmp_path / "reward.pt")
    found = reward_model_of(str(tmp_path / "reward.pt"), make_model(), task, CommandConfig(),
                            RewardConfig())
    assert weights_equal(found, reward)


def test_a_language_model_is_no_reward_model(make_model, task, tmp_path):
    save_checkpoint(make_model(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"--reward .*model\.pt holds a MiniGPT.*RewardModel"):
        reward_model_of(str(tmp_path / "model.pt"), make_model(), task, CommandConfig(),
                        RewardConfig())


def test_without_a_file_a_reward_model_is_trained_in_the_folder_of_the_run(
        reciter, task, tmp_path, capsys, weights_equal):
    run = RewardConfig(out=str(tmp_path / "run"), seed=2)
    found = reward_model_of(None, copy.deepcopy(reciter), task, CommandConfig(max_new_tokens=12),
                            run)
    assert "training a reward model" in capsys.readouterr().out
    folder = tmp_path / "run" / "reward"
    assert weights_equal(load_checkpoint(folder / "model.pt"), found)
    assert (found.pooling, found.reads) == ("mean", "response")  # the recipe for few rows
    asked, answers = answers_of(reciter, task.prompts, 1, seed=2)
    assert abs(float(score(found, asked, answers).mean())) < 1e-5
