"""How well a model predicts demonstrations."""

from collections.abc import Mapping, Sequence

from data.examples import sft_examples
from minigpt.batching import Batches
from minigpt.logprobs import logps_of_examples
from minigpt.protocol import Model, checked_model


def evaluate_loss(model: Model, rows: Sequence[Mapping]) -> float:
    """The SFT loss over all rows, in nats per response token."""
    model = checked_model(model)
    batches = Batches(sft_examples(rows, model.max_seq_len), 128)
    tokens = sum(len(example.responses[0]) for example in batches.examples)
    return -float(logps_of_examples(model, batches).sum()) / tokens
