"""Everything about a training run except the loss: data order, log, checkpoints, signals.

    >>> from minigpt.examples import tokenize_example
    >>> from minigpt.logprobs import response_logps
    >>> from minigpt.model import MiniGPT
    >>> model = MiniGPT(embed_dim=16, num_heads=2, num_layers=1, max_seq_len=16, ff_dim=32)
    >>> batches = Batches([tokenize_example("2+2?", ["4"], max_seq_len=16)], batch_size=1)
    >>> loop = TrainingLoop({"model": model}, TrainingConfig(), batches, num_steps=10)
    >>> optimizer, log = loop.optimizer, loop.log
    >>> for microbatches in loop.steps():                        # one optimizer step each
    ...     for batch in microbatches:                           # only one, unless it is long
    ...         with optimizer.precision():
    ...             loss = -response_logps(model, batch).mean()  # forward
    ...         optimizer.backward(batch.weight * loss)
    ...         log.add({"loss": loss}, batch.weight)
    ...     grad_norm = optimizer.step()                         # clip, step, clear
    ...     log.write({"grad_norm": grad_norm})
    >>> log.last("loss") < log.history["loss"][0]
    True

Three objects share the work: `Optimizer` optimises, `MetricLog` logs, and `RunFolder` saves.
Nothing random lives in any of them: the data order of epoch e depends on (seed, e), the learning
rate on the step.  So a checkpoint is weights, optimizer state and step, and a resumed run repeats,
bit for bit, what it would have done.

With several processes (minigpt/distributed.py) each batch of batch_size x processes examples is
dealt out to them.  A logged mean is that of the whole batch; an extreme is the mean of the extremes
of its parts.
"""

import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from tqdm import tqdm

from minigpt import distributed
from minigpt.batching import Batch, Batches
from minigpt.log import MetricLog
from minigpt.optimizer import Optimizer
from minigpt.processor import keep_freed_memory, most_tokens, return_freed_memory
from minigpt.run_folder import RunFolder, identity_of
from minigpt.settings import TrainingConfig
from minigpt.weights import first_not_finite


class Stopped(KeyboardInterrupt):
    """Raised after Ctrl-C, once the message is printed and the checkpoint saved."""


class TrainingLoop:
    """Runs the optimizer steps of one training run, from its start or from a checkpoint.

    models: what is trained, by name; lrs: their learning rates where they differ from config.lr.
    frozen: the models that are only read (or None, for none); a resumed run must have the same, and
    the same examples.
    state: what else a resumed run must know; identity: what else it must have in common.
    """

    def __init__(self, models: dict[str, nn.Module], config: TrainingConfig, batches: Batches,
                 num_steps: int, frozen: Sequence[nn.Module | None] = (),
                 lrs: dict[str, float] | None = None, eps: float = 1e-8,
                 state: dict[str, Any] | None = None, identity: dict[str, Any] | None = None):
        keep_freed_memory()
        self.models, self.config, self.batches, self.num_steps = models, config, batches, num_steps
        self.step, self.num_tokens, self.state = 0, 0, state or {}
        self._signal = 0
        self.folder, saved = None, None
        if config.out is not None:
            everything = [*models.values(), *(model for model in frozen if model is not None)]
            self.folder = RunFolder(config.out, identity_of(
                config, batches.examples, everything, num_steps) | (identity or {}))
            saved = self.folder.open(models, config.resume, config.overwrite)
        self.optimizer = Optimizer(models, config, num_steps, lrs, eps)
        self.log = MetricLog(self.folder, self.optimizer.device, self._position)
        if saved is not None and self.folder is not None:
            self.step, self.num_tokens = saved["step"], saved["num_tokens"]
            self.state = saved["state"]
            self.optimizer.load_state_dict(saved["optimizer"])
            for line in self.folder.lines(self.step):
                self.log.remember(line)

    def steps(self, accumulate: int = 1, by_tokens: bool = False) -> Iterator[Iterator[Batch]]:
        """For each optimizer step, an iterator of the microbatches that this process works on.

        Work through it before going on to the next step.
        There are `accumulate` of them, or more if these were longer than is good for the device.
        Each batch's loss is a mean, over its examples or (by_tokens) over its response tokens, and
        `batch.weight` is its share of them: the weighted sum is the mean over the whole.
        """
        limit = most_tokens(self.optimizer.device)
        for indices in self._steps():
            pieces, weights = deal(self.batches, indices, accumulate, by_tokens, limit)
            yield (replace(self._collate(piece), weight=weight)
                   for piece, weight in zip(pieces, weights, strict=True))

    def whole_batches(self) -> Iterator[Batch]:
        """For each step, this process's part of the batch, in one piece."""
        for indices in self._steps():
            (mine,), _ = deal(self.batches, indices, 1, False, sys.maxsize)
            yield self._collate(mine)
            return_freed_memory()  # a rollout takes other blocks than an update

    def gathered(self, name: str) -> Any:
        """One of the models: itself, or with --shard a copy gathered from all processes."""
        return self.optimizer.processes.whole(name)

    def _collate(self, indices: Sequence[int]) -> Batch:
        return self.batches.collate(indices).to(self.optimizer.device)

    def _steps(self) -> Iterator[list[int]]:
        """The indices of the batch of each step, epoch after epoch.

        Ctrl-C and SIGTERM end the run after the current step, with a checkpoint.
        """
        ordered, order = -1, []
        hidden = True if distributed.rank() else None  # None: tqdm shows it on a terminal only
        with self._signals_delayed(), tqdm(total=self.num_steps, initial=self.step, leave=False,
                                           disable=hidden) as bar:
            while self.step < self.num_steps:
                epoch, index = divmod(self.step, len(self.batches))
                if epoch != ordered:
                    ordered, order = epoch, self.batches.epoch(epoch)
                indices = order[index]
                self.optimizer.begin_step(self.step, partial(self._error_hint, indices))
                self.num_tokens += sum(self.batches.examples[i].num_tokens for i in indices)
                yield indices
                self.step += 1
                self.optimizer.end_step(self.step)
                bar.update()
                bar.set_postfix_str("  ".join(f"{name} {values[-1]:.3f}" for name, values in
                                              list(self.log.history.items())[:2]))
                self._save_or_stop()
            if self._signal:  # it came too late to stop anything, but it is not forgotten
                self._stop()

    def _position(self) -> dict[str, float]:
        return {"learning_rate": self.optimizer.learning_rate,
                "epoch": self.step / len(self.batches), "global_step": self.step + 1,
                "num_tokens": self.num_tokens}

    def _error_hint(self, indices: Sequence[int]) -> str:
        return (f"This was step {self.step + 1}. {self._checkpoint_hint()}. Lower the learning "
                f"rate, or look at the examples of this step: {indices[:64]}")

    def _checkpoint_hint(self) -> str:
        if self.folder is None:
            return "There is no checkpoint, since the run has no folder (out)"
        return self.folder.last_checkpoint()

    # --- being stopped ---------------------------------------------------------------------------

    def _save_or_stop(self) -> None:
        stopping = distributed.totals({"signal": self._signal}, self.optimizer.device)["signal"] > 0
        if stopping or self.step % self.config.save_every == 0 or self.step == self.num_steps:
            self._save()
        if stopping:  # all processes do, if one of them was told to
            self._stop()

    def _save(self) -> None:
        weights = {name: self.gathered(name).state_dict() for name in self.models}
        for name, state in weights.items():
            broken = first_not_finite(state)
            if broken is not None:
                raise FloatingPointError(f"after step {self.step} {broken!r} of the {name} is not "
                                         f"finite, so it is not saved. {self._checkpoint_hint()}. "
                                         "Lower the learning rate")
        if self.folder is not None:
            self.folder.save({"step": self.step, "num_tokens": self.num_tokens,
                              "state": self.state, "models": weights,
                              "optimizer": self.optimizer.state_dict()})

    @contextmanager
    def _signals_delayed(self) -> Iterator[None]:
        """Within the block Ctrl-C and SIGTERM are only noted, to be obeyed between two steps."""
        if threading.current_thread() is not threading.main_thread():  # others get no signals
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self._signal:  # the second time: at once
                raise KeyboardInterrupt
            self._signal = number
            tqdm.write("stopping after this step")

        before = {number: signal.signal(number, note)
                  for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        """Say how the run can be continued, and end the program as the signal would have."""
        where = "nothing is saved, since the run has no folder (out)" if self.folder is None else \
            f"saved in {self.folder.state}: the same command with --resume continues"
        print(f"\nstopped after step {self.step} of {self.num_steps}; {where}")
        if self._signal == signal.SIGINT:
            raise Stopped
        raise SystemExit(128 + signal.SIGTERM)


def deal(batches: Batches, indices: Sequence[int], accumulate: int, by_tokens: bool,
         most_tokens: int) -> tuple[list[list[int]], list[float]]:
    """Divide one batch: this process's microbatches, and the weight of each.

    There are `accumulate` microbatches, or more of them if one, padded to the longest example, had
    more than most_tokens.  Every process gets equally many, so that none waits for another: one
    without examples left works on a copy of the first, with weight 0.  The weights sum to 1 in one
    process, and average to 1 over several.

        10 examples, 1 process, accumulate 4  ->  3 + 3 + 3 + 1 examples, weights 0.3 0.3 0.3 0.1
    """
    def size(part: Sequence[int]) -> int:
        if not by_tokens:
            return len(part)
        return sum(len(response) for i in part for response in batches.examples[i].responses)

    processes = distributed.world_size()
    mine = indices[distributed.rank()::processes]
    share = math.ceil(len(indices) / processes)  # of the process with the most examples
    longest = max(batches.examples[i].num_tokens for i in indices)
    rows = min(math.ceil(share / accumulate), max(1, most_tokens // longest))
    rows = math.ceil(share / math.ceil(share / rows))  # as many microbatches, of similar size
    pieces = [list(mine[start:start + rows]) for start in range(0, share, rows)]
    weights = [size(piece) / size(indices) * processes for piece in pieces]
    return [piece or list(indices[:1]) for piece in pieces], weights
