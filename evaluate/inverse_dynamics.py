"""Inverse dynamics: which keys were held between two frames, read from the frames alone.

Trained on real clips of a store's train split (`worldmodel.evaluate.triples`). On imagined clips
its reading says whether the imagination did what it was told; its accuracy on real clips is the
ceiling. The classes are the key combinations that occur in the data.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F

from worldmodel.actions import ActionTable
from worldmodel.evaluate.triples import (
    ReaderConfig,
    TripleReader,
    Triples,
    gather,
    load_reader,
    train_reader,
)

if TYPE_CHECKING:  # it loads zarr, and a window reads frames without it
    from worldmodel.datasets.store import EpisodeStore


class InverseDynamics(TripleReader):
    """Reads one of `masks` (bit masks over the action table's rows) from three frames."""

    def __init__(self, keys: Sequence[str], masks: Sequence[int], height: int, width: int) -> None:
        super().__init__(len(masks), height, width)
        self.keys, self.masks = tuple(keys), tuple(int(m) for m in masks)

    def about(self) -> dict[str, Any]:
        """See `TripleReader.about`."""
        return {"keys": self.keys, "masks": self.masks, **super().about()}

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """Return the key masks read from clips.

        Args:
            frames: uint8 [..., T, H, W, 3], T at least 3.

        Returns:
            uint16 [..., T-2]; entry i is the action from frame i+1 to frame i+2.
        """
        return np.asarray(self.masks, np.uint16)[self.read(frames).argmax(axis=-1)]


def train_idm(store: "EpisodeStore", config: ReaderConfig | None = None) -> InverseDynamics:
    """Train a reader on the store's train split, on the CPU.

    Raises:
        UserError: the store has no train split, or its episodes are too short.
    """
    config, spec = config or ReaderConfig(), store.spec
    frames, centres, masks = gather(store, config, lambda episode: episode.keys)
    classes, labels = np.unique(masks, return_inverse=True)
    labels = labels.astype(np.int64)
    partner = _mirror_classes(spec.actions, classes.tolist())[labels]
    data = Triples(frames, centres, labels, partner, partner >= 0)

    def make() -> InverseDynamics:
        return InverseDynamics(spec.actions.keys, classes.tolist(), spec.height, spec.width)

    return train_reader(make, data, F.cross_entropy, config, "inverse dynamics")


def load_idm(path: Path) -> InverseDynamics:
    """Return the reader that `save_reader` wrote.

    Raises:
        UserError: one of the two files is missing or damaged.
    """

    def make(about: Mapping[str, Any]) -> InverseDynamics:
        return InverseDynamics(about["keys"], about["masks"], about["height"], about["width"])

    return load_reader(path, make, "inverse-dynamics model", "idm")


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
