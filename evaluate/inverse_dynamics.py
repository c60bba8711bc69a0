"""Inverse dynamics: which keys were held between two frames, read from the frames alone.

A small convolutional network, trained on real clips of a store's train split. On imagined
clips its reading says whether the imagination did what it was told; its accuracy on real
clips is the ceiling. The world has some inertia, so the frame before is given as well: the
frames (t-1, t, t+1) give the action from t to t+1. The classes are the key combinations that
occur in the data.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import trange

from worldmodel.actions import ActionTable
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError

FRAMES = 3
"""Frames that one reading takes."""


@dataclass(frozen=True)
class IdmConfig:
    """How the reader is trained; one to two minutes on two free CPU cores.

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


class InverseDynamics(nn.Module):
    """Reads one of `masks` (bit masks over the action table's rows) from three frames."""

    def __init__(self, keys: Sequence[str], masks: Sequence[int], height: int, width: int):
        super().__init__()
        self.keys, self.masks = tuple(keys), tuple(int(m) for m in masks)
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
            nn.Linear(sizes[-1] * 16, 256), nn.ReLU(inplace=True), nn.Linear(256, len(masks))
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return logits [B, masks] for frames float [B, 3, 3, H, W] (time, channel) in 0..1."""
        before, now, after = frames.unbind(1)
        seen = torch.cat([2 * now - 1, 4 * (now - before), 4 * (after - now)], dim=1)
        return self.head(self.body(seen.contiguous(memory_format=torch.channels_last)))

    def channels_last(self) -> "InverseDynamics":
        """Lay the weights out for fast convolutions on a CPU; returns itself."""
        for weight in self.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return self

    @torch.no_grad()
    def predict(self, frames: np.ndarray, batch: int = 256) -> np.ndarray:
        """Return the key masks read from clips.

        Args:
            frames: uint8 [..., T, H, W, 3], T at least 3.
            batch: readings at once.

        Returns:
            uint16 [..., T-2]; entry i is the action from frame i+1 to frame i+2.
        """
        *lead, steps = frames.shape[:-3]
        if steps < FRAMES or frames.shape[-3:] != (self.height, self.width, 3):
            raise ValueError(
                f"expected clips [..., T>=3, {self.height}, {self.width}, 3], got {frames.shape}"
            )
        clips = frames.reshape(-1, *frames.shape[-4:])
        starts = [(c, t) for c in range(len(clips)) for t in range(steps - 2)]
        self.eval()
        table, read = np.asarray(self.masks, np.uint16), []
        for i in range(0, len(starts), batch):
            triples = np.stack([clips[c, t : t + FRAMES] for c, t in starts[i : i + batch]])
            read.append(table[self(_to_float(triples)).argmax(1).numpy()])
        return np.concatenate(read).reshape(*lead, steps - 2)


def train_idm(store: EpisodeStore, config: IdmConfig | None = None) -> InverseDynamics:
    """Train a reader on the store's train split, on the CPU.

    Raises:
        UserError: the store has no train split, or its episodes are too short.
    """
    config = config or IdmConfig()
    frames, centres, masks = _training_set(store, config)
    classes, labels = np.unique(masks, return_inverse=True)
    spec = store.spec
    partner = _mirror_classes(spec.actions, classes.tolist())
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        idm = InverseDynamics(spec.actions.keys, classes.tolist(), spec.height, spec.width)
        idm = idm.channels_last().train()
        optimiser = torch.optim.AdamW(idm.parameters(), lr=config.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.lr, total_steps=config.steps, pct_start=0.1
        )
        bar = trange(config.steps, desc="inverse dynamics", unit="step", leave=False)
        for step in bar:
            chosen = rng.integers(len(centres), size=config.batch)
            triples = frames[centres[chosen, None] + np.arange(-1, 2)]
            inputs, targets = _augment(triples, labels[chosen], partner, rng)
            loss = F.cross_entropy(idm(inputs), targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
    return idm.eval()


def save_idm(idm: InverseDynamics, path: Path, data: str = "") -> None:
    """Write `path` (.safetensors) and, beside it, the same name with .json.

    `data` identifies what it was trained on, see `fingerprint`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in idm.state_dict().items()}, str(path))
    about = {
        "keys": idm.keys,
        "masks": idm.masks,
        "height": idm.height,
        "width": idm.width,
        "frames": FRAMES,
        "trained_on": data,
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


def load_idm(path: Path) -> InverseDynamics:
    """Return the reader that `save_idm` wrote.

    Raises:
        UserError: one of the two files is missing or damaged.
    """
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        idm = InverseDynamics(about["keys"], about["masks"], about["height"], about["width"])
        idm.load_state_dict(load_file(str(path)))
    except FileNotFoundError as error:
        raise UserError(
            f"No inverse-dynamics model at {path}: '{error.filename or path}' is missing. "
            "Use idm=auto to train one from the store."
        ) from error
    except Exception as error:  # json, safetensors and torch each have their own
        raise UserError(
            f"The inverse-dynamics model at {path} is damaged or of another version "
            f"({type(error).__name__}). Delete it and use idm=auto to train it again."
        ) from error
    return idm.channels_last().eval()


def fingerprint(store: EpisodeStore) -> str:
    """Return what identifies a store's train split: a hash of its episode ids."""
    return hashlib.sha256("\n".join(store.select("train")).encode()).hexdigest()[:16]


def trained_on(path: Path) -> str:
    """Return the fingerprint that was saved with a reader; empty if there is none."""
    try:
        return str(json.loads(path.with_suffix(".json").read_text()).get("trained_on", ""))
    except (OSError, ValueError):
        return ""


def exact_accuracy(read: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Return the share of steps whose whole key combination was read right, per clip.

    Args:
        read: uint16 masks [clips, T].
        told: uint16 masks [clips, T].

    Returns:
        float64 [clips], 0 to 1.
    """
    return (read == told).mean(axis=1)


def key_counts(read: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two counts per clip whose ratio of means is the micro F1 over single keys.

    Args:
        read: uint16 masks [clips, T].
        told: uint16 masks [clips, T].

    Returns:
        float64 [clips] true positives, and true positives plus half of all errors.
    """
    bits = 1 << np.arange(16, dtype=np.uint16)
    r, t = ((v[..., None] & bits) > 0 for v in (read, told))
    hits = (r & t).sum((1, 2)).astype(float)
    return hits, hits + 0.5 * (r ^ t).sum((1, 2))


def _training_set(store: EpisodeStore, config: IdmConfig) -> tuple[np.ndarray, ...]:
    """Return frames uint8 [F, H, W, 3], centres int [S] into them, and masks uint16 [S]."""
    ids = list(store.select("train"))
    if not ids:
        raise UserError(
            "The store has no 'train' split to train the inverse-dynamics model on. "
            "Collect one, or give a trained one with idm=PATH."
        )
    frames, centres, masks, count = [], [], [], 0
    for i in np.random.default_rng(config.seed).permutation(len(ids)):
        episode = store.read(ids[i])
        frames.append(episode.frames)
        centres.append(np.arange(1, episode.num_steps) + count)
        masks.append(episode.keys[1:])
        count += len(episode.frames)
        if count >= config.frames:
            break
    if not sum(len(c) for c in centres):
        raise UserError("The episodes of the 'train' split have fewer than 2 steps each.")
    return np.concatenate(frames), np.concatenate(centres), np.concatenate(masks)


def _to_float(frames: np.ndarray) -> torch.Tensor:
    """Return uint8 [B, T, H, W, 3] as float [B, T, 3, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 1, 4, 2, 3).float() / 255


def _augment(
    frames: np.ndarray, labels: np.ndarray, partner: np.ndarray, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror some clips (and their keys), blur some, change the brightness.

    What holds for frames of a decoder, which are softer, is then not new to the reader.
    """
    mirrored = (rng.random(len(labels)) < 0.5) & (partner[labels] >= 0)
    frames = np.where(mirrored[:, None, None, None, None], frames[:, :, :, ::-1], frames)
    labels = np.where(mirrored, partner[labels], labels)
    clips = _to_float(frames)
    soft = torch.from_numpy(rng.random(len(labels)) < 0.5)
    if bool(soft.any()):
        blurred = F.avg_pool2d(clips[soft].flatten(0, 1), 3, 1, 1, count_include_pad=False)
        clips[soft] = blurred.view_as(clips[soft])
    gain = torch.from_numpy(rng.uniform(0.7, 1.3, (len(labels), 1, 1, 1, 1)).astype(np.float32))
    return clips.mul_(gain).clamp_(0, 1), torch.from_numpy(labels.astype(np.int64))


def _mirror_classes(table: ActionTable, masks: Sequence[int]) -> np.ndarray:
    """Return for each class the class of the mirrored world, or -1 where there is none."""
    moves = [(row.dx, row.dy, row.dyaw) for row in table.rows]
    rows = [
        moves.index((dx, -dy, -dyaw)) if any((dx, dy, dyaw)) and (dx, -dy, -dyaw) in moves else -1
        for dx, dy, dyaw in moves
    ]
    partners = []
    for mask in masks:
        held = [rows[i] for i in range(len(rows)) if mask >> i & 1]
        mirrored = sum(1 << j for j in held) if min(held, default=0) >= 0 else -1
        partners.append(list(masks).index(mirrored) if mirrored in masks else -1)
    return np.asarray(partners)
