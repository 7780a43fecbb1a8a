import pytest
import torch
import torch.nn.functional as F

from minigpt import fast
from minigpt.fast import additive_mask, by_row, by_token, select, weighted_sum
from minigpt.model import attention


def assert_same_gradients(found, expected, inputs):
    """The gradients of two results with respect to all inputs, for one random direction."""
    up = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad(result, inputs, up) for result in (found, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


# --- by_row --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows_at_once", [1, 2, 8])
def test_attention_by_row_is_attention(length, masked, rows_at_once, monkeypatch):
    """Values and gradients."""
    monkeypatch.setattr(fast, "SCORES_BYTES", rows_at_once * 4 * length**2 * 4)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(5, 4, length, 8, generator=generator, requires_grad=True)
               for _ in range(3))
    visible = torch.ones(length, length).tril().bool()
    if masked:
        visible = visible & (torch.rand(5, 1, length, length, generator=generator) < 0.7)
    visible = visible | (torch.arange(length) == 0)  # something for each query
    mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    found = by_row(attention, q, k, v, mask if masked else None)
    expected = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    assert_same_gradients(found, expected, (q, k, v))


# --- by_token ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (37,), (3,), (1, 1)])
def test_a_layer_by_token_is_the_layer(shape, monkeypatch):
    monkeypatch.setattr(fast, "BYTES_AT_ONCE", 32)  # 8 tokens
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    x = torch.randn(*shape, 4, generator=generator, requires_grad=True)
    found, expected = by_token(layer, x), layer(x)
    torch.testing.assert_close(found, expected)
    assert_same_gradients(found, expected, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("precision, most", [("float32", 512), ("bfloat16", 1024)])
def test_a_layer_by_token_meets_few_sizes(precision, most):
    """Every size that a layer meets costs memory for good."""
    met = set()

    def layer(x):
        met.add(len(x))
        return x
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        for count in range(1, 5001):
            assert len(by_token(layer, torch.ones(count, 1))) == count
    assert met == {*range(1, 8), *range(8, 16, 2), *range(16, 32, 4), *range(32, 64, 8),
                   *range(64, 128, 16), *range(128, 256, 32), *range(256, 512, 64),
                   *range(512, most + 1, 64)}


def test_a_layer_by_token_works_without_data():
    """On PyTorch's device for shapes alone."""
    layer = torch.nn.Linear(4, 3, device="meta")
    assert by_token(layer, torch.empty(5, 7, 4, device="meta")).shape == (5, 7, 3)


# --- select, weighted_sum and additive_mask ------------------------------------------------------


def test_select_is_indexing_by_rows_and_columns():
    """Values and gradients, also where a position is asked for twice."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, generator=generator, requires_grad=True)
    rows, columns = torch.tensor([2, 0, 1, 1, 0]), torch.tensor([4, 0, 3, 3, 4])
    found, expected = select(x, (rows, columns)), x[rows, columns]
    assert torch.equal(found, expected)
    assert_same_gradients(found, expected, (x,))


def test_a_weighted_sum_is_a_product_with_a_vector():
    """Values and gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, generator=generator, requires_grad=True)
    weight = torch.randn(4, generator=generator, requires_grad=True)
    found, expected = weighted_sum(x, weight), x @ weight
    torch.testing.assert_close(found, expected)
    assert_same_gradients(found, expected, (x, weight))


def test_additive_mask_is_zero_where_visible_and_minus_infinity_elsewhere():
    visible = torch.tensor([[[True, False], [True, True]], [[True, False], [False, True]]])
    mask = additive_mask(visible, torch.zeros(2, 2, 8))
    assert mask.dtype == torch.float32
    hidden = -torch.inf
    assert mask.tolist() == [[[[0, hidden], [0, 0]]], [[[0, hidden], [hidden, 0]]]]


def test_additive_mask_has_the_precision_of_the_products():
    visible, x = torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, 2, 8)
    assert additive_mask(visible, x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert additive_mask(visible, x).dtype == torch.bfloat16
