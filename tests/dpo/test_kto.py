import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from data import DataError
from data.examples import unpaired_examples
from dpo import dpo_train, kto_train, main
from dpo.evaluate import evaluate_label_accuracy
from dpo.kto import reference_point, weights_of
from dpo.train import DPOConfig
from minigpt import sequence_logps
from minigpt.batching import Batches
from minigpt.errors import UserError
from minigpt.recipes import RECIPES, Recipe
from minigpt.run_folder import read_history
from sft import sft_train

FIXED = {"lr": 1e-3, "beta": 0.5, "batch_size": 10, "precision": "float32"}


def taken_apart(pairs):
    return [{"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for row in pairs for side in ("chosen", "rejected")]


def labelled(*labels):
    """A row with a prompt of its own for each label."""
    return [{"prompt": f"{number}?", "completion": f"{number} " + ("thanks" if good else "idiot"),
             "label": good} for number, good in enumerate(labels)]


def logps_of(model, rows, others=None):
    return sequence_logps(model, [row["prompt"] for row in rows],
                          [row["completion"] for row in others or rows])


# --- training -------------------------------------------------------------------------------------


def test_training_beats_its_start_on_heldout_rows(make_model, copy_of, make_pairs):
    pairs = make_pairs(200)
    rows = [{"prompt": row["prompt"], "response": row[side]}
            for row in pairs[:150] for side in ("chosen", "rejected")]
    reference, _ = sft_train(make_model(spread=1), rows, 3, lr=5e-3, batch_size=25)
    policy, losses, signed = kto_train(copy_of(reference), reference, taken_apart(pairs[:150]), 2,
                                       **FIXED | {"lr": 2e-3, "batch_size": 20})
    assert losses[0] == pytest.approx(0.5, abs=1e-4) and signed[0] == pytest.approx(0, abs=1e-4)
    assert len(losses) == len(signed) == 30 and losses[-1] < 0.4 and signed[-1] > 0.3
    assert evaluate_label_accuracy(policy, reference, taken_apart(pairs[150:])) > 0.9


def test_pairs_are_taken_apart(make_model, copy_of, make_pairs, weights_equal):
    reference, pairs = make_model(), make_pairs(12)
    policy, *figures = kto_train(copy_of(reference), reference, pairs, 2, **FIXED)
    apart, *expected = kto_train(copy_of(reference), reference, taken_apart(pairs), 2, **FIXED)
    assert weights_equal(policy, apart) and figures == expected
    assert len(figures[0]) == 6  # 24 rows in batches of 10, twice


def test_the_first_loss_is_a_half_and_nothing_is_rewarded_yet(make_model, copy_of, tmp_path):
    reference = make_model()
    policy, losses, signed = kto_train(copy_of(reference), reference,
                                       labelled(*[True, False] * 5), **FIXED, out=str(tmp_path))
    assert losses == pytest.approx([0.5], abs=1e-5) and signed == pytest.approx([0], abs=1e-4)
    assert not policy.training
    names = {"loss", "grad_norm", "learning_rate", "epoch", "global_step", "num_tokens",
             "rewards/signed", "rewards/accuracies", "reference_point", "logps"}
    assert names <= read_history(tmp_path).keys()


def test_a_good_row_becomes_more_likely_and_a_bad_one_less(make_model, copy_of):
    reference, rows = make_model(spread=1), labelled(True, False)
    policy, losses, _ = kto_train(copy_of(reference), reference, rows, 5, **FIXED)
    good, bad = (logps_of(policy, rows) - logps_of(reference, rows)).tolist()
    assert good > 0.1 and bad < -0.1 and losses[-1] < losses[0]
    swapped = [{**row, "label": not row["label"]} for row in rows]
    policy, _, _ = kto_train(copy_of(reference), reference, swapped, 5, **FIXED)
    bad, good = (logps_of(policy, rows) - logps_of(reference, rows)).tolist()
    assert good > 0.1 and bad < -0.1


def test_as_a_loss_of_dpo_it_is_the_same(make_model, copy_of, make_pairs, weights_equal):
    reference, pairs = make_model(), make_pairs(12)
    settings = {"batch_size": 6, "desirable_weight": 1.5, "undesirable_weight": 0.5, "seed": 3}
    policy, *figures = kto_train(copy_of(reference), reference, pairs, 2, 1e-3, 0.5, **settings)
    as_loss, *expected = dpo_train(copy_of(reference), reference, pairs, 2, 1e-3, 0.5, loss="kto",
                                   **settings)
    assert weights_equal(policy, as_loss) and figures == expected


def test_it_has_the_settings_of_its_recipe_unless_given(make_model, copy_of, make_pairs,
                                                        weights_equal, monkeypatch):
    settings = {"lr": 2e-3, "beta": 0.3, "batch_size": 6}
    monkeypatch.setitem(RECIPES, "kto", Recipe("loss", {"DPOConfig": settings}, "kto"))
    reference, pairs = make_model(), make_pairs(6)

    def train(**given):
        return kto_train(copy_of(reference), reference, pairs, **given)[0]

    assert weights_equal(train(), train(**settings))
    assert not weights_equal(train(), train(lr=1e-3))
    assert weights_equal(train(lr=1e-3), train(**settings | {"lr": 1e-3}))


def test_resumed_kto_repeats_the_unbroken_run_bit_for_bit(make_model, copy_of, make_pairs,
                                                          check_resume):
    reference = make_model()

    def train(out, resume):
        return kto_train(copy_of(reference), reference, make_pairs(20), 2, **FIXED, save_every=2,
                         out=out, resume=resume)[0]
    check_resume(train)


def test_a_last_batch_of_one_row_is_trained_on(make_model, copy_of, tmp_path):
    reference, rows = make_model(), labelled(True, False, True, False, True)
    _, losses, _ = kto_train(copy_of(reference), reference, rows, **FIXED | {"batch_size": 2},
                             out=str(tmp_path))
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    tokens = sum(len(row["prompt"]) + len(row["completion"]) + 2 for row in rows)  # SEP and EOS
    assert read_history(tmp_path)["num_tokens"][-1] == tokens


# --- the reference point --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(make_model):
    """A policy that is near uniform and a reference that is not: z is far above 0."""
    return make_model(2, spread=2), make_model(1)


TEN = labelled(*[True, False] * 5)


def test_the_reference_point_by_hand(apart):
    """All prompts differ, so every row's mismatched answer is the next row's."""
    policy, reference = apart
    examples, mismatched_examples, _ = unpaired_examples(TEN, 64)
    others = [*TEN[1:], TEN[0]]
    ref_logps = logps_of(reference, TEN, others)
    log_ratios = logps_of(policy, TEN, others) - ref_logps
    batches, mismatched = Batches(examples, 10), Batches(mismatched_examples, 10)
    for parts in ([range(10)], [[4, 0, 7], [2], [5, 1]], [[3]]):
        count = sum(map(len, parts))
        z = reference_point(policy, mismatched, ref_logps, [
            replace(batches.collate(part), weight=len(part) / count) for part in parts])
        mean = float(log_ratios[[i for part in parts for i in part]].mean())
        assert float(z) == pytest.approx(max(0.0, mean), abs=1e-4)
        assert z.shape == () and not z.requires_grad
    away = reference_point(reference, mismatched, logps_of(policy, TEN, others),
                           [batches.collate(range(10))])
    assert float(log_ratios.mean()) > 1 and float(away) == 0  # never below


def test_microbatches_share_the_reference_point_of_their_batch(apart, copy_of, tmp_path):
    policy, reference = apart
    policies, figures, points = [], [], []
    for accumulate in (1, 4):  # 4: of 3, 3, 3 and 1 rows
        out = str(tmp_path / str(accumulate))
        trained, *found = kto_train(copy_of(policy), reference, TEN, 3, **FIXED | {"beta": 0.05},
                                    accumulate=accumulate, out=out)
        policies.append(trained)
        figures.append([*found[0], *found[1]])
        points.append(read_history(out)["reference_point"])
    assert points[0][0] > 1
    assert points[1] == pytest.approx(points[0], rel=1e-4)
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)
    for whole, parts in zip(*(policy.parameters() for policy in policies), strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)


def test_the_first_loss_far_from_the_reference_by_hand(apart, copy_of):
    policy, reference = apart
    others = [*TEN[1:], TEN[0]]
    beta = 0.05
    z = float((logps_of(policy, TEN, others) - logps_of(reference, TEN, others)).mean())
    rho = (logps_of(policy, TEN) - logps_of(reference, TEN)).tolist()
    signs = [1 if row["label"] else -1 for row in TEN]
    values = [1 / (1 + math.exp(sign * beta * (x - z))) for sign, x in zip(signs, rho, strict=True)]
    _, losses, signed = kto_train(copy_of(policy), reference, TEN, **FIXED | {"beta": beta})
    assert losses == pytest.approx([sum(values) / 10], abs=1e-4)
    mean = sum(sign * beta * x for sign, x in zip(signs, rho, strict=True)) / 10
    assert signed == pytest.approx([mean], abs=1e-4)


# --- the weights of good and bad ------------------------------------------------------------------


@pytest.mark.parametrize(("good", "bad", "settings", "expected"), [
    (3, 3, {}, (1, 1)), (3, 1, {}, (1, 3)), (2, 5, {}, (2.5, 1)),
    (3, 1, {"desirable_weight": 2.0}, (2, 3)), (3, 1, {"undesirable_weight": 0.5}, (1, 0.5)),
    (2, 5, {"desirable_weight": 1.0, "undesirable_weight": 4.0}, (1, 4))])
def test_the_weights_even_out_unequal_numbers_unless_they_are_set(good, bad, settings, expected):
    labels = torch.tensor([True] * good + [False] * bad)
    desirable, undesirable = weights_of(labels, DPOConfig(**settings))
    assert (desirable, undesirable) == expected
    if not settings:
        assert desirable * good == undesirable * bad == max(good, bad)


def test_the_first_loss_of_unequal_numbers(make_model, copy_of):
    reference, rows = make_model(), labelled(True, True, False, True)
    for settings, weights in (({}, (1, 3)), ({"desirable_weight": 2.0}, (2, 3)),
                              ({"desirable_weight": 0.5, "undesirable_weight": 0.25}, (0.5, 0.25))):
        _, losses, _ = kto_train(copy_of(reference), reference, rows, **FIXED, **settings)
        assert losses == pytest.approx([0.5 * (3 * weights[0] + weights[1]) / 4], abs=1e-5)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "settings", "words"), [
    (TEN, {"batch_size": 1}, "batch_size=1 leaves KTO no reference point"),
    (labelled(True, True, True), {}, "every row is labelled good: KTO needs some of each"),
    (labelled(False, False), {}, "every row is labelled bad"),
    ([{**row, "prompt": "?"} for row in TEN], {}, "every row has the same prompt"),
    ([], {}, "there are no rows")])
def test_what_gives_no_reference_point_or_one_label_is_refused(make_model, copy_of, rows, settings,
                                                               words, tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match=words) as error:
        kto_train(copy_of(model), model, rows, **FIXED | settings, out=str(tmp_path / "run"))
    assert isinstance(error.value, DataError) == (not settings)
    assert not (tmp_path / "run").exists()


def test_the_command_refuses_batches_of_one_row_before_it_reads_or_trains_anything(tmp_path,
                                                                                  monkeypatch):
    monkeypatch.setattr(main, "load_task", None)
    with pytest.raises(UserError, match="batch_size=1 leaves KTO no reference point"):
        main.main(["--loss", "kto", "--batch-size", "1", "--out", str(tmp_path)])


def test_rows_that_fit_with_one_label_alone_are_refused(make_model, copy_of):
    model, long = make_model(), {"prompt": "p" * 64, "completion": "a", "label": False}
    with pytest.raises(DataError, match="every row is labelled good"):
        kto_train(copy_of(model), model, [*labelled(True, True), long])


def test_the_same_object_as_policy_and_reference_is_refused(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="same object"):
        kto_train(model, model, TEN)


# --- what is measured -----------------------------------------------------------------------------


def test_label_accuracy_by_brute_force(apart, copy_of):
    policy, reference = apart
    rows = labelled(True, False, False, True, False)
    ratios = (logps_of(policy, rows) - logps_of(reference, rows)).tolist()
    judged = [SimpleNamespace(**row, ratio=ratio) for row, ratio in zip(rows, ratios, strict=True)]
    wins = [good.ratio > bad.ratio for good in judged if good.label
            for bad in judged if not bad.label]
    assert len(wins) == 6 and len(set(wins)) == 2
    assert evaluate_label_accuracy(policy, reference, rows) == pytest.approx(sum(wins) / 6)
    assert evaluate_label_accuracy(policy, copy_of(policy), rows) == 0.5
    assert math.isnan(evaluate_label_accuracy(policy, reference, labelled(True, True)))
