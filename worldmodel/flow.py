"""Flow matching on latents: signal levels, the training target, few-step sampling.

Convention: t = 1 is clean, t = 0 is noise, z_t = (1 - t) * noise + t * z. The network's output is
brought to the clean latent x, whatever it predicts, and the loss is taken in velocity space,
v = (x - z_t) / (1 - t), with 1 - t floored (JiT, arXiv 2511.13720). The network is told its step
size d as well and learns that one step of d equals two steps of d / 2 (shortcut forcing, Dreamer
4, arXiv 2509.24527), so that a frame takes 1, 2 or 4 steps.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch

WEIGHTINGS = ("velocity", "clean", "ramp")
FLOOR = 0.5
"""Least 1 - t in the loss. With a lower floor most of the loss is cleaning up frames that are
nearly clean, where the past and the action hardly matter."""

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(z_t [F, N, C], t [F], stride [F]) -> predicted clean latents [F, N, C]."""


def shift_level(t: torch.Tensor, dimensions: int, shift: float = 1.0) -> torch.Tensor:
    """Shift levels towards noise for latents of many dimensions (RAE, arXiv 2510.11690).

    alpha = shift * sqrt(dimensions / 4096), the root at least 1; t / (alpha - (alpha - 1) t).
    """
    alpha = shift * max(1.0, math.sqrt(dimensions / 4096))
    return t / (alpha - (alpha - 1) * t)


def mix(clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return z_t of latents [F, N, C] at levels [F]."""
    t = t.view(-1, 1, 1).to(clean.dtype)
    return (1 - t) * noise + t * clean


def advance(z: torch.Tensor, x: torch.Tensor, t: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """One Euler step of size d [F] from z at level t [F], towards the predicted clean x."""
    share = (d / (1 - t).clamp(min=1e-6)).clamp(max=1).view(-1, 1, 1).to(z.dtype)
    return z + (x - z) * share


def flow_loss(
    x: torch.Tensor,
    target: torch.Tensor,
    t: torch.Tensor,
    weighting: str = "velocity",
    floor: float = FLOOR,
) -> torch.Tensor:
    """Loss [F] of predicted clean latents x against the target, both [F, N, C], at levels t [F].

    The mean squared error, times a weight: 'velocity' 1 / max(1 - t, floor)^2, which with floor 0
    is the error of the velocity (arXiv 2603.03276); 'clean' 1; 'ramp' 0.9 t + 0.1 (Dreamer 4).
    """
    error = (x.float() - target.float()).square().mean(dim=(1, 2))
    if weighting == "velocity":
        return error / (1 - t).clamp(min=max(floor, 1e-3)).square()
    return error if weighting == "clean" else error * (0.9 * t + 0.1)


def draw_levels(
    count: int,
    dimensions: int,
    strides: int,
    shortcut: float,
    generator: torch.Generator,
    shift: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw (t [count], stride [count]) for training targets.

    A share `shortcut` of the targets gets a step size 2^-i with i < strides - 1 and a level on
    its grid; the others get the last stride, plain flow, and a level in [0, 1), see `shift_level`.
    """
    t = shift_level(torch.rand(count, generator=generator), dimensions, shift)
    stride = torch.full((count,), strides - 1)
    short = torch.rand(count, generator=generator) < shortcut
    pick = torch.randint(strides - 1, (count,), generator=generator)
    cells = 2.0**pick
    grid = (torch.rand(count, generator=generator) * cells).floor() / cells
    return torch.where(short, grid, t), torch.where(short, pick, stride)


@torch.no_grad()
def shortcut_target(
    predict: Predict, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor
) -> torch.Tensor:
    """Return the clean latent that two half steps point to; the target of one whole step.

    For z [F, N, C] at level t [F] with step 2^-stride: the mean velocity v of two steps of half
    the size, as z + (1 - t) v.
    """
    half = 0.5 ** (stride + 1.0)
    first = advance(z, predict(z, t, stride + 1), t, half)
    second = advance(first, predict(first, t + half, stride + 1), t + half, half)
    velocity = (second.float() - z.float()) / (2 * half).view(-1, 1, 1)
    return z.float() + (1 - t).view(-1, 1, 1) * velocity


def sample(
    predict: Predict, noise: torch.Tensor, steps: int, strides: int, shift: float = 1.0
) -> torch.Tensor:
    """Denoise `noise` [F, N, C] in `steps` Euler steps; returns clean latents.

    Equal steps of a learned size (1, 2, 4, ...) use it; any others run as plain flow. A `shift`
    above 1 makes steps smaller near noise, as `shift_level` does with levels (RAE takes
    sqrt(N * C / 4096)); 1 makes them equal.
    """
    learned = math.log2(steps) if shift == 1 else -1.0
    index = int(learned) if learned in range(strides - 1) else strides - 1
    stride = torch.full((len(noise),), index, device=noise.device)
    levels = shift_level(torch.linspace(0, 1, steps + 1, device=noise.device), 0, shift)
    z = noise
    for level, following in pairwise(levels):
        t, d = level.expand(len(noise)), (following - level).expand(len(noise))
        z = advance(z, predict(z, t, stride), t, d)
    return z
