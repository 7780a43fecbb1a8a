import pytest
import torch

from minigpt.weights import check_reference, copy_model_weights
from reward import RewardModel


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
