"""LoRA: train small adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    h = W x + (alpha / r) B A x        W (O, I) frozen; A (r, I) and B (O, r) trained

B starts at zero, so at step 0 the model is exactly the one that it was made from.  With its
adapters off it stays that model for ever: it is its own reference, and no copy is kept in memory.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minigpt.errors import UserError
from minigpt.logprobs import comparable_model
from minigpt.model import MiniGPT
from minigpt.options import Settings, option
from minigpt.protocol import Model, checked_model, in_mode
from minigpt.seeding import seeded
from minigpt.weights import check_reference, unwrapped

M = TypeVar("M", bound=nn.Module)


@dataclass
class LoraConfig(Settings):
    """Whether to train adapters instead of all weights."""

    lora_rank: int | None = option(None, "train adapters of this rank instead of all weights; the "
                                         "reference is then the model without them", at_least=1)
    lora_alpha: float | None = option(None, "alpha: adapters are scaled by alpha / rank (default: "
                                            "alpha = 2 x rank)", above=0)


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter."""

    scale: Tensor  # 0-d; kept in checkpoints

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        self.linear, self.on = linear, True
        self.register_buffer("scale", torch.tensor(alpha / rank).to(linear.weight))
        a = torch.randn(rank, linear.in_features, generator=generator) * linear.in_features ** -0.5
        self.A = nn.Parameter(a.to(linear.weight))                                         # (r, I)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))    # (O, r)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        h = self.linear(x)
        return h + self.scale * (x @ self.A.T) @ self.B.T if self.on else h

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """W + (alpha / r) B A, as a plain layer."""
        self.linear.weight += self.scale * self.B @ self.A
        return self.linear


def add_lora(model: MiniGPT, rank: int, alpha: float | None = None, seed: int = 0) -> MiniGPT:
    """Freeze the model's weights and give every linear layer of its blocks an adapter; in place.

    alpha: by default 2 x rank.  Returns the model.
    Raises TypeError on another model; UserError if the rank is not between 1 and the model's width,
    or if it has adapters.
    """
    if not isinstance(unwrapped(model), MiniGPT):
        raise TypeError(f"add_lora gives adapters to a MiniGPT, and a {type(model).__name__} is "
                        "none: freeze what is not to be trained, and pass a copy as the reference")
    check_rank(rank, model.settings["embed_dim"])
    if adapters_of(model):
        raise UserError("the model has adapters already: merge_lora returns it with them merged "
                        "into its weights")
    alpha = 2 * rank if alpha is None else alpha
    generator = seeded(seed, "lora")
    model.requires_grad_(False)
    replace_layers(model, nn.Linear, lambda layer: LoraLinear(layer, rank, alpha, generator))
    return model


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the block the model is what it was before `add_lora`, bit for bit."""
    adapters = adapters_of(model)
    for layer in adapters:
        layer.on = False
    try:
        yield
    finally:
        for layer in adapters:
            layer.on = True


def merge_lora(model: M) -> M:
    """A plain copy of the model, its adapters added to its weights; a plain model as it is."""
    if not adapters_of(model):
        return model
    plain = copy.deepcopy(unwrapped(model))
    replace_layers(plain, LoraLinear, LoraLinear.merged)
    return plain.requires_grad_(True)


def replace_layers(model: nn.Module, kind: type, make: Callable[[Any], nn.Module]) -> None:
    """Put make(layer) in the place of every layer of this kind."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, kind):
                setattr(parent, name, make(layer))


def check_rank(rank: int | None, width: int) -> None:
    """Raises UserError if adapters of this rank would be no smaller than the layers."""
    if rank is not None and not 1 <= rank <= width:
        raise UserError(f"lora_rank={rank} must be between 1 and {width}, the width of the model's "
                        "layers")


def adapters_of(model: nn.Module) -> list[LoraLinear]:
    """The model's layers that have an adapter; [] for a plain model."""
    return [layer for layer in model.modules() if isinstance(layer, LoraLinear)]


def weights_trained(model: nn.Module) -> int:
    """How many weights training changes; AdamW keeps two numbers for each."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def recipes_of(model: nn.Module) -> list[str]:
    """The recipe for adapters, if the model has any; they want a higher learning rate."""
    return ["lora"] if adapters_of(model) else []


def check_own_reference(policy: nn.Module) -> None:
    """Raises ValueError unless the policy without its adapters can be its own reference."""
    adapters = adapters_of(policy)
    if not adapters:
        raise ValueError("reference=None needs a policy with adapters (minigpt.add_lora), "
                         "which without them is its own reference; else pass a reference")
    trained = {id(weight) for layer in adapters for weight in (layer.A, layer.B)}
    for name, weight in policy.named_parameters():
        if weight.requires_grad and id(weight) not in trained:
            raise ValueError(f"reference=None needs frozen weights beside the adapters, but "
                             f"{name!r} would be trained: the reference would move with it")


def checked_models(policy: Model, reference: Model | None,
                   needs_reference: bool = True) -> tuple[Model, Model | None]:
    """Policy and reference, unwrapped; the reference in eval mode.

    Raises ValueError if they cannot be compared, TypeError if one is no LanguageModel.
    """
    policy = checked_model(policy)
    with in_mode(policy, training=True):
        comparable_model(policy)
    if reference is not None:
        reference = comparable_model(checked_model(reference).eval())
        check_reference(policy, reference)
    elif needs_reference:
        check_own_reference(policy)
    return policy, reference


@contextmanager
def as_reference(policy: Model, reference: Model | None) -> Iterator[Model]:
    """The reference; if there is none, within the block, the policy with its adapters off.

    Raises ValueError as `check_own_reference` does.
    """
    if reference is not None:
        yield reference
        return
    check_own_reference(policy)
    with adapters_off(policy):
        yield policy


def policy_and_reference(start: MiniGPT, lora: LoraConfig, seed: int,
                         needs_reference: bool = True) -> tuple[MiniGPT, MiniGPT | None]:
    """What is trained from this start, and what it is compared with.

    With adapters, or if no reference is needed, the policy is the start itself, and there is no
    second model in memory (None).
    """
    if lora.lora_rank is not None:
        return add_lora(start, lora.lora_rank, lora.lora_alpha, seed), None
    if not needs_reference:
        return start, None
    return copy.deepcopy(start), start
