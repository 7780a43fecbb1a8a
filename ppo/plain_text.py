"""PPO-ptx: beside PPO's loss the policy imitates plain text (Ouyang et al. 2022, arXiv:2203.02155,
eq. 2).

    L = L_PPO + ptx_coeff E[ - log pi(x_t | x_<t) ]      x_t: the tokens of the texts

The reward speaks of answers to the prompts of the rollouts alone.  Each step also moves, at random,
what the policy writes elsewhere; going on with what the base model read holds that in place
(figures in lessons/notes/family.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.examples import plain_text_rows, sft_examples
from minigpt import distributed
from minigpt.batching import Batches
from minigpt.logprobs import token_logps
from minigpt.metrics import masked_mean
from minigpt.optimizer import Optimizer
from minigpt.protocol import Model
from minigpt.seeding import seeded

PTX_COEFF = 1.0  # by default, if there is any text
RESPONSES_TO_A_TEXT = 4  # a minibatch of 4 n responses comes with n texts ...
MOST_TEXTS = 16  # ... but no more than this, which go through the model at once


class PlainText:
    """Texts, of which each optimizer step imitates a few, drawn at random.

    Each process draws its own, and the draws of an episode depend on (seed, episode) alone.
    """

    def __init__(self, texts: Sequence[str], max_seq_len: int, minibatch_size: int, seed: int,
                 coeff: float | None):
        self.examples = sft_examples(plain_text_rows(texts), max_seq_len)
        rows = min(max(1, minibatch_size // RESPONSES_TO_A_TEXT), MOST_TEXTS)
        self.batches = Batches(self.examples, rows, seed)
        self.coeff = PTX_COEFF if coeff is None else coeff
        self.begin_episode(0)

    def begin_episode(self, episode: int) -> None:
        self._generator = seeded(self.batches.seed, "plain text", episode, distributed.rank())

    def backward(self, policy: Model, optimizer: Optimizer) -> dict[str, Tensor]:
        """Add the gradient of the next texts to the policy's; returns metrics."""
        drawn = torch.randint(len(self.examples), (self.batches.batch_size,),
                              generator=self._generator)
        batch = self.batches.collate(drawn.tolist()).to(optimizer.device)
        with optimizer.precision():
            loss = -masked_mean(token_logps(policy, batch), batch.response_mask)  # nats per token
        optimizer.backward(self.coeff * loss)
        return {"loss/ptx_avg": loss.detach(), "val/ptx_tokens": batch.lengths.sum()}
