"""RLHF with PPO, from data to report:  python -m ppo.main

Starts from an SFT model, which is also the frozen reference, and from a reward model trained on the
same preferences.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from data.lesson_rows import PREFERENCE_DATA
from data.task import RowsConfig, Task, load_task
from data.world import WorldConfig
from minigpt import distributed
from minigpt.checkpoint import save_checkpoint
from minigpt.command import CommandConfig, begin, peak_memory_mb, report, run_command
from minigpt.errors import UserError
from minigpt.evaluation import evaluate_policy, show_before_and_after, signs_of_collapse
from minigpt.log import warn
from minigpt.model import MiniGPT
from minigpt.options import Settings, option
from minigpt.plots import running_mean, save_curves
from minigpt.run_folder import read_history
from minigpt.weights import copy_model_weights
from ppo.train import ADVICE, PPOConfig, ppo_training
from reward.evaluate import score
from reward.model import RewardModel
from reward.start import reward_model_of
from reward.train import train_reward_model
from sft.start import doubts_about, start_figures, starting_point

__all__ = ["PREFERENCE_DATA", "MiniGPT", "RewardModel", "copy_model_weights", "main",
           "ppo_training", "train_reward_model"]


@dataclass
class RewardFileConfig(Settings):
    reward: str | None = option(None, "checkpoint of the reward model (by default the command "
                                      "trains its own)")


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    command, rows, config, world_config, reward_file = begin(
        __doc__, argv, CommandConfig, RowsConfig, PPOConfig, WorldConfig, RewardFileConfig,
        out="runs/ppo")
    task = load_task(rows, world_config, config.seed, command.init, "prompts")
    if not (task.preferences or (command.init and reward_file.reward)):
        raise UserError("--data holds prompts alone, so PPO needs a model to start from (--init) "
                        "and a reward model (--reward)")
    reference = starting_point(task, command, config)
    reward = reward_model_of(reward_file.reward, reference, task, command, config)
    policy, _, _ = ppo_training(copy.deepcopy(reference), reference, reward, task.prompts,
                                measure=task.measure, **vars(config))
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
               **training_figures(history, task)}
    summary |= {"seconds": time.perf_counter() - started, "peak_memory_mb": peak_memory_mb(),
                "models_in_memory": 4}
    start = start_figures(reference, task)
    report("PPO: held-out prompts", start | summary, config.out, doubts_about(start))
    print(f"\nIn memory: policy and reference, {policy.count_parameters():,} weights each; reward "
          f"model and value model, {sum(p.numel() for p in reward.parameters()):,} each")
    warn(signs_of_collapse(summary, ADVICE))
    show_before_and_after(reference, policy, task.heldout_prompts[:4], command.max_new_tokens)
    save_curves(out / "curves.png", history, {
        "reward of the rollouts": ["objective/scores"] + ["true_reward"] * bool(task.world),
        "KL, nats per response": ["objective/kl_exact"],
        "explained variance": ["val/explained_variance"],
        "response tokens": ["val/response_tokens"]}, "episode")


def training_figures(history: Mapping[str, Sequence[float]], task: Task) -> dict[str, float]:
    """What the log says about the training as a whole."""
    figures = {
        "ratio_first_update": history["val/first_ratio"][0],
        "kl_first_episode_nats_per_response": history["objective/kl_exact"][0],
        "clip_fraction": mean(history["policy/clipfrac_avg"]),
        "explained_variance": mean(history["val/explained_variance"][-10:]),
        "kl_coeff_final": history["objective/kl_coeff"][-1],
    }
    if task.world:
        rewards = running_mean(history["true_reward"], 10)
        if max(rewards) > 0:  # a share of a reward below 0 would say nothing
            figures["true_reward_final_over_best_seen"] = rewards[-1] / max(rewards)
    return figures


if __name__ == "__main__":
    run_command(main)
