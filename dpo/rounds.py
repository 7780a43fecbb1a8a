"""DPO in rounds, on the policy's own answers: sample, let a judge rank, train, repeat.

Online or iterative DPO (Guo et al. 2024, arXiv:2402.04792; Yuan et al. 2024, arXiv:2401.10020):
fresh pairs show what the policy does now, where a fixed set shows what another model once did.
"""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from dpo.train import DPOConfig, dpo_train
from minigpt.errors import UserError
from minigpt.judged import Judge, Judged, RoundsConfig, check_rounds, rounds_of, sample_judged
from minigpt.lora import LoraConfig
from minigpt.options import option
from minigpt.protocol import Model

Result = tuple[Model, list[float], list[float]]


@dataclass
class OnlineConfig(RoundsConfig):
    """Rounds of DPO."""

    pairs: str = option("best-worst", "what a round learns from: of each prompt the best and "
                                          "the worst answer, or two at random, which the judge "
                                          "compares by Bradley-Terry",
                        choices=("best-worst", "bradley-terry"))
    reference: str = option("start", "in each round: the start, to which beta then ties the policy "
                                     "throughout, or the last round's policy, so that it may go as "
                                     "far again", choices=("start", "last"))


def check_online(online: OnlineConfig, lora: LoraConfig, has_data: bool) -> None:
    """Raises UserError, before anything is trained, if these settings do not fit together."""
    check_rounds(online, has_data)
    if online.reference == "last" and lora.lora_rank is not None:
        raise UserError("--reference last needs a copy of the policy, but with --lora-rank the "
                        "reference is the model without its adapters, the start: leave one out")


def dpo_rounds(policy: Model, reference: Model | None, prompts: Sequence[str], judge: Judge,
               online: OnlineConfig, config: DPOConfig, max_new_tokens: int) -> Result:
    """Train `policy` in place, in online.rounds rounds, each with the settings of `config`.

    judge: (prompts, responses) -> scores.  Returns what `dpo_train` does, for all rounds.
    Raises UserError if no prompt of a round has two answers that differ in score.
    """
    def make_rows(seed: int) -> tuple[list[dict[str, str]], int]:
        judged, tokens = sample_judged(policy, prompts, judge, online, max_new_tokens, seed)
        rows = pairs_of(judged, online.pairs, seed)
        if not rows:
            raise UserError("no prompt of this round has two answers that differ in score, so "
                            "there is nothing to learn: raise --samples-per-prompt")
        return rows, tokens

    losses: list[float] = []
    margins: list[float] = []
    for rows, settings in rounds_of(online, config, make_rows):
        before = copy.deepcopy(policy) if online.reference == "last" else reference
        policy, of_round, margins_of_round = dpo_train(policy, before, rows, **settings)
        losses, margins = losses + of_round, margins + margins_of_round
    return policy, losses, margins


def pairs_of(judged: Sequence[Judged], kind: str, seed: int) -> list[dict[str, str]]:
    """One preference for each prompt; none where the answers are the same or score the same."""
    rng = random.Random(f"{seed} pairs")
    rows = []
    for prompt, responses, scores in judged:
        by_score = sorted(range(len(scores)), key=scores.__getitem__)
        if len(by_score) < 2:
            continue
        worst, best = by_score[0], by_score[-1]
        if kind == "bradley-terry":
            worst, best = rng.sample(by_score, 2)
            if rng.random() > 1 / (1 + math.exp(min(scores[worst] - scores[best], 700))):
                worst, best = best, worst
        elif scores[worst] == scores[best]:
            continue
        if responses[worst] != responses[best]:
            rows.append({"prompt": prompt, "chosen": responses[best],
                         "rejected": responses[worst]})
    return rows
