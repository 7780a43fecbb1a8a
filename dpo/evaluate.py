"""What a policy prefers, read off its implicit rewards."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data.examples import measured_examples, with_exact_ties
from data.preferences import check_unpaired
from minigpt.batching import Batches
from minigpt.logprobs import logps_of_examples, sequence_logps
from minigpt.metrics import preference_accuracy
from minigpt.model import MiniGPT
from minigpt.weights import unwrapped


def implicit_rewards(policy: MiniGPT, reference: MiniGPT, rows: Sequence[Mapping],
                     beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """beta * log pi(y|x)/ref(y|x) of the chosen and the rejected responses, on the CPU: two (N,).

    Rafailov et al. 2023, eq. 5, but for beta log Z(x), which both responses of a row share.  The
    two are equal where the responses are the same, also if only once truncated.
    Raises DataError naming a row that cannot be used.
    """
    policy, reference = unwrapped(policy), unwrapped(reference)
    examples = measured_examples(rows, policy.max_seq_len)
    batches = Batches(examples, 64)
    log_ratios = logps_of_examples(policy, batches) - logps_of_examples(reference, batches)
    rewards = with_exact_ties(beta * log_ratios.cpu(), examples)
    return rewards[:, 0], rewards[:, 1]


def evaluate_preference_accuracy(policy: MiniGPT, reference: MiniGPT,
                                 rows: Sequence[Mapping]) -> float:
    """Share of rows whose chosen response has the higher implicit reward.

    A tie counts one half, so policy == reference scores 0.5.  Beta scales both sides, and so does
    not enter.
    """
    chosen, rejected = implicit_rewards(policy, reference, rows)
    return float(preference_accuracy(chosen - rejected))


def evaluate_label_accuracy(policy: MiniGPT, reference: MiniGPT, rows: Sequence[Mapping]) -> float:
    """How often a good completion has a higher implicit reward than a bad one (ties: one half).

    Over all good and bad rows, whatever their prompts: the area under the ROC curve, 0.5 for
    policy == reference.  nan if one kind is missing.
    """
    records = check_unpaired(rows)
    prompts, completions = zip(*((r["prompt"], r["completion"]) for r in records), strict=True)
    rewards = (sequence_logps(policy, prompts, completions)
               - sequence_logps(reference, prompts, completions)).cpu()
    good = torch.tensor([record["label"] for record in records])
    margins = rewards[good][:, None] - rewards[~good]
    return float(preference_accuracy(margins)) if margins.numel() else float("nan")
