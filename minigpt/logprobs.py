"""Log-probabilities of responses, in nats."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.batching import Batch, Batches
from minigpt.examples import Text, check_texts, tokenize_example
from minigpt.fast import select
from minigpt.masks import positions_and_visibility, predictor_positions
from minigpt.model import MiniGPT
from minigpt.processor import onednn_matmul
from minigpt.protocol import (
    Model,
    checked_model,
    close,
    packs_rows,
    probe,
    row_logits,
)
from minigpt.weights import device_of


def response_logits(model: Model, batch: Batch) -> Tensor:
    """Logits (N, V) that predict the N response tokens, in row order.

    MiniGPT computes no others; so does any PackingModel.  Other models read each response alone.
    """
    if not packs_rows(model):
        batch = batch.apart()
        return select(row_logits(model, batch.token_ids), predictor_positions(batch.segments))
    positions, visible = positions_and_visibility(batch.segments)
    at = predictor_positions(batch.segments)
    return model.logits(model.hidden_states(batch.token_ids, positions, visible, at=at))


def logps_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[token]: (N, V), (N,) -> (N,)."""
    return -F.cross_entropy(logits, tokens, reduction="none")


def place(values: Tensor, mask: Tensor) -> Tensor:
    """One value for each True place of the mask, in row order, and 0 elsewhere: (N,) -> (B, T)."""
    zeros = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return zeros.masked_scatter(mask, values)


def token_logps(model: Model, batch: Batch) -> Tensor:
    """log p(token t | tokens before t) on response tokens, 0 elsewhere: (B, T), differentiable."""
    mask = batch.response_mask
    return place(logps_of(response_logits(model, batch), batch.token_ids[mask]), mask)


def response_logps(model: Model, batch: Batch) -> Tensor:
    """Summed log-probability of each response, EOS included: (B, k) for k responses a row."""
    return batch.response_sums(token_logps(model, batch))


def sequence_logps(model: Model, prompts: Sequence[str], responses: Sequence[Text],
                   batch_size: int = 64) -> Tensor:
    """Summed log-probability of each response given its prompt, EOS included, in nats: (B,).

    A response is a text, or ids as `generate` returned them.
    Raises ValueError if the two lists differ in length or are empty, or if a pair does not fit into
    max_seq_len (the sum over half a response would be a wrong answer); TypeError if one of them is
    a single string.
    """
    check_texts("prompts", prompts)
    check_texts("responses", responses)
    model = checked_model(model)
    examples = [tokenize_example(prompt, [response], model.max_seq_len)
                for prompt, response in zip(prompts, responses, strict=True)]
    for index, example in enumerate(examples):
        if example.is_truncated:
            raise ValueError(f"row {index}: prompt and response do not fit into "
                             f"max_seq_len={model.max_seq_len}")
    if not examples:
        raise ValueError("prompts is empty: there is nothing to score")
    return logps_of_examples(model, Batches(examples, batch_size))[:, 0]


def logps_of_examples(model: Model, batches: Batches) -> Tensor:
    """`response_logps` of every example, without a gradient: (N, k) for k responses an example."""
    return map_examples(lambda batch: response_logps(model, batch), batches, device_of(model))


@torch.no_grad()
@onednn_matmul()
def map_examples(function: Callable[[Batch], Tensor], batches: Batches,
                 device: torch.device) -> Tensor:
    """Apply a function (batch of B examples -> (B, k)) to every example once, in order: (N, k)."""
    order = batches.by_length()
    values = torch.cat([function(batches.collate(indices).to(device)).float() for indices in order])
    inverse = torch.tensor([i for indices in order for i in indices], device=device).argsort()
    return values[inverse]


@torch.no_grad()
def comparable_model(model: Model) -> Model:
    """As `checked_model`, for where log-probabilities are compared.  MiniGPT is taken as it is.

    Raises ValueError, too, if log-ratios of this model would mean nothing: if dropout makes its
    log-probabilities random in the mode that it is in, or if it takes the masks with which
    responses share a row and does not use them.  Training would run, and its loss fall, all the
    same.
    """
    model = checked_model(model)
    if type(model) is MiniGPT:
        return model
    name, batch = type(model).__name__, probe(model)
    packed, again, alone = (response_logits(model, b) for b in (batch, batch, batch.apart()))
    if not close(again, packed, model):
        raise ValueError(f"{name} gives the same text another probability each time, so log-ratios "
                         "would be noise: set its dropout to 0 (or, if it is only read, call eval)")
    if not close(packed, alone, model):
        raise ValueError(f"{name}.hidden_states takes positions and visible, but reads a response "
                         "that shares its row with another one differently from one that is alone: "
                         "let each query see the keys where visible is True and no others, and "
                         "number the tokens by positions. Or leave both parameters out, and each "
                         "response gets a row of its own")
    return model
