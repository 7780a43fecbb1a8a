import math
import random
import re

import pytest
import torch

from minigpt import EOS, PAD, SEP, Response, decode, encode, generate
from minigpt.evaluation import (
    distinct_n,
    kl_to_reference,
    repetition,
    sample_responses,
    signs_of_collapse,
    text_measures,
)
from minigpt.examples import tokenize_prompt
from minigpt.kl import exact_kl


def test_distinct_n_by_hand():
    assert distinct_n(["a b c", "a b d"], 2) == 3 / 4
    assert distinct_n(["a b", "A B", "a, b!"], 2) == 1 / 3
    assert distinct_n(["a"], 2) == 0.0


def test_repetition_by_hand():
    assert repetition("a b c a b c") == 1 / 4
    assert repetition("one two three four") == 0.0
    assert repetition("a") == 0.0


def test_text_measures_by_hand():
    measures = text_measures([Response("é b", [*encode("é b"), EOS], True),
                              Response("a", encode("a"), False)])
    assert measures == {"finished_share": 0.5, "response_bytes": 2.5, "distinct_2": 1.0,
                        "repetition": 0.0}


def test_what_is_no_text_counts_as_the_bytes_that_were_generated():
    ids = [0x80, 0x81, 0x82, 0x83, EOS]  # each of them no UTF-8, so three bytes of U+FFFD
    measures = text_measures([Response(decode(ids), ids, True)])
    assert len(decode(ids).encode()) == 12
    assert measures["response_bytes"] == 4 and measures["repetition"] == 0.0
    ids = [0x80] * 4
    assert text_measures([Response(decode(ids), ids, False)])["repetition"] == 3 / 4
    ids = [SEP, PAD, EOS]
    assert text_measures([Response(decode(ids), ids, True)])["response_bytes"] == 0


def brute_force_repetition(content):
    """The most bytes of a run's repeats, from left to right, by trying every unit at each byte."""
    again, at = 0, 0
    while at < len(content):
        for size in range(1, 9):
            unit, count = content[at:at + size], 1
            while len(unit) == size and content[at + count * size:][:size] == unit:
                count += 1
            if count >= 3:
                again += (count - 1) * size
                at += count * size
                break
        else:
            at += 1
    return again / max(1, len(content))


def test_repetition_counts_bytes_that_say_again_what_stands_before_them():
    assert repetition("wwww") == 3 / 4
    assert repetition("hahaha") == 4 / 6
    assert repetition("x" + "abcdefgh" * 5) == 32 / 41
    assert repetition("ww") == repetition("") == repetition("hello, well met") == 0.0
    assert repetition("no no no no no") == pytest.approx(2 / 3)
    assert repetition("e" * 10_000) > 0.99
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("ab ", k=rng.randint(0, 30)))
        words = text.split()
        grams = list(zip(words, words[1:], words[2:], strict=False))
        of_words = 1 - len(set(grams)) / len(grams) if grams else 0
        assert repetition(text) == max(of_words, brute_force_repetition(text.encode())), text


def test_samples_stand_beside_their_prompts(reciter, recited):
    answers = {row["prompt"]: row["response"] for row in recited}
    prompts, responses = sample_responses(reciter, list(answers), 3, 40, seed=0)
    assert prompts == [prompt for prompt in answers for _ in range(3)]
    right = [response.text == answers[prompt]
             for prompt, response in zip(prompts, responses, strict=True)]
    assert sum(right) > 0.8 * len(right)


def test_kl_to_oneself_is_zero(make_model, copy_of):
    model = make_model()
    prompts, responses = sample_responses(model, ["a", "bcd"], 4, 10, seed=0)
    found = kl_to_reference(model, copy_of(model), prompts, responses)
    assert all(abs(kl) < 1e-5 for kl in found.values())


def test_kl_of_one_token_answers_is_that_of_the_two_softmaxes(make_model):
    policy, reference = make_model(1), make_model(2)
    ids = torch.tensor([tokenize_prompt("hi", 64)])
    expected = float(exact_kl(policy(ids)[0, -1], reference(ids)[0, -1]).detach())
    prompts = ["hi"] * 5
    found = kl_to_reference(policy, reference, prompts, generate(policy, prompts, 1, seed=0))
    assert found["kl_nats_per_response"] == pytest.approx(expected, abs=1e-4)


def test_sampled_and_exact_kl_agree_within_the_noise(make_model):
    policy, reference = make_model(1, spread=5), make_model(2, spread=5)
    prompts = ["hi"] * 2000
    found = kl_to_reference(policy, reference, prompts, generate(policy, prompts, 4, seed=0))
    exact, sampled = found["kl_nats_per_response"], found["kl_sampled_nats_per_response"]
    assert exact > 1
    assert abs(sampled - exact) < 10 / math.sqrt(len(prompts))


@pytest.mark.parametrize(("figures", "words"), [
    ({"kl_nats_per_response": 30.0}, r"30 nats.*: raise --beta$"),
    ({"repetition": 0.8}, r"80% of an average response repeats.*: lower --lr$"),
    ({"finished_share": 0.1}, r"only 10% of the responses end by themselves$")])
def test_a_collapse_is_reported_in_words_that_say_what_to_change(figures, words):
    well = {"kl_nats_per_response": 2.0, "repetition": 0.01, "finished_share": 1.0}
    advice = {"kl_nats_per_response": "raise --beta", "repetition": "lower --lr"}
    assert signs_of_collapse(well, advice) == signs_of_collapse({}) == []
    (sign,) = signs_of_collapse({**well, **figures}, advice)
    assert re.search(words, sign)
    (without,) = signs_of_collapse({**well, **figures})
    assert sign.startswith(without) and "--" not in without
