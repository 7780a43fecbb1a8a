"""RLHF with PPO, from data to report:  python -m ppo.main

Starts from an SFT model, which is also the frozen reference, and a reward model trained on the same preferences.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from data.lesson_rows import PREFERENCE_DATA
from data.task import RowsConfig, Task, load_task
from data.world import WorldConfig
from minigpt import distributed
from minigpt.checkpoint import load_model, save_checkpoint
from minigpt.cli import CommandConfig, open_run, option, parse, peak_memory_mb, report, run, warn
from minigpt.evaluation import evaluate_policy, show_before_and_after, signs_of_collapse
from minigpt.model import MiniGPT, copy_model_weights
from minigpt.plots import running_mean, save_curves
from minigpt.run_folder import read_history
from minigpt.training import recipe
from ppo.train import PPOConfig, ppo_training
from reward.main import make_reward_model
from reward.model import RewardModel
from reward.train import RewardConfig, score, train_reward_model
from sft.main import starting_point

__all__ = ["PREFERENCE_DATA", "MiniGPT", "RewardModel", "copy_model_weights", "main", "ppo_training",
           "train_reward_model"]


@dataclass
class RewardFileConfig:
    reward: str | None = option(None, "checkpoint of the reward model (without it the command trains its own)")


def load_or_train_reward_model(path: str | None, reference: MiniGPT, task: Task, command: CommandConfig,
                               config: PPOConfig) -> RewardModel:
    """The reward model to train against: from --reward, or trained here into a folder of its own."""
    if path is not None:
        return load_model(path, RewardModel, "--reward", command.device)
    print("no --reward given: training a reward model")
    reward_config = recipe(RewardConfig, config, "reward", command.quick, task.world is None)
    reward, _, _ = make_reward_model(reference, task, reward_config, command.max_new_tokens)
    save_checkpoint(reward, Path(reward_config.out) / "model.pt")
    return reward


def make_ppo_policy(reference: MiniGPT, reward: RewardModel, task: Task, config: PPOConfig) -> MiniGPT:
    """A copy of the reference, trained against the reward model on the task's training prompts."""
    policy = copy_model_weights(reference, MiniGPT(**reference.settings).to(reference.device))
    policy, _, _ = ppo_training(policy, reference, reward, task.prompts, measure=task.measure, **vars(config))
    return policy


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    command, rows, config, world_config, reward_file = parse(__doc__, argv, CommandConfig, RowsConfig, PPOConfig,
                                                             WorldConfig, RewardFileConfig, out="runs/ppo")
    open_run(config.out, config.resume, config.overwrite, command.device, command, rows, config, world_config, reward_file)
    task = load_task(rows, world_config, config.seed, command.init)
    reference = starting_point(task, command, config)
    reward = load_or_train_reward_model(reward_file.reward, reference, task, command, config)
    policy = make_ppo_policy(reference, reward, task, config)
    save_checkpoint(policy, Path(config.out) / "model.pt")
    if distributed.rank() > 0:  # the report is for one
        return

    def measure(prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        return {"proxy_reward": float(score(reward, prompts, texts).mean()), **task.measure(prompts, texts)}

    before, after = (evaluate_policy(model, reference, task.heldout_prompts, command.samples, command.max_new_tokens,
                                     config.seed, measure) for model in (reference, policy))
    history = read_history(config.out)
    summary = {
        "ratio_first_update": history["val/first_ratio"][0],
        "kl_first_episode_nats_per_response": history["objective/kl_exact"][0],
        **after,
        **{name + "_before": before[name] for name in ("proxy_reward", "true_reward", "right_share") if name in before},
        "clip_fraction": mean(history["policy/clipfrac_avg"]),
        "explained_variance": mean(history["val/explained_variance"][-10:]),
        "kl_coeff_final": history["objective/kl_coeff"][-1],
    }
    if task.world:
        rewards = running_mean(history["true_reward"], 10)
        if max(rewards) > 0:  # a share of a reward below 0 would say nothing
            summary["true_reward_final_over_best_seen"] = rewards[-1] / max(rewards)
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(), "models_in_memory": 4}
    report("PPO: held-out prompts", summary, config.out)
    print(f"\nIn memory: policy, reference {policy.count_parameters():,} weights each; reward model, value model "
          f"{sum(p.numel() for p in reward.parameters()):,} each")
    warn(signs_of_collapse(summary))
    show_before_and_after(reference, policy, task.heldout_prompts[:4], command.max_new_tokens)
    rewards = ["objective/scores"] + ["true_reward"] * bool(task.world)
    save_curves(Path(config.out) / "curves.png", history,
                {"reward of the rollouts": rewards, "KL, nats per response": ["objective/kl_exact"],
                 "explained variance": ["val/explained_variance"], "response tokens": ["val/response_tokens"]}, "episode")


if __name__ == "__main__":
    run(main)
