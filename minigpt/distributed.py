"""Several processes through torch.distributed; without torchrun, the same functions for one.

`torchrun --nproc-per-node N -m dpo.main ...` starts N processes that run the same program on
different rows.  Before each step the gradients are averaged over the processes, so all take the
same step.  Everything else that they must agree on goes through this file.

If a model, its gradients and its optimizer state do not fit into one process, `--shard` splits them
over all processes (FSDP2).
"""

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def start(device: str) -> None:
    """Join the other processes, if torchrun started this one.

    All but the first lose their standard output; errors are still shown.
    """
    if not is_on() or dist.is_initialized():
        return
    if device.startswith("cuda"):
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
        dist.init_process_group("nccl", device_id=own)
    else:
        dist.init_process_group("gloo")
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open


def stop() -> None:
    """The end of a program that has succeeded: wait for the other processes, and leave with them.

    A process that exits while another still communicates with it makes that one fail.  And when
    the interpreter takes itself down, a background thread of gloo that still runs makes it abort
    (one run in some hundreds: "terminate called without an active exception").  Everything is
    written by now, so the process leaves without taking the interpreter down.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def rank() -> int:
    """The index of this process; process 0 prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_on() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, if each process holds a shard of it; else the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def share_of(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a list that all processes have."""
    return items[rank()::world_size()]


def all_shares(mine: Sequence[T]) -> list[T]:
    """What all processes made of their `share_of` a list, in its order."""
    if not dist.is_initialized():
        return list(mine)
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, mine)
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def totals(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value, summed over the processes."""
    if not dist.is_initialized():
        return dict(values)
    summed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return dict(zip(values, summed.tolist(), strict=True))


def means(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value, averaged over the processes."""
    return {name: value / world_size() for name, value in totals(values, device).items()}


class Replicas:
    """Models that every process holds whole, with averaged gradients; a no-op in one process."""

    def __init__(self, models: Mapping[str, nn.Module], device: torch.device):
        self.models = models
        if dist.is_initialized():
            for weights in nn.ModuleDict(models).state_dict().values():
                dist.broadcast(weights, src=0)

    def average_gradients(self) -> None:
        """Call this after the backward passes of a step, and before the step."""
        if not dist.is_initialized():
            return
        for model in self.models.values():
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            mean = torch.cat([gradient.flatten() for gradient in gradients]) / world_size()
            dist.all_reduce(mean)
            parts = mean.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def whole(self, name: str) -> nn.Module:
        """The model with all its weights: itself."""
        return self.models[name]

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state for all weights."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Restore what `optimizer_state` returned."""
        optimizer.load_state_dict(state)
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for index, own in state["state"].items():
            if "mean" in own:  # torch has cast it to the precision of the weight
                optimizer.state[weights[index]]["mean"] = own["mean"].to(weights[index].device)


class Shards:
    """Models split over the processes, and so their gradients and optimizer state.

    Has the methods of Replicas.  Each block is gathered only while it computes (torch's
    `fully_shard`, FSDP2).  The models are changed in place, so create this before their optimizer.
    """

    def __init__(self, models: Mapping[str, nn.Module], device: torch.device):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.device, self.models = device, nn.ModuleDict(models)
        self._plain = {name: copy.deepcopy(model).to("meta") for name, model in models.items()}
        mesh = init_device_mesh(device.type, (world_size(),))
        for model in models.values():
            for module in model.modules():
                for block in module if isinstance(module, nn.ModuleList) else ():
                    fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            for method in getattr(model, "FORWARD_METHODS", ()):
                register_fsdp_forward_method(model, method)

    def average_gradients(self) -> None:
        """A no-op: FSDP's own hooks average them in each backward pass."""

    def whole(self, name: str) -> nn.Module:
        """An ordinary model with all the weights, gathered in every process."""
        from torch.distributed.checkpoint import state_dict

        model = copy.deepcopy(self._plain[name]).to_empty(device=self.device)
        options = state_dict.StateDictOptions(full_state_dict=True)
        model.load_state_dict(state_dict.get_model_state_dict(self.models[name], options=options))
        return model

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state for all weights, gathered in every process."""
        from torch.distributed.checkpoint import state_dict

        options = state_dict.StateDictOptions(full_state_dict=True)
        return state_dict.get_optimizer_state_dict(self.models, optimizer, options=options)

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Restore what `optimizer_state` returned, to each process its shard."""
        from torch.distributed.checkpoint import state_dict
        from torch.distributed.tensor import DTensor, distribute_tensor

        options = state_dict.StateDictOptions(full_state_dict=True)
        state_dict.set_optimizer_state_dict(self.models, optimizer, state, options=options)
        for weight, own in optimizer.state.items():  # torch splits only what AdamW itself keeps
            if isinstance(weight, DTensor) and "mean" in own:
                whole = own["mean"].to(torch.promote_types(weight.dtype, torch.float32))
                own["mean"] = distribute_tensor(whole, weight.device_mesh, weight.placements)
