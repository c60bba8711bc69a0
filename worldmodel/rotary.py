"""Rotary positions: how queries and keys turn with where their tokens are."""

import torch


def rotary_table(head: int, positions: str = "sharp") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the axis and frequency of each of head / 2 pairs, for `CoreConfig.positions`.

    The axes are those of `Batch.position`: 0 order, 1 step, 2 row, 3 column, 4 flat place.
    '1d': all pairs turn by the flat place, with the usual geometric frequencies.
    '2d': a quarter of the pairs each for order, step, row and column, all geometric.
    'sharp': step, row and column have evenly spaced ones up to pi instead: their sum is a sharp
    peak, so that a head can look at exactly the neighbouring cell of exactly the last frame. With
    geometric ones it sees a blur of cells, and motion is not learned (docs/decisions/0005).
    """
    if positions == "1d":
        return torch.full((head // 2,), 4), _geometric(head // 2, 10_000.0)
    quarter = head // 8
    order = head // 2 - 3 * quarter
    axis = torch.tensor([0] * order + [1] * quarter + [2] * quarter + [3] * quarter)
    if positions == "2d":
        few = _geometric(quarter, 100.0)  # steps, rows and columns count to tens, not thousands
    else:
        few = torch.pi * torch.arange(1, quarter + 1) / quarter
    return axis, torch.cat([_geometric(order, 10_000.0), few, few, few])


def _geometric(count: int, base: float) -> torch.Tensor:
    return base ** -(torch.arange(count) / count)


def turns(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `rotate` needs of angles [..., head / 2]: two tensors [..., head]."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: torch.Tensor, turned: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn pairs of channels (i, i + head / 2) of [B, L, heads, head], see `turns`."""
    straight, across = turned
    return torch.addcmul(x * straight, x.roll(x.shape[-1] // 2, -1), across)
