"""Flow matching against closed forms: where the right answer is known, sampling finds it."""

import math

import pytest
import torch

from worldmodel.flow import (
    FLOOR,
    advance,
    draw_levels,
    flow_loss,
    mix,
    sample,
    shift_level,
    shortcut_target,
)

STRIDES = 4


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 16])
def test_an_oracle_is_followed_to_the_data(steps):
    clean, noise = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    out = sample(lambda z, t, s: clean, noise, steps, STRIDES)
    assert torch.allclose(out, clean, atol=1e-5)


def test_the_number_of_steps_does_not_matter_on_a_straight_path():
    """One fixed prediction, x = c: the path is straight, and so is every point on it."""
    clean, noise = torch.full((2, 3, 4), 0.7), normal(2, 3, 4)
    seen: dict[int, dict[float, torch.Tensor]] = {}
    for steps in (1, 2, 4, 8):
        points = seen.setdefault(steps, {})

        def predict(z, t, s, points=points):
            points[round(float(t[0]), 6)] = z
            return clean

        assert torch.allclose(sample(predict, noise, steps, STRIDES), clean, atol=1e-6)
    for steps, points in seen.items():
        assert sorted(points) == [i / steps for i in range(steps)]
        for t, z in points.items():
            assert torch.allclose(z, mix(clean, noise, torch.full((2,), t)), atol=1e-5)


@pytest.mark.parametrize(("steps", "stride"), [(1, 0), (2, 1), (4, 2), (8, 3), (3, 3), (50, 3)])
def test_learned_step_sizes_are_asked_for_by_their_number(steps, stride):
    asked = set()

    def predict(z, t, s):
        asked.update(s.tolist())
        return z

    sample(predict, normal(2, 1, 1), steps, STRIDES)
    assert asked == {stride}


def test_the_last_step_lands_on_the_prediction():
    z, x = normal(5, 2, 3), normal(5, 2, 3, seed=1)
    t = torch.tensor([0.0, 0.5, 0.75, 0.9, 1.0])
    assert torch.allclose(advance(z, x, t, 1 - t)[:4], x[:4], atol=1e-6)
    assert torch.allclose(advance(z, x, t, torch.ones(5)), x)  # never beyond
    half = advance(z, x, torch.zeros(5), torch.full((5,), 0.5))
    assert torch.allclose(half, (z + x) / 2, atol=1e-6)


def test_mix_goes_from_noise_to_clean():
    clean, noise = normal(3, 2, 2), normal(3, 2, 2, seed=1)
    z = mix(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(z[0], noise[0])
    assert torch.allclose(z[1], 0.75 * noise[1] + 0.25 * clean[1])
    assert torch.equal(z[2], clean[2])


def test_shift_moves_levels_of_large_latents_towards_noise():
    t = torch.linspace(0, 1, 11)
    assert torch.equal(shift_level(t, 512), t)
    assert torch.equal(shift_level(t, 4096), t)
    large = shift_level(t, 4 * 4096)  # alpha = 2
    assert large[0] == 0
    assert large[-1] == 1
    assert large[5].item() == pytest.approx(1 / 3)
    assert (large.diff() > 0).all()
    assert (large <= t).all()


def test_the_loss_is_that_of_the_velocity():
    x, clean, noise = normal(4, 3, 2), normal(4, 3, 2, seed=1), normal(4, 3, 2, seed=2)
    t = torch.tensor([0.0, 0.2, 0.4, 1 - FLOOR])
    z = mix(clean, noise, t)
    room = (1 - t).view(-1, 1, 1)
    velocity = ((x - z) / room - (clean - noise)).square().mean(dim=(1, 2))
    assert torch.allclose(flow_loss(x, clean, t), velocity, rtol=1e-4)
    near = flow_loss(x, clean, torch.ones(4))
    assert torch.allclose(near, (x - clean).square().mean(dim=(1, 2)) / FLOOR**2)


def test_levels_of_large_steps_lie_on_their_grid():
    generator = torch.Generator().manual_seed(0)
    t, stride = draw_levels(4000, 512, STRIDES, 1.0, generator)
    cells = 2.0**stride
    assert set(stride.tolist()) == {0, 1, 2}
    assert torch.equal((t * cells).round(), t * cells)
    assert (t + 1 / cells <= 1).all()
    t, stride = draw_levels(4000, 512, STRIDES, 0.0, generator)
    assert (stride == STRIDES - 1).all()
    assert 0 <= t.min() < 0.01
    assert 0.99 < t.max() < 1
    _, stride = draw_levels(4000, 512, STRIDES, 0.25, generator)
    assert (stride < STRIDES - 1).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_a_large_step_aims_where_two_small_ones_lead():
    """One step of size d to the target ends exactly where two steps of d / 2 end."""

    def predict(z, t, s):
        return torch.tanh(2 * z) + t.view(-1, 1, 1) * z.mean() + 0.1 * s.view(-1, 1, 1)

    z, t = normal(3, 4, 5), torch.tensor([0.0, 0.5, 0.25])
    stride = torch.tensor([0, 1, 2])
    d = 0.5**stride
    target = shortcut_target(predict, z, t, stride)
    first = advance(z, predict(z, t, stride + 1), t, d / 2)
    second = advance(first, predict(first, t + d / 2, stride + 1), t + d / 2, d / 2)
    assert torch.allclose(advance(z, target, t, d), second, atol=1e-5)


@pytest.mark.parametrize("stride", [0, 1, 2])
def test_a_large_step_of_a_straight_flow_aims_at_the_data(stride):
    clean, noise = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    t = torch.full((2,), 1 - 0.5**stride)
    z = mix(clean, noise, t)
    target = shortcut_target(lambda *_: clean, z, t, torch.full((2,), stride))
    assert torch.allclose(target, clean, atol=1e-5)


def posterior_mean(means: torch.Tensor, shares: torch.Tensor, spread: float):
    """The best predictor of x from z_t for a mixture of normals in one dimension."""

    def predict(z, t, s):
        t = t.view(-1, 1, 1, 1)
        variance = (1 - t).square() + (t * spread).square()
        gap = z.unsqueeze(-1) - t * means
        weight = (shares.log() - gap.square() / (2 * variance)).softmax(dim=-1)
        return (weight * (means + t * spread**2 / variance * gap)).sum(-1)

    return predict


def test_two_points_are_found_with_their_odds():
    means, shares = torch.tensor([-1.0, 1.0]), torch.tensor([0.3, 0.7])
    out = sample(posterior_mean(means, shares, 0.0), normal(8000, 1, 1), 64, STRIDES).flatten()
    assert (out.abs() - 1).abs().quantile(0.99) < 0.02
    assert (out > 0).float().mean().item() == pytest.approx(0.7, abs=0.02)


def test_a_mixture_of_normals_is_found_in_many_steps():
    means, shares, spread = torch.tensor([-2.0, 0.5]), torch.tensor([0.4, 0.6]), 0.3
    out = sample(posterior_mean(means, shares, spread), normal(8000, 1, 1), 128, STRIDES).flatten()
    low, high = out[out < -0.9], out[out >= -0.9]
    assert len(low) / len(out) == pytest.approx(0.4, abs=0.02)
    for part, mean in ((low, -2.0), (high, 0.5)):
        assert part.mean().item() == pytest.approx(mean, abs=0.03)
        assert part.std().item() == pytest.approx(spread, abs=0.03)


def test_one_step_gives_the_mean_and_more_steps_the_distribution():
    """Why few steps must be learned: plain flow in one step blurs."""
    predict = posterior_mean(torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5]), 0.1)
    spreads = [
        sample(predict, normal(4000, 1, 1), steps, STRIDES).std().item() for steps in (1, 4, 32)
    ]
    assert spreads[0] < 0.05
    assert spreads[0] < spreads[1] < spreads[2]
    assert spreads[2] == pytest.approx(math.sqrt(1 + 0.1**2), abs=0.03)


def test_weightings_of_the_loss():
    x, z, noise = torch.randn(3, 5, 4, 6)
    t = torch.tensor([0.0, 0.3, 0.6, 0.9, 0.99])
    noised = mix(z, noise, t)
    share = (1 - t).view(-1, 1, 1)
    velocity = ((x - noised) / share - (z - noise)).square().mean(dim=(1, 2))
    assert torch.allclose(flow_loss(x, z, t, floor=0.0), velocity, rtol=1e-3)
    plain = (x - z).square().mean(dim=(1, 2))
    assert torch.equal(flow_loss(x, z, t, "clean"), plain)
    assert torch.allclose(
        flow_loss(x, z, t, "ramp"), plain * torch.tensor([0.1, 0.37, 0.64, 0.91, 0.991])
    )
