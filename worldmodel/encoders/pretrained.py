"""Pretrained representations from the Hugging Face hub: SigLIP 2 and DINOv2.

The encoder is frozen; frames are resized and normalised as it expects, its patch tokens are the
latents (neither the CLS token nor registers), and its last norm has no affine part. The decoder is
trained here, or taken from the hub as well. Of SigLIP 2, the checkpoints of a fixed size are of
transformers' class SiglipModel, those with 'naflex' in the name of Siglip2Model; both are known.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from worldmodel.encoders.frame_encoder import patchify
from worldmodel.encoders.hub import library, model_folder, quiet, source_name
from worldmodel.encoders.hub_decoder import HubDecoder, load_decoder
from worldmodel.encoders.representation import Decoder, Representation
from worldmodel.errors import UserError

_UNSAID = ("_", "transformers_version")  # of a model's configuration: it decides nothing
GRID = 16  # rows of tokens unless asked otherwise: 256 a frame, as in arXiv 2603.03276


@dataclass(frozen=True)
class _Family:
    """A kind of encoder: what it is asked for by default, and what it expects.

    Attributes:
        source: the model of the RAE paper.
        models: model types of transformers and their classes.
        mean, std: of red, green and blue in [0, 1], that the model was trained with.
        resize: filter by which its images were resized.
    """

    source: str
    models: dict[str, str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str


FAMILIES = {
    "siglip2": _Family(
        "google/siglip2-base-patch16-256",
        {"siglip_vision_model": "SiglipVisionModel", "siglip2_vision_model": "Siglip2VisionModel"},
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        "bilinear",
    ),
    "dinov2": _Family(
        "facebook/dinov2-with-registers-base",
        {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        "bicubic",
    ),
}


@dataclass(frozen=True)
class PretrainedConfig:
    """A pretrained encoder and the decoder beside it.

    Attributes:
        kind: 'siglip2' or 'dinov2'.
        source: hub name of the encoder, or name of the folder that it came from.
        height, width: of the frames.
        rows, columns: of the tokens. Frames are resized to so many patches of the encoder.
        model: the encoder's configuration in transformers.
        decoder_width, decoder_heads, decoder_depth: shape of the decoder that is trained here.
        decoder_source: where the decoder is from instead, as `source`; '' for none.
        decoder_model: the configuration of that decoder's AutoencoderRAE in diffusers.
    """

    kind: str
    source: str
    height: int
    width: int
    rows: int
    columns: int
    model: dict[str, Any]
    decoder_width: int = 192
    decoder_heads: int = 6
    decoder_depth: int = 4
    decoder_source: str = ""
    decoder_model: dict[str, Any] | None = None


class PretrainedEncoder(Representation):
    """A frozen vision transformer of transformers, and a decoder; a `FrameEncoder`."""

    shade: torch.Tensor
    spread: torch.Tensor

    def __init__(
        self,
        config: PretrainedConfig,
        model: nn.Module | None = None,
        decoder: HubDecoder | None = None,
    ) -> None:
        """Make the encoder around loaded parts; without them its weights are still to `fill`."""
        grid = (config.rows, config.columns)
        super().__init__(grid, config.model["hidden_size"], config.height, config.width)
        self.config, self.kind = config, config.kind
        self.patch = int(config.model["patch_size"])
        family = FAMILIES[config.kind]
        self.resize = family.resize
        for name, values in (("shade", family.mean), ("spread", family.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        size = (config.height, config.width)
        if config.decoder_model is None:
            self.decoder = Decoder(
                grid,
                self.channels,
                size,
                config.decoder_width,
                config.decoder_heads,
                config.decoder_depth,
            )
        else:
            self.decoder = decoder or HubDecoder(config.decoder_model, size)
            self.decoder.requires_grad_(False)
        self.encoder = nn.Identity() if model is None else _frozen(model)

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] to raw latents [B, N, C], the encoder's patch tokens."""
        rows, columns = self.grid
        size = (rows * self.patch, columns * self.patch)
        if size != (self.height, self.width):
            pixels = F.interpolate(pixels.float(), size, mode=self.resize, antialias=True)
            pixels = pixels.clamp(-1, 1)  # bicubic weights overshoot
        pixels = ((pixels + 1) / 2 - self.shade) / self.spread
        pixels = pixels.to(self.mean.dtype)
        type_ = self.config.model["model_type"]
        if type_ == "siglip_vision_model":
            found = self.encoder(pixels, interpolate_pos_encoding=True)
        elif type_ == "siglip2_vision_model":
            # It takes patches with the colour last, and says itself where they are.
            patches = patchify(pixels, self.patch)
            patches = patches.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
            shapes = torch.tensor([self.grid], device=pixels.device).expand(len(pixels), -1)
            real = torch.ones(patches.shape[:2], dtype=torch.int64, device=pixels.device)
            found = self.encoder(patches, pixel_attention_mask=real, spatial_shapes=shapes)
        else:
            found = self.encoder(pixels)
        return found.last_hidden_state[:, -rows * columns :]  # others, if any, come first

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors; the encoder's by the names that the hub has them under.

        Those stay, while transformers has renamed its parameters from version to version.
        """
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        with tempfile.TemporaryDirectory() as folder, quiet(library("transformers", self.kind)):
            self.encoder.save_pretrained(folder, max_shard_size="1TB")  # pyright: ignore
            named = load_file(Path(folder) / "model.safetensors")
        return own | {f"encoder.{k}": v for k, v in named.items()}

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave; an error where names or shapes differ."""
        named = {
            k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")
        }
        self.encoder = _frozen(_load(self.config, None, named))
        own = {k: v for k, v in tensors.items() if not k.startswith("encoder.")}
        kept = {k: v for k, v in self.state_dict().items() if k.startswith("encoder.")}
        self.load_state_dict(own | kept)


def load_pretrained(
    kind: str,
    source: str | None,
    size: tuple[int, int],
    grid: int = 0,
    decoder: tuple[int, int, int] = (192, 6, 4),
    decoder_source: str | None = None,
) -> PretrainedEncoder:
    """Return an encoder from the hub or a folder, with an untrained decoder or one of the hub.

    Args:
        kind: 'siglip2' or 'dinov2'.
        source: a folder or a hub name; None for the model of the RAE paper.
        size: height and width of the frames, in pixels.
        grid: rows of tokens; 0 for 16.
        decoder: width, heads and depth of the untrained decoder.
        decoder_source: a folder or a hub name of a trained one; None for none.

    Raises:
        UserError: the library or the model is missing, or the model is of another type.
    """
    source = source or FAMILIES[kind].source
    folder, found = model_folder(source, kind, "transformers")
    transformers = library("transformers", kind)
    types = FAMILIES[kind].models
    model_type = str(found.get("model_type"))
    if model_type in ("siglip", "siglip2") and isinstance(found.get("vision_config"), dict):
        found, model_type = found["vision_config"], f"{model_type}_vision_model"
    if model_type not in types:
        raise UserError(
            f"'{source}' is a model of the type '{model_type}', but representation.kind={kind} "
            f"takes those of the types {', '.join(types)}."
        )
    try:
        # SigLIP's head makes one vector of the whole frame: not asked for.
        headless = {"vision_use_head": False} if kind == "siglip2" else {}
        settings = transformers.AutoConfig.for_model(
            **{**found, "model_type": model_type, **headless}
        )
        model = {k: v for k, v in settings.to_dict().items() if not k.startswith(_UNSAID)}
        model = json.loads(json.dumps(model))  # as it comes back from a file
        if not isinstance(model["patch_size"], int):
            raise ValueError("patches that are not square")
    except Exception as error:  # whatever a config.json with other values leads to
        raise UserError(
            f"The config.json of '{source}' does not describe a model of the type '{model_type}' "
            f"({str(error).splitlines()[0]})."
        ) from None
    rows = grid or GRID
    columns = max(1, round(rows * size[1] / size[0]))
    shape = PretrainedConfig(kind, source_name(source), *size, rows, columns, model, *decoder)
    try:
        loaded = _load(shape, folder)
    except Exception as error:  # whatever weights that do not fit lead to
        raise UserError(
            f"The weights of '{source}' do not fit its config.json "
            f"({str(error).splitlines()[0].rstrip('.')}). Download the model again."
        ) from None
    if decoder_source is None:
        return PretrainedEncoder(shape, loaded)
    channels = shape.model["hidden_size"]
    drawing, drawn = load_decoder(decoder_source, kind, (rows, columns), channels, size)
    named = {"decoder_source": source_name(decoder_source), "decoder_model": drawn}
    return PretrainedEncoder(replace(shape, **named), loaded, drawing)


def _load(
    config: PretrainedConfig, folder: Path | None, tensors: dict[str, torch.Tensor] | None = None
) -> nn.Module:
    """Return the model of transformers with weights from a folder, or from tensors."""
    transformers = library("transformers", config.kind)
    settings = transformers.AutoConfig.for_model(**config.model)
    model_class = getattr(transformers, FAMILIES[config.kind].models[settings.model_type])
    with quiet(transformers):
        model, report = model_class.from_pretrained(
            folder,
            config=settings,
            state_dict=tensors,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} tensors are missing, among them {missing[0]}")
    return model


def _frozen(model: nn.Module) -> nn.Module:
    """Take the affine part from a model's last norm, and gradients from all of it."""
    model.requires_grad_(False)
    norm = model.layernorm if hasattr(model, "layernorm") else model.post_layernorm
    assert isinstance(norm, nn.LayerNorm)
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    return model.eval()
