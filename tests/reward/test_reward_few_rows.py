import pytest
import torch

from minigpt.batching import collate
from minigpt.examples import tokenize_examples
from minigpt.logprobs import response_logps
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
