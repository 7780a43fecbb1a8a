import math

import pytest
import torch

import minigpt.sampling
from minigpt import EOS, PAD, decode, generate, sequence_logps
from minigpt.cache import KeyValueCache
from minigpt.examples import NoRoomError, tokenize_prompt
from minigpt.sampling import read_prompts, sample_ids, sample_tokens

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
    for prompt, response in zip(prompts, responses, strict=True):
        assert response.ids == slow_greedy(model, prompt, 100)
    logps = sequence_logps(model, prompts, [response.ids for response in responses])
    assert torch.isfinite(logps).all()


# --- ended rows leave the batch -------------------------------------------------------------------


def rows_of_each_pass(monkeypatch, model, prompts, max_new_tokens):
    """How many rows each pass of the model reads, the pass over the prompts first."""
    read, hidden_states = [], model.hidden_states

    def counted(token_ids, *args, **kwargs):
        read.append(len(token_ids))
        return hidden_states(token_ids, *args, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(model, "hidden_states", counted)
        generate(model, prompts, max_new_tokens, greedy=True)
    return read


def test_rows_that_said_eos_leave_once_they_are_more_than_a_quarter(monkeypatch, reciter, recited):
    answers = {row["response"]: row["prompt"] for row in recited}
    prompts = [answers[answer] for answer in ("x", "no", "yes", "seven")]  # 2, 3, 4, 6 tokens
    assert rows_of_each_pass(monkeypatch, reciter, prompts, 50) == [4, 4, 4, 2, 1, 1]


def test_rows_that_reach_max_seq_len_leave_too(monkeypatch, make_model):
    prompts = ["a" * n for n in (1, 5, 10, 18)]  # room for 18, 14, 9 and 1 tokens
    read = rows_of_each_pass(monkeypatch, make_model(max_seq_len=20), prompts, 100)
    assert read == [4] * 9 + [2] * 5 + [1] * 4


def test_nothing_is_read_after_the_last_token(monkeypatch, make_model):
    for limit in (1, 2, 5):
        assert rows_of_each_pass(monkeypatch, make_model(), ["a"], limit) == [1] * limit


# --- what is sampled ------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (1 - 2**-24, 3)])  # the ends of torch.rand
@pytest.mark.parametrize("logits", [[-1.0, 0.3, -2.0, 1.1, -1.5], [-1.0, 0.3, -2.0, 1.1]])
def test_at_both_ends_of_the_uniform_numbers_a_token_of_the_top_k_is_drawn(monkeypatch, u, token,
                                                                           logits):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, u))
    assert sample_tokens(torch.tensor([logits]), 1.0, 2, False, None).tolist() == [token]


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


def test_by_default_ids_are_sampled_at_temperature_1(make_model):
    model = make_model()
    prompts = [tokenize_prompt(prompt, 64) for prompt in RAGGED]
    default, at_1, at_2 = (
        sample_ids(model, prompts, 20, **how, generator=torch.Generator().manual_seed(0))
        for how in ({}, {"temperature": 1.0}, {"temperature": 2.0}))
    assert default == at_1 != at_2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_answers_too(make_model, dtype):
    model = make_model(3)
    answers = generate(model.to(dtype), RAGGED * 2, 10, greedy=True)
    assert [answer.ids for answer in answers[:len(RAGGED)]] == \
        [answer.ids for answer in answers[len(RAGGED):]]
    if dtype == torch.float64:
        assert answers == generate(model.float(), RAGGED * 2, 10, greedy=True)


def test_no_prompts_no_answers(make_model):
    assert generate(make_model(), [], 5) == []


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0},
                                     {"temperature": math.inf}, {"temperature": math.nan},
                                     {"max_new_tokens": 0}, {"top_k": 0}])
def test_limits_that_are_not_positive_and_finite_raise_naming_them(make_model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        generate(make_model(), ["a"], **{"max_new_tokens": 5, **options})


def test_prompt_without_room_raises(make_model):
    with pytest.raises(NoRoomError, match="max_seq_len=64"):
        generate(make_model(), ["a", "b" * 63], 5)


# --- prompts that occur several times -------------------------------------------------------------

REPEATED = [0, 3, 0, 0, 7, 3, 1, 0]  # of RAGGED


def repeated_ids(max_seq_len=64):
    return [tokenize_prompt(RAGGED[i], max_seq_len) for i in REPEATED]


def read_every_row(model, prompt_ids):
    """`read_prompts`, had each row a prompt of its own."""
    rows = [torch.tensor(ids) for ids in prompt_ids]
    lengths = torch.tensor([len(row) for row in rows])
    each = torch.arange(len(rows))
    cache = KeyValueCache(lengths, each)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return cache, model.hidden_states(padded, cache=cache, at=(each, lengths - 1))


@pytest.fixture
def rows_read(monkeypatch):
    """The rows and columns of every `hidden_states`, in order."""
    shapes = []

    def watch(model):
        hidden_states = model.hidden_states

        def counted(token_ids, *arguments, **more):
            shapes.append(tuple(token_ids.shape))
            return hidden_states(token_ids, *arguments, **more)
        monkeypatch.setattr(model, "hidden_states", counted)
        return shapes
    return watch


def test_a_prompt_that_occurs_several_times_is_read_once(make_model, rows_read):
    model = make_model()
    shapes = rows_read(model)
    longest = max(map(len, repeated_ids()))
    sample_ids(model, repeated_ids(), 2, greedy=True)
    assert shapes == [(4, longest), (8, 1)]  # four prompts are read, eight rows are written
    del shapes[:]
    sample_ids(model, [tokenize_prompt(prompt, 64) for prompt in RAGGED], 2, greedy=True)
    assert [rows for rows, _ in shapes] == [8, 8]


@torch.no_grad()
def test_what_is_read_once_is_what_each_row_would_have_read(make_model):
    model, ids = make_model(), repeated_ids()
    (cache, hidden), (each, expected) = (read(model, ids)
                                         for read in (read_prompts, read_every_row))
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.prompt_lengths[cache.prompt_of], each.prompt_lengths)
    for found, wanted in zip(cache.prompts, each.prompts, strict=True):
        for row, (prompt, length) in enumerate(
                zip(cache.prompt_of, each.prompt_lengths, strict=True)):
            for kept, alone in zip(found, wanted, strict=True):  # keys, values
                torch.testing.assert_close(kept[prompt, :, :length], alone[row, :, :length],
                                           rtol=1e-5, atol=1e-5)
    for row, same in ((2, 0), (3, 0), (7, 0), (5, 1)):
        assert torch.equal(hidden[row], hidden[same])


@pytest.mark.parametrize("greedy", [True, False])
def test_repeated_prompts_are_answered_as_if_each_were_read(reciter, recited, monkeypatch, greedy):
    ids = [tokenize_prompt(recited[n % 5]["prompt"], 64) for n in range(40)] + repeated_ids()

    def answers():
        return sample_ids(reciter, ids, 30, temperature=1.5, greedy=greedy,
                          generator=torch.Generator().manual_seed(0))
    found = answers()
    monkeypatch.setattr(minigpt.sampling, "read_prompts", read_every_row)
    expected = answers()
    if greedy:
        assert found == expected
        assert found[:5] * 8 == found[:40]
    else:  # where a number lies on an edge, rounding decides
        assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 2
        assert len(set(map(tuple, found[:40:5]))) > 1  # rows of one prompt draw each for itself


def test_a_repeated_prompt_is_answered_in_its_place_also_where_rows_leave_early(reciter, recited):
    prompts = [recited[n]["prompt"] for n in (3, 0, 3, 8, 0, 3)]
    texts = [response.text for response in generate(reciter, prompts, 50, greedy=True)]
    assert texts == [recited[n]["response"] for n in (3, 0, 3, 8, 0, 3)]
