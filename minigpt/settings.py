"""The settings that all training runs share, each also an option of the command line."""

from dataclasses import dataclass
from typing import Any

from minigpt import distributed
from minigpt.errors import UserError
from minigpt.options import Settings, option
from minigpt.seeding import LARGEST_SEED

PRECISION = "arithmetic of matrix products (auto: bfloat16 where the CPU or GPU has it)"
FINAL_LR = "learning rate at the end of the cosine decay, over its peak (1: it stays there)"
AVERAGE = "share of the steps (PPO: episodes), the last ones, over which the weights are " \
          "averaged; the result is their mean (0: the weights at the end)"
PRECISIONS = ("auto", "float32", "bfloat16")


def name_of(choice: Any) -> str:
    """What a choice is called by in a run's settings: its name, or that of a function of one's own.
    """
    if isinstance(choice, str):
        return choice
    return getattr(choice, "__qualname__", type(choice).__qualname__)


@dataclass
class TrainingConfig(Settings):
    """Settings of any training run; each stage adds its own and sets the defaults."""

    lr: float = option(1e-3, "peak learning rate of AdamW", above=0)
    batch_size: int = option(64, "examples in one optimizer step (of each process)",
                             at_least=1)
    warmup: float = option(0.05, "share of the steps over which the learning rate rises from 0",
                           at_least=0, at_most=1)
    final_lr: float = option(0.0, FINAL_LR, at_least=0, at_most=1)
    average: float = option(0.0, AVERAGE, at_least=0, at_most=1)
    weight_decay: float = option(0.0, "AdamW's weight decay (of matrices only)", at_least=0)
    max_grad_norm: float = option(1.0, "clip each model's gradient to this norm (0: do not clip)",
                                  at_least=0)
    precision: str = option("float32", PRECISION, PRECISIONS)
    seed: int = option(0, "seed of the data order and of sampling", at_least=0,
                       at_most=LARGEST_SEED)
    out: str | None = option(None, "folder for metrics.jsonl and checkpoints")
    save_every: int = option(500, "steps between two checkpoints", at_least=1)
    shard: bool = option(False, "under torchrun: spread the model over the processes (FSDP2), for "
                                "models that do not fit into one")
    resume: bool = option(False, "continue the run in --out")
    overwrite: bool = option(False, "replace the run in --out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise UserError("--resume continues a run and --overwrite replaces it: choose one")
        if self.resume and self.out is None:
            raise UserError("--resume continues the run in a folder: name it (out)")
        if self.shard and not distributed.is_on():
            raise UserError("--shard spreads a model over several processes, but this is only one: "
                            "start it with torchrun")


@dataclass
class EpochConfig(TrainingConfig):
    """Settings of the stages that pass over a fixed set of rows."""

    num_epochs: int = option(1, "passes over the rows", at_least=1)
    precision: str = option("auto", PRECISION, PRECISIONS)
    accumulate: int = option(1, "backward passes per optimizer step, at least (saves memory, and "
                                "the result is the same)", at_least=1)
