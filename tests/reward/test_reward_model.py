import pytest
import torch

from minigpt import EOS, PAD, encode
from minigpt.batching import Batch, collate
from minigpt.examples import tokenize_example, tokenize_examples
from minigpt.model import MiniGPT
from reward import RewardModel, score


def test_default_model_is_the_default_trunk_and_a_head():
    weights = sum(parameter.numel() for parameter in RewardModel().parameters())
    assert weights == MiniGPT().count_parameters() + 128 + 1


def test_score_is_read_at_the_last_real_token(make_reward, texts):
    model = make_reward()
    examples = [tokenize_example(p, [r], 64) for p, r in texts]
    batch = collate(examples)
    together = model(batch.token_ids, batch.lengths)
    assert together.shape == (len(texts),) and together.std() > 0.1
    torch.testing.assert_close(model.rewards(batch)[:, 0], together, rtol=1e-5, atol=1e-5)
    for example, reward in zip(examples, together, strict=True):
        ids = [*example.prompt, *example.responses[0]]
        assert ids[-1] == EOS
        alone = model(torch.tensor([ids]))  # no padding at all
        torch.testing.assert_close(alone[0], reward, rtol=1e-5, atol=1e-5)
        by_hand = model.head(model.trunk.hidden_states(torch.tensor([ids]))[0, -1])[0]
        torch.testing.assert_close(by_hand, reward, rtol=1e-5, atol=1e-5)


def test_responses_that_share_a_row_are_scored_as_if_each_stood_alone(make_reward, texts):
    model = make_reward()
    batch = collate(tokenize_examples([(p, [r, "z" + r]) for p, r in texts], 64))
    expected = torch.stack([score(model, [p] * 2, [r, "z" + r]) for p, r in texts])
    torch.testing.assert_close(model.rewards(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [PAD, EOS, 65])
def test_what_stands_right_of_the_last_real_token_changes_nothing(make_reward, texts, padding):
    model = make_reward()
    batch = collate([tokenize_example(p, [r], 64) for p, r in texts])
    longer = torch.nn.functional.pad(batch.token_ids, (0, 7), value=padding)
    torch.testing.assert_close(model(longer, batch.lengths), model(batch.token_ids, batch.lengths),
                               rtol=1e-5, atol=1e-5)


def test_values_of_the_head_end_in_the_reward(make_reward):
    model = make_reward()
    ids = torch.randint(0, 256, (3, 9))
    values = model.head_values(model.trunk.hidden_states(ids))
    assert values.shape == (3, 9)
    for t in range(9):
        torch.testing.assert_close(values[:, t], model(ids[:, :t + 1]), rtol=1e-4, atol=1e-5)


def test_values_are_those_of_the_state_before_each_token(make_reward):
    model = make_reward()
    ids = torch.randint(0, 256, (3, 9))
    segments = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1],
                             [0, 0, 1, 1, 1, 1, -1, -1, -1]])
    values = model.values(Batch(ids, segments, torch.arange(3)))
    assert values.shape == (3, 9)
    for b, t in (segments > 0).nonzero().tolist():
        torch.testing.assert_close(values[b, t], model(ids[b:b + 1, :t])[0], rtol=1e-4, atol=1e-5)
    assert (values[segments <= 0] == 0).all()


def test_from_policy_copies_the_trunk_and_leaves_the_policy_alone(make_model, weights_equal,
                                                                  weights_of):
    policy = make_model(num_heads=4)
    kept = weights_of(policy)
    reward = RewardModel.from_policy(policy)
    assert weights_equal(reward.trunk, policy)
    assert reward.settings == {**policy.settings, "pooling": "last", "reads": "both"}
    with torch.no_grad():
        for parameter in reward.parameters():
            parameter.add_(1.0)
    assert weights_equal(policy, kept)


def test_head_starts_with_unit_sized_rewards():
    torch.manual_seed(0)
    heads = torch.stack([RewardModel(embed_dim=64, num_heads=2, num_layers=1).head.weight[0]
                         for _ in range(100)])
    assert float(heads.detach().std()) == pytest.approx(65 ** -0.5, rel=0.05)
    assert float(RewardModel().head.bias.detach()) == 0.0


def test_mean_pooling_is_the_mean_of_the_head_over_the_response(make_reward, texts):
    model = make_reward(pooling="mean")
    batch = collate(tokenize_examples([(p, [r, "z" + r]) for p, r in texts], 64))
    expected = []
    for prompt, response in texts:
        ids = tokenize_example(prompt, [response], 64)
        row = torch.tensor([[*ids.prompt, *ids.responses[0]]])
        values = model.head_values(model.trunk.hidden_states(row))[0]
        expected.append(values[len(ids.prompt):].mean())
    expected = torch.stack(expected)
    prompts, responses = zip(*texts, strict=True)
    torch.testing.assert_close(score(model, prompts, responses), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.rewards(batch)[:, 0], expected, rtol=1e-5, atol=1e-5)
    alone = collate([tokenize_example(p, [r], 64) for p, r in texts if p])
    torch.testing.assert_close(model(alone.token_ids, alone.lengths), model.rewards(alone)[:, 0],
                               rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_model_that_reads_the_response_alone_does_not_know_the_prompt(make_reward, texts,
                                                                        pooling):
    model = make_reward(pooling=pooling, reads="response")
    responses = [response for _, response in texts]
    found = score(model, [prompt for prompt, _ in texts], responses)
    asked_otherwise = score(model, ["another"] * len(texts), responses)
    torch.testing.assert_close(found, asked_otherwise, rtol=1e-5, atol=1e-5)
    batch = collate(tokenize_examples([("p", [r, "z"]) for r in responses], 64))
    torch.testing.assert_close(model.rewards(batch)[:, 0], found, rtol=1e-5, atol=1e-5)
    for response, reward in zip(responses, found, strict=True):
        row = torch.tensor([[*encode(response), EOS]])
        values = model.head_values(model.trunk.hidden_states(row))[0]
        by_hand = values[-1] if pooling == "last" else values.mean()
        torch.testing.assert_close(by_hand, reward, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, value", [("pooling", "max"), ("reads", "prompt")])
def test_another_pooling_or_reading_raises(small, name, value):
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        RewardModel(**small, **{name: value})
