"""What a frame token knows of the last frame: the latents around its place, to see and to move.

Shapes: F frames, N tokens a frame of C channels; n latents a frame of c channels; D width.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from worldmodel.transformer import CoreConfig


class Motion(nn.Module):
    """What a frame token knows of the last frame: the latents around its place.

    A token reads its neighbourhood of (m + 2 r)^2 latents, for m = merge and r = motion, by one
    linear layer. For each of the m^2 latents that it predicts, it can move one of the (2 r + 1)^2
    latents around that place there, or a mixture, or nothing (a softmax, so that rollouts
    stay bounded). After the predicted kernels of video prediction (Finn et al. 2016, arXiv
    1605.07157) and the stacked past frames of DIAMOND (arXiv 2405.12399).
    """

    def __init__(self, config: "CoreConfig") -> None:
        super().__init__()
        self.config = config
        r, m = config.motion, config.merge
        self.choices = (2 * r + 1) ** 2 + 1
        self.read = nn.Linear((m + 2 * r) ** 2 * config.latent_channels, config.width, bias=False)
        self.gate = nn.Linear(config.width, m * m * self.choices)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Move nothing anywhere at first: the latent at the same place counts most."""
        nn.init.zeros_(self.gate.weight)
        bias = self.gate.bias.view(-1, self.choices)
        bias.zero_()
        bias[:, (self.choices - 1) // 2] = 2.0

    def see(self, before: torch.Tensor) -> torch.Tensor:
        """Last frames' latents [F, N, C] to what their neighbourhoods add to tokens [F, N, D]."""
        m, r = self.config.merge, self.config.motion
        windows = self._padded(before).unfold(1, m + 2 * r, m).unfold(2, m + 2 * r, m)
        windows = windows.permute(0, 1, 2, 4, 5, 3)  # [F, rows, columns, m + 2 r, m + 2 r, c]
        return self.read(windows.flatten(3).flatten(1, 2))

    def move(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Hidden [F, N, D] and last frames' latents [F, N, C] to moved latents [F, N, C]."""
        config = self.config
        gates = self.gate(hidden).unflatten(-1, (-1, self.choices)).softmax(-1)
        gates = split_cells(config, gates.flatten(2)).unflatten(1, config.latent_grid)
        padded, moved = self._padded(before), 0
        rows, columns = config.latent_grid
        for choice in range(self.choices - 1):  # slices: many times faster here than F.unfold
            down, right = divmod(choice, 2 * config.motion + 1)
            part = padded[:, down : down + rows, right : right + columns]
            moved = moved + gates[..., choice : choice + 1] * part
        assert isinstance(moved, torch.Tensor)
        return join_cells(config, moved.flatten(1, 2))

    def _padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latents on their grid with a border, [F, rows + 2 r, columns + 2 r, c]: edges go on."""
        cells = split_cells(self.config, tokens).unflatten(1, self.config.latent_grid)
        cells = F.pad(cells.permute(0, 3, 1, 2), (self.config.motion,) * 4, mode="replicate")
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
