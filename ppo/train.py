"""The PPO loop.  One episode, in order:

    1. roll out     the policy answers prompts, the reward model scores the answers, and each token
                    pays for its KL to the reference
    2. advantages   what came of each token, compared with what the value model expected; or of each
                    answer, compared with the other answers to its prompt, without a value model
    3. update       a few epochs of minibatches: clipped losses, backward, step; if there is plain
                    text, each step imitates some of it as well (ppo/plain_text.py)
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minigpt import distributed
from minigpt.batching import Batches
from minigpt.errors import UserError
from minigpt.evaluation import Measure, signs_of_collapse
from minigpt.examples import check_texts, tokenize_example
from minigpt.kl import kl_k1, kl_k3
from minigpt.log import warn
from minigpt.logprobs import token_logps
from minigpt.lora import checked_models, merge_lora, recipes_of
from minigpt.metrics import masked_mean
from minigpt.options import option
from minigpt.protocol import Model
from minigpt.recipes import with_recipes
from minigpt.run_folder import digest
from minigpt.sampling import sample_ids
from minigpt.seeding import seeded
from minigpt.settings import TrainingConfig, name_of
from minigpt.training import TrainingLoop
from minigpt.weights import check_apart, unwrapped
from ppo.advantages import gae, grpo_advantages, rloo_advantages, rloo_to_go, whiten
from ppo.loss import ppo_loss, value_loss
from ppo.metrics import UpdateMetrics, explained_variance, rollout_metrics
from ppo.plain_text import PlainText
from ppo.rollout import Experience, KLEstimator, Rollout, RolloutMaker, Sampler
from reward.combine import AnyReward, Reward, as_reward
from reward.model import RewardModel

Advantage = str | Callable[[Rollout], Tensor]  # "gae", one of GROUP_ADVANTAGES, or a function
GROUP_ADVANTAGES = {"rloo": rloo_advantages, "grpo": grpo_advantages}  # (P, k) -> (P, k)
MOST_FLAT_GROUPS = 0.5  # share of a rollout's groups that teach nothing

# What to do about each sign of collapse, by the figure that shows it.  Tried on a --quick run of 20
# episodes that ended 385 nats away (kl_coeff 0.001, lr 2e-3): 5 nats with kl_coeff 0.5, and 3, at a
# higher true reward than SFT's, with a tenth of the rate.
ADVICE = {"kl_nats_per_response": "raise --kl-coeff, or lower --lr",
          "repetition": "raise --kl-coeff, or lower --lr",
          "finished_share": "raise --missing-eos-penalty or --max-new-tokens"}


@dataclass
class PPOConfig(TrainingConfig):
    """The settings of PPO, and their defaults."""

    num_episodes: int = option(64, "episodes: a rollout of batch_size responses, and its updates",
                               at_least=1)
    lr: float = option(3e-4, "peak learning rate of the policy", above=0)
    value_lr: float = option(1e-3, "peak learning rate of the value model", above=0)
    advantage: str = option("gae", "what a response is compared with: a value model's expectation "
                                   "(gae), or the other responses to its prompt (rloo, grpo)",
                            choices=("gae", *GROUP_ADVANTAGES))
    samples_per_prompt: int = option(1, "responses to each prompt of a rollout, which is read once "
                                        "for all; the group that rloo and grpo compare", at_least=1)
    kl_in: str = option("reward", "where kl_coeff enters: in the reward of each token, or in the "
                                  "loss, times k3 there", choices=("reward", "loss"))
    batch_size: int = option(128, "responses in one rollout (if there are too few prompts, one "
                                  "group to each)", at_least=1)
    minibatch_size: int = option(32, "responses in one optimizer step", at_least=1)
    ppo_epochs: int = option(2, "passes over one rollout", at_least=1)
    kl_coeff: float = option(0.5, "penalty for a nat of KL to the reference (beta), in the "
                                  "units of the score", at_least=0)
    kl_penalty: str | None = option(None, "with rloo and kl_in reward: whether each token pays for "
                                          "the exact KL from there on (the default), or for the "
                                          "sampled log pi/ref of its whole response",
                                    choices=("exact", "sampled"))
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
    value_layers: int | None = option(None, "layers of the value model, which starts as the lower "
                                            "ones of the reward model (by default all of them)",
                                      at_least=1)
    gamma: float = option(1.0, "discount", at_least=0, at_most=1)
    lam: float = option(0.95, "lambda of GAE", at_least=0, at_most=1)
    ptx_coeff: float | None = option(None, "weight of imitating plain text in each optimizer step "
                                           "(PPO-ptx; by default 1 if there is any)", at_least=0)
    whiten: bool = option(True, "scale GAE's advantages to mean 0 and standard deviation 1")
    missing_eos_penalty: float = option(1.0, "subtracted from the score of a response that does "
                                             "not end", at_least=0)
    max_new_tokens: int = option(96, "longest response, in a rollout and in the report, in tokens",
                                 at_least=1)
    save_every: int = option(5, "episodes between two checkpoints", at_least=1)


def ppo_training(policy: Model, reference: Model | None, reward: AnyReward,
                 prompts: Sequence[str], num_episodes: int | None = None,
                 lr: float | None = None, kl_coeff: float | None = None, *,
                 advantage: Advantage = "gae", value_model: RewardModel | None = None,
                 kl_estimator: KLEstimator = kl_k1,
                 sample: Sampler = sample_ids, measure: Measure | None = None,
                 plain_text: Sequence[str] = (),
                 **options) -> tuple[Model, list[float], list[float]]:
    """Train `policy` in place against `reward`; options: the fields of PPOConfig.

    Args:
        policy: a MiniGPT, or any other LanguageModel (minigpt/protocol.py).
        reference: None for a policy with adapters (minigpt/lora.py), which is its own reference
            without them.
        reward: a RewardModel, an Ensemble, or a function (prompts, responses) -> scores.
        num_episodes, lr, kl_coeff: by default those of the advantage's recipe.
        advantage: "gae"; "rloo" or "grpo", which need no value model and compare the
            `samples_per_prompt` responses to each prompt; or a function (rollout) -> (B, T).  What
            a function returns is used as it is, so it whitens or discounts by itself if it wants.
        value_model: what GAE compares with, trained in place; by default a copy of the reward
            model, which already knows what a good ending looks like, or of a policy that is a
            MiniGPT.  Of either only the lower layers with `value_layers`.
        kl_estimator: (logps, ref_logps) -> the KL that each token pays for; see minigpt/kl.py.
        sample: draws the responses, called as minigpt.sampling.sample_ids is.
        measure: (prompts, texts) -> figures of each rollout to log; nothing learns from them.
        plain_text: texts of which each step also imitates some (ppo/plain_text.py), such as those
            that the base model read; with "grpo" only if ptx_coeff is given, too.

    A model that was compiled or wrapped (DataParallel) is used as the model inside.
    Returns the policy (in eval mode), and for each episode the mean score and the mean KL to the
    reference in nats per response (exact over the vocabulary at each token).
    Raises ValueError if a frozen model shares a weight that is trained, if policy and reference
    differ in shape, if a prompt leaves no room for a response, or if a reward function fails or
    gives no finite number; TypeError if prompts is a single string; FloatingPointError if a loss
    or a weight is not finite.
    """
    reward = as_reward(reward)
    policy, reference = checked_models(policy, reference)
    check_models(policy, reference, reward, value_model)
    name = None if callable(advantage) else str(advantage)
    config = with_recipes(PPOConfig, (str(name), *recipes_of(policy)), advantage=name,
                          num_episodes=num_episodes, lr=lr, kl_coeff=kl_coeff, **options)
    if advantage == "gae" and "samples_per_prompt" not in options:  # gae does not need the recipe's
        config.samples_per_prompt = math.gcd(config.samples_per_prompt, config.batch_size,
                                             config.minibatch_size)
    check_groups(advantage, config)
    check_plain_text(config, plain_text)
    if config.kl_in == "loss" and kl_estimator is not kl_k1:
        raise ValueError("kl_in='loss' uses k3, so a kl_estimator would change nothing")
    exact = pays_exact_kl(advantage, kl_estimator, config)
    batches = prompt_batches(prompts, policy.max_seq_len, config)
    models: dict[str, nn.Module] = {"policy": policy.train()}
    if advantage == "gae":
        if value_model is not None and config.value_layers is not None:
            raise ValueError(f"value_layers={config.value_layers} would change nothing: there is a "
                             "value_model already")
        value_model = first_value_model(reward, policy, config.value_layers) \
            if value_model is None else unwrapped(value_model)
        models["value"] = value_model.train()
    elif value_model is not None:
        raise ValueError(f"advantage={name_of(advantage)!r} has no use for a value_model: only "
                         "'gae' has")
    texts = PlainText(plain_text, policy.max_seq_len, config.minibatch_size, config.seed,
                      config.ptx_coeff) if plain_text and config.ptx_coeff != 0 else None
    roll_out = RolloutMaker(reference, reward, config.max_new_tokens, config.missing_eos_penalty,
                            config.samples_per_prompt, kl_estimator, sample)
    loop = TrainingLoop(models, config, batches, config.num_episodes, frozen=[reference, reward],
                        lrs={"value": config.value_lr}, eps=1e-5,       # as in OpenAI's code
                        state={"kl_coeff": config.kl_coeff},            # kept in checkpoints
                        identity={"advantage": name_of(advantage), "sample": name_of(sample),
                                  "kl_estimator": name_of(kl_estimator),
                                  "plain_text": digest(texts.examples) if texts else None,
                                  **({"kl_penalty": "exact"} if exact else {})})
    optimizer, log, warned = loop.optimizer, loop.log, False
    for prompt_batch in loop.whole_batches():                               # one episode each
        # 1. Roll out.
        kl_coeff = loop.state["kl_coeff"]
        with optimizer.precision():
            rollout = roll_out(loop.gathered("policy"), prompt_batch,
                               kl_coeff if config.kl_in == "reward" else 0.0,
                               seeded(config.seed, "sampling", loop.step, distributed.rank(),
                                      optimizer.device))

        # 2. Advantages.
        with torch.no_grad(), optimizer.precision():
            if value_model is not None:
                values = loop.gathered("value").values(rollout.batch)          # (B, T)
                advantages, returns = gae_by_response(rollout, values, config.gamma, config.lam)
                if config.whiten:                      # after the returns were made from them
                    advantages = whiten(advantages, rollout.mask)
            else:
                advantages = rloo_with_exact_kl(rollout, kl_coeff) if exact \
                    else compared(rollout, advantage)                          # (B, T)
                values = returns = torch.zeros_like(advantages)
        experience = Experience(rollout.batch, rollout.logps, rollout.ref_logps, advantages, values,
                                returns)

        # 3. Update.
        update = UpdateMetrics(optimizer.device)
        if texts is not None:
            texts.begin_episode(loop.step)
        for minibatch in experience.minibatches(
                config.minibatch_size // config.samples_per_prompt, config.ppo_epochs,
                seeded(config.seed, "minibatches", loop.step)):
            for part in minibatch:                                          # microbatches
                with optimizer.precision():
                    logps = token_logps(policy, part.batch)
                    loss, metrics = ppo_loss(logps, part.logps, part.advantages, part.mask,
                                             config.clip)
                    if config.kl_in == "loss":
                        kl = masked_mean(kl_k3(logps, part.ref_logps), part.mask)
                        loss, metrics = loss + kl_coeff * kl, metrics | {"loss/kl_avg": kl.detach()}
                optimizer.backward(part.weight * loss)
                if value_model is not None:               # a pass of its own takes less memory
                    with optimizer.precision():
                        v_loss, v_metrics = value_loss(value_model.values(part.batch), part.values,
                                                       part.returns, part.mask, config.value_clip)
                    optimizer.backward(part.weight * config.value_coeff * v_loss)
                    metrics |= v_metrics
                update.add(metrics, part.weight)
            if texts is not None:                         # PPO-ptx: plain text as well
                update.add(texts.backward(policy, optimizer), 1.0)
            if update.approxkl() > config.max_approxkl:                     # the rollout is used up
                optimizer.zero_grad()
                break
            grad_norm = optimizer.step()                                   # clip, step, clear
            update.end_minibatch(grad_norm)

        figures = {**rollout_metrics(rollout, kl_coeff), **update.means()}
        if value_model is not None:
            figures["val/explained_variance"] = explained_variance(values, returns, rollout.mask)
        if measure is not None:
            figures |= measure(*rollout.texts())
        tokens = distributed.totals({"n": int(rollout.mask.sum())}, optimizer.device)["n"]
        loop.num_tokens += int(tokens)
        log.write(figures)
        if not warned:
            signs = signs_in_episode(log.history, loop.step, batches.batch_size, config)
            warn(signs)
            warned = bool(signs)
        loop.state["kl_coeff"] *= adaptive_factor(log.last("objective/kl"), config,
                                                  batches.batch_size * config.samples_per_prompt)
    return loop.gathered("policy").eval(), log.history["objective/scores"], \
        log.history["objective/kl_exact"]


def gae_by_response(rollout: Rollout, values: Tensor, gamma: float,
                    lam: float) -> tuple[Tensor, Tensor]:
    """`gae` of each response alone, though k share a row: advantages and returns, (B, T)."""
    masks = rollout.batch.response_masks                                       # (B, k, T)
    rewards, values = (x[:, None].expand_as(masks) for x in (rollout.rewards, values))
    advantages, returns = gae(rewards, values, masks, gamma, lam)
    return advantages.sum(1), returns.sum(1)


def compared(rollout: Rollout, advantage: Advantage) -> Tensor:
    """Advantages without a value model, (B, T): of groups, or by a function of one's own.

    Those of groups are the same for all tokens of a response.  The loss is a mean over all tokens
    of a minibatch, as PPO's; GRPO's paper takes the mean of each response first, which favours
    short ones among the good (Liu et al. 2025, arXiv:2503.20783).
    Raises ValueError if a function's are not (B, T).
    """
    batch = rollout.batch
    if not callable(advantage):
        returns = batch.response_sums(rollout.rewards)                         # (B, k)
        return batch.on_tokens(GROUP_ADVANTAGES[advantage](returns))
    advantages = advantage(rollout)
    if advantages.shape != rollout.mask.shape:
        raise ValueError(f"the advantage function returned {tuple(advantages.shape)}, but (B, T) = "
                         f"{tuple(rollout.mask.shape)} is needed: rollout.batch.on_tokens makes it "
                         "from (B, k)")
    return advantages


def rloo_with_exact_kl(rollout: Rollout, kl_coeff: float) -> Tensor:
    """RLOO's advantages where a token pays only for the KL from there on, and exactly: (B, T).

        A_t = RLOO(score) - beta ( u_t - KL_t + RLOO(sum_{s > t} KL_s) )      u_t = log pi/ref

    KL_t, over the whole vocabulary, is the mean of u_t.  It does not depend on token t, but its
    gradient does: grad KL_t = E[(u_t - KL_t) grad log pi].  So the mean gradient is still that of
    score - beta sum_t u_t.  It is not always less noisy (at the optimum score - beta sum_t u_t is
    the same for all responses), but policies got further with it (lessons/notes/family.md).  The
    exact KL is that of Amini et al. 2025, arXiv:2504.10637.
    """
    batch = rollout.batch
    own = kl_k1(rollout.logps, rollout.ref_logps) - rollout.token_kl           # 0 on the prompt
    later = rloo_to_go(rollout.token_kl, batch.response_masks)
    return batch.on_tokens(rloo_advantages(rollout.scores)) - kl_coeff * (own + later)


def first_value_model(reward: Reward, policy: Model, num_layers: int | None = None) -> RewardModel:
    """A copy of the reward model, or of the first in an ensemble; else the policy with a zero head.

    num_layers: how many layers to keep, the lower ones (None: all).  The head was trained to read
    the last layer, so if that is gone, all values start at zero, where the mean reward of the SFT
    model's answers is.
    """
    known = next((model for model in reward.modules() if isinstance(model, RewardModel)), None)
    value_model = RewardModel.from_policy(merge_lora(policy)) if known is None else \
        copy.deepcopy(known).requires_grad_(True)
    shortened = value_model.trunk.keep_layers(num_layers)
    if known is None or shortened:
        nn.init.zeros_(value_model.head.weight)
        nn.init.zeros_(value_model.head.bias)
    return value_model


def check_groups(advantage: Advantage, config: PPOConfig) -> None:
    """Raises UserError if responses cannot be compared in groups of samples_per_prompt."""
    k = config.samples_per_prompt
    if advantage in GROUP_ADVANTAGES and k < 2:
        raise UserError(f"{advantage} compares a response with the others to its prompt, so "
                        "samples_per_prompt (--samples-per-prompt) must be at least 2")
    for name in ("gamma", "lam", "whiten", "value_lr", "value_coeff", "value_clip", "value_layers"):
        if advantage in GROUP_ADVANTAGES and getattr(config, name) != getattr(PPOConfig, name):
            raise UserError(f"{name}={getattr(config, name)} would change nothing: it is for gae")
    for name in ("batch_size", "minibatch_size"):
        if getattr(config, name) % k:
            raise UserError(f"{name}={getattr(config, name)} counts responses, so it must be a "
                            f"multiple of samples_per_prompt={k}")


def pays_exact_kl(advantage: Advantage, kl_estimator: KLEstimator, config: PPOConfig) -> bool:
    """Whether `rloo_with_exact_kl` is used.  Raises UserError if it is asked for and cannot be."""
    unless = {"it is for rloo": advantage != "rloo",
              "kl_in=loss takes k3": config.kl_in == "loss",
              "the kl_estimator takes its place": kl_estimator is not kl_k1}
    reasons = [reason for reason, holds in unless.items() if holds]
    if config.kl_penalty == "exact" and reasons:
        raise UserError(f"kl_penalty=exact (--kl-penalty) would change nothing: {reasons[0]}")
    return config.kl_penalty != "sampled" and not reasons


def check_models(policy: Model, reference: Model | None, reward: Reward,
                 value_model: RewardModel | None) -> None:
    """Raises ValueError if training would change a frozen model, or if a response may not fit."""
    check_apart(policy, reward, "policy and reward", "make the reward model a copy")
    if value_model is not None:
        check_apart(value_model, reward, "value_model and reward", "make one of them a copy")
        if reference is not None:
            check_apart(value_model, reference, "value_model and reference", "make one a copy")
    for name, model in (("reward", reward), ("value_model", value_model)):
        if model is not None and unwrapped(model).max_seq_len < policy.max_seq_len:
            raise ValueError(f"{name} reads {unwrapped(model).max_seq_len} tokens, but the policy "
                             f"writes rows of up to {policy.max_seq_len}")


def prompt_batches(prompts: Sequence[str], max_seq_len: int, config: PPOConfig) -> Batches:
    """Prompts in shuffled batches, all full, so that each episode has as many responses."""
    check_texts("prompts", prompts)
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to answer")
    examples = [tokenize_example(prompt, [], max_seq_len) for prompt in prompts]
    batch_size = prompts_of_rollout(config, len(prompts))
    copies = batch_size // math.gcd(len(examples), batch_size)  # the fewest that fill them all
    return Batches(examples * copies, batch_size, config.seed, pool_batches=1)


def check_plain_text(config: PPOConfig, texts: Sequence[str]) -> None:
    """Raises UserError if plain text is to be imitated, and there is none."""
    check_texts("plain_text", texts)
    if config.ptx_coeff and not texts:
        raise UserError(f"ptx_coeff={config.ptx_coeff} (--ptx-coeff) would change nothing: there "
                        "is no plain text to imitate")


def prompts_of_rollout(config: PPOConfig, num_prompts: int) -> int:
    """How many prompts an episode answers, over all processes."""
    return min(config.batch_size // config.samples_per_prompt, num_prompts) \
        * distributed.world_size()


def signs_in_episode(history: Mapping[str, Sequence[float]], step: int, prompts: int,
                     config: PPOConfig) -> list[str]:
    """What the log of this step, from 0, says against it: the policy goes too far, no longer ends,
    or learns nothing.  prompts: of one rollout.  [] if all is well.
    """
    k = config.samples_per_prompt
    signs = signs_of_collapse(
        {"kl_nats_per_response": history["objective/kl_exact"][step],
         "finished_share": history["val/num_eos_tokens"][step] / (prompts * k)}, ADVICE)
    by_groups = k > 1 and "val/explained_variance" not in history  # a value model learns from all
    flat = history["val/flat_groups"][step] / prompts if by_groups else 0.0
    if flat > MOST_FLAT_GROUPS:
        signs.append(f"in {flat:.0%} of the groups all responses score the same, so these teach "
                     "nothing: raise --samples-per-prompt, or use a reward that tells more apart")
    return [f"episode {step + 1}: {sign}" for sign in signs]


def adaptive_factor(kl: float, config: PPOConfig, num_responses: int) -> float:
    """What kl_coeff is multiplied by (Ziegler et al. 2019, arXiv:1909.08593, section 2.2)."""
    if config.target_kl is None:
        return 1.0
    error = min(max(kl / config.target_kl - 1, -0.2), 0.2)
    return 1 + error * min(1.0, num_responses / config.kl_horizon)  # 0.8 to 1.2: never negative
