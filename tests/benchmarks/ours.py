"""One stage of ours, timed in a process of its own:  python -m tests.benchmarks.ours STAGE [--data FILE] [--bf16]

Prints one JSON line: work done a second, seconds, and the peak memory of the process.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable

import torch

from dpo import dpo_train
from minigpt import MiniGPT, copy_model_weights
from minigpt.cli import peak_memory_mb
from minigpt.sampling import sample_ids
from ppo import ppo_training
from reward import RewardModel, train_reward_model
from sft import sft_train
from tests.benchmarks.rows import benchmark_rows

ROWS, EPISODES, GENERATED = 512, 256, 64 * 64 * 3
UNITS = {"sft": "examples/s", "reward": "pairs/s", "dpo": "pairs/s", "ppo": "episodes/s", "generate": "tokens/s"}


def work_of(stage: str, data: str | None, precision: str) -> tuple[Callable[[], object], int]:
    """(what is timed, how many units of work it does); the models are made before."""
    torch.manual_seed(0)
    rows, model, twin = benchmark_rows(data, ROWS), MiniGPT(max_seq_len=256), MiniGPT(max_seq_len=256)
    copy_model_weights(model, twin)
    settings = {"lr": 1e-4, "precision": precision}
    if stage == "sft":
        demonstrations = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
        return lambda: sft_train(model, demonstrations, batch_size=32, **settings), len(rows)
    if stage == "reward":
        reward = RewardModel.from_policy(model)
        return lambda: train_reward_model(reward, rows, num_epochs=1, batch_size=16, **settings), len(rows)
    if stage == "dpo":
        return lambda: dpo_train(model, twin, rows, num_epochs=1, batch_size=16, beta=0.1, **settings), len(rows)
    if stage == "ppo":
        prompts = [row["prompt"] for row in rows if len(row["prompt"]) <= 64]
        return lambda: ppo_training(model, twin, RewardModel(max_seq_len=256), prompts, num_episodes=EPISODES // 64,
                                    batch_size=64, minibatch_size=64, ppo_epochs=4, max_new_tokens=48, kl_coeff=0.05,
                                    max_approxkl=float("inf"), **settings), EPISODES
    prompts = torch.randint(1, 0xF8, (64, 32)).tolist()
    sample_ids(model, prompts, 4)

    def generate_thrice() -> None:
        for _ in range(3):
            answers = sample_ids(model, prompts, 64)
            assert all(len(ids) == 64 for ids in answers)
    return generate_thrice, GENERATED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=UNITS)
    parser.add_argument("--data")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    if options.stage == "generate":  # none may end early
        sys.modules["minigpt.sampling"].EOS = -1
    work, units = work_of(options.stage, options.data, "bfloat16" if options.bf16 else "float32")
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        work()
    seconds = time.perf_counter() - start
    print(json.dumps({"stage": options.stage, "bf16": options.bf16, "unit": UNITS[options.stage], "rate": units / seconds,
                      "seconds": seconds, "peak_mb": peak_memory_mb()}))


if __name__ == "__main__":
    main()
