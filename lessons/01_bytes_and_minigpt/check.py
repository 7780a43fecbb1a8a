"""What must hold of causal_attention(q, k, v): (B, T, K) each -> (B, T, K)."""

import math

import torch

from lessons.exercises import near, normal, shape_is

B, T, K = 2, 5, 4
Q, KEYS, V = (normal(B, T, K, seed=seed) for seed in range(3))


def slow(q, k, v, scale):
    """The formula, one byte after the other."""
    answers = torch.zeros(B, T, K)
    for b in range(B):
        for t in range(T):
            weights = [math.exp(float(q[b, t] @ k[b, s]) * scale) for s in range(t + 1)]
            for s, weight in enumerate(weights):
                answers[b, t] += weight / sum(weights) * v[b, s]
    return answers


def shape(attention):
    return shape_is(attention(Q, KEYS, V), (B, T, K), "a mean of values for each byte")


def sees_itself(attention):
    if attention(Q, KEYS, V).isnan().any():
        return ("some answers are nan: the first byte sees nothing at all, and its softmax "
                "divides 0 by 0. The sum runs up to s = t, so every byte sees itself.")


def weights_add_up_to_one(attention):
    total = attention(Q, KEYS, torch.ones(B, T, K))[..., 0]  # the sum of each byte's weights
    if not near(total[:, -1], torch.ones(B)):
        return ("the weights of the last byte, which sees all others, do not add up to 1: is the "
                "softmax over the keys, the last axis of the scores, or over the queries?")
    if not near(total, torch.ones(B, T)):
        return ("only the last byte's weights add up to 1: was the mask put on after the softmax? "
                "The hidden bytes then keep their share of the sum.")


def sees_no_later_byte(attention):
    keys, values = KEYS.clone(), V.clone()
    keys[:, -1] += 1
    values[:, -1] += 1
    change = (attention(Q, keys, values) - attention(Q, KEYS, V)).abs()
    moved = change.amax((0, 2)) > 1e-6  # (T,)
    if moved[0]:
        return ("the last byte was changed and the first answer moved: every byte sees the whole "
                "row. What must not be seen needs a score of minus infinity before the softmax; a "
                "score of 0 still has the weight exp(0) = 1.")
    if moved[:-1].any():
        return ("the last byte was changed and an answer before it moved: each byte sees one byte "
                "too many. Is the diagonal of the mask off by one?")


def scaled(attention):
    found = attention(Q, KEYS, V)
    if near(found, slow(Q, KEYS, V, 1)):
        return ("causal, and every row of weights adds up to 1, but the scores are too large: the "
                "division by sqrt(K) is missing.")
    if near(found, slow(Q, KEYS, V, 1 / K)):
        return "nearly: the scores are divided by K, and the formula divides by its square root."


def as_the_formula(attention):
    found = attention(Q, KEYS, V)
    if near(found, slow(KEYS, Q, V, K**-0.5)):
        return ("causal, but it is the key of byte t that asks and the queries that answer: row t "
                "of the scores belongs to q_t.")
    if not near(found, slow(Q, KEYS, V, K**-0.5)):
        return ("causal, and its weights add up to 1, but on random numbers it differs from a "
                "slow loop over the formula: compare the score q_t . k_s, then the sum over "
                "values.")


CHECKS = {"causal_attention": [shape, sees_itself, weights_add_up_to_one, sees_no_later_byte,
                               scaled, as_the_formula]}
DONE = ("It is all of MiniGPT that moves anything from one byte to another: the library's is "
        "`attention` in minigpt/model.py. Next: lesson 2, where the bytes that count are chosen.")
