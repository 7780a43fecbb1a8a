"""Canaries: short runs of each recipe, that tell whether the library still computes what it did.

A change of the library that moves a number of the lessons moves the losses of the first twenty
steps, too.  `python -m lessons.build` writes them beside what experiments.py kept; where a run
today has others, the article says that its numbers are older than the code.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from data.task import RowsConfig, load_task
from dpo.train import dpo_train
from lessons.course import LESSONS
from lessons.start import BASE, DPO, MODELS, PPO, REWARD, SFT, SIZE, Start, starting_point
from minigpt.checkpoint import load_checkpoint
from minigpt.model import MiniGPT
from minigpt.recipes import ADVANTAGE_SETTINGS
from ppo.train import ppo_training
from reward.start import fresh_reward_model
from reward.train import RewardConfig, train_reward_model
from sft.start import plain_text_rows
from sft.train import sft_train

RECIPES: dict[str, dict[str, Any]] = {"base": BASE, "sft": SFT, "reward": REWARD, "dpo": DPO,
                                      "ppo": PPO}
WITHOUT_CRITIC = {name: {**PPO, "advantage": name, **settings}  # rloo, grpo: no model of them ships
                  for name, settings in ADVANTAGE_SETTINGS.items()}
CANARY_STEPS = 20
CANARY = "canary.json"  # in the folder of a lesson
TOLERANCE = 1e-3
TRAINED_IN = {"01": ["base"], "02": ["base", "sft"], "03": ["reward"], "04": ["ppo"],
              "05": ["dpo"], "06": ["reward", "dpo", "ppo"], "07": ["reward", "dpo", "ppo"],
              "08": ["sft", "reward", "dpo", "ppo"],
              "09": ["dpo", "ppo"],  # it has settings of its own: these are the nearest
              "10": ["dpo"], "11": ["ppo", "rloo", "grpo"], "12": ["dpo"],
              "13": ["sft", "reward", "dpo"], "14": ["reward", "dpo", "ppo"]}  # lesson -> recipes


def canary_of(name: str, start: Start) -> list[float]:
    """The losses of 20 steps of this model's training, from where it starts; of PPO and its
    kin, which sample their own data, the mean score and the KL of three small episodes."""
    world = start.world
    task = load_task(RowsConfig(), world.config, start.seed)
    rows: Mapping[str, Any] = {"base": plain_text_rows(world.plain_text), "sft": task.sft_rows,
                               "reward": world.preferences, "dpo": world.preferences}
    few = rows[name][:CANARY_STEPS * RECIPES[name]["batch_size"]] if name in rows else []
    torch.manual_seed(start.seed)
    if name == "base":
        return sft_train(MiniGPT(**SIZE), few, seed=start.seed, **BASE)[1]
    if name == "sft":
        return sft_train(load_checkpoint(MODELS / "base.pt"), few, seed=start.seed, **SFT)[1]
    if name == "reward":
        config = RewardConfig(seed=start.seed, **REWARD | {"num_epochs": 1})
        return train_reward_model(fresh_reward_model(start.sft, config), few, **vars(config))[1]
    if name == "dpo":
        return dpo_train(start.fresh_policy(), start.sft, few, seed=start.seed, **DPO)[1]
    small = {"num_episodes": 3, "batch_size": 32, "minibatch_size": 16}
    _, scores, kls = ppo_training(start.fresh_policy(), start.sft, start.reward, world.prompts,
                                  seed=start.seed, **(RECIPES | WITHOUT_CRITIC)[name] | small)
    return scores + kls


@cache
def canary_today(name: str) -> list[float]:
    """What `canary_of` says now, from the models that ship with the lessons."""
    torch.set_num_threads(1)
    return canary_of(name, starting_point())


def canaries(lesson: str) -> dict[str, list[float]]:
    """Recipe -> its canary, for each recipe that a lesson trains with."""
    return {name: canary_today(name) for name in TRAINED_IN[lesson[:2]]}


def numbers_are_older(lesson: str) -> bool:
    """Whether the numbers of a lesson are of a library that computed other ones."""
    path = LESSONS / lesson / CANARY
    if not path.exists():
        return True
    stored = json.loads(path.read_text(encoding="utf-8"))
    return not all(same(stored.get(name, []), today) for name, today in canaries(lesson).items())


def same(stored: list[float], today: list[float]) -> bool:
    return len(stored) == len(today) and all(
        abs(a - b) <= TOLERANCE for a, b in zip(stored, today, strict=True))
