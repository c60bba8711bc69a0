"""The Fréchet distance against closed forms, and drift on rollouts whose drift is known."""

import numpy as np
import pytest

from worldmodel.evaluate.frechet import frechet_distance, frechet_estimate


def exact(mean, covariance, n=400, seed=0):
    """Samples whose mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


def test_it_is_the_closed_form_for_gaussians_that_do_not_share_axes():
    rng = np.random.default_rng(1)
    a, b = (m @ m.T + np.eye(5) for m in rng.normal(size=(2, 5, 5)))
    mean_a, mean_b = rng.normal(size=(2, 5))
    half = root(a)
    truth = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root(half @ b @ half))
    found = frechet_distance(exact(mean_a, a), exact(mean_b, b, seed=2))
    assert found == pytest.approx(truth, rel=1e-9)


def test_equal_sets_are_at_zero_also_with_fewer_samples_than_features():
    for n, features in ((50, 4), (6, 300)):
        x = np.random.default_rng(0).normal(size=(n, features))
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
        y = x + np.eye(features)[0] * 3
        assert frechet_distance(x, y) == pytest.approx(9)
        assert frechet_distance(y, x) == pytest.approx(9)


def test_one_sample_is_no_distribution():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


def test_the_interval_lies_around_the_value_and_narrows_with_more_clips():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(500, 3))
    few, many = (rng.normal(1, 1, size=(n, 2, 3)) for n in (10, 160))
    wide, narrow = (frechet_estimate(groups, reference) for groups in (few, many))
    for found in (wide, narrow):
        assert found.low < found.value < found.high
    assert narrow.n == 160
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)
    assert narrow.value == pytest.approx(3, abs=0.6)
