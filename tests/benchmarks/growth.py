"""How cost grows, beside what the arithmetic predicts:

    python -m tests.benchmarks.growth [--out FOLDER]

One training step of MiniGPT over batch size, row length, layers and width, and one PPO episode over
response length.  Every point is a process of its own, so that its memory can be told apart.  Writes
growth.json, growth.png and .svg.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from minigpt import MiniGPT
from minigpt.command import peak_memory_mb
from minigpt.disk import write_json
from minigpt.plots import pyplot
from ppo import ppo_training
from reward import RewardModel
from tests.benchmarks.common import (
    last_line_of,
    let_no_response_end,
    seconds_of,
    seconds_of_our_step,
)

USUAL = {"rows": 16, "columns": 128, "layers": 4, "width": 128}
AXES = {"rows": (4, 8, 16, 32, 64), "columns": (32, 64, 128, 256, 512),
        "layers": (1, 2, 4, 8, 16), "width": (64, 128, 256, 512)}
RESPONSES, PROMPT, EPISODE_ROWS = (8, 16, 32, 64, 128), 32, 32  # tokens, tokens, prompts
LABELS = {"rows": "rows in a batch", "columns": "tokens in a row", "layers": "layers",
          "width": "width", "response": "tokens in a response (PPO)"}


def operations(rows: int, columns: int, layers: int, width: int) -> float:
    """Multiplications and additions of one training step: forward, and twice that backward."""
    # of a layer: queries, keys, values, output, and the feed-forward's two, four times as wide
    matrices = 12 * width**2
    attention = columns * width  # two products with half of the row's columns on average
    return 3 * 2 * rows * columns * (layers * (matrices + attention) + 256 * width)


def time_step(rows: int, columns: int, layers: int, width: int) -> float:
    """Seconds of one training step."""
    model = MiniGPT(embed_dim=width, num_layers=layers, ff_dim=4 * width, max_seq_len=columns)
    return seconds_of_our_step(model, torch.randint(0, 256, (rows, columns + 1)), 5)


def time_episode(response: int) -> float:
    """Seconds of one PPO episode whose responses never end early."""
    let_no_response_end()
    shape = {"max_seq_len": PROMPT + response}
    policy, reward = MiniGPT(**shape), RewardModel(**shape)
    reference = copy.deepcopy(policy)
    prompts = [f"{n:>{PROMPT - 1}}" for n in range(EPISODE_ROWS)]

    def episode() -> None:
        ppo_training(policy, reference, reward, prompts, num_episodes=1, lr=1e-5, kl_coeff=0.02,
                     max_new_tokens=response, ppo_epochs=2, batch_size=EPISODE_ROWS,
                     minibatch_size=EPISODE_ROWS, samples_per_prompt=1)
    return seconds_of(episode, 3)


def measure(**point: int) -> dict[str, float]:
    """Seconds and peak memory of one point, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.growth", "--point", json.dumps(point)]
    return {**point, **last_line_of(command)}


def measure_all() -> dict[str, list[dict[str, float]]]:
    """The points of every axis: time, memory, and the time that the arithmetic predicts.

    The prediction starts from the usual point.
    """
    empty, usual = measure(), measure(**USUAL)
    growth = {axis: [measure(**{**USUAL, axis: value}) for value in tqdm(values, desc=axis)]
              for axis, values in AXES.items()}
    growth["response"] = [measure(response=value) for value in tqdm(RESPONSES, desc="response")]
    for axis, points in growth.items():
        for point in points:
            if axis == "response":
                work, usual_work = PROMPT + point["response"], PROMPT + RESPONSES[2]
                usual_seconds = points[2]["seconds"]
            else:
                work = operations(**{name: point[name] for name in USUAL})
                usual_work, usual_seconds = operations(**USUAL), usual["seconds"]
            point["predicted_seconds"] = usual_seconds * work / usual_work
            point["memory_mb"] = point.pop("peak_mb") - empty["peak_mb"]
    return growth


def draw(growth: dict[str, list[dict[str, float]]], path: Path) -> None:
    """A column an axis: time above, memory below."""
    plt = pyplot()
    if plt is None:
        return
    figure, axes = plt.subplots(2, len(growth), figsize=(3 * len(growth), 5.5), sharex="col",
                                layout="constrained")
    for column, (axis, points) in enumerate(growth.items()):
        at = [point[axis] for point in points]
        measured, predicted = ([1e3 * point[name] for point in points]
                               for name in ("seconds", "predicted_seconds"))
        axes[0, column].plot(at, measured, "o-", label="measured")
        axes[0, column].plot(at, predicted, "--", color="grey", label="arithmetic")
        axes[1, column].plot(at, [point["memory_mb"] for point in points], "o-")
        axes[1, column].set_xlabel(LABELS[axis])
        for panel in axes[:, column]:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.set_xticks(at, map(str, at))
            panel.yaxis.set_major_formatter("{x:.0f}")
    axes[0, 0].set_ylabel("a step, or an episode (ms)")
    axes[1, 0].set_ylabel("memory above an empty process (MB)")
    axes[0, 0].legend()
    for ending in (".png", ".svg"):
        figure.savefig(path.with_suffix(ending), dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/growth",
                        help="folder for growth.json and the figure")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point is not None:
        seconds = 0.0  # of the empty process
        if options.point:
            timed = time_episode if "response" in options.point else time_step
            seconds = timed(**options.point)
        print(json.dumps({"seconds": seconds, "peak_mb": peak_memory_mb()}))
        return
    growth = measure_all()
    write_json(Path(options.out) / "growth.json", growth)
    for axis, points in growth.items():
        print(f"\n{LABELS[axis]:<28}{'ms':>10}{'predicted':>12}{'MB':>8}")
        for point in points:
            print(f"{point[axis]:<28}{1e3 * point['seconds']:>10.1f}"
                  f"{1e3 * point['predicted_seconds']:>12.1f}{point['memory_mb']:>8.0f}")
    draw(growth, Path(options.out) / "growth.png")


if __name__ == "__main__":
    main()
