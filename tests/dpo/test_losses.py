"""The family of preference losses: each against its paper and TRL, its limits, exact optima."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from dpo.loss import LOSSES, dpo_loss, ipo_loss, kto_loss, kto_reference_point, robust_dpo_loss

NAMES = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps",
         "chosen_lengths", "rejected_lengths")
BETA, E, LAM, NLL, GAMMA = 0.3, 0.2, 1.5, 0.7, 0.4  # none is a default
SETTINGS = {"beta": BETA, "label_smoothing": E, "lam": LAM, "nll_weight": NLL, "gamma": GAMMA}
each_loss = pytest.mark.parametrize("name", LOSSES)


def rows(seed=0, B=5, **changes):
    """All that a loss on pairs may ask for, (B,) each, float64."""
    g = torch.Generator().manual_seed(seed)
    logps = -8 * torch.rand(4, B, dtype=torch.float64, generator=g)
    lengths = torch.randint(1, 6, (2, B), generator=g)
    return dict(zip(NAMES, (*logps, *lengths), strict=True)) | changes


def start(chosen=0.0, rejected=0.0):
    """policy == reference and chosen == rejected, so every margin is 0; then the policy moves."""
    given = rows()
    logps, lengths = given["policy_chosen_logps"], given["chosen_lengths"]
    return dict(zip(NAMES, (logps + chosen, logps + rejected, logps, logps, lengths, lengths),
                    strict=True))


def takes(name):
    return inspect.signature(LOSSES[name]).parameters


def call(name, given, **settings):
    given = SETTINGS | given | settings
    return LOSSES[name](**{key: given[key] for key in takes(name)})


def gradients(name, given, **settings):
    """The loss, and its gradients in the log-probabilities of chosen and rejected, (B,) each."""
    policy = [given[key].clone().requires_grad_() for key in NAMES[:2]]
    loss = call(name, given | dict(zip(NAMES, policy, strict=False)), **settings)[0]
    return loss.detach(), *torch.autograd.grad(loss, policy)


# --- against the papers ---------------------------------------------------------------------------


def s(x):
    return 1 / (1 + math.exp(-x))


def papers(p, q, u, v, n, m):
    """Each loss of one pair: log pi of chosen and rejected, log ref, lengths."""
    c, r, d = p - u, q - v, (p - u) - (q - v)
    P, Q = math.exp(p / n), math.exp(q / m)
    return {
        "dpo": -math.log(s(BETA * d)),
        "ipo": (d - 1 / (2 * BETA)) ** 2,
        "hinge": max(0, 1 - BETA * d),
        "cdpo": -(1 - E) * math.log(s(BETA * d)) - E * math.log(s(-BETA * d)),
        "robust_dpo": (E * math.log(s(-BETA * d)) - (1 - E) * math.log(s(BETA * d))) / (1 - 2 * E),
        "apo_zero": 1 - s(BETA * c) + s(BETA * r),
        "apo_down": 1 + s(BETA * c) - s(BETA * d),
        "dpop": -math.log(s(BETA * (d - LAM * max(0, u - p)))),
        "length_normalised_dpo": -math.log(s(BETA * (c / n - r / m))),
        "dpo_nll": -math.log(s(BETA * d)) - NLL * p / n,
        "simpo": -math.log(s(BETA * p / n - BETA * q / m - GAMMA)),
        "orpo": -math.log(P) - LAM * math.log(s(math.log((P / (1 - P)) / (Q / (1 - Q))))),
    }


@each_loss
@pytest.mark.parametrize("seed", range(4))
def test_the_formula_of_the_paper_pair_by_pair(name, seed):
    given = rows(seed)
    values = [papers(*pair)[name] for pair in zip(*(x.tolist() for x in given.values()),
                                                  strict=True)]
    assert call(name, given)[0].item() == pytest.approx(sum(values) / len(values), abs=1e-9)


@each_loss
def test_the_value_at_policy_equal_to_reference(name):
    given = start()
    nll = -(given["policy_chosen_logps"] / given["chosen_lengths"]).mean().item()
    expected = {"ipo": 1 / (4 * BETA ** 2), "hinge": 1, "apo_zero": 1, "apo_down": 1,
                "simpo": math.log(1 + math.exp(GAMMA)), "dpo_nll": math.log(2) + NLL * nll,
                "orpo": LAM * math.log(2) + nll}.get(name, math.log(2))
    assert call(name, given)[0].item() == pytest.approx(expected, abs=1e-12)


# --- the signs of the gradients -------------------------------------------------------------------


@each_loss
def test_chosen_goes_up_and_rejected_down_at_the_start(name):
    _, chosen, rejected = gradients(name, start())
    assert (rejected > 0).all()
    # apo_down wants both down, but at the start its two pulls on the chosen response cancel
    assert (chosen == 0).all() if name == "apo_down" else (chosen < 0).all()


@each_loss
def test_elsewhere_only_three_push_the_chosen_down_and_two_the_rejected_up(name):
    _, chosen, rejected = gradients(name, rows(B=200))
    assert bool((chosen > 0).any()) == (name in {"ipo", "cdpo", "apo_down"})
    assert bool((rejected < 0).any()) == (name in {"ipo", "cdpo"})


IPO_TARGET, CDPO_TARGET = 0.5, math.log((1 - E) / E)  # of the margin, beta D


@pytest.mark.parametrize(("name", "margin", "sign"), [
    ("ipo", IPO_TARGET - 0.01, -1), ("ipo", IPO_TARGET + 0.01, 1), ("cdpo", CDPO_TARGET - 0.01, -1),
    ("cdpo", CDPO_TARGET + 0.01, 1), ("hinge", 0.99, -1), ("hinge", 1.01, 0)])
def test_past_its_target_the_gradient_turns_round_and_hinges_ends(name, margin, sign):
    _, chosen, rejected = gradients(name, start(chosen=margin / BETA))
    assert (chosen.sign() == sign).all()
    torch.testing.assert_close(rejected, -chosen)


def test_apo_down_pushes_the_chosen_down_once_the_rejected_is_down():
    _, chosen, rejected = gradients("apo_down", start(rejected=-3.0))
    assert (chosen > 0).all() and (rejected > chosen).all()


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "setting"), [
    ("cdpo", "label_smoothing"), ("robust_dpo", "label_smoothing"), ("dpop", "lam"),
    ("dpo_nll", "nll_weight")])
def test_at_zero_it_is_dpo(name, setting):
    for value, dpo in zip(gradients(name, rows(), **{setting: 0.0}), gradients("dpo", rows()),
                          strict=True):
        torch.testing.assert_close(value, dpo, rtol=1e-12, atol=0)


def test_simpo_without_gamma_is_length_normalised_dpo_without_a_reference():
    given = rows(**dict.fromkeys(NAMES[2:4], torch.zeros(5, dtype=torch.float64)))
    torch.testing.assert_close(call("simpo", given, gamma=0.0),
                               call("length_normalised_dpo", given), rtol=1e-12, atol=0)


@pytest.mark.parametrize("e", [0.0, 0.1, 0.45])
def test_the_mean_of_robust_dpo_over_flipped_labels_is_dpo_on_the_right_ones(e):
    w, r, u, v = list(rows().values())[:4]
    mean = ((1 - e) * robust_dpo_loss(w, r, u, v, BETA, e)[0]
            + e * robust_dpo_loss(r, w, v, u, BETA, e)[0])
    torch.testing.assert_close(mean, dpo_loss(w, r, u, v, BETA)[0], rtol=1e-12, atol=0)


# --- optima known exactly -------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "e"), [(dpo_loss, 0.0), (robust_dpo_loss, 0.2), (ipo_loss, 0.0)])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_optimum_on_a_bandit_is_ref_times_exp_reward_over_beta(loss, e, beta):
    """All ordered pairs of 4 answers, each as often as it is so labelled.

    DPO: P_ij = s(r_i - r_j), Bradley-Terry.  Robust DPO: the same, a share e of the labels flipped.
    IPO: P_ij = 1/2 + r_i - r_j; each pair then wants D = (P_ij - P_ji) / (2 beta), which is
    (r_i - r_j) / beta, and one policy gives it to all of them.
    """
    reward = torch.tensor([0.2, -0.1, 0.05, -0.15], dtype=torch.float64)
    ref = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    i, j = (~torch.eye(4, dtype=torch.bool)).nonzero().T
    gap = reward[i] - reward[j]
    share = 0.5 + gap if loss is ipo_loss else torch.sigmoid(gap)
    share = (1 - e) * share + e * (1 - share)
    setting = {"label_smoothing": e} if e else {}
    logits = ref.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12,
                                  tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        policy = logits.log_softmax(0)
        losses = [loss(policy[a], policy[b], ref[a], ref[b], beta, **setting)[0]
                  for a, b in zip(i[:, None], j[:, None], strict=True)]
        total = share @ torch.stack(losses)
        total.backward()
        return total
    optimizer.step(closure)
    torch.testing.assert_close(logits.detach().softmax(0), (ref + reward / beta).softmax(0),
                               rtol=0, atol=1e-6)


# --- defaults, metrics, refusals, far from the reference ------------------------------------------


@each_loss
def test_the_defaults(name):
    expected = {"beta": 0.1, "label_smoothing": 0.1, "lam": 5.0, "nll_weight": 1.0, "gamma": 0.5}
    expected |= {"length_normalised_dpo": {"beta": 5.0}, "simpo": {"beta": 2.0},
                 "orpo": {"lam": 0.1}}.get(name, {})
    for setting in takes(name).keys() - set(NAMES):
        assert takes(name)[setting].default == expected[setting]


@each_loss
def test_metrics(name):
    given = torch.tensor([[-1.0, -1, -2, -3], [-2, -3, -2, -1], *[[-2] * 4] * 2, *[[2] * 4] * 2])
    loss, metrics = call(name, dict(zip(NAMES, given.requires_grad_(), strict=True)))
    assert loss.requires_grad and loss.shape == ()
    assert metrics.keys() == {
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps/chosen", "logps/rejected"} | ({"nll_loss"} if name in {"dpo_nll", "orpo"} else set())
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert metrics["rewards/accuracies"] == 0.625  # two right, a tie, one wrong
    assert (metrics["logps/chosen"], metrics["logps/rejected"]) == (-1.75, -2.0)
    assert metrics.get("nll_loss", 0.875) == 0.875
    margin = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    torch.testing.assert_close(metrics["rewards/margins"], margin)
    log_odds = [x - math.log(1 - math.exp(x)) for x in (-0.5, -1.0)]
    expected = {"length_normalised_dpo": BETA / 8, "simpo": BETA / 8,
                "orpo": LAM * (log_odds[0] - log_odds[1]) / 4}
    assert margin.item() == pytest.approx(expected.get(name, BETA / 4))


@each_loss
@pytest.mark.parametrize("wrong", [torch.zeros(5, 7), torch.zeros(0), torch.tensor(0.0),
                                   torch.zeros(4), torch.zeros(5, dtype=torch.long)])
def test_what_is_no_vector_of_log_probabilities_is_refused(name, wrong):
    for key in (key for key in NAMES[:4] if key in takes(name)):
        with pytest.raises(ValueError, match=rf"loss: .*{key}"):
            call(name, rows(**{key: wrong}))


@pytest.mark.parametrize(("setting", "values"), [
    ("beta", [0.0, -1.0, math.nan, math.inf]), ("label_smoothing", [0.5, -0.1, math.nan]),
    *[(key, [torch.zeros(5), torch.tensor([1, 2, 0, 4, 5]), torch.full((5,), math.nan),
             torch.ones(1), torch.ones(5, 1)]) for key in NAMES[4:]]])
@each_loss
def test_a_setting_or_a_length_out_of_range_is_refused(name, setting, values):
    for value in values if setting in takes(name) else []:
        with pytest.raises(ValueError, match=rf"loss: .*{setting.split('_')[-1]}"):
            call(name, rows(), **{setting: value})


@each_loss
def test_huge_log_ratios_have_a_finite_loss_and_gradient_in_float32(name):
    """Log-ratios of 0 and +-1e4, responses of one token and of many; ORPO's P rounds to 0 and 1."""
    ends, lengths = torch.tensor([0.0, -1e-8, -1e4]), torch.tensor([1.0, 100.0])
    given = torch.cartesian_prod(*[ends] * 4, lengths, lengths).T
    loss, *both = gradients(name, dict(zip(NAMES, given, strict=True)))
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in both)


# --- KTO ------------------------------------------------------------------------------------------


def kto(rho, labels, z=0.0, *settings):
    rho = torch.as_tensor(rho).requires_grad_()
    z = torch.tensor(z, requires_grad=True)
    loss, metrics = kto_loss(rho - 7, torch.full_like(rho, -7), torch.tensor(labels), z, *settings)
    assert not any(value.requires_grad for value in metrics.values())
    gradient, none = torch.autograd.grad(loss, (rho, z), allow_unused=True)
    assert none is None  # z carries no gradient
    return loss.item(), metrics, gradient


def test_kto_response_by_response():
    rho, labels, z = [2.0, -1.0, 0.5, -3.0], [True, True, False, False], 0.25
    loss, metrics, gradient = kto(torch.tensor(rho, dtype=torch.float64), labels, z, 0.5, 1.5, 0.25)
    signs = (1, 1, -1, -1)
    values = [w * (1 - s(0.5 * sign * (x - z)))
              for x, w, sign in zip(rho, (1.5, 1.5, 0.25, 0.25), signs, strict=True)]
    assert loss == pytest.approx(sum(values) / 4, abs=1e-9)
    assert gradient.sign().tolist() == [-sign for sign in signs]  # desirable up, undesirable down
    assert {key: value.item() for key, value in metrics.items()} == pytest.approx({
        "rewards/signed": 0.5 * (2 - 1 - 0.5 + 3) / 4, "rewards/accuracies": 0.5,
        "reference_point": 0.25, "logps": -7.375})


def test_kto_is_a_half_at_policy_equal_to_reference_and_its_weights_scale_the_two_kinds():
    loss, metrics, plain = kto([0.0, 0.0], [True, False])
    assert (loss, metrics["rewards/accuracies"].item()) == (0.5, 0.5)
    loss, _, weighted = kto([0.0, 0.0], [True, False], 0.0, 0.1, 3.0, 0.5)
    assert loss == (3.0 + 0.5) / 4
    torch.testing.assert_close(weighted, plain * torch.tensor([3.0, 0.5]))


def test_kto_is_finite_far_from_the_reference_in_float32():
    loss, _, gradient = kto([1e4, -1e4, 1e4, -1e4], [True, True, False, False])
    assert loss == 0.5 and gradient.isfinite().all()


def test_the_reference_point_is_a_mean_log_ratio_never_negative_without_gradient():
    policy = torch.tensor([-1.0, -4.0, -3.0], requires_grad=True)
    point = kto_reference_point(policy, torch.tensor([-3.0, -3.0, -5.0]))
    assert (point.item(), point.shape, point.requires_grad) == (1.0, (), False)
    assert kto_reference_point(policy, torch.zeros(3)).item() == 0.0


def test_kto_refuses():
    two, yes, z = torch.zeros(2), torch.tensor([True, True]), torch.tensor(0.0)
    for labels in (torch.ones(2), torch.ones(2, dtype=torch.long), yes[:1], yes[:, None]):
        with pytest.raises(ValueError, match=r"labels.*torch\.bool"):
            kto_loss(two, two, labels, z)
    for policy, beta in ((two[None], 0.1), (two[:0], 0.1), (two.long(), 0.1), (two, math.nan)):
        with pytest.raises(ValueError, match=r"^kto_loss: (policy_logps|beta)"):
            kto_loss(policy, two, yes, z, beta)
    with pytest.raises(ValueError, match="empty"):
        kto_reference_point(two[:0], two[:0])


# --- TRL as a second witness ----------------------------------------------------------------------


def trl(w, x, u, v, n, m):
    """What TRL's trainers compute (read at 1.10; written anew), of chosen w and rejected x."""
    c, r, mean_w, mean_x = w - u, x - v, w / n, x / m
    right, flipped = F.softplus(BETA * torch.stack([r - c, c - r]))
    logit_w, logit_x = (mean - torch.log1p(-mean.exp()) for mean in (mean_w, mean_x))
    return {
        "dpo": right, "hinge": (1 + BETA * (r - c)).clamp(min=0),
        "robust_dpo": ((1 - E) * right - E * flipped) / (1 - 2 * E),
        "apo_zero": torch.sigmoid(-BETA * c) + torch.sigmoid(BETA * r),
        "apo_down": torch.sigmoid(BETA * c) + torch.sigmoid(BETA * (r - c)),
        "length_normalised_dpo": F.softplus(BETA * (r / m - c / n)),
        # CPOTrainer at cpo_alpha=0; else it adds imitation of the chosen response
        "simpo": F.softplus(BETA * (mean_x - mean_w + GAMMA / BETA)),
        # one token: TRL divides both log-ratios by their lengths, the paper neither
        "ipo": (c / n - r / m - 0.5 / BETA) ** 2,
        # one token: TRL's imitation is a mean over the batch's tokens (ORPO's: the prompts' too)
        "dpo_nll": right - NLL * w.sum() / n.sum(),
        "orpo": LAM * F.softplus(logit_x - logit_w) - w.sum() / n.sum(),
    }  # no cDPO, which its sigmoid has dropped, and no DPOP


@pytest.mark.parametrize("name", trl(*rows().values()))
def test_trl_agrees(name):
    ones = dict.fromkeys(NAMES[4:], torch.ones(5)) if name in {"ipo", "dpo_nll", "orpo"} else {}
    given = rows(1, **ones)
    torch.testing.assert_close(call(name, given)[0], trl(*given.values())[name].mean(), rtol=1e-12,
                               atol=0)


def test_trl_agrees_on_kto_which_it_computes_for_the_two_kinds_apart():
    w, x, u, v, *_ = rows().values()
    z = (v - w).mean()  # above 0
    desirable, undesirable = torch.sigmoid(BETA * torch.stack([z - w + u, x - v - z]))
    both = torch.cat([1.5 * desirable, 0.5 * undesirable])
    ours, _ = kto_loss(torch.cat([w, x]), torch.cat([u, v]), torch.arange(10) < 5,
                       kto_reference_point(v, w), BETA, 1.5, 0.5)
    torch.testing.assert_close(ours, both.mean(), rtol=1e-12, atol=0)
