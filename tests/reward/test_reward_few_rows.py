import pytest
import torch

from minigpt import EOS, encode
from minigpt.batching import collate
from minigpt.examples import tokenize_example, tokenize_examples
from minigpt.logprobs import response_logps
from reward import train_reward_model
from reward.few_rows import rewards_and_logps


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rewards_beside_log_probs_are_the_same_and_the_log_probs_are_the_trunks(make_reward, texts,
                                                                                pooling):
    model = make_reward(pooling=pooling)
    batch = collate(tokenize_examples([(p, [r, "z" + r]) for p, r in texts], 64))
    rewards, logps = rewards_and_logps(model, batch)
    torch.testing.assert_close(rewards, model.rewards(batch))
    by_hand = response_logps(model.trunk, batch) / batch.response_masks.sum(-1)
    torch.testing.assert_close(logps, by_hand)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_without_a_prompt_the_first_token_is_predicted_by_nothing_and_left_out(make_reward, texts,
                                                                               pooling):
    model = make_reward(pooling=pooling, reads="response")
    batch = collate(tokenize_examples([(p, [r, "z" + r]) for p, r in texts], 64))
    rewards, logps = rewards_and_logps(model, batch)
    torch.testing.assert_close(rewards, model.rewards(batch))
    for row, (_, response) in enumerate(texts):
        for j, text in enumerate((response, "z" + response)):
            ids = torch.tensor([[*encode(text), EOS]])
            each = model.trunk(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            torch.testing.assert_close(logps[row, j], each.mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_response_of_one_token_without_a_prompt_has_nothing_to_predict(make_reward, pooling):
    model = make_reward(pooling=pooling, reads="response")
    prompt = "p" * 62  # leaves room for one token
    batch = collate([tokenize_example(prompt, ["ab", "ba"], 64)])
    rewards, logps = rewards_and_logps(model, batch)
    assert logps.tolist() == [[0.0, 0.0]]
    (rewards.sum() + logps.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    _, losses, _ = train_reward_model(model, [{"prompt": prompt, "chosen": "ab", "rejected": "ba"}],
                                      1, reads="response", lm_coeff=0.1)
    assert torch.tensor(losses).isfinite().all()
