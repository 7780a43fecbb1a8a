"""The reward that other stages start from: trained, and its zero put where PPO needs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from data.task import Task
from minigpt.checkpoint import save_checkpoint
from minigpt.command import CommandConfig, load_model
from minigpt.errors import UserError
from minigpt.evaluation import sample_responses
from minigpt.examples import Text, check_texts
from minigpt.judged import WORLD, Judge, check_named
from minigpt.model import MiniGPT
from minigpt.options import Settings, option
from minigpt.recipes import below, settings_of_start
from minigpt.seeding import seed_of
from minigpt.settings import TrainingConfig
from reward.combine import COMBINATIONS, Ensemble, FunctionReward, Reward, as_reward
from reward.evaluate import score
from reward.model import RewardModel
from reward.train import RewardConfig, train_reward_model

CENTERING_PROMPTS = 256  # training prompts whose SFT answers set the zero


@dataclass
class RewardFileConfig(Settings):
    """What judges the answers."""

    reward: list[str] | None = option(None, "checkpoints of reward models, or 'world': 1 for a "
                                            "right and complete answer of the little world, else "
                                            "0; not its true reward (by default the command trains "
                                            "a reward model)")
    reward_weights: list[float] | None = option(None, "a weight for each --reward: the reward is "
                                                      "their weighted sum")
    reward_combine: str = option("mean", "what several rewards make without weights: their mean, "
                                         "or the least of them", choices=COMBINATIONS)


def fresh_reward_model(sft_model: MiniGPT, config: RewardConfig) -> RewardModel:
    """The SFT model with a random head; or, to read phrases, a random model of its size."""
    torch.manual_seed(config.seed)
    if config.reads == "phrases":
        model = RewardModel(**sft_model.settings, pooling=config.pooling, reads=config.reads)
        return model.to(sft_model.device)
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
                   config: RewardConfig, max_new_tokens: int, members: int = 1, samples: int = 1
                   ) -> tuple[list[RewardModel], list[float], list[float]]:
    """Reward models trained on preference rows, with their zero at the SFT model's own answers.

    members: how many, to be an ensemble; they differ by `member_configs`.
    samples: how many answers to each of `prompts` set the zero.
    Returns the models, and the loss and the accuracy of every step, each the mean over the members.
    """
    check_texts("prompts", prompts)
    runs = [train_reward_model(fresh_reward_model(sft_model, own), rows, **vars(own))
            for own in member_configs(config, members)]
    models, losses, accuracies = zip(*runs, strict=True)
    asked, answers = sample_responses(sft_model, prompts, samples, max_new_tokens, config.seed)
    for model in models:
        center(model, asked, [answer.ids for answer in answers])
    return list(models), _means(losses), _means(accuracies)


def _means(of_members: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(step) for step in zip(*of_members, strict=True)]


def member_configs(config: RewardConfig, members: int) -> list[RewardConfig]:
    """The settings of each member: a seed, for random weights and data order, and a folder.

    Of one alone: the run's.
    """
    if members == 1:
        return [config]
    return [replace(config, seed=seed_of(config.seed, "member", number),
                    out=below(config.out, f"member_{number}"))
            for number in range(1, members + 1)]


def check_rewards(config: RewardFileConfig, has_data: bool) -> None:
    """Raises UserError, before anything is trained, if these settings do not fit together."""
    paths, weights = config.reward or [], config.reward_weights
    if weights is not None and len(weights) != len(paths):
        raise UserError(f"--reward-weights has {len(weights)} weights for {len(paths)} rewards: "
                        "give one for each --reward")
    if weights is not None and config.reward_combine != "mean":
        raise UserError("--reward-weights makes a weighted sum of the rewards and --reward-combine "
                        f"{config.reward_combine} the least of them: choose one")
    check_named("--reward", paths, has_data)


def reward_of(rewards: RewardFileConfig, reference: MiniGPT, task: Task, command: CommandConfig,
              config: TrainingConfig) -> Reward:
    """The reward for another stage: of --reward, or trained in the folder of its run.

    Raises UserError as `check_rewards` does, and if a file holds no reward.
    """
    check_rewards(rewards, task.world is None)
    if not rewards.reward:
        return trained_reward_model(reference, task, command, config)
    found = [named_reward(path, task, command) for path in rewards.reward]
    if len(found) > 1 or rewards.reward_weights is not None:
        return Ensemble(found, rewards.reward_combine, rewards.reward_weights)
    only, = found
    if isinstance(only, Ensemble) and only.weights is None and rewards.reward_combine != "mean":
        return Ensemble(only.members, rewards.reward_combine)
    return only


def named_reward(path: str, task: Task, command: CommandConfig, option: str = "--reward") -> Reward:
    """What one of the names after --reward stands for."""
    if path != WORLD:
        return as_reward(load_model(path, (RewardModel, Ensemble), option, command.device))
    assert task.world is not None  # see check_rewards
    print(f"--reward {WORLD}: 1 for a right and complete answer, else 0")
    return FunctionReward(task.world.verify)


def trained_reward_model(reference: MiniGPT, task: Task, command: CommandConfig,
                         config: TrainingConfig) -> RewardModel:
    """A reward model trained in the folder of another stage's run."""
    print("no --reward given: training a reward model")
    reward_config = settings_of_start(RewardConfig, "reward", config, command.quick,
                                      task.world is None)
    (reward,), _, _ = train_centered(reference, task.preferences, task.prompts[:CENTERING_PROMPTS],
                                     reward_config, command.max_new_tokens)
    save_checkpoint(reward, Path(reward_config.out) / "model.pt")
    return reward


def judge_of(path: str | None, task: Task, command: CommandConfig) -> tuple[Judge | None, int]:
    """What --judge names, as a function (prompts, responses) -> scores, and its number of models.

    A judge ranks answers, so 'world' is the true reward here, which knows more than right or wrong.
    """
    if path is None:
        return None, 0
    if path != WORLD:
        reward = named_reward(path, task, command, "--judge")
        return partial(score, reward), len(getattr(reward, "members", [reward]))
    assert task.world is not None  # see check_rounds
    print(f"--judge {WORLD}: the little world's true reward, which is more than right or wrong")
    true_reward = task.world.true_reward
    return (lambda prompts, responses: list(map(true_reward, prompts, responses))), 0
