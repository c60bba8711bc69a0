"""Frame encoders in files: what they are as JSON, what they learned as safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from worldmodel.encoders.frame_encoder import FrameEncoder
from worldmodel.encoders.pixels import Pixels, PixelsConfig
from worldmodel.encoders.pretrained import FAMILIES, PretrainedConfig, PretrainedEncoder
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.encoders.vae import VAE, VAEConfig
from worldmodel.errors import UserError, suggest

KINDS = ("rae", *FAMILIES, "vae", "pixels")


def remake(description: Mapping[str, Any]) -> FrameEncoder:
    """Return the encoder that `FrameEncoder.describe` described, to be filled with its tensors.

    The oldest descriptions say no kind; they are of the embedded RAE.

    Raises:
        UserError: an unknown kind, or one whose library is not installed.
    """
    values = dict(description)
    kind = values.pop("kind", "rae")
    if kind == "rae":
        return RAE(RAEConfig(**values))
    if kind in FAMILIES:
        return PretrainedEncoder(PretrainedConfig(kind, **values))
    if kind == "vae":
        return VAE(VAEConfig(**values))
    if kind == "pixels":
        return Pixels(PixelsConfig(**values))
    raise UserError(f"There is no frame encoder of the kind '{kind}'.{suggest(str(kind), KINDS)}")


def save_encoder(encoder: FrameEncoder, path: Path) -> None:
    """Write an encoder with its description into one file that appears whole."""
    temporary = path.with_suffix(".tmp")
    state = {k: v.cpu().contiguous() for k, v in encoder.tensors().items()}
    save_file(state, temporary, metadata={"config": json.dumps(encoder.describe())})
    temporary.replace(path)


def describe_file(path: Path) -> dict[str, Any]:
    """Return what a file that `save_encoder` wrote says of its encoder.

    Raises:
        UserError: no such file, or one that is something else.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["config"]))
    except Exception as error:  # whatever a file that is something else may lead to
        raise UserError(_refusal(path, error)) from None


def load_encoder(path: Path) -> FrameEncoder:
    """Return the encoder that `save_encoder` wrote.

    Raises:
        UserError: no such file, one that is something else, or a library is not installed.
    """
    description = describe_file(path)
    try:
        encoder = remake(description)
        encoder.fill(load_file(path))
    except UserError:
        raise
    except Exception as error:  # whatever settings and tensors that do not fit may lead to
        raise UserError(_refusal(path, error)) from None
    return encoder.eval()


def _refusal(path: Path, error: Exception) -> str:
    return (
        f"'{path}' is no encoder that `worldmodel train` wrote, or one of an older version "
        f"({str(error).splitlines()[0]}). Give checkpoint=NAME instead, or train it again."
    )
