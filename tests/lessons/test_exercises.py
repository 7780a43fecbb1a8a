"""The exercises: the library's functions pass, and each classic mistake gets words of its own."""

import doctest
import math
import runpy
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import minigpt.kl
import ppo.advantages
import ppo.loss
import ppo.rollout
from dpo import dpo_loss, ipo_loss, simpo_loss
from lessons import pretrained
from lessons.__main__ import main
from lessons.course import LESSONS, names
from lessons.exercises import check, first_fault
from lessons.limit import best_of_n_kl
from minigpt.errors import UserError
from minigpt.metrics import masked
from minigpt.model import attention
from reward import bradley_terry_loss
from sft import sft_loss

EXERCISES = [name for name in names() if (LESSONS / name / "check.py").exists()]
CHECKS = {}
for name in EXERCISES:
    CHECKS |= runpy.run_path(str(LESSONS / name / "check.py"))["CHECKS"]
of_every_exercise = pytest.mark.parametrize("name", EXERCISES)


def fault(name, function):
    return first_fault(function, CHECKS[name], Path(__file__))


# --- what is right --------------------------------------------------------------------------------


def causal_attention(q, k, v):
    T = q.shape[1]
    return attention(q, k, v, torch.full((T, T), -math.inf).triu(1))


def sft(logits, ids, mask):
    logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return sft_loss(F.pad(logps, (1, 0)), mask)[0]


def dpo(policy, ref, mask, beta):
    policy, ref = ((masked(logps, mask).sum(-1)).unbind(1) for logps in (policy, ref))
    return dpo_loss(*policy, *ref, beta)[0]


def last_column(mask):
    return (mask * torch.arange(mask.shape[1])).argmax(1, keepdim=True)


def token_rewards(scores, logps, ref_logps, mask, beta):
    kl = masked(minigpt.kl.kl_k1(logps, ref_logps), mask)
    return ppo.rollout.token_rewards(scores[:, None], kl, beta, last_column(mask))


def best_and_worst(scores, finished):
    best = scores.masked_fill(~finished, -math.inf).max(1)
    worst = scores.masked_fill(~finished, math.inf).min(1)
    columns = torch.stack([best.indices, worst.indices], 1)
    return columns.masked_fill((best.values <= worst.values)[:, None], -1)


def response_logps(logits, ids, prompt_lengths, lengths):
    columns = torch.arange(ids.shape[1])
    is_real = columns < lengths[:, None]
    batch = pretrained.Batch(ids, is_real, is_real & (columns >= prompt_lengths[:, None]))
    return pretrained.response_logps(
        lambda ids, logits_to_keep, **_: SimpleNamespace(logits=logits[:, logits_to_keep]), batch)


LIBRARY = {
    "causal_attention": causal_attention,
    "sft_loss": sft,
    "bradley_terry_loss": lambda *rewards: bradley_terry_loss(*rewards)[0],
    "gae": lambda *given, **settings: ppo.advantages.gae(*given, **settings)[0],
    "ppo_loss": lambda *given, **settings: ppo.loss.ppo_loss(*given, **settings)[0],
    "dpo_loss": dpo,
    "token_rewards": token_rewards,
    "best_of_n_kl": best_of_n_kl,
    "kl_k1": minigpt.kl.kl_k1,
    "kl_k3": minigpt.kl.kl_k3,
    "optimum": lambda ref_logps, rewards, beta: (ref_logps + rewards / beta).log_softmax(-1),
    "rloo_advantages": ppo.advantages.rloo_advantages,
    "grpo_advantages": ppo.advantages.grpo_advantages,
    "best_and_worst": best_and_worst,
    "pareto": lambda points: ~((points[None] >= points[:, None]).all(-1)
                               & (points[None] > points[:, None]).any(-1)).any(1),
    "ipo_loss": lambda margins, beta: ipo_loss(margins, *torch.zeros(3, len(margins)), beta)[0],
    "simpo_loss": lambda logps, lengths, beta, gamma:
        simpo_loss(*logps.unbind(1), *lengths.unbind(1), beta, gamma)[0],
    "response_logps": response_logps,
}


def test_every_lesson_has_an_exercise_and_every_function_a_solution():
    assert list(EXERCISES) == names() and len(names()) >= 14
    assert CHECKS.keys() == LIBRARY.keys() == MISTAKES.keys()


@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_own_function_passes(name):
    assert fault(name, LIBRARY[name]) is None


@of_every_exercise
def test_the_worked_numbers_are_those_of_the_library(name):
    for function, written in runpy.run_path(str(LESSONS / name / "exercise.py")).items():
        if function in LIBRARY:
            example = doctest.DocTestParser().get_doctest(
                written.__doc__, {"torch": torch, function: LIBRARY[function]}, function, None, 0)
            assert example.examples
            assert doctest.DocTestRunner().run(example).failed == 0


@of_every_exercise
def test_an_exercise_ships_unwritten_and_says_so(name):
    right, said = check(name)
    assert not right and "not written yet" in said and "exercise.py" in said


# --- what people get wrong ------------------------------------------------------------------------


def attends(hidden=1, scale=0.5, axis=-1, mask_first=True):
    """Attention over T = 5 bytes whose K = 4 and that hides what is `hidden` places ahead."""
    mask = torch.ones(5, 5).triu(hidden).bool()

    def attention(q, k, v):
        scores = q @ k.transpose(1, 2) * scale
        if mask_first:
            return scores.masked_fill(mask, -math.inf).softmax(axis) @ v
        return scores.softmax(axis).masked_fill(mask, 0) @ v
    return attention


def shifted(labels_by=1, mask_by=1, reduce=lambda costs, mask: costs[mask].mean()):
    """The SFT loss with labels and mask shifted by so much against the logits."""
    def loss(logits, ids, mask):
        T = ids.shape[1] - max(labels_by, mask_by)
        labels, mask = ids[:, labels_by:][:, :T], mask[:, mask_by:][:, :T]
        return reduce(F.cross_entropy(logits[:, :T].mT, labels, reduction="none"), mask)
    return loss


def advantages(decay=lambda gamma, lam: gamma * lam, backwards=True, padding=0.0, bootstrap=1.0):
    """GAE, with how much of the padding's value and of the next value at all it reads."""
    def gae(rewards, values, mask, gamma, lam):
        after = F.pad((values * (mask + padding * ~mask))[:, 1:], (0, 1))
        deltas = ((rewards + gamma * bootstrap * after - values) * mask).unbind(1)
        found = list(accumulate(deltas[::-1] if backwards else deltas,
                                lambda before, delta: delta + decay(gamma, lam) * before))
        return torch.stack(found[::-1] if backwards else found, 1) * mask
    return gae


def surrogate(combine=torch.minimum, sign=-1, turn=1, low=True, ratio_of=torch.exp):
    def loss(logps, old_logps, advantages, mask, clip):
        ratio = ratio_of(turn * (logps - old_logps))
        clipped = ratio.clamp(1 - clip if low else None, 1 + clip)
        return sign * (combine(ratio * advantages, clipped * advantages) * mask).sum() / mask.sum()
    return loss


def log_ratios(policy, ref, mask):
    """(B,) each, of the chosen and the rejected response."""
    return ((policy - ref) * mask).sum(-1).unbind(1)


def paid_at(column_of, kl_coeff=1.0):
    """The score paid in another column, or the KL at another price."""
    def rewards(scores, logps, ref_logps, mask, beta):
        kl = kl_coeff * beta * (logps - ref_logps) * mask
        return (-kl).scatter_add(1, column_of(mask), scores[:, None])
    return rewards


def score_in_place_of_kl(scores, logps, ref_logps, mask, beta):
    return (-beta * (logps - ref_logps) * mask).scatter(1, last_column(mask), scores[:, None])


def all_kl_at_the_end(scores, logps, ref_logps, mask, beta):
    kl = ((logps - ref_logps) * mask).sum(1, keepdim=True)
    return torch.zeros(mask.shape).scatter(1, last_column(mask), scores[:, None] - beta * kl)


def size_for_log_ratio(scores, logps, ref_logps, mask, beta):
    return token_rewards(scores, (logps - ref_logps).abs(), 0 * logps, mask, beta)


def best_of(choose=lambda up_to, below, n: up_to**n - below**n, descending=False,
            kl=lambda q, p: torch.xlogy(q, q / p).sum(), grouped=torch.unique):
    def best_of_n_kl(scores, n):
        p = grouped(scores.double(), return_counts=True)[1] / len(scores)
        p = p.flip(0) if descending else p
        return kl(choose(p.cumsum(0), p.cumsum(0) - p, n), p)
    return best_of_n_kl


def response_sums(first=0, shift=1, keep=lambda columns, ids, lengths: columns < lengths):
    """Sums from another token on, or of what another mask keeps."""
    def logps(logits, ids, prompt_lengths, lengths):
        columns = torch.arange(ids.shape[1])
        mask = keep(columns, ids, lengths[:, None]) & (columns >= prompt_lengths[:, None] + first)
        before = logits[:, :ids.shape[1] - shift].log_softmax(-1)
        return (before.gather(2, ids[:, shift:, None])[..., 0] * mask[:, shift:]).sum(1)
    return logps


simpo = LIBRARY["simpo_loss"]

MISTAKES = {  # function: (of the sentence that it gets, what somebody wrote)
    "causal_attention": [
        ("every byte sees the whole row", attends(hidden=5)),
        ("one byte too many", attends(hidden=2)),
        ("sees nothing at all", attends(hidden=0)),
        ("put on after the softmax?", attends(mask_first=False)),
        ("or over the queries?", attends(axis=-2)),
        ("division by sqrt(K) is missing", attends(scale=1.0)),
        ("divided by K", attends(scale=0.25)),
        ("the key of byte t that asks", lambda q, k, v: attends()(k, q, v)),
    ],
    "sft_loss": [
        ("minus the log-probability", lambda *given: -sft(*given)),
        ("it is a sum", shifted(reduce=lambda costs, mask: costs[mask].sum())),
        ("divides by all tokens", shifted(reduce=lambda costs, mask: (costs * mask).mean())),
        ("which that column has just read", shifted(labels_by=0, mask_by=0)),
        ("made twice", shifted(labels_by=2, mask_by=2)),
        ("mask is one late", shifted(mask_by=0)),
        ("never learn to stop", shifted(mask_by=2)),
        ("where does the mask come in?", shifted(reduce=lambda costs, mask: costs.mean())),
        ("a mean over rows", shifted(reduce=lambda costs, mask: ((costs * mask).sum(1)
                                                                 / mask.sum(1)).mean())),
        ("no gradient flows", lambda *given: sft(*given).item()),
    ],
    "bradley_terry_loss": [
        ("it returns the shape (5,)", lambda c, r: -F.logsigmoid(c - r)),
        ("a sum over the pairs", lambda c, r: -F.logsigmoid(c - r).sum()),
        ("you return that probability", lambda c, r: -torch.sigmoid(c - r).mean()),
        ("chosen minus rejected", lambda c, r: -F.logsigmoid(r - c).mean()),
        ("not on their ratio", lambda c, r: -(c / (c + r)).log().mean()),
        ("taken over the margins", lambda c, r: -F.logsigmoid((c - r).mean())),
        ("rounded to 0", lambda c, r: -torch.sigmoid(c - r).log().mean()),
        ("anything between the margin", lambda c, r: -F.logsigmoid((c - r) / 2).mean()),
    ],
    "gae": [
        ("these are the returns", lambda *given: ppo.advantages.gae(*given)[1]),
        ("the value of the padding?", advantages(padding=1.0)),
        ("not 0", lambda *given: LIBRARY["gae"](*given) + ~given[2]),
        ("from the last token to the first", advantages(backwards=False)),
        ("have changed places", lambda r, v, m, gamma, lam: LIBRARY["gae"](r, v, m, lam, gamma)),
        ("delta alone", advantages(bootstrap=0.0)),
        ("discounted by both", advantages(decay=lambda gamma, lam: lam)),
        ("is lam where", advantages(decay=lambda gamma, lam: gamma * lam**2)),
    ],
    "ppo_loss": [
        ("the loss is minus it", surrogate(sign=1)),
        ("as if the ratio were 0", surrogate(ratio_of=lambda log_ratio: log_ratio, low=False)),
        ("divide by the number of these", lambda *given: LIBRARY["ppo_loss"](*given) * 8),
        ("applied before the sum?", lambda logps, old, given, mask, clip:
            LIBRARY["ppo_loss"](logps, old, given, mask | True, clip)),
        ("the other way round", surrogate(turn=-1)),
        ("you take the larger", surrogate(combine=torch.maximum)),
        ("Where is the term without the clip?", surrogate(combine=lambda plain, clipped: clipped)),
        ("goes on gaining", surrogate(combine=lambda plain, clipped: plain)),
        ("the two products with A", lambda logps, old, given, mask, clip:
            -((logps - old).exp().clamp(max=1 + clip) * given)[mask].mean()),
        ("the clip has two sides", surrogate(low=False)),
        ("is eps the argument", lambda logps, old, given, mask, clip:
            LIBRARY["ppo_loss"](logps, old, given, mask, 0.2)),
    ],
    "dpo_loss": [
        ("a sum over the pairs", lambda *given: dpo(*given) * 3),
        ("you return a probability", lambda policy, ref, mask, beta: -torch.sigmoid(
            beta * torch.sub(*log_ratios(policy, ref, mask))).mean()),
        ("no scale of the loss", lambda policy, ref, mask, beta:
            beta * dpo(policy, ref, mask, 1.0)),
        ("is the reference subtracted", lambda policy, ref, *rest: dpo(policy, 0 * ref, *rest)),
        ("applied before the sum", lambda policy, ref, mask, beta:
            dpo(policy, ref, mask | True, beta)),
        ("chosen minus rejected", lambda policy, ref, mask, beta:
            dpo(policy.flip(1), ref.flip(1), mask.flip(1), beta)),
        ("yours 0.40", lambda policy, ref, mask, beta: dpo(
            *(logps / mask.sum(-1, keepdim=True) for logps in (policy, ref)), mask, beta)),
        ("yours 0.24", lambda policy, ref, mask, beta: dpo(policy / 5, ref / 5, mask, beta)),
        ("does beta multiply", lambda policy, ref, mask, beta: dpo(policy, ref, mask, 1.0)),
        ("multiplies both log-ratios", lambda policy, ref, mask, beta: -F.logsigmoid(
            beta * log_ratios(policy, ref, mask)[0] - log_ratios(policy, ref, mask)[1]).mean()),
        ("rounded to 0", lambda policy, ref, mask, beta: -torch.sigmoid(
            beta * torch.sub(*log_ratios(policy, ref, mask))).log().mean()),
        ("goes around the log sigmoid", lambda policy, ref, mask, beta: -F.logsigmoid(
            beta * torch.sub(*log_ratios(policy, ref, mask)).mean())),
        ("its gradient is not", lambda policy, ref, mask, beta: dpo(
            torch.stack([policy[:, 0], policy[:, 1].detach()], 1), ref, mask, beta)),
    ],
    "token_rewards": [
        ("in the last column", paid_at(lambda mask: torch.full((3, 1), 5))),
        ("one token late", paid_at(lambda mask: (last_column(mask) + 1).clamp(max=5))),
        ("on every token", lambda scores, logps, ref_logps, mask, beta:
            (scores[:, None] - beta * (logps - ref_logps)) * mask),
        ("multiplied by beta", lambda scores, logps, ref_logps, mask, beta:
            token_rewards(beta * scores, logps, ref_logps, mask, beta)),
        ("found from the mask", paid_at(lambda mask: mask.sum(1, keepdim=True) - 1)),
        ("pay a price of KL too", lambda scores, logps, ref_logps, mask, beta:
            (-beta * (logps - ref_logps)).scatter_add(1, last_column(mask), scores[:, None])),
        ("rewards drift", paid_at(last_column, kl_coeff=-1.0)),
        ("the whole price stands", all_kl_at_the_end),
        ("does not replace it", score_in_place_of_kl),
        ("pays beta = 0.5", paid_at(last_column, kl_coeff=2.0)),
        ("not its absolute value", size_for_log_ratio),
    ],
    "best_of_n_kl": [
        ("a difference of two powers", best_of(choose=lambda up_to, below, n: up_to**n)),
        ("changed round", best_of(kl=lambda q, p: (p * (p / q).log()).sum())),
        ("bits", lambda scores, n: best_of_n_kl(scores, n) / math.log(2)),
        ("Where is the mean over q?", lambda scores, n: math.log(n)),
        ("only a bound", lambda scores, n: math.log(n) - (n - 1) / n),
        ("q log q is 0 there", best_of(kl=lambda q, p: (q * (q / p).log()).sum())),
        ("the worst of n", best_of(descending=True)),
        ("wherever they stand?", best_of(grouped=torch.unique_consecutive)),
    ],
    "kl_k1": [
        ("it returns the shape ()", lambda logps, ref: (logps - ref).mean()),
        ("pays for drift", lambda logps, ref: ref - logps),
        ("take no size", lambda logps, ref: (logps - ref).abs()),
        ("counted twice", lambda logps, ref: logps.exp() * (logps - ref)),
        ("in nats", lambda logps, ref: (logps - ref) / math.log(2)),
        ("returns nothing", lambda logps, ref: None),
    ],
    "kl_k3": [
        ("the -1 is missing", lambda logps, ref: (ref - logps).exp() - (ref - logps)),
        ("the u in the exponent?", lambda logps, ref: (ref - logps).expm1() + (ref - logps)),
        ("upside down", lambda logps, ref: (logps - ref).expm1() - (logps - ref)),
        ("this is k2", minigpt.kl.kl_k2),
        ("what is left must be k1", lambda logps, ref: minigpt.kl.kl_k3(logps, ref) * 2),
        ("loses its digits", lambda logps, ref: (ref - logps).exp() - 1 - (ref - logps)),
    ],
    "optimum": [
        ("these are probabilities", lambda ref, r, beta: (ref + r / beta).softmax(-1)),
        ("over the prompts", lambda ref, r, beta: (ref + r / beta).log_softmax(0)),
        ("where is Z", lambda ref, r, beta: ref + r / beta),
        ("as if the reference were not there", lambda ref, r, beta: (r / beta).log_softmax(-1)),
        ("beta divides the reward alone", lambda ref, r, beta: ((ref + r) / beta).log_softmax(-1)),
        ("with a plus", lambda ref, r, beta: (ref - r / beta).log_softmax(-1)),
        ("so it divides the reward", lambda ref, r, beta: (ref + r * beta).log_softmax(-1)),
        ("more than a float holds", lambda ref, r, beta: (ref.exp() * (r / beta).exp()
            / (ref.exp() * (r / beta).exp()).sum(-1, keepdim=True)).log()),
        ("must keep it", lambda ref, r, beta: (ref.clamp(min=-20) + r / beta).log_softmax(-1)),
        ("no policy has more", lambda ref, r, beta: (ref + r / 0.5).log_softmax(-1)),
    ],
    "rloo_advantages": [
        ("an advantage for each response", lambda scores: (scores - scores.mean(1, True)).mean(1)),
        ("not the other way round", lambda scores: -ppo.advantages.rloo_advantages(scores)),
        ("the k columns of a row", lambda scores: scores - scores.mean()),
        ("what the best one gains", lambda scores: scores),
        ("its own score among them", lambda scores: scores - scores.mean(1, keepdim=True)),
        ("RLOO does not divide", ppo.advantages.grpo_advantages),
        ("how many others are there?", lambda scores:
            (scores - scores.mean(1, True)) * scores.shape[1]),
        ("plain mean of the others", lambda scores: ppo.advantages.rloo_advantages(scores)
            * scores.abs().amax(1, keepdim=True)),
    ],
    "grpo_advantages": [
        ("an advantage for each response", lambda scores: scores.std(1)),
        ("not the other way round", lambda scores: -ppo.advantages.grpo_advantages(scores)),
        ("the k columns of a row", lambda scores: (scores - scores.mean()) / scores.std()),
        ("what the best one gains", lambda scores: scores / (scores.std(1, True) + 1e-4)),
        ("where is the division", lambda scores: scores - scores.mean(1, keepdim=True)),
        ("not by its square", lambda scores: (scores - scores.mean(1, True))
            / (scores.var(1, keepdim=True) + 1e-4)),
        ("divides the sum of squares by k", lambda scores: (scores - scores.mean(1, True))
            / (scores.std(1, correction=0, keepdim=True) + 1e-4)),
        ("own score included", lambda scores:
            ppo.advantages.rloo_advantages(scores) / (scores.std(1, keepdim=True) + 1e-4)),
        ("0 / 0", lambda scores: (scores - scores.mean(1, True)) / scores.std(1, keepdim=True)),
    ],
    "ipo_loss": [
        ("a sum over the pairs", lambda D, beta: (D - 1 / (2 * beta)).square().sum()),
        ("larger for a smaller beta", lambda D, beta: (D - beta / 2).square().mean()),
        ("half of that is the target", lambda D, beta: (D - 1 / beta).square().mean()),
        ("inside the square", lambda D, beta: (beta * D - 1 / (2 * beta)).square().mean()),
        ("nothing pulls", lambda D, beta: F.relu(1 / (2 * beta) - D).square().mean()),
        ("each pair is squared", lambda D, beta: (D.mean() - 1 / (2 * beta)).square()),
    ],
    "simpo_loss": [
        ("by its own length", lambda logps, lengths, beta, gamma:
            -F.logsigmoid(beta * (logps[:, 0] - logps[:, 1]) - gamma).mean()),
        ("which sign", lambda logps, lengths, beta, gamma:
            -F.logsigmoid(beta * -(logps / lengths).diff()[:, 0] + gamma).mean()),
        ("not times beta", lambda logps, lengths, beta, gamma:
            simpo(logps, lengths, beta, beta * gamma)),
        ("which of the two is column 0", lambda logps, lengths, beta, gamma:
            simpo(logps.flip(1), lengths.flip(1), beta, gamma)),
        ("a sum over the pairs", lambda *given: 3 * simpo(*given) if len(given[0]) == 3
            else simpo(*given)),
    ],
    "best_and_worst": [
        ("other way round", lambda scores, finished: best_and_worst(scores, finished).flip(1)),
        ("not the second", lambda scores, finished: scores.topk(2, 1).indices),
        ("whole answers", lambda scores, finished: best_and_worst(scores, finished | True)),
        ("score of 0", lambda scores, finished: best_and_worst(scores * finished, finished | True)),
        ("order of the columns", lambda scores, finished: torch.stack([
            scores.masked_fill(~finished, -math.inf).argmax(1),
            scores.masked_fill(~finished, math.inf).argmin(1)], 1)),
        ("has no pair", lambda scores, finished: torch.where(
            (finished.sum(1) < 2)[:, None], 0, best_and_worst(scores, finished))),
    ],
    "pareto": [
        ("dominated by itself", lambda points:
            ~(points[None] >= points[:, None]).all(-1).any(1)),
        ("higher is better", lambda points: LIBRARY["pareto"](-points)),
        ("the best sums", lambda points: points.sum(1) == points.sum(1).max()),
        ("is enough", lambda points: ~(points[None] > points[:, None]).all(-1).any(1)),
        ("do not dominate each other", lambda points: ~(
            (points[None] >= points[:, None]).all(-1)
            & ~torch.eye(len(points)).bool()).any(1)),
        ("by its number", lambda points: LIBRARY["pareto"](points[:, :2])),
    ],
    "response_logps": [
        ("one sum for each row", lambda *given: response_logps(*given).sum()),
        ("the sign", lambda *given: -response_logps(*given)),
        ("it is a mean", lambda *given: response_logps(*given) / (given[3] - given[2])),
        ("which it has just read", response_sums(shift=0)),
        ("both have the same id", response_sums(keep=lambda columns, ids, lengths: ids != 2)),
        ("padding is counted", response_sums(keep=lambda columns, ids, lengths: columns < 99)),
        ("tokens of the prompt are counted", response_sums(first=-9)),
        ("the last token of the prompt is counted", response_sums(first=-1)),
        ("the first token of the response is left out", response_sums(first=1)),
        ("of the logits as they are", lambda logits, *rest: response_logps(logits / 2, *rest)),
    ],
}


@pytest.mark.parametrize("name, said, wrong", [
    pytest.param(name, said, wrong, id=f"{name}: {said}")
    for name, mistakes in MISTAKES.items() for said, wrong in mistakes])
def test_a_classic_mistake_gets_the_sentence_that_is_about_it(name, said, wrong):
    assert said in (fault(name, wrong) or "it passes")


@pytest.mark.parametrize("name", MISTAKES)
def test_no_two_mistakes_get_the_same_words(name):
    said = [fault(name, wrong) for _, wrong in MISTAKES[name]]
    assert len(said) >= 5 and len(set(said)) == len(said)


# --- the command ----------------------------------------------------------------------------------

RIGHT = """
import torch.nn.functional as F
def bradley_terry_loss(chosen_rewards, rejected_rewards):
    return -F.logsigmoid(chosen_rewards - rejected_rewards).mean()
"""


def checked(tmp_path, capsys, source):
    """What the command prints about this source."""
    file = tmp_path / "mine.py"
    file.write_text(source, encoding="utf-8")
    main(["03", "--check", str(file)])
    return capsys.readouterr().out


def test_the_command_says_what_the_learner_has_and_what_comes_next(tmp_path, capsys):
    said = checked(tmp_path, capsys, RIGHT)
    assert said.startswith("bradley_terry_loss is right. ") and "Next: lesson 4" in said


@pytest.mark.parametrize("source, said", [
    (RIGHT.replace("mean", "sum"), "bradley_terry_loss: a sum over the pairs"),
    (RIGHT.replace("-F.", "-G."), "line 4: return -G.logsigmoid(chosen_rewards - rejected_rewards)"
                                  ".mean()\nNameError: name 'G' is not defined"),
    (RIGHT.replace("(chosen_rewards, ", "("), "takes 1 positional argument but 2 were given"),
    ("import nothing_of_the_kind", "line 1: import nothing_of_the_kind\nModuleNotFoundError"),
    ("def bradley_terry_loss(:", "SyntaxError"),
])
def test_a_mistake_is_one_sentence_or_one_line_and_its_error(tmp_path, capsys, source, said):
    with pytest.raises(SystemExit) as ended:
        checked(tmp_path, capsys, source)
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and said in printed
    assert "Traceback" not in printed and "check.py" not in printed


def test_what_is_written_may_change_its_arguments_and_return_a_plain_number():
    def in_place(chosen, rejected):
        return -F.logsigmoid(chosen.sub_(rejected)).mean()
    assert fault("bradley_terry_loss", in_place) is None
    assert fault("best_of_n_kl", lambda scores, n: float(best_of_n_kl(scores, n))) is None


def test_of_two_functions_the_first_may_be_right_already(tmp_path):
    source = (LESSONS / "08_when_it_goes_wrong" / "exercise.py").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        source.replace('raise NotImplementedError("write me")', "return logps - ref_logps", 1),
        encoding="utf-8")
    right, said = check("8", str(tmp_path / "mine.py"))
    assert not right and said.startswith("kl_k1 is right. kl_k3: not written yet")


def test_what_cannot_be_checked_is_an_error_that_says_why(tmp_path):
    (tmp_path / "empty.py").touch()
    with pytest.raises(UserError, match="has no function bradley_terry_loss"):
        check("03", str(tmp_path / "empty.py"))
    with pytest.raises(UserError, match="there is no file"):
        check("03", str(tmp_path / "nowhere.py"))
    with pytest.raises(UserError, match=r"lesson 77 has no exercise to check; these have: 01, 02"):
        check("77")


@pytest.mark.parametrize("options", [["--check"], ["03", "--quick", "--check"]])
def test_check_goes_with_a_lesson_and_with_no_other_option(options, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert "--check needs the number of a lesson" in capsys.readouterr().err
