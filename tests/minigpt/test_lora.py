import math

import pytest
import torch

from dpo import dpo_train
from minigpt import EOS, generate, load_checkpoint, save_checkpoint
from minigpt.batching import collate
from minigpt.checkpoint import load_state
from minigpt.errors import UserError
from minigpt.examples import tokenize_examples
from minigpt.logprobs import response_logps
from minigpt.lora import (
    LoraConfig,
    LoraLinear,
    adapters_of,
    add_lora,
    as_reference,
    check_rank,
    merge_lora,
    policy_and_reference,
    weights_trained,
)
from minigpt.run_folder import read_history
from ppo import ppo_training
from ppo.rollout import RolloutMaker
from ppo.train import PPOConfig, prompt_batches
from reward.combine import as_reward

RANK = 3
DPO = {"num_epochs": 2, "lr": 3e-3, "beta": 0.1, "batch_size": 10, "precision": "float32"}
PPO = {"num_episodes": 3, "lr": 3e-3, "kl_coeff": 0.1, "batch_size": 12, "minibatch_size": 4,
       "samples_per_prompt": 4, "advantage": "rloo", "max_new_tokens": 8}
PROMPTS = ["", "a?", "how are you?", "é", "xyz"]
IDS = torch.randint(0, 248, (5, 20), generator=torch.Generator().manual_seed(0))
LAYERS = ("attention.qkv", "attention.out", "ff_in", "ff_out")


def longer(prompts, responses):
    return [float(len(text)) for text in responses]


def moved(policy, seed=1):
    """The policy with adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters_of(policy):
            layer.B += 0.3 * torch.randn(layer.B.shape, generator=generator)
    return policy


@pytest.fixture
def pairs(make_pairs):
    return make_pairs(30)


@torch.no_grad()
def logits_of(model):
    return model(IDS)


def base_weights(policy):
    """The weights that are not adapters, under the names of a plain model."""
    return {name.replace(".linear.", "."): weight for name, weight in policy.state_dict().items()
            if not name.endswith((".A", ".B", ".scale"))}


# --- what adapters are ----------------------------------------------------------------------------


def test_every_linear_layer_of_the_blocks_has_one_and_nothing_else_is_trained(make_model, small):
    policy = add_lora(make_model(), RANK)
    D, F, layers = small["embed_dim"], small["ff_dim"], small["num_layers"]
    assert [name for name, layer in policy.named_modules() if isinstance(layer, LoraLinear)] == \
        [f"blocks.{n}.{layer}" for n in range(layers) for layer in LAYERS]
    assert len(adapters_of(policy)) == 4 * layers and adapters_of(make_model()) == []
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert all(name.endswith((".A", ".B")) for name in trained)
    sizes = [(D, 3 * D), (D, D), (D, F), (F, D)]  # in and out of the four
    assert weights_trained(policy) == sum(p.numel() for p in trained.values()) == \
        layers * sum(RANK * (into + out) for into, out in sizes)
    whole = make_model().count_parameters()
    assert policy.count_parameters() == whole + weights_trained(policy)
    assert weights_trained(make_model()) == whole


def test_at_the_start_the_outputs_are_those_of_the_model_bit_for_bit(make_model, copy_of):
    start = make_model()
    policy = add_lora(copy_of(start), RANK)
    assert torch.equal(logits_of(policy), logits_of(start))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits_of(policy), logits_of(start))
    assert generate(policy, PROMPTS, 20, seed=0) == generate(start, PROMPTS, 20, seed=0)


def test_log_probs_with_adapters_have_gradients_for_them_alone(make_model):
    policy = add_lora(make_model(), RANK)
    batch = collate(tokenize_examples([("a", ["b", "cd"])], 64))
    assert int((batch.token_ids == EOS).sum()) == 2
    response_logps(policy, batch).sum().backward()
    for name, weight in policy.named_parameters():
        assert (weight.grad is not None) == name.endswith((".A", ".B")), name
    for layer in adapters_of(policy):  # while B is 0, only it can move
        assert (layer.B.grad != 0).any() and (layer.A.grad == 0).all()


def test_an_adapter_by_hand():
    """W x + b + (alpha / r) B A x."""
    linear = torch.nn.Linear(5, 4)
    layer = LoraLinear(linear, 2, 6.0, torch.Generator().manual_seed(0))
    assert layer.A.shape == (2, 5) and layer.B.shape == (4, 2) and (layer.B == 0).all()
    torch.nn.init.normal_(layer.B)
    x = torch.randn(3, 7, 5)
    expected = x @ linear.weight.T + linear.bias + 3.0 * x @ (layer.B @ layer.A).T
    torch.testing.assert_close(layer(x), expected)
    layer.on = False
    assert torch.equal(layer(x), linear(x))


def test_alpha_scales_what_adapters_add(make_model):
    linear = torch.nn.Linear(6, 6).double()
    x, added = torch.randn(4, 6, dtype=torch.float64), []
    for alpha in (1.0, 2.0, 8.0):
        layer = LoraLinear(linear, 4, alpha, torch.Generator().manual_seed(0))
        torch.nn.init.ones_(layer.B)
        added.append(layer(x) - linear(x))
    torch.testing.assert_close(added[1], 2 * added[0])
    torch.testing.assert_close(added[2], 8 * added[0])
    for alpha, scale in ((None, 2.0), (1.0, 0.25)):  # by default, whatever the rank, 2
        adapters = adapters_of(add_lora(make_model(), 4, alpha))
        assert [float(layer.scale) for layer in adapters] == [scale] * 8


def test_the_seed_decides_how_adapters_start(make_model):
    torch.rand(3)
    first, same, other = (add_lora(make_model(), RANK, seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(*map(adapters_of, (first, same, other)), strict=True):
        assert torch.equal(a.A, b.A) and not torch.equal(a.A, c.A)
    starts = [layer.A for layer in adapters_of(first)]
    assert not any(torch.equal(starts[0], a) for a in starts[1:] if a.shape == starts[0].shape)


def test_adapters_start_with_rows_of_about_unit_length(make_model):
    for layer in adapters_of(add_lora(make_model(), 32)):
        assert float(layer.A.detach().norm(dim=1).mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("rank", [0, -1, 33])
def test_a_rank_out_of_range_is_refused_and_changes_nothing(make_model, rank):
    model = make_model()
    with pytest.raises(UserError, match=rf"lora_rank={rank} must be between 1 and 32"):
        add_lora(model, rank)
    with pytest.raises(UserError, match=rf"lora_rank={rank} must be between 1 and 32"):
        check_rank(rank, 32)
    assert adapters_of(model) == [] and all(p.requires_grad for p in model.parameters())


def test_ranks_in_range_and_none_are_fine(make_model):
    for rank in (1, 32):
        assert adapters_of(add_lora(make_model(), rank))[0].A.shape == (rank, 32)
    check_rank(None, 1)


@pytest.mark.parametrize(("settings", "name"), [
    ({"lora_rank": 0}, "lora_rank"), ({"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha")])
def test_settings_that_make_no_adapters_are_refused(settings, name):
    with pytest.raises(UserError, match=name):
        LoraConfig(**settings)


def test_a_model_with_adapters_gets_no_others(make_model, weights_of, weights_equal):
    policy = moved(add_lora(make_model(), RANK))
    kept = weights_of(policy)
    with pytest.raises(UserError, match=r"has adapters already.*merged"):
        add_lora(policy, 2)
    assert weights_equal(policy, kept) and len(adapters_of(policy)) == 8
    assert len(adapters_of(add_lora(merge_lora(policy), 2))) == 8  # as the message says


# --- with and without them ------------------------------------------------------------------------


def test_as_reference_is_the_start_within_the_block_and_then_the_policy_again(make_model, copy_of):
    start = make_model()
    policy = moved(add_lora(copy_of(start), RANK))
    with_them = logits_of(policy)
    assert not torch.allclose(with_them, logits_of(start))
    with as_reference(policy, None) as reference:
        assert torch.equal(logits_of(reference), logits_of(start))
    assert torch.equal(logits_of(policy), with_them)


def test_as_reference_switches_the_adapters_on_again_after_an_exception(make_model):
    policy = moved(add_lora(make_model(), RANK))
    with_them = logits_of(policy)
    with pytest.raises(ZeroDivisionError), as_reference(policy, None):
        raise ZeroDivisionError
    assert all(layer.on for layer in adapters_of(policy))
    assert torch.equal(logits_of(policy), with_them)


def test_as_reference_takes_a_reference_that_there_is_and_leaves_the_adapters_on(make_model):
    policy, other = moved(add_lora(make_model(), RANK)), make_model(3)
    with_them = logits_of(policy)
    with as_reference(policy, other) as reference:
        assert reference is other and torch.equal(logits_of(policy), with_them)


def test_a_plain_model_is_no_reference_of_itself(make_model):
    with pytest.raises(ValueError, match=r"reference=None needs a policy with adapters"), \
            as_reference(make_model(), None):
        pass


def test_merged_computes_what_the_adapters_do(make_model, copy_of, weights_of, weights_equal):
    policy = moved(add_lora(make_model(spread=4), RANK))
    kept = weights_of(policy)
    plain = merge_lora(policy)
    assert adapters_of(plain) == [] and all(p.requires_grad for p in plain.parameters())
    torch.testing.assert_close(logits_of(plain), logits_of(policy), rtol=0, atol=1e-5)
    assert generate(plain, PROMPTS, 30, greedy=True) == generate(policy, PROMPTS, 30, greedy=True)
    assert weights_equal(policy, kept) and len(adapters_of(policy)) == 8  # a copy was merged
    assert weights_equal(merge_lora(policy), plain)
    assert plain.state_dict().keys() == make_model().state_dict().keys()


def test_a_plain_model_is_merged_as_it_is(make_model):
    model = make_model()
    assert merge_lora(model) is model


def test_a_wrapped_policy_is_merged_as_the_model_inside(make_model, weights_equal):
    policy = moved(add_lora(make_model(), RANK))
    assert weights_equal(merge_lora(torch.nn.DataParallel(policy)), merge_lora(policy))


def test_a_policy_that_trains_more_than_its_adapters_is_no_reference_of_itself(make_model, pairs):
    policy = add_lora(make_model(), RANK)
    policy.final_norm.requires_grad_(True)
    for block in (lambda: as_reference(policy, None).__enter__(),
                  lambda: dpo_train(policy, None, pairs, **DPO)):
        with pytest.raises(ValueError, match=r"'final_norm\.weight' would be trained"):
            block()


def test_policy_and_reference_are_one_model_with_adapters_and_two_without(make_model,
                                                                          weights_equal):
    start = make_model()
    policy, reference = policy_and_reference(start, LoraConfig(lora_rank=2, lora_alpha=1.0), 0)
    assert policy is start and reference is None
    assert [(len(layer.A), float(layer.scale)) for layer in adapters_of(policy)] == [(2, 0.5)] * 8
    start = make_model()
    policy, reference = policy_and_reference(start, LoraConfig(), 0)
    assert reference is start and policy is not start and weights_equal(policy, start)
    assert policy_and_reference(start, LoraConfig(), 0, needs_reference=False) == (start, None)


# --- DPO with adapters ----------------------------------------------------------------------------


def test_dpo_trains_the_adapters_and_leaves_every_other_bit(make_model, pairs, weights_equal,
                                                            tmp_path):
    start = make_model(spread=1)
    policy, losses, margins = dpo_train(add_lora(make_model(spread=1), RANK), None, pairs,
                                        **{**DPO, "lr": 1e-2}, out=str(tmp_path))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert losses[-1] < 0.65 and margins[-1] > 0.05
    assert weights_equal(start, base_weights(policy))
    for layer in adapters_of(policy):
        assert (layer.B != 0).any() and layer.on
    assert not torch.allclose(logits_of(policy), logits_of(start), atol=1e-3)
    state = load_state(tmp_path / "state.pt")["optimizer"]["state"]
    shapes = sorted(tuple(moments["exp_avg"].shape) for moments in state.values())
    assert shapes == sorted(tuple(p.shape) for p in policy.parameters() if p.requires_grad)


def test_its_own_base_as_reference_is_a_copy_of_the_start_as_reference(make_model, pairs):
    """Losses, margins and weights, to rounding."""
    found, expected = (dpo_train(add_lora(make_model(spread=1), RANK), reference, pairs, **DPO)
                       for reference in (None, make_model(spread=1)))
    for numbers, others in zip(found[1:], expected[1:], strict=True):
        assert len(numbers) == 6 and numbers == pytest.approx(others, abs=1e-6)
    for a, b in zip(found[0].parameters(), expected[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_weight_decay_leaves_frozen_weights_alone(make_model, pairs, weights_equal):
    policy, _, _ = dpo_train(add_lora(make_model(), RANK), None, pairs, **DPO, weight_decay=0.5)
    assert weights_equal(make_model(), base_weights(policy))


@pytest.mark.parametrize("loss", ["ipo", "simpo", "kto"])
def test_other_losses_train_adapters_alone_too(make_model, pairs, weights_equal, loss):
    policy, losses, _ = dpo_train(add_lora(make_model(spread=1), RANK), None, pairs,
                                  **{**DPO, "num_epochs": 1}, loss=loss)
    assert weights_equal(make_model(spread=1), base_weights(policy))
    assert any((layer.B != 0).any() for layer in adapters_of(policy)) and len(losses) > 0


def test_without_adapters_no_reference_is_refused_where_one_is_needed(make_model, pairs,
                                                                      weights_equal):
    for loss in ("dpo", "kto"):
        model = make_model()
        with pytest.raises(ValueError, match=r"reference=None needs a policy with adapters"):
            dpo_train(model, None, pairs, **DPO, loss=loss)
        assert weights_equal(model, make_model())
    policy, losses, _ = dpo_train(make_model(), None, pairs, **{**DPO, "num_epochs": 1},
                                  loss="simpo")
    assert len(losses) == 3 and not weights_equal(policy, make_model())


def test_a_resumed_run_repeats_the_unbroken_one_bit_for_bit(make_model, pairs, check_resume):
    def train(out, resume):
        return dpo_train(add_lora(make_model(spread=1), RANK), None, pairs, **{**DPO,
                         "num_epochs": 3}, save_every=2, out=out, resume=resume)[0]
    check_resume(train)


@pytest.mark.parametrize("change", [{"alpha": 12.0}, {"rank": 2}, {"seed": 1}], ids=str)
def test_a_run_is_resumed_only_with_the_same_adapters(make_model, pairs, tmp_path, change):
    def train(rank=RANK, alpha=6.0, seed=0, **options):
        policy = add_lora(make_model(spread=1), rank, alpha, seed)
        return dpo_train(policy, None, pairs, **DPO, out=str(tmp_path), **options)
    train()
    with pytest.raises(UserError, match="begun with weights_at_start="):
        train(**change, resume=True)


# --- PPO with adapters ----------------------------------------------------------------------------


def test_a_rollout_compares_with_the_policy_without_its_adapters(make_model, copy_of):
    start = make_model(spread=3)
    policy = moved(add_lora(copy_of(start), RANK))
    prompts = prompt_batches(PROMPTS, 64, PPOConfig()).collate(range(len(PROMPTS)))
    found, expected = (RolloutMaker(reference, as_reward(longer), 6, 1.0, samples_per_prompt=2)(
        policy, prompts, 0.1, torch.Generator().manual_seed(0)) for reference in (None, start))
    assert found.texts() == expected.texts() and found.exact_kl.min() > 0
    for name in ("logps", "ref_logps", "token_kl", "rewards"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert all(layer.on for layer in adapters_of(policy))


def test_ppo_trains_the_adapters_and_leaves_every_other_bit(reciter, copy_of, recited, tmp_path,
                                                            weights_equal):
    prompts = [row["prompt"] for row in recited]
    policy, _, kls = ppo_training(add_lora(copy_of(reciter), RANK), None, longer, prompts, **PPO,
                                  out=str(tmp_path))
    assert weights_equal(reciter, base_weights(policy))
    assert kls[0] == pytest.approx(0, abs=1e-6) and kls[-1] > 1e-3
    history = read_history(tmp_path)
    assert history["val/first_ratio"] == pytest.approx([1.0] * 3, abs=1e-5)
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert len(load_state(tmp_path / "state.pt")["optimizer"]["state"]) == len(trained) == 16
    other, _, with_copy = ppo_training(add_lora(copy_of(reciter), RANK), copy_of(reciter), longer,
                                       prompts, **PPO)
    assert kls == pytest.approx(with_copy, abs=1e-4)
    for a, b in zip(policy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_gaes_value_model_beside_a_function_is_the_start_without_adapters(reciter, copy_of, recited,
                                                                          tmp_path):
    gae = {"advantage": "gae", "samples_per_prompt": 1, "num_episodes": 1, "value_lr": 1e-300}
    ppo_training(add_lora(copy_of(reciter), RANK), None, longer, [recited[0]["prompt"]],
                 **{**PPO, **gae}, out=str(tmp_path))
    value = load_state(tmp_path / "state.pt")["models"]["value"]
    assert value.keys() == {"head.weight", "head.bias",
                            *(f"trunk.{name}" for name in reciter.state_dict())}
    for name, weight in reciter.state_dict().items():
        assert torch.equal(value[f"trunk.{name}"], weight)


def test_ppo_without_a_reference_needs_adapters(reciter, copy_of, weights_equal):
    policy = copy_of(reciter)
    with pytest.raises(ValueError, match=r"reference=None needs a policy with adapters"):
        ppo_training(policy, None, longer, ["a?"] * 3, **PPO)
    assert weights_equal(policy, reciter)


def test_resumed_ppo_repeats_the_unbroken_run_bit_for_bit(reciter, copy_of, recited, check_resume):
    prompts = [row["prompt"] for row in recited]

    def train(out, resume):
        return ppo_training(add_lora(copy_of(reciter), RANK), None, longer, prompts,
                            **{**PPO, "num_episodes": 7}, save_every=2, out=out, resume=resume)[0]
    check_resume(train)


# --- saving ---------------------------------------------------------------------------------------


def test_a_policy_with_adapters_is_saved_merged(make_model, tmp_path, weights_equal):
    policy = moved(add_lora(make_model(spread=4), RANK))
    for model in (policy, torch.nn.DataParallel(policy), merge_lora(policy)):
        save_checkpoint(model, tmp_path / "model.pt")
        loaded = load_checkpoint(tmp_path / "model.pt")
        assert weights_equal(loaded, merge_lora(policy)) and len(adapters_of(policy)) == 8
    assert generate(loaded, PROMPTS, 20, greedy=True) == generate(policy, PROMPTS, 20, greedy=True)
