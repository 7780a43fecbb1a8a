"""The PPO loop.  One episode, in order:

    1. roll out     the policy answers prompts, the reward model scores the answers, and each token
                    pays for its KL to the reference
    2. advantages   what came of each token, compared with what the value model expected
    3. update       a few epochs of minibatches: two clipped losses, backward, step
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from minigpt import distributed
from minigpt.batching import Batches
from minigpt.command import warn
from minigpt.evaluation import Measure, signs_of_collapse
from minigpt.examples import tokenize_example
from minigpt.kl import kl_k1
from minigpt.logprobs import token_logps
from minigpt.model import MiniGPT
from minigpt.options import option
from minigpt.sampling import sample_ids
from minigpt.seeding import seeded
from minigpt.settings import TrainingConfig
from minigpt.training import TrainingLoop
from minigpt.weights import check_reference
from ppo.advantages import gae, whiten
from ppo.loss import ppo_loss, value_loss
from ppo.metrics import UpdateMetrics, explained_variance, rollout_metrics
from ppo.rollout import Experience, Rollout, RolloutMaker, Sampler
from reward.model import RewardModel

Advantage = Literal["gae"] | Callable[[Rollout], Tensor]  # or (rollout) -> (B, T)


@dataclass
class PPOConfig(TrainingConfig):
    """The settings of PPO, and their defaults."""

    num_episodes: int = option(32, "episodes: a rollout of batch_size prompts, and its updates")
    lr: float = option(3e-4, "peak learning rate of the policy")
    value_lr: float = option(1e-3, "peak learning rate of the value model")
    batch_size: int = option(128, "prompts in one rollout (all of them, if there are fewer)")
    minibatch_size: int = option(64, "responses in one optimizer step")
    ppo_epochs: int = option(2, "passes over one rollout")
    kl_coeff: float = option(0.5, "penalty for a nat of KL to the reference (beta), in the "
                                  "units of the score")
    target_kl: float | None = option(None, "nats per response to which an adaptive kl_coeff steers "
                                           "(by default it is fixed)")
    kl_horizon: int = option(500, "an adaptive kl_coeff changes by at most 0.2 x responses / this "
                                  "in an episode")
    max_approxkl: float = option(0.1, "stop updating on a rollout once the policy has moved so far "
                                      "from it, in nats per token")
    clip: float = option(0.2, "how far a probability ratio may gain from moving (epsilon)")
    value_clip: float = option(0.2, "how far a value may gain from moving in one episode")
    value_coeff: float = option(0.5, "weight of the value loss")
    gamma: float = option(1.0, "discount")
    lam: float = option(0.95, "lambda of GAE")
    whiten: bool = option(True, "scale GAE's advantages to mean 0 and standard deviation 1")
    missing_eos_penalty: float = option(1.0, "subtracted from the score of a response that does "
                                             "not end")
    max_new_tokens: int = option(96, "longest response in a rollout, in tokens")
    save_every: int = option(5, "episodes between two checkpoints")


def ppo_training(policy: MiniGPT, reference: MiniGPT, reward: RewardModel, prompts: Sequence[str],
                 num_episodes: int = PPOConfig.num_episodes, lr: float = PPOConfig.lr,
                 kl_coeff: float = PPOConfig.kl_coeff, *, advantage: Advantage = "gae",
                 value_model: RewardModel | None = None,
                 kl_estimator: Callable[[Tensor, Tensor], Tensor] = kl_k1,
                 sample: Sampler = sample_ids, measure: Measure | None = None,
                 **options) -> tuple[MiniGPT, list[float], list[float]]:
    """Train `policy` in place against `reward`; options: the fields of PPOConfig.

    Args:
        advantage: "gae", or a function of the rollout, (B, T), which then needs no value model.
        value_model: what GAE compares with, trained in place; by default a copy of the reward
            model, which already knows what a good ending looks like.
        kl_estimator: (logps, ref_logps) -> the KL that each token pays for; see minigpt/kl.py.
        sample: draws the responses, called as minigpt.sampling.sample_ids is.
        measure: (prompts, texts) -> figures of each rollout to log; nothing learns from them.

    Returns the policy (in eval mode), and for each episode the mean score and the mean KL to the
    reference in nats per response (exact over the vocabulary at each token).
    Raises ValueError if policy and reference are one object or differ in shape, or if a prompt
    leaves no room for a response; FloatingPointError if a loss is not finite.
    """
    check_reference(policy, reference)
    config = PPOConfig(num_episodes=num_episodes, lr=lr, kl_coeff=kl_coeff, **options)
    models: dict[str, nn.Module] = {"policy": policy.train()}
    if advantage == "gae":
        value_model = copy.deepcopy(reward) if value_model is None else value_model
        models["value"] = value_model.train()
    elif value_model is not None or not callable(advantage):
        raise ValueError(f"advantage={advantage!r} must be 'gae' or a function, and only 'gae' "
                         "has use for a value_model")
    roll_out = RolloutMaker(reference, reward, config.max_new_tokens, config.missing_eos_penalty,
                            kl_estimator, sample)
    batches = prompt_batches(prompts, policy.max_seq_len, config)
    loop = TrainingLoop(models, config, batches, num_episodes, frozen=[reference, reward],
                        lrs={"value": config.value_lr}, eps=1e-5, state={"kl_coeff": kl_coeff})
    optimizer, log, warned = loop.optimizer, loop.log, False
    for prompt_batch in loop.whole_batches():                               # one episode each
        # 1. Roll out.
        with optimizer.precision():
            rollout = roll_out(loop.whole("policy"), prompt_batch, loop.state["kl_coeff"],
                               seeded(config.seed, "sampling", loop.step, distributed.rank(),
                                      policy.device))

        # 2. Advantages.
        with torch.no_grad(), optimizer.precision():
            if advantage == "gae":
                values = loop.whole("value").values(rollout.batch)          # (B, T)
                advantages, returns = gae(rollout.rewards, values, rollout.mask, config.gamma,
                                          config.lam)
                if config.whiten:                      # after the returns were made from them
                    advantages = whiten(advantages, rollout.mask)
            else:
                advantages = advantage(rollout)
                values = returns = torch.zeros_like(advantages)
        experience = Experience(rollout.batch, rollout.logps, advantages, values, returns)

        # 3. Update.
        update = UpdateMetrics(policy.device)
        for minibatch in experience.minibatches(config.minibatch_size, config.ppo_epochs,
                                                seeded(config.seed, "minibatches", loop.step)):
            for part in minibatch:                                          # several, on a CPU
                with optimizer.precision():
                    logps = token_logps(policy, part.batch)
                    loss, metrics = ppo_loss(logps, part.logps, part.advantages, part.mask,
                                             config.clip)
                    if value_model is not None:
                        v_loss, v_metrics = value_loss(value_model.values(part.batch), part.values,
                                                       part.returns, part.mask, config.value_clip)
                        loss, metrics = loss + config.value_coeff * v_loss, metrics | v_metrics
                optimizer.backward(part.weight * loss)
                update.add(metrics, part.weight)
            if update.approxkl() > config.max_approxkl:                     # the rollout is used up
                optimizer.zero_grad()
                break
            update.end_minibatch(optimizer.step())                         # clip, step

        figures = {**rollout_metrics(rollout, loop.state["kl_coeff"]), **update.means()}
        if value_model is not None:
            figures["val/explained_variance"] = explained_variance(values, returns, rollout.mask)
        if measure is not None:
            figures |= measure(*rollout.texts())
        tokens = distributed.totals({"n": int(rollout.mask.sum())}, policy.device)["n"]
        loop.num_tokens += int(tokens)
        log.write(figures)
        warned = warned or warn_of_collapse(loop.step + 1, log.last("objective/kl_exact"), rollout)
        loop.state["kl_coeff"] *= adaptive_factor(log.last("objective/kl"), config,
                                                  batches.batch_size)
    return loop.whole("policy").eval(), log.history["objective/scores"], \
        log.history["objective/kl_exact"]


def prompt_batches(prompts: Sequence[str], max_seq_len: int, config: PPOConfig) -> Batches:
    """Prompts in shuffled batches that are all full."""
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to answer")
    examples = [tokenize_example(prompt, [], max_seq_len) for prompt in prompts]
    batch_size = min(config.batch_size, len(prompts)) * distributed.world_size()
    copies = batch_size // math.gcd(len(examples), batch_size)  # the fewest that fill them all
    return Batches(examples * copies, batch_size, config.seed, pool_batches=1)


def warn_of_collapse(episode: int, kl: float, rollout: Rollout) -> bool:
    """Print a warning if the policy goes too far or no longer ends; whether there was one."""
    signs = signs_of_collapse({"kl_nats_per_response": kl,
                               "finished_share": float(rollout.finished.float().mean())})
    warn([f"episode {episode}: {sign}" for sign in signs])
    return bool(signs)


def adaptive_factor(kl: float, config: PPOConfig, num_responses: int) -> float:
    """What kl_coeff is multiplied by (Ziegler et al. 2019, arXiv:1909.08593, section 2.2)."""
    if config.target_kl is None:
        return 1.0
    error = min(max(kl / config.target_kl - 1, -0.2), 0.2)
    return 1 + error * num_responses / config.kl_horizon
