"""Adapt a pretrained model to preferences, and measure it:  python -m lessons.adapt --data FILE

One pass of DPO with LoRA (lessons/pretrained.py) over --pairs pairs of one's own rows, or of the
little world.  Figures on held-out pairs, and answers to their prompts, before and after, go to
--out.  With --beside-trl the pairs go through this loop and TRL's DPOTrainer, to compare the two.
Needs the extra [pretrained].
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from data.layouts import Record
from data.task import RowsConfig, load_task
from data.world import WorldConfig
from lessons.beside_trl import compare
from lessons.pretrained import (
    Example,
    PretrainedConfig,
    collate,
    load,
    logps_of,
    merges,
    prompt_ids,
    prompt_text,
    response_logits,
    tokenize,
    train,
    with_adapters,
)
from minigpt.command import peak_memory_mb, run_command
from minigpt.disk import make_folder, write_json
from minigpt.evaluation import repetition
from minigpt.kl import exact_kl
from minigpt.metrics import preference_accuracy
from minigpt.options import Settings, option, parse
from minigpt.seeding import seeded

LONGEST_ROW = 2000       # bytes, some 500 tokens
MEASURED, SHOWN = 32, 6  # held-out prompts that are answered to measure, and to be shown
LONGEST_ANSWER = 96      # tokens


@dataclass
class AdaptConfig(Settings):
    pairs: int = option(64, "pairs to train on, each seen once", at_least=1)
    heldout: int = option(200, "most held-out pairs to measure on", at_least=1)
    out: str = option("runs/pretrained", "folder for seed-<seed>.json, the figures of the run")
    beside_trl: bool = option(False, "train on the pairs here and with TRL, and compare (needs the "
                                     "extra [peers])")


def answer(model: Any, tokenizer: Any, prompts: Sequence[list[int]],
           seed: int | None = None) -> list[list[int]]:
    """One answer to each prompt, as ids up to the token that ends it; without a seed, greedy."""
    how: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        torch.manual_seed(seed)
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    written = model.generate(**inputs, **how, max_new_tokens=LONGEST_ANSWER,
                             pad_token_id=tokenizer.pad_token_id,
                             eos_token_id=tokenizer.eos_token_id)
    answers = written[:, inputs["input_ids"].shape[1]:].tolist()
    return [up_to(ids, tokenizer.eos_token_id) for ids in answers]


def up_to(ids: list[int], end: int) -> list[int]:
    return ids[:ids.index(end) + 1] if end in ids else ids


@torch.no_grad()
def kl_to_reference(model: Any, examples: Sequence[Example]) -> float:
    """KL(policy || reference) in nats per response, exact at each token of the policy's answers."""
    total = 0.0
    for start in range(0, len(examples), 4):  # few: each token has tens of thousands of logits
        batch = collate(examples[start:start + 4])
        logits, _ = response_logits(model, batch)
        with model.disable_adapter():
            ref_logits, _ = response_logits(model, batch)
        total += float(exact_kl(logits, ref_logits).sum())
    return total / len(examples)


def questions_of(rows: Sequence[Record], count: int) -> list[str]:
    """The first prompts of the rows, each once."""
    return list(dict.fromkeys(row["prompt"] for row in rows))[:count]


def measure(model: Any, tokenizer: Any, rows: Sequence[Record], seed: int) -> dict[str, float]:
    """Figures of the model on held-out rows, and of answers that it samples to their prompts."""
    logps, ref_logps = logps_of(model, [tokenize(tokenizer, row) for row in rows])
    chosen, rejected = (logps - ref_logps).unbind(1)
    prompts = [prompt_ids(tokenizer, question) for question in questions_of(rows, MEASURED)]
    answers = answer(model, tokenizer, prompts, seed)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    answered = list(zip(prompts, answers, strict=True))
    return {"accuracy": float(preference_accuracy(chosen - rejected)),
            "accuracy_by_logps": float(preference_accuracy(logps[:, 0] - logps[:, 1])),
            "log_ratio_chosen": float(chosen.mean()), "log_ratio_rejected": float(rejected.mean()),
            "kl_nats_per_response": kl_to_reference(model, answered),
            "finished_share": mean(tokenizer.eos_token_id in ids for ids in answers),
            "response_tokens": mean(map(len, answers)),
            "repetition": mean(map(repetition, texts))}


def before_and_after(model: Any, tokenizer: Any,
                     rows: Sequence[Record]) -> list[tuple[str, str, str]]:
    """(question, answer without the adapters, answer with them) for the first questions."""
    questions = questions_of(rows, SHOWN)
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    after = answer(model, tokenizer, prompts)
    with model.disable_adapter():
        before = answer(model, tokenizer, prompts)
    texts = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (before, after))
    return list(zip(questions, *texts, strict=True))


def written(tokenizer: Any, question: str) -> dict[str, str]:
    """The question as a prompt: in the model's chat template, or as plain text with some end."""
    return {"the chat template": prompt_text(tokenizer, question), "plain text": question,
            "a space at the end": question + " ", "a blank line at the end": question + "\n\n"}


def merged_shares(tokenizer: Any, rows: Sequence[Record]) -> dict[str, float]:
    """Of each way to write prompts: how often tokens depend on where prompt and response meet."""
    found = [{way: merges(tokenizer, prompt, row[side])
              for way, prompt in written(tokenizer, row["prompt"]).items()}
             for row in rows for side in ("chosen", "rejected")]
    return {way: mean(each[way] for each in found) for way in found[0]}


def load_rows(config: AdaptConfig, rows: RowsConfig,
              seed: int) -> tuple[list[Record], list[Record]]:
    """(rows to train on, in the order of the seed; held-out rows), of files or the little world."""
    rows = replace(rows, max_seq_len=rows.max_seq_len or LONGEST_ROW)
    task = load_task(rows, WorldConfig(), seed)
    order = torch.randperm(len(task.preferences), generator=seeded(seed, "order")).tolist()
    return ([task.preferences[index] for index in order[:config.pairs]],
            task.heldout_preferences[:config.heldout])


def run(model: Any, tokenizer: Any, rows: Sequence[Record], heldout: Sequence[Record],
        config: PretrainedConfig) -> dict[str, Any]:
    """Adapt the model to the rows, in place: figures on held-out rows, before and after."""
    started = time.perf_counter()
    model = with_adapters(model, config.rank, config.seed)
    before = measure(model, tokenizer, heldout, config.seed)
    training = time.perf_counter()
    history = train(model, [tokenize(tokenizer, row) for row in rows], config)
    training = time.perf_counter() - training
    after = measure(model, tokenizer, heldout, config.seed)
    trained, total = model.get_nb_trainable_parameters()
    return {"settings": asdict(config), "pairs": len(rows), "heldout_pairs": len(heldout),
            "weights": total - trained, "weights_trained": trained, "before": before,
            "after": after, "answers": before_and_after(model, tokenizer, heldout),
            "seconds_per_pair": training / len(rows), "seconds": time.perf_counter() - started,
            "peak_memory_mb": peak_memory_mb(),
            "merged_shares": merged_shares(tokenizer, [*rows, *heldout]), "history": history}


def main(argv: Sequence[str] | None = None) -> None:
    rows_config, adapt, config = parse(__doc__, argv, RowsConfig, AdaptConfig, PretrainedConfig)
    make_folder(Path(adapt.out))
    rows, heldout = load_rows(adapt, rows_config, config.seed)
    if adapt.beside_trl:
        name, result = "beside-trl", compare(rows, heldout, config)
    else:
        name, result = f"seed-{config.seed}", run(*load(config.model), rows, heldout, config)
    write_json(Path(adapt.out) / f"{name}.json", result)
    print(json.dumps({key: value for key, value in result.items() if key != "history"}, indent=2,
                     ensure_ascii=False))


if __name__ == "__main__":
    run_command(main)
