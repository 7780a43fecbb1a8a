import inspect
import math

import pytest
import torch

from data import DataError
from minigpt import MiniGPT, generate
from minigpt.options import parse
from sft import evaluate_loss, sft_train
from sft.train import SFTConfig


def test_training_learns_the_rows_and_their_ends(make_model, recited):
    model = make_model(spread=1)
    start = evaluate_loss(model, recited)
    trained, losses = sft_train(model, recited, 120, lr=5e-3, batch_size=12)
    assert trained is model and not model.training
    assert len(losses) == 120
    assert start > 5 and evaluate_loss(model, recited) < 1.0 < start - 4
    assert losses[0] == pytest.approx(start, abs=1e-4)
    answers = generate(model, [row["prompt"] for row in recited], 40, greedy=True)
    assert all(answer.finished for answer in answers)


def test_heldout_loss_falls_on_what_can_be_generalised():
    rows = [{"prompt": f"{n}?", "response": f"you said {n}"} for n in range(300)]
    torch.manual_seed(0)
    model = MiniGPT(embed_dim=32, num_heads=2, num_layers=2, max_seq_len=64, ff_dim=64)
    start = evaluate_loss(model, rows[250:])
    sft_train(model, rows[:250], 6, lr=5e-3, batch_size=25)
    assert evaluate_loss(model, rows[250:]) < start - 4


def test_plain_text_is_trained_on_as_a_row_without_a_prompt(make_model):
    rows = [{"prompt": "", "response": "the cat sat on the mat"}]
    model = make_model(spread=1)
    sft_train(model, rows, 100, lr=5e-3)
    assert evaluate_loss(model, rows) < 0.5
    assert generate(model, [""], 40, greedy=True)[0].text == rows[0]["response"]


def test_lesson_spellings_are_accepted(make_model, weights_equal, recited):
    renamed = [{"instruction": row["prompt"], "output": row["response"]} for row in recited]
    assert weights_equal(sft_train(make_model(), recited)[0], sft_train(make_model(), renamed)[0])


@pytest.mark.parametrize(("rows", "message"), [
    ([], "no rows"), ([{"prompt": "a"}], "row 0"),
    ([{"prompt": "a", "response": ""}], "row 0.*empty")])
def test_bad_rows_raise(make_model, rows, message):
    with pytest.raises(DataError, match=message):
        sft_train(make_model(), rows)


def test_rows_that_do_not_fit_are_counted_in_print_and_none_left_raises(make_model, capsys):
    texts = (("a", "b"), ("a" * 70, "b"), ("a", "b" * 70))
    rows = [{"prompt": prompt, "response": response} for prompt, response in texts]
    _, losses = sft_train(make_model(), rows, 1)
    assert all(math.isfinite(loss) for loss in losses)
    printed = capsys.readouterr().out
    assert "truncated a response in 1 of 3" in printed and "dropped 1 of 3 rows" in printed
    with pytest.raises(ValueError, match="no row is left"):
        sft_train(make_model(), rows[1:2], 1)


def test_no_epochs_and_unknown_options_raise(make_model, recited):
    with pytest.raises(ValueError, match="num_epochs"):
        sft_train(make_model(), recited, 0)
    with pytest.raises(TypeError, match="epochs"):
        sft_train(make_model(), recited, epochs=3)


def test_without_settings_it_does_what_the_command_does(make_model, recited, weights_equal):
    (command,) = parse("", [], SFTConfig)
    assert weights_equal(sft_train(make_model(), recited)[0],
                         sft_train(make_model(), recited, **vars(command))[0])


def test_defaults_are_those_of_the_config():
    parameters = inspect.signature(sft_train).parameters
    assert parameters["num_epochs"].default == SFTConfig().num_epochs
    assert parameters["lr"].default == SFTConfig().lr
