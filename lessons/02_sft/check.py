"""What must hold of sft_loss(logits (B, T, V), token_ids (B, T), response_mask (B, T)): 0-d."""

import math

import torch

from lessons.exercises import gradient, near, normal, shape_is

V = 16
LOGITS = normal(2, 7, V)
IDS = torch.tensor([[3, 9, 1, 12, 5, 0, 0],     # two of the prompt, a response of three, padding
                    [2, 8, 4, 11, 6, 10, 13]])  # one of the prompt, a response of six
MASK = torch.tensor([[0, 0, 1, 1, 1, 0, 0],
                     [0, 1, 1, 1, 1, 1, 1]]).bool()
SCORED = int(MASK.sum())


def costs():
    """The cost of each scored token, a list for each row."""
    return [[-float(LOGITS[b, t - 1].double().log_softmax(0)[IDS[b, t]]) for t in range(7)
             if MASK[b, t]] for b in range(2)]


def shape(sft_loss):
    return shape_is(sft_loss(LOGITS, IDS, MASK), (), "one mean over the tokens of the batch")


def knows_nothing(sft_loss):
    found = float(sft_loss(torch.zeros(2, 7, V), IDS, MASK))
    if found < 0:
        return (f"a loss is minus the log-probability, and yours is negative ({found:.4f}): the "
                "sign.")
    if near(found, SCORED * math.log(V)):
        return ("with equal logits each token costs log V, and so does their mean; yours is as "
                "many times as much as there are scored tokens: it is a sum, and the division is "
                "missing.")
    if near(found, SCORED * math.log(V) / IDS.numel()) or \
            near(found, SCORED * math.log(V) / (IDS.numel() - 2)):
        return ("with equal logits the mean is log V, and yours is less: it divides by all "
                "tokens, prompt and padding too. How many are scored?")
    if not near(found, math.log(V)):
        return (f"with equal logits every token costs log {V} = {math.log(V):.4f} nats, not "
                f"{found:.4f}.")


def asks_for_the_right_tokens(sft_loss):
    logits = LOGITS.clone().requires_grad_()
    slopes = gradient(sft_loss(logits, IDS, MASK), logits)
    asked = {(b, t): int(slopes[b, t].argmin())  # the one logit that each scored column pushes up
             for b, t in slopes.abs().sum(-1).nonzero().tolist()}
    places = {(b, t): (IDS[b] == token).nonzero().flatten().tolist()
              for (b, t), token in asked.items()}
    if all(t in where for (_, t), where in places.items()):
        return ("it asks column t of the logits for token t, which that column has just read. "
                "Column t predicts token t + 1: shift one of the two.")
    if all(t + 2 in where for (_, t), where in places.items()):
        return "it asks column t of the logits for token t + 2: the shift by one was made twice."
    scored = {(b, t + 1) for b, t in asked}
    if (0, 2) not in scored:
        return ("the first token of the response is not scored, and one behind its EOS is: the "
                "mask is one late. Logits and labels were shifted, and the mask must go with the "
                "labels.")
    if (0, 4) not in scored:
        return ("the EOS of the response is not scored, so the model would never learn to stop: "
                "the mask ends one token early.")
    if any(not MASK[b, t] for b, t in scored if t < 7):
        return ("the shift is right, but tokens outside the response are scored, of the prompt or "
                "of the padding: where does the mask come in?")


def one_mean(sft_loss):
    rows = [sum(row) / len(row) for row in costs()]
    if near(sft_loss(LOGITS, IDS, MASK), sum(rows) / 2):
        return ("the right tokens, but a mean over rows of means over tokens: a token of a short "
                "answer counts more than one of a long answer. One sum over all tokens, divided "
                "once.")


def as_the_formula(sft_loss):
    found, wanted = sft_loss(LOGITS, IDS, MASK), sum(map(sum, costs())) / SCORED
    if not near(found, wanted):
        return (f"the right tokens are asked for, but their mean cost is {wanted:.4f} nats and "
                f"yours {float(found):.4f}: is it log softmax that you read at the token?")


CHECKS = {"sft_loss": [shape, knows_nothing, asks_for_the_right_tokens, one_mean, as_the_formula]}
DONE = ("It scores the response and its end, and nothing else, which is the whole of SFT: the "
        "library's is in sft/loss.py, its shift in minigpt/masks.py. Next: lesson 3, where an "
        "answer gets a score.")
