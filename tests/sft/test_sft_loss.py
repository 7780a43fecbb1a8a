import math

import pytest
import torch
import torch.nn.functional as F

from minigpt import MiniGPT
from minigpt.batching import collate
from minigpt.examples import tokenize_example
from minigpt.logprobs import token_logps
from sft import sft_loss


def test_loss_is_the_mean_over_response_tokens_by_hand():
    logps = torch.tensor([[-9.0, -1.0, -2.0, -9.0], [-9.0, -9.0, -6.0, -9.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True, False], [False, False, True, False]])
    loss, metrics = sft_loss(logps, mask)
    assert float(loss.detach()) == pytest.approx((1 + 2 + 6) / 3)
    expected = (math.exp(-1) + math.exp(-2) + math.exp(-6)) / 3
    assert float(metrics["mean_token_probability"]) == pytest.approx(expected)
    loss.backward()
    assert torch.allclose(logps.grad, -mask.float() / 3)


def test_loss_equals_cross_entropy_with_prompt_and_padding_ignored(make_model, texts):
    model = make_model()
    batch = collate([tokenize_example(p, [r], 64) for p, r in texts])
    loss, _ = sft_loss(token_logps(model, batch), batch.response_mask)
    labels = batch.token_ids.masked_fill(~batch.response_mask, -100)[:, 1:]
    by_hand = F.cross_entropy(model(batch.token_ids)[:, :-1].flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, by_hand)
    ours, theirs = (torch.autograd.grad(value, list(model.parameters()))
                    for value in (loss, by_hand))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_stands_outside_the_mask_changes_neither_loss_nor_gradient():
    mask = torch.tensor([[False, True, True, False]])
    grads, losses = [], []
    for outside in (-1.0, -50.0, math.nan, math.inf, -math.inf):
        logps = torch.tensor([[outside, -1.0, -2.0, outside]], requires_grad=True)
        loss, _ = sft_loss(logps, mask)
        loss.backward()
        grads.append(logps.grad)
        losses.append(float(loss.detach()))
    assert set(losses) == {1.5} and all(torch.equal(grad, grads[0]) for grad in grads)
    assert (grads[0][~mask] == 0).all()


def test_untrained_loss_is_near_ln_256(texts):
    model = MiniGPT()
    batch = collate([tokenize_example(p, [r], 128) for p, r in texts])
    loss, _ = sft_loss(token_logps(model, batch), batch.response_mask)
    assert abs(float(loss.detach()) - math.log(256)) < 0.05


def test_an_empty_mask_raises():
    with pytest.raises(ValueError, match="response_mask is empty"):
        sft_loss(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
