"""The training loop: one function, read from top to bottom.

What is trained is a `Task`: a module and its losses at a step. All randomness of a step is a
pure function of (seed, step), so a run that was killed and resumed equals an unbroken one.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from worldmodel.errors import UserError
from worldmodel.train.optim import build_optimizers, learning_rate


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all.
        lr: peak learning rate; warm-up over `warmup` steps, cosine to 5 % of it.
        ema: decay of the averaged weights that are shipped; 0 turns averaging off.
        muon: Muon for the matrices of the blocks, AdamW for the rest; False for AdamW alone.
        clip: gradient norm above which gradients are scaled down.
        save_every: steps between saved states.
        stop_at: stop after this step with the state saved, 0 to run to the end.
    """

    steps: int
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.02
    ema: float = 0.998
    muon: bool = True
    clip: float = 1.0
    save_every: int = 200
    stop_at: int = 0


class Task(Protocol):
    """Something to train."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """Return scalar losses of one step; 'loss' is the one that is minimised."""
        ...

    def after_step(self, step: int) -> dict[str, float]:
        """Run after the optimiser's step; returns further numbers to log."""
        ...


def fit(task: Task, config: LoopConfig, folder: Path) -> nn.Module:
    """Train `task`, continuing from the state in `folder` if there is one.

    Returns the module with the averaged weights. Writes `state.safetensors` (weights,
    averages, optimisers, step) atomically and TensorBoard events below `folder`.

    Raises:
        UserError: the loss is not finite; the message names the step.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder.mkdir(parents=True, exist_ok=True)
    module = task.module
    optimizers = build_optimizers(module, config.lr, config.weight_decay, config.muon)
    average = {k: v.detach().clone().float() for k, v in module.state_dict().items()}
    step = load_state(folder, module, optimizers, average)
    log = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
    last = min(config.steps, config.stop_at or config.steps)
    bar = tqdm(total=config.steps, initial=step, unit="step", dynamic_ncols=True, mininterval=2)
    started = time.monotonic()
    module.train()
    while step < last:
        lr = learning_rate(step, config.steps, config.lr, config.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        losses = task.losses(step)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        if not torch.isfinite(norm):
            raise UserError(
                f"The loss or its gradient is not finite at step {step}. The last good state "
                f"is in '{folder}'; lower lr (now {config.lr:g}) and run the same command."
            )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        extra = task.after_step(step)
        _update_average(average, module, config.ema, step)
        step += 1
        bar.update()
        if step % 20 == 0 or step == last:
            numbers = {k: v.item() for k, v in losses.items()} | extra
            bar.set_postfix({k: f"{v:.3f}" for k, v in numbers.items() if k.count("/") == 0})
            for name, value in numbers.items():
                log.add_scalar(name, value, step)
            log.add_scalar("train/grad_norm", norm.item(), step)
            log.add_scalar("train/lr", lr, step)
            log.add_scalar("train/seconds", time.monotonic() - started, step)
        if step % config.save_every == 0 or step == last:
            save_state(folder, step, module, optimizers, average)
    bar.close()
    log.close()
    module.load_state_dict({k: average[k].to(v.dtype) for k, v in module.state_dict().items()})
    return module.eval()


@torch.no_grad()
def _update_average(
    average: dict[str, torch.Tensor], module: nn.Module, decay: float, step: int
) -> None:
    """Exponential moving average; the decay grows with the step so that early ones fade."""
    decay = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    state = module.state_dict()
    for name, value in state.items():
        average[name].lerp_(value.float(), 1 - decay)


def save_state(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, torch.Tensor],
) -> None:
    """Write everything that resuming needs; a kill leaves the old state or the new one."""
    tensors = {f"module/{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.items()}
    for i, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{index}/{k}": v for k, v in state.items()}
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    temporary = folder / "state.safetensors.tmp"
    save_file(tensors, temporary, metadata={"step": json.dumps(step)})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, folder / "state.safetensors")


def load_state(
    folder: Path,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, torch.Tensor],
) -> int:
    """Load what `save_state` wrote and return its step; 0 if there is none.

    Raises:
        UserError: the state is damaged or belongs to a model of another shape.
    """
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            step = json.loads(file.metadata()["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        module.load_state_dict(
            {k.removeprefix("module/"): v for k, v in tensors.items() if k.startswith("module/")}
        )
        for key in average:
            average[key].copy_(tensors[f"average/{key}"])
        for i, optimizer in enumerate(optimizers):
            _load_optimizer(optimizer, tensors, f"optimizer/{i}/")
        if any(key.startswith(f"optimizer/{len(optimizers)}/") for key in tensors):
            raise ValueError("it was made with another optimiser")
    except Exception as error:
        raise UserError(
            f"'{path}' cannot be resumed ({str(error).splitlines()[0]}). Delete the folder to "
            "start again, or use the configuration that it was made with."
        ) from None
    return step


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], prefix: str
) -> None:
    saved = optimizer.state_dict()
    saved["state"] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            index, name = key.split("/")[2:]
            saved["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(saved)
    for p, state in optimizer.state.items():  # torch does not look at the shapes
        if any(value.ndim and value.shape != p.shape for value in state.values()):
            raise ValueError("it was made with another optimiser")
