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
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minigpt import distributed
from minigpt.batching import Batches
from minigpt.evaluation import Measure, signs_of_collapse
from minigpt.examples import check_texts, tokenize_example
from minigpt.kl import kl_k1
from minigpt.log import warn
from minigpt.logprobs import token_logps
from minigpt.model import MiniGPT
from minigpt.options import option
from minigpt.sampling import sample_ids
from minigpt.seeding import seeded
from minigpt.settings import TrainingConfig
from minigpt.training import TrainingLoop
from minigpt.weights import check_apart, check_reference, unwrapped
from ppo.advantages import gae, whiten
from ppo.loss import ppo_loss, value_loss
from ppo.metrics import UpdateMetrics, explained_variance, rollout_metrics
from ppo.rollout import Experience, Rollout, RolloutMaker, Sampler
from reward.model import RewardModel

Advantage = Literal["gae"] | Callable[[Rollout], Tensor]  # or (rollout) -> (B, T)

# What to do about each sign of collapse, by the figure that shows it.
ADVICE = {"kl_nats_per_response": "raise --kl-coeff, or lower --lr",
          "repetition": "raise --kl-coeff, or lower --lr",
          "finished_share": "raise --missing-eos-penalty or --max-new-tokens"}


@dataclass
class PPOConfig(TrainingConfig):
    """The settings of PPO, and their defaults."""

    num_episodes: int = option(32, "episodes: a rollout of batch_size prompts, and its updates",
                               at_least=1)
    lr: float = option(3e-4, "peak learning rate of the policy", above=0)
    value_lr: float = option(1e-3, "peak learning rate of the value model", above=0)
    batch_size: int = option(128, "prompts in one rollout (if there are fewer, all of them)",
                             at_least=1)
    minibatch_size: int = option(64, "responses in one optimizer step", at_least=1)
    ppo_epochs: int = option(2, "passes over one rollout", at_least=1)
    kl_coeff: float = option(0.5, "penalty for a nat of KL to the reference (beta), in the "
                                  "units of the score", at_least=0)
    target_kl: float | None = option(None, "nats per response to which an adaptive kl_coeff steers "
                                           "(by default it is fixed)", above=0)
    kl_horizon: int = option(500, "an adaptive kl_coeff changes in an episode by a fraction of at "
                                  "most 0.2 x responses / this", at_least=1)
    max_approxkl: float = option(0.1, "stop updating on a rollout once the policy has moved so far "
                                      "from it, in nats per token", above=0)
    clip: float = option(0.2, "epsilon: a probability ratio outside 1 +- this gains nothing more",
                         above=0)
    value_clip: float = option(0.2, "a value further than this from the rollout's gains nothing "
                                    "more", above=0)
    value_coeff: float = option(0.5, "weight of the value loss", at_least=0)
    gamma: float = option(1.0, "discount", at_least=0, at_most=1)
    lam: float = option(0.95, "lambda of GAE", at_least=0, at_most=1)
    whiten: bool = option(True, "scale GAE's advantages to mean 0 and standard deviation 1")
    missing_eos_penalty: float = option(1.0, "subtracted from the score of a response that does "
                                             "not end", at_least=0)
    max_new_tokens: int = option(96, "longest response, in a rollout and in the report, in tokens",
                                 at_least=1)
    save_every: int = option(5, "episodes between two checkpoints", at_least=1)


def ppo_training(policy: MiniGPT, reference: MiniGPT, reward: RewardModel, prompts: Sequence[str],
                 num_episodes: int = PPOConfig.num_episodes, lr: float = PPOConfig.lr,
                 kl_coeff: float = PPOConfig.kl_coeff, *, advantage: Advantage = "gae",
                 value_model: RewardModel | None = None,
                 kl_estimator: Callable[[Tensor, Tensor], Tensor] = kl_k1,
                 sample: Sampler = sample_ids, measure: Measure | None = None,
                 **options) -> tuple[MiniGPT, list[float], list[float]]:
    """Train `policy` in place against `reward`; options: the fields of PPOConfig.

    Args:
        advantage: "gae", or a function (rollout) -> (B, T) that needs no value model.  What it
            returns is used as it is, so it whitens or discounts by itself if it wants to.
        value_model: what GAE compares with, trained in place; by default a copy of the reward
            model, which already knows what a good ending looks like.
        kl_estimator: (logps, ref_logps) -> the KL that each token pays for; see minigpt/kl.py.
        sample: draws the responses, called as minigpt.sampling.sample_ids is.
        measure: (prompts, texts) -> figures of each rollout to log; nothing learns from them.

    A model that was compiled or wrapped (DataParallel) is used as the model inside.
    Returns the policy (in eval mode), and for each episode the mean score and the mean KL to the
    reference in nats per response (exact over the vocabulary at each token).
    Raises ValueError if a frozen model shares a weight that is trained, if policy and reference
    differ in shape, or if a prompt leaves no room for a response; TypeError if prompts is a single
    string; FloatingPointError if a loss or a weight is not finite.
    """
    check_models(policy, reference, reward, value_model)
    policy, reference, reward = unwrapped(policy), unwrapped(reference), unwrapped(reward)
    config = PPOConfig(num_episodes=num_episodes, lr=lr, kl_coeff=kl_coeff, **options)
    batches = prompt_batches(prompts, policy.max_seq_len, config)
    models: dict[str, nn.Module] = {"policy": policy.train()}
    if advantage == "gae":
        value_model = copy.deepcopy(reward).requires_grad_(True) if value_model is None \
            else unwrapped(value_model)
        models["value"] = value_model.train()
    elif value_model is not None or not callable(advantage):
        raise ValueError(f"advantage={advantage!r} must be 'gae' or a function, and only 'gae' "
                         "has use for a value_model")
    roll_out = RolloutMaker(reference, reward, config.max_new_tokens, config.missing_eos_penalty,
                            kl_estimator, sample)
    loop = TrainingLoop(models, config, batches, num_episodes, frozen=[reference, reward],
                        lrs={"value": config.value_lr}, eps=1e-5,  # as in OpenAI's code
                        state={"kl_coeff": kl_coeff},              # kept in checkpoints
                        identity={"advantage": name_of(advantage), "sample": name_of(sample),
                                  "kl_estimator": name_of(kl_estimator)})
    optimizer, log, warned = loop.optimizer, loop.log, False
    for prompt_batch in loop.whole_batches():                               # one episode each
        # 1. Roll out.
        with optimizer.precision():
            rollout = roll_out(loop.gathered("policy"), prompt_batch, loop.state["kl_coeff"],
                               seeded(config.seed, "sampling", loop.step, distributed.rank(),
                                      policy.device))

        # 2. Advantages.
        with torch.no_grad(), optimizer.precision():
            if advantage == "gae":
                values = loop.gathered("value").values(rollout.batch)          # (B, T)
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
            for part in minibatch:                                          # microbatches
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
            grad_norm = optimizer.step()                                   # clip, step, clear
            update.end_minibatch(grad_norm)

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
    return loop.gathered("policy").eval(), log.history["objective/scores"], \
        log.history["objective/kl_exact"]


def name_of(choice: Any) -> str:
    """How a run remembers a choice that no option can express."""
    if isinstance(choice, str):
        return choice
    return getattr(choice, "__qualname__", type(choice).__qualname__)


def check_models(policy: MiniGPT, reference: MiniGPT, reward: RewardModel,
                 value_model: RewardModel | None) -> None:
    """Raises ValueError if training would change a frozen model, or if a response may not fit."""
    check_reference(policy, reference)
    check_apart(policy, reward, "policy and reward", "make the reward model a copy")
    if value_model is not None:
        check_apart(value_model, reward, "value_model and reward", "make one of them a copy")
        check_apart(value_model, reference, "value_model and reference", "make one a copy")
    for name, model in (("reward", reward), ("value_model", value_model)):
        if model is not None and unwrapped(model).max_seq_len < unwrapped(policy).max_seq_len:
            raise ValueError(f"{name} reads {unwrapped(model).max_seq_len} tokens, but the policy "
                             f"writes rows of up to {unwrapped(policy).max_seq_len}")


def prompt_batches(prompts: Sequence[str], max_seq_len: int, config: PPOConfig) -> Batches:
    """Prompts in shuffled batches, all full, so that each episode has as many responses."""
    check_texts("prompts", prompts)
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to answer")
    examples = [tokenize_example(prompt, [], max_seq_len) for prompt in prompts]
    batch_size = min(config.batch_size, len(prompts)) * distributed.world_size()
    copies = batch_size // math.gcd(len(examples), batch_size)  # the fewest that fill them all
    return Batches(examples * copies, batch_size, config.seed, pool_batches=1)


def warn_of_collapse(episode: int, kl: float, rollout: Rollout) -> bool:
    """Print a warning if the policy goes too far or no longer ends; whether there was one."""
    signs = signs_of_collapse({"kl_nats_per_response": kl,
                               "finished_share": float(rollout.finished.float().mean())}, ADVICE)
    warn([f"episode {episode}: {sign}" for sign in signs])
    return bool(signs)


def adaptive_factor(kl: float, config: PPOConfig, num_responses: int) -> float:
    """What kl_coeff is multiplied by (Ziegler et al. 2019, arXiv:1909.08593, section 2.2)."""
    if config.target_kl is None:
        return 1.0
    error = min(max(kl / config.target_kl - 1, -0.2), 0.2)
    return 1 + error * min(1.0, num_responses / config.kl_horizon)  # 0.8 to 1.2: never negative
