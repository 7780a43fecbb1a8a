"""What the README says is so: its commands have the options they use, its notebook cells run, its links lead somewhere."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted({match.strip() for kind, text in BLOCKS if kind == "bash"
                   for match in re.findall(r"-m ((?:sft|reward|ppo|dpo|data)\.main[^#\n]*|lessons\.compare[^#\n]*)", text)})


class ParsedError(Exception):
    """The command got as far as its folder."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_that_the_readme_gives_it(command, monkeypatch):
    module, *argv = shlex.split(command)
    module = import_module(module)

    def stop(*settings):
        raise ParsedError
    monkeypatch.setattr(module, "World" if module.__name__ == "data.main" else "open_run", stop)
    with pytest.raises(ParsedError):
        module.main(argv)


def test_the_readme_has_commands_for_every_stage():
    assert {command.split(".")[0] for command in COMMANDS} == {"sft", "reward", "ppo", "dpo", "data", "lessons"}


@pytest.mark.parametrize("cell", [text for kind, text in BLOCKS if kind == "python"])
def test_every_notebook_cell_runs(cell, capsys):
    exec(compile(cell, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert links and all((Path(__file__).parents[1] / link).exists() for link in links)


def test_every_option_named_in_the_text_exists():
    configs = [import_module(name) for name in ("minigpt.cli", "data.task", "data.world", "sft.train", "reward.train",
                                                "ppo.train", "dpo.train", "dpo.main", "ppo.main", "lessons.compare")]
    known = {"--" + name.replace("_", "-") for module in configs for value in vars(module).values()
             for name in getattr(value, "__dataclass_fields__", ())} | {"--help", "--nproc-per-node", "--peers", "--json"}
    assert set(re.findall(r"--[a-z][a-z-]+", README)) <= known
