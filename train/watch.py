"""What is looked at on the way: numbers, validation, pictures, and what went wrong."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from worldmodel.errors import UserError, suggest
from worldmodel.train.distributed import (
    everywhere,
    rank,
    ranks,
    whole,
)
from worldmodel.train.task import Task

LOGGERS = ("tensorboard", "wandb")
PEAKS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of a GPU whose name has this part, from NVIDIA's data sheets (SXM)."""


@dataclass(frozen=True)
class Watch:
    """What to log while training.

    Attributes:
        logger: 'tensorboard', or 'wandb' for Weights & Biases.
        every: steps between logged numbers.
        validate_every: steps between validations of the core's averaged weights on the split
            'val', 0 for none; over `validate_batches` batches, always the same ones.
        images_every: steps between pictures of rollouts beside what really followed, 0 for none;
            of `images` episodes of the split 'val', also written below the run's folder.
    """

    logger: str = "tensorboard"
    every: int = 20
    validate_every: int = 0
    validate_batches: int = 8
    images_every: int = 0
    images: int = 4

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            UserError: an unknown logger, or a number that is too small.
        """
        if self.logger not in LOGGERS:
            raise UserError(
                f"watch.logger={self.logger!r} is unknown.{suggest(self.logger, LOGGERS)}"
            )
        for name in ("every", "validate_batches", "images"):
            if getattr(self, name) < 1:
                raise UserError(f"watch.{name}={getattr(self, name)} must be at least 1.")


class Log(Protocol):
    """Where numbers and pictures go."""

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers by name."""
        ...

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write a picture uint8 [H, W, 3]."""
        ...

    def flush(self) -> None:
        """Bring to disk what was written; a kill then loses none of it."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


class TensorBoardLog:
    """Event files below a run's folder."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers by name."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write a picture uint8 [H, W, 3]."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring to disk what was written."""
        self._writer.flush()

    def close(self) -> None:
        """Finish writing."""
        self._writer.close()


class WandbLog:
    """A run on Weights & Biases; resuming goes on in the same one."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(
                "watch.logger=wandb needs the package wandb: pip install wandb, then `wandb login` "
                "or WANDB_MODE=offline. Or use watch.logger=tensorboard."
            ) from None
        path = folder / "wandb.json"
        known = json.loads(path.read_text())["id"] if path.exists() else None
        self._wandb = wandb
        self._run = wandb.init(
            project="worldmodel",
            name=f"{folder.parent.name}-{folder.name}",
            dir=str(folder),
            id=known,
            resume="allow",
            config=dict(config),
        )
        path.write_text(json.dumps({"id": self._run.id}))

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers by name."""
        self._run.log(dict(numbers), step=step)

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write a picture uint8 [H, W, 3]."""
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def flush(self) -> None:
        """Do nothing: wandb writes by itself."""

    def close(self) -> None:
        """Finish writing."""
        self._run.finish()


class NoLog:
    """For all processes but the first."""

    def numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Write nothing."""

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_log(logger: str, folder: Path, step: int, config: Mapping[str, Any]) -> Log:
    """Return where this process's numbers go; entries after `step` are dropped.

    Raises:
        UserError: wandb is asked for and not installed.
    """
    if rank() > 0:
        return NoLog()
    return WandbLog(folder, config) if logger == "wandb" else TensorBoardLog(folder, step)


class Meter:
    """Speed since it was last asked: of all processes together, MFU of the mean one."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task = task
        self._peak = peak_flops(device)
        self._began = self._last = time.monotonic()
        self._done = task.work()

    def read(self) -> dict[str, float]:
        """Return 'speed/<amount>_per_s', 'speed/mfu' where the peak is known, and seconds."""
        now, done = time.monotonic(), self._task.work()
        seconds = max(now - self._last, 1e-9)
        new = everywhere([{k: v - self._done.get(k, 0.0) for k, v in done.items()}])
        self._last, self._done = now, done
        amounts = {name: sum(row[name] for row in new) for name in done}
        flops = amounts.pop("flops", 0.0) / seconds
        numbers = {f"speed/{name}_per_s": amount / seconds for name, amount in amounts.items()}
        if flops:
            numbers["speed/tflops"] = flops / 1e12
        if flops and self._peak:
            numbers["speed/mfu"] = flops / (self._peak * ranks())
        return numbers | {"train/seconds": now - self._began}


def peak_flops(device: torch.device) -> float | None:
    """Return the peak of a device in bfloat16 FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Return the norm of the gradient of each part of a module, before it is clipped."""
    norms = {}
    for name, part in module.named_children():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if gradients:
            norms[f"grad/{name}"] = whole(nn.utils.get_total_norm(gradients)).item()
    return norms


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Give all buffers back the values that they have now; routers count what they see."""
    kept = {name: value.clone() for name, value in module.named_buffers()}
    yield
    for name, value in module.named_buffers():
        value.copy_(kept[name])


@contextmanager
def averaged(module: nn.Module, average: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Put the averaged weights into a module for a while; then everything is as it was."""
    with torch.no_grad(), kept_buffers(module):
        live = module.state_dict()
        kept = {name: value.clone() for name, value in live.items()}
        for name, value in live.items():
            value.copy_(average[name])
        was_training = module.training
        module.eval()
        yield
        module.train(was_training)
        for name, value in module.state_dict().items():
            value.copy_(kept[name])


def validate(
    task: Task, run: Callable[..., Any], average: Mapping[str, torch.Tensor], batches: int
) -> dict[str, float]:
    """Return the mean losses of the averaged weights as 'val/...'; training does not notice.

    Args:
        task: on held-out data; its module is the one that is trained.
        run: calls `task.losses` as a pass of the module.
        average: the averaged weights.
        batches: numbered from 0, divided over the processes.
    """
    found = []
    with averaged(task.module, average):
        for batch in range(rank(), batches, ranks()):
            losses = run(task.losses, 0, batch)
            found.append({k: v.item() for k, v in losses.items()})
    return {f"val/{k}": v for k, v in mean_of(everywhere(found)).items()}


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each name over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    parts = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in parts.items()}


def refuse(
    folder: Path, task: Task, step: int, losses: Mapping[int, float], lr: float
) -> UserError:
    """Write the batch that led to a loss or gradient that is not finite, and say so.

    All processes call this together.

    Args:
        folder: where to write.
        task: makes the batch once more.
        step: at which it happened; weights are as before it.
        losses: of this process's batches of the step, by number.
        lr: what to lower if the data are not at fault.

    Returns:
        The error to raise: it names the step, the file, and what in it is not finite.
    """
    bad = [batch for batch, loss in losses.items() if not np.isfinite(loss)]
    text = f"The loss or its gradient is not finite at step {step}"
    if any(everywhere([bool(bad)])) and not bad:
        text += ", in another process."
    else:
        path, wrong = _write_batch(folder, task, step, losses, bad[0] if bad else max(losses))
        cause = f"Lower lr (now {lr:g}) and run the same command."
        if wrong:
            cause = (
                f"The data are at fault: '{', '.join(wrong)}' of the batch is not finite; mend "
                "the store or its latents and run the same command."
            )
        text += f"; its batch is in '{path}'. The last good state is in '{folder}'. {cause}"
    everywhere([True])  # nobody leaves before all is written: torchrun then ends the others
    return UserError(text)


def _write_batch(
    folder: Path, task: Task, step: int, losses: Mapping[int, float], batch: int
) -> tuple[Path, list[str]]:
    """Write a batch's tensors, and beside them what is known; returns what is not finite."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in task.inputs(batch).items()}
    path = folder / f"bad-step-{step}-batch-{batch}.safetensors"
    save_file(tensors, path)
    wrong = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    note = {"step": step, "batch": batch, "losses": {k: str(v) for k, v in losses.items()}}
    path.with_suffix(".json").write_text(json.dumps(note | {"not_finite": wrong}, indent=2) + "\n")
    return path, wrong


@contextmanager
def explain_memory(step: int) -> Iterator[None]:
    """Turn 'out of memory' into a sentence that says what to lower.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        gpu = isinstance(error, torch.OutOfMemoryError)
        if not (
            gpu
            or isinstance(error, MemoryError)
            or "not enough memory" in text
            or "can't allocate memory" in text
        ):
            raise
        where = "GPU memory" if gpu else "memory"
        raise UserError(
            f"Out of {where} at step {step}. Make batches smaller (core.rows or core.length; "
            "encoder.batch for encoder and decoder) and take more of them a step "
            "(core_loop.accumulate), or compute activations again instead of keeping them "
            "(core_loop.checkpointing=true). What was trained is saved; run the same command."
        ) from error
