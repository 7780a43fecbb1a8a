"""The DPO loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from data.examples import preference_examples
from dpo.loss import dpo_loss
from minigpt.batching import Batches
from minigpt.cli import option
from minigpt.distributed import world_size
from minigpt.logprobs import logps_of_examples, response_logps
from minigpt.model import MiniGPT, check_reference
from minigpt.training import EpochConfig, TrainingRun


@dataclass
class DPOConfig(EpochConfig):
    """The recipe of `python -m dpo.main`."""

    QUICK: ClassVar[dict] = {"lr": 3e-5, "batch_size": 8}
    OWN_DATA: ClassVar[dict] = {"num_epochs": 3, "lr": 1e-3, "batch_size": 8, "beta": 0.1}

    num_epochs: int = option(1, "passes over the pairs")
    lr: float = option(1e-4, "peak learning rate")
    batch_size: int = option(32, "pairs in one optimizer step")
    beta: float = option(2.0, "strength of the pull to the reference; a lower beta lets the policy go further")


def dpo_train(policy: MiniGPT, reference: MiniGPT, rows: Sequence[Mapping], num_epochs: int = 5, lr: float = 5e-5,
              beta: float = 0.1, **options) -> tuple[MiniGPT, list[float], list[float]]:
    """Train `policy` in place on preference rows; more options: the fields of DPOConfig.

    The reference is only read, and only once: its log-probabilities do not change.
    Returns the policy (in eval mode), and the loss and the mean margin of every step.
    Raises DataError on a row that cannot be used; ValueError if policy and reference are one object or differ in
    shape; FloatingPointError if the loss is not finite.
    """
    check_reference(policy, reference)
    config = DPOConfig(num_epochs=num_epochs, lr=lr, beta=beta, **options)
    batches = Batches(preference_examples(rows, policy.max_seq_len), config.batch_size * world_size(), config.seed)
    run = TrainingRun({"policy": policy.train()}, config, config.num_epochs * len(batches), batches.examples, [reference])
    with run.autocast():  # in the policy's precision: at the start the two must agree
        ref_logps = logps_of_examples(reference, batches)                              # (N, 2)
    for batch in run.steps(batches, config.accumulate):
        chosen_logps, rejected_logps = response_logps(policy, batch).unbind(1)        # (B,) each
        ref_chosen_logps, ref_rejected_logps = ref_logps[batch.examples].unbind(1)     # (B,) each
        loss, metrics = dpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, config.beta)
        run.update(loss, metrics)
    return run.whole("policy").eval(), run.history["loss"], run.history["rewards/margins"]
