import math

import pytest
import torch

from minigpt.kl import entropy, exact_kl, kl_k1, kl_k2, kl_k3

PI = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
REF = torch.tensor([0.2, 0.3, 0.1, 0.25, 0.15])
KL = float((PI * (PI / REF).log()).sum())


def test_exact_kl_and_entropy_equal_torch_distributions():
    p, q = torch.randn(4, 3, 50) * 3, torch.randn(4, 3, 50) * 3
    categorical = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(categorical(logits=p), categorical(logits=q))
    torch.testing.assert_close(exact_kl(p, q), expected)
    torch.testing.assert_close(entropy(p), categorical(logits=p).entropy())
    assert abs(float(exact_kl(PI.log(), REF.log())) - KL) < 1e-6
    assert exact_kl(p, p).abs().max() < 1e-5


def test_entropy_of_the_uniform_distribution_is_log_n():
    assert abs(float(entropy(torch.zeros(256))) - math.log(256)) < 1e-5


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_average_to_the_exact_kl(estimator):
    assert abs(float((PI * estimator(PI.log(), REF.log())).sum()) - KL) < 1e-6  # by enumeration
    generator = torch.Generator().manual_seed(0)
    x = torch.multinomial(PI, 100_000, replacement=True, generator=generator)
    estimates = estimator(PI.log()[x], REF.log()[x])
    assert abs(float(estimates.mean()) - KL) < 4 * float(estimates.std()) / math.sqrt(len(x))


def test_k1_with_samples_from_the_wrong_side_is_minus_the_other_kl():
    other = float((REF * (REF / PI).log()).sum())
    estimate = float((REF * kl_k1(PI.log(), REF.log())).sum())
    assert abs(estimate + other) < 1e-6


def test_k2_and_k3_are_never_negative_and_zero_only_where_the_two_agree():
    logps, ref_logps = -torch.rand(1000) * 5, -torch.rand(1000) * 5
    for estimator in (kl_k2, kl_k3):
        assert (estimator(logps, ref_logps) > 0).all()
        assert (estimator(logps, logps) == 0).all()
    assert (kl_k1(logps, ref_logps) < 0).any()


def test_k3_is_exact_near_0_and_never_negative():
    for exponent in range(-12, 3):
        for sign in (-1, 1):
            log_ratio = torch.tensor(sign * 10.0**exponent, dtype=torch.float64)
            x = float(log_ratio)
            series = x**2 / 2 + x**3 / 6 + x**4 / 24 + x**5 / 120  # exact where x is small
            expected = series if abs(x) < 1e-3 else math.exp(x) - 1 - x
            found = float(kl_k3(torch.zeros_like(log_ratio), log_ratio))
            assert found == pytest.approx(expected, rel=1e-3 if exponent > -8 else 2)
    log_ratios = torch.cat([torch.linspace(-30, 30, 100_001), torch.logspace(-12, 1, 10_001),
                            -torch.logspace(-12, 1, 10_001)])
    for dtype in (torch.float32, torch.float64):
        found = kl_k3(torch.zeros_like(log_ratios, dtype=dtype), log_ratios.to(dtype))
        assert (found >= 0).all()
        exact = kl_k3(torch.zeros_like(log_ratios, dtype=torch.float64), log_ratios.double())
        torch.testing.assert_close(found.double(), exact, rtol=1e-4,
                                   atol=1e-7 if dtype == torch.float32 else 1e-15)


def test_k3_varies_less_than_k1_where_the_two_are_close():
    noise = torch.randn(5, generator=torch.Generator().manual_seed(1))
    pi = torch.softmax(REF.log() + 0.1 * noise, 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.multinomial(pi, 20_000, replacement=True, generator=generator)
    k3, k1 = (estimator(pi.log()[x], REF.log()[x]) for estimator in (kl_k3, kl_k1))
    assert k3.std() < 0.2 * k1.std()


def test_the_three_estimators_by_hand():
    logps, ref_logps = torch.tensor([-1.0]), torch.tensor([-3.0])  # log pi/ref = 2
    assert float(kl_k1(logps, ref_logps)) == 2.0
    assert float(kl_k2(logps, ref_logps)) == 2.0  # 2^2 / 2
    assert float(kl_k3(logps, ref_logps)) == pytest.approx(math.exp(-2.0) - 1 + 2)
    assert float(kl_k2(torch.tensor([-1.0]), torch.tensor([-2.0]))) == 0.5
