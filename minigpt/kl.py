"""How far apart two policies are: KL(pi || ref) = E_{x ~ pi}[ log pi(x) / ref(x) ], in nats.

Three estimators from one sample x ~ pi (Schulman 2020, "Approximating KL divergence").  The sample
must come from pi, and the sign matters: with it flipped, a penalty rewards drift.
"""

from torch import Tensor


def kl_k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """log pi(x)/ref(x).  Unbiased; a single value may be negative."""
    return logps - ref_logps


def kl_k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """(log pi(x)/ref(x))^2 / 2.  Never negative, biased, low variance while the two are close."""
    return (logps - ref_logps).square() / 2


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """ref/pi - 1 - log(ref/pi).  Unbiased and never negative."""
    log_ratio = ref_logps - logps
    return log_ratio.expm1() - log_ratio  # exp() - 1 would cancel near 0


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL between two next-token distributions, summed over the vocabulary: (..., V) -> (...)."""
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logps.exp() * (logps - ref_logps)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """-sum p log p over the vocabulary: (..., V) -> (...), in nats."""
    logps = logits.log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)
