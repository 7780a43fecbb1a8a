import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dpo import dpo_loss

CLONE = Path(__file__).resolve().parents[2]
ARGUMENTS = tuple(inspect.signature(dpo_loss).parameters)[:4]


def logps(*shape):
    return -10 * torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# --- exact values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_loss_is_log_2_with_margin_0_at_policy_equal_to_reference(beta):
    chosen, rejected = logps(7), logps(7) - 1
    loss, metrics = dpo_loss(chosen, rejected, chosen.clone(), rejected.clone(), beta)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert float(metrics[name]) == 0.0
    assert float(metrics["rewards/accuracies"]) == 0.5


def test_loss_and_metrics_by_hand():
    loss, metrics = dpo_loss(torch.tensor([-10.0, -5.0]), torch.tensor([-12.0, -4.0]),
                             torch.tensor([-11.0, -5.0]), torch.tensor([-11.0, -6.0]), beta=0.5)
    margins = (0.5 * (1 - -1), 0.5 * (0 - 2))
    expected = sum(math.log(1 + math.exp(-margin)) for margin in margins) / 2
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx({
        "rewards/chosen": 0.25, "rewards/rejected": 0.25, "rewards/margins": 0.0,
        "rewards/accuracies": 0.5, "logps/chosen": -7.5, "logps/rejected": -8.0})


def test_gradient_raises_chosen_and_lowers_rejected_by_beta_times_the_probability_of_the_error():
    chosen, rejected = logps(6).requires_grad_(), (logps(6) - 2).requires_grad_()
    ref_chosen, ref_rejected = torch.full((6,), -4.0), torch.full((6,), -5.0)
    dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3)[0].backward()
    margins = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected)).detach()
    torch.testing.assert_close(chosen.grad, -0.3 * torch.sigmoid(-margins) / 6)
    torch.testing.assert_close(rejected.grad, -chosen.grad)
    assert (chosen.grad < 0).all()


def test_swapping_chosen_and_rejected_mirrors_margins_and_accuracy():
    args = [logps(9), logps(9) * 0.9, logps(9) * 1.1, logps(9) * 0.8]
    args[1] = args[1].flip(0)
    _, there = dpo_loss(*args)
    _, back = dpo_loss(args[1], args[0], args[3], args[2])
    assert float(there["rewards/margins"]) == pytest.approx(-float(back["rewards/margins"]))
    accuracy = float(back["rewards/accuracies"])
    assert float(there["rewards/accuracies"]) == pytest.approx(1 - accuracy)
    assert float(there["rewards/chosen"]) == float(back["rewards/rejected"])


def test_beta_stands_inside_the_sigmoid():
    args = torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([0.0]), torch.tensor([0.0])
    for beta in (0.01, 0.1, 1.0, 10.0):
        expected = math.log(1 + math.exp(-2 * beta))
        assert float(dpo_loss(*args, beta=beta)[0]) == pytest.approx(expected, abs=1e-6)


def test_huge_log_ratios_stay_finite():
    zero = torch.tensor([0.0])
    loss, _ = dpo_loss(torch.tensor([-1e5]), zero, zero, zero, 1.0)
    assert float(loss) == pytest.approx(1e5)


def test_loss_has_a_gradient_and_metrics_have_none():
    policy = logps(3).requires_grad_()
    loss, metrics = dpo_loss(policy, logps(3), logps(3), logps(3))
    assert loss.requires_grad and loss.dim() == 0
    assert all(not value.requires_grad and value.dim() == 0 for value in metrics.values())


@pytest.mark.parametrize("odd", range(4))
def test_shapes_that_differ_raise(odd):
    args = [torch.zeros(3)] * 4
    args[odd] = torch.zeros(1)  # would broadcast in silence
    message = rf"differ in shape.*'{ARGUMENTS[odd]}': \(1,\)"
    with pytest.raises(ValueError, match=message) as error:
        dpo_loss(*args)
    assert str(error.value).count("(3,)") == 3


@pytest.mark.parametrize("odd", range(4))
@pytest.mark.parametrize(("wrong", "words"), [
    (torch.zeros(3, 5), r"is \(3, 5\), but one number for each response.*sum"),
    (torch.zeros(3, 1), r"is \(3, 1\), but one number"), (torch.tensor(0.0), r"is \(\), but one"),
    (torch.zeros(0), "is empty"),
    (torch.zeros(3, dtype=torch.long), r"is of torch.int64.*\.float\(\)")])
def test_what_is_not_a_vector_of_real_numbers_raises_naming_the_argument(odd, wrong, words):
    args = [torch.zeros(3)] * 4
    args[odd] = wrong
    with pytest.raises(ValueError, match=rf"^dpo_loss: {ARGUMENTS[odd]} {words}"):
        dpo_loss(*args)


def test_four_arguments_that_are_all_wrong_in_the_same_way_raise_too():
    for wrong in (torch.zeros(3, 5), torch.zeros(0), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"^dpo_loss: policy_chosen_logps is"):
            dpo_loss(*[wrong] * 4)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_not_positive_raises(beta):
    with pytest.raises(ValueError, match=f"beta={beta}"):
        dpo_loss(*[torch.zeros(3)] * 4, beta=beta)


# --- a bandit small enough to enumerate -----------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_dpo_reaches_the_closed_form_optimum_on_a_bandit(beta):
    """pi*(y) ~ ref(y) exp(r(y) / beta), to 1e-4 in every probability.

    The labels are those of Bradley-Terry, of all pairs.
    """
    reward = torch.tensor([0.3, -0.2, 0.0, 0.5, -0.4], dtype=torch.float64)
    ref = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    optimum = torch.softmax(ref.log() + reward / beta, 0)
    logits = ref.log().clone().requires_grad_()
    first, second = torch.tensor([(i, j) for i in range(5) for j in range(5) if i != j]).unbind(1)
    # how often a pair is drawn, and then labelled so
    weight = ref[first] * ref[second] * torch.sigmoid(reward[first] - reward[second])

    def population_loss():
        logps, ref_logps = logits.log_softmax(0), ref.log()
        losses = [dpo_loss(logps[i, None], logps[j, None], ref_logps[i, None], ref_logps[j, None],
                           beta)[0]
                  for i, j in zip(first, second, strict=True)]
        return (weight * torch.stack(losses)).sum() / weight.sum()

    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10,
                                  tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = population_loss()
        loss.backward()
        return loss
    optimizer.step(closure)
    assert (optimum - ref).abs().max() > 0.03
    torch.testing.assert_close(logits.detach().softmax(0), optimum, rtol=0, atol=1e-4)


# --- in a notebook, anywhere ----------------------------------------------------------------------


def test_import_works_beside_a_data_package_of_ones_own_and_needs_torch_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("mine = True\n")
    code = """
import sys
import torch
before = set(sys.modules)
from dpo import dpo_loss
loss, metrics = dpo_loss(*[torch.zeros(2)] * 4)
added = {name.split(".")[0] for name in set(sys.modules) - before}
assert not {"data", "tqdm", "numpy", "sft", "reward", "ppo", "lessons"} & added, added
assert added <= set(sys.stdlib_module_names) | {"torch", "dpo", "minigpt"}, added
import data
assert data.mine
print(round(float(loss), 4))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", str(CLONE)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "0.6931"), done.stderr


def test_beta_is_a_tenth_by_default():
    logps = [torch.tensor([value]) for value in (-1.0, -2.0, -3.0, -1.0)]
    assert torch.equal(dpo_loss(*logps)[0], dpo_loss(*logps, beta=0.1)[0])
    assert not torch.equal(dpo_loss(*logps)[0], dpo_loss(*logps, beta=0.2)[0])
