"""RewardModel: the same transformer with one number at the end instead of 256 logits."""

import torch
from torch import Tensor, nn

from minigpt.batching import Batch, prompt_and_own
from minigpt.model import MiniGPT, copy_model_weights
from minigpt.tokenizer import VOCAB_SIZE


class RewardModel(nn.Module):
    """A MiniGPT trunk with a scalar head.  Takes MiniGPT's arguments.

    The reward of a row is the head's value at its *last real token*, the EOS of a finished response: the only place
    where causal attention has seen all of it.  Read one token later, it would be the value of padding.
    """

    def __init__(self, vocab_size: int = VOCAB_SIZE, embed_dim: int = 128, num_heads: int = 4, num_layers: int = 4,
                 max_seq_len: int = 128, ff_dim: int = 512):
        super().__init__()
        self.trunk = MiniGPT(vocab_size, embed_dim, num_heads, num_layers, max_seq_len, ff_dim)
        self.head = nn.Linear(embed_dim, 1)
        # std 1 / sqrt(d + 1) and no bias: rewards of unit size at the start (Huang et al. 2024, "The N+ details")
        nn.init.normal_(self.head.weight, std=(embed_dim + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_policy(cls, model: MiniGPT) -> "RewardModel":
        """A reward model that starts from a language model's weights, with a fresh head."""
        reward = cls(**model.settings).to(model.device)
        copy_model_weights(model, reward.trunk)
        return reward

    @property
    def settings(self) -> dict[str, int]:
        return self.trunk.settings

    @property
    def max_seq_len(self) -> int:
        return self.trunk.max_seq_len

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    def token_values(self, token_ids: Tensor) -> Tensor:
        """The head at every position, (B, T) -> (B, T): a value function reads these, a reward only the last."""
        return self.head(self.trunk.hidden_states(token_ids)).squeeze(-1).float()

    def forward(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Rewards of rows padded on the right: (B, T), lengths (B,) -> (B,).  Without lengths no token is padding."""
        hidden = self.trunk.hidden_states(token_ids)
        ends = lengths - 1 if lengths is not None else torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
        last = hidden[torch.arange(len(hidden), device=hidden.device), ends]
        return self.head(last).squeeze(-1).float()

    def rewards_of(self, batch: Batch) -> Tensor:
        """The reward of every response of a batch: (B, k) for k responses a row."""
        hidden = self.trunk.hidden_states(batch.token_ids, *prompt_and_own(batch.segments))
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        ends = torch.stack([((batch.segments == j) * columns).argmax(1)
                            for j in range(1, int(batch.segments.max()) + 1)], 1)                  # (B, k)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        return self.head(hidden[rows, ends]).squeeze(-1).float()
