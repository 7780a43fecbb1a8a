"""One rollout: the policy answers a batch of prompts, and what the update needs to know is kept.

All per-token tensors are (B, T) and aligned to tokens: column t of `logps` is
log p(token t | before), column t of `values` the value of the state before token t.  Sampling is at
temperature 1, so that the distribution sampled from is the one that is scored (up to rounding:
sampling is in float32, even in a bfloat16 run); at another temperature every KL here would be that
of another policy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minigpt.batching import Batch, collate, length_step
from minigpt.examples import Example
from minigpt.kl import entropy, exact_kl, kl_k1
from minigpt.logprobs import logps_of, place, response_logits
from minigpt.lora import as_reference
from minigpt.protocol import Model
from minigpt.sampling import sample_ids
from minigpt.tokenizer import EOS
from minigpt.weights import device_of
from reward.combine import Reward, texts_of

Sampler = Callable[..., list[list[int]]]  # see minigpt.sampling.sample_ids
KLEstimator = Callable[[Tensor, Tensor], Tensor]  # (logps, ref_logps), each (B, T) -> (B, T)

# In one backward pass on a CPU, to save memory.  Responses are counted and not tokens, since with
# --shard all processes must make equally many passes, or they would wait for each other for ever.
RESPONSES_AT_ONCE = 16


@dataclass
class Rollout:
    """B prompts with k sampled responses each, as rows of T tokens; k is 1 except for groups."""

    batch: Batch        # prompts and responses
    logps: Tensor       # (B, T) of the policy that sampled them
    ref_logps: Tensor   # (B, T) of the reference
    token_kl: Tensor    # (B, T) exact KL of the next-token distributions
    entropy: Tensor     # 0-d    mean entropy of the next-token distributions
    scores: Tensor      # (B, k) of the reward, less the penalty for a missing EOS
    kl: Tensor          # (B, T) estimate of the KL at each token
    rewards: Tensor     # (B, T) the KL penalty on each token, and the score on the last
    finished: Tensor    # (B, k) bool, ended by EOS

    @property
    def mask(self) -> Tensor:
        """(B, T), True on response tokens."""
        return self.batch.response_mask

    @property
    def exact_kl(self) -> Tensor:
        """(B, k), token_kl summed over each response."""
        return self.batch.response_sums(self.token_kl)

    def texts(self) -> tuple[list[str], list[str]]:
        """The B k responses, and the prompt of each."""
        return texts_of(self.batch)


@dataclass
class RolloutMaker:
    """Makes rollouts: how responses are sampled, and who judges them.

    reference: None if it is the policy without its adapters (minigpt/lora.py).
    kl_estimator: (logps, ref_logps) -> the KL that each token pays for (minigpt/kl.py).
    sample: draws the responses, and is called as minigpt.sampling.sample_ids is.
    """

    reference: Model | None
    reward: Reward
    max_new_tokens: int
    missing_eos_penalty: float
    samples_per_prompt: int = 1
    kl_estimator: KLEstimator = kl_k1
    sample: Sampler = sample_ids

    @torch.no_grad()
    def __call__(self, policy: Model, prompts: Batch, kl_coeff: float,
                 generator: torch.Generator) -> Rollout:
        """Sample a response to every prompt, score it, and compare policy and reference."""
        batch = self.respond(policy, prompts, generator)
        mask, tokens = batch.response_mask, batch.token_ids[batch.response_mask]
        logits = response_logits(policy, batch)
        with as_reference(policy, self.reference) as reference:
            ref_logits = response_logits(reference, batch)
        logps = place(logps_of(logits, tokens), mask)                          # (B, T)
        ref_logps = place(logps_of(ref_logits, tokens), mask)
        finished = ends_with_eos(batch)                                        # (B, k)
        scores = self.reward.rewards(batch) - self.missing_eos_penalty * ~finished
        kl = self.kl_estimator(logps, ref_logps)
        return Rollout(batch=batch, logps=logps, ref_logps=ref_logps, scores=scores, kl=kl,
                       rewards=token_rewards(scores, kl, kl_coeff, batch.last_columns),
                       token_kl=place(exact_kl(logits, ref_logits), mask),
                       entropy=entropy(logits).mean(), finished=finished)

    def respond(self, policy: Model, prompts: Batch, generator: torch.Generator) -> Batch:
        """Prompts -> prompts and sampled responses."""
        k = self.samples_per_prompt
        rows = zip(prompts.token_ids, prompts.lengths, strict=True)
        prompt_ids = [ids[:length].tolist() for ids, length in rows]
        repeated = [ids for ids in prompt_ids for _ in range(k)]
        with torch.autocast(device_of(policy).type, enabled=False):  # casting would cost more
            sampled = self.sample(policy, repeated, self.max_new_tokens, generator=generator)
        responses = list(map(bytes, sampled))
        examples = [Example(bytes(ids), tuple(responses[i * k:(i + 1) * k]))
                    for i, ids in enumerate(prompt_ids)]
        longest = max(example.num_tokens for example in examples)
        return collate(examples, multiple_of=length_step(longest)).to(device_of(policy))


def ends_with_eos(batch: Batch) -> Tensor:
    """(B, k), whether each response ended by itself."""
    return batch.token_ids.gather(1, batch.last_columns) == EOS


def token_rewards(scores: Tensor, kl: Tensor, kl_coeff: float, last: Tensor) -> Tensor:
    """The reward of each token (Ouyang et al. 2022, eq. 2, written per token; Ziegler et al. 2019).

        r_t = - beta KL_t  +  [t is the last token] score

    beta is kl_coeff.  With KL_t = log pi/ref (k1) and gamma = 1, the return of a whole response is
    score - beta log(pi/ref), and its mean over responses is the objective E[score] - beta KL.

    Args: scores (B, k), kl (B, T), last (B, k), the column of each response's last token.
    Returns: (B, T).
    """
    return (-kl_coeff * kl).scatter_add(1, last, scores.to(kl.dtype))


@dataclass
class Experience:
    """What an update learns from; without a value model, values and returns are 0."""

    batch: Batch
    logps: Tensor       # (B, T) at the rollout
    ref_logps: Tensor   # (B, T)
    advantages: Tensor  # (B, T)
    values: Tensor      # (B, T) at the rollout
    returns: Tensor     # (B, T)
    weight: Tensor | float = 1.0

    @property
    def mask(self) -> Tensor:
        return self.batch.response_mask

    def minibatches(self, size: int, epochs: int, generator: torch.Generator
                    ) -> Iterator[list["Experience"]]:
        """Minibatches of shuffled rows, for several epochs, each as a list of microbatches.

        On a CPU a microbatch has few rows of similar length, which saves padding and memory; its
        weight is its share of the minibatch's tokens, so that the weighted losses sum to the mean.
        """
        for _ in range(epochs):
            for rows in torch.randperm(len(self.logps), generator=generator).split(size):
                yield self._parts(rows.to(self.logps.device))

    def _parts(self, rows: Tensor) -> list["Experience"]:
        tokens = self.mask[rows].sum()
        by_length = rows[self.batch.lengths[rows].argsort()]
        size = len(rows)
        if self.logps.device.type == "cpu":
            size = max(1, RESPONSES_AT_ONCE // int(self.batch.segments.max()))
        parts = [self._rows(part) for part in by_length.split(size)]
        return [replace(part, weight=part.mask.sum() / tokens) for part in parts]

    def _rows(self, rows: Tensor) -> "Experience":
        """These rows, without the columns that only longer ones have (to one of few lengths)."""
        longest = int(self.batch.lengths[rows].max())
        columns = slice(longest + -longest % length_step(longest))
        batch = Batch(self.batch.token_ids[rows, columns], self.batch.segments[rows, columns], rows)
        tensors = (self.logps, self.ref_logps, self.advantages, self.values, self.returns)
        return Experience(batch, *(tensor[rows, columns] for tensor in tensors))
