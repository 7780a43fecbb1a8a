"""What a policy prefers, read off its implicit rewards."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data.examples import measured_examples, with_exact_ties
from data.preferences import check_unpaired
from minigpt.batching import Batches
from minigpt.examples import Example, tokenize_example
from minigpt.logprobs import comparable_model, logps_of_examples
from minigpt.lora import as_reference
from minigpt.metrics import preference_accuracy
from minigpt.protocol import Model


def implicit_rewards(policy: Model, reference: Model | None, rows: Sequence[Mapping],
                     beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """beta * log pi(y|x)/ref(y|x) of the chosen and the rejected responses, on the CPU: two (N,).

    Rafailov et al. 2023, eq. 5, but for beta log Z(x), which both responses of a row share.  The
    two are equal where the responses are the same, also if only once truncated.
    Raises DataError naming a row that cannot be used, and TypeError or ValueError on a model that
    cannot, as `dpo_train` does.
    """
    policy = comparable_model(policy)
    examples = measured_examples(rows, policy.max_seq_len)
    rewards = with_exact_ties(beta * _log_ratios(policy, reference, examples), examples)
    return rewards[:, 0], rewards[:, 1]


def evaluate_preference_accuracy(policy: Model, reference: Model | None,
                                 rows: Sequence[Mapping]) -> float:
    """Share of rows whose chosen response has the higher implicit reward.

    A tie counts one half, so policy == reference scores 0.5.  Beta scales both sides, and so does
    not enter.
    """
    chosen, rejected = implicit_rewards(policy, reference, rows)
    return float(preference_accuracy(chosen - rejected))


def evaluate_label_accuracy(policy: Model, reference: Model | None,
                            rows: Sequence[Mapping]) -> float:
    """How often a good completion has a higher implicit reward than a bad one (ties: one half).

    Over all good and bad rows, whatever their prompts: the area under the ROC curve, 0.5 for
    policy == reference; nan if one kind is missing.
    """
    records, policy = check_unpaired(rows), comparable_model(policy)
    examples = [tokenize_example(row["prompt"], [row["completion"]], policy.max_seq_len)
                for row in records]
    labels = torch.tensor([row["label"] for row in records])
    if labels.all() or not labels.any():
        return float("nan")
    rewards = _log_ratios(policy, reference, examples)[:, 0]
    good, bad = rewards[labels], rewards[~labels].sort().values
    below, not_above = (torch.searchsorted(bad, good, right=right) for right in (False, True))
    return float((below + not_above).float().mean() / 2 / len(bad))


def _log_ratios(policy: Model, reference: Model | None, examples: Sequence[Example]) -> Tensor:
    """log pi/ref of every response of every example, on the CPU: (N, k)."""
    if policy is reference:  # log 1, without two passes
        return torch.zeros(len(examples), len(examples[0].responses))
    batches = Batches(examples, 64)
    logps = logps_of_examples(policy, batches)
    with as_reference(policy, reference) as ref:
        return (logps - logps_of_examples(comparable_model(ref), batches)).cpu()
