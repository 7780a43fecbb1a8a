import math

import pytest
import torch

from reward import bradley_terry_loss


def test_loss_is_log_2_where_the_model_cannot_tell():
    rewards = torch.randn(5)
    loss, metrics = bradley_terry_loss(rewards, rewards.clone())
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    assert float(metrics["accuracy"]) == 0.5 and float(metrics["margin"]) == 0.0


def test_loss_and_metrics_by_hand():
    loss, metrics = bradley_terry_loss(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 3.0, 1.0]))
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3)) + math.log(2)) / 3
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx((1 + 0 + 0.5) / 3)
    assert float(metrics["margin"]) == pytest.approx((1 - 3 + 0) / 3)
    assert float(metrics["mean_reward"]) == pytest.approx((2 + 0 + 1 + 1 + 3 + 1) / 6)


def test_min_and_max_reward_are_those_of_all_rewards():
    _, metrics = bradley_terry_loss(torch.tensor([-5.0, 0.0]), torch.tensor([1.0, 3.0]))
    assert float(metrics["min_reward"]) == -5.0
    assert float(metrics["max_reward"]) == 3.0


def test_gradient_pushes_chosen_up_and_rejected_down_by_the_probability_of_the_error():
    chosen = torch.tensor([0.5, -1.0], requires_grad=True)
    rejected = torch.tensor([0.0, 1.0], requires_grad=True)
    bradley_terry_loss(chosen, rejected)[0].backward()
    error = torch.sigmoid(rejected - chosen).detach() / 2
    torch.testing.assert_close(chosen.grad, -error)
    torch.testing.assert_close(rejected.grad, error)


def test_only_differences_enter():
    chosen, rejected = torch.randn(6), torch.randn(6)
    torch.testing.assert_close(bradley_terry_loss(chosen + 7, rejected + 7)[0],
                               bradley_terry_loss(chosen, rejected)[0])


def test_huge_margins_stay_finite():
    loss, _ = bradley_terry_loss(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert float(loss) == pytest.approx(1e4)


def test_metrics_carry_no_gradient():
    _, metrics = bradley_terry_loss(torch.zeros(2, requires_grad=True),
                                    torch.zeros(2, requires_grad=True))
    assert all(not value.requires_grad and value.dim() == 0 for value in metrics.values())


def test_shapes_that_differ_raise():
    with pytest.raises(ValueError, match=r"differ in shape.*'chosen_rewards': \(3,\), "
                                         r"'rejected_rewards': \(1,\)"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(1))


@pytest.mark.parametrize(("wrong", "words"), [
    (torch.zeros(3, 5), r"is \(3, 5\), but \(B,\)"), (torch.tensor(0.0), r"is \(\), but \(B,\)"),
    (torch.zeros(0), "is empty"),
    (torch.zeros(3, dtype=torch.long), r"is of torch.int64.*\.float\(\)")])
def test_what_is_not_a_vector_of_real_numbers_raises_naming_the_argument(wrong, words):
    for arguments, name in (((wrong, torch.zeros(3)), "chosen_rewards"),
                            ((torch.zeros(3), wrong), "rejected_rewards"),
                            ((wrong, wrong), "chosen_rewards")):
        with pytest.raises(ValueError, match=f"^bradley_terry_loss: {name} {words}"):
            bradley_terry_loss(*arguments)
