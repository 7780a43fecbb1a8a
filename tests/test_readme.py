"""What the README says is true: its commands have these options, cells run, links lead to files."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from data.world import World, WorldConfig
from lessons.methods import METHODS
from lessons.start import WORLD, shipped
from minigpt.figures import MEANINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMAND = r"-m ((?:sft|reward|ppo|dpo|data)\.main[^#\n]*|lessons\.compare[^#\n]*)"
COMMANDS = sorted({match.strip() for kind, text in BLOCKS if kind == "bash"
                   for match in re.findall(COMMAND, text)})


class ParsedError(Exception):
    """The command has read its options."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_that_the_readme_gives_it(command, monkeypatch):
    module, *argv = shlex.split(command)
    module = import_module(module)

    def stop(*settings):
        raise ParsedError
    monkeypatch.setattr("data.main.World", stop)
    monkeypatch.setattr("minigpt.command.check_device", stop)  # what `begin` does next
    with pytest.raises(ParsedError):
        module.main(argv)


def test_the_readme_has_commands_for_every_stage():
    stages = {command.split(".")[0] for command in COMMANDS}
    assert stages == {"sft", "reward", "ppo", "dpo", "data", "lessons"}


@pytest.mark.parametrize("cell", [text for kind, text in BLOCKS if kind == "python"])
def test_every_notebook_cell_runs(cell, capsys):
    exec(compile(cell, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_table_of_figures_is_that_of_the_reports():
    table = README.split("| figure | meaning |\n| --- | --- |\n")[1].split("\n\n")[0]
    assert dict(re.fullmatch(r"\| `(.+)` \| (.+) \|", row).groups()
                for row in table.splitlines()) == MEANINGS


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        assert not anchor or anchor in anchors_of(ROOT / path), link


def anchors_of(path):
    """What GitHub calls the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_option_named_in_the_text_exists():
    names = ("minigpt.command", "data.task", "data.world", "sft.train", "reward.train", "ppo.train",
             "dpo.train", "sft.main", "reward.main", "dpo.main", "ppo.main", "minigpt.chat",
             "minigpt.export", "lessons.compare", "lessons.adapt", "lessons.pretrained")
    known = {"--" + name.replace("_", "-") for module in map(import_module, names)
             for value in vars(module).values()
             for name in getattr(value, "__dataclass_fields__", ())}
    known |= {"--help", "--nproc-per-node", "--peers", "--peers-new", "--json", "--check",
              "--no-deps"}
    assert set(re.findall(r"--[a-z][a-z-]+", README)) <= known


def test_the_first_screen_shows_a_pair_as_it_is_and_what_the_shipped_models_say():
    pair, answers = (dict(line.split(maxsplit=1) for line in block.splitlines())
                     for block in re.findall(r"```\n(prompt .*?)```", README, re.DOTALL))
    assert pair in World(WorldConfig(**WORLD)).preferences
    prompt = answers.pop("prompt")
    assert prompt in World(WorldConfig(**WORLD)).heldout_prompts
    assert answers == {name.upper(): shipped()[name]["answers"][prompt]
                       for name in ("sft", "ppo", "dpo")}
    assert README.index(prompt) < 1000


def test_the_table_of_the_family_has_every_method_and_says_when_to_take_it():
    table = README.split("| when to take it |")[1].split("\n\n")[0]
    cells = [re.split(r" *\| *", line) for line in table.splitlines()[2:]]
    rows = {row[1]: row[-2] for row in cells}
    titles = {"best of 16" if method.title == "best of n" else method.title: method.when
              for method in METHODS.values()}
    assert rows == titles
