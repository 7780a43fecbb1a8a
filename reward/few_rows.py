"""What helps a reward model that has few rows to learn from: a language-modelling loss beside."""

from torch import Tensor

from minigpt.batching import Batch
from minigpt.fast import select
from minigpt.logprobs import logps_of, place
from minigpt.masks import predictor_positions
from reward.model import RewardModel, response_means


def rewards_and_logps(model: RewardModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """`model.rewards(batch)`, and the mean log-probability of each response's tokens: two (B, k).

    Training the second to stay high is a regulariser (Yang et al. 2024, arXiv:2406.10216).
    """
    batch = model.as_read(batch)
    masks = batch.response_masks
    hidden = model.hidden_states(batch)                                                # (B, T, D)
    values = model.head_values(select(hidden, model.scored_positions(batch)))
    rewards = model.pool(values, masks)

    rows, columns = predictor_positions(batch.segments)
    predicted = batch.segments[rows, columns] >= 0      # without a prompt a first token is not
    logits = model.logits(select(hidden, (rows[predicted], columns[predicted])))       # (N, V)
    mask = place(predicted, batch.response_mask)
    logps = logps_of(logits, batch.token_ids[mask])
    return rewards, response_means(logps, masks & mask[:, None])
