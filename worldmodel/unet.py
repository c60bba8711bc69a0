"""Latents to tokens and back by convolutions, around the transformer.

Where `merge` joins latents, a token would have to say in one linear layer what several latents
look like. Instead a few convolutions run at the latents' own resolution before the blocks and
behind them, and what the first found goes past the blocks to the second, as in a U-Net. After the
U-Net blocks of Transfusion (arXiv 2408.11039), whose gain over linear layers grows with fewer
tokens a frame.

Shapes: F frames, N tokens a frame of C channels, n latents a frame of c channels, m = merge; D
width of the transformer, K of the convolutions (`unet_width`).
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.motion import choices, join_cells, keep_at_first, move, split_cells

if TYPE_CHECKING:
    from worldmodel.transformer import CoreConfig


class UNet(nn.Module):
    """`config.unet` gated convolutions down to the tokens, and as many up from them.

    With `config.motion` >= 0 the last frame's latents are moved besides (`worldmodel.motion.move`):
    convolutions alone have to paint again what does not change, and a view left alone drifts.
    """

    def __init__(self, config: "CoreConfig") -> None:
        super().__init__()
        self.config = config
        width, joined = config.unet_width, config.merge**2
        self.cells = nn.Linear(2 * config.latent_channels, width)
        self.level = nn.Linear(config.width, width, bias=False)
        self.down = nn.ModuleList(GatedConvolution(width) for _ in range(config.unet))
        self.join = nn.Linear(joined * width, config.width, bias=False)
        self.hints = nn.ModuleList(
            nn.Linear(config.width, joined * 2 * width, bias=False) for _ in range(config.unet)
        )
        self.up = nn.ModuleList(GatedConvolution(width) for _ in range(config.unet))
        self.paint = nn.Linear(width, config.latent_channels)
        self.gate = nn.Linear(width, choices(config)) if config.motion >= 0 else None

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal with variance 1 / inputs, half the deviation where a layer adds; paint nothing."""
        for module in self.modules():
            if isinstance(module, GatedConvolution):
                module.init_weights()
        for linear in (self.cells, self.level, self.join, *self.hints):
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.cells.bias)
        nn.init.zeros_(self.paint.weight)
        nn.init.zeros_(self.paint.bias)
        if self.gate is not None:
            keep_at_first(self.config, self.gate)

    def sink(
        self, latents: torch.Tensor, before: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Down to the tokens.

        Args:
            latents: [F, N, C] noised latents.
            before: [F, N, C] those of the last frame as shown.
            condition: [F, D] what the core knows of the signal level.

        Returns:
            What to add to the tokens [F, N, D]; what `rise` needs [F, rows, columns, K + c].
        """
        config = self.config
        last = split_cells(config, before).unflatten(1, config.latent_grid)
        shown = split_cells(config, latents).unflatten(1, config.latent_grid)
        x = self.cells(torch.cat([shown, last], dim=-1))
        x = x + self.level(condition).view(len(x), 1, 1, -1)
        for layer in self.down:
            x = layer(x)
        found = self.join(join_cells(config, _normed(x).flatten(1, 2)))
        return found, torch.cat([x, last], dim=-1)

    def rise(self, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Up from hidden states [F, N, D] and what `sink` returned, to the output [F, N, C]."""
        config = self.config
        x, last = seen.split([config.unet_width, config.latent_channels], dim=-1)
        for layer, hint in zip(self.up, self.hints, strict=True):
            told = split_cells(config, hint(hidden)).unflatten(1, config.latent_grid)
            x = layer(x, told)
        x = _normed(x)
        out = self.paint(x)
        if self.gate is not None:
            out = out + move(self.gate(x), last)
        return join_cells(config, out.flatten(1, 2))


class GatedConvolution(nn.Module):
    """A residual 3 x 3 convolution with a gate: SwiGLU over neighbours, [F, rows, columns, K]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.narrow = nn.Linear(width, width)

    @torch.no_grad()
    def init_weights(self) -> None:
        """See `UNet.init_weights`."""
        nn.init.normal_(self.wide.weight, std=(9 * self.wide.in_channels) ** -0.5)
        nn.init.normal_(self.narrow.weight, std=0.5 * self.narrow.in_features**-0.5)
        for bias in (self.wide.bias, self.narrow.bias):
            assert bias is not None
            nn.init.zeros_(bias)

    def forward(self, x: torch.Tensor, told: torch.Tensor | None = None) -> torch.Tensor:
        """Channels last in and out; `told` [F, rows, columns, 2 K] is added before the gate."""
        wide = self.wide(_normed(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        gate, value = (wide if told is None else wide + told).chunk(2, dim=-1)
        return x + self.narrow(F.silu(gate) * value)


def _normed(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)
