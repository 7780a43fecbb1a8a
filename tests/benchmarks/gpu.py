"""On a machine with a GPU:  python -m tests.benchmarks.gpu

Runs each stage's command with --device cuda, alone and under torchrun (NCCL, one process), and
times a training step of a model of GPT-2's size in bfloat16, beside the most that the GPU can do.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from minigpt.batching import Batch
from minigpt.logprobs import token_logps
from minigpt.model import MiniGPT
from minigpt.optimizer import Optimizer
from minigpt.settings import TrainingConfig
from sft.loss import sft_loss

GPT2 = {"vocab_size": 50304, "embed_dim": 768, "num_heads": 12, "num_layers": 12,
        "max_seq_len": 1024, "ff_dim": 3072}
STAGES = ("sft", "reward", "ppo", "dpo")
FIGURES = {"sft": "loss_nats_per_token", "reward": "accuracy_heldout", "ppo": "true_reward",
           "dpo": "preference_accuracy_heldout"}


def run_stage(stage: str, out: Path, torchrun: bool) -> None:
    """One command with --quick on the GPU; prints its time and its main figure."""
    options = ["-m", f"{stage}.main", "--quick", "--device", "cuda", "--out", str(out / stage)]
    if stage != "sft":
        options += ["--init", str(out / "sft" / "model.pt")]
    if stage == "ppo":
        options += ["--reward", str(out / "reward" / "model.pt")]
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "1"] if torchrun else []
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *start, *options], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        print(f"{stage:<7} {'NCCL' if torchrun else 'alone':<6} failed:\n{done.stderr[-1500:]}")
        return
    summary = json.loads((out / stage / "summary.json").read_text(encoding="utf-8"))
    print(f"{stage:<7} {'NCCL' if torchrun else 'alone':<6} {seconds:6.1f} s   "
          f"{FIGURES[stage]} {summary[FIGURES[stage]]:.3f}", flush=True)


def matrix_rate(size: int = 8192, repeats: int = 20) -> float:
    """bfloat16 products of this GPU, in FLOP/s."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, repeats)


def seconds_of(function, repeats: int, warmup: int = 3) -> float:
    """Mean seconds of one call."""
    for _ in range(warmup):
        function()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def time_step(rows: int) -> tuple[float, float]:
    """(seconds, FLOP) of an SFT step of `rows` rows of 1024 tokens, all of them response."""
    model = MiniGPT(**GPT2).cuda()
    optimizer = Optimizer({"model": model}, TrainingConfig(precision="bfloat16"), num_steps=100)
    ids = torch.randint(0, 256, (rows, 1024), device="cuda")
    segments = torch.ones_like(ids)
    segments[:, 0] = 0
    batch = Batch(ids, segments, torch.arange(rows))

    def step() -> None:
        with optimizer.precision():
            loss, _ = sft_loss(token_logps(model, batch), batch.response_mask)
        optimizer.backward(loss)
        optimizer.step()

    weights = sum(p.numel() for name, p in model.named_parameters() if "position" not in name)
    attention = 12 * GPT2["num_layers"] * GPT2["embed_dim"] * 1024
    return seconds_of(step, 10), (6 * weights + attention) * ids.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/gpu")
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    peak = matrix_rate()
    print(f"matrix products: {peak / 1e12:.0f} TFLOP/s in bfloat16")
    for rows in (8, 32):
        seconds, flop = time_step(rows)
        print(f"GPT-2's size, {rows} rows of 1024: {rows * 1024 / seconds:,.0f} tokens/s, "
              f"{flop / seconds / 1e12:.0f} TFLOP/s, {flop / seconds / peak:.0%} of that; "
              f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB", flush=True)
    for torchrun in (False, True):
        for stage in STAGES:
            run_stage(stage, Path(options.out) / ("nccl" if torchrun else "alone"), torchrun)


if __name__ == "__main__":
    main()
