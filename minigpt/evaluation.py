"""What a policy says: sample from it, measure the responses, compare with the reference."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

import torch
from torch import Tensor

from minigpt.batching import Batch, Batches
from minigpt.examples import check_texts, each_once, tokenize_responses
from minigpt.kl import exact_kl, kl_k1
from minigpt.logprobs import comparable_model, logps_of, map_examples, place, response_logits
from minigpt.processor import return_freed_memory
from minigpt.protocol import Model
from minigpt.report import Section
from minigpt.sampling import Response, generate
from minigpt.tokenizer import EOS, PAD, SEP
from minigpt.weights import device_of

WORD = re.compile(r"\w+")
RUN = re.compile(rb"(.{1,8}?)\1{2,}", re.DOTALL)
SPECIAL_TOKENS = (SEP, PAD, EOS)
FURTHEST_KL = 20.0  # nats per response; the methods here end at 1 to 3
MOST_REPETITION, FEWEST_FINISHED = 0.5, 0.5

Measure = Callable[[Sequence[str], Sequence[str]], dict[str, float]]  # of prompts and responses
Score = Callable[[Sequence[str], Sequence[list[int]]], Tensor]         # the same, as sampled ids


def sample_responses(policy: Model, prompts: Sequence[str], samples: int, max_new_tokens: int,
                     seed: int) -> tuple[list[str], list[Response]]:
    """`samples` responses to each prompt: the repeated prompts, and a response for each."""
    check_texts("prompts", prompts)
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    return repeated, generate(policy, repeated, max_new_tokens, seed=seed)


def text_measures(responses: Sequence[Response]) -> dict[str, float]:
    """Length, endings, diversity and repetition of sampled responses."""
    texts = [response.text for response in responses]
    return {"finished_share": mean(response.finished for response in responses),
            "response_bytes": mean(len(_content(response)) for response in responses),
            "distinct_2": distinct_n(texts, 2),
            "repetition": mean(repetition(_content(response)) for response in responses)}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams (Li et al. 2016, arXiv:1510.03055), or 0.

    It falls as the number of texts grows, so compare only equally many.
    """
    check_texts("texts", texts)
    grams = Counter(gram for text in texts for gram in _ngrams(text, n))
    return len(grams) / max(1, grams.total())


def repetition(text: str | bytes, n: int = 3) -> float:
    """How much of a text repeats itself, from 0 to 1: the larger of two shares.

    Of its word n-grams, those that occurred earlier; of its bytes, those that only say again what
    stands right before them (up to eight bytes, at least three times in a row, as in "wwww").
    """
    content = text.encode() if isinstance(text, str) else text
    grams = _ngrams(content.decode(errors="replace"), n)
    of_words = 1 - len(set(grams)) / len(grams) if grams else 0.0
    again = sum(len(run[0]) - len(run[1]) for run in RUN.finditer(content))
    return max(of_words, again / max(1, len(content)))


def _content(response: Response) -> bytes:
    """The bytes that were generated: in the text, what is no UTF-8 has become U+FFFD."""
    return bytes(i for i in response.ids if i not in SPECIAL_TOKENS)


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def kl_to_reference(policy: Model, reference: Model, prompts: Sequence[str],
                    responses: Sequence[Response]) -> dict[str, float]:
    """KL(policy || reference) over responses sampled from the policy, in nats per response.

    `kl_sampled` is the mean of log pi/ref; `kl` sums, over the tokens of each response, the exact
    KL of the two next-token distributions.  Both estimate the same number, the second with far
    less noise.
    """
    check_texts("prompts", prompts)
    policy, reference = comparable_model(policy), comparable_model(reference)
    once, answers, index = each_once(prompts, [response.ids for response in responses])
    examples = tokenize_responses(once, answers, policy.max_seq_len)
    if policy is reference:  # two models would give the same up to rounding, in two passes
        return {"kl_sampled_nats_per_response": 0.0, "kl_nats_per_response": 0.0}

    def both(batch: Batch) -> Tensor:
        mask = batch.response_mask
        tokens = batch.token_ids[mask]
        logits, ref_logits = (response_logits(model, batch) for model in (policy, reference))
        sampled = kl_k1(logps_of(logits, tokens), logps_of(ref_logits, tokens))
        exact = exact_kl(logits, ref_logits)
        return torch.stack([batch.response_sums(place(kl, mask)) for kl in (sampled, exact)], -1)

    kls = map_examples(both, Batches(examples, 32), device_of(policy))              # (N, k, 2)
    sampled, exact = kls.flatten(0, 1)[index].mean(0).tolist()
    return {"kl_sampled_nats_per_response": sampled, "kl_nats_per_response": exact}


def evaluate_policy(policy: Model, reference: Model, prompts: Sequence[str], samples: int,
                    max_new_tokens: int, seed: int, measure: Measure | None = None,
                    score: Score | None = None) -> dict[str, float]:
    """Sample responses and report on them: text measures, KL to the reference, what `measure` says
    of the texts, and the mean `score` (of a reward model) as proxy_reward."""
    return_freed_memory()  # what was trained before took other blocks
    repeated, responses = sample_responses(policy, prompts, samples, max_new_tokens, seed)
    figures = {**text_measures(responses),
               **kl_to_reference(policy, reference, repeated, responses)}
    if measure is not None:
        figures |= measure(repeated, [response.text for response in responses])
    if score is not None:
        figures["proxy_reward"] = float(score(repeated, [r.ids for r in responses]).mean())
    return figures


def signs_of_collapse(figures: Mapping[str, float],
                      advice: Mapping[str, str] | None = None) -> list[str]:
    """What no reader of a report should overlook, with what to do about it; [] if all is well.

    advice: what to do, by the name of the figure that shows the sign.
    """
    kl = figures.get("kl_nats_per_response", 0.0)
    repeated = figures.get("repetition", 0.0)
    finished = figures.get("finished_share", 1.0)
    signs = {
        "kl_nats_per_response": (kl > FURTHEST_KL, f"the policy is {kl:.0f} nats per response away "
                                                   "from its reference"),
        "repetition": (repeated > MOST_REPETITION, f"{repeated:.0%} of an average response repeats "
                                                   "itself"),
        "finished_share": (finished < FEWEST_FINISHED, f"only {finished:.0%} of the responses end "
                                                       "by themselves"),
    }
    seen = {name: sign for name, (is_seen, sign) in signs.items() if is_seen}
    return [f"{sign}: {advice[name]}" if advice and name in advice else sign
            for name, sign in seen.items()]


def before_and_after(before: Model, after: Model, prompts: Sequence[str],
                     max_new_tokens: int) -> Section:
    """A section of a report: the same prompts answered before and after training."""
    answers = [map(said, generate(model, prompts, max_new_tokens, greedy=True))
               for model in (before, after)]
    rows = map(list, zip(prompts, *answers, strict=True))
    return Section("The most likely answer, before and after",
                   [[["prompt", "before", "after"], *rows]])


def said(response: Response) -> str:
    """A response as a report shows it."""
    return (response.text or "(nothing)") + " [did not end]" * (not response.finished)
