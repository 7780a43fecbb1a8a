"""Text to token ids and back: one token per byte, and three special tokens.

With bytes as tokens the vocabulary has 256 entries, and no tokenizer has to be trained.  The bytes
0xF8-0xFF never occur in UTF-8 (RFC 3629), so three of them can serve as special tokens: no text can
contain or forge one.

    one row:   prompt bytes  SEP  response bytes  EOS  PAD PAD ...

PAD and EOS differ on purpose.  If they were the same, masking the padding would also mask the EOS,
and the model would never learn to stop.
"""

SEP = 0xFD  # between prompt and response
PAD = 0xFE  # pads the rows of a batch to one length; never a target, never scored
EOS = 0xFF  # ends a response; belongs to it, so it is a target and is scored
VOCAB_SIZE = 256

_FIRST_SPECIAL = 0xF8


def encode(text: str) -> list[int]:
    """The UTF-8 bytes of `text`, all below 0xF8.  Raises UnicodeEncodeError on a lone surrogate."""
    return list(text.encode("utf-8"))


def decode(ids: list[int]) -> str:
    """The text of `ids`, without special tokens; invalid UTF-8 from a model becomes U+FFFD."""
    return bytes(i for i in ids if i < _FIRST_SPECIAL).decode("utf-8", errors="replace")
