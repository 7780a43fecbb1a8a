"""One rollout: the policy answers a batch of prompts, the reward model scores, the reference holds.

All per-token tensors are (B, T), aligned to tokens: column t of `logps` is log p(token t | before), column t of
`values` the value of the state before token t.  Sampling is at temperature 1, so the distribution that was sampled
is the one that is scored: with another temperature every KL here would be of the wrong policy.  (To rounding: in a run in
bfloat16 on a CPU decoding is in float32 all the same.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.batching import Batch, Example, collate, predicting, prompt_and_own
from minigpt.logprobs import entropy, exact_kl, kl_k1, logps_of, per_token, response_logits
from minigpt.model import MiniGPT
from minigpt.sampling import sample_ids
from minigpt.tokenizer import EOS, decode
from reward.model import RewardModel


@dataclass
class Rollout:
    """B sampled rows of T tokens, prompts included, and all that the update needs to know of them."""

    token_ids: Tensor      # (B, T) long
    segments: Tensor       # (B, T) 0 on the prompt, 1 on the response, EOS included, -1 on padding
    logps: Tensor          # (B, T) of the policy that sampled them
    values: Tensor         # (B, T)
    rewards: Tensor        # (B, T) what GAE sees: the KL penalty on each token, and the score on the last
    scores: Tensor         # (B,)   reward model's score, less the penalty for a missing EOS
    kl: Tensor             # (B,)   sampled: sum of log pi/ref over the response
    exact_kl: Tensor       # (B,)   sum over the response of the exact KL of the next-token distributions
    entropy: Tensor        # 0-d    mean entropy of the next-token distributions
    finished: Tensor       # (B,)   bool, ended by EOS

    @property
    def mask(self) -> Tensor:
        """(B, T), True on response tokens."""
        return self.segments > 0

    @property
    def lengths(self) -> Tensor:
        """(B,), the real tokens of each row."""
        return (self.segments >= 0).sum(1)

    def rows(self, numbers: Tensor) -> "Rollout":
        """The same, of these rows only, and of no more columns than the longest of them has (to a multiple of 8)."""
        columns = slice(-(-int(self.lengths[numbers].max()) // 8) * 8)
        return Rollout(**{name: value[(numbers, columns)[:value.dim()]] for name, value in vars(self).items()})

    def texts(self) -> tuple[list[str], list[str]]:
        """Prompts and responses."""
        prompts, responses = ([decode(ids[where].tolist()) for ids, where in zip(self.token_ids, places, strict=True)]
                              for places in (self.segments == 0, self.mask))
        return prompts, responses


def token_values(value_model: RewardModel, token_ids: Tensor, segments: Tensor) -> Tensor:
    """V of the state before each response token, 0 elsewhere: (B, T), differentiable.

    The state before token t is read where t is predicted from: where token t - 1 stands.
    """
    positions, _ = prompt_and_own(segments)
    return per_token(value_model.token_values(token_ids, positions, at=predicting(segments)), segments > 0)


@torch.no_grad()
def sample_rollout(policy: MiniGPT, reference: MiniGPT, reward: RewardModel, value_model: RewardModel, prompts: Batch,
                   max_new_tokens: int, kl_coeff: float, missing_eos_penalty: float,
                   generator: torch.Generator) -> Rollout:
    """Sample a response to every prompt and score it.

        r_t = - beta (log pi(a_t|s_t) - log ref(a_t|s_t))  +  [t is the last token] score(prompt, response)

    (Ouyang et al. 2022, eq. 2, written per token; Ziegler et al. 2019.)  Its sum over a response is the objective's
    integrand, so with gamma = 1 the return of a response is its score less beta times its KL.
    """
    prompt_ids = [ids[:n].tolist() for ids, n in zip(prompts.token_ids, prompts.lengths, strict=True)]
    with torch.autocast("cpu", enabled=False):  # one token at a time multiplies too little to pay for casting the weights
        responses = sample_ids(policy, prompt_ids, max_new_tokens, generator=generator)
    batch = collate([Example(bytes(p), (bytes(r),)) for p, r in zip(prompt_ids, responses, strict=True)]).to(policy.device)
    token_ids, segments, mask = batch.token_ids, batch.segments, batch.response_mask

    logits, ref_logits = (response_logits(model, token_ids, segments) for model in (policy, reference))
    logps, ref_logps = (per_token(logps_of(each, token_ids[mask]), mask) for each in (logits, ref_logits))
    exact = per_token(exact_kl(logits, ref_logits), mask)

    last = batch.lengths - 1
    every = torch.arange(len(last), device=last.device)
    finished = token_ids[every, last] == EOS
    scores = reward(token_ids, batch.lengths) - missing_eos_penalty * ~finished
    kl_per_token = kl_k1(logps, ref_logps)
    rewards = -kl_coeff * kl_per_token
    rewards[every, last] += scores
    return Rollout(token_ids, segments, logps, token_values(value_model, token_ids, segments), rewards, scores,
                   kl_per_token.sum(1), exact.sum(1), entropy(logits).mean(), finished)
