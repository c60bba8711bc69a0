"""The embedded representation autoencoder (RAE): a small ViT that sees, and one that draws.

After "Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690): the encoder
is trained as a representation and then frozen, its last norm has no affine, the latents are
normalised per channel, and the decoder is trained on noised latents. At this size no
pretrained representation exists, so the encoder is trained here (`worldmodel.train.encoder`).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from worldmodel.errors import UserError


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


class Decoder(nn.Module):
    """Latents to pixels: a ViT, then two convolutions that join the patches."""

    def __init__(self, config: RAEConfig) -> None:
        super().__init__()
        self.grid = config.size // config.patch
        self.patch = config.patch
        smooth = 16
        self.embed = nn.Linear(config.channels, config.width)
        self.position = nn.Parameter(torch.randn(self.grid**2, config.width) * 0.02)
        self.blocks = nn.ModuleList(
            ViTBlock(config.width, config.heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, smooth * (config.patch // 2) ** 2)
        self.join = nn.Conv2d(smooth, 4 * smooth, 3, padding=1)
        self.paint = nn.Conv2d(smooth, 3, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to pixels [B, 3, H, W], about [-1, 1]."""
        x = self.embed(latents) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm(x))
        x = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x = F.pixel_shuffle(x, self.patch // 2)  # [B, smooth, H/2, W/2]
        x = F.pixel_shuffle(F.gelu(self.join(x)), 2)
        return self.paint(x)


class RAE(nn.Module):
    """Encoder, decoder and latent statistics; a `FrameEncoder`."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: RAEConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = (config.size // config.patch, config.size // config.patch)
        self.channels = config.channels
        self.height = self.width = config.size
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames uint8 [B, H, W, 3] to normalised latents [B, N, C]."""
        pixels = to_pixels(frames.to(self.mean.device)).to(self.encoder.embed.weight.dtype)
        return ((self.encoder(pixels).float() - self.mean) / self.std).to(pixels.dtype)

    @torch.no_grad()
    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to those with the mean and variance that the encoder's norm gives."""
        raw = F.layer_norm(latents.float() * self.std + self.mean, latents.shape[-1:])
        return ((raw - self.mean) / self.std).to(latents.dtype)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents [B, N, C] to frames uint8 [B, H, W, 3]."""
        raw = latents.float() * self.std + self.mean
        return to_frames(self.decoder(raw.to(self.decoder.embed.weight.dtype)))


def save_rae(rae: RAE, path: Path) -> None:
    """Write an RAE with its shape into one file that appears whole."""
    temporary = path.with_suffix(".tmp")
    state = {k: v.cpu().contiguous() for k, v in rae.state_dict().items()}
    save_file(state, temporary, metadata={"config": json.dumps(asdict(rae.config))})
    temporary.replace(path)


def load_rae(path: Path) -> RAE:
    """Return the RAE that `save_rae` wrote.

    Raises:
        UserError: no such file, or one without the shape in it.
    """
    try:
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
        rae = RAE(RAEConfig(**config))
        rae.load_state_dict(load_file(path))
    except Exception as error:  # whatever a file that is something else may lead to
        raise UserError(
            f"'{path}' is no encoder that `worldmodel train` wrote, or one of an older version "
            f"({str(error).splitlines()[0]}). Give checkpoint=NAME instead."
        ) from None
    return rae.eval()


def patchify(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """Pixels [B, 3, H, W] to patches [B, N, 3 * patch * patch], row by row."""
    x = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B 3 h p w p
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Frames uint8 [B, H, W, 3] to float pixels [B, 3, H, W] in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_frames(pixels: torch.Tensor) -> torch.Tensor:
    """Float pixels [B, 3, H, W] to frames uint8 [B, H, W, 3]."""
    scaled = (pixels.float() + 1.0) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
