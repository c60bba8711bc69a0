"""Networks that read something off three consecutive frames, trained on a store's real clips.

The frames (t-1, t, t+1) tell what happened from t to t+1; the one before is given as well because
worlds have some inertia. What is read, and how it is scored, is up to who uses it: the keys that
were held (`worldmodel.evaluate.inverse_dynamics`), the motion (`worldmodel.evaluate.pose`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import trange

from worldmodel.errors import UserError
from worldmodel.world import Episode

if TYPE_CHECKING:  # it loads zarr, and a window reads frames without it
    from worldmodel.datasets.store import EpisodeStore

FRAMES = 3
"""Frames that one reading takes."""


@dataclass(frozen=True)
class ReaderConfig:
    """How a reader is trained; one to two minutes on two free CPU cores.

    Attributes:
        steps: optimiser steps. batch: clips of three frames per step. lr: peak learning rate.
        frames: most frames to hold in memory; episodes are drawn at random up to there.
        seed: of the initial weights, of the episodes and of the batches.
    """

    steps: int = 1000
    batch: int = 64
    lr: float = 2e-3
    frames: int = 40_000
    seed: int = 0


class TripleReader(nn.Module):
    """A small convolutional network with `outputs` numbers per three frames."""

    def __init__(self, outputs: int, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        sizes = [3 * FRAMES, 32, 64, 64, 96, 128]
        strides = [2, 2, 1, 2, 2]
        blocks: list[nn.Module] = []
        for i, stride in enumerate(strides):
            kernel = 5 if i == 0 else 3
            conv = nn.Conv2d(sizes[i], sizes[i + 1], kernel, stride, kernel // 2, bias=False)
            blocks += [conv, nn.BatchNorm2d(sizes[i + 1]), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(sizes[-1] * 16, 256), nn.ReLU(inplace=True), nn.Linear(256, outputs)
        )
        for weight in self.parameters():  # laid out for fast convolutions on a CPU
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def about(self) -> dict[str, Any]:
        """Return what its file says beside the weights, to build it again from."""
        return {"height": self.height, "width": self.width, "frames": FRAMES}

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs] for frames float [B, 3, 3, H, W] (time, channel) in 0..1."""
        before, now, after = frames.unbind(1)
        seen = torch.cat([2 * now - 1, 4 * (now - before), 4 * (after - now)], dim=1)
        return self.head(self.body(seen.contiguous(memory_format=torch.channels_last)))

    @torch.no_grad()
    def read(self, frames: np.ndarray, batch: int = 256) -> np.ndarray:
        """Return what the network says about clips.

        Args:
            frames: uint8 [..., T, H, W, 3], T at least 3.
            batch: readings at once.

        Returns:
            float32 [..., T-2, outputs]; entry i is about the step from frame i+1 to frame i+2.
        """
        *lead, steps = frames.shape[:-3]
        if steps < FRAMES or frames.shape[-3:] != (self.height, self.width, 3):
            raise ValueError(
                f"expected clips [..., T>=3, {self.height}, {self.width}, 3], got {frames.shape}"
            )
        clips = frames.reshape(-1, *frames.shape[-4:])
        starts = [(c, t) for c in range(len(clips)) for t in range(steps - 2)]
        self.eval()
        read = []
        for i in range(0, len(starts), batch):
            triples = np.stack([clips[c, t : t + FRAMES] for c, t in starts[i : i + batch]])
            read.append(self(_to_float(triples)).numpy())
        return np.concatenate(read).reshape(*lead, steps - 2, -1)


SomeReader = TypeVar("SomeReader", bound=TripleReader)


@dataclass(frozen=True)
class Triples:
    """Real steps to learn from.

    Attributes:
        frames: uint8 [F, H, W, 3]. centres: int [S], the frame that each step starts from.
        targets: [S, ...], what is to be read. mirrored: the same in the mirrored world.
        mirrors: bool [S], whether the mirrored world has it at all.
    """

    frames: np.ndarray
    centres: np.ndarray
    targets: np.ndarray
    mirrored: np.ndarray
    mirrors: np.ndarray


def gather(
    store: "EpisodeStore", config: ReaderConfig, what: Callable[[Episode], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames uint8 [F, H, W, 3], centres int [S] into them, and targets [S, ...].

    `what` gives the targets of all steps of an episode, [T, ...]; the first step has no frame
    before it and is left out.

    Raises:
        UserError: the store has no train split, or its episodes are too short.
    """
    ids = list(store.select("train"))
    if not ids:
        raise UserError(
            "The store has no 'train' split to train a reader of frames (inverse dynamics, pose) "
            "on. Collect one, or give a trained one with idm=PATH or pose=PATH."
        )
    frames, centres, targets, count = [], [], [], 0
    for i in np.random.default_rng(config.seed).permutation(len(ids)):
        episode = store.read(ids[i])
        frames.append(episode.frames)
        centres.append(np.arange(1, episode.num_steps) + count)
        targets.append(what(episode)[1:])
        count += len(episode.frames)
        if count >= config.frames:
            break
    if not sum(len(c) for c in centres):
        raise UserError("The episodes of the 'train' split have fewer than 2 steps each.")
    return np.concatenate(frames), np.concatenate(centres), np.concatenate(targets)


def train_reader(
    make: Callable[[], SomeReader],
    data: Triples,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    config: ReaderConfig,
    title: str,
) -> SomeReader:
    """Train a reader on the CPU.

    Args:
        make: builds it, from the seed of the config.
        data: what to learn from.
        loss: of the reader's outputs [B, outputs] and the targets [B, ...].
        config: how long, and so on.
        title: for the progress bar.
    """
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        reader = make().train()
        optimiser = torch.optim.AdamW(reader.parameters(), lr=config.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.lr, total_steps=config.steps, pct_start=0.1
        )
        bar = trange(config.steps, desc=title, unit="step", leave=False)
        for step in bar:
            inputs, targets = _draw(data, config.batch, rng)
            cost = loss(reader(inputs), targets)
            optimiser.zero_grad(set_to_none=True)
            cost.backward()
            optimiser.step()
            schedule.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{cost.item():.2f}")
    return reader.eval()


def save_reader(reader: TripleReader, path: Path, data: str = "") -> None:
    """Write `path` (.safetensors) and, beside it, the same name with .json.

    `data` identifies what it was trained on, see `fingerprint`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in reader.state_dict().items()}, str(path))
    about = {**reader.about(), "trained_on": data}
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


def load_reader(
    path: Path, make: Callable[[Mapping[str, Any]], SomeReader], title: str, key: str
) -> SomeReader:
    """Return a reader that `save_reader` wrote.

    Args:
        path: its .safetensors file.
        make: builds it from what `about` said.
        title: what it is called in messages.
        key: of the config, where it is named.

    Raises:
        UserError: one of the two files is missing or damaged.
    """
    try:
        reader = make(json.loads(path.with_suffix(".json").read_text()))
        reader.load_state_dict(load_file(str(path)))
    except FileNotFoundError as error:
        raise UserError(
            f"No {title} at {path}: '{error.filename or path}' is missing. "
            f"Use {key}=auto to train one from the store."
        ) from error
    except Exception as error:  # json, safetensors and torch each have their own
        raise UserError(
            f"The {title} at {path} is damaged or of another version "
            f"({type(error).__name__}). Delete it and use {key}=auto to train it again."
        ) from error
    return reader.eval()


def fingerprint(store: "EpisodeStore") -> str:
    """Return what identifies a store's train split: a hash of its episode ids."""
    return hashlib.sha256("\n".join(store.select("train")).encode()).hexdigest()[:16]


def trained_on(path: Path) -> str:
    """Return the fingerprint that was saved with a reader; empty if there is none."""
    try:
        return str(json.loads(path.with_suffix(".json").read_text()).get("trained_on", ""))
    except (OSError, ValueError):
        return ""


def _to_float(frames: np.ndarray) -> torch.Tensor:
    """Return uint8 [B, T, H, W, 3] as float [B, T, 3, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 1, 4, 2, 3).float() / 255


def _draw(data: Triples, batch: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw some steps; mirror some of them, blur some, change the brightness.

    What holds for frames of a decoder, which are softer, is then not new to the reader.
    """
    chosen = rng.integers(len(data.centres), size=batch)
    frames = data.frames[data.centres[chosen, None] + np.arange(-1, 2)]
    flip = (rng.random(batch) < 0.5) & data.mirrors[chosen]
    frames = np.where(flip[:, None, None, None, None], frames[:, :, :, ::-1], frames)
    targets = data.targets[chosen]
    targets[flip] = data.mirrored[chosen[flip]]
    clips = _to_float(frames)
    soft = torch.from_numpy(rng.random(batch) < 0.5)
    if bool(soft.any()):
        blurred = F.avg_pool2d(clips[soft].flatten(0, 1), 3, 1, 1, count_include_pad=False)
        clips[soft] = blurred.view_as(clips[soft])
    gain = torch.from_numpy(rng.uniform(0.7, 1.3, (batch, 1, 1, 1, 1)).astype(np.float32))
    return clips.mul_(gain).clamp_(0, 1), torch.from_numpy(targets)
