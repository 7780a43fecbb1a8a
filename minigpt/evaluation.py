"""What a policy says: sample from it, measure the responses, compare with the reference."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

import torch
from torch import Tensor

from minigpt.batching import Batch, Batches
from minigpt.examples import tokenize_example
from minigpt.kl import exact_kl, kl_k1
from minigpt.logprobs import logps_of, map_examples, place, response_logits
from minigpt.model import MiniGPT
from minigpt.sampling import Response, generate

WORD = re.compile(r"\w+")
FURTHEST_KL = 20.0  # nats per response; the methods here end at 1 to 3

Measure = Callable[[Sequence[str], Sequence[str]], dict[str, float]]  # of prompts and responses
Score = Callable[[Sequence[str], Sequence[list[int]]], Tensor]         # the same, as sampled ids


def sample_responses(policy: MiniGPT, prompts: Sequence[str], samples: int, max_new_tokens: int,
                     seed: int) -> tuple[list[str], list[Response]]:
    """`samples` responses to each prompt: the repeated prompts, and a response for each."""
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    return repeated, generate(policy, repeated, max_new_tokens, seed=seed)


def text_measures(responses: Sequence[Response]) -> dict[str, float]:
    """Length, endings, diversity and repetition of sampled responses."""
    texts = [response.text for response in responses]
    return {"finished_share": mean(response.finished for response in responses),
            "response_bytes": mean(len(text.encode("utf-8")) for text in texts),
            "distinct_2": distinct_n(texts, 2),
            "repetition": mean(repetition(text) for text in texts)}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams (Li et al. 2016, arXiv:1510.03055), or 0.

    It falls as the number of texts grows, so compare only equally many.
    """
    grams = Counter(gram for text in texts for gram in _ngrams(text, n))
    return len(grams) / max(1, grams.total())


def repetition(text: str, n: int = 3) -> float:
    """Share of the word n-grams that occurred earlier in the same text."""
    grams = _ngrams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def kl_to_reference(policy: MiniGPT, reference: MiniGPT, prompts: Sequence[str],
                    responses: Sequence[Response]) -> dict[str, float]:
    """KL(policy || reference) over responses sampled from the policy, in nats per response.

    `kl_sampled` is the mean of log pi/ref; `kl` sums, over the tokens of each response, the exact
    KL of the two next-token distributions.  Both estimate the same number, the second with far
    less noise.
    """
    examples = [tokenize_example(prompt, [response.ids], policy.max_seq_len)
                for prompt, response in zip(prompts, responses, strict=True)]

    def both(batch: Batch) -> Tensor:
        mask = batch.response_mask
        tokens = batch.token_ids[mask]
        logits, ref_logits = (response_logits(model, batch) for model in (policy, reference))
        sampled = kl_k1(logps_of(logits, tokens), logps_of(ref_logits, tokens))
        exact = exact_kl(logits, ref_logits)
        return torch.stack([place(kl, mask).sum(1) for kl in (sampled, exact)], 1)

    means = map_examples(both, Batches(examples, 128), policy.device).mean(0)
    sampled, exact = means.tolist()
    return {"kl_sampled_nats_per_response": sampled, "kl_nats_per_response": exact}


def evaluate_policy(policy: MiniGPT, reference: MiniGPT, prompts: Sequence[str], samples: int,
                    max_new_tokens: int, seed: int, measure: Measure | None = None,
                    score: Score | None = None) -> dict[str, float]:
    """Sample responses and report on them: text measures, KL to the reference, what `measure` says
    of the texts, and the mean `score` (of a reward model) as proxy_reward."""
    repeated, responses = sample_responses(policy, prompts, samples, max_new_tokens, seed)
    figures = {**text_measures(responses),
               **kl_to_reference(policy, reference, repeated, responses)}
    if measure is not None:
        figures |= measure(repeated, [response.text for response in responses])
    if score is not None:
        figures["proxy_reward"] = float(score(repeated, [r.ids for r in responses]).mean())
    return figures


def signs_of_collapse(figures: Mapping[str, float]) -> list[str]:
    """What no reader of a report should overlook, with what to change; [] if all is well."""
    kl = figures.get("kl_nats_per_response", 0.0)
    repeated = figures.get("repetition", 0.0)
    finished = figures.get("finished_share", 1.0)
    pull_harder = "halve --lr, or raise --beta (DPO) or --kl-coeff (PPO)"
    signs = {
        f"the policy is {kl:.0f} nats per response away from its reference: {pull_harder}":
            kl > FURTHEST_KL,
        f"{repeated:.0%} of an average response repeats itself: {pull_harder}": repeated > 0.5,
        f"only {finished:.0%} of the responses end by themselves: raise --max-new-tokens, or "
        "--missing-eos-penalty (PPO); for SFT, train longer, on responses that are not truncated":
            finished < 0.5,
    }
    return [sign for sign, seen in signs.items() if seen]


def show_before_and_after(before: MiniGPT, after: MiniGPT, prompts: Sequence[str],
                          max_new_tokens: int) -> None:
    """The end of a report: the same prompts answered before and after training."""
    answers = [generate(model, prompts, max_new_tokens, greedy=True) for model in (before, after)]
    print("\nThe most likely answer, before and after")
    for prompt, old, new in zip(prompts, *answers, strict=True):
        print(f"  {prompt}\n    before: {old.text!r}\n    after:  {new.text!r}")
