"""The figures of a report, summary.json's, and what each of them means."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from minigpt.report import Table

# In the order of a report.  A * stands for anything; the first name that fits counts.  The README
# has the same table.
MEANINGS = {
    "start_loss_nats_per_token": "loss of the model that the run started from, on held-out "
                                 "responses of your rows",
    "share_of_possible_gain": "gain in true reward over SFT, as a share of the most that is "
                              "possible at the same KL",
    "true_reward": "how good the answers are by the little world's own measure (at most 3 by "
                   "default)",
    "limit_at_this_kl": "the best true reward that any policy could have at the same KL",
    "right_share": "share of answers that are right",
    "right_share_of_demonstrations": "share of the demonstrations that are right",
    "win_rate_against_sft": "how often an answer has a higher true reward than an SFT answer to "
                            "the same prompt",
    "proxy_reward": "mean score of the answers, by the reward that was trained on",
    "accuracy_heldout": "share of held-out pairs that the reward model ranks as the annotators did",
    "preference_accuracy_heldout": "share of held-out pairs that the policy ranks as the "
                                   "annotators did, by log pi/ref",
    "preference_accuracy": "share of held-out pairs ranked as the annotators did: by log pi/ref, "
                           "or by the reward model for best-of-n",
    "label_accuracy_heldout": "KTO on labelled rows: how often a held-out good row has a higher "
                              "implicit reward than a bad one",
    "*accuracy_train": "accuracy on training rows: if it is far above the held-out accuracy, they "
                       "were learned by heart",
    "accuracy_before": "share of held-out pairs ranked right before training: about 0.5",
    "bayes_accuracy": "the best possible accuracy, that of someone who knows the true reward",
    "accuracy_relative_to_bayes": "held-out accuracy over the best possible",
    "accuracy_heldout_member_*": "held-out accuracy of one member of the ensemble alone",
    "accuracy_where_rejected_is_*": "held-out accuracy where the rejected answer has this fault",
    "disagreement_heldout": "standard deviation of the score between the members of the ensemble",
    "margin_heldout": "mean reward of chosen minus rejected answers, on held-out pairs",
    "calibration_error": "how far the predicted preference rate is from the observed one, on "
                         "average",
    "rewards_chosen_heldout": "implicit reward, beta x log pi/ref, of held-out chosen answers",
    "rewards_rejected_heldout": "implicit reward of held-out rejected answers",
    "rewards_margin_heldout": "the margin: implicit reward of chosen minus rejected answers",
    "loss_nats_per_token": "loss on held-out demonstrations after training (an untrained model "
                           "has ln 256 = 5.55)",
    "loss_before_nats_per_token": "loss on held-out demonstrations before training",
    "plain_text_loss_nats_per_token": "loss on held-out plain text after training: if it rose, "
                                      "the model forgot something",
    "plain_text_loss_before_nats_per_token": "loss on held-out plain text before training",
    "kl_nats_per_response": "KL to the reference, exact at each token: how far the policy has "
                            "moved",
    "kl_sampled_nats_per_response": "KL to the reference, estimated from the sampled tokens: "
                                    "noisier",
    "finished_share": "share of responses that end by themselves",
    "response_bytes": "length of a response",
    "distinct_2": "distinct word pairs over all word pairs: lower is less varied",
    "repetition": "share of word triples that occurred earlier in the same text",
    "loss_first_step": "loss of the first step, before any update (DPO: log 2 = 0.6931)",
    "margin_first_step": "margin of the first step: 0, since the policy still equals the reference",
    "ratio_first_update": "probability ratio to the rollout's policy in the first minibatch: 1",
    "kl_first_episode_nats_per_response": "KL in the first episode: 0, before any update",
    "clip_fraction": "share of tokens whose ratio was clipped",
    "kl_coeff_final": "the penalty per nat of KL at the end of training",
    "explained_variance": "how well the value model predicts the returns, last ten episodes: 1 is "
                          "perfect, 0 no better than a constant",
    "flat_groups": "groups whose responses all score the same, so that they teach nothing, last "
                   "ten episodes",
    "true_reward_final_over_best_seen": "true reward at the end over the best seen during "
                                        "training: below 1, it has fallen again",
    "answers_sampled": "responses that training sampled",
    "tokens_sampled": "tokens that training sampled",
    "tokens_trained": "tokens that training read, over all passes",
    "*seconds": "how long the command took, its report included",
    "peak_memory_mb": "the most memory that the command used at any moment",
    "models_in_memory": "models that training keeps in memory",
    "weights_trained": "weights that training changes (AdamW keeps two more numbers for each)",
}


def meaning(name: str) -> str:
    """What the figure of this name means; "" if nobody has said it."""
    return next((text for pattern, text in MEANINGS.items() if fnmatchcase(name, pattern)), "")


def figures_table(summary: Mapping[str, Any]) -> Table:
    """Every figure with its value and meaning.

    Beside a value stand its 95% interval and its value before training, where these are known.
    """
    beside = {f"{name}_{which}" for name in summary for which in ("low", "high", "pairs", "before")}
    order = [*MEANINGS.values(), ""]
    names = sorted(summary.keys() - beside, key=lambda name: (order.index(meaning(name)), name))
    return [["figure", "value", "meaning"],
            *([name, _with_bounds(name, summary), meaning(name)] for name in names)]


def _with_bounds(name: str, summary: Mapping[str, Any]) -> str:
    text = shown(summary[name])
    if f"{name}_low" in summary:
        text += (f"\n({summary[f'{name}_low']:.2f} to {summary[f'{name}_high']:.2f}, "
                 f"{summary[f'{name}_pairs']} pairs)")
    if f"{name}_before" in summary:
        text += f"\n(before: {shown(summary[f'{name}_before'])})"
    return text


def shown(value: float) -> str:
    """A figure as text: 0.6931, 12.5, 943, 16,000."""
    return f"{value:,}" if isinstance(value, int) else \
        f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
