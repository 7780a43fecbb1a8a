import random

import pytest
import torch

from minigpt import EOS, PAD, SEP, encode
from minigpt.batching import (
    Batches,
    NoRoomError,
    collate,
    score_examples,
    tokenize_examples,
    tokenize_prompt,
    tokenize_row,
)
from minigpt.logprobs import sequence_logps, token_logps


def one_row_examples(texts, max_seq_len=64):
    return tokenize_examples([[pair] for pair in texts], max_seq_len)


# --- one row ----------------------------------------------------------------------------------------------------------


def test_row_is_prompt_sep_response_eos():
    row = tokenize_row("hi", "yes", 64)
    assert row.token_ids == [*b"hi", SEP, *b"yes", EOS]
    assert (row.response_start, row.is_cut) == (3, False)


def test_empty_prompt_begins_where_the_text_before_ended():
    assert tokenize_row("", "yes", 64).token_ids == [EOS, *b"yes", EOS]
    assert tokenize_prompt("", 64) == [EOS]


def test_ids_from_generate_are_used_as_they_stand():
    assert tokenize_row("hi", [7, 250, 8], 64).token_ids == [*b"hi", SEP, 7, 250, 8]


def test_row_that_fits_exactly_keeps_its_eos_and_one_byte_more_loses_it():
    fits, cut = tokenize_row("ab", "xyz", 7), tokenize_row("ab", "xyz!", 7)
    assert fits.token_ids == [*b"ab", SEP, *b"xyz", EOS] and not fits.is_cut
    assert cut.token_ids == [*b"ab", SEP, *b"xyz!"] and cut.is_cut and EOS not in cut.token_ids


def test_prompt_without_room_raises_and_one_byte_less_leaves_room_for_one_token():
    assert len(tokenize_row("a" * 6, "xyz", 8).token_ids) == 8
    with pytest.raises(NoRoomError, match=r"aaaaaaa.*max_seq_len=8.*room"):
        tokenize_row("a" * 7, "xyz", 8)


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
    kept = tokenize_examples([[("a" * 30, "b"), ("a" * 30, "c")], [("a", "b"), ("a", "c" * 30)]], 16)
    assert [row.is_cut for row in kept[0]] == [False, True]
    printed = capsys.readouterr().out
    assert "1 of 2 rows" in printed and printed.count("\n") == 2


@pytest.mark.parametrize(("examples", "message"), [([], "empty"), ([[("a" * 99, "b")]], "no row is left")])
def test_no_rows_to_train_on_raises(examples, message):
    with pytest.raises(ValueError, match=message):
        tokenize_examples(examples, 16)


def test_mask_covers_exactly_response_and_eos(texts):
    rows = [example[0] for example in one_row_examples(texts)]
    batch = collate(rows, range(len(rows)))
    for (prompt, response), ids, mask, length in zip(texts, batch.token_ids, batch.response_mask, batch.lengths,
                                                     strict=True):
        assert ids[mask].tolist() == [*encode(response), EOS]
        start = [*encode(prompt), SEP] if prompt else [EOS]
        assert ids[~mask].tolist() == start + [PAD] * (len(ids) - length)
        assert mask.nonzero()[0] == len(start)


def test_mask_of_a_cut_row_covers_its_response_without_eos():
    batch = collate([tokenize_row("ab", "x" * 99, 8), tokenize_row("ab", "y", 8)])
    assert batch.token_ids[0][batch.response_mask[0]].tolist() == list(b"xxxxx")
    assert batch.token_ids[1][batch.response_mask[1]].tolist() == [ord("y"), EOS]


def test_pairs_are_laid_out_first_rows_first():
    examples = tokenize_examples([[("a", "1"), ("a", "2")], [("b", "3"), ("b", "4")], [("c", "5"), ("c", "6")]], 16)
    batch = Batches(examples, 8).collate([2, 0])
    assert [chr(ids[mask][0]) for ids, mask in zip(batch.token_ids, batch.response_mask, strict=True)] == list("5162")
    assert batch.examples.tolist() == [2, 0]


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
    batch = collate([example[0] for example in one_row_examples(texts)])
    extra = 64 - batch.token_ids.shape[1]
    assert extra > 5
    padded = torch.nn.functional.pad(batch.token_ids, (0, extra), value=PAD)
    mask = torch.nn.functional.pad(batch.response_mask, (0, extra))
    torch.testing.assert_close(token_logps(model, padded, mask)[:, :-extra],
                               token_logps(model, batch.token_ids, batch.response_mask), rtol=1e-5, atol=1e-5)


def test_scores_come_back_in_the_order_of_the_examples(texts):
    examples = tokenize_examples([[pair, (pair[0], "z")] for pair in texts], 64)
    lengths = score_examples(lambda batch: batch.lengths, Batches(examples, 4), torch.device("cpu"))
    assert lengths.tolist() == [[len(row.token_ids) for row in example] for example in examples]


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
