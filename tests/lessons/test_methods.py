"""The methods that `lessons.compare` knows, and what the commands refuse."""

import json
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import lessons.compare
from data.files import save_jsonl
from dpo import LOSSES
from dpo.rounds import OnlineConfig
from dpo.train import DPOConfig
from lessons.methods import DEFAULT, METHODS, chosen_methods
from lessons.stages import STAGES, commands_in_rounds
from minigpt import save_checkpoint
from minigpt.errors import UserError
from minigpt.lora import LoraConfig
from minigpt.options import parse
from minigpt.training import TrainingLoop
from ppo.train import GROUP_ADVANTAGES

# --- the table ------------------------------------------------------------------------------------


def test_the_default_methods_are_best_of_n_ppo_and_dpo():
    assert list(chosen_methods(None)) == list(DEFAULT) == ["best-of-n", "ppo", "dpo"]
    assert chosen_methods(None) == {name: METHODS[name] for name in DEFAULT}


def test_chosen_methods_stand_once_and_in_the_tables_order():
    assert list(chosen_methods(["kto", "ppo", "kto", "best-of-n"])) == ["best-of-n", "ppo", "kto"]
    assert chosen_methods(["all"]) == chosen_methods(["dpo", "all"]) == METHODS
    assert chosen_methods(["all"]) is not METHODS  # the sweep changes it


@pytest.mark.parametrize("names", [["dop"], ["dpo", "dop"], ["all", "dop"], ["dop", "all"]])
def test_an_unknown_method_is_told_which_there_are(names):
    with pytest.raises(UserError, match="--methods dop: there is no such method; there are all, "
                                        + ", ".join(METHODS) + "$"):
        chosen_methods(names)


def test_every_method_has_a_title_of_its_own_and_says_when_to_take_it():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    for name, method in METHODS.items():
        assert method.title.strip() == method.title != "" and method.title != "SFT"
        assert method.when.strip() == method.when != "", name
        assert method.stage in ("", *STAGES) and method.reward in ("", "--reward", "--judge")
    assert not METHODS.keys() & {"all", "sft", "reward"}  # these are folders of their own


def test_every_loss_and_every_advantage_has_a_method():
    of_dpo = [parse("", method.flags, DPOConfig, OnlineConfig, LoraConfig)
              for method in METHODS.values() if method.stage == "dpo"]
    plain = [config.loss for config, online, lora in of_dpo
             if online.rounds is None and lora.lora_rank is None]
    assert sorted(plain) == sorted([*LOSSES, "kto"])
    flags = [method.flags for method in METHODS.values() if method.stage == "ppo"]
    assert () in flags  # gae
    assert all(("--advantage", advantage) in flags for advantage in GROUP_ADVANTAGES)


# --- their commands -------------------------------------------------------------------------------


class ParsedError(Exception):
    """The command has read its options, and found that they fit together."""


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """commands(*argv) -> what `lessons.compare` runs: (stage, argv) by folder, in order."""
    def commands_of(*argv):
        given = []

        def note(*arguments):
            given.extend(arguments)
            raise ParsedError

        monkeypatch.setattr(lessons.compare, "run_stages", note)
        with pytest.raises(ParsedError):
            lessons.compare.main(["--out", str(tmp_path / "compare"), *argv])
        out, methods, flags, jobs = given
        assert out == str(tmp_path / "compare") and jobs == 1  # the tests have one thread
        return {name: command for commands in commands_in_rounds(out, methods, flags)
                for name, command in commands.items()}
    return commands_of


@pytest.mark.parametrize("argv", [[], ["--quick", "--seed", "5", "--samples", "2"]])
def test_the_command_of_every_method_has_options_that_fit_together(
        commands, tmp_path, make_model, make_reward, monkeypatch, argv):
    run = commands("--methods", "all", *argv)
    assert run.keys() == {"sft", "reward", *(name for name in METHODS if METHODS[name].stage)}
    save_checkpoint(make_model(), tmp_path / "compare" / "sft" / "model.pt")
    save_checkpoint(make_reward(), tmp_path / "compare" / "reward" / "model.pt")
    reached = []

    def load_task(*given):
        reached.append(given)
        raise ParsedError

    for stage in STAGES:
        monkeypatch.setattr(f"{stage}.main.load_task", load_task)
    for name, (stage, given) in run.items():
        with pytest.raises(ParsedError):
            import_module(f"{stage}.main").main(given)
        config = json.loads((tmp_path / "compare" / name / "config.json").read_text())
        assert config["seed"] == (5 if argv else 0) and config["quick"] == bool(argv)
        flags = METHODS[name].flags if name in METHODS else ()
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            assert str(config[flag.removeprefix("--").replace("-", "_")]) == value
    assert len(reached) == len(run)


def test_methods_start_from_the_sft_model_and_those_that_need_it_get_the_reward_model(commands,
                                                                                      tmp_path):
    run = commands("--methods", "all")
    out = tmp_path / "compare"
    for name, (_, given) in run.items():
        pairs = list(pairwise(given))
        assert (("--init", str(out / "sft" / "model.pt")) in pairs) == (name != "sft")
        judged = [flag for flag, value in pairs if value == str(out / "reward" / "model.pt")]
        assert judged == ([METHODS[name].reward] if name in METHODS and METHODS[name].reward
                          else [])


def test_the_sweep_is_of_dpo_alone(commands, tmp_path):
    run = commands("--methods", "dpo", "ipo", "--sweep")
    assert ["--sweep" in given for _, given in run.values()] == [False, False, True, False]
    with pytest.raises(UserError, match=r"--sweep trains DPO .*: put dpo among the --methods"):
        lessons.compare.main(["--out", str(tmp_path / "other"), "--methods", "ipo", "--sweep"])
    assert METHODS["dpo"].flags == ()


# --- what is refused ------------------------------------------------------------------------------


WORLD_JUDGES, GROUPS = ["--rounds", "2", "--judge", "world"], "must be a multiple of"
REFUSED = [
    ("dpo", ["--lora-alpha", "4"], "--lora-alpha scales adapters"),
    ("dpo", ["--sweep", "--loss", "ipo"], "--sweep trains DPO"),
    ("dpo", ["--lam", "3"], "lam=3.0 would change nothing: the loss dpo does not use it"),
    ("dpo", ["--loss", "kto", "--gamma", "1"], "gamma=1.0 would change nothing"),
    ("ppo", ["--advantage", "rloo", "--gamma", "0.9"], "gamma=0.9 would change nothing"),
    ("ppo", ["--reward", "none.pt"], "--reward none.pt: there is no such file"),
    ("dpo", ["--rounds", "1", "--judge", "none.pt"], "--judge none.pt: there is no such file"),
    ("dpo", ["--rounds", "0", "--judge", "world"], "rounds=0 must be at least 1"),
    ("sft", ["--rounds", "0", "--judge", "world"], "rounds=0 must be at least 1"),
    ("dpo", ["--rounds", "2"], "--rounds and --judge must be given together"),
    ("sft", ["--rounds", "2"], "--rounds and --judge must be given together"),
    ("dpo", ["--judge", "world"], "--rounds and --judge must be given together"),
    ("sft", ["--judge", "world"], "--rounds and --judge must be given together"),
    ("dpo", [*WORLD_JUDGES, "--data", "PAIRS"], "--judge world needs the little world"),
    ("sft", [*WORLD_JUDGES, "--data", "PAIRS"], "--judge world needs the little world"),
    ("dpo", [*WORLD_JUDGES, "--samples-per-prompt", "1"], "samples_per_prompt=1 must be at least"),
    ("sft", [*WORLD_JUDGES, "--samples-per-prompt", "1"], "samples_per_prompt=1 must be at least"),
    ("dpo", [*WORLD_JUDGES, "--round-prompts", "0"], "round_prompts=0 must be at least 1"),
    ("dpo", [*WORLD_JUDGES, "--lora-rank", "4", "--reference", "last"],
     "--reference last needs a copy of the policy, but with --lora-rank"),
    ("dpo", [*WORLD_JUDGES, "--pairs", "best"], "best-worst"),
    ("dpo", ["--lora-rank", "1000"], "lora_rank=1000 must be between 1 and 128"),
    ("ppo", ["--lora-rank", "1000"], "lora_rank=1000 must be between 1 and 128"),
    ("ppo", ["--lora-rank", "33", "--init", "MODEL"], "lora_rank=33 must be between 1 and 32"),
    ("dpo", ["--lora-rank", "0"], "lora_rank=0 must be at least 1"),
    ("ppo", ["--advantage", "rloo", "--samples-per-prompt", "1"],
     "rloo compares a response with the others to its prompt, so samples_per_prompt"),
    ("ppo", ["--advantage", "grpo", "--samples-per-prompt", "1"], "grpo compares a response"),
    ("ppo", ["--advantage", "gae", "--samples-per-prompt", "3"],
     "must be a multiple of samples_per_prompt=3"),
    ("ppo", ["--advantage", "rloo", "--samples-per-prompt", "4", "--batch-size", "126"],
     f"batch_size=126 counts responses, so it {GROUPS} samples_per_prompt=4"),
    ("ppo", ["--advantage", "grpo", "--samples-per-prompt", "4", "--minibatch-size", "2"],
     f"minibatch_size=2 counts responses, so it {GROUPS} samples_per_prompt=4"),
    ("ppo", ["--reward", "a", "b", "--reward-weights", "0.5"],
     "--reward-weights has 1 weights for 2 rewards"),
    ("ppo", ["--reward-weights", "0.5"], "--reward-weights has 1 weights for 0 rewards"),
    ("ppo", ["--reward", "world", "--data", "PAIRS"], "--reward world needs the little world"),
    ("dpo", ["--loss", "dop"], ", ".join([*LOSSES, "kto"])),
    ("ppo", ["--advantage", "gea"], ", ".join(["gae", *GROUP_ADVANTAGES])),
    ("lessons.compare", ["--methods", "dop"], ", ".join(["all", *METHODS])),
    ("lessons.compare", ["--seeds", "0"], "seeds=0 must be at least 1"),
    ("dpo", ["--loss", "kto", "--data", "GOOD"], "every row is labelled good: KTO needs some of"),
]


@pytest.mark.parametrize(("command", "argv", "words"), REFUSED,
                         ids=[f"{command} {' '.join(argv)}" for command, argv, _ in REFUSED])
def test_what_cannot_work_is_refused_in_words_before_anything_is_trained(
        command, argv, words, tmp_path, make_model, make_pairs, monkeypatch, capsys):
    files = {name: str(tmp_path / name) for name in ("PAIRS", "GOOD", "MODEL")}
    save_checkpoint(make_model(), Path(files["MODEL"]))
    for name, columns in (("PAIRS", ("prompt", "chosen", "rejected")), ("GOOD", ())):
        rows = [{key: row[key] for key in columns} if columns else
                {"prompt": row["prompt"], "completion": row["chosen"], "label": True}
                for row in make_pairs(10)]
        files[name] += ".jsonl"
        save_jsonl(rows, files[name])

    def trains(*given, **settings):
        raise AssertionError("it began to train")

    monkeypatch.setattr(TrainingLoop, "__init__", trains)
    monkeypatch.setattr(lessons.compare, "compare", trains)
    module = import_module(command if "." in command else f"{command}.main")
    out = tmp_path / "run"
    with pytest.raises((UserError, SystemExit)) as error:
        module.main(["--out", str(out), *(files.get(word, word) for word in argv)])
    if isinstance(error.value, SystemExit):  # a choice that there is not
        assert error.value.code == 2
        found = capsys.readouterr().err.replace("'", "")
    else:
        found = str(error.value)
    assert words in found and "\n" not in found.strip()
    assert {path.name for path in out.rglob("*") if path.is_file()} <= {"config.json"}
