"""Saved states of a run: everything that resuming needs, written so that a kill does no harm.

One process writes one file, `state.safetensors`; the state before it stays beside it as
`state.previous.safetensors`. Divided weights, and states that are written while training goes on,
become a folder `state-<step>` of torch.distributed.checkpoint, in which every process writes its
part as safetensors and the file `complete.json` comes last; the last two are kept. Either is read
by any number of processes.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from worldmodel.errors import UserError
from worldmodel.train.distributed import like, rank, ranks, say, side_group

FILE, PREVIOUS, COMPLETE = "state.safetensors", "state.previous.safetensors", "complete.json"
KEPT = 2  # states that stay

Tensors = Mapping[str, torch.Tensor]


class Writer(HuggingFaceStorageWriter):
    """Every process's part as a safetensors file, no pickle; a file at the end says 'complete'."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), save_distributed=True)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Say that all parts are there; the first process does."""
        parts = sum(bool(part) for part in results)
        Path(str(self.path), COMPLETE).write_text(json.dumps({"parts": parts}) + "\n")


def resumable(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: Tensors,
    more: Tensors,
) -> dict[str, torch.Tensor]:
    """Return all tensors of a state by name; the model's and the averages are the live ones."""
    tensors = _live(module, average, more)
    for i, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{index}/{k}": v for k, v in state.items()}
    return tensors


def _live(module: nn.Module, average: Tensors, more: Tensors) -> dict[str, torch.Tensor]:
    tensors = {f"module/{k}": v.detach() for k, v in module.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.items()}
    return tensors | {f"task/{k}": v for k, v in more.items()}


def save_state(folder: Path, step: int, tensors: Tensors, wait: bool = True) -> Future[Any] | None:
    """Write a state; a kill leaves the old states or the new one beside the last.

    All processes call this together.

    Args:
        folder: of the run's stage.
        step: optimiser steps done.
        tensors: what `resumable` gave.
        wait: False copies the tensors and writes them while training goes on; the result is
            then to be handed to `settle` before the next state is saved.

    Raises:
        UserError: the folder cannot be written, for instance as the disk is full.
    """
    try:
        return _save(folder, step, tensors, wait)
    except (Exception, CheckpointException) as error:
        raise _unwritten(folder, error) from None


def settle(folder: Path, saving: Future[Any] | None) -> None:
    """Wait for a state that is being written, and remove those that it replaces.

    Raises:
        UserError: it could not be written.
    """
    if saving is None:
        return
    try:
        saving.result()
    except (Exception, CheckpointException) as error:
        raise _unwritten(folder, error) from None
    if rank() == 0:
        prune(folder)


def _unwritten(folder: Path, error: BaseException) -> UserError:
    why = (str(error).splitlines() or [repr(error)])[0]
    return UserError(
        f"The state cannot be written to '{folder}' ({why}). The state saved before is still "
        "there; make room and run the same command to go on from it."
    )


def _save(folder: Path, step: int, tensors: Tensors, wait: bool) -> Future[Any] | None:
    divided = any(isinstance(value, DTensor) for value in tensors.values())
    if wait and not divided:
        if rank() == 0:
            _save_file(folder, step, tensors)
            prune(folder)
        if ranks() > 1:
            dist.barrier()
        return None
    contents = {key: value.detach() for key, value in tensors.items()}
    if not wait:  # what is on the CPU already would not be copied, and change while it is written
        contents = {k: v.clone() if v.device.type == "cpu" else v for k, v in contents.items()}
    path = folder / f"state-{step:08d}"
    if rank() == 0 and path.exists():
        shutil.rmtree(path)
    if ranks() > 1:
        dist.barrier()
    group = side_group("saving")
    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is fine
    alone, writer = group is None, Writer(path)
    if not wait:
        future = async_save(contents, storage_writer=writer, process_group=group, no_dist=alone)
        assert isinstance(future, Future)
        return future
    save(contents, storage_writer=writer, process_group=group, no_dist=alone)
    if rank() == 0:
        prune(folder)
    return None


def _save_file(folder: Path, step: int, tensors: Tensors) -> None:
    path, temporary = folder / FILE, folder / f"{FILE}.tmp"
    contents = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    save_file(contents, temporary, metadata={"step": json.dumps(step)})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, folder / PREVIOUS)
    os.replace(temporary, path)


def saved_states(folder: Path) -> list[Path]:
    """Return the states in a folder, newest first; one that cannot be read counts as newest."""
    found = [folder / FILE, folder / PREVIOUS]
    found += [path.parent for path in folder.glob(f"state-*/{COMPLETE}")]
    return sorted((path for path in found if path.exists()), key=_step_or_last, reverse=True)


def prune(folder: Path) -> None:
    """Remove all states but the newest two, and what a kill left unfinished."""
    states = saved_states(folder)
    unfinished = [p for p in folder.glob("state-*") if p.is_dir() and p not in states]
    for path in [*states[KEPT:], *unfinished]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """Return the step at which a state was saved.

    Raises:
        Exception: the file is damaged.
    """
    if path.is_dir():
        return int(path.name.removeprefix("state-"))
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["step"]))


def _step_or_last(path: Path) -> float:
    try:
        return step_of(path)
    except Exception:
        return float("inf")


def load_state(
    folder: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: Tensors,
    more: Tensors,
) -> int:
    """Load the newest state into the given objects and return its step; 0 if there is none.

    A newest one that is damaged is left out, and said so, if the one before it is good.

    Raises:
        UserError: all states are damaged, or belong to a model of another shape.
    """
    failed: list[tuple[Path, str]] = []
    for path in saved_states(folder):
        try:
            step = _load(path, module, optimizers, average, more)
        except (Exception, CheckpointException) as error:
            failed.append((path, (str(error).splitlines() or [repr(error)])[0]))
            continue
        for bad, why in failed:
            say(f"'{bad}' is damaged ({why}); going on from step {step}, saved before it.")
            if rank() == 0:
                _remove(bad)
        return step
    if failed:
        path, why = failed[0]
        raise UserError(
            f"'{path}' cannot be resumed ({why}). Delete the folder to start again, or use the "
            "configuration that it was made with."
        )
    return 0


def _load(
    path: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: Tensors,
    more: Tensors,
) -> int:
    step, shapes = step_of(path), _shapes(path)
    wanted = _live(module, average, more)
    states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    for key, shape in shapes.items():
        if not key.startswith("optimizer/"):
            continue
        i, index, name = key.split("/")[1:]
        value = _empty(optimizers, int(i), int(index), shape)
        states[int(i)].setdefault(int(index), {})[name] = wanted[key] = value
    if wanted.keys() != shapes.keys():
        odd = sorted(wanted.keys() ^ shapes.keys())
        raise ValueError(f"it is of another model: '{odd[0]}' is in one of them only")
    for key, value in wanted.items():
        if tuple(value.shape) != shapes[key]:
            raise ValueError(f"'{key}' has shape {shapes[key]}, expected {tuple(value.shape)}")
    _fill(path, wanted)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return step


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if path.is_dir():
        found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        return {key: tuple(value.size) for key, value in found.items()}  # type: ignore[union-attr]
    with safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def _empty(
    optimizers: Sequence[torch.optim.Optimizer], i: int, index: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """Room for one tensor of an optimiser's state: as its parameter, or a number."""
    if i >= len(optimizers):
        raise ValueError("it was made with another optimiser")
    params = [p for group in optimizers[i].param_groups for p in group["params"]]
    if index >= len(params) or (shape and shape != tuple(params[index].shape)):
        raise ValueError("it was made with another optimiser")
    return torch.zeros_like(params[index]) if shape else torch.zeros(())


def _fill(path: Path, wanted: dict[str, torch.Tensor]) -> None:
    """Read tensors in place, each process its own part of those that are divided."""
    if path.is_dir():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        reader = HuggingFaceStorageReader(str(path))
        load(wanted, storage_reader=reader, no_dist=ranks() == 1)
        return
    with torch.no_grad(), safe_open(path, "pt") as file:
        for key, value in wanted.items():
            value.copy_(like(file.get_tensor(key), value))
