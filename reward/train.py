"""The reward model's loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.examples import preference_examples
from minigpt.batching import Batches
from minigpt.distributed import world_size
from minigpt.errors import UserError
from minigpt.options import option
from minigpt.settings import EpochConfig
from minigpt.training import TrainingLoop
from minigpt.weights import unwrapped
from reward.loss import bradley_terry_loss
from reward.model import POOLINGS, READINGS, RewardModel


@dataclass
class RewardConfig(EpochConfig):
    """The settings of reward modelling, and their defaults."""

    num_epochs: int = option(2, "passes over the pairs", at_least=1)
    lr: float = option(3e-4, "peak learning rate", above=0)
    warmup: float = option(0.1, "share of the steps over which the learning rate rises from 0",
                           at_least=0, at_most=1)
    batch_size: int = option(16, "pairs in one optimizer step", at_least=1)
    weight_decay: float = option(0.1, "AdamW's weight decay (of matrices only)", at_least=0)
    pooling: str = option("last", "what is scored: the last token of a response, or the mean over "
                                  "its tokens, or their sum (over 64)", choices=POOLINGS)
    reads: str = option("both", "what is read: prompt and response, the response alone, or only "
                                "phrases of a few bytes, from random weights (with --pooling sum)",
                        choices=READINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads == "phrases" and self.pooling == "last":
            raise UserError("reads=phrases (--reads) needs pooling=sum or mean (--pooling): the "
                            "last phrase of a response says little")


def train_reward_model(model: RewardModel, rows: Sequence[Mapping],
                       num_epochs: int = RewardConfig.num_epochs, lr: float = RewardConfig.lr,
                       **options) -> tuple[RewardModel, list[float], list[float]]:
    """Train `model` in place on preference rows; options: the fields of RewardConfig.

    Returns the model (in eval mode), and the loss and the accuracy of every step (on its pairs).
    Raises TypeError on another model, DataError on a row that cannot be used, FloatingPointError if
    a loss or a weight is not finite.
    """
    model = unwrapped(model)
    if not isinstance(model, RewardModel):
        raise TypeError(f"train_reward_model trains a RewardModel, and a {type(model).__name__} is "
                        "none: make one with RewardModel(), or RewardModel.from_policy(a MiniGPT)")
    config = RewardConfig(num_epochs=num_epochs, lr=lr, **options)
    examples = preference_examples(rows, model.max_seq_len)
    batches = Batches(examples, config.batch_size * world_size(), config.seed)
    loop = TrainingLoop({"reward": model.train()}, config, batches, num_epochs * len(batches))
    optimizer, log = loop.optimizer, loop.log
    for microbatches in loop.steps(config.accumulate):              # one optimizer step each
        for batch in microbatches:
            with optimizer.precision():
                rewards = model.rewards(batch)                      # (B, 2)
                loss, metrics = bradley_terry_loss(*rewards.unbind(1))
            optimizer.backward(batch.weight * loss)
            log.add({"loss": loss, **metrics}, batch.weight)
        grad_norm = optimizer.step()                             # clip, step, clear
        log.write({"grad_norm": grad_norm})
    return loop.gathered("reward").eval(), log.history["loss"], log.history["accuracy"]
