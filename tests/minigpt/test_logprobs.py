import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minigpt import EOS, encode, sequence_logps
from minigpt.batching import Batches, collate
from minigpt.examples import tokenize_example, tokenize_examples, tokenize_prompt
from minigpt.logprobs import (
    logps_of_examples,
    map_examples,
    place,
    response_logits,
    response_logps,
    token_logps,
)


class FreeLogits(nn.Module):
    """A stub whose logits are its only weight, so that each logit's gradient can be read off."""

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
    logps = token_logps(model, batch)
    assert logps.shape == batch.token_ids.shape
    assert (logps[~batch.response_mask] == 0).all()
    for (prompt, response), row, mask in zip(texts, logps, batch.response_mask, strict=True):
        expected = torch.tensor(slow_logps(model, prompt, response), dtype=torch.float64)
        torch.testing.assert_close(row[mask].double(), expected, rtol=1e-4, atol=1e-4)


def test_sequence_log_prob_is_the_sum_with_eos(make_model, texts):
    model = make_model()
    prompts, responses = zip(*texts, strict=True)
    expected = torch.tensor([sum(slow_logps(model, p, r)) for p, r in texts])
    found = sequence_logps(model, prompts, responses)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sequence_log_prob_of_text_equals_that_of_its_ids(make_model, texts):
    model = make_model()
    prompts, responses = zip(*texts, strict=True)
    ids = [[*encode(r), EOS] for r in responses]
    of_texts, of_ids = (sequence_logps(model, prompts, given) for given in (responses, ids))
    assert torch.equal(of_texts, of_ids)


def test_probabilities_of_all_one_token_responses_sum_to_one(make_model):
    model = make_model()
    logps = sequence_logps(model, ["hi?"] * 256, [[token] for token in range(256)])
    assert abs(float(logps.double().exp().sum()) - 1) < 1e-4


def test_log_probs_of_pairs_keep_first_and_second_apart(make_model):
    model = make_model()
    pairs = (("a", "bcd"), ("efghi", "j"), ("k", "l"))
    examples = tokenize_examples([("q", pair) for pair in pairs], 64)
    expected = torch.stack([sequence_logps(model, ["q", "q"], pair) for pair in pairs])
    found = logps_of_examples(model, Batches(examples, 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_responses_that_share_a_row_score_as_if_each_stood_alone(make_model, texts):
    model = make_model()
    rows = [(prompt, (response, "z" + response, "b")) for prompt, response in texts]
    examples = tokenize_examples(rows, 64)
    expected = torch.stack([sequence_logps(model, [p] * 3, responses) for p, responses in rows])
    assert expected.std() > 1
    for batch_size in (1, 7):
        found = logps_of_examples(model, Batches(examples, batch_size))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def test_a_pair_may_be_longer_than_max_seq_len_where_each_response_fits(make_model):
    model = make_model()
    pair = ("a" * 40, "b" * 40)
    examples = tokenize_examples([("q" * 20, pair), ("q" * 5, ("x", "y"))], 64)
    expected = sequence_logps(model, ["q" * 20] * 2, pair)
    found = logps_of_examples(model, Batches(examples, 2))[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


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
    (["a", "b"], ["c"], "shorter|argument 2"), ([], [], "empty"),
    (["a", "a" * 70], ["b", "c"], "room"),
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
    loss = F.cross_entropy(stub.free[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
    by_hand, = torch.autograd.grad(loss, stub.free)
    torch.testing.assert_close(stub.free.grad, -by_hand)


def test_response_logits_are_the_models_own_at_the_position_before_each_token(make_model, texts):
    model = make_model()
    batch = collate([tokenize_example(p, [r], 64) for p, r in texts])
    expected = model(batch.token_ids)[:, :-1][batch.response_mask[:, 1:]]
    torch.testing.assert_close(response_logits(model, batch), expected)


def test_values_are_placed_where_the_mask_is_true():
    mask = torch.tensor([[False, True, True], [True, False, False]])
    values = torch.tensor([1.0, 2.0, 3.0])
    assert place(values, mask).tolist() == [[0, 1, 2], [3, 0, 0]]


def test_mapped_values_come_back_in_the_order_of_the_examples(texts):
    rows = [(prompt, [response, "z"]) for prompt, response in texts]
    examples = tokenize_examples(rows, 64)

    def lengths_and_indices(batch):
        return torch.stack([batch.lengths, batch.indices], 1)
    found = map_examples(lengths_and_indices, Batches(examples, 4), torch.device("cpu"))
    expected = [[example.num_tokens, index] for index, example in enumerate(examples)]
    assert found.tolist() == expected
