"""Pose: how far an imagined walk is from the true one, by what its frames show.

A small network (`worldmodel.evaluate.triples`) is trained on real frames to read the motion of
each step; what it reads off imagined frames, integrated, is the imagined path. It is compared
with the recorded path, which the store has as the fact `pose`. What the same network makes of
the true frames is the error that comes from reading.

Poses are x, y in metres and yaw in degrees, counter-clockwise; a motion is (forward, to the left,
turn) in metres and degrees. Letters in shapes: K clips, T steps.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.evaluate import metrics
from worldmodel.evaluate.planning import integrate
from worldmodel.evaluate.rollouts import Clips
from worldmodel.evaluate.scorecard import Metric, metric
from worldmodel.evaluate.triples import (
    ReaderConfig,
    TripleReader,
    Triples,
    gather,
    load_reader,
    train_reader,
)

POSE = "facts/pose"
MOTION = (("forward", "m"), ("sideways", "m"), ("turn", "deg"))
"""What is read of a step, and its unit."""

TRAINING = ReaderConfig(steps=600)
"""About a minute on one free CPU core."""

_MIRRORED = np.array([1, -1, -1], np.float32)


class PoseReader(TripleReader):
    """Reads the motion of a step from three frames."""

    spread: torch.Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__(len(MOTION), height, width)
        self.register_buffer("spread", torch.ones(len(MOTION)))

    def motion(self, frames: np.ndarray) -> np.ndarray:
        """Return the motions read from clips.

        Args:
            frames: uint8 [..., T, H, W, 3], T at least 3.

        Returns:
            float32 [..., T-2, 3]; entry i is the motion from frame i+1 to frame i+2.
        """
        return self.read(frames) * self.spread.numpy()


def has_pose(store: EpisodeStore) -> bool:
    """Return whether the store's episodes say where the agent was."""
    return bool(store.ids) and POSE in store.arrays(store.ids[0])


def train_pose(store: EpisodeStore, config: ReaderConfig = TRAINING) -> PoseReader:
    """Train a reader on the store's train split, on the CPU.

    Raises:
        UserError: the store has no train split or no poses, or its episodes are too short.
    """
    if not has_pose(store):
        raise UserError(
            "The episodes of the store do not say where the agent was (the fact 'pose'), so no "
            "pose can be learned from them. Use a world that knows it, such as doom."
        )
    frames, centres, moves = gather(store, config, lambda e: relative(e.facts["pose"]))
    # The root mean square of each part is its unit, so that metres and degrees weigh alike.
    spread = np.maximum(np.sqrt(np.square(moves).mean(axis=0)), 1e-3).astype(np.float32)
    targets = (moves / spread).astype(np.float32)
    data = Triples(frames, centres, targets, targets * _MIRRORED, np.ones(len(moves), bool))

    def make() -> PoseReader:
        reader = PoseReader(store.spec.height, store.spec.width)
        reader.spread.copy_(torch.from_numpy(spread))
        return reader

    return train_reader(make, data, F.smooth_l1_loss, config, "pose")


def load_pose(path: Path) -> PoseReader:
    """Return the reader that `save_reader` wrote.

    Raises:
        UserError: one of the two files is missing or damaged.
    """

    def make(about: Mapping[str, Any]) -> PoseReader:
        return PoseReader(about["height"], about["width"])

    return load_reader(path, make, "pose regressor", "pose")


def relative(poses: np.ndarray) -> np.ndarray:
    """Return the motion of each step, float64 [..., T, 3]; `integrate` is its inverse.

    Args:
        poses: float [..., T+1, 3].
    """
    poses = np.asarray(poses, float)
    dyaw = (np.diff(poses[..., 2]) + 180) % 360 - 180
    middle = np.radians(poses[..., :-1, 2] + dyaw / 2)
    x, y = np.moveaxis(np.diff(poses[..., :2], axis=-2), -1, 0)
    cos, sin = np.cos(middle), np.sin(middle)
    return np.stack([cos * x + sin * y, cos * y - sin * x, dyaw], axis=-1)


def true_poses(store: EpisodeStore, clips: Clips) -> np.ndarray:
    """Return the poses from the last given frame on, float64 [K, T+1, 3]."""
    first, steps = clips.context - 1, clips.future.shape[1]
    return np.stack(
        [
            store.arrays(name)[POSE][start + first :][: steps + 1].astype(float)
            for name, start in zip(clips.names, clips.starts, strict=True)
        ]
    )


def measure_pose(
    clips: Clips,
    futures: Mapping[str, np.ndarray],
    decoded_past: np.ndarray,
    truth: np.ndarray,
    reader: PoseReader,
    told: np.ndarray,
    seed: int = 0,
) -> list[Metric]:
    """Return the reader's own error, and the error of integrated paths by horizon.

    Args:
        clips: recorded clips.
        futures: uint8 [K, T, H, W, 3] by name: 'imagined', and 'reconstruction' for the true
            frames as they come from the decoder.
        decoded_past: the given frames as they come from the decoder, uint8 [K, context, ...].
        truth: the true poses, see `true_poses`.
        reader: the pose regressor.
        told: the motions that the actions name, float [K, T, 3].
        seed: of the bootstrap.
    """
    moves = relative(truth)
    real = reader.motion(np.concatenate([clips.past[:, -2:], clips.future], axis=1))
    shown = {
        name: reader.motion(np.concatenate([decoded_past[:, -2:], frames], axis=1))
        for name, frames in futures.items()
    }
    found = []
    for i, (name, unit) in enumerate(MOTION):
        error = np.abs(real[..., i] - moves[..., i]).mean(axis=1)
        beside = {"still": float(np.abs(moves[..., i]).mean())}
        value = metrics.estimate(error, seed)
        found.append(
            metric(f"pose_reader_{name}", value, unit=unit, better="lower", baselines=beside)
        )
    others = {
        "real": real,
        "reconstruction": shown["reconstruction"],
        "told": told,
        "still": np.zeros_like(moves),
    }
    errors = {name: path_errors(walk, truth) for name, walk in others.items()}
    imagined = path_errors(shown["imagined"], truth)
    for part, (name, unit) in enumerate([("pose_position", "m"), ("pose_yaw", "deg")]):
        for h in range(moves.shape[1]):
            beside = {key: float(both[part][:, h].mean()) for key, both in errors.items()}
            value = metrics.estimate(imagined[part][:, h], seed)
            found.append(
                metric(name, value, unit=unit, better="lower", horizon=h + 1, baselines=beside)
            )
    return found


def path_errors(moves: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far integrated motions are from the true poses after each step.

    Args:
        moves: float [K, T, 3].
        truth: float [K, T+1, 3].

    Returns:
        float64 [K, T] each: the distance in metres, and the angle in degrees, 0 to 180.
    """
    paths = np.stack(
        [
            integrate([Action((), *map(float, move)) for move in walk], poses[0])
            for walk, poses in zip(moves, truth, strict=True)
        ]
    )
    far = np.linalg.norm(paths[:, 1:, :2] - truth[:, 1:, :2], axis=-1)
    return far, np.abs((paths[:, 1:, 2] - truth[:, 1:, 2] + 180) % 360 - 180)
