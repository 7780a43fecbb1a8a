"""What the benchmarks share: the rows, the amount of work, and how it is timed."""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from string import ascii_letters
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from data.preferences import Record, load_preferences
from minigpt.command import peak_memory_mb
from minigpt.processor import keep_freed_memory, onednn_matmul

ROWS, EPISODES, GENERATED = 512, 256, 64 * 64 * 3
ANSWERS = 4  # to each prompt of rloo and grpo
DIFFERENT_PROMPTS = {"generate": 64, "groups": 4}  # of 64 rows: each its own, or 16 answers to each
UNITS = {"sft": "examples/s", "reward": "pairs/s", "dpo": "pairs/s", "ppo": "responses/s",
         "generate": "tokens/s", "groups": "tokens/s",
         "rloo": "responses/s", "grpo": "responses/s", "kto": "rows/s"}
NEW = ("rloo", "grpo", "kto")  # compared with the TRL of [peers-new]; the others with [peers]'s
Work = Callable[[], object]
WORDS = ("river", "stone", "bridge", "two", "friends", "spoke", "about", "maps", "letters",
         "weather", "and", "bread", "how", "far", "the", "next", "town", "might", "be", "before",
         "night", "came", "down", "over", "every", "field")


def benchmark_rows(path: str | Path | None, count: int) -> list[Record]:
    """The first `count` rows of a file, or made-up ones.

    Their prompts have 54 bytes and their responses 71 on average.
    """
    if path is not None:
        return load_preferences(path)[:count]
    rng = random.Random(0)

    def text(mean: int, most: int) -> str:
        length = min(most, max(8, round(rng.lognormvariate(0, 0.5) * mean * 0.88)))
        return " ".join(rng.choices(WORDS, k=length))[:length].strip()
    return [{"prompt": text(54, 120), "chosen": text(71, 120) + " a",
             "rejected": text(71, 120) + " b"} for _ in range(count)]


def labelled_rows(rows: Sequence[Record]) -> list[Record]:
    """Half of the pairs taken apart: as many rows as there are pairs.

    In random order, since TRL's batches for KTO follow that of the rows.
    """
    labelled = [{"prompt": row["prompt"], "completion": row[column], "label": column == "chosen"}
                for row in rows[:len(rows) // 2] for column in ("chosen", "rejected")]
    random.Random(0).shuffle(labelled)
    return labelled


def variety(texts: Sequence[str]) -> list[float]:
    """A reward that costs nothing: how many different letters."""
    return [float(len(set(text) & set(ascii_letters))) for text in texts]


def time_one_stage(description: str,
                   work_of: Callable[[str, str | None, bool], tuple[Work, int]]) -> None:
    """The command of `ours` and `peer`: prints one JSON line, and everything else to stderr.

    work_of(stage, data, bf16) makes the models and returns what is timed, and how many units of
    work it does.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("stage", choices=UNITS)
    parser.add_argument("--data")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        work, units = work_of(options.stage, options.data, options.bf16)
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    print(json.dumps({"stage": options.stage, "bf16": options.bf16, "unit": UNITS[options.stage],
                      "rate": units / seconds, "seconds": seconds, "peak_mb": peak_memory_mb()}))


def seconds_of(work: Work, repeats: int) -> float:
    """The median time of one call."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def training_step(model: nn.Module, ids: torch.Tensor) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def seconds_of_our_step(model: nn.Module, ids: torch.Tensor, repeats: int) -> float:
    """The same of a step of ours, with what a `TrainingLoop` sets up around it."""
    keep_freed_memory()
    with onednn_matmul():
        return seconds_of(training_step(model, ids), repeats)


def last_line_of(command: Sequence[str]) -> dict[str, Any]:
    """The JSON that a process of its own prints last.

    Raises CalledProcessError if it fails; its messages are shown.
    """
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def let_no_response_end() -> None:
    """From here on `minigpt.sampling` knows no EOS, so every response is as long as it may be."""
    sys.modules["minigpt.sampling"].EOS = -1
