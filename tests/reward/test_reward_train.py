import inspect
import math
import random

import pytest
import torch

from data import DataError, World, WorldConfig
from minigpt.errors import UserError
from minigpt.options import parse
from minigpt.run_folder import read_history
from reward import RewardModel, evaluate_reward_accuracy, train_reward_model
from reward.evaluate import reward_margins
from reward.train import RewardConfig


def fresh(small, seed=0):
    torch.manual_seed(seed)
    return RewardModel(**small)


def flipped(rows):
    return [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
            for row in rows]


RECIPE = {"num_epochs": 6, "lr": 3e-3, "batch_size": 16}


# --- the labels are what trains -------------------------------------------------------------------


def test_training_beats_its_start_on_heldout_pairs(make_pairs, small):
    rows = make_pairs(300)
    model = fresh(small)
    start = evaluate_reward_accuracy(model, rows[200:])
    trained, losses, accuracies = train_reward_model(model, rows[:200], **RECIPE)
    assert trained is model and not model.training
    assert len(losses) == len(accuracies) == 6 * math.ceil(200 / 16)
    assert losses[-1] < 0.1 < 0.5 < losses[0]
    assert evaluate_reward_accuracy(model, rows[200:]) > max(0.97, start + 0.2)


def test_flipped_labels_turn_heldout_accuracy_upside_down(make_pairs, small):
    rows = make_pairs(300)
    model, _, _ = train_reward_model(fresh(small), flipped(rows[:200]), **RECIPE)
    assert evaluate_reward_accuracy(model, rows[200:]) < 0.03


def test_shuffled_labels_give_chance(make_pairs, small):
    rows = make_pairs(300)
    found = []
    for seed in range(6):
        swaps = random.Random(seed).sample([True, False] * 100, 200)
        shuffled = [flipped([row])[0] if swap else row
                    for row, swap in zip(rows[:200], swaps, strict=True)]
        model, losses, _ = train_reward_model(fresh(small, seed), shuffled,
                                              **{**RECIPE, "num_epochs": 2})
        found.append(evaluate_reward_accuracy(model, rows[200:]))
        assert abs(sum(losses[-8:]) / 8 - math.log(2)) < 0.1  # nothing to be learned
    assert 0.3 < sum(found) / len(found) < 0.7


def test_labels_of_the_world_train_and_its_noise_turns_them_round(small):
    found = {}
    for noise in (0.0, 1.0):
        world = World(WorldConfig(preference_rows=900, heldout_rows=300, temperature=0.2,
                                  helpful_weight=0.0, label_noise=noise), 0)
        model, _, _ = train_reward_model(fresh({**small, "max_seq_len": 128}), world.preferences,
                                         3, 3e-3)
        found[noise] = evaluate_reward_accuracy(model, world.heldout_preferences)
    bayes = world.bayes_accuracy(world.heldout_preferences)
    assert found[0.0] > bayes - 0.05
    assert found[1.0] < 1 - bayes + 0.05


# --- bookkeeping ----------------------------------------------------------------------------------


def test_same_seed_same_bits(make_pairs, small, weights_equal):
    models = [train_reward_model(fresh(small), make_pairs(40), 1, 1e-3, seed=seed)[0]
              for seed in (0, 0, 1)]
    assert weights_equal(models[0], models[1]) and not weights_equal(models[0], models[2])


def test_accumulated_gradients_give_the_weights_of_the_whole_batch(make_pairs, small):
    models = [train_reward_model(fresh(small), make_pairs(30), 1, 1e-4, batch_size=10,
                                 accumulate=parts, precision="float32")[0]
              for parts in (1, 3)]
    # These two move all rewards alike: their gradient is 0 but for rounding, which Adam enlarges.
    shifts = ("head.bias", "trunk.final_norm.bias")
    pairs = zip(models[0].named_parameters(), models[1].parameters(), strict=True)
    for (name, whole), parts in pairs:
        if name not in shifts:
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_resumed_reward_training_repeats_the_unbroken_run_bit_for_bit(make_pairs, small,
                                                                      check_resume):
    def train(out, resume):
        return train_reward_model(fresh(small), make_pairs(40), 2, 1e-3, batch_size=10,
                                  save_every=2, out=out, resume=resume)[0]
    check_resume(train)


def test_first_logged_loss_is_that_of_the_fresh_model(make_pairs, small, tmp_path):
    rows, model = make_pairs(16), fresh(small)
    margins = reward_margins(model, rows)
    train_reward_model(model, rows, 1, batch_size=16, precision="float32", out=str(tmp_path))
    history = read_history(tmp_path)
    expected = float(-torch.nn.functional.logsigmoid(margins).mean())
    assert history["loss"][0] == pytest.approx(expected, abs=1e-5)
    assert history["margin"][0] == pytest.approx(float(margins.mean()), abs=1e-5)


def test_bfloat16_trains(make_pairs, small):
    rows = make_pairs(200)
    model, _, _ = train_reward_model(fresh(small), rows[:150], **RECIPE, precision="bfloat16")
    assert evaluate_reward_accuracy(model, rows[150:]) > 0.95


@pytest.mark.parametrize(("row", "message"), [
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "row 1.*identical"),
    ({"prompt": "a", "chosen": "b"}, "row 1"),
    ({"prompt": "a", "chosen": "b", "rejected": 3}, "row 1.*int")])
def test_bad_rows_raise(make_pairs, small, row, message):
    with pytest.raises(DataError, match=message):
        train_reward_model(fresh(small), [*make_pairs(1), row])


def test_a_model_of_phrases_learns_which_word_is_liked(small):
    words = ["sun", "tree", "stone", "river", "cloud", "bird", "road", "light"]
    pairs = [{"prompt": "p", "chosen": f"{one} please {other}", "rejected": f"{one} now {other}"}
             for one in words for other in words]
    torch.manual_seed(0)
    model = RewardModel(**small, pooling="sum", reads="phrases")
    model, _, _ = train_reward_model(model, pairs[:40], 10, 2e-3, pooling="sum", reads="phrases")
    assert evaluate_reward_accuracy(model, pairs[40:]) == 1
    assert evaluate_reward_accuracy(model, [{**pairs[0], "prompt": "else"}]) == 1


def test_the_last_of_the_phrases_alone_is_refused():
    with pytest.raises(UserError, match="needs pooling=sum or mean"):
        RewardConfig(reads="phrases")


# --- defaults -------------------------------------------------------------------------------------


def test_without_settings_it_does_what_the_command_does(make_pairs, small, weights_equal):
    rows = make_pairs(20)
    (command,) = parse("", [], RewardConfig)
    model, losses, accuracies = train_reward_model(fresh(small), rows)
    as_commanded, *expected = train_reward_model(fresh(small), rows, **vars(command))
    assert weights_equal(model, as_commanded) and [losses, accuracies] == expected


def test_defaults_are_those_of_the_config():
    parameters = inspect.signature(train_reward_model).parameters
    assert parameters["num_epochs"].default == RewardConfig().num_epochs
    assert parameters["lr"].default == RewardConfig().lr
