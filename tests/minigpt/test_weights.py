import copy

import pytest
import torch
from torch import nn

from dpo import dpo_train, evaluate_preference_accuracy
from minigpt import MiniGPT, generate
from minigpt.evaluation import evaluate_policy
from minigpt.logprobs import sequence_logps
from minigpt.weights import (
    check_reference,
    copy_model_weights,
    first_not_finite,
    plain_names,
    unwrapped,
)
from ppo import ppo_training
from reward import RewardModel, evaluate_reward_accuracy, score, train_reward_model
from sft import sft_train
from sft.evaluate import evaluate_loss


def test_copy_is_equal_and_deep(make_model, weights_equal, weights_of):
    source, target = make_model(1), make_model(2)
    kept = weights_of(source)
    assert copy_model_weights(source, target) is target
    assert weights_equal(target, source)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1.0)
    assert weights_equal(source, kept)
    assert not weights_equal(target, source)


@pytest.mark.parametrize(("settings", "weight"), [
    ({"ff_dim": 128}, "ff_"), ({"max_seq_len": 32}, "position_embedding.weight"),
    ({"num_layers": 3}, "blocks.2"), ({"vocab_size": 300}, "token_embedding.weight"),
    ({"num_layers": 1}, "blocks.1")])
def test_copy_between_mismatched_models_names_the_weight_and_changes_nothing(
        make_model, weights_equal, weights_of, settings, weight):
    source, target = make_model(1), make_model(2, **settings)
    kept = weights_of(target)
    with pytest.raises(ValueError, match=weight):
        copy_model_weights(source, target)
    assert weights_equal(target, kept)


def test_copy_of_a_language_model_into_a_reward_model_raises(make_model, small):
    with pytest.raises(ValueError, match=r"only (source|target) has"):
        copy_model_weights(make_model(), RewardModel(**small))


def test_reference_must_be_another_object_of_the_same_shape(make_model, copy_of):
    model = make_model()
    check_reference(model, copy_of(model))
    with pytest.raises(ValueError, match="same object"):
        check_reference(model, model)
    with pytest.raises(ValueError, match=r"differ in shape.*'ff_dim': 64.*'ff_dim': 128"):
        check_reference(model, make_model(ff_dim=128))


# --- wrapped models -------------------------------------------------------------------------------


class Compiled(nn.Module):
    """What torch.compile makes of a model, on a machine without a compiler."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._orig_mod, name)


WRAPPERS = {"compiled": torch.compile, "compiled by hand": Compiled, "parallel": nn.DataParallel,
            "both": lambda model: nn.DataParallel(torch.compile(model))}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


@wrappers
def test_a_wrapped_model_is_unwrapped_and_its_weights_carry_their_plain_names(make_model,
                                                                              make_reward, wrap):
    for model in (make_model(), make_reward()):
        assert unwrapped(wrap(model)) is model is unwrapped(model)
        assert list(wrap(model).state_dict()) != list(model.state_dict())
        assert list(plain_names(wrap(model).state_dict())) == list(model.state_dict())


def test_a_compiled_part_of_a_model_carries_its_plain_names_too(make_model):
    model, names = make_model(), list(make_model().state_dict())
    model.blocks[1] = Compiled(model.blocks[1])
    assert list(model.state_dict()) != names == list(plain_names(model.state_dict()))


@wrappers
def test_weights_are_copied_between_wrapped_and_plain_models(make_model, weights_equal, wrap):
    for pair in ((wrap(make_model(1)), make_model(2)), (make_model(1), wrap(make_model(2)))):
        copied = copy_model_weights(*pair)
        assert copied is pair[1] and weights_equal(unwrapped(copied), make_model(1))


def test_the_first_weight_that_is_not_finite_is_named(make_model):
    model = make_model()
    assert first_not_finite(model.state_dict()) is None
    for bad in (float("nan"), float("inf"), float("-inf")):
        with torch.no_grad():
            model.final_norm.bias[3] = bad
        assert first_not_finite(model.state_dict()) == "final_norm.bias"


# --- a reference that would move ------------------------------------------------------------------


def assigned(policy):
    reference = MiniGPT(**policy.settings)
    reference.load_state_dict(policy.state_dict(), assign=True)
    return reference


def tied(policy):
    reference = copy.deepcopy(policy)
    reference.token_embedding = policy.token_embedding
    return reference


def one_weight(policy):
    reference = copy.deepcopy(policy)
    reference.blocks[1].ff_out.bias = policy.blocks[1].ff_out.bias
    return reference


@pytest.mark.parametrize("share", [copy.copy, assigned, tied, one_weight, Compiled, torch.compile,
                                   lambda policy: Compiled(tied(policy))])
def test_a_reference_that_shares_a_trained_weight_is_refused(make_model, make_reward, make_pairs,
                                                             weights_of, weights_equal, share):
    policy = make_model()
    reference, kept = share(policy), weights_of(policy)
    for train in (lambda: check_reference(policy, reference),
                  lambda: check_reference(Compiled(policy), reference),
                  lambda: dpo_train(policy, reference, make_pairs(4)),
                  lambda: ppo_training(policy, reference, make_reward(), ["a"])):
        with pytest.raises(ValueError, match=r"(share the weight '.*', which is trained|are the "
                                             r"same object): make the reference a copy"):
            train()
    assert weights_equal(policy, kept)


def test_a_shared_weight_that_is_frozen_is_fine(make_model, make_pairs, weights_of, weights_equal):
    policy = make_model()
    reference = tied(policy)
    policy.token_embedding.requires_grad_(False)
    check_reference(policy, reference)
    kept = weights_of(policy)
    dpo_train(policy, reference, make_pairs(4), lr=1e-2, weight_decay=0.1)
    assert weights_equal(reference, kept) and not weights_equal(policy, kept)
    policy.requires_grad_(False)
    check_reference(policy, copy.copy(policy))


def test_a_reward_model_that_would_move_is_refused(make_model, make_reward, copy_of):
    policy, reward = make_model(), make_reward()
    with pytest.raises(ValueError, match="value_model and reward are the same object"):
        ppo_training(copy_of(policy), policy, reward, ["a"], value_model=reward)
    with pytest.raises(ValueError, match="value_model and reward share the weight"):
        ppo_training(copy_of(policy), policy, reward, ["a"], value_model=copy.copy(reward))
    reward.trunk = policy
    with pytest.raises(ValueError, match="policy and reward share the weight"):
        ppo_training(policy, copy_of(policy), reward, ["a"])


@wrappers
def test_training_takes_a_wrapped_model_and_trains_the_one_inside(
        make_model, make_reward, copy_of, make_pairs, weights_of, weights_equal, wrap):
    rows, reward = make_pairs(6), make_reward()
    rows_of_sft = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    few = {"num_episodes": 2, "batch_size": 4, "max_new_tokens": 4}
    trainings = {
        "sft": lambda model, wrapped: sft_train(wrapped(model), rows_of_sft)[0],
        "reward": lambda model, wrapped: train_reward_model(wrapped(model), rows)[0],
        "dpo": lambda model, wrapped: dpo_train(wrapped(model), wrapped(copy_of(model)), rows)[0],
        "ppo": lambda model, wrapped: ppo_training(
            wrapped(model), wrapped(copy_of(model)), wrapped(copy_of(reward)), ["a", "bc"],
            value_model=wrapped(copy_of(reward)), **few)[0]}
    for stage, train in trainings.items():
        make = make_reward if stage == "reward" else make_model
        start, model, plain = weights_of(make()), make(), make()
        found, expected = train(model, wrap), train(plain, lambda model: model)
        assert found is model and expected is plain
        assert weights_equal(model, plain) and not weights_equal(model, start), stage


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_what_only_reads_a_model_takes_a_wrapped_one(make_model, make_reward, wrap):
    plain, rows = make_model(1), [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    model, reference, reward = wrap(plain), wrap(make_model(2)), make_reward()
    assert generate(model, ["a"], 4, seed=0) == generate(plain, ["a"], 4, seed=0)
    assert torch.equal(sequence_logps(model, ["a"], ["b"]), sequence_logps(plain, ["a"], ["b"]))
    assert evaluate_policy(model, reference, ["a"], 1, 4, seed=0) \
        == evaluate_policy(plain, make_model(2), ["a"], 1, 4, seed=0)
    assert evaluate_loss(model, [{"prompt": "a", "response": "b"}]) > 0
    assert 0 <= evaluate_preference_accuracy(model, reference, rows) <= 1
    assert torch.equal(score(wrap(reward), ["a"], ["b"]), score(reward, ["a"], ["b"]))
    assert evaluate_reward_accuracy(wrap(reward), rows) == evaluate_reward_accuracy(reward, rows)
