"""Direct preference optimisation and its family, from data to report:  python -m dpo.main

Starts from an SFT model, which is also the frozen reference.  `--loss` chooses the loss; `--rounds`
trains on the policy's own answers, judged anew in each round; `--sweep` also trains at four other
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
from dpo.evaluate import evaluate_label_accuracy, evaluate_preference_accuracy, implicit_rewards
from dpo.kto import check_kto
from dpo.rounds import OnlineConfig, check_online, dpo_rounds
from dpo.train import (
    ADVICE,
    HYPERPARAMETERS,
    DPOConfig,
    check_used,
    dpo_train,
    needs_reference,
    parameters_of,
)
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
from minigpt.errors import UserError
from minigpt.evaluation import before_and_after, evaluate_policy, signs_of_collapse
from minigpt.judged import judge_in_chat, sampling_figures
from minigpt.lora import LoraConfig, merge_lora, policy_and_reference, weights_trained
from minigpt.metrics import accuracy_figures, preference_accuracy
from minigpt.model import MiniGPT
from minigpt.options import Settings, option
from minigpt.plots import save_curves
from minigpt.report import Section
from minigpt.weights import copy_model_weights
from reward.start import judge_of
from sft.start import (
    check_lora,
    doubts_about,
    start_again,
    start_figures,
    start_path,
    starting_point,
)

__all__ = ["PREFERENCE_DATA", "MiniGPT", "copy_model_weights", "dpo_train",
           "evaluate_preference_accuracy", "main"]

SWEEP = (0.01, 0.1, 0.3, 1.0)


@dataclass
class SweepConfig(Settings):
    sweep: bool = option(False, f"train at beta = {', '.join(map(str, SWEEP))} too, and compare")


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    settings = begin(__doc__, argv, CommandConfig, RowsConfig, DPOConfig, OnlineConfig, LoraConfig,
                     WorldConfig, SweepConfig, out="runs/dpo")
    command, rows, config, online, lora, world_config, sweep = settings
    check_lora(lora, command)
    check_loss(config, lora, online, sweep)
    check_online(online, lora, rows.data is not None)
    kind = "prompts" if online.rounds else "unpaired" if config.loss == "kto" else "preferences"
    task = load_task(rows, world_config, config.seed, command.init, kind)
    judge, judges = judge_of(online.judge, task, command)
    if not (task.preferences or task.unpaired or command.init):
        raise UserError("--data holds prompts alone, so a model is needed to start from (--init)")
    start = starting_point(task, command, config)

    policy, reference = policy_and_reference(start, lora, config.seed,
                                             needs_reference(config.loss))
    held = {"models_in_memory": sum(model is not None for model in (policy, reference)) + judges
            + (online.reference == "last"), "weights_trained": weights_trained(policy)}
    if judge is None:
        policy, losses, margins = dpo_train(policy, reference, task.preferences or task.unpaired,
                                            **vars(config))
    else:
        policy, losses, margins = dpo_rounds(policy, reference, task.prompts, judge, online, config,
                                             command.max_new_tokens)
    policy, reference = merge_lora(policy), reference or start_again(command, config)
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
    summary |= {**sampling_figures(online, config.out),
                "tokens_trained": tokens_trained(config.out)}
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(),
                **held}
    heading = start_figures(reference, task)
    curves = save_curves(out / "curves.png", {"loss": losses, "margin": margins},
                         {f"{config.loss} loss": ["loss"], "margin": ["margin"]})
    sections = [*([sweep_section(swept, out)] if swept else []),
                *([alone_in_memory(config, lora)] if held["models_in_memory"] == 1 else []),
                before_and_after(reference, policy, task.heldout_prompts[:4],
                                 command.max_new_tokens),
                Section("Curves", curves)]
    warnings = [*doubts_about(heading), *signs_of_collapse(summary, ADVICE)]
    title = f"Preference optimisation ({config.loss}) on {learned_from(task, online)}"
    report(f"{title} of {rows.source}", config.out, heading | summary, warnings, sections, settings,
           [start_path(command, config), f"{out}/model.pt", *judge_in_chat(online)])


def check_loss(config: DPOConfig, lora: LoraConfig, online: OnlineConfig,
               sweep: SweepConfig) -> None:
    """Raises UserError, before anything is trained, on settings that the loss cannot use."""
    if config.loss == "kto":
        check_kto(config)
    else:
        check_used(config, parameters_of(config.loss, HYPERPARAMETERS))
    if sweep.sweep and (lora.lora_rank or online.rounds or config.loss != "dpo"):
        raise UserError("--sweep trains DPO at other values of beta, on the given pairs: leave out "
                        "--loss, --lora-rank and --rounds")


def measure(policy: MiniGPT, reference: MiniGPT, task: Task, command: CommandConfig,
            config: DPOConfig) -> dict[str, float]:
    """The report's figures: what the policy prefers, and what it says."""
    summary = {}
    if task.preferences:
        summary = pair_figures(policy, reference, task, config.beta)
    elif task.unpaired:
        summary = label_figures(policy, reference, task)
    summary |= evaluate_policy(policy, reference, task.heldout_prompts, command.samples,
                               command.max_new_tokens, config.seed, task.measure)
    if task.world:
        bayes = task.world.bayes_accuracy(task.heldout_preferences)
        summary["bayes_accuracy"] = bayes
        summary["accuracy_relative_to_bayes"] = summary["preference_accuracy_heldout"] / bayes
    return summary


def pair_figures(policy: MiniGPT, reference: MiniGPT, task: Task,
                 beta: float) -> dict[str, float]:
    """How well the implicit rewards rank held-out pairs."""
    heldout = task.heldout_preferences
    chosen, rejected = implicit_rewards(policy, reference, heldout, beta)
    return {
        "preference_accuracy_train":
            evaluate_preference_accuracy(policy, reference, task.seen_preferences),
        **accuracy_figures("preference_accuracy_heldout",
                           float(preference_accuracy(chosen - rejected)), len(heldout)),
        "rewards_chosen_heldout": float(chosen.mean()),
        "rewards_rejected_heldout": float(rejected.mean()),
        "rewards_margin_heldout": float((chosen - rejected).mean()),
    }


def label_figures(policy: MiniGPT, reference: MiniGPT, task: Task) -> dict[str, float]:
    """How well the implicit rewards tell good rows from bad."""
    seen = task.unpaired[::max(1, len(task.unpaired) // len(task.heldout_unpaired))]
    return {f"label_accuracy_{part}": evaluate_label_accuracy(policy, reference, rows)
            for part, rows in (("train", seen), ("heldout", task.heldout_unpaired))}


def beta_sweep(reference: MiniGPT, task: Task, command: CommandConfig,
               config: DPOConfig) -> list[dict[str, float]]:
    """The figures at each beta, each trained from the same start on the same pairs."""
    rows = []
    for beta in SWEEP:
        at_beta = replace(config, beta=beta, out=f"{config.out}/beta-{beta}")
        policy, _, _ = dpo_train(copy.deepcopy(reference), reference,
                                 task.preferences or task.unpaired, **vars(at_beta))
        rows.append({"beta": beta, **measure(policy, reference, task, command, at_beta)})
    return rows


def sweep_section(rows: Sequence[dict[str, float]], out: Path) -> Section:
    """The sweep, also written to sweep.json."""
    write_json(out / "sweep.json", rows)
    columns = {"beta": "beta", "preference_accuracy_heldout": "preference accuracy",
               "rewards_margin_heldout": "margin", "kl_nats_per_response": "KL (nats)",
               "true_reward": "true reward", "distinct_2": "distinct-2"}
    names = [name for name in columns if name in rows[0]]
    return Section("The same at other values of beta",
                   [[[columns[name] for name in names],
                     *([f"{row[name]:.3f}" for name in names] for row in rows)]])


def alone_in_memory(config: DPOConfig, lora: LoraConfig) -> Section:
    """Why training held no other model than the policy."""
    why = f"its reference is itself without the adapters of rank {lora.lora_rank}" \
        if needs_reference(config.loss) else f"{config.loss} needs no reference"
    return Section("In memory", [f"The policy alone, since {why}."])


def learned_from(task: Task, online: OnlineConfig) -> str:
    """What the policy learned from, in words."""
    if online.rounds:
        return f"its own judged answers to {len(task.prompts):,} prompts"
    return f"{len(task.preferences):,} pairs" if task.preferences else \
        f"{len(task.unpaired):,} rows labelled good or bad"


if __name__ == "__main__":
    run_command(main)
