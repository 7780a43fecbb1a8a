"""Batched generation with a key-value cache; rows that have ended leave the batch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minigpt.cache import KeyValueCache
from minigpt.examples import check_texts, tokenize_prompt
from minigpt.model import MiniGPT
from minigpt.processor import onednn_matmul
from minigpt.protocol import Model, checked_model, row_logits
from minigpt.tokenizer import EOS, PAD, decode
from minigpt.weights import device_of

ROWS_AT_ONCE = 128  # 256 are 1.2 times as fast (responses of 20 tokens), but take 100 MB more
SHRINK_AT = 0.25    # share of ended rows; dropping them copies the cache, which costs a few steps


class Response(NamedTuple):
    text: str
    ids: list[int]   # as sampled, with the closing EOS if there is one
    finished: bool   # ended by EOS, not by a limit


def generate(model: Model, prompts: Sequence[str], max_new_tokens: int, temperature: float = 1.0,
             top_k: int | None = None, greedy: bool = False,
             seed: int | None = None) -> list[Response]:
    """Sample one response for each prompt, in the order of the prompts.

    A response ends at EOS, after max_new_tokens, or where max_seq_len is reached; `finished` is
    True for the first.  The same seed gives the same responses; without one, torch's global random
    state decides.
    Raises ValueError on a temperature or limit that is not positive, and on a prompt that leaves no
    room for a response; TypeError if prompts is a single string; FloatingPointError if the logits
    are not finite.
    """
    check_texts("prompts", prompts)
    model = checked_model(model)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be above 0 and finite (for the most "
                         "likely token, use greedy=True)")
    if max_new_tokens < 1 or (top_k is not None and top_k < 1):
        raise ValueError(f"max_new_tokens={max_new_tokens} and top_k={top_k} must be at least 1")
    generator = None if seed is None else torch.Generator(device_of(model)).manual_seed(seed)
    prompt_ids = [tokenize_prompt(prompt, model.max_seq_len) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompt_ids[i]))
    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(by_length), ROWS_AT_ONCE):
        indices = by_length[start:start + ROWS_AT_ONCE]
        sampled = sample_ids(model, [prompt_ids[i] for i in indices], max_new_tokens, temperature,
                             top_k, greedy, generator)
        for i, ids in zip(indices, sampled, strict=True):
            responses[i] = ids
    return [Response(decode(ids), ids, ids[-1] == EOS) for ids in responses]


@torch.inference_mode()
@onednn_matmul()
def sample_ids(model: Model, prompt_ids: Sequence[list[int]], max_new_tokens: int,
               temperature: float = 1.0, top_k: int | None = None, greedy: bool = False,
               generator: torch.Generator | None = None) -> list[list[int]]:
    """The response ids, EOS included, for one batch of prompts `bytes SEP`.

    A prompt that occurs several times is read only once.  A model of one's own has no cache, and
    reads the whole row again for each token.
    """
    if not isinstance(model, MiniGPT):
        return sample_without_cache(model, prompt_ids, max_new_tokens, temperature, top_k, greedy,
                                    generator)
    device = model.device
    rows = torch.arange(len(prompt_ids), device=device)            # which prompt each row answers
    lengths = torch.tensor([len(ids) for ids in prompt_ids], device=device)
    sampled = torch.full((len(prompt_ids), max_new_tokens), PAD, device=device)
    room = (model.max_seq_len - lengths).clamp(max=max_new_tokens)  # longest response of each row
    done = torch.zeros_like(lengths, dtype=torch.bool)

    cache, last_hidden = read_prompts(model, prompt_ids)
    for step in range(max_new_tokens):
        tokens = sample_tokens(model.logits(last_hidden), temperature, top_k, greedy, generator)
        sampled[rows, step] = tokens
        done = done | (tokens == EOS) | (lengths + step + 1 >= model.max_seq_len)
        if done.all() or step == max_new_tokens - 1:
            break
        if done.float().mean() > SHRINK_AT:
            going = (~done).nonzero()[:, 0]
            cache.keep_rows(going)
            rows, lengths, tokens, done = rows[going], lengths[going], tokens[going], done[going]
        positions = (lengths + step).clamp(max=model.max_seq_len - 1)  # ended rows may run past it
        last_hidden = model.hidden_states(tokens[:, None], positions[:, None], cache=cache)[:, 0]
    is_eos = sampled == EOS
    counts = torch.where(is_eos.any(1), is_eos.int().argmax(1) + 1, room).minimum(room)
    return [ids[:count] for ids, count in zip(sampled.tolist(), counts.tolist(), strict=True)]


def sample_without_cache(model: Model, prompt_ids: Sequence[list[int]],
                         max_new_tokens: int, temperature: float, top_k: int | None, greedy: bool,
                         generator: torch.Generator | None) -> list[list[int]]:
    """As `sample_ids`, by the model's forward alone."""
    ids = [list(prompt) for prompt in prompt_ids]
    longest = [min(len(prompt) + max_new_tokens, model.max_seq_len) for prompt in prompt_ids]
    going = list(range(len(ids)))
    while going:
        rows = [torch.tensor(ids[row]) for row in going]
        ends = torch.tensor([len(row) - 1 for row in rows])
        token_ids = pad_sequence(rows, batch_first=True, padding_value=PAD).to(device_of(model))
        logits = row_logits(model, token_ids)[range(len(going)), ends]
        tokens = sample_tokens(logits, temperature, top_k, greedy, generator).tolist()
        for row, token in zip(going, tokens, strict=True):
            ids[row].append(token)
        going = [row for row in going if ids[row][-1] != EOS and len(ids[row]) < longest[row]]
    return [row[len(prompt):] for row, prompt in zip(ids, prompt_ids, strict=True)]


def read_prompts(model: MiniGPT,
                 prompt_ids: Sequence[list[int]]) -> tuple[KeyValueCache, Tensor]:
    """A cache that has read B prompts, equal ones once, and their last hidden states (B, D)."""
    row_of = {ids: row for row, ids in enumerate(dict.fromkeys(map(bytes, prompt_ids)))}
    prompt_of = torch.tensor([row_of[bytes(ids)] for ids in prompt_ids], device=model.device)
    different = [torch.tensor(list(ids)) for ids in row_of]
    token_ids = pad_sequence(different, batch_first=True, padding_value=PAD).to(model.device)
    lengths = torch.tensor([len(ids) for ids in row_of], device=model.device)
    cache = KeyValueCache(lengths, prompt_of)
    ends = torch.arange(len(lengths), device=model.device), lengths - 1
    return cache, model.hidden_states(token_ids, cache=cache, at=ends)[prompt_of]


def sample_tokens(logits: Tensor, temperature: float, top_k: int | None, greedy: bool,
                  generator: torch.Generator | None) -> Tensor:
    """One token for each row of logits: (B, V) -> (B,)."""
    if not logits.isfinite().all():
        raise FloatingPointError("the model's logits are not finite: there is nothing to sample")
    if greedy:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    # The inverse of the cumulative distribution at a uniform number: eight times faster than
    # torch.multinomial.
    cumulative = logits.softmax(-1).cumsum(-1)
    end = cumulative[:, -1:] * (1 - 2**-22)  # rounding must not push a number past the end
    u = torch.rand((len(logits), 1), generator=generator, device=logits.device)
    return (cumulative <= u * end).sum(-1)
