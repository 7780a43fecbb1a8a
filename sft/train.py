"""The SFT loop, which also trains the base model: plain text is a response to an empty prompt."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.examples import sft_examples
from minigpt.batching import Batches
from minigpt.distributed import world_size
from minigpt.logprobs import token_logps
from minigpt.options import option
from minigpt.protocol import Model, checked_model
from minigpt.settings import EpochConfig
from minigpt.training import TrainingLoop
from sft.loss import sft_loss


@dataclass
class SFTConfig(EpochConfig):
    """The settings of SFT, and their defaults."""

    num_epochs: int = option(1, "passes over the demonstrations", at_least=1)
    min_steps: int = option(1, "optimizer steps, at least: few rows are passed over more often",
                            at_least=1)
    batch_size: int = option(8, "rows in one optimizer step", at_least=1)
    lr: float = option(1.5e-3, "peak learning rate (high, since the model is trained from scratch)",
                       above=0)
    weight_decay: float = option(0.1, "AdamW's weight decay (of matrices only)", at_least=0)
    base_lr: float = option(2e-3, "peak learning rate of the base model, which reads plain text",
                            above=0)
    plain_share: float = option(0.3, "rows of plain text mixed in per demonstration, so that the "
                                     "model does not forget it", at_least=0)


def sft_train(model: Model, rows: Sequence[Mapping], num_epochs: int = SFTConfig.num_epochs,
              lr: float = SFTConfig.lr, **options) -> tuple[Model, list[float]]:
    """Train `model` in place on {"prompt", "response"} rows; options: the fields of SFTConfig.

    The model is a MiniGPT, or any other LanguageModel (minigpt/protocol.py).
    Returns the model (in eval mode) and the loss of every step, in nats per response token.
    Raises DataError on a row that cannot be used, TypeError on another model, ValueError on one
    that sees the tokens that it has to predict, FloatingPointError if a loss or a weight is not
    finite.
    """
    model = checked_model(model)
    config = SFTConfig(num_epochs=num_epochs, lr=lr, **options)
    examples = sft_examples(rows, model.max_seq_len)
    batches = Batches(examples, config.batch_size * world_size(), config.seed)
    epochs = max(num_epochs, math.ceil(config.min_steps / len(batches)))
    loop = TrainingLoop({"model": model.train()}, config, batches, epochs * len(batches))
    optimizer, log = loop.optimizer, loop.log
    for microbatches in loop.steps(config.accumulate, by_tokens=True):  # one optimizer step each
        for batch in microbatches:
            with optimizer.precision():
                logps = token_logps(model, batch)                       # (B, T)
                loss, metrics = sft_loss(logps, batch.response_mask)
            optimizer.backward(batch.weight * loss)
            log.add({"loss": loss, **metrics}, batch.weight)
        grad_norm = optimizer.step()                             # clip, step, clear
        log.write({"grad_norm": grad_norm})
    return loop.gathered("model").eval(), log.history["loss"]
