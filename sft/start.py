"""The models that other stages start from: the base model, and the SFT model made from it."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from data.examples import plain_text_rows
from data.task import Task
from minigpt.checkpoint import save_checkpoint
from minigpt.command import CommandConfig, check_device, load_model
from minigpt.errors import UserError
from minigpt.lora import LoraConfig, check_rank
from minigpt.model import MiniGPT
from minigpt.recipes import below, settings_of_start
from minigpt.settings import TrainingConfig
from minigpt.tokenizer import VOCAB_SIZE
from sft.evaluate import evaluate_loss
from sft.train import SFTConfig, sft_train

CAN_WRITE = 1.5  # nats per token: a model of bytes with a higher loss hardly writes words


def train_base_model(task: Task, config: SFTConfig, device: str = "cpu") -> MiniGPT:
    """A fresh model that has read the task's plain text; if there is none, it stays untrained."""
    torch.manual_seed(config.seed)
    model = MiniGPT(max_seq_len=task.max_seq_len).to(check_device(device))
    if task.plain_text:
        base_config = replace(config, num_epochs=1, min_steps=1, lr=config.base_lr,
                              out=below(config.out, "base"))
        model, _ = sft_train(model, plain_text_rows(task.plain_text), **vars(base_config))
    return model.eval()


def train_sft_model(base: MiniGPT, task: Task, config: SFTConfig) -> tuple[MiniGPT, list[float]]:
    """A copy of the base model, trained on demonstrations and, against forgetting, plain text."""
    mixed_in = task.plain_text[:round(config.plain_share * len(task.sft_rows))]
    rows = task.sft_rows + plain_text_rows(mixed_in)
    return sft_train(copy.deepcopy(base), rows, **vars(config))


def starting_point(task: Task, command: CommandConfig, config: TrainingConfig) -> MiniGPT:
    """The SFT model that another stage starts from: from --init, or trained in its folder."""
    if command.init is not None:
        return load_model(command.init, MiniGPT, "--init", command.device)
    print("no --init given: training an SFT model to start from")
    sft_config = settings_of_start(SFTConfig, "sft", config, command.quick, task.world is None)
    base = train_base_model(task, sft_config, command.device)
    model, _ = train_sft_model(base, task, sft_config)
    save_checkpoint(model, Path(sft_config.out) / "model.pt")
    return model


def check_lora(lora: LoraConfig, command: CommandConfig) -> None:
    """Raises UserError, before anything is trained, if there cannot be such adapters."""
    if lora.lora_rank is None:
        if lora.lora_alpha is not None:
            raise UserError("--lora-alpha scales adapters, and there are none without --lora-rank")
    else:
        start = MiniGPT() if command.init is None else \
            load_model(command.init, MiniGPT, "--init", command.device)
        check_rank(lora.lora_rank, start.settings["embed_dim"])


def start_path(command: CommandConfig, config: TrainingConfig) -> str:
    """Where the model of `starting_point` is on disk."""
    return command.init or f"{config.out}/sft/model.pt"


def start_again(command: CommandConfig, config: TrainingConfig) -> MiniGPT:
    """The model of `starting_point` once more, from disk, where a run has changed it in place."""
    return load_model(start_path(command, config), MiniGPT, "--init", command.device)


def start_figures(start: MiniGPT, task: Task) -> dict[str, float]:
    """How well the model that a run starts from predicts held-out rows of the user's own file."""
    if task.world or not task.heldout_sft_rows:
        return {}
    return {"start_loss_nats_per_token": evaluate_loss(start, task.heldout_sft_rows)}


def doubts_about(figures: Mapping[str, float]) -> list[str]:
    """What a report must say first if the model that it starts from has not learned to write."""
    loss = figures.get("start_loss_nats_per_token", 0.0)
    if loss <= CAN_WRITE:
        return []
    return [f"the model has not learned to write: its SFT loss on held-out rows is {loss:.2f} nats "
            f"per token (untrained {math.log(VOCAB_SIZE):.2f}; below {CAN_WRITE} it writes words). "
            "What is said below means little, and to rank well is no proof of more: bring more "
            "rows, or --init with a model that can write"]
