"""What logs: one line of metrics for each step, in metrics.jsonl and in memory."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from minigpt import distributed
from minigpt.report import WARNING
from minigpt.run_folder import RunFolder

Number = float | Tensor


class MetricLog:
    """history: every metric as a list with one value a step.

    position() returns where the run stands (epoch, global_step, ...), which ends every line.
    """

    def __init__(self, folder: RunFolder | None, device: torch.device,
                 position: Callable[[], dict[str, float]]):
        self.history: dict[str, list[float]] = {}
        self._folder, self._device, self._position = folder, device, position
        self._sums: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Number], weight: float) -> None:
        """Add the metrics of one microbatch to those of its step."""
        for name, value in metrics.items():
            number = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + float(number) * weight

    def write(self, metrics: Mapping[str, Number]) -> None:
        """End the step: what was added and these metrics, averaged over the processes."""
        line = distributed.means({**self._sums, **{k: float(v) for k, v in metrics.items()}},
                                 self._device) | self._position()
        self._sums = {}
        self.remember(line)
        if self._folder is not None:
            self._folder.append(line)

    def remember(self, line: Mapping[str, float]) -> None:
        """One more value in every history."""
        for name, value in line.items():
            self.history.setdefault(name, []).append(value)

    def last(self, name: str) -> float:
        """The latest value of a metric."""
        return self.history[name][-1]


def warn(signs: Sequence[str]) -> None:
    """One line for each, above a progress bar if there is one."""
    for sign in signs if distributed.rank() == 0 else ():
        tqdm.write(f"{WARNING}{sign}")
