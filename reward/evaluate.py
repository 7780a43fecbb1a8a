"""Scores of responses, and how well they rank pairs."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from data.examples import measured_examples, with_exact_ties
from data.preferences import Record
from data.world import World
from minigpt.batching import Batches
from minigpt.examples import (
    Text,
    check_texts,
    each_once,
    print_row_count,
    tokenize_responses,
)
from minigpt.logprobs import map_examples
from minigpt.metrics import preference_accuracy
from reward.combine import AnyReward, Ensemble, Reward, as_reward


def score(model: AnyReward, prompts: Sequence[str], responses: Sequence[Text],
          batch_size: int = 32) -> Tensor:
    """The reward of each response, a text or ids as `generate` returned them: (B,).

    model: a RewardModel, an Ensemble, or a function (prompts, responses) -> scores.
    A pair longer than its max_seq_len is read up to there; one printed line says how many were.
    Raises ValueError if the two lists differ in length or are empty; TypeError if one of them is a
    single string, or if `model` is no reward.
    """
    reward = as_reward(model)
    check_texts("prompts", prompts)
    check_texts("responses", responses)
    examples = tokenize_responses(prompts, responses, reward.max_seq_len)
    truncated = [index for index, example in enumerate(examples) if example.is_truncated]
    print_row_count("truncated a response in", truncated, len(examples), reward.max_seq_len)
    if not examples:
        raise ValueError("prompts is empty: there is nothing to score")
    once, answers, places = each_once(prompts, responses)
    examples = tokenize_responses(once, answers, reward.max_seq_len)
    return rewards_of_examples(reward, Batches(examples, batch_size)).flatten()[places]


def reward_margins(model: AnyReward, rows: Sequence[Mapping]) -> Tensor:
    """Chosen reward minus rejected reward of each of N rows, on the CPU: (N,).

    Exactly 0 where the two responses are the same, also if only once truncated.
    Raises DataError naming a row that cannot be used.
    """
    reward = as_reward(model)
    examples = measured_examples(rows, reward.max_seq_len)
    rewards = rewards_of_examples(reward, Batches(examples, 64)).cpu()
    chosen, rejected = with_exact_ties(rewards, examples).unbind(1)
    return chosen - rejected


def rewards_of_examples(reward: Reward, batches: Batches) -> Tensor:
    """The reward of every response of every example, without a gradient: (N, k)."""
    return map_examples(reward.rewards, batches, reward.device)


def evaluate_reward_accuracy(model: AnyReward, rows: Sequence[Mapping]) -> float:
    """Share of rows whose chosen response has the higher reward; a tie counts one half."""
    return float(preference_accuracy(reward_margins(model, rows)))


def disagreement(ensemble: Ensemble, rows: Sequence[Mapping]) -> float:
    """The standard deviation between the members, averaged over the responses of these pairs.

    Raises DataError naming a row that cannot be used.
    """
    batches = Batches(measured_examples(rows, ensemble.max_seq_len), 64)
    return float(map_examples(lambda batch: ensemble.member_rewards(batch).std(0), batches,
                              ensemble.device).mean())


def calibration(margins: Tensor, bins: int = 5) -> list[dict[str, float]]:
    """Predicted against observed preference rate, in bins of equally many pairs.

    Each pair is taken in the order that the model prefers, so predicted = sigmoid(|margin|) is
    between 0.5 and 1, and observed is how often the annotators agreed.
    """
    order = margins.abs().argsort()
    return [{"predicted": float(margins[part].abs().sigmoid().mean()),
             "observed": float((margins[part] > 0).float().mean()), "pairs": len(part)}
            for part in order.tensor_split(bins) if len(part)]


def accuracy_by_fault(world: World, rows: Sequence[Record], margins: Tensor) -> dict[str, float]:
    """For each fault: the share ranked right of the pairs where only the rejected has it."""
    ranked_right: dict[str, list[bool]] = {}
    for row, margin in zip(rows, margins.tolist(), strict=True):
        chosen, rejected = (world.judge(row["prompt"], row[side]).faults
                            for side in ("chosen", "rejected"))
        for fault in set(rejected) - set(chosen):
            ranked_right.setdefault(fault, []).append(margin > 0)
    return {fault: sum(hits) / len(hits) for fault, hits in sorted(ranked_right.items())}
