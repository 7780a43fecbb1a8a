"""Ours and a newer TRL compute the same in KTO, RLOO and GRPO, from the same weights and answers.

Needs the extra [peers-new].
"""

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

from datasets import Dataset

from dpo import kto_loss, kto_reference_point
from minigpt.batching import collate
from minigpt.examples import Example
from minigpt.export import byte_tokenizer, export, gpt2_weights
from minigpt.kl import kl_k3
from minigpt.logprobs import response_logps, token_logps
from minigpt.metrics import masked_mean
from ppo import ppo_loss
from ppo.rollout import RolloutMaker
from ppo.train import compared
from reward.combine import as_reward
from tests.benchmarks.common import ANSWERS, variety
from tests.benchmarks.peer import training_arguments
from tests.benchmarks.test_parity import ROWS, batch_of, evaluated, language_models


def test_kto():
    from trl import KTOConfig, KTOTrainer

    policy, their_policy = language_models(1)
    reference, their_reference = language_models(0)
    labels = [n % 3 > 0 for n in range(len(ROWS))]
    # TRL takes z from the answer of the row before
    shifted = [{**row, "chosen": ROWS[n - 1]["chosen"]} for n, row in enumerate(ROWS)]
    batch, mismatched = batch_of("chosen"), batch_of("chosen", rows=shifted)
    logps, ref_logps, z_logps, z_ref_logps = (
        response_logps(model, rows)[:, 0]
        for rows in (batch, mismatched) for model in (policy, reference))
    z = kto_reference_point(z_logps, z_ref_logps)
    loss, _ = kto_loss(logps, ref_logps, torch.tensor(labels), z, beta=0.02, desirable_weight=1.5)
    found = evaluated(KTOTrainer, KTOConfig, their_policy,
                      [{"prompt": row["prompt"], "completion": row["chosen"], "label": label}
                       for row, label in zip(ROWS, labels, strict=True)],
                      ref_model=their_reference,
                      settings={"beta": 0.02, "desirable_weight": 1.5,
                                "per_device_train_batch_size": len(ROWS)})
    assert z > 1
    assert found["eval_kl"] == pytest.approx(float(z), abs=1e-3)
    assert found["eval_loss"] == pytest.approx(float(loss), abs=1e-4)


def rollouts(trainer_class, config_class, folder, kl_coeff, **settings):
    """One of TRL's rollouts, with its trainer, and the same answers as ours, with our policy."""
    policy, _ = language_models(0)
    reference, their_reference = language_models(1)
    export(policy, folder)
    # of one length: TRL pads on the left, and GPT-2 then numbers the padding, too
    prompts = [row["prompt"][-16:] for row in ROWS[:4]]
    arguments = config_class(**training_arguments(False), per_device_train_batch_size=4 * ANSWERS,
                             num_generations=ANSWERS, num_iterations=2, max_completion_length=24,
                             beta=0.05, **settings)
    trainer = trainer_class(model=str(folder), args=arguments, processing_class=byte_tokenizer(256),
                            reward_funcs=lambda completions, **_: variety(completions),
                            train_dataset=Dataset.from_list([{"prompt": text} for text in prompts]))
    trainer.ref_model.load_state_dict(their_reference.state_dict())
    theirs = trainer._generate_and_score_completions(
        [{"prompt": text} for text in prompts for _ in range(ANSWERS)])
    answers = [ids[mask.bool()].tolist() for ids, mask
               in zip(theirs["completion_ids"], theirs["completion_mask"], strict=True)]
    assert len({len(ids) for ids in answers}) > 1
    roll_out = RolloutMaker(reference, as_reward(lambda _, responses: variety(responses)), 24, 0.0,
                            ANSWERS, sample=lambda *_, **__: answers)
    ours = roll_out(policy, collate([Example(text.encode(), ()) for text in prompts]), kl_coeff,
                    torch.Generator())
    return trainer, theirs, policy, ours


def of_answers(rollout, advantages):
    """(B, T), the same on all tokens of an answer -> one for each answer, as TRL has them."""
    return advantages.gather(1, rollout.batch.last_columns).flatten()


def test_rloo_advantages(tmp_path):
    """TRL's ratio is one of whole answers, and ours one of tokens, so the losses are not equal."""
    from trl import RLOOConfig, RLOOTrainer

    _, theirs, _, ours = rollouts(RLOOTrainer, RLOOConfig, tmp_path, 0.05)
    torch.testing.assert_close(of_answers(ours, compared(ours, "rloo")), theirs["advantages"],
                               atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.batch.response_sums(ours.logps).flatten(), theirs["old_logps"],
                               atol=1e-3, rtol=0)


def test_grpo(tmp_path):
    """The loss, after the policy has moved away from the one that sampled."""
    from trl import GRPOConfig, GRPOTrainer

    # the KL as in GRPO's paper; TRL's default multiplies it by the ratio
    trainer, theirs, policy, ours = rollouts(GRPOTrainer, GRPOConfig, tmp_path, 0.0,
                                             use_bias_correction_kl=False)
    advantages = compared(ours, "grpo")
    torch.testing.assert_close(of_answers(ours, advantages), theirs["advantages"], atol=1e-4,
                               rtol=0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    trainer.model.transformer.load_state_dict(gpt2_weights(policy))
    logps = token_logps(policy, ours.batch)
    loss, metrics = ppo_loss(logps, ours.logps, advantages, ours.mask)
    loss += 0.05 * masked_mean(kl_k3(logps, ours.ref_logps), ours.mask)
    assert metrics["policy/clipfrac_avg"] > 0.01
    assert float(trainer._compute_loss(trainer.model, theirs)) == pytest.approx(float(loss),
                                                                                abs=1e-4)
