"""Log-probabilities of responses, in nats, and how far apart two policies are (KL divergence).

Row t of the logits predicts token t + 1: every shift by one in this library happens in
`minigpt.batching.predicted_from`, and nowhere else.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.batching import Batch, Batches, Text, predicting, prompt_and_own, score_examples, tokenize_example
from minigpt.model import MiniGPT


def response_logits(model: MiniGPT, token_ids: Tensor, segments: Tensor) -> Tensor:
    """Logits (N, V) that predict the N response tokens, in row order; no others are computed.

    segments (B, T) as in `minigpt.batching`.
    """
    return model.logits(model.hidden_states(token_ids, *prompt_and_own(segments), at=predicting(segments)))


def token_logps(model: MiniGPT, token_ids: Tensor, segments: Tensor) -> Tensor:
    """log p(token t | tokens before t) on response tokens, 0 elsewhere: (B, T), differentiable."""
    return per_token(logps_of(response_logits(model, token_ids, segments), token_ids[segments > 0]), segments > 0)


def logps_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[token]: (N, V), (N,) -> (N,)."""
    return -F.cross_entropy(logits, tokens, reduction="none")


def per_token(values: Tensor, response_mask: Tensor) -> Tensor:
    """One value for each response token, in row order, put where the token stands, 0 elsewhere: (N,) -> (B, T)."""
    return torch.zeros(response_mask.shape, dtype=values.dtype, device=values.device).masked_scatter(response_mask, values)


def response_logps(model: MiniGPT, batch: Batch) -> Tensor:
    """Summed log-probability of each response, EOS included: (B, k) for k responses a row."""
    logps = token_logps(model, batch.token_ids, batch.segments)
    return (logps[:, None] * batch.members).sum(-1)


def sequence_logps(model: MiniGPT, prompts: Sequence[str], responses: Sequence[Text], batch_size: int = 64) -> Tensor:
    """Summed log-probability of each response given its prompt, EOS included, in nats: (B,).

    A response is a text, or ids as `generate` returned them.  Raises ValueError if the two lists differ in length,
    if a pair does not fit into max_seq_len (a sum over half a response would be a wrong answer), or if it is empty.
    """
    examples = [tokenize_example(prompt, [response], model.max_seq_len)
                for prompt, response in zip(prompts, responses, strict=True)]
    for number, example in enumerate(examples):
        if example.is_cut:
            raise ValueError(f"row {number}: prompt and response do not fit into max_seq_len={model.max_seq_len}")
    if not examples:
        raise ValueError("prompts is empty: there is nothing to score")
    return logps_of_examples(model, Batches(examples, batch_size))[:, 0]


def logps_of_examples(model: MiniGPT, batches: Batches) -> Tensor:
    """`response_logps` of every example, without a gradient: (N, k), k responses an example."""
    return score_examples(lambda batch: response_logps(model, batch), batches, model.device)


# --- Kullback-Leibler divergence KL(pi || ref) = E_{x ~ pi}[ log pi(x) / ref(x) ] --------------------------------
# Three estimators from one sample x ~ pi (Schulman 2020, "Approximating KL divergence").  The sample must come from
# pi: with the sign turned round, a penalty rewards drift.


def kl_k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """log pi(x)/ref(x).  Unbiased; a single value may be negative."""
    return logps - ref_logps


def kl_k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """(log pi(x)/ref(x))^2 / 2.  Never negative, biased, little variance while the two are close."""
    return (logps - ref_logps).square() / 2


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """ref/pi - 1 - log(ref/pi).  Unbiased and never negative."""
    log_ratio = ref_logps - logps
    return log_ratio.exp() - 1 - log_ratio


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL between two next-token distributions, summed over the vocabulary: (..., V) -> (...)."""
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logps.exp() * (logps - ref_logps)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """-sum p log p over the vocabulary: (..., V) -> (...), in nats."""
    logps = logits.log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)
