"""RewardModel: the same transformer with one number at the end instead of 256 logits."""

import torch
from torch import Tensor, nn

from minigpt.batching import Batch, predicting, prompt_and_own
from minigpt.logprobs import logps_of, per_token
from minigpt.model import MiniGPT, Places, copy_model_weights, take
from minigpt.tokenizer import SEP, VOCAB_SIZE

POOLINGS, READINGS = ("last", "mean"), ("both", "response")


class RewardModel(nn.Module):
    """A MiniGPT trunk with a scalar head.  Takes MiniGPT's arguments, and how a response's tokens make one reward.

    pooling "last": the head's value at the *last real token*, the EOS of a finished response: the only place where
    causal attention has seen all of it.  Read one token later, it would be the value of padding.
    pooling "mean": the mean over the response's tokens.  Where preferences hang on words and phrases, and rows are few,
    it learns from every token instead of one.
    reads "both": prompt and response.  reads "response": the response as if there were no prompt.  From few rows a model
    learns better what is well said than what answers the question, and less to learn is less to learn by heart.

    Raises ValueError on another pooling or reading.
    """

    READ_WEIGHTS = ("token_values", "rewards_of", "rewards_and_logps")  # the methods that do, called from outside

    def __init__(self, vocab_size: int = VOCAB_SIZE, embed_dim: int = 128, num_heads: int = 4, num_layers: int = 4,
                 max_seq_len: int = 128, ff_dim: int = 512, pooling: str = "last", reads: str = "both"):
        super().__init__()
        if pooling not in POOLINGS or reads not in READINGS:
            raise ValueError(f"pooling={pooling!r} must be one of {POOLINGS}, and reads={reads!r} one of {READINGS}")
        self.pooling, self.reads = pooling, reads
        self.trunk = MiniGPT(vocab_size, embed_dim, num_heads, num_layers, max_seq_len, ff_dim)
        self.head = nn.Linear(embed_dim, 1)
        # std 1 / sqrt(d + 1) and no bias: rewards of unit size at the start (Huang et al. 2024, "The N+ details")
        nn.init.normal_(self.head.weight, std=(embed_dim + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_policy(cls, model: MiniGPT, pooling: str = "last", reads: str = "both") -> "RewardModel":
        """A reward model that starts from a language model's weights, with a fresh head."""
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

    def token_values(self, token_ids: Tensor, positions: Tensor | None = None, at: Places | None = None) -> Tensor:
        """The head at every position, (B, T) -> (B, T), or only `at` N places, (N,): a value function reads these."""
        return self._values(self.trunk.hidden_states(token_ids, positions, at=at))

    def forward(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Rewards of rows padded on the right: (B, T), lengths (B,) -> (B,).  Without lengths no token is padding."""
        T = token_ids.shape[1]
        real = torch.arange(T, device=token_ids.device) < (T if lengths is None else lengths[:, None])
        separators = (token_ids == SEP).int()
        behind = (separators.cumsum(1) - separators > 0) & real    # the response is what stands behind the first SEP
        response = behind | ~behind.any(1, keepdim=True)            # or all, where there is none
        segments = response.long().masked_fill(~real, -1)
        return self.rewards_of(Batch(token_ids, segments, torch.empty(0)))[:, 0]

    def rewards_of(self, batch: Batch) -> Tensor:
        """The reward of every response of a batch: (B, k) for k responses a row."""
        members = batch.members
        hidden = self.trunk.hidden_states(batch.token_ids, *self._view(batch), at=self._pooled(members))
        return self._pool(self._values(hidden), members)

    def rewards_and_logps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`rewards_of`, and how well the trunk still predicts: the mean log-probability of each response's tokens, both
        (B, k)."""
        members, tokens = batch.members, batch.token_ids[batch.response_mask]
        hidden = self.trunk.hidden_states(batch.token_ids, *self._view(batch))
        logps = logps_of(self.trunk.logits(take(hidden, predicting(batch.segments))), tokens)
        return self._pool(self._values(take(hidden, self._pooled(members))), members), means_of(logps, members)

    def _view(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Positions and what is visible."""
        return prompt_and_own(batch.segments, prompt=self.reads == "both")

    def _values(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...); in float32 under autocast too, or near rewards would become ties."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.to(self.head.weight.dtype) @ self.head.weight[0] + self.head.bias

    def _pooled(self, members: Tensor) -> Places:
        """The places whose values make the rewards; members (B, k, T) is True on the tokens of each response."""
        if self.pooling == "mean":
            return members.any(1).nonzero(as_tuple=True)
        B, k, T = members.shape
        last = (members * torch.arange(T, device=members.device)).argmax(-1)
        return torch.arange(B, device=members.device).repeat_interleave(k), last.flatten()

    def _pool(self, values: Tensor, members: Tensor) -> Tensor:
        """The values of those places, (N,), -> one reward for each response, (B, k)."""
        return means_of(values, members) if self.pooling == "mean" else values.view(members.shape[:2])


def means_of(values: Tensor, members: Tensor) -> Tensor:
    """One value for each token of any response, in row order, (N,) -> their mean over each response, (B, k)."""
    return (per_token(values, members.any(1))[:, None] * members).sum(-1) / members.sum(-1)
