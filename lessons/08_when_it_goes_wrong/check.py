"""What must hold of kl_k1 and kl_k3: log-probabilities of sampled tokens, twice -> estimates."""

import torch

from lessons.exercises import near, normal, shape_is

V = 12
PI, REF = normal(V).log_softmax(0), normal(V, seed=1).log_softmax(0)  # of every token there is
EXACT = float((PI.exp() * (PI - REF)).sum())


def mean(estimate):
    """Its mean over tokens drawn from pi, by enumeration."""
    return float((PI.exp() * estimate(PI, REF)).sum())


def shape(kl):
    return shape_is(kl(PI.view(3, 4), REF.view(3, 4)), (3, 4), "an estimate for each token")


def zero_at_the_reference(kl):
    found = float(kl(PI, PI)[0])
    if abs(found) > 1e-6:
        return f"where policy and reference agree the estimate is 0, and yours is {found:.4f}."


def sign(kl):
    if mean(kl) < 0:
        return ("its mean over samples of pi is negative, and a KL never is: the sign. Equal "
                "policies have a KL of 0 with either sign, but a penalty with this one pays for "
                "drift.")


def one_token_may_be_negative(kl):
    if not (kl(PI, REF)[PI < REF] < 0).all():
        return ("a token that the reference gives more probability has a negative k1, and yours "
                "has not: take no size and no square, or its mean is no KL any more.")


def not_weighed_again(kl):
    if near(kl(PI, REF), PI.exp() * (PI - REF)):
        return ("each term is multiplied by pi: that is for a sum over all tokens. A sampled "
                "token comes as often as pi says, so it would be counted twice.")


def as_k1(kl):
    if not near(kl(PI, REF), PI - REF):
        return (f"its mean under pi is {mean(kl):.4f}, and the KL is {EXACT:.4f}: k1 is the "
                "difference of the log-probabilities, in nats.")


def one_is_taken_off(kl):
    if near(kl(PI, PI), torch.ones(V)):
        return ("where policy and reference agree it is 1, and must be 0: e^0 is 1, and the -1 is "
                "missing.")
    return zero_at_the_reference(kl)


def never_negative(kl):
    if (kl(PI, REF) < 0).any():
        return ("it is negative for some tokens, and k3 never is, since e^u is at least 1 + u: is "
                "the u that you subtract the u in the exponent?")


def right_ratio(kl):
    u = REF - PI
    if near(kl(PI, REF), (-u).expm1() + u):
        return (f"never negative, but its mean under pi is {mean(kl):.4f} and the KL {EXACT:.4f}: "
                "the ratio is upside down. u is log ref/pi for tokens drawn from pi.")
    if near(kl(PI, REF), u.square() / 2):
        return ("this is k2, u^2 / 2, what k3 becomes for small u: its mean under pi is "
                f"{mean(kl):.4f}, and the KL {EXACT:.4f}.")


def unbiased(kl):
    u = REF - PI
    if not near(kl(PI, REF), u.exp() - 1 - u):
        return (f"its mean under pi is {mean(kl):.4f}, and the KL {EXACT:.4f}: e^u - 1 has the "
                "mean 0, so what is left must be k1.")


def close_policies(kl):
    found = float(kl(torch.tensor([-2.0]), torch.tensor([-2.0 + 2**-12])))
    if abs(found - 2**-25) > 2**-30:
        return (f"right, but of two log-probabilities 0.00024 apart it makes {found:.1e} in place "
                "of 3.0e-08: e^u - 1 loses its digits near 0. Torch has a function for it.")


CHECKS = {"kl_k1": [shape, zero_at_the_reference, not_weighed_again, sign,
                    one_token_may_be_negative, as_k1],
          "kl_k3": [shape, one_is_taken_off, never_negative, right_ratio, unbiased, close_policies]}
DONE = ("Both are in minigpt/kl.py, and a run that logs k1 beside the exact KL can no longer have "
        "the sign wrong unseen. Next: lesson 9, where every KL is exact.")
