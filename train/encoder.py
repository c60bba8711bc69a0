"""Training of frame encoders: the embedded RAE as a representation, then any RAE's decoder.

Encoder: the sigmoid image-text loss of SigLIP (arXiv 2303.15343) on captions, read off the
latents, together with masked autoencoding through them: latents of a frame with hidden patches
must still give the whole frame. Noise on the latents keeps neighbouring codes alike.
Decoder: the encoder is frozen, latents are noised with sigma = tau * U[0, 1] (arXiv
2510.11690), and the loss is L1 + (1 - SSIM) + L1 of image gradients at two scales.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.devices import mixed_precision
from worldmodel.encoders import FrameEncoder
from worldmodel.encoders.frame_encoder import to_pixels
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.encoders.representation import Representation, ViTBlock
from worldmodel.errors import UserError
from worldmodel.text import PAD, TextTokenizer
from worldmodel.train.data import Recordings, StoreFrames
from worldmodel.train.task import Task


@dataclass(frozen=True)
class EncoderTraining:
    """What the two stages share: batch size in frames, randomness, noise on the latents."""

    batch: int = 96
    seed: int = 0
    noise: float = 0.4
    text_weight: float = 0.05


class CaptionTower(nn.Module):
    """Captions and latents to unit vectors that meet; used in training only."""

    def __init__(self, vocab: int, channels: int, width: int = 128, words: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.position = nn.Parameter(torch.randn(words, width) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock(width, 4) for _ in range(2))
        self.see = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, 2 * width))
        self.join = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(2.3))  # log of 10, as in SigLIP
        self.bias = nn.Parameter(torch.tensor(-4.0))

    def forward(self, latents: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] and token ids [B, W] to pair logits [B, B]."""
        words = self.embed(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            words = block(words)
        real = (ids != PAD).unsqueeze(-1)
        text = (words * real).sum(1) / real.sum(1).clamp(min=1)
        value, weight = self.see(latents).chunk(2, dim=-1)
        image = self.join((value * weight.softmax(dim=1)).sum(1))
        pairs = F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        return pairs * self.scale.exp() + self.bias


class EncoderTask(Task):
    """Encoder, decoder and caption tower together; see the module's text."""

    def __init__(
        self,
        rae: RAE,
        recordings: Recordings,
        tokenizer: TextTokenizer,
        config: EncoderTraining,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.frames = recordings.frames
        self.captions = recordings.captions()
        if not self.captions:
            raise UserError(
                "The store has no captions, and the encoder learns from frames with captions. "
                "Collect from a world that gives facts, for example: worldmodel collect env=doom"
            )
        texts = sorted({text for _, text in self.captions})
        self.text_ids = {text: i for i, text in enumerate(texts)}
        self.tokens = _pad([tokenizer.encode(text)[:32] for text in texts])
        self.rae = rae
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.tower = CaptionTower(tokenizer.vocab_size, rae.channels)
        self.module = nn.ModuleDict({"rae": rae, "tower": self.tower})
        self.device = next(rae.parameters()).device
        self.tower.to(self.device)

    def _draw(self, batch: int) -> tuple[torch.Generator, np.ndarray, torch.Tensor]:
        """Return a batch's randomness, its frame numbers and the numbers of its captions."""
        rng = np.random.default_rng([self.config.seed, 1, batch])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        half = self.config.batch // 2
        picked = [self.captions[i] for i in rng.integers(len(self.captions), size=half)]
        index = np.concatenate([[f for f, _ in picked], rng.integers(len(self.frames), size=half)])
        return generator, index, torch.tensor([self.text_ids[text] for _, text in picked])

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        """Return a batch's frames and captions."""
        _, index, texts = self._draw(batch)
        return {"frames": torch.from_numpy(self.frames[index]), "captions": self.tokens[texts]}

    def losses(self, step: int, batch: int | None = None) -> dict[str, torch.Tensor]:
        """Masked reconstruction of random frames, image-text loss on captioned ones."""
        generator, index, texts = self._draw(step if batch is None else batch)
        half = len(texts)
        pixels = to_pixels(torch.from_numpy(self.frames[index]).to(self.device))
        tokens = len(self.rae.encoder.position)
        # Captioned frames are seen whole, the others with up to 75 % of their patches hidden.
        ratio = torch.rand(half, 1, generator=generator) * 0.75
        hidden = torch.rand(half, tokens, generator=generator) < ratio
        mask = torch.cat([torch.zeros_like(hidden), hidden]).to(self.device)
        with mixed_precision(self.device, self.dtype):
            z = self.rae.encoder(pixels, mask)
            noise = torch.randn(z.shape, generator=generator).to(z)
            sigma = torch.rand(len(z), 1, 1, generator=generator).to(z) * self.config.noise
            drawn = self.rae.decoder(z + sigma * noise)
            logits = self.tower(z[:half], self.tokens[texts].to(self.device))
        drawn = drawn.float()
        same = (texts[:, None] == texts[None, :]).to(self.device)
        text = F.softplus(torch.where(same, -logits, logits)).sum() / half
        pixel = (drawn - pixels).abs().mean() + (drawn - pixels).square().mean()
        losses = {"pixel": pixel, "gradient": gradient_loss(drawn, pixels), "text": text}
        total = pixel + 0.5 * losses["gradient"] + self.config.text_weight * text
        return {"loss": total, **losses}


class DecoderTask(Task):
    """The decoder alone, on noised latents of the frozen encoder.

    Args:
        encoder: a representation with its decoder.
        recordings: the frames to draw.
        config: the knobs.
        dtype: of the matrix products.
        latents: [F, N, C] of all frames, where they are kept anyway; else frames are encoded anew
            each time, which is quick for a small encoder only.
    """

    def __init__(
        self,
        encoder: Representation,
        recordings: Recordings,
        config: EncoderTraining,
        dtype: torch.dtype = torch.float32,
        latents: torch.Tensor | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.frames = recordings.frames
        self.latents = latents
        self.encoder = encoder
        self.module = encoder.decoder
        self.device = encoder.mean.device

    def _draw(self, batch: int) -> tuple[torch.Generator, np.ndarray]:
        """Return a batch's randomness and its frame numbers."""
        rng = np.random.default_rng([self.config.seed, 2, batch])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return generator, rng.integers(len(self.frames), size=self.config.batch)

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        """Return a batch's frames."""
        return {"frames": torch.from_numpy(self.frames[self._draw(batch)[1]])}

    def losses(self, step: int, batch: int | None = None) -> dict[str, torch.Tensor]:
        """Reconstruction of random frames from noised latents."""
        generator, index = self._draw(step if batch is None else batch)
        pixels = to_pixels(torch.from_numpy(self.frames[index]).to(self.device))
        with mixed_precision(self.device, self.dtype):
            with torch.no_grad():
                z = self._raw(index, pixels)
            sigma = torch.rand(len(z), 1, 1, generator=generator).to(z) * self.config.noise
            noise = torch.randn(z.shape, generator=generator).to(z)
            drawn = self.module(z + sigma * noise)
        drawn = drawn.float()
        losses = {
            "pixel": (drawn - pixels).abs().mean(),
            "gradient": gradient_loss(drawn, pixels),
            "structure": 1 - structure(drawn, pixels),
        }
        total = losses["pixel"] + losses["gradient"] + 0.3 * losses["structure"]
        return {"loss": total, **losses}

    def _raw(self, index: np.ndarray, pixels: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, N, C] of frames by number, which have these pixels."""
        if self.latents is None:
            return self.encoder.see(pixels)
        kept = self.latents[torch.from_numpy(index).to(self.latents.device)]
        return self.encoder.restore(kept.to(self.device))


def gradient_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """L1 between the horizontal and vertical differences of [B, 3, H, W], at two scales."""
    total = a.new_zeros(())
    for _ in range(2):
        d = a - b
        total = total + d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total / 2


def structure(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM of pixels [B, 3, H, W] in [-1, 1] with a 7x7 box window."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    ma, mb = F.avg_pool2d(a, 7, 1), F.avg_pool2d(b, 7, 1)
    va = F.avg_pool2d(a * a, 7, 1) - ma * ma
    vb = F.avg_pool2d(b * b, 7, 1) - mb * mb
    cov = F.avg_pool2d(a * b, 7, 1) - ma * mb
    light = (2 * ma * mb + c1) / (ma * ma + mb * mb + c1)
    return (light * (2 * cov + c2) / (va + vb + c2)).mean()


@torch.no_grad()
def measure_latents(
    encoder: FrameEncoder, frames: np.ndarray | StoreFrames, seed: int = 0, count: int = 4096
) -> None:
    """Set an encoder's per-channel mean and standard deviation from random frames."""
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(len(frames), size=min(count, len(frames)), replace=False))
    encoder.mean.zero_()
    encoder.std.fill_(1.0)
    # Sums instead of all latents at once: those of a large encoder are gigabytes.
    tokens = 0
    total = torch.zeros(2, encoder.channels, dtype=torch.float64)
    for part in np.array_split(index, max(1, len(index) // 64)):
        raw = encoder.encode(torch.from_numpy(frames[part])).cpu().double().flatten(0, 1)
        tokens += len(raw)
        total += torch.stack([raw.sum(0), raw.square().sum(0)])
    mean = total[0] / tokens
    variance = (total[1] - tokens * mean.square()) / (tokens - 1)
    encoder.mean.copy_(mean)
    encoder.std.copy_(variance.clamp(min=0).sqrt().clamp(min=1e-3))


def _pad(rows: list[list[int]]) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def build_rae(config: RAEConfig, seed: int) -> RAE:
    """Return an untrained RAE with reproducible weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RAE(config)
