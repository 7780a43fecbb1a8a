"""Any reward: a reward model, several combined, or a function of texts.

Whatever takes a reward takes all of these, and turns them into one of three modules (`as_reward`)
that have `rewards(batch) -> (B, k)`, `max_seq_len` and `device`.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from minigpt.batching import Batch
from minigpt.model import MiniGPT
from minigpt.settings import name_of
from minigpt.tokenizer import decode
from minigpt.weights import unwrapped
from reward.model import RewardModel

COMBINATIONS = ("mean", "min")

Function = Callable[[list[str], list[str]], Sequence[float] | Tensor]  # of prompts and responses
Reward: TypeAlias = "RewardModel | Ensemble | FunctionReward"
AnyReward: TypeAlias = nn.Module | Function


class Ensemble(nn.Module):
    """Several rewards in one: their mean, the least of them, or their weighted sum.

    members: reward models, functions (prompts, responses) -> scores, or ensembles.
    combine: "mean", or "min", the worst case: an answer counts only as far as every member likes
    it, so a policy gains nothing from the faults of one (Coste et al. 2023, arXiv:2310.02743, who
    call the two mean and worst-case optimisation).
    weights: one for each member.  The reward is then their weighted sum, as of several objectives,
    0.7 * helpful + 0.3 * polite.

    Raises ValueError if there are no members, if there is not one finite weight for each, if
    weights come with "min", or on another `combine`; TypeError if a member is no reward.
    """

    def __init__(self, members: Iterable[AnyReward], combine: str = "mean",
                 weights: Sequence[float] | None = None):
        super().__init__()
        self.members: Any = nn.ModuleList(as_reward(member) for member in members)
        if not self.members:
            raise ValueError("an Ensemble needs members: there are none")
        if combine not in COMBINATIONS:
            raise ValueError(f"combine={combine!r} must be one of {COMBINATIONS}")
        if weights is not None:
            check_weights(weights, len(self.members), combine)
        self.combine = combine
        self.weights = None if weights is None else [float(weight) for weight in weights]

    @property
    def settings(self) -> dict[str, Any]:
        return {"members": [member.settings for member in self.members], "combine": self.combine,
                "weights": self.weights}

    @property
    def max_seq_len(self) -> int:
        return min(member.max_seq_len for member in self.members)

    @property
    def device(self) -> torch.device:
        return next((weight.device for weight in self.parameters()), torch.device("cpu"))

    def member_rewards(self, batch: Batch) -> Tensor:
        """What each of the n members gives to every response: (n, B, k)."""
        return torch.stack([member.rewards(batch) for member in self.members])

    def rewards(self, batch: Batch) -> Tensor:
        """The combined reward of every response of a batch: (B, k) for k responses a row."""
        each = self.member_rewards(batch)
        if self.weights is not None:
            return (each.new_tensor(self.weights)[:, None, None] * each).sum(0)
        return each.mean(0) if self.combine == "mean" else each.amin(0)


def check_weights(weights: Sequence[float], members: int, combine: str) -> None:
    """Raises ValueError unless these weights can be those of so many members."""
    if len(weights) != members:
        raise ValueError(f"there are {len(weights)} weights for {members} members: give one for "
                         "each")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights={list(weights)} must all be finite")
    if combine != "mean":
        raise ValueError(f"weights are of a sum, so they have no place beside combine={combine!r}")


class FunctionReward(nn.Module):
    """A function (prompts, responses) -> scores, texts in and one number for each out, as a reward.

    It has no weights of its own and reads texts of any length.
    """

    max_seq_len, device = sys.maxsize, torch.device("cpu")

    def __init__(self, function: Function):
        super().__init__()
        self.function = function

    @property
    def settings(self) -> dict[str, str]:
        return {"function": name_of(self.function)}

    @torch.no_grad()
    def rewards(self, batch: Batch) -> Tensor:
        """The score of every response of a batch, in float32: (B, k) for k responses a row.

        The function is called once, with lists of B k texts.
        Raises ValueError if it fails, or gives another number of scores than of responses, or one
        that is not finite; it names the prompt and the response.
        """
        prompts, responses = texts_of(batch)
        name = f"the reward function {name_of(self.function)}"
        try:
            found = self._scores(prompts, responses)
        except Exception as error:
            raise ValueError(f"{name} failed on {self._culprit(prompts, responses)}: "
                             f"{type(error).__name__}: {error}") from error
        if len(found) != len(responses):
            raise ValueError(f"{name} gave {len(found)} scores for {len(responses)} responses")
        scores = torch.tensor([_number(score) for score in found], dtype=torch.float32)
        if not scores.isfinite().all():
            i = scores.isfinite().tolist().index(False)
            raise ValueError(f"{name} gave {found[i]!r}, which is not a finite number, for the "
                             f"prompt {prompts[i]!r} and the response {responses[i]!r}")
        return scores.view(len(batch.token_ids), -1).to(batch.token_ids.device)

    def _scores(self, prompts: list[str], responses: list[str]) -> list[Any]:
        found: Any = self.function([*prompts], [*responses])
        if hasattr(found, "tolist"):  # a tensor or an array
            found = found.tolist()
        if not isinstance(found, Iterable):
            raise TypeError(f"it returned {found!r}, which is not a list of scores")
        return list(found)

    def _culprit(self, prompts: list[str], responses: list[str]) -> str:
        """The first response on which the function fails alone, in words."""
        for prompt, response in zip(prompts, responses, strict=True):
            try:
                self._scores([prompt], [response])
            except Exception:
                return f"the prompt {prompt!r} and the response {response!r}"
        return f"the whole batch of {len(responses)} responses, but on none of them alone"


def _number(score: Any) -> float:
    """A real number of any kind as a float; nan if it is none."""
    try:
        return math.nan if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def texts_of(batch: Batch) -> tuple[list[str], list[str]]:
    """The prompt and the text of each response, row by row: two lists of B k texts."""
    ids, masks = batch.token_ids.cpu(), batch.response_masks.cpu()
    prompts = [decode(row[place].tolist())
               for row, place in zip(ids, batch.segments.cpu() == 0, strict=True)]
    responses = [decode(row[mask].tolist())
                 for row, of_row in zip(ids, masks, strict=True) for mask in of_row]
    return [prompt for prompt in prompts for _ in range(masks.shape[1])], responses


def as_reward(reward: AnyReward) -> Reward:
    """A RewardModel, Ensemble or FunctionReward as it is, and a function as a FunctionReward.

    A model that was compiled or wrapped (DataParallel) is unwrapped.
    Raises TypeError on anything else.
    """
    inside = unwrapped(reward) if isinstance(reward, nn.Module) else reward
    if isinstance(inside, RewardModel | Ensemble | FunctionReward):
        return inside
    if not callable(reward) or isinstance(inside, MiniGPT | type):
        raise TypeError(f"a {type(inside).__name__} is not a reward: give a RewardModel, an "
                        "Ensemble of several, or a function (prompts, responses) -> scores")
    return FunctionReward(reward)
