"""The settings that all training runs share, each also an option of the command line."""

from dataclasses import dataclass

from minigpt import distributed
from minigpt.errors import UserError
from minigpt.options import option

PRECISION = "arithmetic of matrix products (auto: bfloat16 where the CPU or GPU has it)"
PRECISIONS = ("auto", "float32", "bfloat16")
COUNTS = ("batch_size", "save_every", "num_epochs", "num_episodes", "accumulate", "minibatch_size",
          "ppo_epochs")


@dataclass
class TrainingConfig:
    """Settings of any training run; each stage adds its own and sets the defaults."""

    lr: float = option(1e-3, "peak learning rate of AdamW")
    batch_size: int = option(64, "examples in one optimizer step (of each process)")
    warmup: float = option(0.05, "share of the steps over which the learning rate rises from 0")
    final_lr: float = option(0.0, "learning rate at the end of the cosine decay, over its peak")
    weight_decay: float = option(0.0, "AdamW's weight decay (of matrices only)")
    max_grad_norm: float = option(1.0, "clip each model's gradient to this norm")
    precision: str = option("float32", PRECISION, PRECISIONS)
    seed: int = option(0, "seed of the data order and of sampling")
    out: str | None = option(None, "folder for metrics.jsonl and checkpoints")
    save_every: int = option(500, "steps between two checkpoints")
    shard: bool = option(False, "under torchrun: spread the model over the processes (FSDP2), for "
                                "models that do not fit into one")
    resume: bool = option(False, "continue the run in --out")
    overwrite: bool = option(False, "replace the run in --out")

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name, 1) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.shard and not distributed.is_on():
            raise UserError("--shard spreads a model over several processes, but this is only one: "
                            "start it with torchrun")


@dataclass
class EpochConfig(TrainingConfig):
    """Settings of the stages that pass over a fixed set of rows."""

    num_epochs: int = option(1, "passes over the rows")
    precision: str = option("auto", PRECISION, PRECISIONS)
    accumulate: int = option(1, "backward passes per optimizer step, at least (saves memory, and "
                                "the result is the same)")
