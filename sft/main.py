"""Supervised fine-tuning, from data to report:  python -m sft.main

A base model reads plain text, then learns to answer from demonstrations.
"""

import time
from collections.abc import Sequence
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
)
from minigpt.evaluation import (
    sample_responses,
    show_before_and_after,
    signs_of_collapse,
    text_measures,
)
from minigpt.log import warn
from minigpt.model import MiniGPT
from minigpt.plots import save_curves
from sft.evaluate import evaluate_loss
from sft.start import doubts_about, plain_text_rows, train_base_model, train_sft_model
from sft.train import SFTConfig

ADVICE = {"finished_share": "train longer (--num-epochs), on responses that are not truncated "
                            "(--max-seq-len), and sample longer ones (--max-new-tokens)",
          "repetition": "train longer (--num-epochs)"}


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    command, rows, config, world_config = begin(__doc__, argv, CommandConfig, RowsConfig, SFTConfig,
                                                WorldConfig, out="runs/sft")
    task = load_task(rows, world_config, config.seed, command.init, "demonstrations")

    if command.init:
        base = load_model(command.init, MiniGPT, "--init", command.device)
    else:
        base = train_base_model(task, config, command.device)
    model, losses = train_sft_model(base, task, config)
    out = Path(config.out)
    save_checkpoint(base, out / "base.pt")
    save_checkpoint(model, out / "model.pt")
    if distributed.rank() > 0:  # only the first process reports
        return

    summary = measure(base, model, task, command, config)
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(),
                "models_in_memory": 1}
    report("SFT: held-out prompts", summary, config.out,
           doubts_about({"start_loss_nats_per_token": summary["loss_nats_per_token"]}))
    warn(signs_of_collapse(summary, ADVICE))
    show_before_and_after(base, model, task.heldout_prompts[:4], command.max_new_tokens)
    save_curves(out / "curves.png", {"SFT loss": losses}, {"nats per response token": ["SFT loss"]})


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
