"""The SFT loop, which is also the loop that makes the base model: plain text is a response to an empty prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from data.examples import sft_examples
from minigpt.batching import Batches
from minigpt.cli import option
from minigpt.distributed import world_size
from minigpt.logprobs import logps_of_examples, token_logps
from minigpt.model import MiniGPT
from minigpt.training import EpochConfig, TrainingRun
from sft.loss import sft_loss


@dataclass
class SFTConfig(EpochConfig):
    """The recipe of `python -m sft.main`."""

    OWN_DATA: ClassVar[dict] = {"num_epochs": 3}

    num_epochs: int = option(1, "passes over the demonstrations")
    batch_size: int = option(8, "rows in one optimizer step")
    lr: float = option(1.5e-3, "peak learning rate (from scratch, so far above a fine-tuning rate)")
    weight_decay: float = option(0.1, "AdamW's pull of matrices towards zero")
    base_lr: float = option(2e-3, "peak learning rate of the base model, which reads plain text first")
    plain_share: float = option(0.3, "plain text mixed into SFT, in rows for each demonstration: against forgetting")


def sft_train(model: MiniGPT, rows: Sequence[Mapping], num_epochs: int = 1, lr: float = 1.5e-3,
              **options) -> tuple[MiniGPT, list[float]]:
    """Train `model` in place on {"prompt", "response"} rows; more options: the fields of SFTConfig.

    Returns the model (in eval mode) and the loss of every step, in nats per response token.
    Raises DataError on a row that cannot be used, FloatingPointError if the loss is not finite.
    """
    config = SFTConfig(num_epochs=num_epochs, lr=lr, **options)
    batches = Batches(sft_examples(rows, model.max_seq_len), config.batch_size * world_size(), config.seed)
    run = TrainingRun({"model": model.train()}, config, config.num_epochs * len(batches), batches.examples)
    for batch in run.steps(batches, config.accumulate, by_tokens=True):
        logps = token_logps(model, batch.token_ids, batch.segments)
        loss, metrics = sft_loss(logps, batch.response_mask)
        run.update(loss, metrics)
    return run.whole("model").eval(), run.history["loss"]


def evaluate_loss(model: MiniGPT, rows: Sequence[Mapping]) -> float:
    """Mean loss over rows, in nats per response token."""
    batches = Batches(sft_examples(rows, model.max_seq_len), 128)
    tokens = sum(len(example.responses[0]) for example in batches.examples)
    return -float(logps_of_examples(model, batches).sum()) / tokens
