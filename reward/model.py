"""RewardModel: the same transformer with one number at the end instead of 256 logits."""

import torch
from torch import Tensor, nn

from minigpt.batching import Batch
from minigpt.fast import Positions, weighted_sum
from minigpt.logprobs import place
from minigpt.masks import positions_and_visibility, predictor_positions
from minigpt.model import MiniGPT
from minigpt.tokenizer import EOS, PAD, SEP, VOCAB_SIZE
from minigpt.weights import copy_model_weights, unwrapped

POOLINGS, READINGS = ("last", "mean", "sum"), ("both", "response", "phrases")
USUAL_LENGTH = 64  # tokens: sums are divided by it, so that rewards are as large as those of a mean
WINDOW = 2  # where phrases are read: in each layer a token sees itself and the one before


class RewardModel(nn.Module):
    """A MiniGPT trunk with a scalar head.  Takes MiniGPT's arguments, and:

    pooling: how the values of a response's tokens make one reward.  "last": the value at the *last
    real token*, the EOS of a finished response, the only place where causal attention has seen all
    of it.  (One token later there is padding: a classic fault.)  "mean": the mean over the
    response.  Where preferences depend on words and phrases, and rows are few, the model then
    learns from every token instead of one.  "sum": 1/64 of their sum, which is as good, and safer
    as a reward to train on: in a mean, one liked word alone is worth more than a whole answer.
    reads: "both"; or "response", if the model is trained on responses without their prompts; or
    "phrases", if in addition each layer sees only a token and the one before it: four layers see
    five bytes.  From few rows a model with a longer context memorises them.  The reward is then a
    sum (or mean) of a value for each phrase.  Such a model starts from large weights (bytes
    N(0, 1), and a head 8 times larger), which helped more than a policy's (figures in
    lessons/notes/what-did-not-work.md), perhaps because its features then have to change less:
    compare "lazy" training (Chizat et al. 2019, arXiv:1812.07956).

    Raises ValueError on another pooling or reading, or on the last of the phrases alone.
    """

    # what is called from outside (for FSDP's hooks)
    FORWARD_METHODS = ("rewards", "values")

    def __init__(self, vocab_size: int = VOCAB_SIZE, embed_dim: int = 128, num_heads: int = 4,
                 num_layers: int = 4, max_seq_len: int = 128, ff_dim: int = 512,
                 pooling: str = "last", reads: str = "both"):
        super().__init__()
        if pooling not in POOLINGS or reads not in READINGS:
            raise ValueError(f"pooling={pooling!r} must be one of {POOLINGS}, and reads={reads!r} "
                             f"one of {READINGS}")
        if reads == "phrases" and pooling == "last":
            raise ValueError("reads='phrases' needs pooling='sum' or 'mean': the last phrase says "
                             "little")
        self.pooling, self.reads = pooling, reads
        self.trunk = MiniGPT(vocab_size, embed_dim, num_heads, num_layers, max_seq_len, ff_dim)
        self.head = nn.Linear(embed_dim, 1)
        # std 1 / sqrt(d + 1) and no bias: rewards of unit size at the start (Huang et al. 2024,
        # "The N+ Implementation Details of RLHF with PPO")
        nn.init.normal_(self.head.weight, std=(embed_dim + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)
        if reads == "phrases":
            nn.init.normal_(self.trunk.token_embedding.weight)
            nn.init.normal_(self.head.weight, std=8 * (embed_dim + 1) ** -0.5)

    @classmethod
    def from_policy(cls, model: MiniGPT, pooling: str = "last",
                    reads: str = "both") -> "RewardModel":
        """A reward model that starts from a MiniGPT's weights, with a fresh head.

        Raises TypeError on another model, ValueError if it is to read phrases.
        """
        model = unwrapped(model)
        if not isinstance(model, MiniGPT):
            raise TypeError(f"a {type(model).__name__} cannot become a RewardModel, whose trunk is "
                            "a MiniGPT: start from RewardModel(), or, as a reward for PPO, pass a "
                            "function (prompts, responses) -> scores")
        if reads == "phrases":
            raise ValueError("a reward model of phrases starts from random weights, not from a "
                             "policy's: RewardModel(..., reads='phrases') makes one")
        reward = cls(**model.settings, pooling=pooling, reads=reads).to(model.device)
        copy_model_weights(model, reward.trunk)
        return reward

    @property
    def settings(self) -> dict[str, int | str]:
        return {**self.trunk.settings, "pooling": self.pooling, "reads": self.reads}

    @property
    def max_seq_len(self) -> int:
        return self.trunk.max_seq_len

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    def forward(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Rewards of rows `prompt SEP response EOS`, or `EOS response EOS`: (B, T) -> (B,).

        lengths (B,): the tokens of each row, if it is padded on the right.  By default every PAD is
        padding, on either side.  A row without a prompt is a response as a whole.
        Raises ValueError if a row is nothing but padding, or longer than max_seq_len.
        """
        if lengths is None:
            real = token_ids != PAD
        else:
            real = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]
        if not real.any(1).all():
            raise ValueError("token_ids has a row that is nothing but padding")
        if (longest := int(real.sum(1).max())) > self.max_seq_len:
            raise ValueError(f"token_ids has a row of {longest} tokens, but max_seq_len="
                             f"{self.max_seq_len}")
        first = real & (real.cumsum(1) == 1)
        prompt_end = ((token_ids == SEP) & real | (token_ids == EOS) & first).int()
        response = (prompt_end.cumsum(1) - prompt_end > 0) & real     # what follows the first end,
        response = response | ~response.any(1, keepdim=True)          # or all, if there is none
        segments = response.long().masked_fill(~real, -1)
        return self.rewards(Batch(token_ids, segments, torch.empty(0)))[:, 0]

    def rewards(self, batch: Batch) -> Tensor:
        """The reward of every response of a batch: (B, k) for k responses a row."""
        masks = batch.response_masks
        hidden = self.hidden_states(self.as_read(batch), self.scored_positions(batch))
        return self.pool(self.head_values(hidden), masks)

    def values(self, batch: Batch) -> Tensor:
        """As a value function: V of the state before each response token, 0 elsewhere, (B, T).

        It reads the prompt, too, also where the reward model itself was trained without (of phrases
        it sees no more than the last).
        The state before token t is read where t is predicted from.
        """
        hidden = self.hidden_states(batch, predictor_positions(batch.segments))
        return place(self.head_values(hidden), batch.response_mask)

    # --- shared by rewards and values ------------------------------------------------------------

    def hidden_states(self, batch: Batch, at: Positions | None = None) -> Tensor:
        """The trunk's output: (B, T, D), or (N, D) at N positions."""
        window = WINDOW if self.reads == "phrases" else None
        positions, visible = positions_and_visibility(batch.segments, window)
        return self.trunk.hidden_states(batch.token_ids, positions, visible, at=at)

    def as_read(self, batch: Batch) -> Batch:
        """The batch as this model was trained to read it."""
        return batch if self.reads == "both" else batch.without_prompts()

    def head_values(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...), not in bfloat16 under autocast, or near rewards would become ties."""
        with torch.autocast(hidden.device.type, enabled=False):
            weight = self.head.weight[0]
            return weighted_sum(hidden.to(weight.dtype), weight) + self.head.bias

    def scored_positions(self, batch: Batch) -> Positions:
        """The positions whose values make the rewards."""
        if self.pooling != "last":
            rows, columns = batch.response_mask.nonzero(as_tuple=True)
            return rows, columns
        last = batch.last_columns                                              # (B, k)
        rows = torch.arange(len(last), device=last.device).repeat_interleave(last.shape[1])
        return rows, last.flatten()

    def pool(self, values: Tensor, masks: Tensor) -> Tensor:
        """The values at those positions, (N,), -> one reward for each response, (B, k)."""
        if self.pooling == "last":
            return values.view(masks.shape[:2])
        sums = (place(values, masks.any(1))[:, None] * masks).sum(-1)
        lengths = masks.sum(-1)
        if self.pooling == "mean":
            return sums / lengths.clamp_min(1)                   # 0 for a response without a token
        bias = self.head.bias                                    # counts once, not for each token
        return bias + (sums - bias * lengths) / USUAL_LENGTH
