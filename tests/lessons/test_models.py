"""The shipped models are what the library as it is would make: by what they do, not by a hash."""

import pytest
import torch

import lessons.start
from lessons.canary import CANARY_STEPS, RECIPES, canary_of, same
from lessons.models import answers_of, description, figures_of
from lessons.start import MODELS, SIZE, made_from, shipped, starting_point
from minigpt.checkpoint import load_checkpoint
from minigpt.model import MiniGPT
from reward.model import RewardModel


@pytest.fixture(scope="module")
def start():
    torch.set_num_threads(1)
    return starting_point()


@pytest.fixture
def untrained(monkeypatch):
    """Training a model fails."""
    def refuse(*arguments, **options):
        raise AssertionError("a model is trained")
    for name in ("train_base", "train_sft_model", "train_reward"):
        monkeypatch.setattr(lessons.start, name, refuse)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_model_is_small_and_of_the_lessons_size(name):
    path = MODELS / f"{name}.pt"
    assert path.stat().st_size < 400_000
    model = load_checkpoint(path)
    trunk = model.trunk if isinstance(model, RewardModel) else model
    assert isinstance(trunk, MiniGPT) and SIZE.items() <= trunk.settings.items()
    assert trunk.count_parameters() == 173_888
    assert next(trunk.parameters()).dtype == torch.float32  # computes in full precision


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_model_does_what_was_written_down(name, start):
    said, model = shipped()[name], load_checkpoint(MODELS / f"{name}.pt")
    assert figures_of(name, model, start) == pytest.approx(said["figures"], abs=1e-3)
    if name != "reward":
        assert answers_of(model, start) == said["answers"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_library_as_it_is_would_train_the_same_model(name, start):
    said = shipped()[name]
    assert said["recipe"] == RECIPES[name]
    canary = canary_of(name, start)
    assert len(canary) == (2 * 3 if name == "ppo" else CANARY_STEPS)
    assert same(said["canary"], canary)


def test_lessons_start_from_the_shipped_models_at_once(untrained):
    start = starting_point()
    for name in ("base", "sft", "reward"):
        model, expected = getattr(start, name), load_checkpoint(MODELS / f"{name}.pt")
        assert all(torch.equal(weight, expected.state_dict()[key])
                   for key, weight in model.state_dict().items())


def test_another_seed_or_world_is_trained(untrained, monkeypatch, tmp_path):
    monkeypatch.setattr(lessons.start, "RUNS", tmp_path)
    for options in ({"seed": 1}, {"quick": True}, {"polite_weight": 0.0}):
        with pytest.raises(AssertionError, match="a model is trained"):
            starting_point(**options)


def test_a_world_that_differs_in_its_preferences_alone_takes_the_shipped_sft_model(start):
    noisy = lessons.start.load_task(lessons.start.RowsConfig(),
                                    lessons.start.WorldConfig(**lessons.start.WORLD,
                                                              label_noise=0.5), 0).world
    same = {name for name, parts in made_from(noisy, 0).items()
            if lessons.start.key_of(parts) == shipped()[name]["made_from"]}
    assert same == {"base", "sft"}


def test_a_description_is_whole(start):
    assert set(description("reward", start.reward, start)) == {"made_from", "recipe", "figures",
                                                               "canary"}


def test_the_policies_are_better_than_the_model_they_start_from():
    figures = {name: model["figures"] for name, model in shipped().items()}
    for name in ("dpo", "ppo"):
        assert figures[name]["true_reward"] > figures["sft"]["true_reward"]
        assert figures[name]["preference_accuracy"] > 0.8
