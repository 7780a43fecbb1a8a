import random

import pytest

from minigpt import EOS, PAD, SEP, VOCAB_SIZE, decode, encode

ALL_OF_UNICODE = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
HAND_PICKED = ["", "a", "\0", "\n\r\t", "é", "日本語", "🙂", "👩‍👩‍👧", "a\u0301", "\ufeff",
               "\ufffd", "\U0010ffff", "ÿþý", "\x7f\x80"]


def test_every_character_of_unicode_survives_encode_and_decode():
    assert decode(encode(ALL_OF_UNICODE)) == ALL_OF_UNICODE


def test_no_text_encodes_to_a_special_token():
    used = set(encode(ALL_OF_UNICODE))
    assert used.isdisjoint({EOS, PAD, SEP})
    assert max(used) < min(EOS, PAD, SEP) <= max(EOS, PAD, SEP) < VOCAB_SIZE == 256
    assert len({EOS, PAD, SEP}) == 3


@pytest.mark.parametrize("text", HAND_PICKED)
def test_hand_picked_text_survives_encode_and_decode(text):
    assert decode(encode(text)) == text
    assert encode(text) == list(text.encode("utf-8"))


def test_random_text_survives_encode_and_decode():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(ALL_OF_UNICODE, k=rng.randint(0, 40)))
        assert decode(encode(text)) == text


def test_decode_accepts_any_ids_and_drops_special_tokens():
    rng = random.Random(0)
    for _ in range(300):
        assert isinstance(decode(rng.choices(range(256), k=rng.randint(0, 40))), str)
    assert decode([SEP, *encode("hi"), EOS, PAD, PAD]) == "hi"
    assert decode([0x80, 0x41]) == "\ufffdA"


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(UnicodeEncodeError):
        encode("\ud800")
