"""What helps a reward model that has few rows to learn from: a language-modelling loss beside."""

from torch import Tensor

from minigpt.batching import Batch
from minigpt.fast import select
from minigpt.logprobs import logps_of
from minigpt.masks import predictor_positions
from reward.model import RewardModel, response_means


def rewards_and_logps(model: RewardModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """`model.rewards(batch)`, and the mean log-probability of each response's tokens: two (B, k).

    Training the second to stay high is a regulariser (Yang et al. 2024, arXiv:2406.10216).
    """
    masks, tokens = batch.response_masks, batch.token_ids[batch.response_mask]
    hidden = model.hidden_states(batch)                                            # (B, T, D)
    logits = model.logits(select(hidden, predictor_positions(batch.segments)))     # (N, V)
    values = model.head_values(select(hidden, model.scored_positions(masks)))
    return model.pool(values, masks), response_means(logps_of(logits, tokens), masks)
