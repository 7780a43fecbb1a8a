"""The loop of DPO and of every other loss on pairs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.examples import preference_examples
from dpo.loss import LOSSES, Result
from minigpt.batching import Batch, Batches
from minigpt.distributed import world_size
from minigpt.errors import UserError
from minigpt.logprobs import logps_of_examples, response_logps
from minigpt.lora import as_reference, checked_models, recipes_of
from minigpt.options import option
from minigpt.protocol import Model
from minigpt.recipes import with_recipes
from minigpt.settings import EpochConfig, name_of
from minigpt.training import TrainingLoop

# What to do about each sign of collapse, by the figure that shows it.  Tried on 23 and on 705 rows
# of real text, where raising beta alone made it worse: lessons/notes/what-did-not-work.md.
ADVICE = dict.fromkeys(("kl_nats_per_response", "repetition", "finished_share"),
                       "lower --lr to a third, and keep --beta at 0.5 or more")
Loss = str | Callable[..., Result]
# What a loss may ask for.
TENSORS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps",
           "chosen_lengths", "rejected_lengths")
HYPERPARAMETERS = ("beta", "label_smoothing", "lam", "gamma", "nll_weight")
KTO_WEIGHTS = ("desirable_weight", "undesirable_weight")


@dataclass
class DPOConfig(EpochConfig):
    """The settings of DPO, and their defaults; those of other losses: minigpt/recipes.py.

    What is minimised is  loss + imitation_weight beta imitation  (`with_imitation`).
    """

    loss: str = option("dpo", "which loss (kto: on rows labelled good or bad, or on pairs taken "
                              "apart)", choices=(*LOSSES, "kto"))
    num_epochs: int = option(1, "passes over the pairs", at_least=1)
    lr: float = option(1e-4, "peak learning rate", above=0)
    batch_size: int = option(32, "pairs in one optimizer step", at_least=1)
    beta: float = option(2.0, "strength of the pull to the reference; a lower beta lets the policy "
                              "go further", above=0)
    label_smoothing: float = option(0.1, "cdpo, robust_dpo: the share of the labels that is taken "
                                         "to be wrong", at_least=0, below=0.5)
    lam: float = option(1.0, "dpop: the price of a chosen response that becomes less likely; orpo: "
                             "weight of the odds ratio", at_least=0)
    gamma: float = option(0.5, "simpo: the margin that is asked for", at_least=0)
    nll_weight: float = option(1.0, "dpo_nll: weight of imitating the chosen response", at_least=0)
    imitation_weight: float = option(0.0, "also imitate all responses, chosen and rejected, with "
                                          "this weight times beta", at_least=0)
    desirable_weight: float | None = option(None, "kto: weight of good rows (by default such that "
                                                  "both kinds count the same)", above=0)
    undesirable_weight: float | None = option(None, "kto: weight of bad rows", above=0)


def dpo_train(policy: Model, reference: Model | None, rows: Sequence[Mapping],
              num_epochs: int = DPOConfig.num_epochs, lr: float | None = None,
              beta: float | None = None, *, loss: Loss = "dpo",
              **options) -> tuple[Model, list[float], list[float]]:
    """Train `policy` in place on preference rows; options: the fields of DPOConfig.

    Args:
        policy: a MiniGPT, or any other LanguageModel (minigpt/protocol.py).
        reference: only read, and only once, since its log-probabilities do not change.  None for a
            loss that needs none, or for a policy with adapters (minigpt/lora.py), whose reference
            is the policy without them.
        loss: a name in dpo.loss.LOSSES, "kto" (see dpo/kto.py), or a function that returns
            (loss, metrics).  It is passed what its parameters' names ask for: policy_chosen_logps,
            ref_chosen_logps, chosen_lengths, beta, ... (TENSORS and HYPERPARAMETERS).  A setting
            with a default of its own keeps it, unless it is given here.
        lr, beta: by default those of the loss's recipe.

    A policy that was compiled or wrapped (DataParallel) is trained as the model inside.
    Returns the policy (in eval mode), and the loss and the mean margin of every step.
    Raises DataError on a row that cannot be used; ValueError if policy and reference share a weight
    that is trained or differ in shape, if there is no reference where one is needed, or if a loss
    has a parameter that is not available; UserError on a setting that the loss does not use;
    FloatingPointError if a loss or a weight is not finite.
    """
    if loss == "kto":
        from dpo.kto import kto_train

        return kto_train(policy, reference, rows, num_epochs, lr, beta, **options)
    policy, reference = checked_models(policy, reference, needs_reference(loss))
    name = next((name for name, known in LOSSES.items() if known is loss),
                None if callable(loss) else loss)
    config = with_recipes(DPOConfig, (str(name), *recipes_of(policy)), loss=name,
                          num_epochs=num_epochs, lr=lr, beta=beta, **options)
    settings = HYPERPARAMETERS if name else (*options, *["beta"] * (beta is not None))
    loss_function, asked = function_of(loss), parameters_of(loss, settings)
    check_used(config, asked, name_of(loss))
    examples = preference_examples(rows, policy.max_seq_len)
    batches = Batches(examples, config.batch_size * world_size(), config.seed)
    loop = TrainingLoop({"policy": policy.train()}, config, batches, num_epochs * len(batches),
                        frozen=[reference], identity={"loss": name_of(loss)})
    optimizer, log = loop.optimizer, loop.log
    ref_logps = torch.zeros(len(examples), 2, device=optimizer.device)  # if no loss asks for them
    if needs_reference(loss):
        with as_reference(policy, reference) as ref, optimizer.precision():  # the policy's, since
            ref_logps = logps_of_examples(ref, batches)                      # they start equal
    for microbatches in loop.steps(config.accumulate):           # one optimizer step each
        for batch in microbatches:
            with optimizer.precision():
                policy_logps = response_logps(policy, batch)     # (B, 2)
                given = arguments(asked, batch, policy_logps, ref_logps[batch.indices], config)
                value, metrics = checked_result(loss_function(**given))
                total, imitation = with_imitation(value, policy_logps, batch.response_lengths,
                                                  config)        # total: value, unless asked
            optimizer.backward(batch.weight * total)
            log.add({"loss": value, **metrics, "imitation_loss": imitation}, batch.weight)
        grad_norm = optimizer.step()                             # clip, step, clear
        log.write({"grad_norm": grad_norm})
    margins = log.history.get("rewards/margins", [])
    return loop.gathered("policy").eval(), log.history["loss"], margins


def with_imitation(loss: Tensor, policy_logps: Tensor, lengths: Tensor,
                   config: DPOConfig) -> tuple[Tensor, Tensor]:
    """loss + imitation_weight beta imitation, and the imitation, in nats per token.

        imitation = - mean of log pi(y|x) / |y| over all responses, chosen and rejected

    SFT's loss, except that each response counts the same whatever its length.  DPO's gradient is in
    proportion to beta at the start, so the weight is, too.
    """
    imitation = -(policy_logps / lengths).mean()
    if config.imitation_weight:
        loss = loss + config.imitation_weight * config.beta * imitation
    return loss, imitation


def arguments(asked: Sequence[str], batch: Batch, policy_logps: Tensor, ref_logps: Tensor,
              config: DPOConfig) -> dict[str, Any]:
    """What a loss asks for, by name: log-probabilities and lengths (B,), and settings."""
    lengths = batch.response_lengths.to(policy_logps.dtype)      # (B, 2)
    tensors = (*policy_logps.unbind(1), *ref_logps.unbind(1), *lengths.unbind(1))
    offered = {**dict(zip(TENSORS, tensors, strict=True)), **vars(config)}
    return {name: offered[name] for name in asked}


def function_of(loss: Loss) -> Callable[..., Result]:
    """A loss given by its name, which DPOConfig checks, or itself."""
    return LOSSES[DPOConfig(loss=loss).loss] if isinstance(loss, str) else loss


def parameters_of(loss: Loss, settings: Sequence[str] = ()) -> list[str]:
    """The names that a loss asks for; of those with a default of their own, these `settings`.

    A parameter of another name keeps its default; one without raises ValueError.
    """
    asked, function = [], function_of(loss)
    function = function.forward if isinstance(function, nn.Module) else function
    for name, parameter in inspect.signature(function).parameters.items():
        optional = parameter.default is not parameter.empty
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in TENSORS or (name in HYPERPARAMETERS and (name in settings or not optional)):
            asked.append(name)
        elif not optional:
            raise ValueError(f"the loss {name_of(loss)} has a parameter {name!r}, which is not "
                             f"available: there are {', '.join(TENSORS + HYPERPARAMETERS)}")
    return asked


def needs_reference(loss: Loss) -> bool:
    """Whether a loss compares the policy with a reference."""
    return loss == "kto" or any(name.startswith("ref_") for name in parameters_of(loss))


def check_used(config: DPOConfig, asked: Sequence[str], loss: str | None = None) -> None:
    """Raises UserError if a setting was changed that the loss does not ask for."""
    for name in (*HYPERPARAMETERS[1:], *KTO_WEIGHTS):  # beta has a recipe for --data
        if name not in asked and getattr(config, name) != getattr(DPOConfig, name):
            raise UserError(f"{name}={getattr(config, name)} would change nothing: the loss "
                            f"{loss or config.loss} does not use it")
    if config.imitation_weight and "beta" not in asked:
        raise UserError(f"imitation_weight={config.imitation_weight} is a multiple of beta, which "
                        f"the loss {loss or config.loss} does not use or was not given")


def checked_result(result: Any) -> Result:
    """What a loss returned.  Raises ValueError unless it is (loss, metrics)."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)
            and result[0].dim() == 0):
        raise ValueError("a loss must return (loss, metrics): a tensor of one number and a "
                         f"dictionary, not {type(result).__name__}")
    return result
