"""The DPO loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.examples import preference_examples
from dpo.loss import dpo_loss
from minigpt.batching import Batches
from minigpt.distributed import world_size
from minigpt.logprobs import logps_of_examples, response_logps
from minigpt.model import MiniGPT
from minigpt.options import option
from minigpt.settings import EpochConfig
from minigpt.training import TrainingLoop
from minigpt.weights import check_reference, unwrapped

# What to do about each sign of collapse, by the figure that shows it.  Tried on 23 and on 705 rows
# of real text, where raising beta alone made it worse: lessons/notes/what-did-not-work.md.
ADVICE = dict.fromkeys(("kl_nats_per_response", "repetition", "finished_share"),
                       "lower --lr to a third, and keep --beta at 0.5 or more")


@dataclass
class DPOConfig(EpochConfig):
    """The settings of DPO, and their defaults."""

    num_epochs: int = option(1, "passes over the pairs", at_least=1)
    lr: float = option(1e-4, "peak learning rate", above=0)
    batch_size: int = option(32, "pairs in one optimizer step", at_least=1)
    beta: float = option(2.0, "strength of the pull to the reference; a lower beta lets the policy "
                              "go further", above=0)


def dpo_train(policy: MiniGPT, reference: MiniGPT, rows: Sequence[Mapping],
              num_epochs: int = DPOConfig.num_epochs, lr: float = DPOConfig.lr,
              beta: float = DPOConfig.beta, **options) -> tuple[MiniGPT, list[float], list[float]]:
    """Train `policy` in place on preference rows; options: the fields of DPOConfig.

    The reference is only read, and only once, since its log-probabilities do not change.
    A policy that was compiled or wrapped (DataParallel) is trained as the model inside.
    Returns the policy (in eval mode), and the loss and the mean margin of every step.
    Raises DataError on a row that cannot be used; ValueError if policy and reference share a weight
    that is trained or differ in shape; FloatingPointError if a loss or a weight is not finite.
    """
    check_reference(policy, reference)
    policy, reference = unwrapped(policy), unwrapped(reference)
    config = DPOConfig(num_epochs=num_epochs, lr=lr, beta=beta, **options)
    examples = preference_examples(rows, policy.max_seq_len)
    batches = Batches(examples, config.batch_size * world_size(), config.seed)
    loop = TrainingLoop({"policy": policy.train()}, config, batches, num_epochs * len(batches),
                        frozen=[reference])
    optimizer, log = loop.optimizer, loop.log
    with optimizer.precision():                                  # the policy's: they start equal
        ref_logps = logps_of_examples(reference, batches)                                # (N, 2)
    for microbatches in loop.steps(config.accumulate):           # one optimizer step each
        for batch in microbatches:
            with optimizer.precision():
                chosen_logps, rejected_logps = response_logps(policy, batch).unbind(1)   # (B,) each
                ref_chosen_logps, ref_rejected_logps = ref_logps[batch.indices].unbind(1)
                loss, metrics = dpo_loss(chosen_logps, rejected_logps, ref_chosen_logps,
                                         ref_rejected_logps, beta)
            optimizer.backward(batch.weight * loss)
            log.add({"loss": loss, **metrics}, batch.weight)
        grad_norm = optimizer.step()                             # clip, step, clear
        log.write({"grad_norm": grad_norm})
    return loop.gathered("policy").eval(), log.history["loss"], log.history["rewards/margins"]
