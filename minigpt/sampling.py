"""Batched generation with a key-value cache; rows that have ended leave the batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.batching import tokenize_prompt
from minigpt.model import KeyValueCache, MiniGPT
from minigpt.tokenizer import EOS, PAD, decode

ROWS_AT_ONCE = 512
DONE_SHARE_TO_SHRINK = 0.25  # copying the cache costs as much as a few steps: drop ended rows by the quarter


class Response(NamedTuple):
    text: str
    ids: list[int]   # as sampled, with the closing EOS if there is one
    finished: bool   # ended by EOS, not by a limit


def generate(model: MiniGPT, prompts: Sequence[str], max_new_tokens: int, temperature: float = 1.0,
             top_k: int | None = None, greedy: bool = False, seed: int | None = None) -> list[Response]:
    """Sample one response for each prompt, in the order of the prompts.

    A response ends at EOS, after max_new_tokens, or where max_seq_len is reached; `finished` says which.  With a
    seed the result is the same each time; without one it follows torch's global random state.
    Raises ValueError on a temperature or limit that is not positive, or a prompt that leaves no room.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0 (for the most likely token use greedy=True)")
    if max_new_tokens < 1 or (top_k is not None and top_k < 1):
        raise ValueError(f"max_new_tokens={max_new_tokens} and top_k={top_k} must be at least 1")
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    prompt_ids = [tokenize_prompt(prompt, model.max_seq_len) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda n: len(prompt_ids[n]))
    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(by_length), ROWS_AT_ONCE):
        numbers = by_length[start:start + ROWS_AT_ONCE]
        sampled = sample_ids(model, [prompt_ids[n] for n in numbers], max_new_tokens, temperature, top_k, greedy,
                             generator)
        for number, ids in zip(numbers, sampled, strict=True):
            responses[number] = ids
    return [Response(decode(ids), ids, ids[-1] == EOS) for ids in responses]


@torch.no_grad()
def sample_ids(model: MiniGPT, prompt_ids: Sequence[list[int]], max_new_tokens: int, temperature: float = 1.0,
               top_k: int | None = None, greedy: bool = False, generator: torch.Generator | None = None
               ) -> list[list[int]]:
    """The response ids (EOS included) for one batch of prompts `bytes SEP`."""
    device = model.device
    responses: list[list[int]] = [[] for _ in prompt_ids]
    numbers = torch.arange(len(prompt_ids), device=device)                    # rows of the batch -> prompt numbers
    done = torch.zeros(len(prompt_ids), dtype=torch.bool, device=device)
    lengths = torch.tensor([len(ids) for ids in prompt_ids], device=device)   # tokens of each row so far
    longest = int(lengths.max())
    token_ids = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids in prompt_ids], device=device)
    cache = KeyValueCache(model, len(prompt_ids))

    # Padding on the right is harmless: its keys stand after every real token and are overwritten as the row grows.
    positions = torch.arange(longest, device=device).expand(len(prompt_ids), -1)
    hidden = model.hidden_states(token_ids, positions, cache)
    last_hidden = hidden[torch.arange(len(prompt_ids), device=device), lengths - 1]
    for _ in range(max_new_tokens):
        tokens = pick_tokens(model.logits(last_hidden).float(), temperature, top_k, greedy, generator)
        for number, token, is_done in zip(numbers.tolist(), tokens.tolist(), done.tolist(), strict=True):
            if not is_done:
                responses[number].append(token)
        lengths = lengths + ~done
        done = done | (tokens == EOS) | (lengths >= model.max_seq_len)
        if done.all():
            break
        if done.float().mean() > DONE_SHARE_TO_SHRINK:
            going = (~done).nonzero()[:, 0]
            cache.keep(going)
            numbers, lengths, tokens, done = numbers[going], lengths[going], tokens[going], done[going]
        positions = (lengths - 1)[:, None]
        last_hidden = model.hidden_states(tokens[:, None], positions, cache)[:, 0]
    return responses


def pick_tokens(logits: Tensor, temperature: float, top_k: int | None, greedy: bool,
                generator: torch.Generator | None) -> Tensor:
    """One token for each row of logits (B, V) -> (B,)."""
    if greedy:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
