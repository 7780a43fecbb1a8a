"""Bytes to ids and back, and the three reserved ids.

A token is one byte, so the vocabulary is 256 and nothing has to be learned before the model.  The bytes 0xF8-0xFF
never occur in UTF-8 (RFC 3629), so three of them mark the structure of a row without taking a character from
anyone: no text that a user types can contain, or forge, an end of response.

    one row:   prompt bytes  SEP  response bytes  EOS  PAD PAD ...

PAD differs from EOS on purpose.  Where the two are the same, masking the padding masks the end as well, and the
model never learns to stop.
"""

SEP = 0xFD  # between prompt and response
PAD = 0xFE  # fills a batch to a rectangle; never predicted, never scored
EOS = 0xFF  # ends a response; part of the response, so it is trained and scored
VOCAB_SIZE = 256

_FIRST_RESERVED = 0xF8


def encode(text: str) -> list[int]:
    """The UTF-8 bytes of `text`, each below 0xF8.  Raises UnicodeEncodeError on a lone surrogate."""
    return list(text.encode("utf-8"))


def decode(ids: list[int]) -> str:
    """The text of `ids`.  Reserved ids vanish; bytes that are not UTF-8 (a model can emit them) become U+FFFD."""
    return bytes(i for i in ids if i < _FIRST_RESERVED).decode("utf-8", errors="replace")
