"""The embedded representation autoencoder (RAE): a small ViT that sees, and one that draws.

At the size of the bundled checkpoint no pretrained representation exists, so its encoder is trained
here, as a representation, and then frozen (`worldmodel.train.encoder`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.encoders.frame_encoder import patchify
from worldmodel.encoders.representation import Decoder, Representation, ViTBlock


@dataclass(frozen=True)
class RAEConfig:
    """Shape of an RAE. Frames are `size` x `size` pixels, latents `(size/patch)^2` tokens."""

    size: int = 64
    patch: int = 8
    channels: int = 32
    width: int = 192
    heads: int = 6
    encoder_depth: int = 4
    decoder_depth: int = 4


class Encoder(nn.Module):
    """Pixels to raw latents. `mask` hides patches, for masked training only."""

    def __init__(self, config: RAEConfig) -> None:
        super().__init__()
        tokens = (config.size // config.patch) ** 2
        self.patch = config.patch
        self.embed = nn.Linear(3 * config.patch**2, config.width)
        self.position = nn.Parameter(torch.randn(tokens, config.width) * 0.02)
        self.hidden_patch = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(
            ViTBlock(config.width, config.heads) for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.channels)

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map pixels [B, 3, H, W] in [-1, 1] to raw latents [B, N, C].

        Args:
            pixels: the frames.
            mask: bool [B, N], True where a patch is hidden.
        """
        x = self.embed(patchify(pixels, self.patch))
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), self.hidden_patch.to(x.dtype), x)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        z = self.head(self.norm(x))
        return F.layer_norm(z, z.shape[-1:])  # no affine: every token has unit variance


class RAE(Representation):
    """Encoder, decoder and latent statistics; a `FrameEncoder`."""

    kind = "rae"

    def __init__(self, config: RAEConfig) -> None:
        cells = config.size // config.patch
        super().__init__((cells, cells), config.channels, config.size, config.size)
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(
            self.grid,
            config.channels,
            (config.size, config.size),
            config.width,
            config.heads,
            config.decoder_depth,
        )

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] to raw latents [B, N, C]."""
        return self.encoder(pixels)
