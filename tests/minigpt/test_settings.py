"""Every setting of every stage is checked before anything is trained, in the API and by command."""

import re
from dataclasses import MISSING, dataclass, fields
from typing import get_args, get_type_hints

import pytest

import data.main
import dpo.main
import dpo.train
import lessons.compare
import ppo.main
import ppo.train
import reward.main
import sft.main
from data.task import RowsConfig
from dpo import dpo_train
from dpo.train import DPOConfig
from minigpt import generate
from minigpt.command import CommandConfig
from minigpt.errors import UserError
from minigpt.evaluation import sample_responses
from minigpt.options import Settings, flag_of, option
from minigpt.settings import EpochConfig, TrainingConfig
from ppo import ppo_training
from ppo.train import PPOConfig
from reward import train_reward_model
from reward.train import RewardConfig
from sft import sft_train
from sft.train import SFTConfig

PACKAGES = ("minigpt", "data", "sft", "reward", "dpo", "ppo", "lessons")
COMMANDS = [data.main, sft.main, reward.main, ppo.main, dpo.main, lessons.compare]
UNBOUNDED = {"length_bias", "helpful_weight", "polite_weight"}  # their sign has a meaning
STAGES = [SFTConfig, RewardConfig, DPOConfig, PPOConfig]


def subclasses(config):
    for below in config.__subclasses__():
        yield below
        yield from subclasses(below)


CONFIGS = [config for config in subclasses(Settings)
           if config.__module__.split(".")[0] in PACKAGES]
SETTINGS = [pytest.param(config, setting, id=f"{config.__name__}.{setting.name}")
            for config in CONFIGS for setting in fields(config)]


def type_of(config, setting):
    """The type of a setting, and whether it may be None."""
    hint = get_type_hints(config)[setting.name]
    kinds = get_args(hint) or (hint,)
    return next(kind for kind in kinds if kind is not type(None)), type(None) in kinds


def just_outside(kind, limits):
    """Values that the bounds exclude by the least step."""
    step = 1 if kind is int else 1e-6
    if limits["at_least"] is not None:
        yield limits["at_least"] - step
    if limits["above"] is not None:
        yield from (kind(limits["above"]), limits["above"] - step)
    if limits["at_most"] is not None:
        yield limits["at_most"] + step
    if limits["below"] is not None:
        yield from (kind(limits["below"]), limits["below"] + step)


def wrong_values(config, setting):
    kind, may_be_none = type_of(config, setting)
    if not may_be_none:
        yield None
    if kind is bool:
        yield from (0, 1, "yes")
    elif kind is str:
        yield from (3, ["a"], b"a")
        if setting.metadata["choices"]:
            yield from ("fp16", "", setting.metadata["choices"][0].upper())
    elif kind in (int, float):
        yield from (True, False, "1", float("nan"), float("inf"), float("-inf"), [1], 10**400)
        if kind is int:
            yield from (1.5, 2.0)
        yield from just_outside(kind, setting.metadata)
    else:
        yield from ("rows.jsonl", ("a",), {"a"}, [None])
        yield from ([1], [1.5]) if kind == list[str] else (["a"], [0.5, float("nan")], [True])


def right_values(config, setting):
    kind, may_be_none = type_of(config, setting)
    yield setting.default
    if may_be_none:
        yield None
    if kind in (int, float):
        step = 1 if kind is int else 1e-6
        limits = setting.metadata
        yield from (limits[name] for name in ("at_least", "at_most") if limits[name] is not None)
        if limits["above"] is not None:
            yield limits["above"] + step
        if limits["below"] is not None:
            yield limits["below"] - step


@pytest.mark.parametrize(("config", "setting"), SETTINGS)
def test_a_value_just_outside_its_bounds_is_refused_by_name_and_one_on_them_is_not(config, setting):
    for wrong in wrong_values(config, setting):
        with pytest.raises(UserError, match=rf"^{setting.name}=.* must .*\(on the command line "
                                            rf"{flag_of(setting.name)}\)$"):
            config(**{setting.name: wrong})
    if config is lessons.compare.CompareConfig and setting.name != "seed":
        return  # its settings also bound one another
    for right in right_values(config, setting):
        assert getattr(config(**{setting.name: right}), setting.name) == right


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_number_has_a_bound_and_a_stage_keeps_that_of_the_setting_it_redefines(config):
    for setting in fields(config):
        kind, _ = type_of(config, setting)
        limits = {name: setting.metadata[name] for name in ("at_least", "above", "at_most")}
        own = config.__module__.split(".")[0] not in ("data", "lessons")
        if own and kind in (int, float) and setting.name not in UNBOUNDED:
            assert any(limit is not None for limit in limits.values()), setting.name
        for base in (TrainingConfig, EpochConfig, CommandConfig):
            if issubclass(config, base):
                (inherited,) = [f for f in fields(base) if f.name == setting.name] or [setting]
                assert all(inherited.metadata[name] == limit for name, limit in limits.items())
        assert setting.default is not MISSING


# --- the command ----------------------------------------------------------------------------------

BAD = [("--lr", "-1"), ("--lr", "nan"), ("--lr", "inf"), ("--lr", "0"), ("--max-grad-norm", "-1"),
       ("--final-lr", "-3"), ("--warmup", "2"), ("--weight-decay", "-0.1"), ("--batch-size", "0"),
       ("--save-every", "0"), ("--samples", "0"), ("--max-new-tokens", "0"), ("--max-seq-len", "0"),
       ("--seed", "-1"), ("--seed", str(2**63)), ("--facts", "0"), ("--temperature", "0")]
BAD_OF = {"sft": [("--num-epochs", "0"), ("--accumulate", "0"), ("--base-lr", "0"),
                  ("--plain-share", "-1")],
          "reward": [("--num-epochs", "-1")],
          "dpo": [("--beta", "0"), ("--beta", "nan")],
          "ppo": [("--kl-coeff", "-1"), ("--clip", "0"), ("--gamma", "1.1"), ("--lam", "-0.1"),
                  ("--value-lr", "0"), ("--minibatch-size", "0"), ("--ppo-epochs", "0"),
                  ("--target-kl", "0"), ("--missing-eos-penalty", "-1"), ("--num-episodes", "0")]}


@pytest.mark.parametrize("stage", [sft, reward, dpo, ppo], ids=lambda module: module.__name__)
def test_a_command_refuses_a_bad_setting_before_it_makes_a_folder(stage, tmp_path):
    for flag, value in BAD + BAD_OF[stage.__name__]:
        name = flag.removeprefix("--").replace("-", "_")
        with pytest.raises(UserError, match=f"^{name}=.*must"):
            stage.main.main(["--out", str(tmp_path / "run"), flag, value])
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flag", "value"), [("--num-epochs", "1.5"), ("--precision", "fp16"),
                                             ("--batch-size", "many"), ("--lr", "fast")])
def test_what_cannot_be_read_at_all_is_one_line_and_exit_code_2(flag, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        dpo.main.main(["--out", str(tmp_path / "run"), flag, value])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert said.err.count("\n") == 1 and flag in said.err and value in said.err


@pytest.mark.parametrize(("typed", "meant"), [
    ("--bta", "--beta"), ("--batch_size", "--batch-size"), ("--leaning-rate", None),
    ("--num-epoch=3", "--num-epochs"), ("--max-new-token", "--max-new-tokens"),
    ("--overwite", "--overwrite"), ("-beta", "--beta"), ("--zzzz", None)])
def test_a_mistyped_option_names_the_nearest_in_one_line(typed, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        dpo.main.main([typed, "1"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert said.err.count("\n") == 1 and "usage" not in said.err
    assert typed.split("=")[0] in said.err
    assert (f"did you mean {meant}?" in said.err) == (meant is not None)


@pytest.mark.parametrize("command", [dpo.main, ppo.main, sft.main],
                         ids=lambda module: module.__name__)
def test_a_warning_about_a_collapse_names_only_options_of_its_command(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    advice = " ".join(command.ADVICE.values())
    assert re.findall(r"--[a-z-]+", advice)
    assert set(re.findall(r"--[a-z-]+", advice)) <= options


# --- the API --------------------------------------------------------------------------------------

API = [{"lr": -1}, {"lr": float("nan")}, {"max_grad_norm": -1}, {"final_lr": -3},
       {"precision": "fp16"}, {"batch_size": True}, {"batch_size": 0}, {"seed": -1},
       {"warmup": 1.5}, {"save_every": 0}, {"weight_decay": float("inf")}]


@pytest.mark.parametrize("options", API, ids=str)
def test_training_refuses_a_bad_setting_before_it_begins(make_model, make_reward, copy_of,
                                                         make_pairs, weights_of, weights_equal,
                                                         tmp_path, options):
    reference, rows, out = make_model(), make_pairs(4), str(tmp_path / "run")
    policy, reward_model = copy_of(reference), make_reward()
    rows_of_sft = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    for model, train in (
            (policy, lambda: sft_train(policy, rows_of_sft, out=out, **options)),
            (reward_model, lambda: train_reward_model(reward_model, rows, out=out, **options)),
            (policy, lambda: dpo_train(policy, reference, rows, out=out, **options)),
            (policy, lambda: ppo_training(policy, reference, reward_model, ["a"], out=out,
                                          **options))):
        kept = weights_of(model)
        with pytest.raises(UserError, match=f"^{next(iter(options))}="):
            train()
        assert weights_equal(model, kept) and not model.training
    assert not (tmp_path / "run").exists()


def test_the_settings_of_one_stage_are_refused_too(make_model, make_reward, copy_of, make_pairs):
    model, rows = make_model(), make_pairs(4)
    for options in ({"num_epochs": 1.5}, {"num_epochs": 0}, {"beta": 0}, {"accumulate": 0}):
        with pytest.raises(UserError, match=f"^{next(iter(options))}="):
            dpo_train(copy_of(model), model, rows, **options)
    for options in ({"max_new_tokens": 0}, {"kl_coeff": -1}, {"whiten": 1}, {"lam": 1.1}):
        with pytest.raises(UserError, match=f"^{next(iter(options))}="):
            ppo_training(copy_of(model), model, make_reward(), ["a"], **options)
    with pytest.raises(UserError, match=r"^samples="):
        CommandConfig(samples=0)
    with pytest.raises(UserError, match=r"^max_seq_len="):
        RowsConfig(max_seq_len=0)
    with pytest.raises(ValueError, match="samples=0"):
        sample_responses(model, ["a"], 0, 8, seed=0)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        generate(model, ["a"], 0)


@pytest.mark.parametrize("size", ["embed_dim", "num_heads", "num_layers", "max_seq_len", "ff_dim",
                                  "vocab_size"])
def test_a_model_of_no_size_raises(make_model, make_reward, size):
    for make in (make_model, make_reward):
        with pytest.raises(ValueError, match=f"{size}=0"):
            make(**{size: 0})


def test_a_norm_of_0_clips_nothing(make_model, make_pairs, copy_of, weights_equal):
    model, rows = make_model(), make_pairs(8)
    policies = [dpo_train(copy_of(model), model, rows, batch_size=4, lr=1e-2, max_grad_norm=norm)[0]
                for norm in (0, 1e30, 1e-3)]
    assert weights_equal(policies[0], policies[1])
    assert not weights_equal(policies[0], policies[2])


def test_the_first_wrong_setting_is_named_with_its_value():
    @dataclass
    class Shape(Settings):
        side: int = option(1, "of the square", at_least=1)
        scale: float | None = option(None, "of the drawing", above=0, at_most=2)

    assert Shape(2, 2) == Shape(side=2, scale=2.0)
    for wrong, words in (({"side": 0}, "side=0 must be at least 1"),
                         ({"side": 0, "scale": 9}, "side=0 must be at least 1"),
                         ({"scale": 0}, "scale=0 must be above 0"),
                         ({"scale": 2.1}, r"scale=2\.1 must be at most 2"),
                         ({"scale": float("nan")}, "scale=nan must be finite"),
                         ({"side": True}, "side=True must be a whole number"),
                         ({"side": None}, "side=None must have a value")):
        with pytest.raises(UserError, match=f"^{words}"):
            Shape(**wrong)
