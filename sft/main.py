"""Supervised fine-tuning, from data to report:  python -m sft.main

A base model reads plain text, then learns to answer from demonstrations.  `--rounds` goes on with
rejection sampling: SFT on the best of the model's own answers.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.task import RowsConfig, Task, load_task
from data.world import WorldConfig
from minigpt import distributed
from minigpt.checkpoint import save_checkpoint
from minigpt.command import (
    CommandConfig,
    begin,
    load_model,
    peak_memory_mb,
    report,
    run_command,
    tokens_trained,
)
from minigpt.evaluation import (
    before_and_after,
    sample_responses,
    signs_of_collapse,
    text_measures,
)
from minigpt.judged import check_rounds, judge_in_chat, sampling_figures
from minigpt.model import MiniGPT
from minigpt.plots import save_curves
from minigpt.recipes import below
from minigpt.report import Section
from reward.start import judge_of
from sft.evaluate import evaluate_loss
from sft.rounds import RejectionConfig, sft_rounds
from sft.start import doubts_about, plain_text_rows, train_base_model, train_sft_model
from sft.train import SFTConfig

ADVICE = {"finished_share": "train longer (--num-epochs), on responses that are not truncated "
                            "(--max-seq-len), and sample longer ones (--max-new-tokens)",
          "repetition": "train longer (--num-epochs)"}


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    settings = begin(__doc__, argv, CommandConfig, RowsConfig, SFTConfig, RejectionConfig,
                     WorldConfig, out="runs/sft")
    command, rows, config, rejection, world_config = settings
    check_rounds(rejection, rows.data is not None)
    task = load_task(rows, world_config, config.seed, command.init, "demonstrations")
    judge, judges = judge_of(rejection.judge, task, command)
    if command.init:
        base = load_model(command.init, MiniGPT, "--init", command.device)
    else:
        base = train_base_model(task, config, command.device)
    if judge is None:
        model, losses = train_sft_model(base, task, config)
    else:  # from --init, or after SFT in a folder of its own
        base = base if command.init else train_sft_model(
            base, task, replace(config, out=below(config.out, "sft")))[0]
        model, losses = sft_rounds(copy.deepcopy(base), task.prompts, judge, rejection, config,
                                   command.max_new_tokens)
    out = Path(config.out)
    save_checkpoint(base, out / "base.pt")
    save_checkpoint(model, out / "model.pt")
    if distributed.rank() > 0:  # only the first process reports
        return

    summary = measure(base, model, task, command, config)
    summary |= {**sampling_figures(rejection, config.out),
                "tokens_trained": tokens_trained(config.out)}
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(),
                "models_in_memory": 1 + judges}
    learned = f"{len(task.sft_rows):,} demonstrations" if judge is None else \
        f"the best of its own answers to {len(task.prompts):,} prompts"
    warnings = [*doubts_about({"start_loss_nats_per_token": summary["loss_nats_per_token"]}),
                *signs_of_collapse(summary, ADVICE)]
    report(f"SFT on {learned} of {rows.source}", config.out, summary, warnings, [
        before_and_after(base, model, task.heldout_prompts[:4], command.max_new_tokens),
        Section("Curves", save_curves(out / "curves.png", {"SFT loss": losses},
                                      {"nats per response token": ["SFT loss"]}))],
        settings, [f"{out}/base.pt", f"{out}/model.pt", *judge_in_chat(rejection)])


def measure(base: MiniGPT, model: MiniGPT, task: Task, command: CommandConfig,
            config: SFTConfig) -> dict[str, float]:
    """The report's figures: how well the model predicts held-out rows, and what it says."""
    prompts, responses = sample_responses(model, task.heldout_prompts, command.samples,
                                          command.max_new_tokens, config.seed)
    summary = {
        "loss_before_nats_per_token": evaluate_loss(base, task.heldout_sft_rows),
        "loss_nats_per_token": evaluate_loss(model, task.heldout_sft_rows),
        **text_measures(responses),
        **task.measure(prompts, [response.text for response in responses]),
    }
    if task.world:
        demonstrations = task.measure([row["prompt"] for row in task.sft_rows],
                                      [row["response"] for row in task.sft_rows])
        plain = plain_text_rows(task.heldout_plain_text)
        summary |= {
            "right_share_of_demonstrations": demonstrations["right_share"],
            "plain_text_loss_before_nats_per_token": evaluate_loss(base, plain),
            "plain_text_loss_nats_per_token": evaluate_loss(model, plain),
        }
    return summary


if __name__ == "__main__":
    run_command(main)
