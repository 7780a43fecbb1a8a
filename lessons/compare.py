"""The main job: one small model aligned four ways, side by side:  python -m lessons.compare

Runs the four commands that a reader could run by hand (SFT, reward model, PPO, DPO), each in a process of its own so
that its memory can be told apart, then samples from every result and measures all of them on the same held-out
prompts.  Everything goes into --out: report.md, report.html, results.json, figures, and one folder a stage.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from tqdm import tqdm

from data.task import RowsConfig, Task, load_task
from data.world import WorldConfig
from dpo.evaluate import evaluate_preference_accuracy
from lessons.limit import Frontier, best_of_n_kl
from lessons.report import write_report
from minigpt import distributed
from minigpt.checkpoint import load_checkpoint
from minigpt.cli import UserError, check_device, open_run, option, parse, run
from minigpt.disk import write_json
from minigpt.evaluation import kl_to_reference, sample_answers, text_measures
from minigpt.model import MiniGPT
from minigpt.run_folder import read_history
from minigpt.sampling import Response, generate
from reward.model import RewardModel
from reward.train import evaluate_reward_accuracy, score

STAGES = ("sft", "reward", "ppo", "dpo")


@dataclass
class CompareConfig:
    QUICK: ClassVar[dict] = {"pool": 128, "samples": 8, "max_new_tokens": 64}

    out: str = option("runs/compare", "folder for the report and the stages")
    seed: int = option(0, "of everything")
    device: str = option("cpu", "cpu, cuda or mps")
    quick: bool = option(False, "about a minute: a world of eight facts")
    sweep: bool = option(False, "also train DPO at four values of beta, and draw them in")
    resume: bool = option(False, "go on where a run with the same --out was stopped")
    overwrite: bool = option(False, "replace the run in --out")
    samples: int = option(8, "responses sampled for each held-out prompt")
    pool: int = option(192, "SFT samples for each held-out prompt, for the limit and for best-of-n")
    best_of: int = option(16, "n of best-of-n")
    max_new_tokens: int = option(96, "longest response")


@dataclass
class Answers:
    """What one method said to the held-out prompts, and what was paid for it; a row of the table once measured."""

    name: str
    prompts: list[str]
    responses: list[Response]
    figures: dict[str, float] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)  # the true reward of each response

    @property
    def texts(self) -> list[str]:
        return [response.text for response in self.responses]


def fresh_processes() -> multiprocessing.context.BaseContext:
    """Processes that begin empty but for the imports, which a server makes once where the system can fork."""
    if sys.platform != "linux":  # elsewhere forking after these imports is unsafe, or impossible
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*(f"{stage}.main" for stage in STAGES), "matplotlib.pyplot"])  # the last if it is there
    return context


def run_command(stage: str, argv: Sequence[str]) -> None:
    """What `python -m <stage>.main` does."""
    run(lambda: import_module(f"{stage}.main").main(argv))


def run_stage(stage: str, config: CompareConfig, data_flags: Sequence[str], *flags: str) -> dict[str, float]:
    """Run `python -m <stage>.main` into a folder of its own; the figures of its report."""
    out = f"{config.out}/{stage}"
    argv = ["--out", out, "--seed", str(config.seed), "--device", config.device, "--samples", str(config.samples),
            "--max-new-tokens", str(config.max_new_tokens), *data_flags, *flags]
    for name in ("quick", "resume", "overwrite"):
        argv += [f"--{name}"] * getattr(config, name)
    print(f"\n=== python -m {stage}.main {' '.join(argv)}", flush=True)
    process = fresh_processes().Process(target=run_command, args=(stage, argv), daemon=True)  # which ends when this one does
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:  # which the stage heard as well: let it save
        process.join()
        raise
    if process.exitcode:
        raise SystemExit(f"{stage}.main stopped with exit code {process.exitcode}; what went before is kept: mend the cause "
                         "and add --resume")
    return json.loads((Path(out) / "summary.json").read_text(encoding="utf-8"))


def as_flags(settings: dict[str, Any]) -> list[str]:
    """The command-line options that say the same; a setting of None is left out."""
    return [part for name, value in settings.items() if value is not None
            for part in ("--" + name.replace("_", "-"), str(value))]


def run_stages(config: CompareConfig, rows_config: RowsConfig, world_config: WorldConfig) -> dict[str, dict[str, float]]:
    """SFT, then both roads from it; the summary of each stage by its name."""
    data = as_flags({**vars(rows_config), **vars(world_config)})
    sft_model, reward_model = f"{config.out}/sft/model.pt", f"{config.out}/reward/model.pt"
    return {
        "sft": run_stage("sft", config, data),
        "reward": run_stage("reward", config, data, "--init", sft_model),
        "ppo": run_stage("ppo", config, data, "--init", sft_model, "--reward", reward_model),
        "dpo": run_stage("dpo", config, data, "--init", sft_model, *["--sweep"] * config.sweep),
    }


def best_of_n(pool: Answers, reward: RewardModel, config: CompareConfig) -> Answers:
    """For each prompt, `samples` times, the answer that the reward model likes best among n fresh ones of the pool.

    The pool holds config.pool answers to each prompt, one prompt after the other.
    """
    n, size, picks = config.best_of, config.pool, config.samples
    numbers = [start + i for start in range(0, len(pool.prompts), size) for i in range(picks * n)]
    scores = score(reward, [pool.prompts[i] for i in numbers], [pool.responses[i].ids for i in numbers])
    winners = scores.view(-1, n).argmax(1).tolist()
    chosen = [numbers[group * n + winner] for group, winner in enumerate(winners)]
    kl = mean(best_of_n_kl(of_prompt, n) for of_prompt in scores.view(-1, picks * n))
    return Answers(f"best of {n}", [pool.prompts[i] for i in chosen], [pool.responses[i] for i in chosen],
                   {"kl_nats_per_response": kl})


def sampled(name: str, policy: MiniGPT, task: Task, config: CompareConfig, seed: int) -> Answers:
    return Answers(name, *sample_answers(policy, task.heldout_prompts, config.samples, config.max_new_tokens, seed))


def sample_pool(policy: MiniGPT, task: Task, config: CompareConfig) -> Answers:
    """Many SFT answers to each held-out prompt, with a progress bar."""
    pool = Answers("pool", [], [])
    for number, prompt in enumerate(tqdm(task.heldout_prompts, desc="SFT samples", leave=False, disable=None)):
        pool.prompts += [prompt] * config.pool
        pool.responses += generate(policy, [prompt] * config.pool, config.max_new_tokens,
                                   seed=config.seed * 1_000_003 + number)
    return pool


def win_rate(answers: Answers, baseline: Answers) -> float:
    """How often an answer has the higher true reward than the baseline's to the same prompt; a tie counts one half.

    Every answer meets every one of the baseline's answers to its prompt.
    """
    opponents: dict[str, list[float]] = {}
    for prompt, reward in zip(baseline.prompts, baseline.rewards, strict=True):
        opponents.setdefault(prompt, []).append(reward)
    return mean(mean((reward > other) + 0.5 * (reward == other) for other in opponents[prompt])
                for prompt, reward in zip(answers.prompts, answers.rewards, strict=True))


def true_rewards(task: Task, answers: Answers) -> list[float]:
    return [task.world.true_reward(p, t) for p, t in zip(answers.prompts, answers.texts, strict=True)]


def measure(task: Task, models: dict[str, Any], config: CompareConfig) -> tuple[list[Answers], Frontier | None]:
    """Sample from every method, measure the answers, and draw the limit (None without a world)."""
    reference, reward = models["sft"], models["reward"]
    pool = sample_pool(reference, task, config)
    sft = sampled("SFT", reference, task, config, config.seed + 1)
    rows = [sft, best_of_n(pool, reward, config), sampled("PPO", models["ppo"], task, config, config.seed + 2),
            sampled("DPO", models["dpo"], task, config, config.seed + 3)]
    for row, policy in zip(rows, (reference, None, models["ppo"], models["dpo"]), strict=True):
        if policy is None:  # best-of-n is no model of its own: the reward model ranks
            row.figures["preference_accuracy"] = evaluate_reward_accuracy(reward, task.heldout_preferences)
        else:
            row.figures["preference_accuracy"] = evaluate_preference_accuracy(policy, reference, task.heldout_preferences)
            row.figures |= kl_to_reference(policy, reference, row.prompts, row.responses)
        row.figures["proxy_reward"] = float(score(reward, row.prompts, [r.ids for r in row.responses]).mean())
        row.figures |= text_measures(row.responses)
    if task.world is None:
        return rows, None
    pool_rewards = torch.tensor(true_rewards(task, pool)).view(-1, config.pool)
    frontier = Frontier(pool_rewards)
    for row in rows:
        row.rewards = true_rewards(task, row)
        reached, kl = mean(row.rewards), row.figures["kl_nats_per_response"]
        row.figures |= {"true_reward": reached, "right_share": task.measure(row.prompts, row.texts)["right_share"],
                        "win_rate_against_sft": win_rate(row, sft), "limit_at_this_kl": frontier.reward_at(kl)}
        if kl > 0:  # at the SFT model itself there is nothing to gain
            row.figures["share_of_possible_gain"] = frontier.share_of_gain(reached, kl)
    return rows, frontier


def add_costs(rows: Sequence[Answers], stages: dict[str, dict[str, float]]) -> None:
    """Models in memory, peak memory and seconds of each method's own training, on top of the SFT model's."""
    paid = {"SFT": ("sft",), "PPO": ("reward", "ppo"), "DPO": ("dpo",)}
    in_memory = {"SFT": 1, "PPO": 4, "DPO": 2}
    for row in rows:
        parts = [stages[name] for name in paid.get(row.name, ("reward",))]
        row.figures["models_in_memory"] = in_memory.get(row.name, 2)  # best-of-n: the SFT model and the reward model
        row.figures["peak_memory_mb"] = max(part["peak_memory_mb"] for part in parts)
        row.figures["training_seconds"] = sum(part["seconds"] for part in parts)


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    config, rows_config, world_config = parse(__doc__, argv, CompareConfig, RowsConfig, WorldConfig)
    if distributed.is_on():
        raise UserError("lessons.compare runs in one process; its stages can be run with torchrun one by one")
    if config.pool < config.best_of * config.samples:
        raise UserError(f"--pool {config.pool} is too small for {config.samples} times the best of {config.best_of}")
    open_run(config.out, config.resume, config.overwrite, config.device, config, rows_config, world_config)
    task = load_task(rows_config, world_config, config.seed)
    stages = run_stages(config, rows_config, world_config)
    models = {name: load_checkpoint(f"{config.out}/{name}/model.pt").to(check_device(config.device)) for name in stages}
    print("\n=== all of them on the same held-out prompts", flush=True)
    rows, frontier = measure(task, models, config)
    add_costs(rows, stages)

    results = {
        "seed": config.seed, "seconds": time.perf_counter() - started,
        "heldout_prompts": len(task.heldout_prompts), "heldout_pairs": len(task.heldout_preferences),
        "stages": stages, "methods": {row.name: row.figures for row in rows},
        "ppo_history": read_history(f"{config.out}/ppo"),
    }
    if frontier is not None:
        results["bayes_accuracy"] = task.world.bayes_accuracy(task.heldout_preferences)
        results["limit"] = {"kl": frontier.kls.tolist(), "true_reward": frontier.rewards.tolist(),
                            "bound_nats": frontier.bound, "samples_per_prompt": config.pool}
    if config.sweep:
        results["sweep"] = json.loads((Path(config.out) / "dpo" / "sweep.json").read_text(encoding="utf-8"))
    write_json(Path(config.out) / "results.json", results)
    fixed = [(prompt, {row.name: row.texts[row.prompts.index(prompt)] for row in rows})
             for prompt in task.heldout_prompts[:6]]
    write_report(config.out, results, fixed)


if __name__ == "__main__":
    run(main)
