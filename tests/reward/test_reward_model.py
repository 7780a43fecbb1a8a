import pytest
import torch

from minigpt import EOS, PAD, encode
from minigpt.batching import collate, tokenize_example, tokenize_examples
from minigpt.logprobs import response_logps
from minigpt.model import MiniGPT
from reward import RewardModel, score
from reward.train import center


def test_default_model_is_the_default_trunk_and_a_head():
    assert sum(p.numel() for p in RewardModel().parameters()) == MiniGPT().count_parameters() + 128 + 1


def test_score_is_read_at_the_last_real_token(make_reward, texts):
    model = make_reward()
    examples = [tokenize_example(p, [r], 64) for p, r in texts]
    batch = collate(examples)
    together = model(batch.token_ids, batch.lengths)
    assert together.shape == (len(texts),) and together.std() > 0.1
    torch.testing.assert_close(model.rewards_of(batch)[:, 0], together, rtol=1e-5, atol=1e-5)
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
    torch.testing.assert_close(model.rewards_of(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [PAD, EOS, 65])
def test_what_stands_right_of_the_last_real_token_changes_nothing(make_reward, texts, padding):
    model = make_reward()
    batch = collate([tokenize_example(p, [r], 64) for p, r in texts])
    longer = torch.nn.functional.pad(batch.token_ids, (0, 7), value=padding)
    torch.testing.assert_close(model(longer, batch.lengths), model(batch.token_ids, batch.lengths), rtol=1e-5,
                               atol=1e-5)


def test_score_does_not_depend_on_batch_size_or_order(make_reward, texts):
    model = make_reward()
    prompts, responses = zip(*texts, strict=True)
    rewards = score(model, prompts, responses)
    torch.testing.assert_close(score(model, prompts, responses, batch_size=1), rewards, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score(model, prompts[::-1], responses[::-1], 4), rewards.flip(0), rtol=1e-5, atol=1e-5)
    assert not rewards.requires_grad


def test_score_of_text_equals_that_of_its_ids_and_sees_the_end(make_reward):
    model = make_reward()
    text = score(model, ["a"], ["yes"])
    assert torch.equal(text, score(model, ["a"], [[*encode("yes"), EOS]]))
    assert abs(float(text - score(model, ["a"], [encode("yes")]))) > 1e-3


def test_token_values_end_in_the_reward(make_reward):
    model = make_reward()
    ids = torch.randint(0, 256, (3, 9))
    values = model.token_values(ids)
    assert values.shape == (3, 9)
    for t in range(9):
        torch.testing.assert_close(values[:, t], model(ids[:, :t + 1]), rtol=1e-4, atol=1e-5)


def test_from_policy_copies_the_trunk_and_leaves_the_policy_alone(make_model, weights_equal, weights_of):
    policy = make_model(num_heads=4)
    kept = weights_of(policy)
    reward = RewardModel.from_policy(policy)
    assert weights_equal(reward.trunk, policy) and reward.settings == {**policy.settings, "pooling": "last", "reads": "both"}
    with torch.no_grad():
        for parameter in reward.parameters():
            parameter.add_(1.0)
    assert weights_equal(policy, kept)


def test_head_starts_with_unit_sized_rewards():
    torch.manual_seed(0)
    heads = torch.stack([RewardModel(embed_dim=64, num_heads=2, num_layers=1).head.weight[0] for _ in range(100)])
    assert float(heads.detach().std()) == pytest.approx(65 ** -0.5, rel=0.05)
    assert float(RewardModel().head.bias.detach()) == 0.0


def test_center_makes_the_mean_zero_and_keeps_the_differences(make_reward, texts):
    model = make_reward()
    prompts, responses = zip(*texts, strict=True)
    before = score(model, prompts, responses)
    assert center(model, prompts, responses) == pytest.approx(float(before.mean()), abs=1e-5)
    after = score(model, prompts, responses)
    assert abs(float(after.mean())) < 1e-5
    torch.testing.assert_close(after - after[0], before - before[0], rtol=1e-4, atol=1e-5)


def test_score_reports_what_it_cut_off(make_reward, capsys):
    score(make_reward(), ["a", "a"], ["b", "b" * 90])
    assert "cut short in 1 of 2" in capsys.readouterr().out


def test_mean_pooling_is_the_mean_of_the_head_over_the_response(make_reward, texts):
    model = make_reward(pooling="mean")
    batch = collate(tokenize_examples([(p, [r, "z" + r]) for p, r in texts], 64))
    expected = []
    for prompt, response in texts:
        ids = tokenize_example(prompt, [response], 64)
        values = model.token_values(torch.tensor([[*ids.prompt, *ids.responses[0]]]))[0]
        expected.append(values[len(ids.prompt):].mean())
    prompts, responses = zip(*texts, strict=True)
    torch.testing.assert_close(score(model, prompts, responses), torch.stack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.rewards_of(batch)[:, 0], torch.stack(expected), rtol=1e-5, atol=1e-5)
    alone = collate([tokenize_example(p, [r], 64) for p, r in texts if p])
    torch.testing.assert_close(model(alone.token_ids, alone.lengths), model.rewards_of(alone)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rewards_beside_log_probs_are_the_same_rewards_and_the_trunks_own_log_probs(make_reward, texts, pooling):
    model = make_reward(pooling=pooling)
    batch = collate(tokenize_examples([(p, [r, "z" + r]) for p, r in texts], 64))
    rewards, logps = model.rewards_and_logps(batch)
    torch.testing.assert_close(rewards, model.rewards_of(batch))
    torch.testing.assert_close(logps, response_logps(model.trunk, batch) / batch.members.sum(-1))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_model_that_reads_the_response_alone_does_not_know_the_prompt(make_reward, texts, pooling):
    model = make_reward(pooling=pooling, reads="response")
    responses = [response for _, response in texts]
    found = score(model, [prompt for prompt, _ in texts], responses)
    torch.testing.assert_close(found, score(model, ["another"] * len(texts), responses), rtol=1e-5, atol=1e-5)
    together = model.rewards_of(collate(tokenize_examples([("p", [r, "z"]) for r in responses], 64)))[:, 0]
    torch.testing.assert_close(together, found, rtol=1e-5, atol=1e-5)
    for response, reward in zip(responses, found, strict=True):
        values = model._values(model.trunk.hidden_states(torch.tensor([[*encode(response), EOS]]))[0])
        torch.testing.assert_close(values[-1] if pooling == "last" else values.mean(), reward, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, value", [("pooling", "max"), ("reads", "prompt")])
def test_another_pooling_or_reading_raises(small, name, value):
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        RewardModel(**small, **{name: value})
