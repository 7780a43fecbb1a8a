import random

import pytest
import torch
import torch.nn.functional as F

from minigpt import EOS, PAD, SEP, encode
from minigpt.batching import Batch, Batches, collate
from minigpt.examples import Example, tokenize_example, tokenize_examples
from minigpt.logprobs import sequence_logps, token_logps


def one_response_examples(texts, max_seq_len=64):
    return tokenize_examples([(prompt, [response]) for prompt, response in texts], max_seq_len)


# --- one batch -----------------------------------------------------------------------------------


def test_mask_covers_exactly_response_and_eos(texts):
    batch = collate(one_response_examples(texts))
    rows = zip(texts, batch.token_ids, batch.response_mask, batch.lengths, strict=True)
    for (prompt, response), ids, mask, length in rows:
        assert ids[mask].tolist() == [*encode(response), EOS]
        start = [*encode(prompt), SEP] if prompt else [EOS]
        assert ids[~mask].tolist() == start + [PAD] * (len(ids) - length)
        assert mask.nonzero()[0] == len(start)


def test_mask_of_a_truncated_row_covers_its_response_without_eos():
    batch = collate([tokenize_example("ab", [response], 8) for response in ("x" * 99, "y")])
    assert batch.token_ids[0][batch.response_mask[0]].tolist() == list(b"xxxxx")
    assert batch.token_ids[1][batch.response_mask[1]].tolist() == [ord("y"), EOS]


def test_segments_tell_prompt_responses_and_padding_apart():
    examples = tokenize_examples([("a", ["1", "23"]), ("b", ["4", "5"]), ("cd", ["6", "7"])], 16)
    batch = Batches(examples, 8).collate([2, 0, 1])
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 2, 2, -1], [0, 0, 1, 1, 2, 2, 2, -1],
                                       [0, 0, 1, 1, 2, 2, -1, -1]]
    row = [ord("a"), SEP, ord("1"), EOS, ord("2"), ord("3"), EOS, PAD]
    assert batch.token_ids[1].tolist() == row
    assert batch.lengths.tolist() == [7, 7, 6]
    assert batch.indices.tolist() == [2, 0, 1]


def test_response_masks_are_the_tokens_of_each_response():
    batch = collate([Example(b"?!", (b"ab", b"c")), Example(b"?", (b"a", b"bc"))])
    assert batch.response_masks.int().tolist() == [[[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]],
                                                   [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]]


def by_tens(batch):
    """A value for each token: 10 in the first column, 20 in the second, ...; row b adds b."""
    B, T = batch.token_ids.shape
    return torch.arange(B)[:, None] + 10 * torch.arange(1, T + 1)


@pytest.mark.parametrize(("examples", "lengths", "last_columns", "sums", "on_tokens"), [
    ([("?!", "ab"), ("?", "abc"), ("?", "a")],                     # 0 0 1 1; 0 1 1 1; 0 1 - -
     [[2], [3], [1]], [[3], [3], [1]], [[70], [93], [22]],
     [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0]]),
    ([("?!", "ab", "c"), ("?", "a", "bc")],                        # 0 0 1 1 2; 0 1 2 2 -
     [[2, 1], [1, 2]], [[3, 4], [1, 3]], [[70, 50], [21, 72]],
     [[0, 0, 1, 1, 2], [0, 1, 2, 2, 0]]),
    ([("?", "a", "bcd", "ef"), ("?", "ab", "c", "d")],             # 0 1 2 2 2 3 3; 0 1 1 2 3 - -
     [[1, 3, 2], [2, 1, 1]], [[1, 4, 6], [2, 3, 4]], [[20, 120, 130], [52, 41, 51]],
     [[0, 1, 2, 2, 2, 3, 3], [0, 1, 1, 2, 3, 0, 0]])], ids=["1", "2", "3"])
def test_lengths_last_columns_sums_and_places_of_responses_by_hand(examples, lengths, last_columns,
                                                                   sums, on_tokens):
    batch = collate([Example(prompt.encode(), tuple(map(str.encode, responses)))
                     for prompt, *responses in examples])
    assert batch.response_lengths.tolist() == lengths
    assert batch.last_columns.tolist() == last_columns
    assert batch.response_sums(by_tens(batch)).tolist() == sums
    numbers = torch.arange(1.0, len(lengths[0]) + 1).expand(len(lengths), -1)
    assert batch.on_tokens(numbers).tolist() == on_tokens          # response j has the value j
    of_rows = numbers + 10 * torch.arange(len(lengths))[:, None]   # and another in each row
    expected = torch.tensor(on_tokens) + 10 * torch.arange(len(lengths))[:, None]
    assert torch.equal(batch.on_tokens(of_rows), expected * batch.response_mask)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_what_stands_on_the_tokens_of_a_response_sums_to_its_length_times_that(texts, k):
    rows = [(prompt, [response * n for n in range(1, k + 1)]) for prompt, response in texts]
    examples = tokenize_examples(rows, 999)
    values = torch.arange(1.0, k * len(rows) + 1).view(-1, k)
    for batch in (collate(examples), collate(examples, (), 64)):   # with more padding, too
        spread = batch.on_tokens(values)
        assert spread.shape == batch.token_ids.shape and (spread[~batch.response_mask] == 0).all()
        assert torch.equal(batch.response_sums(spread), values * batch.response_lengths)
        assert batch.response_lengths.tolist() == [[len(encode(r)) + 1 for r in responses]
                                                   for _, responses in rows]
        last = batch.last_columns
        assert (batch.token_ids.gather(1, last) == EOS).all()
        numbers = torch.arange(1, k + 1).expand_as(last)
        assert torch.equal(batch.segments.gather(1, last), numbers)


def test_values_on_the_tokens_pass_the_sum_of_their_gradients_back():
    batch = collate([Example(b"?!", (b"ab", b"c")), Example(b"?", (b"a", b"bc"))])
    values = torch.zeros(2, 2, requires_grad=True)
    (batch.on_tokens(values) * by_tens(batch)).sum().backward()
    assert values.grad.tolist() == [[70, 50], [21, 72]]


def test_without_its_prompts_a_batch_has_padding_in_their_place():
    batch = collate([Example(b"?!", (b"ab", b"c")), Example(b"?", (b"a",))])
    bare = batch.without_prompts()
    assert bare.segments.tolist() == [[-1, -1, 1, 1, 2], [-1, 1, -1, -1, -1]]
    assert torch.equal(bare.token_ids, batch.token_ids)


def test_apart_each_response_has_a_row_of_its_own_behind_its_prompt():
    batch = collate([Example(b"?!", (b"ab", b"c")), Example(b"?", (b"a", b"bcd"))], [4, 7], 8)
    apart = batch.apart()
    assert apart.token_ids.tolist() == [[*b"?!ab"], [*b"?!c", PAD], [*b"?a", PAD, PAD], [*b"?bcd"]]
    assert apart.segments.tolist() == [[0, 0, 1, 1], [0, 0, 1, -1], [0, 1, -1, -1], [0, 1, 1, 1]]
    assert apart.indices.tolist() == [4, 4, 7, 7]
    assert torch.equal(apart.apart().token_ids, apart.token_ids)


def test_a_batch_counts_fully_unless_it_is_told_otherwise():
    assert collate([Example(b"?", (b"a",))]).weight == 1.0


def test_a_moved_batch_is_the_same_batch():
    batch = collate([Example(b"?!", (b"ab", b"c"))], [7])
    batch.weight = 0.25
    moved = batch.to(torch.device("cpu"))
    assert moved.weight == 0.25
    for name in ("token_ids", "segments", "indices"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))


def test_padding_may_go_beyond_max_seq_len(make_model):
    model = make_model(max_seq_len=20)
    example = tokenize_example("a" * 9, ["b" * 9], 20)  # 20 tokens, in 24 columns
    batch = Batches([example], 1).collate([0])
    assert batch.token_ids.shape == (1, 24)
    torch.testing.assert_close(token_logps(model, batch).sum(),
                               sequence_logps(model, ["a" * 9], ["b" * 9])[0])


# --- how rows are batched changes no result ------------------------------------------------------


def test_batch_size_and_order_change_no_log_prob(make_model, texts):
    model = make_model()
    prompts, responses = zip(*texts, strict=True)
    alone = torch.cat([sequence_logps(model, [p], [r]) for p, r in texts])
    assert alone.std() > 1
    for batch_size in (1, 2, 7, 64):
        batched = sequence_logps(model, prompts, responses, batch_size)
        torch.testing.assert_close(batched, alone, rtol=1e-5, atol=1e-5)
    order = random.Random(1).sample(range(len(texts)), len(texts))
    shuffled = sequence_logps(model, [prompts[i] for i in order], [responses[i] for i in order], 5)
    torch.testing.assert_close(shuffled, alone[order], rtol=1e-5, atol=1e-5)


def test_more_padding_changes_no_log_prob(make_model, texts):
    model = make_model()
    batch = collate(one_response_examples(texts))
    extra = 64 - batch.token_ids.shape[1]
    assert extra > 5
    padded = Batch(F.pad(batch.token_ids, (0, extra), value=PAD),
                   F.pad(batch.segments, (0, extra), value=-1), batch.indices)
    torch.testing.assert_close(token_logps(model, padded)[:, :-extra], token_logps(model, batch),
                               rtol=1e-5, atol=1e-5)


# --- many batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_every_row_appears_once_an_epoch(texts, batch_size):
    batches = Batches(one_response_examples(texts), batch_size, seed=3)
    for order in (batches.epoch(0), batches.epoch(1), batches.by_length()):
        assert sorted(i for batch in order for i in batch) == list(range(len(texts)))
        assert len(order) == len(batches) == -(-len(texts) // batch_size)
        assert max(map(len, order)) <= batch_size


def test_order_depends_on_seed_and_epoch_alone(texts):
    examples = one_response_examples(texts)
    first, second = Batches(examples, 4, seed=3), Batches(examples, 4, seed=3)
    second.epoch(5)
    torch.rand(3)
    assert first.epoch(1) == second.epoch(1)
    another = Batches(examples, 4, seed=4)
    orders = [first.epoch(0), first.epoch(1), first.epoch(2), another.epoch(0)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_which_rows_share_a_batch_differs_between_epochs():
    examples = one_response_examples([("a", "b" * 5)] * 40)
    batches = Batches(examples, 4)
    assert {frozenset(b) for b in batches.epoch(0)} != {frozenset(b) for b in batches.epoch(1)}


def test_batches_of_similar_length_save_most_of_the_padding():
    rng = random.Random(0)
    examples = one_response_examples([("a", "b" * rng.randint(1, 60)) for _ in range(512)])
    batches = Batches(examples, 16)

    def padding(order):
        return sum(int(b.token_ids.numel() - b.lengths.sum()) for b in map(batches.collate, order))
    shuffled = rng.sample(range(512), 512)
    unsorted = [shuffled[i:i + 16] for i in range(0, 512, 16)]
    assert padding(batches.epoch(0)) < 0.2 * padding(unsorted)
    assert padding(Batches(examples, 16, pool_batches=1).epoch(0)) > 0.8 * padding(unsorted)
