"""Direct preference optimisation, from data to report:  python -m dpo.main

Starts from an SFT model, which is also the frozen reference.  `--sweep` also trains at four other
values of beta.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.lesson_rows import PREFERENCE_DATA
from data.task import RowsConfig, Task, load_task
from data.world import WorldConfig
from dpo.evaluate import evaluate_preference_accuracy, implicit_rewards
from dpo.train import ADVICE, DPOConfig, dpo_train
from minigpt import distributed
from minigpt.checkpoint import save_checkpoint
from minigpt.command import CommandConfig, begin, peak_memory_mb, report, run_command
from minigpt.disk import write_json
from minigpt.evaluation import evaluate_policy, show_before_and_after, signs_of_collapse
from minigpt.log import warn
from minigpt.metrics import accuracy_figures, preference_accuracy
from minigpt.model import MiniGPT
from minigpt.options import Settings, option
from minigpt.plots import save_curves
from minigpt.weights import copy_model_weights
from sft.start import doubts_about, start_figures, starting_point

__all__ = ["PREFERENCE_DATA", "MiniGPT", "copy_model_weights", "dpo_train",
           "evaluate_preference_accuracy", "main"]

SWEEP = (0.01, 0.1, 0.3, 1.0)


@dataclass
class SweepConfig(Settings):
    sweep: bool = option(False, f"train at beta = {', '.join(map(str, SWEEP))} too, and compare")


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    command, rows, config, world_config, sweep = begin(
        __doc__, argv, CommandConfig, RowsConfig, DPOConfig, WorldConfig, SweepConfig,
        out="runs/dpo")
    task = load_task(rows, world_config, config.seed, command.init)
    reference = starting_point(task, command, config)

    policy, losses, margins = dpo_train(copy.deepcopy(reference), reference, task.preferences,
                                        **vars(config))
    out = Path(config.out)
    save_checkpoint(policy, out / "model.pt")
    swept = beta_sweep(reference, task, command, config) if sweep.sweep else []
    if distributed.rank() > 0:  # only the first process reports
        return

    summary = {"loss_first_step": losses[0], "margin_first_step": margins[0],
               **measure(policy, reference, task, command, config)}
    if task.world:
        before = evaluate_policy(reference, reference, task.heldout_prompts, command.samples,
                                 command.max_new_tokens, config.seed, task.measure)
        summary["true_reward_before"] = before["true_reward"]
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(),
                "models_in_memory": 2}
    start = start_figures(reference, task)
    report("DPO: held-out pairs and prompts", start | summary, config.out, doubts_about(start))
    if swept:
        show_sweep(swept, out)
    warn(signs_of_collapse(summary, ADVICE))
    show_before_and_after(reference, policy, task.heldout_prompts[:4], command.max_new_tokens)
    save_curves(out / "curves.png", {"loss": losses, "margin": margins},
                {"DPO loss": ["loss"], "margin": ["margin"]})


def measure(policy: MiniGPT, reference: MiniGPT, task: Task, command: CommandConfig,
            config: DPOConfig) -> dict[str, float]:
    """The report's figures: what the policy prefers, and what it says."""
    heldout = task.heldout_preferences
    chosen, rejected = implicit_rewards(policy, reference, heldout, config.beta)
    summary = {
        "preference_accuracy_train":
            evaluate_preference_accuracy(policy, reference, task.seen_preferences),
        **accuracy_figures("preference_accuracy_heldout",
                           float(preference_accuracy(chosen - rejected)), len(heldout)),
        "rewards_chosen_heldout": float(chosen.mean()),
        "rewards_rejected_heldout": float(rejected.mean()),
        "rewards_margin_heldout": float((chosen - rejected).mean()),
        **evaluate_policy(policy, reference, task.heldout_prompts, command.samples,
                          command.max_new_tokens, config.seed, task.measure),
    }
    if task.world:
        bayes = task.world.bayes_accuracy(heldout)
        summary["bayes_accuracy"] = bayes
        summary["accuracy_relative_to_bayes"] = summary["preference_accuracy_heldout"] / bayes
    return summary


def beta_sweep(reference: MiniGPT, task: Task, command: CommandConfig,
               config: DPOConfig) -> list[dict[str, float]]:
    """The figures at each beta, each trained from the same start on the same pairs."""
    rows = []
    for beta in SWEEP:
        at_beta = replace(config, beta=beta, out=f"{config.out}/beta-{beta}")
        policy, _, _ = dpo_train(copy.deepcopy(reference), reference, task.preferences,
                                 **vars(at_beta))
        rows.append({"beta": beta, **measure(policy, reference, task, command, at_beta)})
    return rows


def show_sweep(rows: Sequence[dict[str, float]], out: Path) -> None:
    """Print the sweep and write it to sweep.json."""
    names = ("beta", "preference_accuracy_heldout", "rewards_margin_heldout",
             "kl_nats_per_response", "true_reward", "distinct_2")
    columns = [name for name in names if name in rows[0]]
    print("\n" + "  ".join(columns))
    for row in rows:
        print("  ".join(f"{row[name]:{len(name)}.3f}" for name in columns))
    write_json(out / "sweep.json", rows)


if __name__ == "__main__":
    run_command(main)
