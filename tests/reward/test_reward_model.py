import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt import EOS, PAD, SEP, encode, load_checkpoint, save_checkpoint
from minigpt.batching import Batch, collate
from minigpt.examples import tokenize_example, tokenize_examples
from minigpt.model import MiniGPT
from minigpt.processor import size_step
from ppo.rollout import RolloutMaker
from ppo.train import PPOConfig, prompt_batches
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


@torch.no_grad()
def test_a_model_of_phrases_sees_one_token_further_back_in_each_layer(make_reward):
    model = make_reward(num_layers=3, pooling="sum", reads="phrases")
    responses = ["abcdefgh", "zbcdefgh"]
    batch = collate([tokenize_example("p", [r], 64) for r in responses])
    values = model.head_values(model.hidden_states(model.as_read(batch)))
    first = int(batch.response_mask[0].int().argmax())
    one, other = values[:, first:first + 9]
    differ = (one - other).abs() > 1e-4
    assert differ.tolist() == [True] * 4 + [False] * 5


@torch.no_grad()
def test_a_model_of_phrases_starts_from_large_weights_and_from_no_policy(make_model):
    torch.manual_seed(0)
    for reads, bytes_std, head_std in (("phrases", 1, 8 * 65 ** -0.5),
                                       ("response", 0.02, 65 ** -0.5)):
        models = [RewardModel(embed_dim=64, num_heads=2, num_layers=1, pooling="sum", reads=reads)
                  for _ in range(50)]
        embeddings = torch.stack([model.trunk.token_embedding.weight for model in models])
        heads = torch.stack([model.head.weight for model in models])
        assert float(embeddings.std()) == pytest.approx(bytes_std, rel=0.05)
        assert float(heads.std()) == pytest.approx(head_std, rel=0.1)
    with pytest.raises(ValueError, match="from random weights"):
        RewardModel.from_policy(make_model(), "sum", "phrases")
    with pytest.raises(ValueError, match="needs pooling='sum'"):
        RewardModel(reads="phrases")


@torch.no_grad()
def test_phrases_of_responses_that_share_a_row_are_those_of_each_alone(make_reward, texts):
    model = make_reward(pooling="sum", reads="phrases")
    batch = collate(tokenize_examples([(p, [r, "z" + r]) for p, r in texts], 64))
    expected = torch.stack([score(model, [p] * 2, [r, "z" + r]) for p, r in texts])
    torch.testing.assert_close(model.rewards(batch), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.rewards(batch.apart()), expected.flatten()[:, None], rtol=1e-5,
                               atol=1e-5)


@torch.no_grad()
def test_the_mean_over_no_token_is_zero(make_reward):
    model = make_reward(pooling="mean")
    assert score(model, ["a", "a"], [[], [EOS]])[0] == 0


# --- one reward, by every way in -----------------------------------------------------------------

HOW = [{"pooling": pooling, "reads": reads} for pooling in ("last", "mean", "sum")
       for reads in ("both", "response", "phrases") if (pooling, reads) != ("last", "phrases")]
how = pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(how.values()))
ODD_TEXTS = [("", "yes"), ("", "a"), ("a?", ""), ("what is it, then?", "x"), ("é日", "🙂!"),
             ("b", "b")]


def rows_of(texts):
    """What is read: `prompt SEP response EOS`, or `EOS response EOS`."""
    return [[*([*encode(prompt), SEP] if prompt else [EOS]), *encode(response), EOS]
            for prompt, response in texts]


def padded(rows, left=0, right=0):
    longest = max(map(len, rows))
    return torch.tensor([[PAD] * (left + (longest - len(row)) * bool(left)) + row
                         + [PAD] * (right + (longest - len(row)) * (not left)) for row in rows])


def by_hand(model, prompt, response):
    """The reward from the trunk alone, of one row without any padding."""
    (row,) = rows_of([(prompt, response)])
    start = len(row) - len(encode(response)) - 1
    read = row if model.reads == "both" else row[start:]
    visible = torch.ones(1, len(read), len(read), dtype=torch.bool).tril()
    if model.reads == "phrases":
        visible = visible.triu(-1)
    hidden = model.trunk.hidden_states(torch.tensor([read]), visible=visible)
    values = model.head(hidden[0])[:, 0]
    values = values[len(read) - (len(row) - start):]
    bias = model.head.bias[0]
    return {"last": values[-1], "mean": values.mean(),
            "sum": (values - bias).sum() / 64 + bias}[model.pooling]


@how
@torch.no_grad()
def test_every_way_in_gives_the_reward_of_the_row_without_padding(make_reward, texts, how):
    model = make_reward(**how)
    texts = [*texts, *ODD_TEXTS]
    model.head.bias.fill_(0.7)
    expected = torch.stack([by_hand(model, *text) for text in texts])
    assert expected.std() > 0.1

    def check(found):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    prompts, responses = zip(*texts, strict=True)
    check(score(model, prompts, responses))
    check(score(model, prompts, responses, batch_size=1))
    check(score(model, prompts, [[*encode(response), EOS] for response in responses]))
    batch = collate([tokenize_example(p, [r], 64) for p, r in texts])
    check(model.rewards(batch)[:, 0])
    check(model.rewards(collate([tokenize_example(p, [r], 64) for p, r in texts],
                                multiple_of=50))[:, 0])

    read_as = model.as_read(batch)  # what `forward` is given where the model reads no prompt
    rows = rows_of(texts)
    if model.reads != "both":
        assert (read_as.segments[batch.segments == 0] == -1).all()
        rows = [row[-len(encode(response)) - 1:]
                for row, response in zip(rows, responses, strict=True)]
    else:
        assert read_as is batch
    lengths = torch.tensor([len(row) for row in rows])
    for right in (0, 1, 9):
        check(model(padded(rows, right=right)))
        check(model(padded(rows, right=right), lengths))
    for left in (1, 7):
        check(model(padded(rows, left=left)))
        check(model(padded(rows, left=left, right=3)))
    for row, reward in zip(rows, expected, strict=True):
        torch.testing.assert_close(model(torch.tensor([row]))[0], reward, rtol=1e-4, atol=1e-4)


@how
@torch.no_grad()
def test_ppo_scores_a_rollout_as_score_does(make_reward, make_model, how):
    policy, model = make_model(3, spread=4), make_reward(**how)
    prompts = ["", "a?", "how are you?", "é", ""]
    batches = prompt_batches(prompts, 64, PPOConfig(batch_size=5))
    maker = RolloutMaker(make_model(4), model, 6, missing_eos_penalty=0.0)
    rollout = maker(policy, batches.collate(range(5)), 0.1, torch.Generator().manual_seed(0))
    answers = [ids[mask].tolist()
               for ids, mask in zip(rollout.batch.token_ids, rollout.mask, strict=True)]
    torch.testing.assert_close(rollout.scores[:, 0], score(model, prompts, answers), rtol=1e-4,
                               atol=1e-4)


@how
@torch.no_grad()
def test_an_empty_prompt_is_read_as_the_end_of_a_text_before(make_reward, how):
    model = make_reward(**how)
    ids = torch.tensor([[EOS, *encode("yes"), EOS]])
    segments = torch.tensor([[0, 1, 1, 1, 1]])
    found = model.rewards(Batch(ids, segments, torch.tensor([0])))[0, 0]
    torch.testing.assert_close(score(model, [""], ["yes"])[0], found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(ids)[0], model(ids, torch.tensor([5]))[0], rtol=1e-5,
                               atol=1e-5)
    torch.testing.assert_close(model(ids)[0], found, rtol=1e-5, atol=1e-5)


@how
@torch.no_grad()
def test_pad_between_two_tokens_is_as_if_it_were_not_there(make_reward, how):
    model = make_reward(**how)
    row = rows_of([("ab?", "yes")])[0]
    expected = model(torch.tensor([row]))
    for at in range(len(row) + 1):
        found = model(torch.tensor([[*row[:at], PAD, PAD, *row[at:]]]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@how
@torch.no_grad()
def test_a_row_of_nothing_but_padding_raises(make_reward, how):
    model = make_reward(**how)
    ids = torch.tensor([[65, SEP, 66, EOS], [PAD] * 4])
    for arguments in ((ids,), (ids, torch.tensor([4, 0]))):
        with pytest.raises(ValueError, match="a row that is nothing but padding"):
            model(*arguments)


@how
@torch.no_grad()
def test_a_loaded_model_scores_as_the_one_in_memory_did(make_reward, texts, tmp_path, how):
    model = make_reward(**how)
    prompts, responses = zip(*texts, *ODD_TEXTS, strict=True)
    save_checkpoint(model, tmp_path / "reward.pt")
    loaded = load_checkpoint(tmp_path / "reward.pt")
    assert (loaded.pooling, loaded.reads) == (model.pooling, model.reads)
    assert torch.equal(score(loaded, prompts, responses), score(model, prompts, responses))
    assert torch.equal(loaded(torch.tensor(rows_of(texts[:1]))),
                       model(torch.tensor(rows_of(texts[:1]))))


def test_a_row_longer_than_the_model_raises(make_reward):
    model = make_reward()
    model(torch.full((1, 64), 65))
    model(torch.tensor([[65] * 64 + [PAD] * 9]))
    with pytest.raises(ValueError, match="max_seq_len=64"):
        model(torch.full((1, 65), 65))


class Products(TorchDispatchMode):
    """Notes the sizes of all matrix products computed within it, but for attention's."""

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.mv,
                                       torch.ops.aten.addmv, torch.ops.aten.dot):
            self.sizes |= {size for x in args if isinstance(x, torch.Tensor) for size in x.shape}
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("method, pooling", [("rewards", "last"), ("rewards", "mean"),
                                             ("values", "last")])
def test_training_meets_few_sizes_of_matrix_product(make_reward, method, pooling):
    """Every size costs memory for good; rows and tokens differ from batch to batch."""
    model, counts = make_reward(pooling=pooling, embed_dim=32), set()
    with Products() as products:
        for count in range(8, 60):
            rows = [("p", ["a" * count, "b" * 5])] * (count // 4)
            batch = collate(tokenize_examples(rows, 128))
            getattr(model, method)(batch).sum().backward()
            counts.add(int(batch.response_mask.sum()))
    of_weights = {size for weight in model.parameters() for size in weight.shape} | {1}
    of_tokens = products.sizes - of_weights
    assert len(counts) == 52 and len(of_tokens) < 40
    assert all(size % size_step(size, 4 if size < 512 else 8) == 0 for size in of_tokens)
