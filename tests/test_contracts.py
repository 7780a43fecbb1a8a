"""What articles, notebooks and other people's code rely on: these names, with these parameters."""

import inspect
from dataclasses import fields
from importlib import import_module

import pytest
import torch

import data
import minigpt
from dpo.train import DPOConfig, dpo_train
from minigpt import adapters_off, add_lora, merge_lora
from ppo.train import PPOConfig, ppo_training

# package -> name -> its first parameters, with their defaults where these are fixed
PAIR = "policy_chosen_logps, policy_rejected_logps, "
FOUR = PAIR + "ref_chosen_logps, ref_rejected_logps, "
LENGTHS = "chosen_lengths, rejected_lengths, "
SIZES = "vocab_size=256, embed_dim=128, num_heads=4, num_layers=4, max_seq_len=128, ff_dim=512"
SIGNATURES = {
    "minigpt": {
        "MiniGPT": SIZES, "MiniGPT.forward": "self, token_ids",
        "MiniGPT.hidden_states": "self, token_ids", "MiniGPT.count_parameters": "self",
        "encode": "text", "decode": "ids",
        "generate": "model, prompts, max_new_tokens, temperature=1.0, top_k=None, greedy=False, "
                    "seed=None",
        "sequence_logps": "model, prompts, responses",
        "copy_model_weights": "source, target", "load_checkpoint": "path",
        "add_lora": "model, rank, alpha", "adapters_off": "model", "merge_lora": "model"},
    "data": dict.fromkeys(("load_preferences", "load_sft", "load_unpaired"), "path"),
    "sft": {"sft_loss": "", "sft_train": "model, rows, num_epochs, lr"},
    "reward": {
        "RewardModel": SIZES, "RewardModel.forward": "self, token_ids, lengths=None",
        "RewardModel.from_policy": "model",
        "bradley_terry_loss": "chosen_rewards, rejected_rewards",
        "train_reward_model": "model, rows, num_epochs, lr",
        "evaluate_reward_accuracy": "model, rows", "score": "model, prompts, responses",
        "Ensemble": ""},
    "ppo": {
        "gae": "rewards, values, mask, gamma=1.0, lam=0.95",
        "ppo_loss": "logps, old_logps, advantages, mask, clip=0.2", "value_loss": "",
        "ppo_training": "policy, reference, reward, prompts, num_episodes, lr, kl_coeff",
        "rloo_advantages": "scores", "grpo_advantages": "scores, scale_by_std=True"},
    "dpo": {
        "dpo_loss": FOUR + "beta=0.1", "ipo_loss": FOUR + "beta", "hinge_loss": FOUR + "beta",
        "cdpo_loss": FOUR + "beta, label_smoothing",
        "robust_dpo_loss": FOUR + "beta, label_smoothing", "apo_zero_loss": FOUR + "beta",
        "apo_down_loss": FOUR + "beta", "dpop_loss": FOUR + "beta, lam",
        "length_normalised_dpo_loss": FOUR + LENGTHS + "beta",
        "dpo_nll_loss": FOUR + "chosen_lengths, beta, nll_weight",
        "simpo_loss": PAIR + LENGTHS + "beta, gamma", "orpo_loss": PAIR + LENGTHS + "lam",
        "kto_loss": "policy_logps, ref_logps, labels, reference_point, beta, desirable_weight, "
                    "undesirable_weight",
        "dpo_train": "policy, reference, rows, num_epochs, lr, beta",
        "evaluate_preference_accuracy": "policy, reference, rows"}}


@pytest.mark.parametrize(("package", "name", "expected"), [
    (package, name, expected) for package, names in SIGNATURES.items()
    for name, expected in names.items()])
def test_names_and_their_first_parameters(package, name, expected):
    found = import_module(package)
    for part in name.split("."):
        found = getattr(found, part)
    parameters = list(inspect.signature(found).parameters.values())
    fixed = inspect.signature(eval(f"lambda {expected}: None")).parameters.values()
    assert [one.name for one in parameters[:len(fixed)]] == [one.name for one in fixed]
    for one, wanted in zip(parameters, fixed, strict=False):
        assert wanted.default in (wanted.empty, one.default)
        assert one.kind is one.POSITIONAL_OR_KEYWORD


def test_what_is_passed_by_name_alone():
    assert inspect.signature(dpo_train).parameters["loss"].default == "dpo"
    assert inspect.signature(ppo_training).parameters["advantage"].default == "gae"
    assert {"samples_per_prompt", "kl_in"} <= {field.name for field in fields(PPOConfig)}
    assert {"label_smoothing", "gamma", "lam"} <= {field.name for field in fields(DPOConfig)}


def test_reserved_ids_the_size_of_the_model_and_the_lessons_own_rows():
    assert {"prompt", "preferred", "rejected"} == set().union(*data.PREFERENCE_DATA)
    assert len({minigpt.EOS, minigpt.PAD, minigpt.SEP}) == 3
    assert all(0xF8 <= i < 256 for i in (minigpt.EOS, minigpt.PAD, minigpt.SEP))
    assert minigpt.MiniGPT().count_parameters() == 840_448


def test_adapters_are_added_switched_off_and_merged(make_model, copy_of):
    ids, start = torch.tensor([[65, 66, 67]]), make_model()
    before = start(ids)
    model = add_lora(copy_of(start), 2, 4.0)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.constant_(weight, 0.05)
    with adapters_off(model):
        assert torch.equal(model(ids), before)
    moved = model(ids)
    assert not torch.allclose(moved, before)
    torch.testing.assert_close(merge_lora(model)(ids), moved)
    with pytest.raises(ZeroDivisionError), adapters_off(model):
        raise ZeroDivisionError
    assert torch.equal(model(ids), moved)
