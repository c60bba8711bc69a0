"""A variational autoencoder of diffusers (AutoencoderKL): latents made to reconstruct.

The other side of the comparison in arXiv 2603.03276, section 3. The latent is the mean of the
posterior; the scaling factor of the model's configuration is not used, as statistics are measured.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.encoders.frame_encoder import FrameEncoder
from worldmodel.encoders.hub import library, model_folder, quiet, source_name
from worldmodel.errors import UserError

SOURCE = "stabilityai/sd-vae-ft-mse"


@dataclass(frozen=True)
class VAEConfig:
    """A VAE and the frames that it is for.

    Attributes:
        source: hub name of the VAE, or name of the folder that it came from.
        height, width: of the frames.
        rows, columns: of the tokens. Frames are resized to so many times the VAE's factor.
        model: arguments of AutoencoderKL.
    """

    source: str
    height: int
    width: int
    rows: int
    columns: int
    model: dict[str, Any]


class VAE(FrameEncoder):
    """Encoder and decoder of an AutoencoderKL; a token is one place of its latent."""

    kind = "vae"

    def __init__(self, config: VAEConfig, model: Any = None) -> None:
        """Take the parts of a loaded AutoencoderKL; without one, of an untrained one."""
        grid, channels = (config.rows, config.columns), config.model["latent_channels"]
        super().__init__(grid, channels, config.height, config.width)
        self.config = config
        self.factor = _factor(config.model)
        if model is None:
            model = library("diffusers", self.kind).AutoencoderKL(**config.model)
        parts = (model.encoder, model.quant_conv), (model.post_quant_conv, model.decoder)
        self.encoder, self.decoder = (
            nn.Sequential(*(part for part in side if part is not None)) for side in parts
        )
        self.requires_grad_(False).eval()

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] to raw latents [B, N, C], the means of the posterior."""
        rows, columns = self.grid
        size = (rows * self.factor, columns * self.factor)
        if size != (self.height, self.width):
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        moments = self.encoder(pixels.to(self.mean.dtype))
        return moments.chunk(2, dim=1)[0].flatten(2).transpose(1, 2)

    def draw(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, N, C] to pixels [B, 3, H, W], about [-1, 1]."""
        pixels = self.decoder(raw.transpose(1, 2).unflatten(2, self.grid))
        if pixels.shape[2:] != (self.height, self.width):
            size = (self.height, self.width)
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        return pixels


def load_vae(source: str | None, size: tuple[int, int], grid: int = 0) -> VAE:
    """Return a VAE from the hub or a folder.

    Args:
        source: a folder or a hub name; None for a usual one.
        size: height and width of the frames, in pixels.
        grid: rows of tokens; 0 for what frames of this size give.

    Raises:
        UserError: the library or the model is missing, it is no AutoencoderKL, or it does not
            divide the frames.
    """
    source, (height, width) = source or SOURCE, size
    folder, found = model_folder(source, VAE.kind, "diffusers")
    if found.get("_class_name") != "AutoencoderKL":
        raise UserError(
            f"'{source}' is a model of the class '{found.get('_class_name')}', but "
            "representation.kind=vae takes an AutoencoderKL."
        )
    diffusers = library("diffusers", VAE.kind)
    try:
        with quiet(diffusers):
            model, report = diffusers.AutoencoderKL.from_pretrained(
                folder,
                torch_dtype=torch.float32,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} tensors are missing, among them {missing[0]}")
    except Exception as error:  # whatever weights that do not fit lead to
        raise UserError(
            f"The weights of '{source}' cannot be loaded by its config.json "
            f"({str(error).splitlines()[0].rstrip('.')}). Download the model again."
        ) from None
    shape = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    factor = _factor(shape)
    if not grid and (height % factor or width % factor):
        raise UserError(
            f"The VAE '{source}' needs frames of multiples of {factor} pixels, not "
            f"{width}x{height}. Set representation.grid, the rows of tokens: frames are then "
            f"resized to {factor} times as many pixels."
        )
    rows = grid or height // factor
    columns = max(1, round(rows * width / height))
    return VAE(VAEConfig(source_name(source), height, width, rows, columns, shape), model)


def _factor(model: dict[str, Any]) -> int:
    """How many times smaller than the frame the latent is."""
    return 2 ** (len(model["block_out_channels"]) - 1)
