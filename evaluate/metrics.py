"""Metrics of frames and of latents: pure functions, numpy in, numpy out.

Letters in shapes: `...` any leading axes (clips, horizons), H W 3 a frame, N C a latent.
"""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

PSNR_MAX = 60.0
"""PSNR of two equal frames is infinite; averages over clips need a finite number."""

_CHUNK = 256  # frames at once in `ssim`: about 60 MB of float32 at 64x64


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB, at most `PSNR_MAX`; higher is better.

    Args:
        a: uint8 [..., H, W, 3].
        b: uint8, the same shape.

    Returns:
        float64 [...].
    """
    _check_frames(a, b)
    mse = np.square(a.astype(np.float32) - b.astype(np.float32)).mean((-3, -2, -1), dtype=float)
    floor = 255.0**2 * 10 ** (-PSNR_MAX / 10)
    return 10 * np.log10(255.0**2 / np.maximum(mse, floor))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the structural similarity (Wang et al. 2004), -1 to 1; higher is better.

    Gaussian window 11x11 with sigma 1.5, only windows that lie wholly inside the frame,
    K1 0.01, K2 0.03, range 255; the mean over windows and the three channels.

    Args:
        a: uint8 [..., H, W, 3], H and W at least 11.
        b: uint8, the same shape.

    Returns:
        float64 [...].
    """
    _check_frames(a, b)
    lead, tail = a.shape[:-3], a.shape[-3:]
    if min(tail[:2]) < 11:
        raise ValueError(f"SSIM needs frames of at least 11x11 pixels, got {tail[0]}x{tail[1]}")
    x, y = a.reshape(-1, *tail), b.reshape(-1, *tail)
    parts = [_ssim(x[i : i + _CHUNK], y[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]
    return np.concatenate(parts or [np.zeros(0)]).reshape(lead)


def _ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = (torch.from_numpy(np.moveaxis(v, -1, 1).astype(np.float32)) for v in (a, b))
    taps = torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, 11)

    def smooth(image: torch.Tensor) -> torch.Tensor:
        rows = F.conv2d(image, taps, groups=3)
        return F.conv2d(rows, taps.transpose(2, 3), groups=3)

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).double().mean((1, 2, 3)).numpy()


def encoder_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distance of two latents: one minus the cosine, averaged over the tokens.

    The latents are normalised (zero mean per channel over the data), so two unrelated frames
    are about 1 apart, equal ones 0; the range is 0 to 2; lower is better.

    Args:
        a: float [..., N, C].
        b: float, the same shape.

    Returns:
        float64 [...].
    """
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"latents must share a shape [..., N, C], got {a.shape} and {b.shape}")
    return np.maximum(1 - (_unit(a) * _unit(b)).sum(-1).mean(-1, dtype=float), 0)


def nearest_distance(latents: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Return the `encoder_distance` of each latent to the nearest of a bank.

    Args:
        latents: float [n, N, C].
        bank: float [m, N, C], m at least 1.

    Returns:
        float64 [n].
    """
    tokens = latents.shape[-2]
    a, b = (_unit(v).reshape(len(v), -1) for v in (latents, bank))
    return (1 - (a @ b.T) / tokens).min(axis=1).astype(float)


def frame_change(frames: np.ndarray) -> np.ndarray:
    """Return the mean absolute change from each frame to the next, 0 to 255.

    Args:
        frames: uint8 [..., T, H, W, 3].

    Returns:
        float64 [..., T-1].
    """
    after, before = frames[..., 1:, :, :, :], frames[..., :-1, :, :, :]
    difference = np.abs(after.astype(np.float32) - before.astype(np.float32))
    return difference.mean((-3, -2, -1), dtype=float)


def sharpness(frames: np.ndarray) -> np.ndarray:
    """Return the high-frequency energy relative to the contrast; blur is low, noise is high.

    The standard deviation of the Laplacian of the luma over that of the luma (plus 4 of 255,
    so that a dark, flat frame has little). White noise is near 4.5, a smooth ramp near 0.

    Args:
        frames: uint8 [..., H, W, 3].

    Returns:
        float64 [...].
    """
    flat = frames.reshape(-1, *frames.shape[-3:])
    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in flat]
    values = [float(cv2.Laplacian(y, cv2.CV_32F).std() / (y.std() + 4.0)) for y in luma]
    return np.asarray(values, float).reshape(frames.shape[:-3])


@dataclass(frozen=True)
class Estimate:
    """A mean over clips with its 95 % bootstrap interval.

    Attributes:
        value: the mean. low, high: bounds of the interval. n: the number of clips.
        samples: what was averaged, a value per clip; empty where it is no plain mean.
    """

    value: float
    low: float
    high: float
    n: int
    samples: tuple[float, ...] = field(default=(), compare=False, repr=False)


def resampled_means(values: np.ndarray, seed: int = 0, resamples: int = 1000) -> np.ndarray:
    """Return the means of bootstrap resamples by clip.

    The same seed and number of clips give the same resamples, so that differences and ratios
    of two quantities measured on the same clips are paired.

    Args:
        values: float [clips, ...].
        seed: of the resampling.
        resamples: how many resamples.

    Returns:
        float64 [resamples, ...].
    """
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.tensordot(counts / n, np.asarray(values, float), axes=1)


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Return the mean of per-clip values, float [clips], with its bootstrap interval."""
    found = _estimate(float(np.mean(values)), resampled_means(values, seed), len(values))
    return replace(found, samples=tuple(np.asarray(values, float).tolist()))


def estimate_ratio(above: np.ndarray, below: np.ndarray, seed: int = 0) -> Estimate:
    """Return mean(above) / mean(below), both float [clips] of the same clips, with interval.

    A denominator of zero gives a ratio of 0.
    """
    if above.shape != below.shape:
        raise ValueError(f"a ratio needs the same clips, got {above.shape} and {below.shape}")
    tops, bottoms = resampled_means(above, seed), resampled_means(below, seed)
    ratios = np.divide(tops, bottoms, out=np.zeros_like(tops), where=bottoms > 0)
    bottom = float(np.mean(below))
    return _estimate(float(np.mean(above)) / bottom if bottom > 0 else 0.0, ratios, len(above))


def _estimate(value: float, samples: np.ndarray, n: int) -> Estimate:
    low, high = np.quantile(samples, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


def _unit(latents: np.ndarray) -> np.ndarray:
    values = np.asarray(latents, np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)


def _check_frames(a: np.ndarray, b: np.ndarray) -> None:
    for frames in (a, b):
        if frames.dtype != np.uint8 or frames.ndim < 3 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 [..., H, W, 3], got {frames.shape}")
    if a.shape != b.shape:
        raise ValueError(f"frames must share a shape, got {a.shape} and {b.shape}")
