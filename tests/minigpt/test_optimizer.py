import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from minigpt.optimizer import Optimizer
from minigpt.settings import TrainingConfig


class Weight(nn.Module):
    """A 'model' with one matrix and one vector."""

    def __init__(self, value=1.0):
        super().__init__()
        self.matrix = nn.Parameter(torch.full((2, 3), value))
        self.vector = nn.Parameter(torch.full((3,), value))

    def sum(self):
        return self.matrix.sum() + self.vector.sum()


def optimizer_of(model, num_steps=1, **settings):
    """An optimizer at the beginning of its first step."""
    optimizer = Optimizer({"model": model}, TrainingConfig(**settings), num_steps)
    optimizer.begin_step(0, lambda: "this was the first step")
    return optimizer


# --- the schedule --------------------------------------------------------------------------------


def test_schedule_rises_linearly_and_falls_as_a_cosine_to_its_end():
    optimizer = optimizer_of(Weight(), 100, warmup=0.1, final_lr=0.2)
    shares = [optimizer.schedule(step) for step in range(101)]
    assert shares[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert shares[10] == pytest.approx(1.0)
    assert shares[55] == pytest.approx((1 + 0.2) / 2)  # half-way down
    assert shares[100] == pytest.approx(0.2)
    assert all(a > b for a, b in pairwise(shares[10:]))


def test_schedule_of_a_single_step_is_the_peak():
    assert optimizer_of(Weight()).schedule(0) == 1.0


def test_learning_rate_of_a_step_is_peak_times_schedule():
    optimizer = optimizer_of(Weight(), 10, lr=3e-3)
    for step in range(10):
        optimizer.begin_step(step, lambda: "")
        assert optimizer.learning_rate == pytest.approx(3e-3 * optimizer.schedule(step))


def test_each_model_has_its_own_peak_rate():
    models = {"policy": Weight(), "value": Weight()}
    config = TrainingConfig(lr=0.1, warmup=0.0)
    optimizer = Optimizer(models, config, 1, lrs={"value": 0.5})
    optimizer.begin_step(0, lambda: "")
    optimizer.backward(sum(model.sum() for model in models.values()))
    optimizer.step()
    for model, lr in zip(models.values(), (0.1, 0.5), strict=True):
        # Adam's first step has the length of the rate
        assert torch.allclose(1 - model.matrix, torch.tensor(lr), atol=1e-5)


# --- the mean of the weights ----------------------------------------------------------------------


def train(average, num_steps=8, from_step=0, state=None, model=None):
    """The weights after each step, and in the end; the gradient alternates between two lengths."""
    model = model or Weight()
    config = TrainingConfig(lr=0.1, average=average, final_lr=1.0, warmup=0.0, max_grad_norm=0)
    optimizer = Optimizer({"model": model}, config, num_steps)
    if state is not None:
        optimizer.load_state_dict(state)
    path, states = [], []
    for step in range(from_step, num_steps):
        optimizer.begin_step(step, lambda: "")
        optimizer.backward((1 + step % 2) * model.sum())
        optimizer.step()
        path.append(model.matrix.detach().clone())
        optimizer.end_step(step + 1)
        states.append(copy.deepcopy((optimizer.state_dict(), model)))
    return path, model.matrix.detach(), states


@pytest.mark.parametrize(("average", "averaged"), [(1.0, 8), (0.75, 6), (0.5, 4), (0.1, 1)])
def test_the_result_is_the_mean_of_the_last_weights(average, averaged):
    path, result, _ = train(average)
    assert torch.allclose(result, torch.stack(path[-averaged:]).mean(0), atol=1e-6)
    steps = [after - before for before, after in pairwise(path)]
    assert all((step < -0.08).all() for step in steps)  # a mean put in place early would lag


def test_without_averaging_the_last_weights_are_the_result():
    path, result, states = train(0.0)
    assert torch.equal(result, path[-1])
    assert "mean" not in states[-1][0]["state"][0]


@pytest.mark.parametrize("saved", [1, 3, 6])
def test_a_mean_that_was_saved_half_way_goes_on(saved):
    _, whole, states = train(0.75)
    state, model = states[saved - 1]
    _, resumed, _ = train(0.75, from_step=saved, state=state, model=model)
    assert torch.equal(resumed, whole)


def test_the_mean_of_bfloat16_weights_is_precise_and_stays_so():
    path, result, states = train(1.0, num_steps=400, model=Weight().bfloat16())
    expected = torch.stack(path).double().mean(0)
    assert torch.allclose(result.double(), expected, rtol=0.01)
    state, model = states[199]
    _, resumed, _ = train(1.0, 400, from_step=200, state=state, model=model)
    assert torch.equal(resumed, result)


# --- one step ------------------------------------------------------------------------------------


def test_weight_decay_pulls_matrices_and_leaves_vectors():
    model = Weight()
    optimizer = optimizer_of(model, lr=0.1, weight_decay=0.5, warmup=0.0)
    optimizer.backward(0.0 * model.sum())
    optimizer.step()
    assert torch.allclose(model.matrix, torch.tensor(1 - 0.1 * 0.5))
    assert torch.equal(model.vector, torch.ones(3))


def test_gradient_is_clipped_and_its_length_before_clipping_is_returned():
    model, seen = Weight(), []
    optimizer = optimizer_of(model, max_grad_norm=0.5)

    def note_gradient(*_):
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        seen.append(float(gradient.norm()))
    optimizer.adamw.register_step_pre_hook(note_gradient)
    optimizer.backward(4 * model.sum())
    assert optimizer.step() == pytest.approx(4 * 3.0)  # nine weights, each with gradient 4
    assert seen == pytest.approx([0.5], abs=1e-4)


def test_gradients_add_up_until_the_step_or_until_they_are_forgotten():
    model = Weight()
    optimizer = optimizer_of(model)
    optimizer.backward(model.sum())
    optimizer.backward(model.sum())
    assert torch.equal(model.vector.grad, torch.full((3,), 2.0))
    optimizer.zero_grad()
    assert model.vector.grad is None
    optimizer.backward(model.sum())
    optimizer.step()
    assert model.vector.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_raises_and_leaves_no_gradient(bad):
    model = Weight()
    optimizer = optimizer_of(model)
    with pytest.raises(FloatingPointError, match=r"the loss is .*this was the first step"):
        optimizer.backward(bad * model.sum())
    assert model.matrix.grad is None


def test_a_gradient_that_is_not_finite_raises_and_changes_no_weight():
    model = Weight(0.0)
    optimizer = optimizer_of(model)
    optimizer.backward(model.matrix.sum() + model.vector.sqrt().sum())  # infinite slope at 0
    message = r"gradient is not finite.*this was the first step"
    with pytest.raises(FloatingPointError, match=message):
        optimizer.step()
    assert torch.equal(model.matrix, torch.zeros(2, 3))
    assert torch.equal(model.vector, torch.zeros(3))


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "inside"), [("float32", "ieee"), ("bfloat16", "tf32")])
def test_a_gpu_multiplies_in_tf32_in_a_bfloat16_run_alone(precision, inside):
    """The switch is there without a GPU, too."""
    switch = torch.backends.cuda.matmul
    before, switch.fp32_precision = switch.fp32_precision, "ieee"
    try:
        optimizer = optimizer_of(Weight(), precision=precision)
        with pytest.raises(RuntimeError), optimizer.precision():
            assert switch.fp32_precision == inside
            raise RuntimeError
        assert switch.fp32_precision == "ieee"
    finally:
        switch.fp32_precision = before
