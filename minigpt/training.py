"""The training run: all that a loop needs and a reader may skip.

    run = TrainingRun({"policy": policy}, config, steps=config.num_epochs * len(batches))
    for batch in run.steps(batches):
        loss, metrics = ...
        run.update(loss, metrics)

Nothing random lives in a run: the data order of epoch e follows from (seed, e), the warm-up and decay from the step.
So a checkpoint is weights, optimizer and step, and a resumed run repeats what it would have done, bit for bit.

With several processes (`minigpt.distributed`) each batch of batch_size x processes examples is dealt out to them; a
logged mean is that of the whole batch (an extreme, of reward, is the mean of the parts' extremes, also where one process
takes a batch in several pieces).
"""

import hashlib
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minigpt import distributed
from minigpt.batching import Batch, Batches, Example
from minigpt.cli import MAY_CHANGE, UserError, option
from minigpt.processor import fast_precision, keep_freed_memory, most_tokens, onednn_multiplies
from minigpt.run_folder import RunFolder

PRECISION = {"help": "arithmetic of the matrix products (auto: bfloat16 where the processor has it)",
             "choices": ("auto", "float32", "bfloat16")}


@dataclass
class TrainingConfig:
    """What every run can be told; each stage adds its own and chooses the defaults.

    QUICK: what --quick changes; OWN_DATA: what --data changes, since a file has fewer rows than the world.
    """

    QUICK: ClassVar[dict] = {}
    OWN_DATA: ClassVar[dict] = {}

    lr: float = option(1e-3, "peak learning rate of AdamW")
    batch_size: int = option(64, "examples in one optimizer step (of each process)")
    warmup: float = option(0.05, "share of the steps in which the learning rate rises from 0")
    final_lr: float = option(0.0, "share of the peak at which the cosine decay ends")
    weight_decay: float = option(0.0, "AdamW's pull of matrices towards zero")
    max_grad_norm: float = option(1.0, "clip each model's gradient to this length")
    precision: str = option("float32", **PRECISION)
    seed: int = option(0, "of the data order and of sampling")
    out: str | None = option(None, "folder for metrics.jsonl and checkpoints")
    save_every: int = option(500, "steps between two checkpoints")
    shard: bool = option(False, "under torchrun: spread the model over the processes (FSDP2), where one cannot hold it")
    resume: bool = option(False, "go on with the run in --out")
    overwrite: bool = option(False, "replace the run in --out")

    def __post_init__(self) -> None:
        for name in ("batch_size", "save_every", "num_epochs", "num_episodes", "accumulate", "minibatch_size", "ppo_epochs"):
            if getattr(self, name, 1) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.shard and not distributed.is_on():
            raise UserError("--shard spreads a model over the processes of torchrun, and this is a single process")


@dataclass
class EpochConfig(TrainingConfig):
    """For the stages that pass over a fixed set of rows."""

    num_epochs: int = option(1, "passes over the rows")
    precision: str = option("auto", **PRECISION)
    accumulate: int = option(1, "backward passes, at least, that share one optimizer step (less memory, the same result)")


def recipe(config_class: type, run: TrainingConfig, stage: str, quick: bool, own_data: bool) -> Any:
    """The default settings of another stage, for a start made on the way to `run`: its seed, a folder inside its own."""
    changed = (config_class.QUICK if quick else {}) | (config_class.OWN_DATA if own_data else {})
    changed["batch_size"] = max(1, config_class(**changed).batch_size // distributed.world_size())  # together as one alone
    return config_class(**{**changed, "seed": run.seed, "resume": run.resume, "overwrite": run.overwrite,
                           "shard": run.shard, "out": f"{run.out}/{stage}"})


class TrainingRun:
    """Optimizer, schedule, clipping, precision, progress bar, log and checkpoints of one run.

    models: what is trained, by name; lrs: the peak learning rates that differ from config.lr, by the same names.
    examples, others: what is learned from, and the models that are only read; a resumed run must have the same.
    history: every logged metric as a list with one value a step.  state: what else a resumed run must know.
    """

    def __init__(self, models: dict[str, nn.Module], config: TrainingConfig, num_steps: int,
                 examples: Sequence[Example] = (), others: Sequence[nn.Module] = (),
                 lrs: dict[str, float] | None = None, adam_eps: float = 1e-8, state: dict[str, Any] | None = None):
        keep_freed_memory()
        self.models, self.config, self.num_steps = models, config, num_steps
        self.step, self.num_tokens, self.history, self.state = 0, 0, {}, state or {}
        self.device = next(next(iter(models.values())).parameters()).device
        self.precision = fast_precision(self.device) if config.precision == "auto" else config.precision
        self.folder, saved = None, None
        if config.out is not None:
            self.folder = RunFolder(config.out, self._identity(examples, others))
            saved = self.folder.open(models, config.resume, config.overwrite)
        self._spread = (distributed.Shards if config.shard else distributed.Replicas)(models, self.device)
        groups = []
        for name, model in models.items():
            peak = (lrs or {}).get(name, config.lr)
            for decay, dims in ((config.weight_decay, (2,)), (0.0, (0, 1))):  # matrices decay, norms and biases do not
                parameters = [p for p in model.parameters() if p.dim() in dims]
                groups.append({"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=adam_eps, fused=True)
        self._epoch, self._numbers, self._shares, self._sums = 0.0, [], [], {}
        self._signal, self._stopping = 0, False
        if saved is not None:
            self._go_on(saved)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def steps(self, batches: Batches, accumulate: int | None = None, by_tokens: bool = False) -> Iterator[Batch]:
        """Yield this process's part of each batch, epoch after epoch, until the run has made its steps.

        With `accumulate` a part comes in so many pieces that share one optimizer step, or in more where these were
        longer than is good for the device (`most_tokens`).  Each piece's loss is a mean, over examples or (by_tokens)
        over response tokens, and counts by its share of them (`update`): the sum is the whole's mean.
        Ctrl-C and SIGTERM end the run after the step that they fall into, with a checkpoint.
        """
        order_of, order = -1, []
        at_most = sys.maxsize if accumulate is None else most_tokens(self.device)
        with self._signals_wait(), onednn_multiplies(), tqdm(total=self.num_steps, initial=self.step, leave=False,
                                        disable=True if distributed.rank() else None) as bar:
            while self.step < self.num_steps:
                epoch, index = divmod(self.step, len(batches))
                if epoch != order_of:
                    order_of, order = epoch, batches.epoch(epoch)
                self._epoch, self._numbers = self.step / len(batches), order[index]
                pieces, self._shares = deal(batches, order[index], accumulate or 1, by_tokens, at_most)
                self.num_tokens += sum(batches.examples[number].num_tokens for number in order[index])
                for piece in pieces:
                    with self.autocast():
                        yield batches.collate(piece).to(self.device)
                bar.update()
                bar.set_postfix_str("  ".join(f"{k} {v[-1]:.3f}" for k, v in list(self.history.items())[:2]))
                if self._stopping or self.step % self.config.save_every == 0 or self.step == self.num_steps:
                    self._save()
                if self._stopping:
                    self._stop()
            if self._signal:  # it came too late to stop anything, but is not forgotten
                self._stop()

    def update(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """One backward pass; after the last piece of a batch: clip, step, decay the rate, log."""
        share = self._shares.pop(0)
        self.backward(loss * (share * distributed.world_size()))  # whose mean over the processes is the sum of the shares
        for name, value in {"loss": loss.detach(), **metrics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * share
        if not self._shares:
            grad_norm = self.optimizer_step()
            self.log({**distributed.totals(self._sums, self.device), "grad_norm": grad_norm})
            self._sums = {}

    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradient.  Raises FloatingPointError if the loss is not finite."""
        if not torch.isfinite(loss):
            self._not_finite(f"the loss is {loss.item()}")
        self._spread.before_backward()
        loss.backward()

    def optimizer_step(self) -> float:
        """Clip, step, clear.  Returns the gradient's length before clipping; FloatingPointError if it is not finite."""
        norms = torch.stack([distributed.gathered(nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm))
                             for model in self.models.values()])
        if not torch.isfinite(norms).all():
            self._not_finite("the gradient is not finite, though the loss is")
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.schedule(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norms.square().sum().sqrt())

    def _not_finite(self, what: str) -> None:
        kept = self.folder.last_good() if self.folder else "there is no checkpoint, since the run has no folder (out)"
        raise FloatingPointError(f"step {self.step + 1}: {what}; no weight was changed by it, and {kept}. Lower the "
                                 f"learning rate, or look at the examples of this step: {self._numbers[:64]}")

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
        self._stopping = distributed.totals({"signal": self._signal}, self.device)["signal"] > 0  # all stop, or none
        line = {name: float(value) for name, value in metrics.items()}
        line |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "epoch": self._epoch,
                 "global_step": self.step, "num_tokens": self.num_tokens}
        for name, value in line.items():
            self.history.setdefault(name, []).append(value)
        if self.folder is not None:
            self.folder.append(line)

    def autocast(self) -> AbstractContextManager:
        """The run's precision, as a context.  Casts are not cached: PPO steps several times inside one, and a cached
        weight would be the one before the step."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    # --- being stopped ----------------------------------------------------------------------------------------------

    @contextmanager
    def _signals_wait(self) -> Iterator[None]:
        """Within the block Ctrl-C and SIGTERM are only noted, so that they fall between two steps."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
            yield
            return

        def note(number: int, frame: Any) -> None:
            self._signal = number
            tqdm.write("stopping after this step")

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        """Say where the run can go on, and end the program as the signal would have."""
        where = "nothing is saved, since the run has no folder (out)" if self.folder is None else \
            f"saved in {self.folder.state}: the same command with --resume goes on"
        print(f"\nstopped after step {self.step} of {self.num_steps}; {where}")
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    # --- going on ---------------------------------------------------------------------------------------------------

    def _identity(self, examples: Sequence[Example], others: Sequence[nn.Module]) -> dict[str, Any]:
        """What a resumed run must share with the one that it goes on with."""
        return {**{name: value for name, value in vars(self.config).items() if name not in MAY_CHANGE},
                "precision": self.precision, "steps": self.num_steps, "processes": distributed.world_size(),
                "examples": digest_of(examples),
                "weights_at_start": digest_of([*self.models.values(), *others])}

    def whole(self, name: str) -> nn.Module:
        """One of the models, as the caller knows it: itself, or with --shard a copy gathered from all processes."""
        return self._spread.whole(name)

    def _save(self) -> None:
        if self.folder is not None:
            self.folder.save({"step": self.step, "num_tokens": self.num_tokens, "state": self.state,
                              "optimizer": self._spread.optimizer_state(self.optimizer),
                              "models": {name: self.whole(name).state_dict() for name in self.models}})

    def _go_on(self, saved: dict[str, Any]) -> None:
        self._spread.load_optimizer_state(self.optimizer, saved["optimizer"])
        self.step, self.num_tokens, self.state = saved["step"], saved["num_tokens"], saved["state"]
        for line in self.folder.lines(self.step):
            for name, value in line.items():
                self.history.setdefault(name, []).append(value)


def deal(batches: Batches, numbers: Sequence[int], accumulate: int, by_tokens: bool, most_tokens: int
         ) -> tuple[list[list[int]], list[float]]:
    """(this process's pieces of a batch, the share that each has of the whole batch's mean).

    There are `accumulate` pieces, or more if these had more than most_tokens, each example counted as long as the
    longest.  Every process gets equally many, so that none waits for another: where examples are too few, one that
    counts 0.
    """
    def weight(members: Sequence[int]) -> int:
        return sum(len(r) for n in members for r in batches.examples[n].responses) if by_tokens else len(members)

    mine = numbers[distributed.rank()::distributed.world_size()]
    most = -(-len(numbers) // distributed.world_size())
    longest = max(batches.examples[n].num_tokens for n in numbers)
    size = min(-(-most // accumulate), max(1, most_tokens // longest))
    size = -(-most // -(-most // size))  # as many pieces, of like size
    pieces = [list(mine[start:start + size]) for start in range(0, most, size)]
    return [piece or list(numbers[:1]) for piece in pieces], [weight(piece) / weight(numbers) for piece in pieces]


def digest_of(parts: Sequence[nn.Module | Example]) -> str:
    """A short name for these very examples or weights."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for tensor in part.state_dict().values():
                digest.update(tensor.detach().float().cpu().numpy().tobytes())
        else:
            for ids in (part.prompt, *part.responses):
                digest.update(ids + b"\xf8")  # a byte that no token is
    return digest.hexdigest()[:16]
