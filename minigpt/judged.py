"""A policy's own answers, judged: what rounds of sampling and training learn from.

Several answers are sampled to each prompt, and a judge, a function (prompts, responses) -> scores,
says which are better.  Answers that did not end, or are empty, are left out: they are not examples.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from minigpt import distributed
from minigpt.disk import replace_text, write_json
from minigpt.errors import UserError
from minigpt.evaluation import sample_responses
from minigpt.model import MiniGPT
from minigpt.options import Settings, flag_of, option
from minigpt.recipes import below
from minigpt.seeding import seed_of, seeded
from minigpt.settings import TrainingConfig

Judge = Callable[[list[str], list[str]], Any]  # scores: one number for each response
PROMPTS_AT_ONCE = 32


@dataclass
class RoundsConfig(Settings):
    """Rounds of sampling, judging and training."""

    rounds: int | None = option(None, "train on the policy's own answers, sampled and judged anew "
                                      "in each of this many rounds", at_least=1)
    judge: str | None = option(None, "what judges them: the checkpoint of a reward model, or "
                                     "'world', the little world's true reward")
    samples_per_prompt: int = option(8, "answers sampled to each prompt", at_least=2)
    round_prompts: int = option(1024, "prompts answered in a round; if there are fewer, some again",
                                at_least=1)


def check_rounds(config: RoundsConfig, has_data: bool) -> None:
    """Raises UserError, before anything is trained, if these settings do not fit together."""
    if (config.rounds is None) != (config.judge is None):
        raise UserError("--rounds and --judge must be given together")
    changed = [setting.name for setting in fields(config) if setting.name != "round_prompts"
               and getattr(config, setting.name) != setting.default]  # which --quick sets
    if config.rounds is None and changed:
        raise UserError(f"{flag_of(changed[0])} would change nothing without --rounds")
    if config.judge == "world" and has_data:
        raise UserError("--judge world needs the little world: leave out --data")
    if config.judge not in (None, "world") and not Path(config.judge).is_file():
        raise UserError(f"--judge {config.judge}: there is no such file")


def judge_in_chat(config: RoundsConfig) -> list[str]:
    """The option with which the chat scores answers by the judge, if that is a checkpoint."""
    return ["--reward", config.judge] if config.judge not in (None, "world") else []


class Judged(NamedTuple):
    """A prompt, the answers that can be learned from, and their scores."""

    prompt: str
    responses: list[str]
    scores: list[float]


def sample_judged(policy: MiniGPT, prompts: Sequence[str], judge: Judge, config: RoundsConfig,
                  max_new_tokens: int, seed: int) -> tuple[list[Judged], int]:
    """`round_prompts` of these prompts, drawn in equal numbers, each with its judged answers.

    Returns them, and how many tokens were sampled.

    Raises ValueError if there are no prompts, or if the judge gives another number of scores than
    there are responses.
    """
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to answer")
    generator = seeded(seed, "prompts of the round")
    asked: list[str] = []
    while len(asked) < config.round_prompts:
        asked += [prompts[i] for i in torch.randperm(len(prompts), generator=generator)]
    judged: list[Judged] = []
    tokens = 0
    starts = range(0, config.round_prompts, PROMPTS_AT_ONCE)
    for start in tqdm(starts, desc="sampling", leave=False,
                      disable=True if distributed.rank() else None):
        some = asked[start:min(start + PROMPTS_AT_ONCE, config.round_prompts)]
        _, responses = sample_responses(policy, some, config.samples_per_prompt, max_new_tokens,
                                        seed_of(seed, "round", start))
        tokens += sum(len(response.ids) for response in responses)
        sampled = iter(responses)
        groups = [[next(sampled) for _ in range(config.samples_per_prompt)] for _ in some]
        texts = [[answer.text for answer in group if answer.finished and answer.text.strip()]
                 for group in groups]
        scores = iter(scores_of(judge, some, texts))
        judged += [Judged(prompt, of_prompt, [next(scores) for _ in of_prompt])
                   for prompt, of_prompt in zip(some, texts, strict=True)]
    return judged, tokens


def scores_of(judge: Judge, prompts: Sequence[str], texts: Sequence[list[str]]) -> list[float]:
    """The judge's scores of all answers to all prompts, in order."""
    answers = [text for of_prompt in texts for text in of_prompt]
    if not answers:
        return []
    asked = [prompt for prompt, of_prompt in zip(prompts, texts, strict=True) for _ in of_prompt]
    scores = [float(score) for score in judge(asked, answers)]
    if len(scores) != len(answers):
        raise ValueError(f"the judge gave {len(scores)} scores for {len(answers)} answers")
    for prompt, text, score in zip(asked, answers, scores, strict=True):
        if not math.isfinite(score):  # it would turn preferences round
            raise ValueError(f"the judge gave {score} for the prompt {prompt!r} and the answer "
                             f"{text!r}, which is not a finite number")
    return scores


def rounds_of(config: RoundsConfig, run: TrainingConfig,
              make_rows: Callable[[int], tuple[list[dict], int]]
              ) -> Iterator[tuple[list[dict[str, str]], dict[str, Any]]]:
    """For each round, its rows and the settings of its training run, to be used before the next.

    make_rows(seed) samples them, and counts the sampled tokens; both are kept in round-1, round-2,
    ... below run.out, where a resumed run finds them again.
    """
    if not (run.out is None or run.resume or distributed.rank()):
        for stale in Path(run.out).glob("round-*/rows.jsonl"):
            stale.unlink()
    for number in tqdm(range(1, (config.rounds or 1) + 1), desc="rounds", leave=False,
                       disable=True if distributed.rank() else None):
        seed, out = seed_of(run.seed, "round", number), below(run.out, f"round-{number}")
        kept = None if out is None else Path(out) / "rows.jsonl"
        if run.resume and kept is not None and kept.exists():
            rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
        else:
            rows, tokens = make_rows(seed)
            if kept is not None:
                write_json(kept.with_name("sampled.json"), {"tokens": tokens})
                replace_text(kept, "".join(json.dumps(row) + "\n" for row in rows))
        yield rows, {**vars(run), "out": out, "seed": seed}


def sampling_figures(config: RoundsConfig, out: str) -> dict[str, float]:
    """What the rounds of a finished run sampled."""
    if config.rounds is None:
        return {}
    tokens = sum(json.loads(kept.read_text(encoding="utf-8"))["tokens"]
                 for kept in Path(out).glob("round-*/sampled.json"))
    return {"answers_sampled": config.rounds * config.round_prompts * config.samples_per_prompt,
            "tokens_sampled": tokens}
