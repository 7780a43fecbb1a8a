"""The KTO loop: rows that are labelled good or bad, instead of pairs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data.examples import unpaired_examples
from dpo.loss import kto_loss
from dpo.train import KTO_WEIGHTS, DPOConfig, check_used, with_imitation
from minigpt import distributed
from minigpt.batching import Batch, Batches
from minigpt.errors import UserError
from minigpt.logprobs import logps_of_examples, response_logps
from minigpt.lora import as_reference, checked_models, recipes_of
from minigpt.protocol import Model
from minigpt.recipes import with_recipes
from minigpt.training import TrainingLoop


def kto_train(policy: Model, reference: Model | None, rows: Sequence[Mapping],
              num_epochs: int = DPOConfig.num_epochs, lr: float | None = None,
              beta: float | None = None, **options) -> tuple[Model, list[float], list[float]]:
    """Train `policy` in place on {"prompt", "completion", "label"} rows; options: DPOConfig's.

    Preference pairs are taken apart.  Everything else is as in `dpo_train`; the third return value
    is the mean signed reward of every step.
    Raises UserError as `check_kto` does; DataError if all rows answer one prompt, so that no answer
    is mismatched, or if all labels are the same.
    """
    policy, reference = checked_models(policy, reference)
    config = with_recipes(DPOConfig, ("kto", *recipes_of(policy)), loss="kto",
                          num_epochs=num_epochs, lr=lr, beta=beta, **options)
    check_kto(config)
    examples, mismatched_examples, labels = unpaired_examples(rows, policy.max_seq_len)
    desirable_weight, undesirable_weight = weights_of(labels, config)
    batches = Batches(examples, config.batch_size * distributed.world_size(), config.seed)
    mismatched = Batches(mismatched_examples, batches.batch_size)
    loop = TrainingLoop({"policy": policy.train()}, config, batches, num_epochs * len(batches),
                        frozen=[reference], identity={"labels": labels.tolist()})
    optimizer, log = loop.optimizer, loop.log
    labels = labels.to(optimizer.device)
    with as_reference(policy, reference) as ref, optimizer.precision():
        ref_logps = logps_of_examples(ref, batches)[:, 0]                       # (N,)
        ref_mismatched_logps = logps_of_examples(ref, mismatched)[:, 0]         # (N,)
    for microbatches in loop.steps(config.accumulate):           # one optimizer step each
        whole = list(microbatches)                               # all of them set the one z
        with optimizer.precision():
            z = reference_point(policy, mismatched, ref_mismatched_logps, whole)
        for batch in whole:
            with optimizer.precision():
                logps = response_logps(policy, batch)[:, 0]      # (B,)
                loss, metrics = kto_loss(logps, ref_logps[batch.indices], labels[batch.indices], z,
                                         config.beta, desirable_weight, undesirable_weight)
                total, imitation = with_imitation(loss, logps, batch.response_lengths[:, 0], config)
            optimizer.backward(batch.weight * total)
            log.add({"loss": loss, **metrics, "imitation_loss": imitation}, batch.weight)
        grad_norm = optimizer.step()                             # clip, step, clear
        log.write({"grad_norm": grad_norm})
    return loop.gathered("policy").eval(), log.history["loss"], log.history["rewards/signed"]


def check_kto(config: DPOConfig) -> None:
    """Raises UserError on batches of one row, and on a setting that KTO does not use."""
    check_used(config, ("beta", *KTO_WEIGHTS))
    if config.batch_size * distributed.world_size() < 2:
        raise UserError("batch_size=1 leaves KTO no reference point: a mean over the mismatched "
                        "answers of a batch would be the noise of a single one")


@torch.no_grad()
def reference_point(policy: Model, mismatched: Batches, ref_logps: Tensor,
                    microbatches: Sequence[Batch]) -> Tensor:
    """KTO's z for this step, from the mismatched answers of all its rows, in all processes."""
    mean = 0.0
    for batch in microbatches:
        others = mismatched.collate(batch.indices.tolist()).to(batch.token_ids.device)
        log_ratios = response_logps(policy, others)[:, 0] - ref_logps[batch.indices]
        mean += batch.weight * float(log_ratios.mean())
    mean = distributed.means({"z": mean}, ref_logps.device)["z"]
    return torch.tensor(max(mean, 0.0), device=ref_logps.device)  # as `kto_reference_point`


def weights_of(labels: Tensor, config: DPOConfig) -> tuple[float, float]:
    """The weights of good and bad rows: as set, or such that both kinds count the same in all."""
    good, bad = int(labels.sum()), int((~labels).sum())
    return (config.desirable_weight or max(good, bad) / good,
            config.undesirable_weight or max(good, bad) / bad)
