"""PPO-ptx: beside PPO's loss the policy imitates plain text (Ouyang et al. 2022, arXiv:2203.02155,
eq. 2).

    L = L_PPO + ptx_coeff E[ - log pi(x_t | x_<t) ]      x_t: the tokens of the texts

The reward speaks of answers to the prompts of the rollouts.  What the policy writes elsewhere each
step moves at random, and it forgets some of what the base model had read (figures in
lessons/notes/family.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.examples import sft_examples
from minigpt import distributed
from minigpt.batching import Batches
from minigpt.examples import Example
from minigpt.logprobs import token_logps
from minigpt.protocol import Model
from minigpt.seeding import seeded
from minigpt.weights import device_of
from sft.loss import sft_loss
from sft.train import plain_text_rows

Result = tuple[Tensor, dict[str, Tensor]]
RESPONSES_TO_A_TEXT = 4  # as many in a minibatch for each row of text


class PlainText:
    """Texts, of which each optimizer step imitates a few, drawn at random.

    Each process draws its own, and the draws of an episode depend on (seed, episode) alone.
    """

    def __init__(self, texts: Sequence[str], max_seq_len: int, minibatch_size: int, seed: int):
        rows = max(1, minibatch_size // RESPONSES_TO_A_TEXT)
        self.batches = Batches(sft_examples(plain_text_rows(texts), max_seq_len), rows, seed)
        self.begin_episode(0)

    @property
    def examples(self) -> Sequence[Example]:
        return self.batches.examples

    def begin_episode(self, episode: int) -> None:
        self._generator = seeded(self.batches.seed, "plain text", episode, distributed.rank())

    def loss(self, policy: Model) -> Result:
        """SFT's loss on the next texts, in nats per token (0-d, differentiable), and metrics."""
        drawn = torch.randint(len(self.examples), (self.batches.batch_size,),
                              generator=self._generator)
        batch = self.batches.collate(drawn.tolist()).to(device_of(policy))
        loss, _ = sft_loss(token_logps(policy, batch), batch.response_mask)
        return loss, {"loss/ptx_avg": loss.detach(), "val/ptx_tokens": batch.lengths.sum()}
