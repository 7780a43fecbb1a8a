"""One stage of ours, timed in a process of its own:

    python -m tests.benchmarks.ours STAGE [--data FILE] [--bf16]

Prints one JSON line: work done a second, seconds, and the peak memory of the process.
"""

import copy

import torch

from dpo import dpo_train, kto_train
from minigpt import MiniGPT
from minigpt.sampling import sample_ids
from ppo import ppo_training
from reward import RewardModel, train_reward_model
from sft import sft_train
from tests.benchmarks.common import (
    ANSWERS,
    DIFFERENT_PROMPTS,
    EPISODES,
    GENERATED,
    ROWS,
    Work,
    benchmark_rows,
    labelled_rows,
    let_no_response_end,
    time_one_stage,
    variety,
)


def generate_thrice(model: MiniGPT, different: int) -> Work:
    let_no_response_end()
    prompts = torch.randint(1, 0xF8, (different, 32)).repeat_interleave(64 // different, 0).tolist()
    sample_ids(model, prompts, 4)

    def work() -> None:
        for _ in range(3):
            assert all(len(ids) == 64 for ids in sample_ids(model, prompts, 64))
    return work


def work_of(stage: str, data: str | None, bf16: bool) -> tuple[Work, int]:
    torch.manual_seed(0)
    rows, model = benchmark_rows(data, ROWS), MiniGPT(max_seq_len=256)
    if stage in DIFFERENT_PROMPTS:
        return generate_thrice(model, DIFFERENT_PROMPTS[stage]), GENERATED
    twin = copy.deepcopy(model)
    settings = {"lr": 1e-4, "precision": "bfloat16" if bf16 else "float32"}
    if stage == "sft":
        demonstrations = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
        return lambda: sft_train(model, demonstrations, batch_size=32, **settings), len(rows)
    if stage == "reward":
        reward = RewardModel.from_policy(model)
        return lambda: train_reward_model(reward, rows, num_epochs=1, batch_size=16,
                                          **settings), len(rows)
    if stage == "dpo":
        return lambda: dpo_train(model, twin, rows, num_epochs=1, batch_size=16, beta=0.1,
                                 **settings), len(rows)
    if stage == "kto":
        labelled = labelled_rows(rows)
        return lambda: kto_train(model, twin, labelled, num_epochs=1, batch_size=32, beta=0.1,
                                 **settings), len(labelled)
    prompts = [row["prompt"] for row in rows if len(row["prompt"]) <= 64]
    settings |= {"num_episodes": EPISODES // 64, "batch_size": 64, "minibatch_size": 64,
                 "ppo_epochs": 4, "max_new_tokens": 48, "kl_coeff": 0.05,
                 "max_approxkl": 1e9,          # no update is left out
                 "kl_penalty": "sampled"}      # as TRL's
    if stage == "ppo":
        return lambda: ppo_training(model, twin, RewardModel(max_seq_len=256), prompts,
                                    samples_per_prompt=1, **settings), EPISODES  # as TRL draws
    let_no_response_end()
    return lambda: ppo_training(model, twin, lambda _, responses: variety(responses), prompts,
                                advantage=stage, samples_per_prompt=ANSWERS, **settings), EPISODES


if __name__ == "__main__":
    time_one_stage(__doc__, work_of)
