"""Ours and TRL compute the same losses: one batch through both, from the same weights.

Needs the extra [peers], or [peers-new].
"""

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from transformers import GPT2ForSequenceClassification

from dpo import dpo_loss
from minigpt import MiniGPT
from minigpt.batching import collate
from minigpt.examples import Example
from minigpt.export import as_gpt2, byte_tokenizer, gpt2_config, gpt2_weights
from minigpt.logprobs import response_logps, token_logps
from minigpt.tokenizer import EOS
from reward import RewardModel, bradley_terry_loss
from sft import sft_loss
from tests.benchmarks.common import benchmark_rows
from tests.benchmarks.peer import training_arguments

ROWS = [{**row, "prompt": row["prompt"] + "\n"} for row in benchmark_rows(None, 16)]


def batch_of(*columns, rows=ROWS):
    """The rows as TRL reads them: a line break where we put SEP."""
    return collate([Example(row["prompt"].encode(),
                            tuple(row[column].encode() + bytes([EOS]) for column in columns))
                    for row in rows])


def language_models(seed):
    """The same model twice, with weights that are far from uniform."""
    torch.manual_seed(seed)
    ours = MiniGPT(max_seq_len=256)
    for parameter in ours.parameters():
        parameter.data.mul_(3 if parameter.dim() == 2 else 1)
    return ours.eval(), as_gpt2(ours)


def evaluated(trainer_class, config_class, model, rows, **more):
    """TRL's figures on the rows."""
    settings = {**training_arguments(False), "max_length": 256,
                "per_device_eval_batch_size": len(rows), **more.pop("settings", {})}
    data = Dataset.from_list(rows)
    trainer = trainer_class(model=model, args=config_class(**settings), train_dataset=data,
                            eval_dataset=data, processing_class=byte_tokenizer(256), **more)
    return trainer.evaluate()


def test_sft():
    from trl import SFTConfig, SFTTrainer

    ours, theirs = language_models(0)
    batch = batch_of("chosen")
    loss, _ = sft_loss(token_logps(ours, batch), batch.response_mask)
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    found = evaluated(SFTTrainer, SFTConfig, theirs, rows)
    assert found["eval_loss"] == pytest.approx(float(loss), abs=1e-4)


def test_reward_model():
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    ours = RewardModel(max_seq_len=256)
    theirs = GPT2ForSequenceClassification(gpt2_config(ours.trunk.settings, num_labels=1))
    theirs.transformer.load_state_dict(gpt2_weights(ours.trunk))
    with torch.no_grad():
        theirs.score.weight.copy_(ours.head.weight)
    rewards = ours.rewards(batch_of("chosen", "rejected"))
    loss, metrics = bradley_terry_loss(*rewards.unbind(1))
    found = evaluated(RewardTrainer, RewardConfig, theirs.eval(), ROWS)
    assert found["eval_loss"] == pytest.approx(float(loss), abs=1e-4)
    assert found["eval_accuracy"] == pytest.approx(float(metrics["accuracy"]))
    assert found["eval_margin"] == pytest.approx(float(metrics["margin"]), abs=1e-4)


def test_dpo():
    from trl import DPOConfig, DPOTrainer

    policy, their_policy = language_models(0)
    reference, their_reference = language_models(1)
    batch = batch_of("chosen", "rejected")
    logps = [column for model in (policy, reference)
             for column in response_logps(model, batch).unbind(1)]
    loss, metrics = dpo_loss(*logps, beta=0.02)
    found = evaluated(DPOTrainer, DPOConfig, their_policy, ROWS, ref_model=their_reference,
                      settings={"beta": 0.02})
    assert abs(float(metrics["rewards/margins"])) > 0.01
    assert found["eval_loss"] == pytest.approx(float(loss), abs=1e-4)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert found[f"eval_{name}"] == pytest.approx(float(metrics[name]), abs=1e-3)
