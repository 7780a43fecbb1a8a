import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minigpt import EOS, encode, sequence_logps
from minigpt.batching import Batches, collate, tokenize_example, tokenize_examples, tokenize_prompt
from minigpt.logprobs import (
    entropy,
    exact_kl,
    kl_k1,
    kl_k2,
    kl_k3,
    logps_of_examples,
    response_logits,
    response_logps,
    token_logps,
)


class FreeLogits(nn.Module):
    """A stub whose logits are its only weight, so that a gradient with respect to each logit can be read off."""

    def __init__(self, rows, columns):
        super().__init__()
        self.free = nn.Parameter(torch.randn(rows, columns, 256))

    def hidden_states(self, token_ids, positions, visible, at):
        return self.free[at]

    def logits(self, hidden):
        return hidden


@torch.no_grad()
def slow_logps(model, prompt, response):
    """One token at a time, each from the text before it alone."""
    before, found = tokenize_prompt(prompt, 64), []
    for token in [*encode(response), EOS]:
        found.append(float(model(torch.tensor([before]))[0, -1].double().log_softmax(-1)[token]))
        before = [*before, token]
    return found


def test_token_log_probs_equal_a_slow_loop_over_single_tokens(make_model, texts):
    model = make_model()
    batch = collate([tokenize_example(p, [r], 64) for p, r in texts])
    logps = token_logps(model, batch.token_ids, batch.segments)
    assert logps.shape == batch.token_ids.shape
    assert (logps[~batch.response_mask] == 0).all()
    for (prompt, response), row, mask in zip(texts, logps, batch.response_mask, strict=True):
        torch.testing.assert_close(row[mask].double(), torch.tensor(slow_logps(model, prompt, response),
                                                                    dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_sequence_log_prob_is_the_sum_with_eos(make_model, texts):
    model = make_model()
    prompts, responses = zip(*texts, strict=True)
    expected = torch.tensor([sum(slow_logps(model, p, r)) for p, r in texts])
    torch.testing.assert_close(sequence_logps(model, prompts, responses), expected, rtol=1e-4, atol=1e-4)


def test_sequence_log_prob_of_text_equals_that_of_its_ids(make_model, texts):
    model = make_model()
    prompts, responses = zip(*texts, strict=True)
    ids = [[*encode(r), EOS] for r in responses]
    assert torch.equal(sequence_logps(model, prompts, responses), sequence_logps(model, prompts, ids))


def test_probabilities_of_all_one_token_responses_sum_to_one(make_model):
    model = make_model()
    total = sequence_logps(model, ["hi?"] * 256, [[token] for token in range(256)]).double().exp().sum()
    assert abs(float(total) - 1) < 1e-4


def test_log_probs_of_pairs_keep_first_and_second_apart(make_model):
    model = make_model()
    pairs = tokenize_examples([("q", pair) for pair in (("a", "bcd"), ("efghi", "j"), ("k", "l"))], 64)
    expected = torch.stack([sequence_logps(model, ["q", "q"], pair) for pair in (("a", "bcd"), ("efghi", "j"),
                                                                               ("k", "l"))])
    torch.testing.assert_close(logps_of_examples(model, Batches(pairs, 2)), expected, rtol=1e-5, atol=1e-5)


def test_responses_that_share_a_row_score_as_if_each_stood_alone(make_model, texts):
    model = make_model()
    examples = tokenize_examples([(prompt, (response, "z" + response, "b")) for prompt, response in texts], 64)
    expected = torch.stack([sequence_logps(model, [p] * 3, (r, "z" + r, "b")) for p, r in texts])
    assert expected.std() > 1
    for batch_size in (1, 7):
        torch.testing.assert_close(logps_of_examples(model, Batches(examples, batch_size)), expected, rtol=1e-5, atol=2e-5)


def test_a_pair_may_be_longer_than_max_seq_len_where_each_response_fits(make_model):
    model = make_model()
    pair = ("a" * 40, "b" * 40)
    examples = tokenize_examples([("q" * 20, pair), ("q" * 5, ("x", "y"))], 64)
    expected = sequence_logps(model, ["q" * 20] * 2, pair)
    torch.testing.assert_close(logps_of_examples(model, Batches(examples, 2))[0], expected, rtol=1e-5, atol=2e-5)


def test_gradient_of_a_pair_equals_that_of_its_two_rows(make_model):
    model, pair = make_model(), ("is it so?", ("yes, it is", "no"))
    gradients = []
    for examples in ([pair], [(pair[0], [response]) for response in pair[1]]):
        model.zero_grad()
        logps = response_logps(model, collate(tokenize_examples(examples, 64))).flatten()
        (2 * logps[0] - 3 * logps[1]).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for together, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("prompts", "responses", "message"), [
    (["a", "b"], ["c"], "shorter|argument 2"), ([], [], "empty"), (["a", "a" * 70], ["b", "c"], "room"),
    (["a", "a" * 40], ["b", "c" * 40], "row 1.*max_seq_len=64")])
def test_what_cannot_be_scored_raises(make_model, prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        sequence_logps(make_model(), prompts, responses)


def test_gradient_reaches_exactly_the_logits_that_predict_response_tokens(texts):
    batch = collate([tokenize_example(p, [r], 64) for p, r in texts])
    stub = FreeLogits(*batch.token_ids.shape)
    response_logps(stub, batch).sum().backward()
    predicts = torch.zeros_like(batch.response_mask)
    predicts[:, :-1] = batch.response_mask[:, 1:]  # position t predicts token t + 1
    assert (stub.free.grad[~predicts] == 0).all()
    assert (stub.free.grad[predicts].abs().sum(-1) > 0).all()
    labels = batch.token_ids[:, 1:].masked_fill(~batch.response_mask[:, 1:], -100)
    by_hand = torch.autograd.grad(F.cross_entropy(stub.free[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum"),
                                  stub.free)[0]
    torch.testing.assert_close(stub.free.grad, -by_hand)


def test_response_logits_are_the_models_own_at_the_place_before_each_token(make_model, texts):
    model = make_model()
    batch = collate([tokenize_example(p, [r], 64) for p, r in texts])
    torch.testing.assert_close(response_logits(model, batch.token_ids, batch.segments),
                               model(batch.token_ids)[:, :-1][batch.response_mask[:, 1:]])


# --- KL ---------------------------------------------------------------------------------------------------------------

PI, REF = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]), torch.tensor([0.2, 0.3, 0.1, 0.25, 0.15])
KL = float((PI * (PI / REF).log()).sum())


def test_exact_kl_and_entropy_equal_torch_distributions():
    p, q = torch.randn(4, 3, 50) * 3, torch.randn(4, 3, 50) * 3
    categorical = torch.distributions.Categorical
    torch.testing.assert_close(exact_kl(p, q), torch.distributions.kl_divergence(categorical(logits=p),
                                                                                 categorical(logits=q)))
    torch.testing.assert_close(entropy(p), categorical(logits=p).entropy())
    assert abs(float(exact_kl(PI.log(), REF.log())) - KL) < 1e-6
    assert exact_kl(p, p).abs().max() < 1e-5


def test_entropy_of_the_uniform_distribution_is_log_n():
    assert abs(float(entropy(torch.zeros(256))) - math.log(256)) < 1e-5


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_average_to_the_exact_kl(estimator):
    assert abs(float((PI * estimator(PI.log(), REF.log())).sum()) - KL) < 1e-6  # by enumeration
    x = torch.multinomial(PI, 100_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimates = estimator(PI.log()[x], REF.log()[x])
    assert abs(float(estimates.mean()) - KL) < 4 * float(estimates.std()) / math.sqrt(len(x))


def test_k1_with_samples_from_the_wrong_side_is_minus_the_other_kl():
    other = float((REF * (REF / PI).log()).sum())
    assert abs(float((REF * kl_k1(PI.log(), REF.log())).sum()) + other) < 1e-6


def test_k2_and_k3_are_never_negative_and_zero_only_where_the_two_agree():
    logps, ref_logps = -torch.rand(1000) * 5, -torch.rand(1000) * 5
    for estimator in (kl_k2, kl_k3):
        assert (estimator(logps, ref_logps) > 0).all()
        assert (estimator(logps, logps) == 0).all()
    assert (kl_k1(logps, ref_logps) < 0).any()


def test_k3_varies_less_than_k1_where_the_two_are_close():
    pi = torch.softmax(REF.log() + 0.1 * torch.randn(5, generator=torch.Generator().manual_seed(1)), 0)
    x = torch.multinomial(pi, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    assert kl_k3(pi.log()[x], REF.log()[x]).std() < 0.2 * kl_k1(pi.log()[x], REF.log()[x]).std()
