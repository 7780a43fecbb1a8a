import math

import pytest
import torch
import torch.nn.functional as F

from minigpt import MiniGPT, copy_model_weights
from minigpt import model as model_module
from minigpt.model import KeyValueCache, attention, check_reference, fast_attention, in_pieces
from reward import RewardModel


def test_default_model_has_840448_parameters():
    model = MiniGPT()
    assert model.count_parameters() == 840_448
    assert sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()) == 840_448


def test_defaults_are_those_of_the_contract():
    assert MiniGPT().settings == {"vocab_size": 256, "embed_dim": 128, "num_heads": 4, "num_layers": 4,
                                  "max_seq_len": 128, "ff_dim": 512}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_untrained_loss_is_near_ln_256(seed):
    torch.manual_seed(seed)
    model = MiniGPT()
    ids = torch.randint(0, 256, (8, 64))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(float(loss.detach()) - math.log(256)) < 0.05


def test_shapes_of_logits_and_hidden_states(make_model):
    model = make_model()
    ids = torch.randint(0, 256, (3, 7))
    assert model(ids).shape == (3, 7, 256)
    assert model.hidden_states(ids).shape == (3, 7, 32)
    torch.testing.assert_close(model(ids), model.hidden_states(ids) @ model.token_embedding.weight.T)


def test_changing_a_token_changes_no_logits_before_it(make_model):
    model = make_model()
    ids = torch.randint(0, 200, (2, 12))
    before = model(ids)
    for t in range(12):
        changed = ids.clone()
        changed[:, t] += 1
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-5)
        assert (after[:, t:] - before[:, t:]).abs().amax(-1).min() > 1e-3


def test_order_of_earlier_tokens_matters(make_model):
    model = make_model()
    assert (model(torch.tensor([[1, 2, 3]])) - model(torch.tensor([[2, 1, 3]])))[:, -1].abs().max() > 1e-3


def test_input_longer_than_max_seq_len_raises(make_model):
    model = make_model(max_seq_len=8)
    model(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"9.*max_seq_len=8"):
        model(torch.zeros(1, 9, dtype=torch.long))


def test_heads_that_do_not_divide_the_width_raise():
    with pytest.raises(ValueError, match=r"embed_dim=30.*num_heads=4"):
        MiniGPT(embed_dim=30, num_heads=4)


def test_reading_token_by_token_through_the_cache_equals_reading_at_once(make_model):
    model = make_model()
    ids = torch.randint(0, 256, (3, 40))
    cache = KeyValueCache(model, 3, 40)
    first = model.hidden_states(ids[:, :5], cache=cache)
    rest = [model.hidden_states(ids[:, t:t + 1], torch.full((3, 1), t), cache=cache) for t in range(5, 40)]
    torch.testing.assert_close(torch.cat([first, *rest], 1), model.hidden_states(ids), rtol=1e-4, atol=1e-4)


def test_two_models_of_one_seed_are_equal_and_of_two_seeds_differ(make_model, weights_equal):
    assert weights_equal(make_model(1), make_model(1))
    assert not weights_equal(make_model(1), make_model(2))


def test_copy_is_equal_and_deep(make_model, weights_equal, weights_of):
    source, target = make_model(1), make_model(2)
    kept = weights_of(source)
    assert copy_model_weights(source, target) is target
    assert weights_equal(target, source)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1.0)
    assert weights_equal(source, kept)
    assert not weights_equal(target, source)


@pytest.mark.parametrize(("settings", "weight"), [
    ({"ff_dim": 128}, "ff_"), ({"max_seq_len": 32}, "position_embedding.weight"), ({"num_layers": 3}, "blocks.2"),
    ({"vocab_size": 300}, "token_embedding.weight"), ({"num_layers": 1}, "blocks.1")])
def test_copy_between_mismatched_models_names_the_weight_and_changes_nothing(make_model, weights_equal, weights_of,
                                                                             settings, weight):
    source, target = make_model(1), make_model(2, **settings)
    kept = weights_of(target)
    with pytest.raises(ValueError, match=weight):
        copy_model_weights(source, target)
    assert weights_equal(target, kept)


def test_copy_of_a_language_model_into_a_reward_model_raises(make_model, small):
    with pytest.raises(ValueError, match=r"only (source|target) has"):
        copy_model_weights(make_model(), RewardModel(**small))


def test_reference_must_be_another_object_of_the_same_shape(make_model, copy_of):
    model = make_model()
    check_reference(model, copy_of(model))
    with pytest.raises(ValueError, match="same object"):
        check_reference(model, model)
    with pytest.raises(ValueError, match=r"differ in shape.*'ff_dim': 64.*'ff_dim': 128"):
        check_reference(model, make_model(ff_dim=128))


def test_hidden_states_at_some_places_are_those_of_all(make_model):
    """Fast path against slow path, also where a place is asked for twice."""
    model = make_model()
    ids = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    at = torch.tensor([2, 0, 1, 1]), torch.tensor([8, 0, 4, 4])
    visible = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 9, 9).clone()
    visible[:, 5:, 1:3] = False
    for more in ({}, {"visible": visible}):
        torch.testing.assert_close(model.hidden_states(ids, at=at, **more), model.hidden_states(ids, **more)[at])


@pytest.mark.parametrize("queries", [1, 3, 9])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows_at_a_time", [1, 2, 8])
def test_fast_attention_is_what_it_stands_for(queries, masked, rows_at_a_time, monkeypatch):
    """Values and gradients; fewer queries than keys, as in decoding, are the last ones."""
    monkeypatch.setattr(model_module, "SCORES_BYTES", rows_at_a_time * 4 * queries * 9 * 4)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(5, 4, n, 8, generator=generator, requires_grad=True) for n in (queries, 9, 9))
    causal = torch.ones(queries, 9).tril(9 - queries).bool()
    visible = causal & (torch.rand(5, 1, queries, 9, generator=generator) < 0.7) if masked else causal
    visible = visible | (torch.arange(9) == 0)  # something for each query
    mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    found = fast_attention(q, k, v, mask if masked else None)
    expected = (attention if queries == 1 else F.scaled_dot_product_attention)(q, k, v, mask).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected)
    up = torch.randn(found.shape, generator=generator)
    for a, b in zip(*(torch.autograd.grad(y, (q, k, v), up) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (37,), (3,), (1, 1)])
def test_a_layer_in_pieces_is_the_layer(shape, monkeypatch):
    monkeypatch.setattr(model_module, "PIECE", 8)
    generator = torch.Generator().manual_seed(0)
    layer, x = torch.nn.Linear(4, 3), torch.randn(*shape, 4, generator=generator, requires_grad=True)
    found, expected = in_pieces(layer, x), layer(x)
    torch.testing.assert_close(found, expected)
    up = torch.randn(*shape, 3, generator=generator)
    for a, b in zip(*(torch.autograd.grad(y, (x, layer.weight, layer.bias), up) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_pieces_have_few_sizes():
    """Every size that a layer meets costs memory for good."""
    met = set()

    def layer(x):
        met.add(len(x))
        return x
    for count in range(1, 5001):
        assert len(in_pieces(layer, torch.ones(count, 1))) == count
    assert max(met) == 1024
    assert len(met) == 15 + 8 * 6 + 1  # up to 15 each, then eight from each power of two to the next


def test_bfloat16_hidden_states_are_near_those_in_float32(make_model):
    model = make_model()
    ids = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    visible = torch.ones(20, 20, dtype=torch.bool).tril().expand(3, 20, 20)
    for more in ({}, {"visible": visible}):
        exact = model.hidden_states(ids, **more)
        with torch.autocast("cpu", torch.bfloat16):
            near = model.hidden_states(ids, **more)
        assert 0 < (near - exact).abs().mean() < 0.05 * exact.abs().mean()
