import math

import pytest
import torch
import torch.nn.functional as F

from minigpt import MiniGPT
from minigpt.cache import KeyValueCache


def test_default_model_has_840448_parameters():
    model = MiniGPT()
    assert model.count_parameters() == 840_448
    assert sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()) == 840_448


def test_defaults_are_those_of_the_contract():
    assert MiniGPT().settings == {"vocab_size": 256, "embed_dim": 128, "num_heads": 4,
                                  "num_layers": 4, "max_seq_len": 128, "ff_dim": 512}


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
    by_hand = model.hidden_states(ids) @ model.token_embedding.weight.T
    torch.testing.assert_close(model(ids), by_hand)


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
    one, other = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert (one - other)[:, -1].abs().max() > 1e-3


def test_input_longer_than_max_seq_len_raises(make_model):
    model = make_model(max_seq_len=8)
    model(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"9.*max_seq_len=8"):
        model(torch.zeros(1, 9, dtype=torch.long))


def test_heads_that_do_not_divide_the_width_raise():
    with pytest.raises(ValueError, match=r"embed_dim=30.*num_heads=4"):
        MiniGPT(embed_dim=30, num_heads=4)


def test_two_models_of_one_seed_are_equal_and_of_two_seeds_differ(make_model, weights_equal):
    assert weights_equal(make_model(1), make_model(1))
    assert not weights_equal(make_model(1), make_model(2))


def test_hidden_states_at_some_positions_are_those_of_all(make_model):
    """Fast path against slow path, also where a position is asked for twice."""
    model = make_model()
    ids = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    at = torch.tensor([2, 0, 1, 1]), torch.tensor([8, 0, 4, 4])
    visible = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 9, 9).clone()
    visible[:, 5:, 1:3] = False
    for more in ({}, {"visible": visible}):
        found = model.hidden_states(ids, at=at, **more)
        torch.testing.assert_close(found, model.hidden_states(ids, **more)[at])


def test_bfloat16_hidden_states_are_near_those_in_float32(make_model):
    model = make_model()
    ids = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    visible = torch.ones(20, 20, dtype=torch.bool).tril().expand(3, 20, 20)
    for more in ({}, {"visible": visible}):
        exact = model.hidden_states(ids, **more)
        with torch.autocast("cpu", torch.bfloat16):
            near = model.hidden_states(ids, **more)
        assert 0 < (near - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_what_is_visible_is_not_asked_for_beside_a_cache(make_model):
    cache = KeyValueCache(torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(ValueError, match="visible"):
        make_model().hidden_states(torch.zeros(1, 3, dtype=torch.long), cache=cache,
                                   visible=torch.ones(1, 3, 3, dtype=torch.bool))
