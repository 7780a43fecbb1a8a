import inspect
import math
import random
from collections import Counter
from functools import partial

import pytest
import torch

import dpo
from data import DataError
from data.examples import preference_examples
from dpo import LOSSES, dpo_loss, dpo_train, evaluate_preference_accuracy, simpo_loss
from dpo.evaluate import implicit_rewards
from dpo.train import HYPERPARAMETERS, TENSORS, DPOConfig, needs_reference
from minigpt import sequence_logps
from minigpt.batching import Batches
from minigpt.errors import UserError
from minigpt.logprobs import response_logps
from minigpt.options import parse
from minigpt.recipes import RECIPES, Recipe, combined
from minigpt.run_folder import read_history
from reward import train_reward_model
from sft import sft_train


@pytest.fixture(scope="module")
def polite_and_rude(make_model, make_pairs):
    """An SFT model that answers politely and rudely alike, and pairs, the last 100 held out."""
    pairs = make_pairs(300)
    rows = [{"prompt": row["prompt"], "response": row[side]}
            for row in pairs[:200] for side in ("chosen", "rejected")]
    return sft_train(make_model(spread=1), rows, 6, lr=5e-3, batch_size=25)[0], pairs


RECIPE = {"num_epochs": 3, "lr": 1e-3, "beta": 0.1, "batch_size": 20}


def flipped(rows):
    return [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
            for row in rows]


# --- training -------------------------------------------------------------------------------------


def test_training_starts_at_log_2_and_beats_its_start_on_heldout_pairs(polite_and_rude, copy_of,
                                                                       weights_of, weights_equal):
    reference, pairs = polite_and_rude
    kept, policy = weights_of(reference), copy_of(reference)
    trained, losses, margins = dpo_train(policy, reference, pairs[:200], **RECIPE)
    assert trained is policy and not policy.training
    assert len(losses) == len(margins) == 30
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert losses[-1] < 0.4 and margins[-1] > 0.7
    assert evaluate_preference_accuracy(policy, reference, pairs[200:]) > 0.95
    assert weights_equal(reference, kept)


def test_flipped_labels_turn_heldout_accuracy_upside_down(polite_and_rude, copy_of):
    reference, pairs = polite_and_rude
    policy, _, _ = dpo_train(copy_of(reference), reference, flipped(pairs[:200]), **RECIPE)
    assert evaluate_preference_accuracy(policy, reference, pairs[200:]) < 0.05


def test_shuffled_labels_give_chance(polite_and_rude, copy_of):
    reference, pairs = polite_and_rude
    found = []
    for seed in range(4):
        swaps = random.Random(seed).sample([True, False] * 100, 200)
        rows = [flipped([row])[0] if swap else row
                for row, swap in zip(pairs[:200], swaps, strict=True)]
        policy, losses, _ = dpo_train(copy_of(reference), reference, rows,
                                      **{**RECIPE, "num_epochs": 1})
        found.append(evaluate_preference_accuracy(policy, reference, pairs[200:]))
        assert abs(sum(losses) / len(losses) - math.log(2)) < 0.1
    assert 0.2 < sum(found) / len(found) < 0.8


def test_a_lower_beta_lets_the_policy_go_further(polite_and_rude, copy_of):
    reference, pairs = polite_and_rude
    gone = []
    for beta in (0.02, 0.2, 2.0):
        policy, _, _ = dpo_train(copy_of(reference), reference, pairs[:200],
                                 **{**RECIPE, "num_epochs": 5, "beta": beta})
        chosen, rejected = implicit_rewards(policy, reference, pairs[200:], beta=1.0)
        gone.append(float((chosen - rejected).mean()))
    assert gone[0] > gone[1] > gone[2] > 0


def test_trained_policy_reaches_the_closed_form_log_ratios(make_model, copy_of):
    """Five one-byte answers, every pair labelled by Bradley-Terry.

    Beta times the log-ratios is the reward, to 0.1.
    """
    reward, copies, beta = {"a": 0.8, "b": 0.4, "c": 0.0, "d": -0.4, "e": -0.8}, 20, 0.5
    rows = []
    for first in reward:
        for second in reward:
            wins = round(copies * 1 / (1 + math.exp(reward[second] - reward[first])))
            if first != second:
                rows += [{"prompt": "?", "chosen": first, "rejected": second}] * wins
    reference = make_model(spread=2)
    policy, _, _ = dpo_train(copy_of(reference), reference, rows, 200, lr=1e-3, beta=beta,
                             batch_size=len(rows))
    sides = [["?"] * 5, list(reward)]
    found = beta * (sequence_logps(policy, *sides) - sequence_logps(reference, *sides))
    expected = torch.tensor(list(reward.values()))
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(),
                               rtol=0, atol=0.1)


@pytest.mark.parametrize(("accumulate", "imitation_weight"), [(2, 0.0), (5, 0.0), (5, 2.0)])
def test_accumulated_gradients_give_the_weights_of_the_whole_batch(make_model, copy_of, make_pairs,
                                                                   accumulate, imitation_weight):
    reference, logs, policies = make_model(spread=1), [], []
    for parts in (1, accumulate):
        policy, losses, _ = dpo_train(copy_of(reference), reference, make_pairs(30), 2, 1e-4, 0.1,
                                      batch_size=10, accumulate=parts, precision="float32",
                                      imitation_weight=imitation_weight)
        policies.append(policy)
        logs.append(losses)
    for whole, parts in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert logs[1] == pytest.approx(logs[0], abs=1e-5)


def test_dpo_train_leaves_the_loss_alone_unless_asked(make_model, copy_of, make_pairs,
                                                      weights_equal):
    reference, rows = make_model(spread=1), make_pairs(6)
    plain, *_ = dpo_train(copy_of(reference), reference, rows)
    spelled_out = {"beta": 2.0, "lr": 1e-4, "imitation_weight": 0.0, "final_lr": 0.0, "average": 0}
    assert weights_equal(plain, dpo_train(copy_of(reference), reference, rows, **spelled_out)[0])


@pytest.mark.parametrize(("weight", "beta"), [(0.0, 0.5), (3.0, 0.5), (3.0, 2.0)])
def test_what_is_minimised_by_hand(make_model, copy_of, make_pairs, tmp_path, weight, beta):
    """The loss, and imitation_weight beta times the mean over all responses of -log pi / length."""
    reference, rows = make_model(spread=1), make_pairs(6)
    policy = copy_of(reference)
    batch = Batches(preference_examples(rows, policy.max_seq_len), len(rows)).collate(range(6))
    logps = response_logps(policy, batch)                                       # (B, 2)
    lengths = torch.tensor([[len(row[side].encode()) + 1 for side in ("chosen", "rejected")]
                            for row in rows])[batch.indices]                    # EOS included
    imitation = -(logps / lengths).mean()
    total = dpo_loss(*logps.unbind(1), *logps.detach().unbind(1), beta)[0] \
        + weight * beta * imitation
    total.backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    dpo_train(copy_of(reference), reference, rows, beta=beta, batch_size=6, out=str(tmp_path),
              imitation_weight=weight, precision="float32", max_grad_norm=0)
    history = read_history(tmp_path)
    assert history["grad_norm"][0] == pytest.approx(float(norm), rel=1e-4)
    assert history["imitation_loss"][0] == pytest.approx(imitation.item(), abs=1e-5)
    assert history["loss"][0] == pytest.approx(math.log(2), abs=1e-4)           # alone


def test_imitation_is_refused_where_there_is_no_beta(make_model, make_pairs):
    for loss in ("orpo", lambda policy_chosen_logps: (-policy_chosen_logps.mean(), {})):
        with pytest.raises(UserError, match=r"imitation_weight=0\.5 is a multiple of beta"):
            dpo_train(make_model(), None, make_pairs(3), loss=loss, imitation_weight=0.5)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_imitation_makes_good_and_bad_responses_more_likely(make_model, copy_of, make_pairs, loss):
    reference, rows = make_model(spread=1), make_pairs(20)

    def gains(imitation_weight):
        policy, _, _ = dpo_train(copy_of(reference), reference, rows, 5, 3e-3, 0.5, loss=loss,
                                 batch_size=10, imitation_weight=imitation_weight)
        return torch.stack(implicit_rewards(policy, reference, rows, beta=1.0)).mean(1)

    alone, imitating = gains(0.0), gains(30.0)
    assert alone[1] < 0 < imitating[1] and imitating[0] > alone[0]


def test_same_seed_same_bits_and_another_seed_others(make_model, copy_of, make_pairs,
                                                     weights_equal):
    reference = make_model()
    policies = [dpo_train(copy_of(reference), reference, make_pairs(30), 2, batch_size=8,
                          seed=seed)[0]
                for seed in (0, 0, 1)]
    assert weights_equal(policies[0], policies[1])
    assert not weights_equal(policies[0], policies[2])


def test_resumed_dpo_repeats_the_unbroken_run_bit_for_bit(make_model, copy_of, make_pairs,
                                                          check_resume):
    reference = make_model()

    def train(out, resume):
        return dpo_train(copy_of(reference), reference, make_pairs(40), 2, 1e-3, 0.1,
                         batch_size=10, save_every=2, out=out, resume=resume)[0]
    check_resume(train)


def test_logged_metrics_carry_trls_names(make_model, copy_of, make_pairs, tmp_path):
    reference = make_model()
    dpo_train(copy_of(reference), reference, make_pairs(10), 1, out=str(tmp_path))
    names = {"loss", "grad_norm", "learning_rate", "epoch", "global_step", "num_tokens",
             "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
             "logps/chosen", "logps/rejected"}
    assert names <= read_history(tmp_path).keys()


def test_bfloat16_trains(polite_and_rude, copy_of):
    reference, pairs = polite_and_rude
    policy, _, _ = dpo_train(copy_of(reference), reference, pairs[:200], **RECIPE,
                             precision="bfloat16")
    assert evaluate_preference_accuracy(policy, reference, pairs[200:]) > 0.9


def test_seeds_spelling_is_accepted(make_model, copy_of, make_pairs, weights_equal):
    reference, rows = make_model(), make_pairs(10)
    renamed = [{"prompt": row["prompt"], "preferred": row["chosen"],
                "dispreferred": row["rejected"]} for row in rows]
    policies = [dpo_train(copy_of(reference), reference, data, 1)[0] for data in (rows, renamed)]
    assert weights_equal(*policies)


# --- the family -----------------------------------------------------------------------------------


# every setting of every loss, so that none is left to a recipe
ALL_SET = {"num_epochs": 8, "lr": 1e-3, "batch_size": 20, "beta": 0.5, "label_smoothing": 0.1,
           "lam": 1.0, "gamma": 0.5, "nll_weight": 1.0, "precision": "float32"}
WITHOUT_REFERENCE = [name for name in LOSSES if not needs_reference(name)]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_by_its_name_as_it_does_as_a_function(make_model, copy_of, make_pairs,
                                                                weights_equal, name):
    reference, rows = make_model(spread=1), make_pairs(20)
    policy, losses, margins = dpo_train(copy_of(reference), reference, rows, loss=name, **ALL_SET)
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert len(margins) == len(losses) == 8 and margins[-1] > margins[0]
    if needs_reference(name):
        assert margins[0] == pytest.approx(0, abs=1e-5)
    as_function, *expected = dpo_train(copy_of(reference), reference, rows, loss=LOSSES[name],
                                       **ALL_SET)
    assert weights_equal(policy, as_function) and [losses, margins] == expected


def test_two_losses_need_no_reference():
    assert WITHOUT_REFERENCE == ["simpo", "orpo"] and needs_reference("kto")


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_a_loss_that_needs_no_reference_does_the_same_with_one(make_model, copy_of, make_pairs,
                                                               weights_equal, name):
    start, rows = make_model(), make_pairs(20)
    alone, *figures = dpo_train(copy_of(start), None, rows, loss=name, **ALL_SET)
    for reference in (start, make_model(1)):
        beside, *others = dpo_train(copy_of(start), reference, rows, loss=name, **ALL_SET)
        assert weights_equal(alone, beside) and figures == others
    assert not weights_equal(alone, start)


@pytest.mark.parametrize("name", [*filter(needs_reference, LOSSES), "kto"])
def test_a_loss_that_needs_a_reference_is_refused_without_one(make_model, make_pairs, name):
    with pytest.raises(ValueError, match="reference=None needs a policy with adapters"):
        dpo_train(make_model(), None, make_pairs(20), loss=name)


def test_a_loss_of_ones_own_gets_what_its_parameters_name(make_model, make_pairs, tmp_path):
    policy, rows, given = make_model(), make_pairs(6), []

    def mine(rejected_lengths, policy_chosen_logps, gamma, *, beta, policy_rejected_logps,
             chosen_lengths, shift=3.0, **others):
        given.append((policy_chosen_logps.tolist(), policy_rejected_logps.tolist(),
                      chosen_lengths.tolist(), rejected_lengths.tolist(), gamma, beta, shift,
                      others))
        loss = (policy_rejected_logps - policy_chosen_logps).mean()
        return loss, {"twice": 2 * loss.detach()}

    prompts = [row["prompt"] for row in rows]
    logps = {side: sequence_logps(policy, prompts, [row[side] for row in rows]).tolist()
             for side in ("chosen", "rejected")}
    _, losses, margins = dpo_train(policy, None, rows, 2, loss=mine, gamma=0.7, beta=0.3,
                                   batch_size=6, precision="float32", out=str(tmp_path))
    assert losses[-1] < losses[0] and margins == []
    assert read_history(tmp_path)["twice"] == pytest.approx([2 * loss for loss in losses])
    chosen, rejected, chosen_lengths, rejected_lengths, *settings = given[0]
    assert settings == [0.7, 0.3, 3.0, {}]
    assert sorted(chosen) == pytest.approx(sorted(logps["chosen"]), abs=1e-4)
    assert sorted(rejected) == pytest.approx(sorted(logps["rejected"]), abs=1e-4)
    sizes = [(len(row["chosen"]) + 1, len(row["rejected"]) + 1) for row in rows]  # EOS included
    assert sorted(zip(chosen_lengths, rejected_lengths, strict=True)) == sorted(sizes)


def test_every_name_on_offer_is_what_it_says(make_model, make_pairs):
    policy, reference, (row, _) = make_model(1), make_model(2), make_pairs(2)
    settings = {name: 0.25 + 0.01 * number for number, name in enumerate(HYPERPARAMETERS)}
    given = {}

    def mine(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
             chosen_lengths, rejected_lengths, beta, label_smoothing, lam, gamma, nll_weight):
        given.update((name, value) for name, value in locals().items() if name != "given")
        return policy_rejected_logps.mean(), {}

    expected = settings | {"chosen_lengths": len(row["chosen"]) + 1,
                           "rejected_lengths": len(row["rejected"]) + 1}
    for kind, model in (("policy", policy), ("ref", reference)):
        for side in ("chosen", "rejected"):
            expected[f"{kind}_{side}_logps"] = float(
                sequence_logps(model, [row["prompt"]], [row[side]]))
    dpo_train(policy, reference, [row], loss=mine, lr=1e-4, precision="float32", **settings)
    assert given.keys() == {*TENSORS, *HYPERPARAMETERS}
    assert {name: torch.as_tensor(value).item() for name, value in given.items()} == \
        pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"gamma": 0.7}, {"beta": 0.3}, {"beta": 0.3, "lam": 0.0}])
def test_a_setting_with_a_default_of_its_own_keeps_it_unless_given(make_model, make_pairs,
                                                                   settings):
    given = {}

    def mine(policy_chosen_logps, label_smoothing, gamma=9.0, beta=7.0, lam=5.0):
        given.update(gamma=gamma, beta=beta, lam=lam, label_smoothing=label_smoothing)
        return -policy_chosen_logps.mean(), {}

    dpo_train(make_model(), None, make_pairs(3), loss=mine, **settings)
    assert given == {"gamma": 9.0, "beta": 7.0, "lam": 5.0,
                     "label_smoothing": DPOConfig.label_smoothing} | settings


def test_a_partial_function_and_a_module_are_losses(make_model, copy_of, make_pairs, weights_equal):
    class Weighted(torch.nn.Module):
        def forward(self, policy_chosen_logps, policy_rejected_logps, chosen_lengths,
                    rejected_lengths, beta, gamma=0.25):
            return simpo_loss(policy_chosen_logps, policy_rejected_logps, chosen_lengths,
                              rejected_lengths, beta, gamma)

    start, rows, settings = make_model(), make_pairs(8), {"lr": 1e-3, "beta": 3.0, "batch_size": 4}
    expected, *figures = dpo_train(copy_of(start), None, rows, loss="simpo", gamma=0.25, **settings)
    for loss in (partial(simpo_loss, gamma=0.25), Weighted()):
        found, *others = dpo_train(copy_of(start), None, rows, loss=loss, **settings)
        assert weights_equal(found, expected) and others == figures


@pytest.mark.parametrize("result", [torch.tensor(1.0), (torch.tensor(1.0),), (1.0, {}),
                                    (torch.zeros(3), {}), None])
def test_what_is_not_a_loss_and_its_metrics_is_refused(make_model, make_pairs, result):
    with pytest.raises(ValueError, match=r"a loss must return \(loss, metrics\)"):
        dpo_train(make_model(), None, make_pairs(3), loss=lambda policy_chosen_logps: result)


@pytest.mark.parametrize(("loss", "setting", "value"), [
    ("dpo", "lam", 3.0), ("ipo", "label_smoothing", 0.0), ("simpo", "nll_weight", 0.5),
    ("orpo", "gamma", 1.0), ("kto", "lam", 0.0), ("cdpo", "desirable_weight", 1.0)])
def test_a_setting_that_the_loss_does_not_use_is_refused(make_model, copy_of, make_pairs, loss,
                                                         setting, value):
    message = f"{setting}={value} would change nothing: the loss {loss} does not use it"
    with pytest.raises(ValueError, match=message):
        dpo_train(copy_of(make_model()), make_model(), make_pairs(3), loss=loss, **{setting: value})


def test_a_setting_that_a_loss_of_ones_own_does_not_use_is_refused_with_its_name(make_model,
                                                                                 make_pairs):
    def mine(policy_chosen_logps):
        raise AssertionError

    with pytest.raises(ValueError, match=r"lam=3\.0 would .* the loss .*mine does not use"):
        dpo_train(make_model(), None, make_pairs(3), loss=mine, lam=3.0)


def test_a_loss_that_asks_for_what_nothing_offers_is_told_what_there_is(make_model, make_pairs):
    def colourful(policy_chosen_logps, colour):
        raise AssertionError

    there_are = ", ".join((*TENSORS, *HYPERPARAMETERS))
    with pytest.raises(ValueError, match="colourful has a parameter 'colour', which is not "
                                         f"available: there are {there_are}$"):
        dpo_train(make_model(), None, make_pairs(3), loss=colourful)


def test_an_unknown_loss_is_told_which_there_are(make_model, copy_of, make_pairs):
    there_are = ", ".join((*LOSSES, "kto"))
    with pytest.raises(ValueError, match=rf"loss='dop' must be one of {there_are} \("):
        dpo_train(copy_of(make_model()), make_model(), make_pairs(3), loss="dop")


def test_a_run_of_another_loss_is_not_resumed(make_model, make_pairs, tmp_path):
    settings = {**ALL_SET, "out": str(tmp_path)}
    dpo_train(make_model(), None, make_pairs(3), loss="simpo", **settings)
    for other in ("orpo", simpo_loss):
        with pytest.raises(ValueError, match="begun with loss=simpo"):
            dpo_train(make_model(), None, make_pairs(3), loss=other, resume=True, **settings)


def test_a_loss_by_its_name_has_the_settings_of_its_recipe_unless_given(
        make_model, copy_of, make_pairs, weights_equal, monkeypatch):
    settings = {"lr": 2e-3, "beta": 3.0, "gamma": 0.25, "batch_size": 4}
    monkeypatch.setitem(RECIPES, "simpo", Recipe("loss", {"DPOConfig": settings}, "simpo"))
    start, rows = make_model(), make_pairs(8)

    def train(loss, **given):
        return dpo_train(copy_of(start), None, rows, loss=loss, **given)[0]

    assert weights_equal(train("simpo"), train(simpo_loss, **settings))
    for given in ({"lr": 1e-3}, {"beta": 1.0}, {"gamma": 0.0, "batch_size": 8}):
        assert weights_equal(train("simpo", **given), train(simpo_loss, **{**settings, **given}))
        assert not weights_equal(train("simpo", **given), train("simpo"))


# --- defaults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "settings"), [
    (["--loss", "hinge"], {"loss": "hinge"}), ([], combined(["world"], DPOConfig))])
def test_it_does_what_the_command_does(make_model, copy_of, make_pairs, weights_equal, typed,
                                       settings):
    reference, rows = make_model(), make_pairs(40)
    (command,) = parse("", typed, DPOConfig)
    policy, losses, margins = dpo_train(copy_of(reference), reference, rows, **settings)
    as_commanded, *expected = dpo_train(copy_of(reference), reference, rows, **vars(command))
    assert weights_equal(policy, as_commanded) and [losses, margins] == expected


def test_defaults_are_those_of_the_config():
    parameters = inspect.signature(dpo_train).parameters
    for name in ("num_epochs", "lr", "beta"):
        assert parameters[name].default in (None, getattr(DPOConfig(), name))  # None: the recipe's


# --- bad input ------------------------------------------------------------------------------------


def test_the_same_object_as_policy_and_reference_raises(make_model, make_pairs):
    model = make_model()
    with pytest.raises(ValueError, match="same object"):
        dpo_train(model, model, make_pairs(3))


@pytest.mark.parametrize("settings", [{"ff_dim": 128}, {"num_heads": 4}, {"max_seq_len": 32}])
def test_shapes_that_differ_raise(make_model, make_pairs, settings):
    with pytest.raises(ValueError, match="differ in shape"):
        dpo_train(make_model(), make_model(**settings), make_pairs(3))


def test_bad_rows_raise(make_model, copy_of, make_pairs):
    reference = make_model()
    tie = {"prompt": "a", "chosen": "b", "rejected": "b"}
    with pytest.raises(DataError, match=r"row 1.*identical"):
        dpo_train(copy_of(reference), reference, [*make_pairs(1), tie])
    incomplete = [*make_pairs(1), {"prompt": "a", "chosen": "b"}]
    message = "row 1.*accepted: rejected, dispreferred.*found are prompt, chosen"
    with pytest.raises(DataError, match=message):
        dpo_train(copy_of(reference), reference, incomplete)
    with pytest.raises(DataError, match=message):
        evaluate_preference_accuracy(copy_of(reference), reference, incomplete)


def test_a_beta_that_is_not_positive_raises(make_model, copy_of, make_pairs):
    with pytest.raises(ValueError, match="beta=0"):
        dpo_train(copy_of(make_model()), make_model(), make_pairs(3), beta=0)


def test_package_offers_what_it_lists_and_nothing_else():
    assert Counter(dpo.__all__) == Counter({name: 1 for name in dpo.__all__ if getattr(dpo, name)})
    with pytest.raises(AttributeError, match="nothing_such"):
        dpo.nothing_such  # noqa: B018


def test_a_pair_that_is_identical_once_truncated_is_left_out_and_counted(make_model, make_reward,
                                                                         copy_of, make_pairs,
                                                                         capsys, weights_equal):
    reference, rows = make_model(), make_pairs(8)
    cut = {"prompt": "p", "chosen": "a" * 70 + "b", "rejected": "a" * 70 + "c"}
    for train in (lambda rows: dpo_train(copy_of(reference), reference, rows)[0],
                  lambda rows: train_reward_model(make_reward(), rows, 1)[0]):
        expected = train(rows)
        capsys.readouterr()
        found = train([*rows[:3], cut, *rows[3:], cut])
        assert weights_equal(found, expected)
        assert "identical once truncated: 2 of 10 rows (the first: [3, 9])" in \
            capsys.readouterr().out
        with pytest.raises(DataError, match="every pair is identical once truncated"):
            train([cut])
