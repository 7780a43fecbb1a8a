import copy
from dataclasses import replace

import pytest
import torch

from data.task import Task
from data.world import World, WorldConfig
from minigpt import load_checkpoint, save_checkpoint
from minigpt.command import CommandConfig
from minigpt.errors import UserError
from minigpt.evaluation import sample_responses
from minigpt.options import parse
from minigpt.run_folder import read_history
from reward import Ensemble, RewardModel, score, train_reward_model
from reward.evaluate import reward_margins
from reward.start import (
    RewardFileConfig,
    center,
    check_rewards,
    fresh_reward_model,
    judge_of,
    member_configs,
    reward_of,
    train_centered,
)
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


def test_a_fresh_model_of_phrases_has_the_sft_models_size_and_weights_from_the_seed(
        make_model, weights_equal):
    sft_model = make_model()
    config = RewardConfig(seed=1, pooling="sum", reads="phrases")
    model = fresh_reward_model(sft_model, config)
    assert model.trunk.settings == sft_model.settings
    assert (model.pooling, model.reads) == ("sum", "phrases")
    assert weights_equal(model, fresh_reward_model(make_model(3), config))
    assert not weights_equal(model, fresh_reward_model(sft_model, replace(config, seed=2)))


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
    (model,), *logged = train_centered(reciter, rows, prompts, config, 12, samples=samples)
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


# --- several members ------------------------------------------------------------------------------


def test_one_member_is_the_model_of_the_run_bit_for_bit(reciter, make_pairs, weights_equal):
    rows, config = make_pairs(20), RewardConfig(seed=3)
    prompts = [row["prompt"] for row in rows]
    assert member_configs(config, 1) == [config]
    (member,), losses, accuracies = train_centered(reciter, rows, prompts, config, 12)
    by_hand, *expected = train_reward_model(fresh_reward_model(reciter, config), rows,
                                            **vars(config))
    asked, answers = answers_of(reciter, prompts, 1, seed=3)
    center(by_hand, asked, answers)
    assert weights_equal(member, by_hand) and [losses, accuracies] == expected


def test_members_differ_in_head_and_data_order_and_have_their_zero_at_the_same_answers(
        reciter, make_pairs, tmp_path, weights_equal):
    rows = make_pairs(20)
    prompts = [row["prompt"] for row in rows]
    config = RewardConfig(seed=3, out=str(tmp_path))
    models, losses, accuracies = train_centered(reciter, rows, prompts, config, 12, members=3)
    own = member_configs(config, 3)
    assert [each.out for each in own] == [f"{tmp_path}/member_{number}" for number in (1, 2, 3)]
    assert len({each.seed for each in own} | {config.seed}) == 4
    assert {each.seed for each in own}.isdisjoint(
        each.seed for each in member_configs(RewardConfig(seed=4), 3))
    asked, answers = answers_of(reciter, prompts, 1, seed=3)
    for model in models:
        assert not model.training and abs(float(score(model, asked, answers).mean())) < 1e-5
    assert not weights_equal(models[0], models[1]) and not weights_equal(models[1], models[2])
    histories = [read_history(each.out) for each in own]
    for name, logged in (("loss", losses), ("accuracy", accuracies)):
        of_members = [history[name] for history in histories]
        assert of_members[0] != of_members[1]
        assert logged == pytest.approx([sum(step) / 3 for step in zip(*of_members, strict=True)])


def test_a_resumed_run_trains_no_finished_member_again(reciter, make_pairs, tmp_path, stop_after,
                                                       weights_equal):
    rows = make_pairs(24)
    prompts = [row["prompt"] for row in rows]

    def train(out, resume=False):
        config = RewardConfig(seed=3, batch_size=8, out=str(tmp_path / out), resume=resume,
                              save_every=2)
        return train_centered(reciter, rows, prompts, config, 12, members=2)

    unbroken, *logged = train("unbroken")
    stopped, undo = stop_after(5)  # of 6
    with pytest.raises(stopped):
        train("broken")
    undo()
    assert not (tmp_path / "broken" / "member_2").exists()
    stopped, undo = stop_after(3)  # member 1 goes on from step 4, so it is member 2 that is stopped
    with pytest.raises(stopped):
        train("broken", resume=True)
    undo()
    finished = (tmp_path / "broken" / "member_1" / "state.pt").stat().st_mtime_ns
    resumed, *logged_again = train("broken", resume=True)
    assert (tmp_path / "broken" / "member_1" / "state.pt").stat().st_mtime_ns == finished
    assert all(map(weights_equal, unbroken, resumed)) and logged_again == logged


# --- --reward -------------------------------------------------------------------------------------


def reward_for(paths, task, weights=None, combine="mean", reference=None, config=None):
    return reward_of(RewardFileConfig(paths, weights, combine), reference, task,
                     CommandConfig(max_new_tokens=12), config or RewardConfig())


@pytest.fixture
def saved(make_reward, tmp_path):
    """The paths of two reward models, and of an ensemble of them."""
    models = [make_reward(seed) for seed in (1, 2)]
    paths = [str(tmp_path / f"{name}.pt") for name in ("one", "two", "both")]
    for model, path in zip([*models, Ensemble(models)], paths, strict=True):
        save_checkpoint(model, path)
    return paths


@pytest.fixture
def world_task():
    return Task(max_seq_len=64, world=World(WorldConfig(facts=2), 0))


def test_one_file_is_loaded_as_it_is(saved, task, weights_equal):
    for path, kind in zip(saved, (RewardModel, RewardModel, Ensemble), strict=True):
        found = reward_for([path], task)
        assert type(found) is kind and weights_equal(found, load_checkpoint(path))


def test_several_files_make_an_ensemble(saved, task, texts):
    prompts, responses = zip(*texts, strict=True)
    one, two = (score(load_checkpoint(path), prompts, responses) for path in saved[:2])
    for arguments, expected in (({}, (one + two) / 2), ({"combine": "min"}, one.minimum(two)),
                                ({"weights": [0.7, -0.3]}, 0.7 * one - 0.3 * two)):
        found = score(reward_for(saved[:2], task, **arguments), prompts, responses)
        torch.testing.assert_close(found, expected)
    halved = score(reward_for(saved[:1], task, weights=[0.5]), prompts, responses)
    torch.testing.assert_close(halved, one / 2)
    least = score(reward_for(saved[2:], task, combine="min"), prompts, responses)
    torch.testing.assert_close(least, one.minimum(two))


def test_the_world_verifies_alone_and_beside_a_model(saved, world_task):
    world = world_task.world
    rows = [row for row in world.heldout_preferences[:60]
            if len(row["prompt"] + row["chosen"]) <= 62]
    prompts, answers = ([row[side] for row in rows] for side in ("prompt", "chosen"))
    verified = score(reward_for(["world"], world_task), prompts, answers)
    assert verified.tolist() == world.verify(prompts, answers)
    assert set(verified.tolist()) == {0.0, 1.0}
    beside = score(reward_for([saved[0], "world"], world_task, weights=[1, 2]), prompts, answers)
    alone = score(load_checkpoint(saved[0]), prompts, answers)
    torch.testing.assert_close(beside, alone + 2 * verified)


def test_a_run_says_which_reward_world_is(world_task, capsys):
    reward_for(["world"], world_task)
    assert "--reward world: 1 for a right and complete answer, else 0" in capsys.readouterr().out
    judge_of("world", world_task, CommandConfig())
    assert "--judge world: the little world's true reward" in capsys.readouterr().out
    assert judge_of(None, world_task, CommandConfig()) == (None, 0)


@pytest.mark.parametrize(("arguments", "message"), [
    ((["a.pt", "b.pt"], [1.0], False), "--reward-weights has 1 weights for 2 rewards"),
    ((None, [1.0], False), "--reward-weights has 1 weights for 0 rewards"),
    ((["a.pt"], [1.0], False, "min"), "--reward-weights.*--reward-combine min.*choose one"),
    ((["a.pt", "world"], None, True), "--reward world needs the little world: leave out --data")])
def test_rewards_that_do_not_fit_together_are_refused_before_anything_is_loaded(arguments, message,
                                                                                task, world_task):
    paths, weights, has_data, *combine = arguments
    with pytest.raises(UserError, match=message):
        check_rewards(RewardFileConfig(paths, weights, *combine), has_data)
    with pytest.raises(UserError, match=message):
        reward_for(paths, task if has_data else world_task, weights, *combine)


def test_rewards_that_fit_together_pass_and_a_file_that_is_not_there_does_not(tmp_path,
                                                                             monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--reward a\.pt: there is no such file"):
        check_rewards(RewardFileConfig(["world", "a.pt"]), False)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    check_rewards(RewardFileConfig(), True)
    check_rewards(RewardFileConfig(["a.pt", "b.pt"], [1.0, 2.0]), True)
    check_rewards(RewardFileConfig(["a.pt", "world"], None, "min"), False)
    settings, = parse("", ["--reward", "a.pt", "world", "--reward-weights", "0.5", "-1"],
                      RewardFileConfig)
    assert settings == RewardFileConfig(["a.pt", "world"], [0.5, -1.0], "mean")


def test_a_language_model_is_no_reward_model(make_model, task, tmp_path):
    save_checkpoint(make_model(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"--reward .*model\.pt holds a MiniGPT.*RewardModel"):
        reward_for([str(tmp_path / "model.pt")], task)


def test_without_a_file_a_reward_model_is_trained_in_the_folder_of_the_run(
        reciter, task, tmp_path, capsys, weights_equal):
    run = RewardConfig(out=str(tmp_path / "run"), seed=2)
    found = reward_for(None, task, reference=copy.deepcopy(reciter), config=run)
    assert "training a reward model" in capsys.readouterr().out
    folder = tmp_path / "run" / "reward"
    assert weights_equal(load_checkpoint(folder / "model.pt"), found)
    assert (found.pooling, found.reads) == ("sum", "phrases")  # the recipe for few rows
    asked, answers = answers_of(reciter, task.prompts, 1, seed=2)
    assert abs(float(score(found, asked, answers).mean())) < 1e-5
