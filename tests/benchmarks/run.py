"""How fast every stage is, how much memory it takes, and how that compares:

    python -m tests.benchmarks.run [--peers | --peers-new] [--stages STAGE ...] [--float32]
                                   [--quick] [--json FILE]

Every measurement is a process of its own.  With --peers (the extra [peers]) ours and TRL take
turns, and the ratio is the median of the pairs' ratios: machines are noisy, and a ratio of
neighbours is less so.  --peers-new does so for RLOO, GRPO and KTO, beside a newer TRL (the extra
[peers-new]; the two do not go into one environment).
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from minigpt.disk import write_json
from minigpt.model import MiniGPT
from minigpt.processor import fast_precision, onednn_matmul
from tests.benchmarks.common import (
    DIFFERENT_PROMPTS,
    NEW,
    UNITS,
    last_line_of,
    seconds_of,
    seconds_of_our_step,
    training_step,
)


def measure(module: str, stage: str, data: str | None, bf16: bool) -> dict[str, Any]:
    """One stage in a process of its own.

    Raises CalledProcessError if it fails; its messages are shown.
    """
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", stage]
    if data is not None:
        command += ["--data", data]
    return last_line_of([*command, *["--bf16"] * bf16])


def stage_lines(stages: Sequence[str], bfloat16: bool, data: str | None, peers: bool,
                pairs: int) -> list[dict[str, Any]]:
    """For each stage and precision: our rate and memory; with peers, theirs too, and the ratios."""
    lines = []
    todo = [(stage, bf16) for stage in stages for bf16 in ([False, True] if bfloat16 else [False])
            if not (bf16 and stage in DIFFERENT_PROMPTS)]
    for stage, bf16 in tqdm(todo, desc="stages"):
        ours, theirs = [], []
        for _ in range(pairs):
            ours.append(measure("ours", stage, data, bf16))
            if peers:
                theirs.append(measure("peer", stage, data, bf16))
        line = {"stage": stage, "precision": "bfloat16" if bf16 else "float32",
                "unit": UNITS[stage], "rate": median(run["rate"] for run in ours),
                "peak_mb": median(run["peak_mb"] for run in ours)}
        if peers:
            both = list(zip(ours, theirs, strict=True))
            line |= {"peer_rate": median(run["rate"] for run in theirs),
                     "peer_peak_mb": median(run["peak_mb"] for run in theirs),
                     "times_as_fast": median(a["rate"] / b["rate"] for a, b in both),
                     "share_of_memory": median(a["peak_mb"] / b["peak_mb"] for a, b in both)}
        lines.append(line)
    return lines


class PlainGPT(nn.Module):
    """A GPT of MiniGPT's shape from PyTorch's own layers, the way nanoGPT writes it.

    It is the yardstick of the training step.
    """

    def __init__(self, model: MiniGPT):
        super().__init__()
        self.tokens = nn.Embedding(256, 128)
        self.positions = nn.Embedding(model.max_seq_len, 128)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "norm1": nn.LayerNorm(128), "qkv": nn.Linear(128, 384, bias=False),
            "out": nn.Linear(128, 128, bias=False), "norm2": nn.LayerNorm(128),
            "wide": nn.Linear(128, 512), "narrow": nn.Linear(512, 128)}) for _ in range(4))
        self.norm = nn.LayerNorm(128)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        B, T = ids.shape
        x = self.tokens(ids) + self.positions(torch.arange(T))
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x)).split(128, 2)
            q, k, v = (t.view(B, T, 4, 32).transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](y.transpose(1, 2).contiguous().view(B, T, 128))
            hidden = F.gelu(block["wide"](block["norm2"](x)), approximate="tanh")
            x = x + block["narrow"](hidden)
        return self.norm(x) @ self.tokens.weight.T


def other_lines(repeats: int) -> dict[str, float]:
    """A training step beside plain PyTorch's and the rate of matrix products; costs of imports."""
    ids = torch.randint(0, 256, (16, 129))
    model = MiniGPT()
    plain = seconds_of(training_step(PlainGPT(model), ids), repeats)
    ours = seconds_of_our_step(model, ids, repeats)
    with onednn_matmul():
        a, b = torch.randn(2048, 512), torch.randn(512, 512)
        rate = 2 * 2048 * 512 * 512 / seconds_of(lambda: a @ b, 5 * repeats)
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    weights -= model.position_embedding.weight.numel()  # which is only looked up
    # multiplications and additions for each token and layer, causal or not
    attention = 4 * 2 * 128 * 128
    of_a_token = 2 * weights + model.settings["num_layers"] * attention
    flops = 3 * 16 * 128 * of_a_token  # forward, and twice that backward
    return {"training_step_tokens_per_s": 16 * 128 / ours,
            "plain_pytorch_tokens_per_s": 16 * 128 / plain,
            "times_as_fast_as_plain_pytorch": plain / ours,
            "matrix_products_gflop_per_s": rate / 1e9,
            "share_of_matrix_rate_in_a_step": flops / ours / rate,
            "import_dpo_loss_s_on_top_of_torch": seconds_of_import("from dpo import dpo_loss"),
            "import_minigpt_s_on_top_of_torch": seconds_of_import("import minigpt")}


IMPORTING = """
import time, torch

start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""


def seconds_of_import(statement: str) -> float:
    """What an import takes where torch is there already, in a process of its own."""
    command = [sys.executable, "-c", IMPORTING.format(statement=statement)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def show(lines: list[dict[str, Any]]) -> None:
    columns = [column for column in lines[0] if column != "unit"]
    print("\n" + "  ".join(column.rjust(max(10, len(column))) for column in columns))
    for line in lines:
        values = [line[column] for column in columns]
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        print("  ".join(cell.rjust(max(10, len(column)))
                        for cell, column in zip(cells, columns, strict=True))
              + f"   {line['unit']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = parser.add_mutually_exclusive_group()
    peers.add_argument("--peers", action="store_true",
                       help="beside TRL (pip install -e '.[peers]' -c constraints.txt)")
    peers.add_argument("--peers-new", action="store_true",
                       help=f"{', '.join(NEW)} beside a newer TRL (the same with [peers-new])")
    parser.add_argument("--stages", nargs="+", choices=UNITS, metavar="STAGE",
                        help="only these (by default all, or all that the peer is compared in)")
    parser.add_argument("--float32", action="store_true",
                        help="without bfloat16, which is measured where the CPU has it")
    parser.add_argument("--quick", action="store_true",
                        help="one measurement of each instead of three")
    parser.add_argument("--data", help="preference rows to use instead of made-up ones")
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args()
    stages = NEW if options.peers_new else [s for s in UNITS if not (options.peers and s in NEW)]
    bfloat16 = not options.float32 and fast_precision(torch.device("cpu")) == "bfloat16"
    lines = stage_lines(options.stages or stages, bfloat16, options.data,
                        options.peers or options.peers_new, 1 if options.quick else 3)
    other = other_lines(3 if options.quick else 15)
    show(lines)
    print("\n" + "\n".join(f"{name:<40}{value:12.4g}" for name, value in other.items()))
    if options.json:
        write_json(options.json, {"stages": lines, **other})


if __name__ == "__main__":
    main()
