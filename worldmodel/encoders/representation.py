"""What encoders that are representations share: tokens of unit variance, and a decoder to train.

After "Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690): a vision
transformer that was trained to understand, not to reconstruct, is frozen; its last norm loses its
affine part, so every token has zero mean and unit variance; and a ViT learns to draw frames from
its tokens while they are noised (`worldmodel.train.encoder`).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.encoders.frame_encoder import FrameEncoder

_SMOOTH = 16  # channels a pixel of half the size, where the patches are joined


class ViTBlock(nn.Module):
    """Pre-norm bidirectional transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, D] to tokens [B, N, D]."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Raw latents to pixels: a ViT, then two convolutions that join the patches.

    It draws the same even number of pixels for every token, and shrinks the picture to the frame
    where that is more than the frame has.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        size: tuple[int, int],
        width: int,
        heads: int,
        depth: int,
    ) -> None:
        """Draw frames of `size` (rows, columns of pixels) from a grid of latents."""
        super().__init__()
        self.grid, self.size = grid, size
        most = max(size[0] / grid[0], size[1] / grid[1])
        self.patch = 2 * math.ceil(most / 2)
        self.embed = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _SMOOTH * (self.patch // 2) ** 2)
        self.join = nn.Conv2d(_SMOOTH, 4 * _SMOOTH, 3, padding=1)
        self.paint = nn.Conv2d(_SMOOTH, 3, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, N, C] to pixels [B, 3, H, W], about [-1, 1]."""
        x = self.embed(latents.to(self.position.dtype)) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm(x))
        x = x.transpose(1, 2).unflatten(2, self.grid)
        x = F.pixel_shuffle(x, self.patch // 2)  # [B, smooth, H/2, W/2]
        x = self.paint(F.pixel_shuffle(F.gelu(self.join(x)), 2))
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return x


class Representation(FrameEncoder):
    """A frame encoder whose raw tokens have unit variance.

    Attributes:
        decoder: raw latents to pixels: a `Decoder` that is trained here, or another one.
    """

    decoder: nn.Module

    def draw(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, N, C] to pixels [B, 3, H, W], about [-1, 1]."""
        return self.decoder(raw)

    @torch.no_grad()
    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to those with the mean and variance that the encoder's norm gives."""
        raw = F.layer_norm(self.restore(latents), latents.shape[-1:])
        return ((raw - self.mean) / self.std).to(latents.dtype)
