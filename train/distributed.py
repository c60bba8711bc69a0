"""Several processes as one run: started by torchrun, sharded by FSDP2.

Every process runs the same program on its own batches. Gradients are averaged; weights, averages
and the optimiser's state are either whole in every process, or divided over all of them.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate

from worldmodel.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """Return this process's number; the first is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; gives this process's device.

    Raises:
        UserError: more processes than GPUs on this machine.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield device
        return
    if device.type == "cuda":
        local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= count:
            raise UserError(
                f"Process {local} of this machine has no GPU: there are {count}. "
                f"Start torchrun with --nproc_per_node={count}."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield device
    except UserError as error:
        _tell_torchrun(error)
        raise
    dist.destroy_process_group()  # not after an error: the others may wait in the middle of a step


def _tell_torchrun(error: UserError) -> None:
    """Have torchrun end its report with our sentence: its traceback is of itself."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        told = {"message": str(error), "timestamp": int(time.time())}
        Path(path).write_text(json.dumps(told))


def first_does(work: Callable[[], Any]) -> None:
    """Run `work` in the first process only; the others wait, however long it takes."""
    if ranks() == 1:
        work()
        return
    group = side_group("waiting")
    if rank() == 0:
        work()
    dist.barrier(group)


@cache
def side_group(purpose: str) -> Any:
    """Return all processes once more, for what goes on beside the training; None for one process.

    Its operations do not get among those of the step, and wait for days: encoding a store takes
    longer than a step that hangs is given. All processes must ask for it together.
    """
    if ranks() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(days=7), group_desc=purpose)


def say(text: str) -> None:
    """Print from the first process only."""
    if rank() == 0:
        print(text, flush=True)


class Whole(nn.Module):
    """All that is done with a module in a step as one forward pass of it.

    FSDP gathers weights when a module's forward begins and shards them after its backward. The
    core is used piece by piece and several times a step, by a number that differs between
    processes; inside `Whole` all of that is one pass, in which each weight is gathered once.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[..., Any], *args: Any) -> Any:
        """Return what `work`, which uses the module, gives."""
        return work(*args)


def shard(module: nn.Module) -> Whole:
    """Divide a module's weights over all processes, block by block (FSDP2).

    Each weight is gathered once a step and stays until its gradient has been averaged, so the
    weights once, but not their gradients and what the optimiser keeps, must fit each device.
    """
    kind = next(module.parameters()).device.type
    mesh = init_device_mesh(kind, (ranks(),))
    for block in blocks(module):
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    whole = Whole(module)
    fully_shard(whole, mesh=mesh, reshard_after_forward=False)
    return whole


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks in a module: what its lists called `blocks` hold."""
    lists = [part for name, part in module.named_modules() if name.split(".")[-1] == "blocks"]
    return [block for part in lists if isinstance(part, nn.ModuleList) for block in part]


def average_gradients(module: nn.Module) -> None:
    """Give every process the mean of all gradients; for weights that are whole everywhere."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        if p.grad is None:  # another process may have one
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in trained if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= ranks()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place."""
    if ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def everywhere(rows: list[T]) -> list[T]:
    """Return the rows of all processes, one after the other."""
    if ranks() == 1:
        return rows
    parts: list[Any] = [None] * ranks()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in full; all processes must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(full: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Return a tensor that every process has in full, divided as `model` is."""
    if not isinstance(model, DTensor):
        return full
    mesh = model.device_mesh
    everywhere = DTensor.from_local(full.to(mesh.device_type), mesh, [Replicate()] * mesh.ndim)
    return everywhere.redistribute(mesh, model.placements)


def gathered(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state in full on the CPU, in the first process; the others get nothing."""
    found = {}
    for name, value in state.items():
        full = whole(value.detach())
        if rank() == 0:
            found[name] = full.cpu().contiguous()
    return found
