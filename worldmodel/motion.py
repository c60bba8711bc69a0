"""What a frame token knows of the last frame: the latents around its place, to see and to move.

Shapes: F frames, N tokens a frame of C channels; n latents a frame of c channels; D width.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from worldmodel.transformer import CoreConfig


class Motion(nn.Module):
    """What a frame token knows of the last frame: the latents around its place.

    A token reads its neighbourhood of (m + 2 r)^2 latents, for m = merge and r = motion, by one
    linear layer, and moves the latents by another, see `move`.
    """

    def __init__(self, config: "CoreConfig") -> None:
        super().__init__()
        self.config = config
        r, m = config.motion, config.merge
        self.read = nn.Linear((m + 2 * r) ** 2 * config.latent_channels, config.width, bias=False)
        self.gate = nn.Linear(config.width, m * m * choices(config))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Move nothing anywhere at first, see `keep_at_first`."""
        keep_at_first(self.config, self.gate)

    def see(self, before: torch.Tensor) -> torch.Tensor:
        """Last frames' latents [F, N, C] to what their neighbourhoods add to tokens [F, N, D]."""
        config, r = self.config, self.config.motion
        cells = split_cells(config, before).unflatten(1, config.latent_grid)
        windows = _padded(cells, r)
        for axis in (1, 2):
            windows = windows.unfold(axis, config.merge + 2 * r, config.merge)
        windows = windows.permute(0, 1, 2, 4, 5, 3)  # [F, rows, columns, m + 2 r, m + 2 r, c]
        return self.read(windows.flatten(3).flatten(1, 2))

    def move(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Hidden [F, N, D] and last frames' latents [F, N, C] to moved latents [F, N, C]."""
        config = self.config
        gates = split_cells(config, self.gate(hidden)).unflatten(1, config.latent_grid)
        cells = split_cells(config, before).unflatten(1, config.latent_grid)
        return join_cells(config, move(gates, cells).flatten(1, 2))


def choices(config: "CoreConfig") -> int:
    """How many latents `move` chooses from for a place, and nothing: (2 r + 1)^2 + 1."""
    return (2 * config.motion + 1) ** 2 + 1


@torch.no_grad()
def keep_at_first(config: "CoreConfig", gate: nn.Linear) -> None:
    """Let a layer that gives the `gates` of `move` begin so that the same place counts most."""
    nn.init.zeros_(gate.weight)
    bias = gate.bias.view(-1, choices(config))
    bias.zero_()
    bias[:, (choices(config) - 1) // 2] = 2.0


def move(gates: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """For each latent move one of the (2 r + 1)^2 around its place there, or a mixture, or nothing.

    A softmax, so that rollouts stay bounded, and what stands still can be copied to the bit. After
    the predicted kernels of video prediction (Finn et al. 2016, arXiv 1605.07157) and the stacked
    past frames of DIAMOND (arXiv 2405.12399).

    Args:
        gates: [F, rows, columns, (2 r + 1)^2 + 1] logits.
        before: [F, rows, columns, c] the last frames' latents.

    Returns:
        [F, rows, columns, c].
    """
    side = math.isqrt(gates.shape[-1] - 1)
    padded, (rows, columns) = _padded(before, side // 2), before.shape[1:3]
    gates, moved = gates.softmax(-1), torch.zeros_like(before)
    for choice in range(side**2):  # slices: many times faster here than F.unfold
        down, right = divmod(choice, side)
        part = padded[:, down : down + rows, right : right + columns]
        moved = moved + gates[..., choice : choice + 1] * part
    return moved


def _padded(cells: torch.Tensor, border: int) -> torch.Tensor:
    """Latents with a border, [F, rows + 2 r, columns + 2 r, c]: edges go on."""
    if border == 0:
        return cells
    cells = F.pad(cells.permute(0, 3, 1, 2), (border,) * 4, mode="replicate")
    return cells.permute(0, 2, 3, 1).contiguous()


def join_cells(config: "CoreConfig", latents: torch.Tensor) -> torch.Tensor:
    """Latents [F, n, c] to tokens [F, N, C] of merge x merge neighbours each."""
    (rows, columns), m = config.latent_grid, config.merge
    x = latents.view(-1, rows // m, m, columns // m, m, latents.shape[-1])
    return x.transpose(2, 3).flatten(3).flatten(1, 2)


def split_cells(config: "CoreConfig", tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [F, N, C] to latents [F, n, c]; inverse of `join_cells`."""
    (rows, columns), m = config.grid, config.merge
    x = tokens.view(-1, rows, columns, m, m, tokens.shape[-1] // m**2)
    return x.transpose(2, 3).flatten(1, 4)
