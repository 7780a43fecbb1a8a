import pytest
import torch

from minigpt.cache import KeyValueCache
from minigpt.tokenizer import PAD

PROMPTS, TOKENS = 3, 40  # more than the cache has room for at first
LENGTHS = torch.tensor([4, 11, 1])


@pytest.fixture
def prompts():
    """(P, S) of different lengths, padded."""
    ids = torch.randint(0, 250, (PROMPTS, int(LENGTHS.max())))
    return ids.masked_fill(torch.arange(ids.shape[1]) >= LENGTHS[:, None], PAD)


def whole_row(model, prompts, prompt, response):
    """The hidden states of a response (n,), read in one row with its prompt: (n, D)."""
    length = int(LENGTHS[prompt])
    row = torch.cat([prompts[prompt, :length], response])
    return model.hidden_states(row[None])[0, length:]


@pytest.mark.parametrize("prompt_of", [[0, 1, 2], [1, 0, 2], [2, 0, 1], [1, 1, 0, 2],
                                       [2, 0, 2, 1, 2, 0], [0, 0, 0, 0, 1, 2], [1, 2] + [0] * 9])
@torch.no_grad()
def test_reading_token_by_token_through_the_cache_equals_reading_whole_rows(
        make_model, prompts, prompt_of):
    model, prompt_of = make_model(), torch.tensor(prompt_of)
    responses = torch.randint(0, 250, (len(prompt_of), TOKENS))
    cache = KeyValueCache(LENGTHS, prompt_of)
    model.hidden_states(prompts, cache=cache)
    found = torch.cat([read(model, cache, prompt_of, responses, t) for t in range(TOKENS)], 1)
    for row, prompt in enumerate(prompt_of.tolist()):
        expected = whole_row(model, prompts, prompt, responses[row])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def read(model, cache, prompt_of, responses, t):
    return model.hidden_states(responses[:, t:t + 1], LENGTHS[prompt_of][:, None] + t, cache=cache)


@torch.no_grad()
def test_prompts_are_read_as_without_a_cache(make_model, prompts):
    model = make_model()
    cache = KeyValueCache(LENGTHS, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(model.hidden_states(prompts, cache=cache),
                               model.hidden_states(prompts))


@pytest.mark.parametrize("kept", [[5, 1, 2], [0, 4], [3], [0, 1, 2, 3, 4, 5]])
@torch.no_grad()
def test_rows_that_are_kept_read_on_as_before(make_model, prompts, kept):
    """In any order; where the longest prompt leaves with its last response, too."""
    model, kept = make_model(), torch.tensor(kept)
    prompt_of = torch.tensor([2, 0, 2, 1, 2, 0])
    responses = torch.randint(0, 250, (6, TOKENS))
    cache = KeyValueCache(LENGTHS, prompt_of)
    model.hidden_states(prompts, cache=cache)
    for t in range(4):
        read(model, cache, prompt_of, responses, t)
    cache.keep_rows(kept)
    for t in range(4, TOKENS):
        found = read(model, cache, prompt_of[kept], responses[kept], t)
        for row, old in enumerate(kept.tolist()):
            expected = whole_row(model, prompts, int(prompt_of[old]), responses[old, :t + 1])[-1]
            torch.testing.assert_close(found[row, 0], expected, rtol=1e-4, atol=1e-4)
    assert len(cache.prompts[0][0]) == len(prompt_of[kept].unique())


@torch.no_grad()
def test_rows_leave_again_and_again(make_model, prompts):
    model, rows = make_model(), torch.arange(12)
    prompt_of = torch.tensor([0, 1, 2] * 4)
    responses = torch.randint(0, 250, (12, TOKENS))
    cache = KeyValueCache(LENGTHS, prompt_of)
    model.hidden_states(prompts, cache=cache)
    for t, going in enumerate([range(12), [0, 1, 3, 4, 6, 9, 11], [6, 0, 2], [1, 2], [1]]):
        if t:
            cache.keep_rows(torch.tensor(going))
            rows = rows[torch.tensor(going)]
        found = read(model, cache, prompt_of[rows], responses[rows], t)
        for row, old in enumerate(rows.tolist()):
            expected = whole_row(model, prompts, int(prompt_of[old]), responses[old, :t + 1])[-1]
            torch.testing.assert_close(found[row, 0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_where_one_prompt_has_most_responses_no_table_is_mostly_empty(make_model, prompts):
    model, prompt_of = make_model(), torch.tensor([1, 2] + [0] * 62)
    cache = KeyValueCache(LENGTHS, prompt_of)
    model.hidden_states(prompts, cache=cache)
    assert len(cache.table) <= 2 * len(prompt_of)


@torch.no_grad()
def test_a_prompts_keys_and_values_are_kept_once_for_all_its_responses(make_model, prompts):
    model = make_model()
    cache = KeyValueCache(LENGTHS, torch.tensor([0] * 50 + [1] * 50 + [2] * 50))
    model.hidden_states(prompts, cache=cache)
    layers = model.settings["num_layers"]
    assert [keys.shape[0] for keys, _ in cache.prompts] == [PROMPTS] * layers
    assert [kept.shape[1] for kept in cache.responses] == [150] * layers


@torch.no_grad()
def test_under_autocast_too(make_model, prompts):
    model, prompt_of = make_model(), torch.tensor([0, 0, 1, 2])
    responses = torch.randint(0, 250, (4, TOKENS))
    cache = KeyValueCache(LENGTHS, prompt_of)
    with torch.autocast("cpu", torch.bfloat16):
        model.hidden_states(prompts, cache=cache)
        found = torch.cat([read(model, cache, prompt_of, responses, t) for t in range(TOKENS)], 1)
    assert cache.prompts[0][0].dtype == cache.responses[0].dtype == torch.bfloat16
    for row, prompt in enumerate(prompt_of.tolist()):
        expected = whole_row(model, prompts, prompt, responses[row])
        torch.testing.assert_close(found[row].float(), expected, rtol=0.1, atol=0.1)
