import pytest

from minigpt import encode, sequence_logps
from sft import evaluate_loss


def test_evaluated_loss_is_minus_the_log_probs_over_the_tokens(make_model, recited):
    model = make_model()
    logps = sequence_logps(model, [row["prompt"] for row in recited],
                           [row["response"] for row in recited])
    tokens = sum(len(encode(row["response"])) + 1 for row in recited)
    assert evaluate_loss(model, recited) == pytest.approx(-float(logps.sum()) / tokens, rel=1e-5)
