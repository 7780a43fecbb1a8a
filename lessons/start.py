"""Where most lessons start: eight facts of the little world, and small models that learned them.

    start = starting_point()        # the models in lessons/models/; of other seeds they are
                                    # trained, a minute the first time, and kept in runs/lessons/
    policy = start.fresh_policy()   # a copy of start.sft
    dpo_train(policy, start.sft, start.world.preferences, **DPO)
    start.measure(policy)["true_reward"]
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn

from data.task import RowsConfig, load_task
from data.world import World, WorldConfig
from dpo.train import DPOConfig
from lessons.course import LESSONS, RUNS, fingerprint
from lessons.limit import Frontier
from minigpt.checkpoint import load_checkpoint, save_checkpoint
from minigpt.evaluation import evaluate_policy
from minigpt.model import MiniGPT
from minigpt.recipes import recipe
from minigpt.sampling import generate
from ppo.train import PPOConfig
from reward.model import RewardModel
from reward.start import train_centered
from reward.train import RewardConfig
from sft.start import plain_text_rows, train_sft_model
from sft.train import SFTConfig, sft_train

MODELS = LESSONS / "models"
SIZE = {"embed_dim": 64, "num_heads": 4, "num_layers": 3, "ff_dim": 256}
WORLD = recipe("lesson", WorldConfig)
QUICK_WORLD = {"facts": 8, "plain_rows": 160, "sft_rows": 160, "preference_rows": 96,
               "heldout_rows": 48}

# Recipes for this size, from minigpt/recipes.py; a lesson changes one thing at a time.
SFT = recipe("lesson", SFTConfig)
BASE = {**SFT, "lr": SFTConfig.base_lr}
REWARD = recipe("lesson", RewardConfig)
DPO = recipe("lesson", DPOConfig)
PPO = recipe("lesson", PPOConfig)
LONGEST_ANSWER = PPO["max_new_tokens"]


@dataclass
class Start:
    """A little world; the base, SFT and reward models trained on it, all in eval mode.

    pool: how many SFT answers to each held-out prompt the limit is estimated from."""

    world: World
    seed: int
    base: MiniGPT
    sft: MiniGPT
    reward: RewardModel
    pool: int = 512

    def fresh_policy(self) -> MiniGPT:
        """A copy of the SFT model, to be trained."""
        return copy.deepcopy(self.sft)

    def measure(self, policy: MiniGPT, samples: int = 16) -> dict[str, float]:
        """Figures of answers to held-out prompts: true_reward, kl_nats_per_response, ..."""
        return evaluate_policy(policy, self.sft, self.world.heldout_prompts, samples,
                               LONGEST_ANSWER, self.seed, self.world.measure)

    @cached_property
    def frontier(self) -> Frontier:
        """The best true reward that any policy can have at each KL (lessons/limit.py)."""
        rewards = []
        for number, prompt in enumerate(self.world.heldout_prompts):
            pool = generate(self.sft, [prompt] * self.pool, LONGEST_ANSWER, seed=number)
            rewards.append([self.world.true_reward(prompt, answer.text) for answer in pool])
        return Frontier(torch.tensor(rewards))


def starting_point(seed: int = 0, quick: bool = False, **world_options: Any) -> Start:
    """The models for this seed and this world: shipped, kept from an earlier time, or trained now.

    quick: hardly trained.  world_options: fields of `data.world.WorldConfig`, such as length_bias;
    those that only change the preferences leave base and SFT model as they are.
    """
    config = WorldConfig(**{**(QUICK_WORLD if quick else WORLD), **world_options})
    task = load_task(RowsConfig(), config, seed)
    world = task.world
    assert world is not None  # RowsConfig() names no file
    parts = made_from(world, seed)
    base = kept(lambda: train_base(world, seed), "base", *parts["base"])
    sft = kept(lambda: train_sft_model(base, task, SFTConfig(seed=seed, **SFT))[0], "sft",
               *parts["sft"])
    reward = kept(lambda: train_reward(sft, world, seed), "reward", *parts["reward"])
    return Start(world, seed, base, sft, reward, pool=16 if quick else Start.pool)


def made_from(world: World, seed: int) -> dict[str, list[Any]]:
    """What each model is made from: where one of these changes, it has to be trained anew."""
    base = [world.plain_text, SIZE, BASE, seed]
    sft = [*base, world.sft_rows, SFT]
    reward = [*sft, world.preferences, REWARD]
    return {"base": base, "sft": sft, "reward": reward, "dpo": [*sft, world.preferences, DPO],
            "ppo": [*reward, PPO]}


@cache
def library() -> list[str]:
    """What the code that trains is like, so that no model outlives a change of it."""
    return [fingerprint(path) for name in ("minigpt", "data", "sft", "reward")
            for path in sorted((LESSONS.parent / name).glob("*.py"))]


def kept(train: Callable[[], nn.Module], name: str, *made_from: Any) -> Any:
    """The model that `train` returns, or one that ships or was kept, made from the same.

    A shipped model outlives changes of the library: tests hold it to the library by what it does.
    """
    key = key_of(made_from)
    if shipped().get(name, {}).get("made_from") == key:
        return load_checkpoint(MODELS / f"{name}.pt")
    path = RUNS / "start" / f"{name}-{key_of((library(), key))}.pt"
    if not path.exists():
        print(f"training the {name} model to start from ...", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(train(), path)
    return load_checkpoint(path)


def key_of(made_from: Sequence[Any]) -> str:
    """A hash of what a model is made from: rows, settings, seeds."""
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]


@cache
def shipped() -> dict[str, dict[str, Any]]:
    """What lessons/models/models.json says of each model there (lessons/models.py)."""
    path = MODELS / "models.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def train_base(world: World, seed: int) -> MiniGPT:
    torch.manual_seed(seed)
    return sft_train(MiniGPT(**SIZE), plain_text_rows(world.plain_text), seed=seed, **BASE)[0]


def train_reward(sft: MiniGPT, world: World, seed: int) -> RewardModel:
    """Trained on the preferences, with its zero at the SFT model's own answers."""
    (model,), _, _ = train_centered(sft, world.preferences, world.prompts,
                                    RewardConfig(seed=seed, **REWARD), LONGEST_ANSWER, samples=4)
    return model
