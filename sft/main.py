"""Supervised fine-tuning, from data to report:  python -m sft.main

A base model reads plain text, then learns to answer from demonstrations.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data.task import RowsConfig, Task, load_task
from data.world import WorldConfig
from minigpt import distributed
from minigpt.checkpoint import load_model, save_checkpoint
from minigpt.cli import CommandConfig, check_device, open_run, parse, peak_memory_mb, report, run, warn
from minigpt.evaluation import sample_answers, show_before_and_after, signs_of_collapse, text_measures
from minigpt.model import MiniGPT, copy_model_weights
from minigpt.plots import save_curves
from minigpt.training import TrainingConfig, recipe
from sft.train import SFTConfig, evaluate_loss, sft_train


def as_rows(texts: Sequence[str]) -> list[dict[str, str]]:
    """Plain text is a response to an empty prompt."""
    return [{"prompt": "", "response": text} for text in texts]


def train_base_model(task: Task, config: SFTConfig, command: CommandConfig) -> MiniGPT:
    """A fresh model that has read the task's plain text (a file has none: then the model is left fresh)."""
    torch.manual_seed(config.seed)
    model = MiniGPT(max_seq_len=task.max_seq_len).to(check_device(command.device))
    if task.plain_text:
        base_config = replace(config, num_epochs=1, lr=config.base_lr, out=f"{config.out}/base")
        model, _ = sft_train(model, as_rows(task.plain_text), **vars(base_config))
    return model.eval()


def train_sft_model(base: MiniGPT, task: Task, config: SFTConfig) -> tuple[MiniGPT, list[float]]:
    """A copy of the base model, trained on demonstrations with a little plain text mixed back in against forgetting."""
    model = copy_model_weights(base, MiniGPT(**base.settings).to(base.device))
    mixed_in = task.plain_text[:round(config.plain_share * len(task.sft_rows))]
    return sft_train(model, task.sft_rows + as_rows(mixed_in), **vars(config))


def starting_point(task: Task, command: CommandConfig, run: TrainingConfig) -> MiniGPT:
    """The SFT model that another stage's run begins with: from --init, or trained here into a folder of its own."""
    if command.init is not None:
        return load_model(command.init, MiniGPT, "--init", command.device)
    print("no --init given: training an SFT model to start from")
    config = recipe(SFTConfig, run, "sft", command.quick, task.world is None)
    model, _ = train_sft_model(train_base_model(task, config, command), task, config)
    save_checkpoint(model, Path(config.out) / "model.pt")
    return model


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    command, rows, config, world_config = parse(__doc__, argv, CommandConfig, RowsConfig, SFTConfig, WorldConfig,
                                                out="runs/sft")
    open_run(config.out, config.resume, config.overwrite, command.device, command, rows, config, world_config)
    task = load_task(rows, world_config, config.seed, command.init, demonstrations=True)

    base = load_model(command.init, MiniGPT, "--init", command.device) if command.init \
        else train_base_model(task, config, command)
    model, losses = train_sft_model(base, task, config)
    save_checkpoint(base, Path(config.out) / "base.pt")
    save_checkpoint(model, Path(config.out) / "model.pt")
    if distributed.rank() > 0:  # the report is for one
        return

    prompts, responses = sample_answers(model, task.heldout_prompts, command.samples, command.max_new_tokens, config.seed)
    summary = {
        "loss_before_nats_per_token": evaluate_loss(base, task.heldout_sft_rows),
        "loss_nats_per_token": evaluate_loss(model, task.heldout_sft_rows),
        **text_measures(responses),
        **task.measure(prompts, [response.text for response in responses]),
    }
    if task.world:
        demonstrations = [row["prompt"] for row in task.sft_rows], [row["response"] for row in task.sft_rows]
        summary["right_share_of_demonstrations"] = task.measure(*demonstrations)["right_share"]
        plain = as_rows(task.heldout_plain_text)
        summary["plain_text_loss_before_nats_per_token"] = evaluate_loss(base, plain)
        summary["plain_text_loss_nats_per_token"] = evaluate_loss(model, plain)
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(), "models_in_memory": 1}
    report("SFT: held-out prompts", summary, config.out)
    warn(signs_of_collapse(summary))
    show_before_and_after(base, model, task.heldout_prompts[:4], command.max_new_tokens)
    save_curves(Path(config.out) / "curves.png", {"SFT loss": losses}, {"nats per response token": ["SFT loss"]})


if __name__ == "__main__":
    run(main)
