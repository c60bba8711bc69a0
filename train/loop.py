"""The training loop: one function, read from top to bottom.

What is trained is a `Task`: a module and its losses on numbered batches. All randomness is a pure
function of the batch's number, so a run that was killed and resumed equals an unbroken one, and
two processes see what one would see in twice the batches a step.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from worldmodel.errors import UserError
from worldmodel.train.distributed import (
    average_gradients,
    blocks,
    everywhere,
    gathered,
    rank,
    ranks,
    shard,
    whole,
)
from worldmodel.train.optim import build_optimizers, learning_rate
from worldmodel.train.state import load_state, resumable, save_state, settle
from worldmodel.train.task import Task
from worldmodel.train.watch import (
    Meter,
    Watch,
    explain_memory,
    gradient_norms,
    kept_buffers,
    mean_of,
    open_log,
    refuse,
    validate,
)

Paint = Callable[[Mapping[str, torch.Tensor]], np.ndarray]
"""Averaged weights to a picture uint8 [H, W, 3]."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all.
        lr: peak learning rate; warm-up over `warmup` steps, cosine to `lr_end` of it.
        accumulate: batches a step of each process, whose gradients are averaged.
        ema: decay of the averaged weights that are shipped; 0 turns averaging off.
        muon: Muon for the matrices of the blocks, AdamW for the rest; False for AdamW alone.
        clip: gradient norm above which gradients are scaled down.
        checkpointing: compute the blocks' activations again in the backward pass instead of
            keeping them (arXiv 1604.06174): a third more work, a fraction of the memory.
        compile: compile the blocks (`torch.compile`) at the first steps, which takes a minute or
            so; each shape of batch that differs may take it again. Sums are rounded otherwise.
        save_every: steps between saved states.
        async_save: write states while training goes on, for large models.
        stop_at: stop after this step with the state saved, 0 to run to the end.
    """

    steps: int
    lr: float = 1e-3
    lr_end: float = 0.05
    warmup: int = 100
    weight_decay: float = 0.02
    accumulate: int = 1
    ema: float = 0.998
    muon: bool = True
    clip: float = 1.0
    checkpointing: bool = False
    compile: bool = False
    save_every: int = 200
    async_save: bool = False
    stop_at: int = 0

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            UserError: names the value.
        """
        for name in ("accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")


def fit(
    task: Task,
    config: LoopConfig,
    folder: Path,
    watch: Watch | None = None,
    divide: bool = False,
    validation: Task | None = None,
    paint: Paint | None = None,
) -> nn.Module:
    """Train `task`, continuing from the state in `folder` if there is one.

    Several processes call this together. Writes states (weights, averages, optimisers, step; see
    `worldmodel.train.state`), the log and pictures below `folder`.

    Args:
        task: what to train.
        config: how.
        folder: of this stage.
        watch: what to log.
        divide: divide the weights over the processes (FSDP2) instead of a copy in each.
        validation: the same module's losses on held-out data.
        paint: draws a picture of what the averaged weights imagine.

    Returns:
        The module with the averaged weights; divided ones stay so.

    Raises:
        UserError: the loss is not finite, memory ran out, or the state cannot be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    watch = watch or Watch()
    module = task.module
    device = next(module.parameters()).device
    divide = divide and ranks() > 1
    run: Callable[..., Any] = shard(module) if divide else _call
    optimizers = build_optimizers(module, config.lr, config.weight_decay, config.muon)
    average = {k: v.detach().clone().float() for k, v in module.state_dict().items()}
    step = load_state(folder, module, optimizers, average, task.state())
    last = min(config.steps, config.stop_at or config.steps)
    log = open_log(watch.logger, folder, step, asdict(config))
    meter = Meter(task, device)
    saving = None
    module.train()
    with ExitStack() as stack:
        stack.callback(log.close)
        if config.compile:
            stack.enter_context(compiled(module))
        if config.checkpointing:
            stack.enter_context(recomputed(module))
        bar = stack.enter_context(
            tqdm(
                total=config.steps,
                initial=step,
                unit="step",
                dynamic_ncols=True,
                mininterval=2,
                disable=rank() > 0,
            )
        )
        while step < last:
            lr = learning_rate(step, config.steps, config.lr, config.warmup, config.lr_end)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
            due = (step + 1) % watch.every == 0 or step + 1 == last

            found: dict[int, dict[str, torch.Tensor]] = {}
            with explain_memory(step):
                for part in range(config.accumulate):
                    batch = (step * config.accumulate + part) * ranks() + rank()
                    losses = run(task.losses, step, batch)
                    found[batch] = {name: value.detach() for name, value in losses.items()}
                    # Blocks that are computed again would have their routers count twice.
                    with kept_buffers(module) if config.checkpointing else nullcontext():
                        (losses["loss"] / config.accumulate).backward()
            if ranks() > 1 and not divide:
                average_gradients(module)
            norms = gradient_norms(module) if due else {}
            norm = clip_gradients(module, config.clip)
            if not torch.isfinite(norm):
                losses = {batch: values["loss"].item() for batch, values in found.items()}
                raise refuse(folder, task, step, losses, config.lr)
            with explain_memory(step):  # the first step makes room for the optimisers' state
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            extra = task.after_step(step)
            _update_average(average, module, config.ema, step)
            step += 1
            bar.update()

            if due:
                rows = [{k: v.item() for k, v in losses.items()} for losses in found.values()]
                numbers = mean_of(everywhere(rows)) | {k: v.item() for k, v in extra.items()}
                bar.set_postfix({k: f"{v:.3f}" for k, v in numbers.items() if "/" not in k})
                numbers |= norms | {"train/grad_norm": norm.item(), "train/lr": lr}
                log.numbers(numbers | meter.read(), step)
            if validation is not None and _turn(watch.validate_every, step, last):
                log.numbers(validate(validation, run, average, watch.validate_batches), step)
            if paint is not None and _turn(watch.images_every, step, last):
                weights = gathered(average)
                if rank() == 0:
                    picture = paint(weights)
                    log.picture("rollouts", picture, step)
                    (folder / "pictures").mkdir(exist_ok=True)
                    Image.fromarray(picture).save(folder / "pictures" / f"{step:08d}.png")
            if step % config.save_every == 0 or step == last:
                log.flush()
                settle(folder, saving)
                tensors = resumable(module, optimizers, average, task.state())
                saving = save_state(folder, step, tensors, wait=not config.async_save)
        settle(folder, saving)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            value.copy_(average[name])
    return module.eval()


def clip_gradients(module: nn.Module, most: float) -> torch.Tensor:
    """Scale all gradients down to a norm of `most` together; returns the norm before that."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    nn.utils.clip_grads_with_norm_(module.parameters(), most, norm)
    return norm


def recomputed(module: nn.Module) -> AbstractContextManager[None]:
    """Within this context, the backward pass computes the blocks' activations again."""
    return _changed(module, lambda forward: partial(checkpoint, forward, use_reentrant=False))


def compiled(module: nn.Module) -> AbstractContextManager[None]:
    """Within this context, the blocks run compiled: fewer passes over memory between products."""
    return _changed(module, torch.compile)


@contextmanager
def _changed(
    module: nn.Module, change: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Within this context, what the blocks do is `change` of what they did."""
    before = [(block, vars(block).get("forward")) for block in blocks(module)]
    for block, _ in before:
        block.forward = change(block.forward)
    yield
    for block, forward in before:
        del block.forward
        if forward is not None:
            block.forward = forward


def _call(work: Callable[..., Any], *args: Any) -> Any:
    return work(*args)


def _turn(every: int, step: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


@torch.no_grad()
def _update_average(
    average: dict[str, torch.Tensor], module: nn.Module, decay: float, step: int
) -> None:
    """Exponential moving average; the decay grows with the step so that early ones fade."""
    decay = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    for name, value in module.state_dict().items():
        average[name].lerp_(value.float(), 1 - decay)
