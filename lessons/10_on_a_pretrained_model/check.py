"""What must hold of response_logps(logits, token_ids, prompt_lengths, lengths): (B,)."""

import math

import torch

from lessons.exercises import gradient, near, normal, shape_is

V, END = 12, 2
LOGITS = normal(2, 7, V)
IDS = torch.tensor([[3, 9, 1, 7, END, END, END],   # three of the prompt, two of the response
                    [8, 4, 11, 6, 10, 5, END]])    # one of the prompt, six of the response
PROMPTS, LENGTHS = torch.tensor([3, 1]), torch.tensor([5, 7])


def sums():
    return [sum(float(LOGITS[b, t - 1].double().log_softmax(0)[IDS[b, t]])
                for t in range(int(PROMPTS[b]), int(LENGTHS[b]))) for b in range(2)]


def shape(response_logps):
    return shape_is(response_logps(LOGITS, IDS, PROMPTS, LENGTHS), (2,),
                    "one sum for each row, since the loss compares responses")


def knows_nothing(response_logps):
    found = response_logps(torch.zeros(2, 7, V), IDS, PROMPTS, LENGTHS)
    counts = (-found / math.log(V)).tolist()
    if min(counts) < 0:
        return "a log-probability is not above 0, and yours is: the sign. (The loss comes later.)"
    if near(torch.tensor(counts), [1.0, 1.0]):
        return ("with equal logits each token costs log V, and yours costs that in all: it is a "
                "mean, and DPO needs the sum.")


def counts_the_right_tokens(response_logps):
    logits = LOGITS.clone().requires_grad_()
    slopes = gradient(response_logps(logits, IDS, PROMPTS, LENGTHS).sum(), logits)
    read = {tuple(place): int(slopes[tuple(place)].argmax())
            for place in slopes.abs().sum(-1).nonzero().tolist()}
    if all(int(IDS[place]) == token for place, token in read.items()):
        return ("column t of the logits is asked for token t, which it has just read. It predicts "
                "token t + 1.")
    counted = {(b, t + 1) for b, t in read}
    if (0, 4) not in counted and (0, 3) in counted:
        return ("the token that ends a response is left out where padding follows: both have the "
                "same id. Make the mask from the lengths.")
    if (0, 5) in counted:
        return "padding is counted: a response ends at `lengths`."
    if (0, 1) in counted:
        return "tokens of the prompt are counted: only the response belongs in the sum."
    if (0, 2) in counted:
        return ("the last token of the prompt is counted: the mask was shifted the other way, or "
                "not with the tokens.")
    if (0, 3) not in counted:
        return ("the first token of the response is left out. The last token of the prompt "
                "predicts it: where is its column?")


def as_the_formula(response_logps):
    found, wanted = response_logps(LOGITS, IDS, PROMPTS, LENGTHS), torch.tensor(sums())
    if not near(found, wanted):
        return (f"the right tokens, but the sums are {wanted[0]:.3f} and {wanted[1]:.3f}, and "
                f"yours {float(found[0]):.3f} and {float(found[1]):.3f}: is it the log softmax, "
                "over V, of the logits as they are?")


CHECKS = {"response_logps": [shape, knows_nothing, counts_the_right_tokens, as_the_formula]}
DONE = ("These sums, under policy and reference, are all that DPO asks of a model. The lesson's "
        "are in lessons/pretrained.py.")
