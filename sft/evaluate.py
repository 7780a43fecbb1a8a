"""How well a model predicts demonstrations."""

from collections.abc import Mapping, Sequence

from data.examples import sft_examples
from minigpt.batching import Batches
from minigpt.logprobs import logps_of_examples
from minigpt.model import MiniGPT
from minigpt.weights import unwrapped


def evaluate_loss(model: MiniGPT, rows: Sequence[Mapping]) -> float:
    """The SFT loss over all rows, in nats per response token."""
    model = unwrapped(model)
    batches = Batches(sft_examples(rows, model.max_seq_len), 128)
    tokens = sum(len(example.responses[0]) for example in batches.examples)
    return -float(logps_of_examples(model, batches).sum()) / tokens
