"""Drift: how far windows of a long rollout are from real windows, as a distribution.

A window is `WINDOW` frames. Its features are the means and the standard deviations, over its
frames, of the `AXES` main components of real frames in the encoder's space: where it is, and how
much moves. Each feature is counted in standard deviations of the real windows, and the distance
is Fréchet's (`worldmodel.evaluate.frechet`).

Beside the imagined windows stand the true ones of the same starts and positions: what windows of
as many real clips are away from the reference is the floor.
"""

from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.datasets.store import EpisodeStore
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.frechet import frechet_distance, frechet_estimate
from worldmodel.evaluate.rollouts import Clips, FrameEncoder, encode, several_clips
from worldmodel.evaluate.scorecard import Metric, metric

WINDOW = 16
AXES = 8
REFERENCE = 256
"""Most real windows that are compared with."""

_FITTED = 512  # frames that the main components are taken from


@dataclass(frozen=True)
class Windows:
    """Turns frames into features of windows.

    Attributes:
        encoder: the model's frame encoder.
        mean: float [D], D all numbers of a latent. axes: float [D, AXES].
        scale: float [2 * AXES], standard deviations of the real windows.
    """

    encoder: FrameEncoder
    mean: np.ndarray
    axes: np.ndarray
    scale: np.ndarray

    def features(self, frames: np.ndarray) -> np.ndarray:
        """Return float [K, T // WINDOW, 2 * AXES] of frames uint8 [K, T, H, W, 3]."""
        return np.stack([_pooled(self._project(clip)) for clip in frames]) / self.scale

    def _project(self, frames: np.ndarray) -> np.ndarray:
        latents = encode(self.encoder, frames).reshape(len(frames), -1)
        return (latents - self.mean) @ self.axes


def fit_windows(frames: np.ndarray, encoder: FrameEncoder, seed: int = 0) -> Windows:
    """Take the main components and the scale from real windows, uint8 [K, T, H, W, 3]."""
    flat = frames.reshape(-1, *frames.shape[2:])
    chosen = np.random.default_rng(seed).permutation(len(flat))[:_FITTED]
    latents = encode(encoder, flat[chosen]).reshape(len(chosen), -1)
    mean = latents.mean(axis=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        axes = min(AXES, *latents.shape)
        _, _, found = torch.pca_lowrank(torch.from_numpy(latents - mean), axes, center=False)
    plain = Windows(encoder, mean, found.numpy(), np.ones(2 * axes))
    scale = plain.features(frames).reshape(-1, 2 * axes).std(axis=0)
    return Windows(encoder, mean, found.numpy(), np.maximum(scale, 1e-6))


def long_clips(store: EpisodeStore, config: EvalConfig) -> Clips:
    """Return the clips whose futures are `drift` steps long.

    Raises:
        UserError: the held-out episodes are too short, or too few.
    """
    why = "a distribution needs at least 2. Ask for a smaller drift=, or collect more episodes."
    return several_clips(store, config, config.starts, config.drift, why)


def measure_drift(
    clips: Clips,
    imagined: np.ndarray,
    encoder: FrameEncoder,
    reference: np.ndarray,
    seed: int = 0,
) -> list[Metric]:
    """Return the distance by position: the metric's horizon is the last step of its window.

    Args:
        clips: at least 2 starts with their true futures of T steps.
        imagined: their imagined futures, uint8 [K, T, H, W, 3].
        encoder: the model's frame encoder.
        reference: real windows, uint8 [R, WINDOW, H, W, 3], see `real_windows`.
        seed: of the bootstrap.
    """
    windows = fit_windows(reference, encoder, seed)
    real = windows.features(reference)[:, 0]
    copy = np.repeat(clips.past[:, -1:], WINDOW, axis=1)
    still = frechet_distance(windows.features(copy)[:, 0], real)
    model, truth = windows.features(imagined), windows.features(clips.future)
    return [
        metric(
            "drift",
            frechet_estimate(model[:, [w]], real, seed),
            better="lower",
            horizon=(w + 1) * WINDOW,
            baselines={"real": frechet_distance(truth[:, w], real), "copy": still},
        )
        for w in range(model.shape[1])
    ]


def real_windows(store: EpisodeStore, clips: Clips, seed: int = 0) -> np.ndarray:
    """Return up to `REFERENCE` windows of other episodes than the clips' ones.

    They are of the train split; without one, of all the others; without any, of the clips' own.

    Returns:
        uint8 [R, WINDOW, H, W, 3].
    """
    used = set(clips.names)
    others = [name for name in store.ids if name not in used] or list(store.ids)
    pool = list(store.select("train")) or others
    places = [
        (name, start)
        for name in pool
        for start in range(0, store.lengths[name] + 2 - WINDOW, WINDOW)
    ]
    chosen = np.random.default_rng(seed).permutation(len(places))[:REFERENCE]
    return np.stack([store.frames(*_span(*places[i])) for i in chosen])


def _span(name: str, start: int) -> tuple[str, int, int]:
    return name, start, start + WINDOW


def _pooled(values: np.ndarray) -> np.ndarray:
    """Return mean and deviation over each whole window of [T, A], as [T // WINDOW, 2 A]."""
    count = len(values) // WINDOW
    cut = values[: count * WINDOW].reshape(count, WINDOW, -1)
    return np.concatenate([cut.mean(axis=1), cut.std(axis=1)], axis=-1)
