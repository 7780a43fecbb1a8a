"""A single string where a list of texts belongs is refused: its letters would each be a text."""

import pytest

from data.files import DataError
from dpo import dpo_train, evaluate_preference_accuracy, implicit_rewards
from minigpt import Response, generate, sequence_logps
from minigpt.evaluation import (
    before_and_after,
    distinct_n,
    evaluate_policy,
    kl_to_reference,
    sample_responses,
)
from minigpt.examples import tokenize_example, tokenize_examples
from ppo import ppo_training
from ppo.train import PPOConfig, prompt_batches
from reward import evaluate_reward_accuracy, score, train_reward_model
from reward.evaluate import reward_margins
from reward.start import center, train_centered
from reward.train import RewardConfig
from sft import evaluate_loss, sft_train
from sft.start import plain_text_rows

# The argument that is a string, and the call, given two models, a reward model and that argument.
CALLS = {
    "generate": ("prompts", lambda m, r, w, x: generate(m, x, 4)),
    "sequence_logps, prompts": ("prompts", lambda m, r, w, x: sequence_logps(m, x, ["a", "b"])),
    "sequence_logps, responses": ("responses", lambda m, r, w, x: sequence_logps(m, ["a", "b"], x)),
    "score, prompts": ("prompts", lambda m, r, w, x: score(w, x, ["a", "b"])),
    "score, responses": ("responses", lambda m, r, w, x: score(w, ["a", "b"], x)),
    "center": ("responses", lambda m, r, w, x: center(w, ["a", "b"], x)),
    "train_centered": ("prompts", lambda m, r, w, x: train_centered(m, [], x, RewardConfig(), 4)),
    "sample_responses": ("prompts", lambda m, r, w, x: sample_responses(m, x, 2, 4, seed=0)),
    "evaluate_policy": ("prompts", lambda m, r, w, x: evaluate_policy(m, r, x, 2, 4, seed=0)),
    "before_and_after": ("prompts", lambda m, r, w, x: before_and_after(m, r, x, 4)),
    "kl_to_reference": ("prompts", lambda m, r, w, x: kl_to_reference(
        m, r, x, [Response("a", [97], False)] * 2)),
    "distinct_n": ("texts", lambda m, r, w, x: distinct_n(x, 2)),
    "ppo_training": ("prompts", lambda m, r, w, x: ppo_training(m, r, w, x)),
    "ppo_training, plain_text": ("plain_text", lambda m, r, w, x: ppo_training(
        m, r, w, ["a"], plain_text=x)),
    "prompt_batches": ("prompts", lambda m, r, w, x: prompt_batches(x, 64, PPOConfig())),
    "plain_text_rows": ("texts", lambda m, r, w, x: plain_text_rows(x)),
    "tokenize_example": ("responses", lambda m, r, w, x: tokenize_example("p", x, 64)),
    "tokenize_examples": ("responses", lambda m, r, w, x: tokenize_examples([("p", x)], 64)),
}


@pytest.mark.parametrize("text", ["ab", "a", "", b"ab"])
@pytest.mark.parametrize(("name", "call"), CALLS.values(), ids=CALLS.keys())
def test_a_single_string_is_a_type_error_that_says_so(make_model, make_reward, name, call, text):
    models = make_model(1), make_model(2), make_reward()
    with pytest.raises(TypeError, match=rf"^{name} is a single string, but a list of texts is "
                                        rf"needed: {name}=\["):
        call(*models, text)
    assert not any(model.training for model in models)


@pytest.mark.parametrize("rows", ["ab", b"ab", ["ab"], [3], None, 7, []])
def test_rows_that_are_none_are_refused(make_model, make_reward, rows):
    model, reference, reward = make_model(1), make_model(2), make_reward()
    for use in (lambda: sft_train(model, rows), lambda: dpo_train(model, reference, rows),
                lambda: train_reward_model(reward, rows), lambda: evaluate_loss(model, rows),
                lambda: implicit_rewards(model, reference, rows),
                lambda: evaluate_preference_accuracy(model, reference, rows),
                lambda: reward_margins(reward, rows),
                lambda: evaluate_reward_accuracy(reward, rows)):
        with pytest.raises((DataError, TypeError)):
            use()
