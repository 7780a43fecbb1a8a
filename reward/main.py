"""The reward model, from data to report:  python -m reward.main

Starts from an SFT model, learns from preference pairs which answer is better, and puts its zero at the SFT model's
own answers.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.preferences import Record
from data.task import RowsConfig, Task, load_task
from data.world import World, WorldConfig
from minigpt import distributed
from minigpt.checkpoint import save_checkpoint
from minigpt.cli import CommandConfig, open_run, parse, peak_memory_mb, report, run
from minigpt.disk import write_json
from minigpt.evaluation import sample_answers
from minigpt.model import MiniGPT
from minigpt.plots import save_calibration, save_curves
from reward.model import RewardModel
from reward.train import (
    RewardConfig,
    calibration,
    center,
    evaluate_reward_accuracy,
    reward_margins,
    score,
    train_reward_model,
)
from sft.main import starting_point

CENTRING_PROMPTS = 256  # training prompts whose SFT answers set the zero


def fresh_reward_model(sft_model: MiniGPT, config: RewardConfig) -> RewardModel:
    """The SFT model with a random head."""
    torch.manual_seed(config.seed)
    return RewardModel.from_policy(sft_model, config.pooling, config.reads)


def make_reward_model(sft_model: MiniGPT, task: Task, config: RewardConfig, max_new_tokens: int
                      ) -> tuple[RewardModel, list[float], list[float]]:
    """Train on the task's pairs, then centre on the SFT model's answers to some of the training prompts."""
    model = fresh_reward_model(sft_model, config)
    model, losses, accuracies = train_reward_model(model, task.preferences, **vars(config))
    prompts, responses = sample_answers(sft_model, task.prompts[:CENTRING_PROMPTS], 1, max_new_tokens, config.seed)
    center(model, prompts, [response.ids for response in responses])
    return model, losses, accuracies


def both_responses(task: Task) -> list[Record]:
    """What the start of a reward model reads: the demonstrations, and of one's own file the rejected responses too, since
    a model judges better what it has learned to read (figures in lessons/notes/what-did-not-work.md)."""
    if task.world:
        return task.sft_rows
    return [{"prompt": row["prompt"], "response": row[side]} for row in task.preferences for side in ("chosen", "rejected")]


def accuracy_by_fault(world: World, rows: Sequence[Record], margins: Tensor) -> dict[str, float]:
    """For each fault: over pairs whose rejected response has it and whose chosen one has not, the share ranked right."""
    ranked_right: dict[str, list[bool]] = {}
    for row, margin in zip(rows, margins.tolist(), strict=True):
        chosen, rejected = (world.judge(row["prompt"], row[side]).faults for side in ("chosen", "rejected"))
        for fault in set(rejected) - set(chosen):
            ranked_right.setdefault(fault, []).append(margin > 0)
    return {fault: sum(hits) / len(hits) for fault, hits in sorted(ranked_right.items())}


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    command, rows, config, world_config = parse(__doc__, argv, CommandConfig, RowsConfig, RewardConfig, WorldConfig,
                                                out="runs/reward")
    open_run(config.out, config.resume, config.overwrite, command.device, command, rows, config, world_config)
    task = load_task(rows, world_config, config.seed, command.init)
    sft_model = starting_point(replace(task, sft_rows=both_responses(task)), command, config)

    if config.reads == "response":
        print("the reward model reads the response alone, as is best for few rows (--reads both: the prompt too)")
    untrained = fresh_reward_model(sft_model, config)
    accuracy_before = evaluate_reward_accuracy(untrained, task.heldout_preferences)
    model, losses, accuracies = make_reward_model(sft_model, task, config, command.max_new_tokens)
    save_checkpoint(model, Path(config.out) / "model.pt")
    if distributed.rank() > 0:  # the report is for one
        return

    margins = reward_margins(model, task.heldout_preferences)
    bins = calibration(margins)
    summary = {
        "accuracy_before": accuracy_before,
        "accuracy_train": evaluate_reward_accuracy(model, task.seen_preferences),
        "accuracy_heldout": evaluate_reward_accuracy(model, task.heldout_preferences),
        "margin_heldout": float(margins.mean()),
        "calibration_error": sum(abs(b["predicted"] - b["observed"]) * b["pairs"] for b in bins) / len(margins),
    }
    if task.world:
        summary["bayes_accuracy"] = task.world.bayes_accuracy(task.heldout_preferences)
        summary["accuracy_relative_to_bayes"] = summary["accuracy_heldout"] / summary["bayes_accuracy"]
        for fault, accuracy in accuracy_by_fault(task.world, task.heldout_preferences, margins).items():
            summary["accuracy_where_rejected_is_" + fault.replace(" ", "_")] = accuracy
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(), "models_in_memory": 1}
    report("Reward model: held-out pairs", summary, config.out)

    print("\nCalibration: how often annotators agree with the model's choice, by how sure it is")
    for b in bins:
        print(f"  predicted {b['predicted']:.3f}   observed {b['observed']:.3f}   ({b['pairs']} pairs)")
    write_json(Path(config.out) / "calibration.json", bins)
    show_scores(model, task.heldout_preferences[:3])
    save_curves(Path(config.out) / "curves.png", {"loss": losses, "accuracy": accuracies},
                {"Bradley-Terry loss": ["loss"], "accuracy on the step's pairs": ["accuracy"]})
    save_calibration(Path(config.out) / "calibration.png", bins)


def show_scores(model: RewardModel, rows: Sequence[Record]) -> None:
    """A few pairs with their rewards."""
    print("\nSome pairs and their rewards (0 is the SFT model's average answer)")
    for row in rows:
        print(f"  {row['prompt']}")
        for side in ("chosen", "rejected"):
            print(f"    {side:<9}{float(score(model, [row['prompt']], [row[side]])):+.2f}  {row[side]!r}")


if __name__ == "__main__":
    run(main)
