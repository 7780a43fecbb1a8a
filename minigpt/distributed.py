"""torch.distributed, or nothing: the same loop in one process and in several.

`torchrun --nproc-per-node N -m dpo.main ...` starts N processes that run the same program on different rows.  After
every backward pass DistributedDataParallel averages the gradients, so all of them make the same step.  Whatever else
they must agree on goes through this file; without torchrun each function is what one process would do.
"""

import os
import sys
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def start(device: str) -> None:
    """Join the other processes, if torchrun started this one; all but the first fall silent (errors are still seen)."""
    if "RANK" not in os.environ or dist.is_initialized():
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends


def rank() -> int:
    """The number of this process; 0 prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for the others."""
    if dist.is_initialized():
        dist.barrier()


def totals(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value summed over the processes."""
    if not dist.is_initialized():
        return dict(values)
    summed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return dict(zip(values, summed.tolist(), strict=True))


def means(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value averaged over the processes."""
    return {name: value / world_size() for name, value in totals(values, device).items()}


class SharedGradients(nn.Module):
    """Averages the gradients of several models over the processes while they are computed (DistributedDataParallel).

    Our loops call the models' own methods, `hidden_states` and `logits`, and not the wrapper's forward.  So calling
    this object, right before `loss.backward()`, only tells the wrapper that a backward pass is about to come.
    """

    def __init__(self, models: Mapping[str, nn.Module]):
        super().__init__()
        self.models = nn.ModuleDict(models)

    def forward(self) -> Tensor:
        return torch.zeros(0)


def share_gradients(models: Mapping[str, nn.Module]) -> DistributedDataParallel | None:
    """The wrapper to call before each backward pass; None in a single process."""
    return DistributedDataParallel(SharedGradients(models)) if dist.is_initialized() else None
