"""The reward model, from data to report:  python -m reward.main

Starts from an SFT model (to read phrases, from random weights), learns from preference pairs which
answer is better, and puts its zero at the SFT model's own answers.  With --members it trains
several, which differ in their seeds, and saves them as one ensemble, and each for itself.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.preferences import Record
from data.task import RowsConfig, load_task
from data.world import WorldConfig
from minigpt import distributed
from minigpt.checkpoint import save_checkpoint
from minigpt.command import (
    CommandConfig,
    begin,
    peak_memory_mb,
    report,
    run_command,
    tokens_trained,
)
from minigpt.disk import write_json
from minigpt.metrics import accuracy_figures, preference_accuracy
from minigpt.options import Settings, option
from minigpt.plots import save_calibration, save_curves
from minigpt.report import Section
from reward.combine import AnyReward, Ensemble
from reward.evaluate import (
    accuracy_by_fault,
    calibration,
    disagreement,
    evaluate_reward_accuracy,
    reward_margins,
    score,
)
from reward.model import RewardModel
from reward.start import CENTERING_PROMPTS, fresh_reward_model, member_configs, train_centered
from reward.train import RewardConfig
from sft.start import doubts_about, start_figures, start_path, starting_point


@dataclass
class EnsembleConfig(Settings):
    """How many reward models to train."""

    members: int = option(1, "reward models to train, from different seeds; several are saved as "
                             "an ensemble of their mean", at_least=1)


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    settings = begin(__doc__, argv, CommandConfig, RowsConfig, RewardConfig, WorldConfig,
                     EnsembleConfig, out="runs/reward")
    command, rows, config, world_config, ensemble = settings
    task = load_task(rows, world_config, config.seed, command.init)
    sft_model = starting_point(task, command, config)

    if config.reads == "phrases":
        print("the reward model starts from random weights and reads only phrases of a few bytes, "
              "which is best for few rows (--reads both: start from the SFT model, and read the "
              "prompt as well)")
    configs, out = member_configs(config, ensemble.members), Path(config.out)
    accuracy_before = evaluate_reward_accuracy(
        Ensemble([fresh_reward_model(sft_model, own) for own in configs]),
        task.heldout_preferences)
    members, losses, accuracies = train_centered(
        sft_model, task.preferences, task.prompts[:CENTERING_PROMPTS], config,
        command.max_new_tokens, ensemble.members)
    for own, member in zip(configs, members, strict=True):
        save_checkpoint(member, f"{own.out}/model.pt")
    model: RewardModel | Ensemble = members[0]
    if len(members) > 1:
        model = Ensemble(members).eval()
        save_checkpoint(model, out / "model.pt")
    if distributed.rank() > 0:  # only the first process reports
        return

    margins = reward_margins(model, task.heldout_preferences)
    bins = calibration(margins)
    summary = {
        "accuracy_before": accuracy_before,
        "accuracy_train": evaluate_reward_accuracy(model, task.seen_preferences),
        **accuracy_figures("accuracy_heldout",
                           float(preference_accuracy(margins)), len(margins)),
        "margin_heldout": float(margins.mean()),
        "calibration_error": sum(abs(b["predicted"] - b["observed"]) * b["pairs"]
                                 for b in bins) / len(margins),
    }
    if isinstance(model, Ensemble):
        summary |= ensemble_figures(model, task.heldout_preferences)
    if task.world:
        bayes = task.world.bayes_accuracy(task.heldout_preferences)
        summary["bayes_accuracy"] = bayes
        summary["accuracy_relative_to_bayes"] = summary["accuracy_heldout"] / bayes
        by_fault = accuracy_by_fault(task.world, task.heldout_preferences, margins)
        for fault, accuracy in by_fault.items():
            summary["accuracy_where_rejected_is_" + fault.replace(" ", "_")] = accuracy
    summary |= {"tokens_trained": tokens_trained(config.out)}
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(),
                "models_in_memory": len(members)}
    start = {} if config.reads == "phrases" else start_figures(sft_model, task)
    what = "Reward model" if len(members) == 1 else f"Ensemble of {len(members)} reward models"
    curves = save_curves(out / "curves.png", {"loss": losses, "accuracy": accuracies},
                         {"Bradley-Terry loss": ["loss"],
                          "accuracy on the step's pairs": ["accuracy"]})
    report(f"{what} from {len(task.preferences):,} pairs of {rows.source}", config.out,
           start | summary, doubts_about(start),
           [calibration_section(bins, out), pairs_section(model, task.heldout_preferences[:3]),
            Section("Curves", curves)],
           settings, [start_path(command, config), "--reward", f"{out}/model.pt"])


def ensemble_figures(ensemble: Ensemble, rows: Sequence[Record]) -> dict[str, float]:
    """How well each member does alone, and how much the members disagree."""
    alone = {f"accuracy_heldout_member_{number}": evaluate_reward_accuracy(member, rows)
             for number, member in enumerate(ensemble.members, start=1)}
    return {**alone, "disagreement_heldout": disagreement(ensemble, rows)}


def calibration_section(bins: Sequence[dict[str, Any]], out: Path) -> Section:
    """The calibration, also written to calibration.json and calibration.png."""
    write_json(out / "calibration.json", bins)
    table = [["predicted", "observed", "pairs"],
             *([f"{b['predicted']:.3f}", f"{b['observed']:.3f}", str(b["pairs"])] for b in bins)]
    return Section("Calibration: how often annotators agree with the model's choice, by how sure "
                   "it is", [table, *save_calibration(out / "calibration.png", bins)])


def pairs_section(model: AnyReward, rows: Sequence[Record]) -> Section:
    """A few pairs with their rewards."""
    def scored(row: Record, side: str) -> str:
        return f"{float(score(model, [row['prompt']], [row[side]])):+.2f}  {row[side]}"

    return Section("Some pairs and their rewards (0 is the SFT model's average answer)",
                   [[["prompt", "chosen", "rejected"],
                     *([row["prompt"], scored(row, "chosen"), scored(row, "rejected")]
                       for row in rows)]])


if __name__ == "__main__":
    run_command(main)
