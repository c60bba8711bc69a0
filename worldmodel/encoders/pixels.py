"""Patches of pixels as latents: no encoder at all, and nothing lost.

The baseline of the study of representations in arXiv 2603.03276, section 3; with x-prediction it is
JiT (arXiv 2511.13720).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from worldmodel.encoders.frame_encoder import FrameEncoder, patchify, to_frames, to_pixels


@dataclass(frozen=True)
class PixelsConfig:
    """Frames of `height` x `width` pixels, cut into squares of `patch` pixels a side."""

    height: int = 64
    width: int = 64
    patch: int = 8


class Pixels(FrameEncoder):
    """A token is a patch, its channels are the patch's 3 * patch^2 values."""

    kind = "pixels"

    def __init__(self, config: PixelsConfig) -> None:
        grid = (config.height // config.patch, config.width // config.patch)
        super().__init__(grid, 3 * config.patch**2, config.height, config.width)
        self.config = config

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] to patches [B, N, C]."""
        return patchify(pixels, self.config.patch)

    def draw(self, raw: torch.Tensor) -> torch.Tensor:
        """Patches [B, N, C] to pixels [B, 3, H, W]; inverse of `see`."""
        size, patch = (self.height, self.width), self.config.patch
        return F.fold(raw.transpose(1, 2).float(), size, patch, stride=patch)

    @torch.no_grad()
    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to those whose pixels are of 256 values, as those of frames are."""
        shades = to_pixels(to_frames(self.draw(self.restore(latents))))
        return self.normalise(self.see(shades)).to(latents.dtype)
