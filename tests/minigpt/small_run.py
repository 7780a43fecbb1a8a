"""Run by test_distributed.py and test_kills.py, alone and under torchrun:

    small_run.py OUT BATCH_SIZE STAGE [STAGE ...] [--resume] [--shard] [--die-at STEP]

For each stage, trains a small model in float32 on 30 pairs, or on its own answers, and saves it in
OUT/STAGE.  STAGE: sft, reward, ppo, dpo; kto, rloo, lora (DPO of adapters), rounds (two rounds of
DPO).
"""

import argparse
import copy
import os

import torch

from dpo import DPOConfig, dpo_train, kto_train
from dpo.rounds import OnlineConfig, dpo_rounds
from minigpt import MiniGPT, distributed
from minigpt.checkpoint import save_checkpoint
from minigpt.command import run_command
from minigpt.log import MetricLog
from minigpt.lora import add_lora, merge_lora
from ppo import ppo_training
from reward import RewardModel, train_reward_model
from sft import sft_train

SMALL = {"embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 64, "ff_dim": 64}
PAIRS = [{"prompt": f"{n}?", "chosen": f"{n} " + "thanks " * (n % 4 + 1), "rejected": f"{n} no"}
         for n in range(30)]


def train(stage: str, options: dict) -> torch.nn.Module:
    model = MiniGPT(**SMALL)
    reference = copy.deepcopy(model)
    if stage == "sft":
        rows = [{"prompt": row["prompt"], "response": row["chosen"]} for row in PAIRS]
        return sft_train(model, rows, 3, 1e-3, accumulate=2, **options)[0]
    if stage == "reward":
        return train_reward_model(RewardModel.from_policy(model), PAIRS, 3, 1e-3, **options)[0]
    if stage == "dpo":
        return dpo_train(model, reference, PAIRS, 3, 1e-3, beta=0.1, **options)[0]
    if stage == "kto":
        return kto_train(model, reference, PAIRS, 3, 1e-3, 0.1, **options)[0]
    if stage == "lora":
        return merge_lora(dpo_train(add_lora(model, 4), None, PAIRS, 3, 1e-3, 0.1, **options)[0])
    prompts = [row["prompt"] for row in PAIRS]
    if stage == "rounds":
        return rounds(prompts, options)
    groups = {"advantage": "rloo", "samples_per_prompt": 2} if stage == "rloo" else {}
    return ppo_training(model, reference, RewardModel(**SMALL), prompts, 4, 1e-3, kl_coeff=0.02,
                        minibatch_size=4, max_new_tokens=8, plain_text=["one", "two", "three"],
                        **groups, **options)[0]


def rounds(prompts: list[str], options: dict) -> MiniGPT:
    """From a start that has learned to end its answers, judged by their length."""
    rows = [{"prompt": prompt, "response": answer} for prompt in prompts
            for answer in ("yes", "no", "well")]
    start, _ = sft_train(MiniGPT(**SMALL), rows, 10, 1e-2, batch_size=30)
    return dpo_rounds(copy.deepcopy(start), start, prompts,
                      lambda prompts, texts: [float(len(text)) for text in texts],
                      OnlineConfig(rounds=2, judge="length", samples_per_prompt=4,
                                   round_prompts=24),
                      DPOConfig(lr=1e-3, beta=0.1, **options), max_new_tokens=8)[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("batch_size", type=int)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--die-at", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    distributed.start("cpu")
    if options.die_at is not None:
        write, last = MetricLog.write, distributed.world_size() - 1

        def write_and_die(self, metrics):
            write(self, metrics)
            if self.last("global_step") == options.die_at and distributed.rank() == last:
                os._exit(9)  # as if the machine had failed
        MetricLog.write = write_and_die
    for stage in options.stages:
        torch.manual_seed(0)
        out = f"{options.out}/{stage}"
        model = train(stage, {"batch_size": options.batch_size, "precision": "float32", "out": out,
                              "save_every": 1, "resume": options.resume, "shard": options.shard})
        print(f"{stage}: only the first process is heard")
        if distributed.rank() == 0:
            save_checkpoint(model, f"{out}/model.pt")
        else:
            torch.save(model.state_dict(), f"{out}/rank{distributed.rank()}.pt")


if __name__ == "__main__":
    run_command(main)
