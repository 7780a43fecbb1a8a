import random

import pytest
import torch

from minigpt import EOS, PAD, SEP, encode
from minigpt.batching import (
    Batches,
    Example,
    NoRoomError,
    collate,
    predicted_from,
    prompt_and_own,
    score_examples,
    tokenize_example,
    tokenize_examples,
    tokenize_prompt,
)
from minigpt.logprobs import sequence_logps, token_logps


def one_row_examples(texts, max_seq_len=64):
    return tokenize_examples([(prompt, [response]) for prompt, response in texts], max_seq_len)


# --- one row ----------------------------------------------------------------------------------------------------------


def ids_of(example):
    return [*example.prompt, *(i for response in example.responses for i in response)]


def test_row_is_prompt_sep_response_eos():
    assert tokenize_example("hi", ["yes"], 64) == (bytes([*b"hi", SEP]), (bytes([*b"yes", EOS]),), False)


def test_pair_shares_its_prompt_and_each_response_ends():
    assert ids_of(tokenize_example("hi", ["yes", "no"], 64)) == [*b"hi", SEP, *b"yes", EOS, *b"no", EOS]


def test_empty_prompt_begins_where_the_text_before_ended():
    assert ids_of(tokenize_example("", ["yes"], 64)) == [EOS, *b"yes", EOS]
    assert tokenize_prompt("", 64) == [EOS]


def test_ids_from_generate_are_used_as_they_stand():
    assert ids_of(tokenize_example("hi", [[7, 250, 8]], 64)) == [*b"hi", SEP, 7, 250, 8]


def test_row_that_fits_exactly_keeps_its_eos_and_one_byte_more_loses_it():
    fits, cut = tokenize_example("ab", ["xyz"], 7), tokenize_example("ab", ["xyz!"], 7)
    assert ids_of(fits) == [*b"ab", SEP, *b"xyz", EOS] and not fits.is_cut
    assert ids_of(cut) == [*b"ab", SEP, *b"xyz!"] and cut.is_cut


def test_prompt_without_room_raises_and_one_byte_less_leaves_room_for_one_token():
    assert ids_of(tokenize_example("a" * 6, ["xyz"], 8)) == [*b"aaaaaa", SEP, ord("x")]
    with pytest.raises(NoRoomError, match=r"aaaaaaa.*max_seq_len=8.*room"):
        tokenize_example("a" * 7, ["xyz"], 8)


# --- many rows --------------------------------------------------------------------------------------------------------


def test_cut_and_dropped_rows_are_counted_in_print(capsys):
    kept = one_row_examples([("a", "b"), ("a", "b" * 20), ("a" * 30, "b"), ("a", "c" * 30)], max_seq_len=16)
    assert len(kept) == 3
    printed = capsys.readouterr().out
    assert "cut short in 2 of 4 rows" in printed and "[1, 3]" in printed
    assert "dropped: 1 of 4 rows" in printed and "[2]" in printed


def test_nothing_is_printed_where_every_row_fits(texts, capsys):
    assert len(one_row_examples(texts)) == len(texts)
    assert capsys.readouterr().out == ""


def test_a_pair_is_dropped_whole_and_counts_as_one(capsys):
    kept = tokenize_examples([("a" * 30, ["b", "c"]), ("a", ["b", "c" * 30])], 16)
    assert kept == [(bytes([ord("a"), SEP]), (bytes([ord("b"), EOS]), b"c" * 14), True)]
    printed = capsys.readouterr().out
    assert "1 of 2 rows" in printed and printed.count("\n") == 2


@pytest.mark.parametrize(("examples", "message"), [([], "empty"), ([("a" * 99, ["b"])], "no row is left")])
def test_no_rows_to_train_on_raises(examples, message):
    with pytest.raises(ValueError, match=message):
        tokenize_examples(examples, 16)


def test_mask_covers_exactly_response_and_eos(texts):
    batch = collate(one_row_examples(texts))
    for (prompt, response), ids, mask, length in zip(texts, batch.token_ids, batch.response_mask, batch.lengths,
                                                     strict=True):
        assert ids[mask].tolist() == [*encode(response), EOS]
        start = [*encode(prompt), SEP] if prompt else [EOS]
        assert ids[~mask].tolist() == start + [PAD] * (len(ids) - length)
        assert mask.nonzero()[0] == len(start)


def test_mask_of_a_cut_row_covers_its_response_without_eos():
    batch = collate([tokenize_example("ab", [response], 8) for response in ("x" * 99, "y")])
    assert batch.token_ids[0][batch.response_mask[0]].tolist() == list(b"xxxxx")
    assert batch.token_ids[1][batch.response_mask[1]].tolist() == [ord("y"), EOS]


def test_segments_tell_prompt_responses_and_padding_apart():
    examples = tokenize_examples([("a", ["1", "23"]), ("b", ["4", "5"]), ("cd", ["6", "7"])], 16)
    batch = Batches(examples, 8).collate([2, 0, 1])
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 2, 2, -1], [0, 0, 1, 1, 2, 2, 2, -1], [0, 0, 1, 1, 2, 2, -1, -1]]
    assert batch.token_ids[1].tolist() == [ord("a"), SEP, ord("1"), EOS, ord("2"), ord("3"), EOS, PAD]
    assert batch.lengths.tolist() == [7, 7, 6]
    assert batch.examples.tolist() == [2, 0, 1]


def test_responses_of_one_row_see_the_prompt_and_themselves_and_not_each_other():
    positions, visible = prompt_and_own(torch.tensor([[0, 0, 1, 1, 2, 2, 2, -1]]))
    assert positions.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0]]
    assert [row.nonzero()[:, 0].tolist() for row in visible[0, :7]] == \
        [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 5, 6]]


def test_first_token_of_every_response_is_predicted_from_the_end_of_the_prompt():
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 2, -1], [0, 1, 2, 2, -1, -1, -1, -1]])
    found = predicted_from(segments)
    assert found[0, 2:7].tolist() == [1, 2, 1, 4, 5]
    assert found[1, 1:4].tolist() == [0, 0, 2]


def test_rows_of_one_response_need_no_mask():
    positions, visible = prompt_and_own(torch.tensor([[0, 0, 1, 1, -1]]))
    assert positions.tolist() == [[0, 1, 2, 3, 0]] and visible is None


def test_padding_may_go_beyond_max_seq_len(make_model):
    model = make_model(max_seq_len=20)
    example = tokenize_example("a" * 9, ["b" * 9], 20)  # 20 tokens, in 24 columns
    batch = Batches([example], 1).collate([0])
    assert batch.token_ids.shape == (1, 24)
    torch.testing.assert_close(token_logps(model, batch.token_ids, batch.segments).sum(),
                               sequence_logps(model, ["a" * 9], ["b" * 9])[0])


# --- nothing that is only bookkeeping changes a number ----------------------------------------------------------------


def test_batch_size_and_order_change_no_log_prob(make_model, texts):
    model = make_model()
    prompts, responses = zip(*texts, strict=True)
    alone = torch.cat([sequence_logps(model, [p], [r]) for p, r in texts])
    assert alone.std() > 1
    for batch_size in (1, 2, 7, 64):
        torch.testing.assert_close(sequence_logps(model, prompts, responses, batch_size), alone, rtol=1e-5, atol=1e-5)
    order = random.Random(1).sample(range(len(texts)), len(texts))
    shuffled = sequence_logps(model, [prompts[n] for n in order], [responses[n] for n in order], 5)
    torch.testing.assert_close(shuffled, alone[order], rtol=1e-5, atol=1e-5)


def test_more_padding_changes_no_log_prob(make_model, texts):
    model = make_model()
    batch = collate(one_row_examples(texts))
    extra = 64 - batch.token_ids.shape[1]
    assert extra > 5
    padded = torch.nn.functional.pad(batch.token_ids, (0, extra), value=PAD)
    segments = torch.nn.functional.pad(batch.segments, (0, extra), value=-1)
    torch.testing.assert_close(token_logps(model, padded, segments)[:, :-extra],
                               token_logps(model, batch.token_ids, batch.segments), rtol=1e-5, atol=1e-5)


def test_members_are_the_tokens_of_each_response():
    batch = collate([Example(b"?!", (b"ab", b"c")), Example(b"?", (b"a", b"bc"))])
    assert batch.members.int().tolist() == [[[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]]


def test_scores_come_back_in_the_order_of_the_examples(texts):
    examples = tokenize_examples([(prompt, [response, "z"]) for prompt, response in texts], 64)
    found = score_examples(lambda batch: torch.stack([batch.lengths, batch.examples], 1), Batches(examples, 4),
                           torch.device("cpu"))
    assert found.tolist() == [[example.num_tokens, number] for number, example in enumerate(examples)]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_every_row_appears_once_an_epoch(texts, batch_size):
    batches = Batches(one_row_examples(texts), batch_size, seed=3)
    for order in (batches.epoch(0), batches.epoch(1), batches.in_order()):
        assert sorted(n for batch in order for n in batch) == list(range(len(texts)))
        assert len(order) == len(batches) == -(-len(texts) // batch_size)
        assert max(map(len, order)) <= batch_size


def test_order_follows_from_seed_and_epoch_alone(texts):
    examples = one_row_examples(texts)
    first, second = Batches(examples, 4, seed=3), Batches(examples, 4, seed=3)
    second.epoch(5)
    torch.rand(3)
    assert first.epoch(1) == second.epoch(1)
    orders = [first.epoch(0), first.epoch(1), first.epoch(2), Batches(examples, 4, seed=4).epoch(0)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_which_rows_share_a_batch_differs_between_epochs():
    examples = one_row_examples([("a", "b" * 5)] * 40)
    batches = Batches(examples, 4)
    assert {frozenset(b) for b in batches.epoch(0)} != {frozenset(b) for b in batches.epoch(1)}


def test_buckets_of_like_length_save_most_of_the_padding():
    rng = random.Random(0)
    examples = one_row_examples([("a", "b" * rng.randint(1, 60)) for _ in range(512)])
    batches = Batches(examples, 16)

    def padding(order):
        return sum(int(b.token_ids.numel() - b.lengths.sum()) for b in map(batches.collate, order))
    numbers = rng.sample(range(512), 512)
    assert padding(batches.epoch(0)) < 0.2 * padding([numbers[i:i + 16] for i in range(0, 512, 16)])
