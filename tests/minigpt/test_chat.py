import builtins
import re

import pytest

from minigpt import Response, generate, save_checkpoint, sequence_logps
from minigpt.chat import PALETTE, ChatConfig, changed, coloured, main, names_of, token_log_ratios
from minigpt.errors import UserError
from minigpt.tokenizer import EOS


@pytest.fixture
def files(make_model, make_reward, tmp_path):
    """Checkpoints of two models and of a reward model."""
    paths = {name: tmp_path / name / "model.pt" for name in ("sft", "dpo", "reward")}
    models = {"sft": make_model(1), "dpo": make_model(2), "reward": make_reward()}
    for name, path in paths.items():
        save_checkpoint(models[name], path)
    return {name: str(path) for name, path in paths.items()}


def say(monkeypatch, *lines):
    """Type these lines into the chat, and then Ctrl-D."""
    typed = iter(lines)

    def read(prompt):
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr(builtins, "input", read)


def test_a_prompt_is_answered_once_by_each_model_with_its_log_ratio_and_score(files, capsys,
                                                                              make_model):
    main([files["sft"], files["dpo"], "--reward", files["reward"], "--prompt", "Capital of Japan?",
          "--max-new-tokens", "5"])
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"sft: .* \[did not end\]   \(score [+-]\d\.\d\d, true reward -\d\.\d\)",
                        first)
    assert re.search(r"^dpo: .*\(log pi/ref [+-]\d+\.\d, score", second)
    response, = generate(make_model(2), ["Capital of Japan?"], 5, seed=0)
    assert response.text in second


def test_log_ratios_sum_to_the_difference_of_sequence_log_probabilities(make_model):
    model, reference = make_model(1), make_model(2)
    response, = generate(model, ["a"], 8, seed=0)
    ratios = token_log_ratios(model, reference, "a", response)
    assert len(ratios) == len(response.ids)
    difference = sequence_logps(model, ["a"], [response.ids]) - \
        sequence_logps(reference, ["a"], [response.ids])
    assert sum(ratios) == pytest.approx(float(difference), abs=1e-4)


def test_what_goes_wrong_is_said_in_a_line_and_the_chat_goes_on(files, capsys, monkeypatch):
    say(monkeypatch, "x" * 100, "/temperature -1", "/temperature hot", "/nothing", "", "Hi")
    main([files["sft"], "--max-new-tokens", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sft: ") and "weights" in lines[0]
    for line, sign in zip(lines[2:], ("leaves no room for a response", "must be above 0",
                                      "needs a number", "you can change /temperature", "sft: "),
                          strict=False):
        assert sign in line


def test_models_of_one_name_are_told_apart_by_their_paths():
    assert names_of(["a/sft/model.pt", "b/dpo.pt"]) == ["sft", "dpo"]
    assert names_of(["a/dpo/model.pt", "b/dpo.pt"]) == ["a/dpo/model.pt", "b/dpo.pt"]


def test_settings_change_in_the_chat():
    config = ChatConfig()
    assert changed(config, "/temperature 0.5").temperature == 0.5
    assert changed(config, "/max-new-tokens 7").max_new_tokens == 7
    assert changed(changed(config, "/greedy"), "/greedy") == config
    with pytest.raises(UserError, match="max_new_tokens=0 must be at least 1"):
        changed(config, "/max-new-tokens 0")


def test_what_cannot_speak_is_refused(files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"RewardModel, which scores answers.*--reward"):
        main([files["reward"], "--prompt", "a"])
    with pytest.raises(UserError, match="no such file"):
        main([str(tmp_path / "none.pt"), "--prompt", "a"])
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    with pytest.raises(UserError, match="not a checkpoint"):
        main([str(other), "--prompt", "a"])


def test_without_names_it_finds_those_of_a_comparison_or_else_those_of_the_lessons(
        make_model, make_reward, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minigpt.chat.LESSONS", tmp_path / "lessons")
    with pytest.raises(UserError, match="no models to talk to"):
        main(["--prompt", "a"])
    for name, model in (("dpo", make_model()), ("sft", make_model()), ("reward", make_reward())):
        save_checkpoint(model, tmp_path / "lessons" / "models" / f"{name}.pt")
    main(["--prompt", "a", "--max-new-tokens", "2"])
    said = capsys.readouterr().out.splitlines()  # log pi/ref compares with the SFT model
    assert re.match(r"sft: .*\(score [+-]", said[0])  # of the reward model beside them
    assert re.match(r"dpo: .*\(log pi/ref \+0\.0, score", said[1])
    save_checkpoint(make_model(), tmp_path / "runs" / "compare" / "ppo" / "model.pt")
    main(["--prompt", "a", "--max-new-tokens", "2"])
    only, = capsys.readouterr().out.splitlines()
    assert only.startswith("ppo: ")


def test_a_character_has_the_colour_of_its_bytes():
    accent = list("é".encode())
    response = Response("aé", [ord("a"), *accent, EOS], True)
    found = coloured(response, [-9.0, 0.5, 0.5, 0.1])
    colours = re.findall(r"\x1b\[48;5;(\d+);38;5;16m([^\x1b]*)", found)
    assert colours == [(str(PALETTE[0]), "a"), (str(PALETTE[5]), "é"), (str(PALETTE[3]), "□")]
    assert found.endswith("\x1b[0m")
