"""torch.distributed, or nothing: the same loop in one process and in several.

`torchrun --nproc-per-node N -m dpo.main ...` starts N processes that run the same program on different rows.  After
every backward pass DistributedDataParallel averages the gradients, so all of them make the same step.  Whatever else
they must agree on goes through this file; without torchrun each function is what one process would do.

Where a model and what its training needs do not fit into one process, `shard` spreads them over all (FSDP2).
"""

import copy
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def start(device: str) -> None:
    """Join the other processes, if torchrun started this one; all but the first fall silent (errors are still seen)."""
    if not is_on() or dist.is_initialized():
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends


def stop() -> None:
    """Leave together with the others, at the end of a program: a process that goes while another still needs it, or with
    something running in the background, would end with an error."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process; 0 prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_on() -> bool:
    """Whether torchrun started this process, as one of several."""
    return "RANK" in os.environ


def gathered(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, whole."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


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


class Replicas:
    """Models that every process holds whole; their gradients are averaged.  Alone in a process: nothing at all."""

    def __init__(self, models: Mapping[str, nn.Module], device: torch.device):
        self.models = models
        self._shared = DistributedDataParallel(SharedGradients(models)) if dist.is_initialized() else None

    def before_backward(self) -> None:
        """To be called right before each backward pass."""
        if self._shared is not None:
            self._shared()

    def whole(self, name: str) -> nn.Module:
        """The model itself."""
        return self.models[name]

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What the optimizer knows of all weights."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Go on with what `optimizer_state` returned."""
        optimizer.load_state_dict(state)


class Shards:
    """Models of which every process holds a part, and so of their gradients and of the optimizer's state; the same methods.

    Each block is gathered for the moment it computes (`fully_shard`, the "FSDP2" of torch).  The models are changed in
    place, before their optimizer is made.
    """

    def __init__(self, models: Mapping[str, nn.Module], device: torch.device):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.device, self.models = device, nn.ModuleDict(models)
        self._plain = {name: copy.deepcopy(model).to("meta") for name, model in models.items()}  # no weights
        mesh = init_device_mesh(device.type, (world_size(),))
        for model in models.values():
            for block in (block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            for method in model.READ_WEIGHTS:
                register_fsdp_forward_method(model, method)

    def before_backward(self) -> None:
        """Nothing: the gradients find their way by themselves."""

    def whole(self, name: str) -> nn.Module:
        """An ordinary model with the gathered weights, in every process."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        model = copy.deepcopy(self._plain[name]).to_empty(device=self.device)
        model.load_state_dict(get_model_state_dict(self.models[name], options=StateDictOptions(full_state_dict=True)))
        return model

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What the optimizer knows of all weights, gathered."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        return get_optimizer_state_dict(self.models, optimizer, options=StateDictOptions(full_state_dict=True))

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Give each process its part of what `optimizer_state` returned."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        set_optimizer_state_dict(self.models, optimizer, state, options=StateDictOptions(full_state_dict=True))
