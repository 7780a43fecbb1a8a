"""AdamW with warm-up and decay, clipping, averaged weights, and precision; also for several
processes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from minigpt import distributed
from minigpt.processor import AdamW, fast_precision, onednn_matmul, tf32_matmul
from minigpt.settings import TrainingConfig


class Optimizer:
    """AdamW over one or several models.

    models: what is trained, by name.  lrs: the peak learning rates that differ from config.lr, by
    the same names.  num_steps: the steps of the whole run, over which the rate rises and falls.
    """

    def __init__(self, models: Mapping[str, nn.Module], config: TrainingConfig, num_steps: int,
                 lrs: Mapping[str, float] | None = None, eps: float = 1e-8):
        self.models, self.config, self.num_steps = models, config, num_steps
        self.device = next(next(iter(models.values())).parameters()).device
        self.dtype = precision_of(config, self.device)
        self.processes = (distributed.Shards if config.shard else distributed.Replicas)(
            models, self.device)
        groups = []
        for name, model in models.items():
            if not any(p.requires_grad for p in model.parameters()):
                raise ValueError(f"every weight of the {name} model is frozen, so it cannot be "
                                 "trained: model.requires_grad_(True) thaws it")
            peak = (lrs or {}).get(name, config.lr)
            for decay, matrices in ((config.weight_decay, True), (0.0, False)):  # only they decay
                parameters = [p for p in model.parameters() if (p.dim() >= 2) == matrices]
                groups.append({"params": parameters, "lr": peak, "peak": peak,
                               "weight_decay": decay})
        self.adamw = AdamW(groups, betas=(0.9, 0.99), eps=eps, fused=True)
        self.error_hint: Callable[[], str] = lambda: ""

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The arithmetic of forward passes: bfloat16 products where config.precision says so.

        Casts are not cached: a step made within the block would leave the weights cast before it.
        A FloatingPointError within it is told where it happened.
        """
        fast = self.dtype == "bfloat16"
        with onednn_matmul(), tf32_matmul(fast), nullcontext() if not fast else \
                torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            try:
                yield
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}. {self.error_hint()}") from error

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this loss.  Raises FloatingPointError if it is not finite."""
        if not torch.isfinite(loss):
            self._fail(f"the loss is {loss.item()}")
        with self.precision():
            loss.backward()

    def step(self) -> float:
        """Clip the gradient, step, and clear it.  Returns its norm before clipping.

        Each model is clipped on its own; the norm returned is over all of them.
        Raises FloatingPointError if a gradient is not finite.
        """
        self.processes.average_gradients()
        limit = self.config.max_grad_norm or math.inf
        norms = torch.stack([distributed.gathered(
            nn.utils.clip_grad_norm_(model.parameters(), limit)) for model in self.models.values()])
        if not torch.isfinite(norms).all():
            self._fail("the gradient is not finite, though the loss is")
        self.adamw.step()
        self.zero_grad()
        return float(norms.square().sum().sqrt())

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.adamw.zero_grad(set_to_none=True)

    def begin_step(self, step: int, error_hint: Callable[[], str]) -> None:
        """Set the learning rate of this step; `error_hint()` is what an error message adds."""
        self.error_hint = error_hint
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * self.schedule(step)

    @torch.no_grad()
    def end_step(self, steps: int) -> None:
        """Average the weights over the last steps, as config.average says; `steps` are done.

        When the run ends, their mean takes the weights' place (Polyak and Juditsky 1992,
        doi:10.1137/0330046; Izmailov et al. 2018, arXiv:1803.05407).  The mean is kept, and saved,
        beside AdamW's moments, in float32 at least: it moves by too little for bfloat16.
        """
        averaged = steps - round((1 - self.config.average) * self.num_steps)
        if averaged > 0:
            for weight, state in self.adamw.state.items():
                precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
                if "mean" not in state:
                    state["mean"] = precise.clone()
                mean = state["mean"].lerp_(precise, 1 / averaged)
                if steps == self.num_steps:
                    weight.copy_(mean)

    def schedule(self, step: int) -> float:
        """The learning rate over its peak: a linear warm-up, then a cosine down to final_lr."""
        warmup = max(1, round(self.config.warmup * self.num_steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.config.final_lr + (1 - self.config.final_lr) * cosine

    @property
    def learning_rate(self) -> float:
        return self.adamw.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state for all weights, gathered from all processes."""
        return self.processes.optimizer_state(self.adamw)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.processes.load_optimizer_state(self.adamw, state)

    def _fail(self, what: str) -> None:
        raise FloatingPointError(f"{what}; no weight was changed by it. {self.error_hint()}")


def precision_of(config: TrainingConfig, device: torch.device) -> str:
    """config.precision, with "auto" decided for this device."""
    return fast_precision(device) if config.precision == "auto" else config.precision
