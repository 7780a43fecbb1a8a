import pytest

from data.task import RowsConfig
from data.world import WorldConfig
from dpo import LOSSES
from dpo.rounds import OnlineConfig
from dpo.train import DPOConfig
from lessons.compare import CompareConfig
from minigpt.command import CommandConfig
from minigpt.lora import LoraConfig
from minigpt.options import chosen_settings, parse
from minigpt.recipes import (
    ADVANTAGE_SETTINGS,
    LOSS_SETTINGS,
    RECIPES,
    SIZES,
    Recipe,
    Times,
    recipe,
    settings_of_start,
    with_recipes,
)
from minigpt.settings import TrainingConfig
from ppo.train import GROUP_ADVANTAGES, PPOConfig
from reward.train import RewardConfig
from sft.rounds import RejectionConfig
from sft.train import SFTConfig

CONFIGS = (CommandConfig, CompareConfig, WorldConfig, SFTConfig, RewardConfig, PPOConfig, DPOConfig,
           OnlineConfig, RejectionConfig)


@pytest.mark.parametrize("name", RECIPES)
def test_everything_that_a_recipe_sets_is_a_setting(name):
    assert RECIPES[name].settings.keys() <= {config.__name__ for config in CONFIGS}
    for config in CONFIGS:
        with_recipes(config, [name])


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


# --- the recipe of a method -----------------------------------------------------------------------


@pytest.fixture
def method_recipes(monkeypatch):
    """Recipes of two losses, of an advantage and of adapters, in place of those that were measured.
    """
    of_loss = {"lr": 0.125, "beta": 7.0, "gamma": 0.25}
    monkeypatch.setitem(RECIPES, "simpo", Recipe("loss", {"DPOConfig": of_loss}, "simpo"))
    monkeypatch.setitem(RECIPES, "orpo", Recipe("loss", {"DPOConfig": {"lam": 0.75}}, "orpo"))
    of_advantage = {"samples_per_prompt": 2, "kl_in": "loss"}
    monkeypatch.setitem(RECIPES, "rloo", Recipe("advantage", {"PPOConfig": of_advantage}, "rloo"))
    of_adapters = {"DPOConfig": {"lr": 0.5}, "PPOConfig": {"lr": 0.25}}
    monkeypatch.setitem(RECIPES, "lora", Recipe("lora_rank", of_adapters))


def test_every_loss_and_every_advantage_but_the_first_has_a_recipe():
    assert LOSS_SETTINGS.keys() == {*LOSSES, "kto"} - {"dpo"}
    assert ADVANTAGE_SETTINGS.keys() == GROUP_ADVANTAGES.keys()
    for name, settings in LOSS_SETTINGS.items():
        assert RECIPES[name] == Recipe("loss", {"DPOConfig": settings}, name)
    for name, settings in ADVANTAGE_SETTINGS.items():
        assert RECIPES[name] == Recipe("advantage", {"PPOConfig": settings | SIZES[name]}, name)


@pytest.mark.parametrize(("typed", "used"), [
    ([], True), (["--quick"], True), (["--loss", "dpo"], True), (["--lora-rank", "4"], True),
    (["--rounds", "2"], False), (["--data", "rows.jsonl"], False), (["--loss", "ipo"], False),
    (["--data", "rows.jsonl", "--loss", "dpo"], False)])
def test_only_dpo_on_the_worlds_own_pairs_averages_and_imitates(typed, used):
    config, *_ = parse("", typed, DPOConfig, OnlineConfig, RowsConfig, LoraConfig, CommandConfig)
    added = {"imitation_weight": 1.5, "final_lr": 1.0, "average": 1.0}
    assert {name: getattr(config, name) for name in added} == \
        (added if used else dict.fromkeys(added, 0.0))


@pytest.mark.parametrize(("typed", "beta", "lr"), [
    ([], 0.7, 1.5e-4), (["--quick"], 0.7, 4.5e-5), (["--lora-rank", "4"], 0.7, 1.5e-3),
    (["--quick", "--lora-rank", "4"], 0.7, 4.5e-4), (["--rounds", "2"], 2.0, 1e-4),
    (["--data", "rows.jsonl"], 1.0, 3e-4), (["--beta", "2"], 2.0, 1.5e-4)])
def test_beta_and_rate_of_dpo(typed, beta, lr):
    config, *_ = parse("", typed, DPOConfig, OnlineConfig, RowsConfig, LoraConfig, CommandConfig)
    assert (config.beta, config.lr) == (beta, pytest.approx(lr))


@pytest.mark.parametrize(("typed", "layers"), [
    ([], 2), (["--quick"], 2), (["--advantage", "gae"], 2), (["--value-layers", "3"], 3),
    (["--advantage", "rloo"], None), (["--data", "rows.jsonl"], None)])
def test_only_ppo_on_the_little_world_has_a_small_value_model(typed, layers):
    config, *_ = parse("", typed, PPOConfig, RowsConfig, LoraConfig, CommandConfig)
    assert config.value_layers == layers


def test_a_recipe_is_in_use_if_its_option_has_its_value_or_any():
    quick, simpo = Recipe("quick", {}), Recipe("loss", {}, "simpo")
    assert quick.is_used({"quick": True}) and quick.flag == "--quick"
    assert not quick.is_used({"quick": False}) and not quick.is_used({})
    assert simpo.is_used({"loss": "simpo"}) and simpo.flag == "--loss simpo"
    assert not simpo.is_used({"loss": "dpo"}) and not simpo.is_used({"quick": True})


def test_recipes_set_what_is_not_given_and_the_last_has_the_last_word(method_recipes):
    defaults = DPOConfig()
    assert with_recipes(DPOConfig, ()) == with_recipes(DPOConfig, ("mine", "rloo")) == defaults
    assert with_recipes(DPOConfig, ("simpo",), lr=None, seed=3) == \
        DPOConfig(lr=0.125, beta=7.0, gamma=0.25, seed=3)
    assert with_recipes(DPOConfig, ("simpo",), lr=0.5, gamma=0.0, beta=None) == \
        DPOConfig(lr=0.5, beta=7.0, gamma=0.0)
    assert with_recipes(DPOConfig, ("simpo", "lora")).lr == 0.5
    assert with_recipes(DPOConfig, ("lora", "simpo")).lr == 0.125
    assert with_recipes(PPOConfig, ("simpo",)) == PPOConfig()


def test_the_command_line_uses_and_prints_the_recipe_of_a_loss(method_recipes, capsys):
    config, = parse("", ["--loss", "simpo"], DPOConfig)
    assert config == DPOConfig(loss="simpo", lr=0.125, beta=7.0, gamma=0.25)
    assert capsys.readouterr().out == \
        "recipe 'simpo' (--loss simpo): lr=0.125, beta=7.0, gamma=0.25\n"
    config, = parse("", ["--loss", "orpo"], DPOConfig)
    assert config == DPOConfig(loss="orpo", lam=0.75)
    assert capsys.readouterr().out == "recipe 'orpo' (--loss orpo): lam=0.75\n"
    world = DPOConfig(beta=0.7, imitation_weight=1.5, lr=1.5e-4, final_lr=1.0, average=1.0)
    assert parse("", ["--loss", "dpo"], DPOConfig) == parse("", [], DPOConfig) == [world]
    assert capsys.readouterr().out == 2 * (
        "recipe 'world' (--loss dpo without --data without --rounds): beta=0.7, "
        "imitation_weight=1.5, lr=0.00015, final_lr=1.0, average=1.0\n")


def test_a_report_lists_what_was_typed_against_a_recipe_even_if_it_is_the_default():
    config, = parse("", ["--beta", "2"], DPOConfig)
    chosen = {name: by for name, *_, by in chosen_settings([config])[1:]}
    assert chosen["beta"] == "the command line"
    assert {name for name, by in chosen.items() if by.startswith("recipe 'world'")} == \
        {"imitation_weight", "lr", "final_lr", "average"}


def test_what_is_typed_wins_over_the_recipe_of_a_loss(method_recipes, capsys):
    config, = parse("", ["--beta", "1", "--loss", "simpo", "--lr", "1e-4"], DPOConfig)
    assert config == DPOConfig(loss="simpo", lr=1e-4, beta=1.0, gamma=0.25)
    assert capsys.readouterr().out == "recipe 'simpo' (--loss simpo): gamma=0.25\n"


def test_the_recipe_of_a_method_wins_over_quick_and_few_rows(method_recipes, capsys):
    quick, few = recipe("quick", DPOConfig), recipe("few rows", DPOConfig)
    assert {"lr", "batch_size"} <= quick.keys() and {"lr", "beta", "num_epochs"} <= few.keys()
    command, config = parse("", ["--quick", "--loss", "simpo"], CommandConfig, DPOConfig)
    assert command == CommandConfig(quick=True, **recipe("quick", CommandConfig))
    of_loss = recipe("simpo", DPOConfig)
    assert config == DPOConfig(loss="simpo", **quick | of_loss)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and printed[0].startswith("recipe 'quick' (--quick): ")
    assert f"batch_size={quick['batch_size']}" in printed[0] and "lr=" not in printed[0]
    assert printed[1] == "recipe 'simpo' (--loss simpo): lr=0.125, beta=7.0, gamma=0.25"


def test_the_recipe_of_adapters_wins_over_that_of_a_loss(method_recipes, capsys):
    _, config = parse("", ["--lora-rank", "2", "--loss", "simpo"], LoraConfig, DPOConfig)
    assert config == DPOConfig(loss="simpo", lr=0.5, beta=7.0, gamma=0.25)
    assert capsys.readouterr().out.splitlines() == [
        "recipe 'simpo' (--loss simpo): beta=7.0, gamma=0.25",
        "recipe 'lora' (--lora-rank): lr=0.5"]


def test_times_multiplies_what_holds_without_it(monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "simpo", Recipe("loss", {"DPOConfig": {
        "lr": Times(0.1), "batch_size": Times(2)}}, "simpo"))
    monkeypatch.setitem(RECIPES, "lora", Recipe("lora_rank", {"DPOConfig": {"lr": Times(10)}}))
    few = recipe("few rows", DPOConfig)
    assert with_recipes(DPOConfig, ["simpo"]).lr == 1e-5
    assert with_recipes(DPOConfig, ["simpo", "lora"]).lr == 1e-4
    found = with_recipes(DPOConfig, ["few rows", "simpo"])
    assert (found.lr, found.batch_size) == (3e-5, 2 * few["batch_size"])
    assert with_recipes(DPOConfig, ["simpo"], lr=0.5).lr == 0.5
    config, = parse("", ["--loss", "simpo"], DPOConfig)
    assert (config.lr, config.batch_size) == (1e-5, 64)
    assert capsys.readouterr().out == "recipe 'simpo' (--loss simpo): lr=1e-05, batch_size=64\n"


def test_the_recipe_of_an_advantage_is_used_as_that_of_a_loss(method_recipes, capsys):
    config, = parse("", ["--advantage", "rloo", "--kl-in", "reward"], PPOConfig)
    assert config == PPOConfig(advantage="rloo", samples_per_prompt=2)
    assert capsys.readouterr().out == "recipe 'rloo' (--advantage rloo): samples_per_prompt=2\n"
