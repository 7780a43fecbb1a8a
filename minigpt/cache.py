"""The key-value cache, with which generating a token costs one column instead of all of them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from minigpt.model import MiniGPT


class KeyValueCache:
    """Keys and values of the columns read so far.

    All rows of a batch are read column by column, whatever their lengths; which columns a row may
    see is up to the caller of `MiniGPT.hidden_states`.
    """

    def __init__(self, model: "MiniGPT", batch_size: int, columns: int):
        layers, heads = model.settings["num_layers"], model.settings["num_heads"]
        shape = (layers, 2, batch_size, heads, columns, model.settings["embed_dim"] // heads)
        self.memory = torch.empty(shape, device=model.device)
        self.length = 0  # columns read

    def append(self, layer: int, keys_and_values: Tensor) -> Tensor:
        """Store those of T new columns, (2, B, H, T, K); return those of all, (2, B, H, S, K)."""
        if self.memory.dtype != keys_and_values.dtype:  # under autocast the projections decide
            self.memory = self.memory.to(keys_and_values.dtype)
        end = self.length + keys_and_values.shape[3]
        self.memory[layer, :, :, :, self.length:end] = keys_and_values
        return self.memory[layer, :, :, :, :end]

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these rows and drop the others, which have finished."""
        self.memory = self.memory[:, :, rows]
