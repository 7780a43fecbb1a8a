"""Rejection sampling: SFT on the best of the model's own answers, round after round.

Best-of-n as a teacher (Dong et al. 2023, "RAFT", arXiv:2304.06767; Touvron et al. 2023, "Llama 2",
arXiv:2307.09288, section 3.2.3): no gradient of the reward is needed, only its ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minigpt.errors import UserError
from minigpt.judged import Judge, RoundsConfig, rounds_of, sample_judged
from minigpt.options import option
from minigpt.protocol import Model
from sft.train import SFTConfig, sft_train


@dataclass
class RejectionConfig(RoundsConfig):
    """Rounds of rejection sampling."""

    round_lr: float = option(3e-4, "peak learning rate of each round", above=0)


def sft_rounds(model: Model, prompts: Sequence[str], judge: Judge, rejection: RejectionConfig,
               config: SFTConfig, max_new_tokens: int) -> tuple[Model, list[float]]:
    """Train `model` in place, in rejection.rounds rounds, each on the best answer to each prompt.

    judge: (prompts, responses) -> scores.  Returns the model and the loss of every step.
    Raises UserError if no answer of a round ended by itself.
    """
    def make_rows(seed: int) -> tuple[list[dict[str, str]], int]:
        judged, tokens = sample_judged(model, prompts, judge, rejection, max_new_tokens, seed)
        rows = [{"prompt": prompt, "response": responses[scores.index(max(scores))]}
                for prompt, responses, scores in judged if responses]
        if not rows:
            raise UserError("no answer of this round ended by itself, so there is none to learn "
                            "from: train the start longer, or raise --max-new-tokens")
        return rows, tokens

    losses: list[float] = []
    for rows, settings in rounds_of(rejection, config, make_rows):
        model, of_round = sft_train(model, rows, **{**settings, "lr": rejection.round_lr,
                                                "min_steps": 1})
        losses += of_round
    return model, losses
