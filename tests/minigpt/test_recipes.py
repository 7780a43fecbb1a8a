import pytest

from data.world import WorldConfig
from dpo.train import DPOConfig
from lessons.compare import CompareConfig
from minigpt.command import CommandConfig
from minigpt.recipes import RECIPES, recipe, settings_of_start
from minigpt.settings import TrainingConfig
from ppo.train import PPOConfig
from reward.train import RewardConfig
from sft.train import SFTConfig

CONFIGS = (CommandConfig, CompareConfig, WorldConfig, SFTConfig, RewardConfig, PPOConfig, DPOConfig)


@pytest.mark.parametrize("name", RECIPES)
def test_everything_that_a_recipe_sets_is_a_setting(name):
    assert RECIPES[name].settings.keys() <= {config.__name__ for config in CONFIGS}
    for config in CONFIGS:
        config(**recipe(name, config))


def test_a_recipe_is_looked_up_by_the_name_of_the_dataclass():
    assert recipe("few rows", SFTConfig) == RECIPES["few rows"].settings["SFTConfig"] != {}
    assert recipe("few rows", WorldConfig) == {}


def test_an_unknown_recipe_raises():
    with pytest.raises(KeyError, match="many rows"):
        recipe("many rows", SFTConfig)


def test_a_start_has_the_settings_of_its_recipes_and_the_seed_and_folder_of_the_run():
    run = TrainingConfig(lr=0.5, seed=7, out="runs/x", resume=True)
    plain = settings_of_start(DPOConfig, "start", run, quick=False, few_rows=False)
    assert plain == DPOConfig(seed=7, resume=True, out="runs/x/start")
    quick = settings_of_start(DPOConfig, "start", run, quick=True, few_rows=False)
    assert (quick.lr, quick.batch_size, quick.seed) == (3e-5, 8, 7)
    few_rows = settings_of_start(DPOConfig, "start", run, quick=True, few_rows=True)
    changed = recipe("quick", DPOConfig) | recipe("few rows", DPOConfig)  # has the last word
    assert few_rows == DPOConfig(**changed, seed=7, resume=True, out="runs/x/start")
    assert few_rows.lr != quick.lr


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 8), (2, 4), (16, 1)])
def test_the_processes_of_a_start_have_together_the_batch_of_one(monkeypatch, processes,
                                                                 batch_size):
    monkeypatch.setattr("minigpt.distributed.world_size", lambda: processes)
    run = TrainingConfig(out="runs/x")
    assert settings_of_start(SFTConfig, "sft", run, False, False).batch_size == batch_size
