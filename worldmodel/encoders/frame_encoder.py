"""What all frame encoders are: a module with latent statistics, and frames in and out."""

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any

import torch
from torch import nn


class FrameEncoder(nn.Module, ABC):
    """The one visual space in which the model sees and imagines.

    A kind says how pixels become raw latents (`see`) and raw latents pixels (`draw`). Latents are
    raw latents in units of their statistics, channel by channel: the same content at another place
    of the frame is the same latent, which statistics by place (RAE, arXiv 2510.11690) would not
    give, and the core moves latents from place to place.

    Attributes:
        kind: its name in configurations and checkpoints.
        config: a frozen dataclass of plain values, from which it can be made again.
        grid: rows and columns of latent tokens; N = rows * columns.
        channels: C, the width of a latent token.
        height, width: size of the frames that it takes and gives, in pixels.
        mean, std: [C] statistics of the raw latents of the training frames.
    """

    kind: str
    config: Any
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, grid: tuple[int, int], channels: int, height: int, width: int) -> None:
        super().__init__()
        self.grid, self.channels = grid, channels
        self.height, self.width = height, width
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @abstractmethod
    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] to raw latents [B, N, C]."""

    @abstractmethod
    def draw(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, N, C] to pixels [B, 3, H, W], about [-1, 1]."""

    def normalise(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, N, C] to zero mean and unit variance."""
        return ((raw.float() - self.mean) / self.std).to(self.mean.dtype)

    def restore(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to raw ones, float32; inverse of `normalise`."""
        return latents.float() * self.std + self.mean

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames uint8 [B, H, W, 3] to latents [B, N, C]: zero mean, unit variance."""
        pixels = to_pixels(frames.to(self.mean.device)).to(self.mean.dtype)
        return self.normalise(self.see(pixels))

    @torch.no_grad()
    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to the nearest ones that `encode` could give, as far as is known."""
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to frames uint8 [B, H, W, 3]."""
        return to_frames(self.draw(self.restore(latents).to(self.mean.dtype)))

    def describe(self) -> dict[str, Any]:
        """Return what a file says of the encoder beside its tensors: plain JSON values."""
        return {"kind": self.kind, **asdict(self.config)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and statistics by the names that files have them under."""
        return self.state_dict()

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave; an error where names or shapes differ."""
        self.load_state_dict(tensors)


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Frames uint8 [B, H, W, 3] to float pixels [B, 3, H, W] in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_frames(pixels: torch.Tensor) -> torch.Tensor:
    """Float pixels [B, 3, H, W] to frames uint8 [B, H, W, 3]."""
    scaled = (pixels.float() + 1.0) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def patchify(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """Pixels [B, 3, H, W] to patches [B, N, 3 * patch * patch], row by row."""
    x = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B 3 h p w p
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
