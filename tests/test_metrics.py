"""Metrics against plain reference implementations and known values."""

import numpy as np
import pytest

from worldmodel.evaluate import metrics


def frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def plain_ssim(a, b):
    """The formula of the paper, one window at a time, in float64."""
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 6.5025, 58.5225
    values = []
    for channel in range(3):
        x, y = a[..., channel].astype(float), b[..., channel].astype(float)
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + c1) * (2 * cov + c2)
                values.append(top / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.mean(values)


def test_ssim_equals_the_plain_formula_for_noise_and_for_smooth_frames():
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None, None] * 9, (24, 20, 3)).copy()
    near = np.clip(ramp.astype(int) + frames(24, 20)[..., :] % 16, 0, 255).astype(np.uint8)
    for a, b in [(frames(24, 20), frames(24, 20, seed=1)), (ramp, near)]:
        assert metrics.ssim(a, b) == pytest.approx(plain_ssim(a, b), abs=1e-4)


def test_ssim_keeps_leading_axes_and_does_not_depend_on_the_batch():
    a, b = frames(3, 2, 16, 16), frames(3, 2, 16, 16, seed=1)
    whole = metrics.ssim(a, b)
    assert whole.shape == (3, 2)
    assert whole[2, 1] == pytest.approx(float(metrics.ssim(a[2, 1], b[2, 1])), abs=1e-6)
    assert np.allclose(metrics.ssim(a, a), 1)


def test_psnr_of_a_known_error_and_of_equal_frames():
    a = np.full((2, 8, 8, 3), 100, np.uint8)
    b = a + np.uint8(5)
    assert metrics.psnr(a, b) == pytest.approx([10 * np.log10(255**2 / 25)] * 2)
    assert metrics.psnr(a, a) == pytest.approx([metrics.PSNR_MAX] * 2)


def test_frames_of_another_shape_or_type_are_refused():
    with pytest.raises(ValueError, match="share a shape"):
        metrics.psnr(frames(8, 8), frames(8, 9))
    with pytest.raises(ValueError, match="uint8"):
        metrics.ssim(np.zeros((16, 16, 3)), np.zeros((16, 16, 3)))
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(frames(8, 8), frames(8, 8))


def test_encoder_distance_is_zero_one_two_for_same_orthogonal_opposite():
    a = np.zeros((1, 4, 8), np.float32)
    a[..., 0] = 3
    b = np.roll(a, 1, axis=-1)
    assert metrics.encoder_distance(a, 7 * a) == pytest.approx([0])
    assert metrics.encoder_distance(a, b) == pytest.approx([1])
    assert metrics.encoder_distance(a, -a) == pytest.approx([2])


def test_nearest_distance_is_the_least_encoder_distance():
    rng = np.random.default_rng(0)
    a, bank = rng.normal(size=(5, 4, 8)), rng.normal(size=(9, 4, 8))
    expected = [min(metrics.encoder_distance(x, y) for y in bank) for x in a]
    assert metrics.nearest_distance(a, bank) == pytest.approx(expected, abs=1e-5)


def test_sharpness_orders_blur_real_noise_and_change_sees_a_frozen_clip():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3))
    edges = np.where((np.arange(64) // 8 % 2)[:, None, None], 200, 40) * np.ones((64, 64, 3))
    values = [metrics.sharpness(v.astype(np.uint8)) for v in (ramp, edges, frames(64, 64))]
    assert values == sorted(values)
    assert values[2] > 2 * values[1] > 4 * values[0]
    still = np.repeat(frames(1, 8, 8), 4, axis=0)
    assert metrics.frame_change(still).tolist() == [0, 0, 0]
    assert metrics.frame_change(frames(2, 4, 8, 8)).shape == (2, 3)


def test_the_bootstrap_interval_covers_the_mean_and_pairs_ratios():
    values = np.random.default_rng(0).normal(2, 1, 400)
    found = metrics.estimate(values)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert found == metrics.estimate(values)
    # The ratio of a thing to itself is exactly one in every resample: resampling is paired.
    ratio = metrics.estimate_ratio(values * 3, values)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3, 3, 3))
    assert metrics.estimate_ratio(values, np.zeros(400)).value == 0
