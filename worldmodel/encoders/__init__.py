"""Frame encoders behind one interface: frames to latents and back."""

from typing import Protocol

import torch


class FrameEncoder(Protocol):
    """The one visual space in which the model sees and imagines.

    Attributes:
        grid: rows and columns of latent tokens; N = rows * columns.
        channels: C, the width of a latent token.
        height, width: size of the frames it takes, in pixels.
    """

    grid: tuple[int, int]
    channels: int
    height: int
    width: int

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames uint8 [B, H, W, 3] to latents [B, N, C]: zero mean, unit variance."""
        ...

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to the nearest ones that `encode` could give, as far as is known."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to frames uint8 [B, H, W, 3]."""
        ...
