"""The reward model's loop, its centring, and its measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from data.examples import preference_examples
from minigpt.batching import Batches, Text, print_count, score_examples, tokenize_example
from minigpt.cli import option
from minigpt.distributed import world_size
from minigpt.training import EpochConfig, TrainingRun
from reward.loss import bradley_terry_loss
from reward.model import POOLINGS, READINGS, RewardModel


@dataclass
class RewardConfig(EpochConfig):
    """The recipe of `python -m reward.main`."""

    OWN_DATA: ClassVar[dict] = {"num_epochs": 5, "lr": 1e-3, "batch_size": 16, "pooling": "mean", "reads": "response",
                               "lm_coeff": 0.1}

    num_epochs: int = option(2, "passes over the pairs")
    lr: float = option(2e-4, "peak learning rate")
    warmup: float = option(0.1, "share of the steps in which the learning rate rises from 0")
    batch_size: int = option(8, "pairs in one optimizer step")
    weight_decay: float = option(0.1, "AdamW's pull of matrices towards zero")
    pooling: str = option("last", "what of a response is scored: its last token, or the mean over its tokens",
                          choices=POOLINGS)
    lm_coeff: float = option(0.0, "weight of a language-modelling loss on both responses: against overfitting on few rows")
    reads: str = option("both", "what is read: prompt and response, or the response alone", choices=READINGS)


def train_reward_model(model: RewardModel, rows: Sequence[Mapping], num_epochs: int = 10, lr: float = 1e-4,
                       **options) -> tuple[RewardModel, list[float], list[float]]:
    """Train `model` in place on preference rows; more options: the fields of RewardConfig.

    Returns the model (in eval mode), and the loss and the accuracy of every step (on that step's training pairs).
    Raises DataError on a row that cannot be used, FloatingPointError if the loss is not finite.
    """
    config = RewardConfig(num_epochs=num_epochs, lr=lr, **options)
    batches = Batches(preference_examples(rows, model.max_seq_len), config.batch_size * world_size(), config.seed)
    run = TrainingRun({"reward": model.train()}, config, config.num_epochs * len(batches), batches.examples)
    for batch in run.steps(batches, config.accumulate):
        rewards, logps = model.rewards_and_logps(batch) if config.lm_coeff else (model.rewards_of(batch), None)  # (B, 2)
        loss, metrics = bradley_terry_loss(*rewards.unbind(1))
        if config.lm_coeff:  # a regulariser (Yang et al. 2024, arXiv:2406.10216)
            loss, metrics = loss - config.lm_coeff * logps.mean(), {**metrics, "lm_loss": -logps.mean().detach()}
        run.update(loss, metrics)
    return run.whole("reward").eval(), run.history["loss"], run.history["accuracy"]


def score(model: RewardModel, prompts: Sequence[str], responses: Sequence[Text], batch_size: int = 128) -> Tensor:
    """The reward of each response, a text or ids as `generate` returned them: (B,).

    A pair longer than max_seq_len is read up to there, and one printed line says how many were.
    """
    examples = [tokenize_example(prompt, [response], model.max_seq_len)
                for prompt, response in zip(prompts, responses, strict=True)]
    cut = [number for number, example in enumerate(examples) if example.is_cut]
    print_count("response cut short in", cut, len(examples), model.max_seq_len)
    return rewards_of_examples(model, Batches(examples, batch_size))[:, 0]


def reward_margins(model: RewardModel, rows: Sequence[Mapping]) -> Tensor:
    """Chosen reward minus rejected reward of each row, on the CPU: (N,)."""
    rewards = rewards_of_examples(model, Batches(preference_examples(rows, model.max_seq_len), 64))
    return (rewards[:, 0] - rewards[:, 1]).cpu()


def evaluate_reward_accuracy(model: RewardModel, rows: Sequence[Mapping]) -> float:
    """Share of rows whose chosen response has the higher reward; a tie counts one half."""
    margins = reward_margins(model, rows)
    return float(((margins > 0).float() + 0.5 * (margins == 0).float()).mean())


@torch.no_grad()
def center(model: RewardModel, prompts: Sequence[str], responses: Sequence[Text]) -> float:
    """Shift the head's bias so that these responses have mean reward 0; returns the mean they had.

    Bradley-Terry leaves the zero free; PPO needs one, so that a reward above 0 means better than the SFT model.
    """
    mean = score(model, prompts, responses).mean()
    model.head.bias -= mean
    return float(mean)


def rewards_of_examples(model: RewardModel, batches: Batches) -> Tensor:
    """The reward of every response of every example, without a gradient: (N, k), k responses an example."""
    return score_examples(model.rewards_of, batches, model.device)


def calibration(margins: Tensor, bins: int = 5) -> list[dict[str, float]]:
    """Predicted against observed preference rate.

    Each pair is read in the order that the model prefers, so predicted = sigmoid(|margin|) is between 0.5 and 1,
    and observed is how often the annotators agreed.  Bins hold equally many pairs.
    """
    order = margins.abs().argsort()
    return [{"predicted": float(margins[part].abs().sigmoid().mean()),
             "observed": float((margins[part] > 0).float().mean()), "pairs": len(part)}
            for part in order.tensor_split(bins) if len(part)]
