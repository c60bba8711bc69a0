"""Decoders that were trained for frozen representations: those of AutoencoderRAE in diffusers.

The authors of the RAE paper (arXiv 2510.11690) give ViT-XL decoders for DINOv2 and SigLIP 2. Only
the decoder is taken from such a model; the encoder beside it is the one of `pretrained.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from worldmodel.encoders.hub import library, model_folder
from worldmodel.errors import UserError

_PREFIX = "decoder."


class HubDecoder(nn.Module):
    """Raw latents to pixels by the decoder of an AutoencoderRAE, resized to the frame."""

    shade: torch.Tensor
    spread: torch.Tensor

    def __init__(self, model: dict[str, Any], size: tuple[int, int]) -> None:
        """Make an untrained one for frames of `size`; `model` is AutoencoderRAE's configuration."""
        super().__init__()
        library("diffusers", "rae")
        from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder

        self.size = size
        rows = model["encoder_input_size"] // model["encoder_patch_size"]
        self.vit = RAEDecoder(
            hidden_size=model["encoder_hidden_size"],
            decoder_hidden_size=model["decoder_hidden_size"],
            decoder_num_hidden_layers=model["decoder_num_hidden_layers"],
            decoder_num_attention_heads=model["decoder_num_attention_heads"],
            decoder_intermediate_size=model["decoder_intermediate_size"],
            num_patches=rows**2,
            patch_size=model["patch_size"],
            image_size=rows * model["patch_size"],
        )
        # It draws in the units of the encoder's input; without values, in those of ImageNet.
        mean = model.get("encoder_norm_mean") or (0.485, 0.456, 0.406)
        std = model.get("encoder_norm_std") or (0.229, 0.224, 0.225)
        for name, values in (("shade", mean), ("spread", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, N, C] to pixels [B, 3, H, W], about [-1, 1]."""
        pixels = self.vit.unpatchify(self.vit(raw).logits).float() * self.spread + self.shade
        if pixels.shape[2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        return pixels * 2 - 1


def load_decoder(
    source: str, kind: str, grid: tuple[int, int], channels: int, size: tuple[int, int]
) -> tuple[HubDecoder, dict[str, Any]]:
    """Return a trained decoder, and the configuration that remakes it.

    Args:
        source: a folder or a hub name.
        kind: the kind of encoder that it is for.
        grid: rows and columns of the encoder's tokens.
        channels: C, of the encoder's tokens.
        size: height and width of the frames, in pixels.

    Raises:
        UserError: the library or the model is missing, it is something else, or it is for another
            encoder.
    """
    folder, found = model_folder(source, kind, "diffusers")
    if found.get("_class_name") != "AutoencoderRAE":
        raise UserError(
            f"'{source}' is a model of the class '{found.get('_class_name')}', but "
            "representation.decoder takes an AutoencoderRAE."
        )
    model = {k: v for k, v in found.items() if not k.startswith(("_", "latents_"))}
    try:
        rows = model["encoder_input_size"] // model["encoder_patch_size"]
        theirs = (model["encoder_type"], rows, rows, model["encoder_hidden_size"])
        if theirs != (kind, *grid, channels):
            raise UserError(
                f"The decoder '{source}' is for {theirs[0]} with {rows}x{rows} tokens of "
                f"{theirs[3]} channels, but the encoder is {kind} with {grid[0]}x{grid[1]} of "
                f"{channels}. Set representation.source and representation.grid to its encoder."
            )
        decoder = HubDecoder(model, size)
        with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as file:
            names = [n for n in file.keys() if n.startswith(_PREFIX)]  # noqa: SIM118
            tensors = {n.removeprefix(_PREFIX): file.get_tensor(n).float() for n in names}
        tensors.pop("decoder_pos_embed", None)  # computed; old files have it
        decoder.vit.load_state_dict(tensors)
    except UserError:
        raise
    except Exception as error:  # whatever a config.json or weights that do not fit lead to
        raise UserError(
            f"The decoder of '{source}' does not fit its config.json "
            f"({str(error).splitlines()[0].rstrip('.')}). Download the model again."
        ) from None
    return decoder, model
