"""The PPO loop: roll out, estimate advantages, update a few times on the same rollout, repeat."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minigpt import distributed
from minigpt.batching import Batches, Example, tokenize_example
from minigpt.cli import option, warn
from minigpt.evaluation import signs_of_collapse
from minigpt.logprobs import token_logps
from minigpt.model import MiniGPT, check_reference
from minigpt.training import TrainingConfig, TrainingRun
from ppo.advantages import gae, whiten
from ppo.loss import ppo_loss, value_loss
from ppo.rollout import Rollout, sample_rollout, token_values
from reward.model import RewardModel

ROWS_AT_A_TIME = 32  # in one backward pass on a CPU; rows and not tokens, so that every process makes equally many passes
Measure = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


@dataclass
class PPOConfig(TrainingConfig):
    """The recipe of `python -m ppo.main`."""

    QUICK: ClassVar[dict] = {"num_episodes": 7, "batch_size": 64, "minibatch_size": 32, "lr": 1e-4}

    num_episodes: int = option(32, "episodes: one is a rollout of batch_size prompts and the updates made from it")
    lr: float = option(3e-4, "peak learning rate of the policy")
    value_lr: float = option(1e-3, "peak learning rate of the value model")
    batch_size: int = option(128, "prompts in one rollout (all of them, if there are fewer)")
    minibatch_size: int = option(64, "responses in one optimizer step")
    ppo_epochs: int = option(2, "passes over one rollout")
    kl_coeff: float = option(0.5, "price of a nat of KL to the reference, in units of the score (beta)")
    target_kl: float | None = option(None, "nats per response that an adaptive kl_coeff steers to (none: it is fixed)")
    kl_horizon: int = option(500, "the adaptive kl_coeff changes by at most 0.2 x responses / this in an episode")
    max_approxkl: float = option(0.1, "stop updating on a rollout once the policy moved so far from it, nats a token")
    clip: float = option(0.2, "how far a probability ratio may gain from moving")
    value_clip: float = option(0.2, "how far a value may move in one episode, in units of the score")
    value_coeff: float = option(0.5, "weight of the value loss")
    gamma: float = option(1.0, "discount")
    lam: float = option(0.95, "lambda of GAE")
    missing_eos_penalty: float = option(1.0, "taken from the score of a response that does not end")
    max_new_tokens: int = option(96, "longest response in a rollout")
    save_every: int = option(5, "episodes between two checkpoints")


def ppo_training(policy: MiniGPT, reference: MiniGPT, reward: RewardModel, prompts: Sequence[str],
                 num_episodes: int = 20, lr: float = 1.5e-5, kl_coeff: float = 0.02, measure: Measure | None = None,
                 **options) -> tuple[MiniGPT, list[float], list[float]]:
    """Train `policy` in place against `reward`; more options: the fields of PPOConfig.

    `measure(prompts, texts)` may return figures of each rollout to log beside the others; nothing learns from them.
    Returns the policy (in eval mode), and for each episode the mean score and the mean KL to the reference in nats
    per response (exact over the vocabulary at each token).
    Raises ValueError if policy and reference are one object or differ in shape, or a prompt leaves no room for a
    response; FloatingPointError if a loss is not finite.
    """
    check_reference(policy, reference)
    config = PPOConfig(num_episodes=num_episodes, lr=lr, kl_coeff=kl_coeff, **options)
    value_model = value_model_from(reward)
    batch_size = min(config.batch_size, len(prompts)) * distributed.world_size()
    examples = prompt_examples(prompts, policy.max_seq_len)
    copies = batch_size // math.gcd(len(examples), batch_size)  # the fewest with which every rollout of an epoch is full
    batches = Batches(examples * copies, batch_size, config.seed, sorted_together=1)
    run = TrainingRun({"policy": policy.train(), "value": value_model}, config, config.num_episodes, examples,
                      [reference, reward], lrs={"value": config.value_lr}, adam_eps=1e-5,
                      state={"kl_coeff": config.kl_coeff})
    warned = False
    for batch in run.steps(batches):
        generator = torch.Generator(policy.device).manual_seed(config.seed * 1_000_003 + run.step
                                                               + 10**9 * distributed.rank())
        rollout = sample_rollout(run.whole("policy"), reference, reward, run.whole("value"), batch, config.max_new_tokens,
                                 run.state["kl_coeff"], config.missing_eos_penalty, generator)
        metrics = update_on(rollout, policy, value_model, run, config)
        measured = {} if measure is None else measure(*rollout.texts())
        run.num_tokens += int(distributed.totals({"n": int(rollout.mask.sum())}, policy.device)["n"])
        figures = {**rollout_metrics(rollout, run.state["kl_coeff"]), **metrics, **measured}
        run.log(distributed.means(figures, policy.device))
        signs = signs_of_collapse({"kl_nats_per_response": run.history["objective/kl_exact"][-1],
                                   "finished_share": float(rollout.finished.float().mean())})
        warn([f"episode {run.step}: {sign}" for sign in signs if not warned])
        warned = warned or bool(signs)
        if config.target_kl is not None:
            run.state["kl_coeff"] *= adaptive_factor(run.history["objective/kl"][-1], config, batch_size)
    return run.whole("policy").eval(), run.history["objective/scores"], run.history["objective/kl_exact"]


def value_model_from(reward: RewardModel) -> RewardModel:
    """The value function starts as a copy of the reward model: it already knows what a good ending looks like."""
    value_model = RewardModel(**reward.settings).to(reward.device)
    value_model.load_state_dict(reward.state_dict())
    return value_model.train()


def prompt_examples(prompts: Sequence[str], max_seq_len: int) -> list[Example]:
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to answer")
    return [tokenize_example(prompt, [], max_seq_len) for prompt in prompts]


def update_on(rollout: Rollout, policy: MiniGPT, value_model: RewardModel, run: TrainingRun, config: PPOConfig
              ) -> dict[str, float]:
    """A few epochs of minibatches on one rollout; the mean of their metrics."""
    advantages, returns = gae(rollout.rewards, rollout.values, rollout.mask, config.gamma, config.lam)
    explained = explained_variance(rollout.values, returns, rollout.mask)
    advantages = whiten(advantages, rollout.mask)  # after the returns were made from them
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + run.step)
    logged: list[dict[str, float]] = []
    for _ in range(config.ppo_epochs):
        for numbers in torch.randperm(len(rollout.scores), generator=generator).split(config.minibatch_size):
            logged.append(minibatch_gradient(rollout, advantages, returns, numbers.to(run.device), policy, value_model, run,
                                             config))
            approxkl = distributed.means({"kl": logged[-1]["policy/approxkl_avg"]}, policy.device)["kl"]
            if approxkl > config.max_approxkl:  # too far from the rollout: it is spent
                run.optimizer.zero_grad()
                return summarize(logged, explained)
            logged[-1]["grad_norm"] = run.optimizer_step()
    return summarize(logged, explained)


def minibatch_gradient(rollout: Rollout, advantages: Tensor, returns: Tensor, numbers: Tensor, policy: MiniGPT,
                       value_model: RewardModel, run: TrainingRun, config: PPOConfig) -> dict[str, float]:
    """Add the gradient of the loss on these rows of a rollout; their metrics.

    On a CPU a few rows of like length at a time, which saves padding and memory: each part counts by its share of the
    tokens, so that the sum is the mean over all of them.
    """
    tokens, sums = rollout.mask[numbers].sum(), Counter()
    by_length = numbers[rollout.lengths[numbers].argsort()]
    for some in by_length.split(ROWS_AT_A_TIME if run.device.type == "cpu" else len(numbers)):
        part = rollout.rows(some)
        T = part.token_ids.shape[1]
        logps = token_logps(policy, part.token_ids, part.segments)
        policy_loss, metrics = ppo_loss(logps, part.logps, advantages[some, :T], part.mask, config.clip)
        values = token_values(value_model, part.token_ids, part.segments)
        v_loss, value_metrics = value_loss(values, part.values, returns[some, :T], part.mask, config.value_clip)
        share = part.mask.sum() / tokens
        run.backward(share * (policy_loss + config.value_coeff * v_loss))
        sums.update({name: float(value * share) for name, value in {**metrics, **value_metrics}.items()})
    return dict(sums)


def summarize(logged: list[dict[str, float]], explained: float) -> dict[str, float]:
    """Means over an episode's minibatches; the last has no grad_norm if it was found too far away to be used."""
    values = {name: [step[name] for step in logged if name in step] for name in logged[0]}
    values.setdefault("grad_norm", [0.0])  # if no update was made
    return {**{name: sum(v) / len(v) for name, v in values.items()}, "val/first_ratio": logged[0]["val/ratio"],
            "val/explained_variance": explained, "val/updates": sum("grad_norm" in step for step in logged)}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value function, 0 no better than a constant."""
    returns, values = returns[mask], values[mask]
    return float(1 - (returns - values).var(correction=0) / returns.var(correction=0).clamp_min(1e-8))


def adaptive_factor(kl: float, config: PPOConfig, num_responses: int) -> float:
    """What the KL coefficient is multiplied by (Ziegler et al. 2019, arXiv:1909.08593, section 2.2)."""
    error = min(max(kl / config.target_kl - 1, -0.2), 0.2)
    return 1 + error * num_responses / config.kl_horizon


def rollout_metrics(rollout: Rollout, kl_coeff: float) -> dict[str, float]:
    """The figures of one episode under TRL's names; KL in nats per response."""
    non_score_reward = -kl_coeff * rollout.kl.mean()
    metrics = {
        "objective/scores": rollout.scores.mean(),
        "objective/kl": rollout.kl.mean(),
        "objective/kl_exact": rollout.exact_kl.mean(),
        "objective/entropy": rollout.entropy,
        "objective/non_score_reward": non_score_reward,
        "objective/rlhf_reward": rollout.scores.mean() + non_score_reward,
        "objective/kl_coeff": kl_coeff,
        "val/num_eos_tokens": rollout.finished.sum() * distributed.world_size(),  # of which a mean will be taken
        "val/response_tokens": rollout.mask.sum(1).float().mean(),
    }
    return {name: float(value) for name, value in metrics.items()}
