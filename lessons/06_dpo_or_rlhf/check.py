"""What must hold of token_rewards(scores (B,), logps, ref_logps, mask (B, T), beta): (B, T)."""

import torch

from lessons.exercises import near, normal, shape_is

MASK = torch.tensor([[0, 1, 1, 1, 0, 0],
                     [1, 1, 1, 1, 1, 0],
                     [0, 0, 1, 1, 1, 1]]).bool()
B, T = MASK.shape
ROWS, LAST = torch.arange(B), torch.tensor([3, 4, 5])
SCORES = torch.tensor([2.0, -1.0, 0.5])
LOGPS, REF = (-normal(B, T, seed=seed).abs() for seed in (0, 1))


def shape(token_rewards):
    return shape_is(token_rewards(SCORES, LOGPS, REF, MASK, 0.1), (B, T), "a reward for each token")


def score_on_the_last_token(token_rewards):
    found = token_rewards(SCORES, REF, REF, MASK, 0.1)
    if near(found[:, -1], SCORES):
        return ("at policy == reference only the score is paid, and you pay it in the last "
                "column, where most rows have padding: the last token of each answer is the last "
                "True of its mask.")
    if near(found[:2][ROWS[:2], LAST[:2] + 1], SCORES[:2]):
        return ("the score is paid one token late, on the first padding behind the answer, which "
                "is masked away afterwards.")
    if near(found, MASK * SCORES[:, None]):
        return ("the score is paid on every token, so an answer is worth its score times its "
                "length: only the last token gets it.")
    if near(found[ROWS, LAST], 0.1 * SCORES) or near(found[ROWS, LAST], -0.1 * SCORES):
        return ("the score is multiplied by beta: beta is the price of KL, and the score counts "
                "in full.")
    wanted = torch.zeros(B, T)
    wanted[ROWS, LAST] = SCORES
    if not near(found, wanted):
        return ("at policy == reference the last token of each answer gets its score and all "
                "others 0, and yours do not: is its column found from the mask, the prompt "
                "included?")


def padding_pays_nothing(token_rewards):
    if token_rewards(SCORES, LOGPS, REF, MASK, 0.1)[~MASK].any():
        return ("the score is where it belongs, but prompt and padding pay a price of KL too: "
                "nobody sampled these tokens.")


def drift_costs(token_rewards):
    found = token_rewards(SCORES, REF + 1, REF, MASK, 0.5)
    if (found[0, 1:3] > 0).all():
        return ("a token that is likelier than under the reference is paid for it: with this sign "
                "the penalty rewards drift, and the policy will go as far as it can.")
    if near(found[:, 2], torch.zeros(B)) and not near(found[ROWS, LAST], SCORES - 0.5):
        return ("the whole price stands on the last token. The sum is the same, but each token "
                "should pay for its own log-ratio, so that it still shows which one was expensive.")
    if near(found[ROWS, LAST], SCORES):
        return ("the last token gets the score and pays no KL: the score is added to its price, "
                "and does not replace it.")
    if not near(found[0, 1:3], torch.tensor([-0.5, -0.5])):
        return ("a token one nat likelier than under the reference pays beta = 0.5, and yours "
                f"gets {float(found[0, 1]):.4f}.")


def unlikely_tokens_earn(token_rewards):
    if not near(token_rewards(SCORES, REF - 1, REF, MASK, 0.5)[0, 1:3], torch.tensor([0.5, 0.5])):
        return ("a token less likely than under the reference has a negative log-ratio and earns "
                "beta times it; yours does not. The price is the plain log-ratio, not its absolute "
                "value or its square: only its mean is a KL.")


def as_the_formula(token_rewards):
    wanted = torch.zeros(B, T)
    for b in range(B):
        for t in MASK[b].nonzero().flatten().tolist():
            score = SCORES[b] if t == LAST[b] else 0.0
            wanted[b, t] = score - 0.3 * (LOGPS[b, t] - REF[b, t])
    if not near(token_rewards(SCORES, LOGPS, REF, MASK, 0.3), wanted):
        return ("right where every token moved by a nat, but not on random log-probabilities: is "
                "each token's own log-ratio multiplied by beta, and by nothing else?")


CHECKS = {"token_rewards": [shape, score_on_the_last_token, padding_pays_nothing, drift_costs,
                            unlikely_tokens_earn, as_the_formula]}
DONE = ("It is the objective that DPO solves on paper and PPO climbs, dealt out to tokens: the "
        "library's is in ppo/rollout.py. Next: lesson 7, where the score is climbed too far.")
