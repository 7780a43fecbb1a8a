"""What the loops need of a language model: any nn.Module that has it can be trained and sampled.

    class TinyGRU(nn.Module):
        max_seq_len = 128                                     # the longest row it reads, in tokens

        def __init__(self, width: int = 64):
            super().__init__()
            self.embedding = nn.Embedding(VOCAB_SIZE, width)
            self.gru = nn.GRU(width, width, batch_first=True)
            self.head = nn.Linear(width, VOCAB_SIZE)

        def forward(self, token_ids: Tensor) -> Tensor:       # (B, T) -> (B, T, 256)
            return self.head(self.gru(self.embedding(token_ids))[0])

Such a model reads rows of one response each.  One that can also hide tokens from one another, as
MiniGPT does, reads all responses to a prompt in one row, which is faster: a PackingModel.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from minigpt.batching import Batch, collate
from minigpt.examples import tokenize_example
from minigpt.fast import Positions
from minigpt.model import MiniGPT
from minigpt.tokenizer import VOCAB_SIZE
from minigpt.weights import device_of, unwrapped

LOGITS = f"logits (B, T, {VOCAB_SIZE})"


class LanguageModel(Protocol):
    """An nn.Module that predicts bytes."""

    max_seq_len: int  # the longest row (a prompt and one response) that it reads, in tokens

    def forward(self, token_ids: Tensor) -> Tensor:
        """Next-token logits, (B, T) -> (B, T, 256): column t predicts token t + 1.

        Column t depends on tokens 0 to t alone, so padding on the right changes nothing.
        """


class PackingModel(LanguageModel, Protocol):
    """A language model that can read several responses in one row (minigpt/masks.py)."""

    def hidden_states(self, token_ids: Tensor, positions: Tensor, visible: Tensor | None,
                      at: Positions) -> Tensor:
        """(B, T) -> (N, D), the output of the last layer for the N tokens `at` (rows, columns).

        positions (B, T): the position of each token.  visible (B, T, T): True where query t may see
        key s; None if each token sees itself and all those before it.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (N, 256)."""


Model: TypeAlias = Any  # a LanguageModel that is an nn.Module, too: a type cannot say both


def packs_rows(model: Model) -> bool:
    """Whether this is a PackingModel; if not, it is given rows of one response each."""
    if type(model) is MiniGPT:
        return True
    if not (hasattr(model, "hidden_states") and hasattr(model, "logits")):
        return False
    taken = inspect.signature(model.hidden_states).parameters
    return {"positions", "visible", "at"} <= taken.keys()


def row_logits(model: Model, token_ids: Tensor) -> Tensor:
    """model(token_ids): (B, T) -> (B, T, V).  Raises TypeError if these are no logits.

    In the precision of the model's weights, under autocast too: log-probabilities are small
    differences of large numbers, and no head but MiniGPT's sees to that itself.
    """
    name, expected = type(model).__name__, (*token_ids.shape, VOCAB_SIZE)
    try:
        with torch.autocast(token_ids.device.type, enabled=False):
            logits = model(token_ids)
    except IndexError as error:
        raise TypeError(f"{name} cannot read token ids up to {int(token_ids.max())} in a row of "
                        f"{token_ids.shape[1]} ({error}): it needs a vocabulary of {VOCAB_SIZE} "
                        f"and room for max_seq_len={model.max_seq_len} tokens") from error
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name}(token_ids) returned a {type(logits).__name__}, but a tensor of "
                        f"{LOGITS} is needed: let forward return that alone")
    if logits.shape != expected:
        raise TypeError(f"{name}(token_ids) returned a tensor of shape {tuple(logits.shape)}, but "
                        f"{LOGITS} are needed, here {expected}")
    return logits.float()


# --- checks, before anything is trained -----------------------------------------------------------


@torch.no_grad()
def checked_model(model: Model) -> Model:
    """The model inside what may wrap it.  MiniGPT is taken as it is.

    Raises TypeError, naming what it lacks, if this is no LanguageModel; ValueError if it sees the
    tokens that it has to predict.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a {type(model).__name__} is no language model: an nn.Module is needed, "
                        f"with max_seq_len and forward(token_ids (B, T)) -> {LOGITS}")
    model = unwrapped(model)
    if isinstance(model, MiniGPT) and model.settings["vocab_size"] == VOCAB_SIZE:
        return model
    missing = missing_parts(model)
    if missing:
        raise TypeError(f"a {type(model).__name__} is no language model: it lacks "
                        f"{', and '.join(missing)}. See LanguageModel in minigpt/protocol.py")
    token_ids = probe(model).apart().token_ids
    with in_mode(model, training=False):
        whole, begun = row_logits(model, token_ids), row_logits(model, token_ids[:, :-1])
    if not close(whole[:, :-1], begun, model):
        raise ValueError(f"{type(model).__name__} is not causal: what it predicts changes with the "
                         "tokens that follow, so it would learn to copy them. Hide from each token "
                         "all that come after it")
    return model


def missing_parts(model: nn.Module) -> list[str]:
    """What every LanguageModel has and this one has not, in words."""
    has = {"max_seq_len (the longest row that it reads, in tokens)":
           isinstance(getattr(model, "max_seq_len", None), int),
           f"forward(token_ids (B, T)) -> {LOGITS}": type(model).forward is not nn.Module.forward,
           "weights": next(model.parameters(), None) is not None}
    return [part for part, is_there in has.items() if not is_there]


def probe(model: Model) -> Batch:
    """A prompt with two responses in one row, on the model's device, to see how it reads them."""
    example = tokenize_example("?", ["It is four.", "5"], model.max_seq_len)
    return collate([example]).to(device_of(model))


@contextmanager
def in_mode(model: Model, training: bool) -> Iterator[None]:
    """Within the block the model is in this mode."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def close(found: Tensor, expected: Tensor, model: nn.Module) -> bool:
    """Whether logits are the same but for the rounding of the model's arithmetic."""
    tolerance = max(1e-3, 4 * torch.finfo(next(model.parameters()).dtype).eps)
    return found.shape == expected.shape and \
        torch.allclose(found, expected, tolerance, tolerance, equal_nan=True)
