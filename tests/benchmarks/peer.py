"""The same stage by TRL, on a GPT-2 of MiniGPT's size:

    python -m tests.benchmarks.peer STAGE [--data FILE] [--bf16]

The same rows, batches, lengths and numbers of steps as in `tests.benchmarks.ours`; needs the extra
[peers], or [peers-new] for rloo, grpo and kto.  TRL 1.12 is the last release with a PPO trainer.
"""

import os
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# the library's own default, which `minigpt` would change
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "1024"

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from minigpt import EOS, PAD, MiniGPT
from minigpt.export import byte_tokenizer, gpt2_config
from tests.benchmarks.common import (
    ANSWERS,
    DIFFERENT_PROMPTS,
    EPISODES,
    GENERATED,
    ROWS,
    Work,
    benchmark_rows,
    labelled_rows,
    time_one_stage,
    variety,
)


def gpt2(**more) -> GPT2Config:
    """Of MiniGPT's size, with GPT-2's own activation."""
    return gpt2_config(MiniGPT(max_seq_len=256).settings, activation_function="gelu_new", **more)


def scorer() -> GPT2ForSequenceClassification:
    return GPT2ForSequenceClassification(gpt2(num_labels=1))


def training_arguments(bf16: bool) -> dict[str, Any]:
    """What every trainer is told."""
    return {"output_dir": tempfile.mkdtemp(), "learning_rate": 1e-4, "report_to": [],
            "use_cpu": True, "bf16": bf16, "save_strategy": "no", "gradient_checkpointing": False}


def work_of(stage: str, data: str | None, bf16: bool) -> tuple[Work, int]:
    torch.manual_seed(0)
    rows = benchmark_rows(data, ROWS)
    model, twin = GPT2LMHeadModel(gpt2()), GPT2LMHeadModel(gpt2())
    twin.load_state_dict(model.state_dict())
    if stage in DIFFERENT_PROMPTS:
        return generate_thrice(model.eval(), DIFFERENT_PROMPTS[stage]), GENERATED
    tokenizer = byte_tokenizer(256)
    tokenizer.padding_side = "left" if stage == "ppo" else "right"
    once = {**training_arguments(bf16), "num_train_epochs": 1, "logging_steps": 8,
            "max_length": 256}
    # precomputed, the reference would be part of making the trainer, which is not timed
    in_steps = {"precompute_ref_log_probs": False}
    pairs = [{**row, "prompt": row["prompt"] + "\n"} for row in rows]
    if stage == "sft":
        from trl import SFTConfig, SFTTrainer

        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
        arguments = SFTConfig(per_device_train_batch_size=32, **once)
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows),
                             processing_class=tokenizer)
        return trainer.train, len(rows)
    if stage == "reward":
        from trl import RewardConfig, RewardTrainer

        arguments = RewardConfig(per_device_train_batch_size=16, **once)
        trainer = RewardTrainer(model=scorer(), args=arguments,
                                train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
        return trainer.train, len(pairs)
    if stage == "dpo":
        from trl import DPOConfig, DPOTrainer

        arguments = DPOConfig(per_device_train_batch_size=16, beta=0.1, **in_steps, **once)
        trainer = DPOTrainer(model=model, ref_model=twin, args=arguments,
                             train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
        return trainer.train, len(pairs)
    if stage == "kto":
        from trl import KTOConfig, KTOTrainer

        arguments = KTOConfig(per_device_train_batch_size=32, beta=0.1, **in_steps, **once)
        labelled = labelled_rows(pairs)
        trainer = KTOTrainer(model=model, ref_model=twin, args=arguments,
                             train_dataset=Dataset.from_list(labelled), processing_class=tokenizer)
        return trainer.train, len(labelled)
    if stage in ("rloo", "grpo"):
        prompts = [row["prompt"] for row in pairs if len(row["prompt"]) <= 65]
        return group_trainer(stage, model, prompts, bf16).train, EPISODES
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    prompts = Dataset.from_list([{"input_ids": tokenizer(row["prompt"])["input_ids"]}
                                 for row in pairs if len(row["prompt"]) <= 65])
    arguments = PPOConfig(per_device_train_batch_size=64, gradient_accumulation_steps=1,
                          num_mini_batches=1, total_episodes=EPISODES, num_ppo_epochs=4,
                          response_length=48, num_sample_generations=0, eval_strategy="no",
                          stop_token="eos", kl_coef=0.05, **training_arguments(bf16))
    trainer = PPOTrainer(args=arguments, processing_class=tokenizer, model=model, ref_model=twin,
                         reward_model=scorer(), value_model=scorer(), train_dataset=prompts,
                         eval_dataset=prompts)
    return trainer.train, EPISODES


def group_trainer(stage: str, model: GPT2LMHeadModel, prompts: list[str], bf16: bool) -> Any:
    """TRL's trainer that makes as many rollouts and updates as ours, of answers as long as ours."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    config_class, trainer_class = {"rloo": (RLOOConfig, RLOOTrainer),
                                   "grpo": (GRPOConfig, GRPOTrainer)}[stage]
    arguments = config_class(
        # 64 answers a rollout, and four updates with all of them
        per_device_train_batch_size=64, steps_per_generation=1, num_iterations=4,
        max_steps=EPISODES // 64 * 4, num_generations=ANSWERS,
        # no answer ends before the last token
        max_completion_length=48, generation_kwargs={"min_new_tokens": 48},
        # GRPO's own is 0, which spares the reference
        beta=0.05, logging_steps=8, **training_arguments(bf16))
    # the trainer reads its reference from where the policy came from
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    return trainer_class(model=folder, args=arguments, processing_class=byte_tokenizer(256),
                         reward_funcs=lambda completions, **_: variety(completions),
                         train_dataset=Dataset.from_list([{"prompt": text} for text in prompts]))


def generate_thrice(model: GPT2LMHeadModel, different: int) -> Work:
    prompts = torch.randint(1, EOS, (different, 32)).repeat_interleave(64 // different, 0)
    settings = {"attention_mask": torch.ones_like(prompts), "do_sample": True,
                "pad_token_id": PAD}
    model.generate(prompts, max_new_tokens=4, **settings)

    def work() -> None:
        for _ in range(3):
            model.generate(prompts, max_new_tokens=64, min_new_tokens=64, **settings)
    return work


if __name__ == "__main__":
    time_one_stage(__doc__, work_of)
