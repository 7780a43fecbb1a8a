"""The main job: one small model aligned several ways, side by side:  python -m lessons.compare

Runs the command of each method (lessons/methods.py) from the same SFT model, in its own process,
so that its memory can be measured and several can run at once (lessons/stages.py).  Then samples
from all of them and measures them on the same held-out prompts.  Everything goes into --out:
report.md, report.html, results.json, figures, and one folder per method; with --seeds 3 all of
this once per seed, and a report over the seeds.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from data.task import RowsConfig, Task, load_task
from data.world import World, WorldConfig
from dpo.evaluate import evaluate_preference_accuracy
from lessons.limit import Frontier, best_of_n_kl
from lessons.methods import METHODS, Method, chosen_methods
from lessons.report import write_report, write_report_of_seeds
from lessons.stages import as_flags, call_at_once, jobs_of, run_stages
from minigpt import distributed
from minigpt.checkpoint import load_checkpoint
from minigpt.command import begin, run_command
from minigpt.disk import write_json
from minigpt.errors import UserError
from minigpt.evaluation import kl_to_reference, said, sample_responses, text_measures
from minigpt.model import MiniGPT
from minigpt.options import Settings, option
from minigpt.run_folder import read_history
from minigpt.sampling import Response, generate
from minigpt.seeding import seed_of
from reward.evaluate import evaluate_reward_accuracy, score
from reward.model import RewardModel


@dataclass
class CompareConfig(Settings):
    out: str = option("runs/compare", "folder for the report and the stages")
    seed: int = option(0, "random seed of the world and of every stage", at_least=0)
    device: str = option("cpu", "cpu, cuda or mps")
    methods: list[str] | None = option(None, f"what to compare: all, or some of "
                                             f"{', '.join(METHODS)} (by default best-of-n, ppo and "
                                             "dpo)")
    seeds: int = option(1, "how many seeds, from --seed on; the report is then over all of them",
                        at_least=1)
    quick: bool = option(False, "about a minute, in a world of eight facts")
    sweep: bool = option(False, "also train DPO at four other values of beta, and plot them")
    jobs: int | None = option(None, "how many stages run in parallel, where none needs "
                                    "another's result (by default one per CPU thread, at most 4; "
                                    "on a GPU one)", at_least=1)
    resume: bool = option(False, "continue the run in --out")
    overwrite: bool = option(False, "replace the run in --out")
    samples: int = option(32, "responses sampled for each held-out prompt", at_least=1)
    pool: int = option(128, "SFT responses sampled for each held-out prompt, for the limit and for "
                            "best-of-n", at_least=1)
    best_of: int = option(16, "n of best-of-n", at_least=1)
    max_new_tokens: int = option(96, "longest response", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool < self.best_of:
            raise UserError(f"--pool {self.pool} is too small for the best of {self.best_of}")

    @property
    def at_once(self) -> int:
        """How many stages run at once."""
        return jobs_of(self.device) if self.jobs is None else self.jobs

    @property
    def best_samples(self) -> int:
        """The answers to each prompt that best-of-n can choose from the pool."""
        return self.pool // self.best_of


@dataclass
class Answers:
    """The responses of one method to the held-out prompts, and its figures: a row of the table."""

    name: str
    prompts: list[str]
    responses: list[Response]
    figures: dict[str, float] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)  # the true reward of each response
    shares: list[float] = field(default_factory=list)   # of the possible gain, by question

    @property
    def texts(self) -> list[str]:
        return [response.text for response in self.responses]


def best_of_n(pool: Answers, reward: RewardModel, config: CompareConfig) -> Answers:
    """Of every n answers of the pool, the one with the highest score; none is used twice.

    pool: config.pool answers to each prompt, grouped by prompt.
    """
    n, used = config.best_of, config.best_samples * config.best_of
    indices = [start + i for start in range(0, len(pool.prompts), config.pool) for i in range(used)]
    scores = score(reward, [pool.prompts[i] for i in indices],
                   [pool.responses[i].ids for i in indices])
    winners = scores.view(-1, n).argmax(1).tolist()
    chosen = [indices[group * n + winner] for group, winner in enumerate(winners)]
    kl = mean(best_of_n_kl(of_prompt, n) for of_prompt in scores.view(-1, used))
    return Answers(f"best of {n}", [pool.prompts[i] for i in chosen],
                   [pool.responses[i] for i in chosen], {"kl_nats_per_response": kl})


def sampled(name: str, policy: MiniGPT, task: Task, config: CompareConfig) -> Answers:
    """`samples` answers of the policy to each held-out prompt."""
    return Answers(name, *sample_responses(policy, task.heldout_prompts, config.samples,
                                           config.max_new_tokens, seed_of(config.seed, name)))


def sample_pool(policy: MiniGPT, task: Task, config: CompareConfig) -> Answers:
    """`pool` SFT answers to each held-out prompt."""
    pool = Answers("pool", [], [])
    for index, prompt in enumerate(task.heldout_prompts):
        pool.prompts += [prompt] * config.pool
        pool.responses += generate(policy, [prompt] * config.pool, config.max_new_tokens,
                                   seed=seed_of(config.seed, "pool", index))
    return pool


def thinned(row: Answers, count: int) -> list[Response]:
    """The first `count` responses to each prompt: diversity compares only between equally many."""
    seen: Counter[str] = Counter()
    kept = []
    for prompt, response in zip(row.prompts, row.responses, strict=True):
        seen[prompt] += 1
        if seen[prompt] <= count:
            kept.append(response)
    return kept


def win_rate(answers: Answers, baseline: Answers) -> float:
    """Share of comparisons in which an answer has a higher true reward than the baseline's.

    Each answer is compared with all baseline answers to its prompt; a tie counts one half.
    """
    opponents: dict[str, list[float]] = {}
    for prompt, reward in zip(baseline.prompts, baseline.rewards, strict=True):
        opponents.setdefault(prompt, []).append(reward)
    return mean(mean((reward > other) + 0.5 * (reward == other) for other in opponents[prompt])
                for prompt, reward in zip(answers.prompts, answers.rewards, strict=True))


def true_rewards(task: Task, answers: Answers) -> list[float]:
    assert task.world is not None
    return [task.world.true_reward(prompt, text)
            for prompt, text in zip(answers.prompts, answers.texts, strict=True)]


def model_of(stage: str, config: CompareConfig) -> Any:
    return load_checkpoint(f"{config.out}/{stage}/model.pt").to(config.device)


def measured(name: str, title: str, task: Task, config: CompareConfig) -> Answers:
    """Sample from a policy and measure the answers, as far as one can without the limit."""
    policy = model_of(name, config)
    reference = policy if name == "sft" else model_of("sft", config)
    row = sampled(title, policy, task, config)
    row.figures["preference_accuracy"] = \
        evaluate_preference_accuracy(policy, reference, task.heldout_preferences)
    row.figures |= kl_to_reference(policy, reference, row.prompts, row.responses)
    return with_texts_measured(row, model_of("reward", config), config)


def measured_pool(task: Task, config: CompareConfig) -> tuple[Answers, Answers]:
    """SFT answers for the limit, and the best of every n among them, measured."""
    reward = model_of("reward", config)
    pool = sample_pool(model_of("sft", config), task, config)
    row = best_of_n(pool, reward, config)  # no policy of its own: the reward model decides
    row.figures["preference_accuracy"] = evaluate_reward_accuracy(reward, task.heldout_preferences)
    return pool, with_texts_measured(row, reward, config)


def with_texts_measured(row: Answers, reward: RewardModel, config: CompareConfig) -> Answers:
    scores = score(reward, row.prompts, [response.ids for response in row.responses])
    row.figures["proxy_reward"] = float(scores.mean())
    row.figures |= text_measures(thinned(row, config.best_samples))
    return row


def measure(task: Task, methods: Mapping[str, Method],
            config: CompareConfig) -> tuple[dict[str, Answers], Frontier | None]:
    """Sample from every method and measure the answers.  The frontier is None without a world."""
    trained = {"sft": "SFT"} | {name: method.title for name, method in methods.items()
                                if method.stage}
    (pool, best), *of_policies = call_at_once(
        [partial(measured_pool, task, config),
         *(partial(measured, name, title, task, config) for name, title in trained.items())],
        config.at_once, "measuring")
    of = dict(zip(trained, of_policies, strict=True))
    rows = {"sft": of["sft"]} | {name: of.get(name, best) for name in methods}
    if task.world is None:
        return rows, None
    frontier = Frontier(torch.tensor(true_rewards(task, pool)).view(-1, config.pool))
    for row in rows.values():
        row.rewards = true_rewards(task, row)
        reached, kl = mean(row.rewards), row.figures["kl_nats_per_response"]
        row.figures |= {"true_reward": reached,
                        "right_share": task.measure(row.prompts, row.texts)["right_share"],
                        "win_rate_against_sft": win_rate(row, rows["sft"])}
        if kl > 0:  # the SFT model itself has nothing to gain
            row.figures |= {"limit_at_this_kl": frontier.reward_at(kl),
                            "share_of_possible_gain": frontier.share_of_gain(reached, kl)}
            row.shares = shares_by_question(task.world, task.heldout_prompts, frontier, row)
    return rows, frontier


def shares_by_question(world: World, prompts: Sequence[str], frontier: Frontier,
                       row: Answers) -> list[float]:
    """What each question adds to a method's share of the possible gain, which is their mean.

    A question's prompts are different wordings of it, so they are no independent samples.
    """
    of_prompts = torch.tensor(row.rewards).view(len(prompts), -1).mean(1)
    shares = frontier.shares_of_gain(of_prompts, row.figures["kl_nats_per_response"])
    totals: dict[str, float] = {}
    for prompt, share in zip(prompts, shares.tolist(), strict=True):
        question = world.question(prompt)
        totals[question] = totals.get(question, 0.0) + share
    return [total * len(totals) / len(prompts) for total in totals.values()]


def add_costs(rows: Mapping[str, Answers], stages: Mapping[str, Mapping[str, float]]) -> None:
    """Add what each method's own training cost, without SFT: models, peak MB, seconds, tokens."""
    for name, row in rows.items():
        method = METHODS.get(name)
        parts = [stages["reward"]] * bool(method and method.reward)
        parts += [stages[name]] if name in stages else []
        models = parts[-1]["models_in_memory"] + (name not in stages)  # best-of-n needs SFT, too
        row.figures |= {"models_in_memory": models,
                        "peak_memory_mb": max(part["peak_memory_mb"] for part in parts),
                        "training_seconds": sum(part["seconds"] for part in parts),
                        "tokens_sampled": sum(part.get("tokens_sampled", 0) for part in parts),
                        "tokens_trained": sum(part["tokens_trained"] for part in parts)}


def compare(config: CompareConfig, rows_config: RowsConfig,
            world_config: WorldConfig) -> dict[str, Any]:
    """Train, sample, measure and report for one seed; returns what results.json holds."""
    started = time.perf_counter()
    task = load_task(rows_config, world_config, config.seed)
    methods = chosen_methods(config.methods)
    shared = {name: getattr(config, name) for name in (
        "seed", "device", "max_new_tokens", "quick", "resume", "overwrite")}
    flags = as_flags({**shared, **vars(rows_config), **vars(world_config)})
    if config.sweep and "dpo" in methods:
        methods["dpo"] = methods["dpo"]._replace(flags=("--sweep",))
    stages = run_stages(config.out, methods, flags, config.at_once)
    print("\n=== all of them on the same held-out prompts", flush=True)
    rows, frontier = measure(task, methods, config)
    add_costs(rows, stages)

    results = {
        "seed": config.seed, "jobs": config.at_once, "seconds": time.perf_counter() - started,
        "heldout_prompts": len(task.heldout_prompts),
        "heldout_pairs": len(task.heldout_preferences),
        "stages": stages, "methods": {row.name: row.figures for row in rows.values()},
    }
    shares = {row.name: row.shares for row in rows.values() if row.shares}
    if shares:
        results["shares_by_question"] = shares
    if "ppo" in methods:
        results["ppo_history"] = read_history(f"{config.out}/ppo")
    if frontier is not None and task.world is not None:
        results["bayes_accuracy"] = task.world.bayes_accuracy(task.heldout_preferences)
        results["limit"] = {"kl": frontier.kls.tolist(), "true_reward": frontier.rewards.tolist(),
                            "bound_nats": frontier.bound, "samples_per_prompt": config.pool}
    out = Path(config.out)
    if config.sweep and "dpo" in methods:
        results["sweep"] = json.loads((out / "dpo" / "sweep.json").read_text(encoding="utf-8"))
    write_json(out / "results.json", results)
    samples = [(prompt, {row.name: said(row.responses[row.prompts.index(prompt)])
                         for row in rows.values()}) for prompt in task.heldout_prompts[:4]]
    write_report(config.out, results, samples)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    if distributed.is_on():
        raise UserError("lessons.compare runs in one process; run its stages one by one under "
                        "torchrun")
    config, rows_config, world_config = begin(__doc__, argv, CompareConfig, RowsConfig, WorldConfig,
                                              out="runs/compare")
    methods = chosen_methods(config.methods)
    if config.sweep and "dpo" not in methods:
        raise UserError("--sweep trains DPO at other values of beta: put dpo among the --methods")
    if config.seeds == 1:
        compare(config, rows_config, world_config)
        return
    results = [compare(replace(config, seed=seed, out=f"{config.out}/seed-{seed}"), rows_config,
                       world_config)
               for seed in range(config.seed, config.seed + config.seeds)]
    write_report_of_seeds(config.out, results, {
        method.title if method.stage else f"best of {config.best_of}": method.when  # as its row
        for method in methods.values()})


if __name__ == "__main__":
    run_command(main)
