"""RLHF with PPO, from data to report:  python -m ppo.main

Starts from an SFT model, which is also the frozen reference, and from a reward model trained on the
same preferences.  `--advantage rloo` and `grpo` do without a value model.
"""

import math
import operator
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from torch import nn

from data.lesson_rows import PREFERENCE_DATA
from data.task import RowsConfig, Task, load_task
from data.world import WorldConfig
from minigpt import distributed
from minigpt.checkpoint import save_checkpoint
from minigpt.command import CommandConfig, begin, peak_memory_mb, report, run_command
from minigpt.errors import UserError
from minigpt.evaluation import before_and_after, evaluate_policy, signs_of_collapse
from minigpt.lora import LoraConfig, merge_lora, policy_and_reference, weights_trained
from minigpt.model import MiniGPT
from minigpt.plots import running_mean, save_curves
from minigpt.report import Section
from minigpt.run_folder import read_history
from minigpt.weights import copy_model_weights
from ppo.train import (
    ADVICE,
    PPOConfig,
    check_groups,
    check_plain_text,
    first_value_model,
    ppo_training,
    prompts_of_rollout,
    signs_in_episode,
)
from reward.combine import Reward
from reward.evaluate import score
from reward.model import RewardModel
from reward.start import WORLD, RewardFileConfig, check_rewards, reward_of
from reward.train import train_reward_model
from sft.start import (
    check_lora,
    doubts_about,
    start_again,
    start_figures,
    start_path,
    starting_point,
)

__all__ = ["PREFERENCE_DATA", "MiniGPT", "RewardModel", "copy_model_weights", "main",
           "ppo_training", "train_reward_model"]


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    settings = begin(__doc__, argv, CommandConfig, RowsConfig, PPOConfig, LoraConfig, WorldConfig,
                     RewardFileConfig, out="runs/ppo")
    command, rows, config, lora, world_config, rewards = settings
    check_rewards(rewards, rows.data is not None)
    check_groups(config.advantage, config)
    check_lora(lora, command)
    task = load_task(rows, world_config, config.seed, command.init, "prompts")
    if not (task.preferences or (command.init and rewards.reward)):
        raise UserError("--data holds prompts alone, so PPO needs a model to start from (--init) "
                        "and a reward model (--reward)")
    check_plain_text(config, task.plain_text)
    start = starting_point(task, command, config)
    reward = reward_of(rewards, start, task, command, config)
    policy, reference = policy_and_reference(start, lora, config.seed)
    models, trained = models_in_memory(policy, reference, reward, config), weights_trained(policy)
    policy, _, _ = ppo_training(policy, reference, reward, task.prompts, measure=task.measure,
                                plain_text=task.plain_text, **vars(config))
    policy, reference = merge_lora(policy), reference or start_again(command, config)
    out = Path(config.out)
    save_checkpoint(policy, out / "model.pt")
    if distributed.rank() > 0:  # only the first process reports
        return

    before, after = (evaluate_policy(model, reference, task.heldout_prompts, command.samples,
                                     command.max_new_tokens, config.seed, task.measure,
                                     partial(score, reward))
                     for model in (reference, policy))
    history = read_history(out)
    summary = {**after,
               **{f"{name}_before": before[name] for name in
                  ("proxy_reward", "true_reward", "right_share") if name in before},
               **training_figures(history, task), **token_figures(history, task, config)}
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(),
                "models_in_memory": len(models), "weights_trained": trained}
    heading = start_figures(reference, task)
    in_memory = ", ".join(f"{name} ({weights:,} weights)" for name, weights in models.items())
    warnings = [*doubts_about(heading), *signs_in_training(history, task, config),
                *signs_of_collapse(summary, ADVICE)]
    report(f"PPO ({config.advantage}) on {len(task.prompts):,} prompts of {rows.source}",
           config.out, heading | summary, warnings,
           [Section("In memory", [in_memory]),
            before_and_after(reference, policy, task.heldout_prompts[:4], command.max_new_tokens),
            curves_section(history, task, out / "curves.png")],
           settings, [start_path(command, config), f"{out}/model.pt",
                      *reward_file(rewards.reward, config)])


def curves_section(history: Mapping[str, Sequence[float]], task: Task, path: Path) -> Section:
    """How training went, episode by episode; what this advantage does not log is left out."""
    panels = {
        "reward of the rollouts": ["objective/scores"] + ["true_reward"] * bool(task.world),
        "KL, nats per response": ["objective/kl_exact"],
        "explained variance": ["val/explained_variance"],
        "groups that all score the same": ["val/flat_groups"],
        "response tokens": ["val/response_tokens"]}
    logged = {title: names for title, names in panels.items() if names[0] in history}
    return Section("Curves", save_curves(path, history, logged, "episode"))


def models_in_memory(policy: MiniGPT, reference: MiniGPT | None, reward: Reward,
                     config: PPOConfig) -> dict[str, int]:
    """The models that training holds, and how many weights each has."""
    def weights(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    rewards = [member for member in reward.modules() if isinstance(member, RewardModel)]
    models = {"policy": weights(policy)}
    if reference is not None:
        models["reference"] = weights(reference)
    for number, member in enumerate(rewards, start=1):
        models["reward model" + f" {number}" * (len(rewards) > 1)] = weights(member)
    if config.advantage == "gae":
        models["value model"] = weights(first_value_model(reward, policy, config.value_layers))
    return models


def token_figures(history: Mapping[str, Sequence[float]], task: Task,
                  config: PPOConfig) -> dict[str, float]:
    """What the rollouts sampled, and what the updates, in which a token occurs several times, read.
    """
    responses = config.samples_per_prompt * prompts_of_rollout(config, len(task.prompts))
    minibatches = math.ceil(responses / distributed.world_size() / config.minibatch_size)
    read = [after - before for before, after
            in zip([0, *history["num_tokens"]], history["num_tokens"], strict=False)]
    passes = [updates / minibatches for updates in history["val/updates"]]
    texts = history.get("val/ptx_tokens", [0.0] * len(read))
    of_texts = [tokens * updates * distributed.world_size() for tokens, updates
                in zip(texts, history["val/updates"], strict=True)]
    return {"answers_sampled": responses * len(read),
            "tokens_sampled": round(responses * sum(history["val/response_tokens"])),
            "tokens_trained": round(sum(map(operator.mul, read, passes)) + sum(of_texts))}


def signs_in_training(history: Mapping[str, Sequence[float]], task: Task,
                      config: PPOConfig) -> list[str]:
    """What training warned of: the signs in the first episode that showed any."""
    prompts = prompts_of_rollout(config, len(task.prompts))
    signs = (signs_in_episode(history, step, prompts, config)
             for step in range(len(history["objective/kl_exact"])))
    return next(filter(None, signs), [])


def reward_file(paths: Sequence[str] | None, config: PPOConfig) -> list[str]:
    """The option with which the chat scores its answers, if the reward is one model on disk."""
    paths = paths or [f"{config.out}/reward/model.pt"]
    return ["--reward", *paths] if len(paths) == 1 and paths != [WORLD] else []


def training_figures(history: Mapping[str, Sequence[float]], task: Task) -> dict[str, float]:
    """What the log says about the training as a whole."""
    figures = {
        "ratio_first_update": history["val/first_ratio"][0],
        "kl_first_episode_nats_per_response": history["objective/kl_exact"][0],
        "clip_fraction": mean(history["policy/clipfrac_avg"]),
        "kl_coeff_final": history["objective/kl_coeff"][-1],
    }
    for name in ("val/explained_variance", "val/flat_groups"):  # with and without a value model
        if name in history:
            figures[name.removeprefix("val/")] = mean(history[name][-10:])
    if task.world:
        rewards = running_mean(history["true_reward"], 10)
        if max(rewards) > 0:  # a share of a reward below 0 would say nothing
            figures["true_reward_final_over_best_seen"] = rewards[-1] / max(rewards)
    return figures


if __name__ == "__main__":
    run_command(main)
