"""The loop of lessons/pretrained.py beside TRL's DPOTrainer: same model, rows and settings.

Each trains in a process of its own, so that its memory can be measured, and in float32: TRL sums
the log-probabilities of a bfloat16 model in bfloat16, which has three digits.  Needs the extras
[pretrained] and [peers].
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from statistics import mean
from typing import Any, NamedTuple

import torch

from data.layouts import Record
from lessons.pretrained import (
    PretrainedConfig,
    batches_of,
    load,
    logps_of,
    lora_config,
    tokenize,
    train,
    warmup_steps,
    with_adapters,
)
from minigpt.command import peak_memory_mb
from minigpt.errors import UserError
from minigpt.metrics import preference_accuracy

Rows = Sequence[Record]


class Side(NamedTuple):
    """What training gave."""

    first_ids: list[list[int]]        # token ids of the first batch, without padding
    history: list[dict[str, float]]   # metrics of each step
    accuracy: float                   # on held-out pairs
    seconds: float
    peak_memory_mb: float


def compare(rows: Rows, heldout: Rows, config: PretrainedConfig) -> dict[str, Any]:
    """Train on the rows here, then with TRL, and measure both on held-out rows.

    Raises UserError if TRL is missing.
    """
    if find_spec("trl") is None:
        raise UserError("TRL is missing: pip install -e '.[pretrained,peers]' -c constraints.txt")
    here, there = (in_its_own_process(side, rows, heldout, config) for side in (ours, theirs))
    names = ("logps/chosen", "logps/rejected")
    return {"settings": asdict(config), "pairs": len(rows), "heldout_pairs": len(heldout),
            "same_ids_in_first_batch": here.first_ids == there.first_ids,
            "largest_difference_of_logps": max(abs(here.history[0][name] / there.history[0][name]
                                                   - 1) for name in names),
            "times_as_fast": there.seconds / here.seconds,
            "share_of_memory": here.peak_memory_mb / there.peak_memory_mb,
            "ours": summary(here), "theirs": summary(there)}


def summary(side: Side, last: int = 2) -> dict[str, Any]:
    return {"accuracy": side.accuracy, "seconds": side.seconds,
            "peak_memory_mb": side.peak_memory_mb, "first": side.history[0],
            "last_loss": mean(step["loss"] for step in side.history[-last:])}


def in_its_own_process(side: Callable[..., Side], *arguments: Any) -> Side:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(side, *arguments).result()


def ours(rows: Rows, heldout: Rows, config: PretrainedConfig) -> Side:
    model, tokenizer = load(config.model)
    model = with_adapters(model.float(), config.rank, config.seed)
    pairs = [tokenize(tokenizer, row) for row in rows]
    started = time.perf_counter()
    history = train(model, pairs, config)
    seconds = time.perf_counter() - started
    first = next(batches_of(pairs, config.batch_size))
    return Side(without_padding(first.token_ids, first.attention_mask), history,
                accuracy(model, tokenizer, heldout), seconds, peak_memory_mb())


def theirs(rows: Rows, heldout: Rows, config: PretrainedConfig) -> Side:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = load(config.model)
    torch.manual_seed(config.seed)  # the adapters are made next
    trainer = DPOTrainer(
        model=model.float(), processing_class=tokenizer, peft_config=lora_config(config.rank),
        train_dataset=Dataset.from_list([as_messages(row) for row in rows]),
        args=DPOConfig(
            beta=config.beta, learning_rate=config.lr, lr_scheduler_type="linear",
            warmup_steps=warmup_steps(-(-len(rows) // config.batch_size)),
            per_device_train_batch_size=config.batch_size, num_train_epochs=1,
            train_sampling_strategy="sequential", gradient_checkpointing=False, bf16=False,
            max_length=None, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
            output_dir=tempfile.mkdtemp()))
    first = next(iter(trainer.get_train_dataloader()))
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    history = [line for line in trainer.state.log_history if "loss" in line]
    return Side(without_padding(first["input_ids"], first["attention_mask"]), history,
                accuracy(trainer.model.eval(), tokenizer, heldout), seconds, peak_memory_mb())


def as_messages(row: Record) -> dict[str, list[dict[str, str]]]:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}


def without_padding(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def accuracy(model: Any, tokenizer: Any, rows: Rows) -> float:
    logps, ref_logps = logps_of(model, [tokenize(tokenizer, row) for row in rows])
    chosen, rejected = (logps - ref_logps).unbind(1)
    return float(preference_accuracy(chosen - rejected))
