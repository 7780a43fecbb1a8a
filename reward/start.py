"""The reward model that other stages start from: trained, and its zero put where PPO needs it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from data.task import Task
from minigpt.checkpoint import save_checkpoint
from minigpt.command import CommandConfig, load_model
from minigpt.evaluation import sample_responses
from minigpt.examples import Text, check_texts
from minigpt.model import MiniGPT
from minigpt.recipes import settings_of_start
from minigpt.settings import TrainingConfig
from reward.evaluate import score
from reward.model import RewardModel
from reward.train import RewardConfig, train_reward_model

CENTERING_PROMPTS = 256  # training prompts whose SFT answers set the zero


def fresh_reward_model(sft_model: MiniGPT, config: RewardConfig) -> RewardModel:
    """The SFT model with a random head."""
    torch.manual_seed(config.seed)
    return RewardModel.from_policy(sft_model, config.pooling, config.reads)


@torch.no_grad()
def center(model: RewardModel, prompts: Sequence[str], responses: Sequence[Text]) -> float:
    """Shift the head's bias so that these responses have mean reward 0; returns the mean before.

    Bradley-Terry leaves the zero arbitrary.  PPO needs one: above 0 should mean better than SFT.
    """
    mean = score(model, prompts, responses).mean()
    model.head.bias.sub_(mean)
    return float(mean)


def train_centered(sft_model: MiniGPT, rows: Sequence[Mapping], prompts: Sequence[str],
                   config: RewardConfig, max_new_tokens: int, samples: int = 1
                   ) -> tuple[RewardModel, list[float], list[float]]:
    """A reward model trained on preference rows, with its zero at the SFT model's own answers.

    `samples` answers to each of `prompts` set the zero.  Returns what `train_reward_model` does.
    """
    check_texts("prompts", prompts)
    model = fresh_reward_model(sft_model, config)
    model, losses, accuracies = train_reward_model(model, rows, **vars(config))
    asked, answers = sample_responses(sft_model, prompts, samples, max_new_tokens, config.seed)
    center(model, asked, [answer.ids for answer in answers])
    return model, losses, accuracies


def reward_model_of(path: str | None, reference: MiniGPT, task: Task, command: CommandConfig,
                    config: TrainingConfig) -> RewardModel:
    """The reward model for another stage: from --reward, or trained in its folder."""
    if path is not None:
        return load_model(path, RewardModel, "--reward", command.device)
    print("no --reward given: training a reward model")
    reward_config = settings_of_start(RewardConfig, "reward", config, command.quick,
                                      task.world is None)
    reward, _, _ = train_centered(reference, task.preferences, task.prompts[:CENTERING_PROMPTS],
                                  reward_config, command.max_new_tokens)
    save_checkpoint(reward, Path(reward_config.out) / "model.pt")
    return reward
