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
from minigpt.options import Settings, flag_of, option
from minigpt.protocol import Model
from minigpt.recipes import below
from minigpt.run_folder import check_same
from minigpt.seeding import seed_of, seeded
from minigpt.settings import TrainingConfig

Judge = Callable[[list[str], list[str]], Any]  # scores: one number for each response
PROMPTS_AT_ONCE = 32
WORLD = "world"  # what --judge and --reward call the little world, which judges by itself


@dataclass
class RoundsConfig(Settings):
    """Rounds of sampling, judging and training."""

    rounds: int | None = option(None, "train on the policy's own answers, sampled and judged anew "
                                      "in each of this many rounds", at_least=1)
    judge: str | None = option(None, "what judges them: the checkpoint of a reward model, or "
                                     "'world', the little world's true reward (not 1 or 0, as "
                                     "--reward world of ppo.main)")
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
    if config.judge is not None:
        check_named("--judge", [config.judge], has_data)


def check_named(option: str, names: Sequence[str], has_data: bool) -> None:
    """Raises UserError unless each of these names is a file, or the little world that there is."""
    if has_data and WORLD in names:
        raise UserError(f"{option} {WORLD} needs the little world: leave out --data")
    for name in names:
        if name != WORLD and not Path(name).is_file():
            raise UserError(f"{option} {name}: there is no such file")


def judge_in_chat(config: RoundsConfig) -> list[str]:
    """The option with which the chat scores answers by the judge, if that is a checkpoint."""
    return ["--reward", config.judge] if config.judge not in (None, WORLD) else []


class Judged(NamedTuple):
    """A prompt, the answers that can be learned from, and their scores."""

    prompt: str
    responses: list[str]
    scores: list[float]


def sample_judged(policy: Model, prompts: Sequence[str], judge: Judge, config: RoundsConfig,
                  max_new_tokens: int, seed: int) -> tuple[list[Judged], int]:
    """`round_prompts` of these prompts, drawn in equal numbers, each with its judged answers.

    Returns them, and how many tokens were sampled.  Several processes share the work.
    Raises ValueError if there are no prompts, or as `scores_of` does.
    """
    if not prompts:
        raise ValueError("prompts is empty: there is nothing to answer")
    generator = seeded(seed, "prompts of the round")
    asked: list[str] = []
    while len(asked) < config.round_prompts:
        asked += [prompts[i] for i in torch.randperm(len(prompts), generator=generator)]
    asked, k, parts = asked[:config.round_prompts], config.samples_per_prompt, []
    starts = distributed.share_of(range(0, len(asked), PROMPTS_AT_ONCE))
    for start in tqdm(starts, desc="sampling", leave=False,
                      disable=True if distributed.rank() else None):
        part = [Judged(prompt, [], []) for prompt in asked[start:start + PROMPTS_AT_ONCE]]
        _, responses = sample_responses(policy, [one.prompt for one in part], k, max_new_tokens,
                                        seed_of(seed, "round", start))
        kept = [(part[i // k], response.text) for i, response in enumerate(responses)
                if response.finished and response.text.strip()]
        scores = scores_of(judge, [one.prompt for one, _ in kept], [text for _, text in kept])
        for (one, text), score in zip(kept, scores, strict=True):
            one.responses.append(text)
            one.scores.append(score)
        parts.append((part, sum(len(response.ids) for response in responses)))
    parts = distributed.all_shares(parts)
    return [one for part, _ in parts for one in part], sum(tokens for _, tokens in parts)


def scores_of(judge: Judge, prompts: list[str], responses: list[str]) -> list[float]:
    """The judge's scores.  Raises ValueError unless there is a finite one for each response."""
    scores = [float(score) for score in judge(prompts, responses)] if responses else []
    if len(scores) != len(responses):
        raise ValueError(f"the judge gave {len(scores)} scores for {len(responses)} answers")
    for prompt, text, score in zip(prompts, responses, scores, strict=True):
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
    Raises UserError if that was begun with other settings; more rounds are no others.
    """
    settings = {name: value for name, value in vars(config).items() if name != "rounds"}
    if not (run.out is None or run.resume or distributed.rank()):
        for stale in Path(run.out).glob("round-*/rows.jsonl"):
            stale.unlink()
    for number in tqdm(range(1, (config.rounds or 1) + 1), desc="rounds", leave=False,
                       disable=True if distributed.rank() else None):
        seed, out = seed_of(run.seed, "round", number), below(run.out, f"round-{number}")
        kept = None if out is None else Path(out) / "rows.jsonl"
        if run.resume and kept is not None and kept.exists():
            sampled = kept.with_name("sampled.json")
            check_same(sampled, json.loads(sampled.read_text(encoding="utf-8")), settings)
            rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
        else:
            rows, tokens = make_rows(seed)
            if kept is not None:
                write_json(kept.with_name("sampled.json"), {"tokens": tokens, **settings})
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
