"""The Fréchet distance between two sets of features, as in FID (Heusel et al., arXiv 1706.08500).

Each set is taken as a Gaussian: d^2 = |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2). Few
samples make it too large, so a distance means something only beside one of as many real samples.

Letters in shapes: D features; K groups (clips) of W samples that belong together.
"""

from typing import Any

import numpy as np

from worldmodel.evaluate.metrics import Estimate

RESAMPLES = 200


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared distance of two sets, at least 2 samples each.

    Args:
        a: float [n, D].
        b: float [m, D].
    """
    return _distance(_gaussian(a), _gaussian(b))


def frechet_estimate(groups: np.ndarray, reference: np.ndarray, seed: int = 0) -> Estimate:
    """Return the squared distance of all samples to a reference, with an interval over the groups.

    A bootstrap resample repeats some groups, which alone makes it look narrower, and so further
    away, than the whole. The mean of that excess is taken off the resamples, so that the interval
    is one of scatter around the value.

    Args:
        groups: float [K, W, D].
        reference: float [m, D].
        seed: of the resampling.
    """
    fixed = _gaussian(reference)
    value = _distance(_gaussian(groups.reshape(-1, groups.shape[-1])), fixed)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
    found = np.array(
        [_distance(_gaussian(groups[rows].reshape(-1, groups.shape[-1])), fixed) for rows in drawn]
    )
    low, high = np.quantile(found - found.mean() + value, [0.025, 0.975])
    return Estimate(value, max(float(low), 0.0), float(high), len(groups))


def _gaussian(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [D] of samples and a root R [min(n, D), D] of their covariance R^T R."""
    samples = np.asarray(samples, float)
    if len(samples) < 2:
        raise ValueError(f"a distribution needs at least 2 samples, got {len(samples)}")
    mean = samples.mean(axis=0)
    root: Any = np.linalg.qr((samples - mean) / np.sqrt(len(samples) - 1), mode="r")
    return mean, root


def _distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the squared distance of two Gaussians.

    The trace of the root of the covariances' product is the sum of the singular values of
    R_a R_b^T, which needs no root of a matrix and is small where samples are fewer than features.
    """
    (mean_a, root_a), (mean_b, root_b) = a, b
    spread = np.square(root_a).sum() + np.square(root_b).sum()
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(float(np.square(mean_a - mean_b).sum() + spread - 2 * shared), 0.0)
