import torch

from minigpt.cache import KeyValueCache


def test_reading_token_by_token_through_the_cache_equals_reading_at_once(make_model):
    model = make_model()
    ids = torch.randint(0, 256, (3, 40))
    cache = KeyValueCache(model, 3, 40)
    first = model.hidden_states(ids[:, :5], cache=cache)
    rest = [model.hidden_states(ids[:, t:t + 1], torch.full((3, 1), t), cache=cache)
            for t in range(5, 40)]
    found = torch.cat([first, *rest], 1)
    torch.testing.assert_close(found, model.hidden_states(ids), rtol=1e-4, atol=1e-4)


def test_rows_that_are_kept_read_on_as_before(make_model):
    model = make_model()
    ids = torch.randint(0, 256, (4, 12))
    cache, kept = KeyValueCache(model, 4, 12), torch.tensor([3, 1])
    model.hidden_states(ids[:, :11], cache=cache)
    cache.keep_rows(kept)
    found = model.hidden_states(ids[kept, 11:], torch.full((2, 1), 11), cache=cache)
    expected = model.hidden_states(ids[kept])[:, 11:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
