"""The training run: all that a loop needs and a reader may skip.

    run = TrainingRun({"policy": policy}, config, steps=config.num_epochs * len(batches))
    for batch in run.steps(batches):
        loss, metrics = ...
        run.update(loss, metrics)

Nothing random lives in a run: the data order of epoch e follows from (seed, e), the warm-up and decay from the step.
So a checkpoint is weights, optimizer, step and log, and a resumed run repeats what it would have done.
"""

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minigpt.batching import Batch, Batches
from minigpt.checkpoint import load_state, save_state
from minigpt.cli import UserError, option


@dataclass
class TrainingConfig:
    """What every run can be told; each stage adds its own and chooses the defaults.  QUICK: what --quick changes."""

    QUICK: ClassVar[dict] = {}

    lr: float = option(1e-3, "peak learning rate of AdamW")
    batch_size: int = option(64, "examples in one optimizer step")
    warmup: float = option(0.05, "share of the steps in which the learning rate rises from 0")
    final_lr: float = option(0.0, "share of the peak at which the cosine decay ends")
    weight_decay: float = option(0.0, "AdamW's pull of matrices towards zero")
    max_grad_norm: float = option(1.0, "clip each model's gradient to this length")
    precision: str = option("float32", "arithmetic of the matrix products (auto: bfloat16 where the processor has it)",
                            choices=("auto", "float32", "bfloat16"))
    seed: int = option(0, "of the data order and of sampling")
    out: str | None = option(None, "folder for metrics.jsonl and checkpoints")
    save_every: int = option(500, "steps between two checkpoints")
    resume: bool = option(False, "go on from the checkpoint in --out")


@dataclass
class EpochConfig(TrainingConfig):
    """For the stages that pass over a fixed set of rows."""

    num_epochs: int = option(1, "passes over the rows")
    accumulate: int = option(1, "backward passes that share one optimizer step (less memory, the same result)")


def recipe(config_class: type, run: TrainingConfig, stage: str, quick: bool) -> Any:
    """The default settings of another stage, for a start made on the way to `run`: its seed, a folder inside its own."""
    return config_class(**{**(config_class.QUICK if quick else {}), "seed": run.seed, "resume": run.resume,
                           "out": f"{run.out}/{stage}"})


def fast_precision(device: torch.device) -> str:
    """bfloat16 where matrix products in it are several times faster than in float32, else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    offered = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}  # older torch does not say
    return "bfloat16" if offered.get("avx512_bf16") or offered.get("amx_bf16") else "float32"


class TrainingRun:
    """Optimizer, schedule, clipping, precision, progress bar, log and checkpoints of one run.

    models: what is trained, by name; lrs: the peak learning rates that differ from config.lr, by the same names.
    history: every logged metric as a list with one value a step.  state: what else a resumed run must know.
    """

    def __init__(self, models: dict[str, nn.Module], config: TrainingConfig, num_steps: int,
                 lrs: dict[str, float] | None = None, adam_eps: float = 1e-8, state: dict[str, Any] | None = None):
        if num_steps < 1:
            raise ValueError("this run has no steps: num_epochs (or num_episodes) must be at least 1")
        self.models, self.config, self.num_steps = models, config, num_steps
        self.step, self.num_tokens, self.history, self.state = 0, 0, {}, state or {}
        self.device = next(next(iter(models.values())).parameters()).device
        self.precision = fast_precision(self.device) if config.precision == "auto" else config.precision
        groups = []
        for name, model in models.items():
            peak = (lrs or {}).get(name, config.lr)
            for decay, dims in ((config.weight_decay, (2,)), (0.0, (0, 1))):  # matrices decay, norms and biases do not
                parameters = [p for p in model.parameters() if p.dim() in dims]
                groups.append({"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=adam_eps, fused=True)
        self._epoch, self._shares, self._sums = 0.0, [], {}
        if config.out is not None:
            self._open_folder(Path(config.out))

    # --- the loop ---------------------------------------------------------------------------------------------------

    def steps(self, batches: Batches, accumulate: int = 1, by_tokens: bool = False) -> Iterator[Batch]:
        """Yield batches, epoch after epoch, until the run has made its steps.

        With accumulate > 1 a batch comes in parts that share one optimizer step.  Each part's loss is a mean, over
        examples or (by_tokens) over response tokens, and counts by its share of them: the sum is the whole's mean.
        """
        order_of, order = -1, []
        with tqdm(total=self.num_steps, initial=self.step, leave=False, disable=None) as bar:
            while self.step < self.num_steps:
                epoch, index = divmod(self.step, len(batches))
                if epoch != order_of:
                    order_of, order = epoch, batches.epoch(epoch)
                size = -(-len(order[index]) // accumulate)
                parts = [batches.collate(order[index][i:i + size]) for i in range(0, len(order[index]), size)]
                weights = [int(part.response_mask.sum()) if by_tokens else len(part.examples) for part in parts]
                self._shares = [weight / sum(weights) for weight in weights]
                self._epoch = self.step / len(batches)
                for part in parts:
                    self.num_tokens += int(part.lengths.sum())
                    with self.autocast():
                        yield part.to(self.device)
                bar.update()
                bar.set_postfix_str("  ".join(f"{k} {v[-1]:.3f}" for k, v in list(self.history.items())[:2]))
                if self.config.out is not None and (self.step % self.config.save_every == 0
                                                    or self.step == self.num_steps):
                    self._save()

    def update(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """One backward pass; after the last part of a batch: clip, step, decay the rate, log."""
        share = self._shares.pop(0)
        self.backward(loss * share)
        for name, value in {"loss": loss.detach(), **metrics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * share
        if not self._shares:
            grad_norm = self.optimizer_step()
            self.log({**self._sums, "grad_norm": grad_norm})
            self._sums = {}

    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradient.  Raises FloatingPointError, naming the step, if the loss is not finite."""
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {self.step + 1}: the loss is {loss.item()}; no weight was changed by it. "
                                     "Lower the learning rate, or look at the rows of this batch")
        loss.backward()

    def optimizer_step(self) -> float:
        """Clip, step, clear.  Returns the gradient's length before clipping; FloatingPointError if it is not finite."""
        norms = torch.stack([nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
                             for model in self.models.values()])
        if not torch.isfinite(norms).all():
            raise FloatingPointError(f"step {self.step + 1}: the gradient is not finite, though the loss is; no weight was "
                                     "changed by it. Lower the learning rate")
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.schedule(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norms.square().sum().sqrt())

    def schedule(self, step: int) -> float:
        """The learning rate as a share of its peak: a linear rise, then a cosine down to final_lr."""
        warmup = max(1, round(self.config.warmup * self.num_steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        return self.config.final_lr + (1 - self.config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def log(self, metrics: dict[str, float]) -> None:
        """Close the step: a line in metrics.jsonl, and one value more in every history."""
        self.step += 1
        line = {name: float(value) for name, value in metrics.items()}
        line |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "epoch": self._epoch,
                 "global_step": self.step, "num_tokens": self.num_tokens}
        for name, value in line.items():
            self.history.setdefault(name, []).append(value)
        if self.config.out is not None:
            with (Path(self.config.out) / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def autocast(self) -> AbstractContextManager:
        """The run's precision, as a context.  Casts are not cached: PPO steps several times inside one, and a cached
        weight would be the one before the step."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    # --- what is on the disk ----------------------------------------------------------------------------------------

    def _open_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.config.resume and (folder / "state.pt").exists():
            self._load(folder / "state.pt")
        else:  # a checkpoint of an earlier run must not be what a later --resume finds
            (folder / "state.pt").unlink(missing_ok=True)
        names = list(self.history)
        lines = [dict(zip(names, values, strict=True)) for values in zip(*self.history.values(), strict=True)]
        with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:  # without the steps after the checkpoint
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _save(self) -> None:
        save_state({"settings": self._settings(), "step": self.step, "num_steps": self.num_steps,
                    "num_tokens": self.num_tokens, "history": self.history, "state": self.state,
                    "optimizer": self.optimizer.state_dict(),
                    "models": {name: model.state_dict() for name, model in self.models.items()}},
                   Path(self.config.out) / "state.pt")

    def _settings(self) -> dict[str, Any]:
        """What a resumed run must share with the one that it goes on with."""
        return {name: value for name, value in vars(self.config).items() if name not in ("out", "resume", "save_every")}

    def _load(self, path: Path) -> None:
        saved = load_state(path)
        if saved["num_steps"] != self.num_steps or saved["models"].keys() != self.models.keys():
            raise UserError(f"{path} belongs to a run of {saved['num_steps']} steps of {sorted(saved['models'])}, this one "
                             f"has {self.num_steps} of {sorted(self.models)}: resume with the settings it began with")
        theirs = saved["settings"]
        changed = {name: value for name, value in self._settings().items() if theirs.get(name) != value}
        if changed:
            raise UserError(f"{path} was made with {', '.join(f'{n}={theirs.get(n)}' for n in changed)}, not with "
                             f"{', '.join(f'{n}={v}' for n, v in changed.items())}: resume with the settings it began "
                             "with")
        for name, model in self.models.items():
            model.load_state_dict(saved["models"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.num_tokens = saved["step"], saved["num_tokens"]
        self.history, self.state = saved["history"], saved["state"]


def read_history(folder: str | Path) -> dict[str, list[float]]:
    """metrics.jsonl, each metric as a list with one value a step."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open(encoding="utf-8")]
    return {name: [line[name] for line in lines] for name in lines[0]}
