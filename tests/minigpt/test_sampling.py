import pytest
import torch

from minigpt import EOS, decode, generate, sequence_logps
from minigpt.examples import NoRoomError, tokenize_prompt
from minigpt.sampling import sample_tokens

RAGGED = ["", "a?", "how are you?", "é", "tell me all about it, please", "xyz", "b?", "g?"]


@torch.no_grad()
def slow_greedy(model, prompt, max_new_tokens):
    """No cache, no batch: read everything again for each token."""
    ids = tokenize_prompt(prompt, model.max_seq_len)
    start = len(ids)
    while len(ids) - start < max_new_tokens and len(ids) < model.max_seq_len:
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
        if ids[-1] == EOS:
            break
    return ids[start:]


def test_cached_greedy_equals_an_uncached_loop_for_ragged_prompts(make_model):
    model = make_model(3)
    for prompt, response in zip(RAGGED, generate(model, RAGGED, 40, greedy=True), strict=True):
        assert response.ids == slow_greedy(model, prompt, 40)


def test_cached_greedy_equals_an_uncached_loop_where_rows_end_at_different_steps(reciter, recited):
    prompts = [row["prompt"] for row in recited] + RAGGED
    responses = generate(reciter, prompts, 50, greedy=True)
    lengths = {len(response.ids) for response in responses if response.finished}
    assert len(lengths) >= 5  # or this would test little
    for prompt, response in zip(prompts, responses, strict=True):
        assert response.ids == slow_greedy(reciter, prompt, 50)
        assert response.finished == (response.ids[-1] == EOS)


def test_a_model_that_learned_answers_by_heart_recites_them(reciter, recited):
    responses = generate(reciter, [row["prompt"] for row in recited], 50, greedy=True)
    assert [response.text for response in responses] == [row["response"] for row in recited]
    assert all(response.finished and EOS not in response.ids[:-1] for response in responses)


def test_answers_come_in_the_order_of_the_prompts_also_beyond_one_batch(reciter, recited):
    prompts = [recited[n % 12]["prompt"] for n in range(600)]
    responses = generate(reciter, prompts, 50, greedy=True)
    expected = [recited[n % 12]["response"] for n in range(600)]
    assert [response.text for response in responses] == expected


def test_same_seed_same_answers_and_another_seed_others(make_model):
    model = make_model()
    first = generate(model, RAGGED, 20, seed=5)
    assert generate(model, RAGGED, 20, seed=5) == first
    assert generate(model, RAGGED, 20, seed=6) != first


def test_without_a_seed_the_global_random_state_decides_and_with_one_it_is_left_alone(make_model):
    model = make_model()
    torch.manual_seed(1)
    first = generate(model, RAGGED, 20)
    torch.manual_seed(1)
    assert generate(model, RAGGED, 20) == first
    state = torch.get_rng_state()
    generate(model, RAGGED, 20, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_max_new_tokens_is_honoured_and_such_an_answer_is_not_finished(make_model):
    for limit in (1, 2, 17):
        for response in generate(make_model(), RAGGED, limit, greedy=True):
            assert len(response.ids) == limit or response.finished
            assert response.finished == (response.ids[-1] == EOS)
    responses = generate(make_model(), RAGGED, 5, greedy=True)
    assert not all(response.finished for response in responses)


def test_max_seq_len_is_honoured_and_such_an_answer_is_not_finished(make_model):
    model = make_model(max_seq_len=20)
    prompts = ["a" * n for n in (1, 5, 10, 18)]
    responses = generate(model, prompts, 100, greedy=True)
    assert [len(response.ids) for response in responses] == [18, 14, 9, 1]
    assert not any(response.finished for response in responses)
    logps = sequence_logps(model, prompts, [response.ids for response in responses])
    assert torch.isfinite(logps).all()


def test_text_is_the_decoded_ids(reciter):
    for response in generate(reciter, RAGGED * 5, 30, temperature=2.0, seed=0):
        assert response.text == decode(response.ids)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 5)])
def test_sampled_frequencies_match_the_softmax(make_model, temperature, top_k):
    model, n = make_model(), 4000
    logits = model(torch.tensor([tokenize_prompt("hi", 64)]))[0, -1].detach() / temperature
    if top_k is not None:
        logits[logits < logits.topk(top_k).values[-1]] = float("-inf")
    p = logits.softmax(-1).double()
    responses = generate(model, ["hi"] * n, 1, temperature, top_k, seed=0)
    tokens = torch.tensor([response.ids[0] for response in responses])
    observed = torch.bincount(tokens, minlength=256).double()
    assert observed[p == 0].sum() == 0
    common = p * n >= 5  # the rest go into one cell
    cells = torch.cat([observed[common], observed[~common].sum()[None]])
    expected = torch.cat([p[common], p[~common].sum()[None]]) * n
    cells, expected = cells[expected > 0], expected[expected > 0]
    freedom = len(cells) - 1
    assert freedom >= 3
    chi_square = float(((cells - expected).square() / expected).sum())
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_later_tokens_too_are_sampled_from_the_softmax(make_model):
    model, n = make_model(), 4000
    responses = generate(model, ["hi"] * n, 2, top_k=3, seed=0)
    firsts = [response.ids[0] for response in responses]
    first = max(set(firsts), key=firsts.count)
    seconds = [response.ids[1] for response in responses if response.ids[0] == first]
    top = model(torch.tensor([[*tokenize_prompt("hi", 64), first]]))[0, -1].detach().topk(3)
    for token, p in zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True):
        noise = (p * (1 - p) / len(seconds)) ** 0.5
        assert abs(seconds.count(token) / len(seconds) - p) < 4 * noise


def test_top_k_of_one_and_a_tiny_temperature_are_greedy(make_model):
    model = make_model()
    greedy = generate(model, RAGGED, 15, greedy=True)
    assert generate(model, RAGGED, 15, top_k=1, seed=0) == greedy
    assert generate(model, RAGGED, 15, temperature=1e-4, seed=0) == greedy


def test_top_k_larger_than_the_vocabulary_changes_nothing():
    logits = torch.randn(3, 256)
    tokens = [sample_tokens(logits, 1.0, k, False, torch.Generator().manual_seed(0))
              for k in (None, 256, 9999)]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])


def test_no_prompts_no_answers(make_model):
    assert generate(make_model(), [], 5) == []


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0},
                                     {"max_new_tokens": 0}, {"top_k": 0}])
def test_limits_that_are_not_positive_raise_naming_them(make_model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        generate(make_model(), ["a"], **{"max_new_tokens": 5, **options})


def test_prompt_without_room_raises(make_model):
    with pytest.raises(NoRoomError, match="max_seq_len=64"):
        generate(make_model(), ["a", "b" * 63], 5)
