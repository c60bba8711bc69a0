"""Which frame encoder a run uses: asked for in the settings, made once, found again in its file."""

from dataclasses import dataclass
from pathlib import Path

import torch

from worldmodel.encoders import FrameEncoder
from worldmodel.encoders.files import KINDS, describe_file
from worldmodel.encoders.hub import source_name
from worldmodel.encoders.pixels import Pixels, PixelsConfig
from worldmodel.encoders.pretrained import FAMILIES, load_pretrained
from worldmodel.encoders.rae import RAEConfig
from worldmodel.encoders.vae import SOURCE, load_vae
from worldmodel.errors import UserError, suggest

_PATCH = 8  # pixels a side of a patch of pixels, unless asked otherwise


@dataclass(frozen=True)
class RepresentationConfig:
    """Which frame encoder; see conf/train.yaml."""

    kind: str = "rae"
    source: str | None = None
    decoder: str | None = None
    grid: int = 0


def require_kind(asked: RepresentationConfig, shape: RAEConfig, size: tuple[int, int]) -> None:
    """Refuse what no encoder could do with frames of this size.

    Raises:
        UserError: an unknown kind, settings of another kind, or frames of another size than the
            embedded RAE is set to.
    """
    if asked.kind not in KINDS:
        raise UserError(
            f"There is no representation.kind={asked.kind}.{suggest(asked.kind, KINDS)}"
        )
    others = [kind for kind in KINDS if kind != "rae"]
    of = {"source": [*FAMILIES, "vae"], "decoder": list(FAMILIES), "grid": others}
    for name, kinds in of.items():
        if getattr(asked, name) and asked.kind not in kinds:
            raise UserError(
                f"representation.{name} is a setting of the kinds {', '.join(kinds)}, not of "
                f"{asked.kind}. Leave it out, or set representation.kind."
            )
    if asked.kind != "rae":
        return
    if size != (shape.size, shape.size):
        raise UserError(
            f"The frames of the store are {size[1]}x{size[0]} pixels, but rae.size is "
            f"{shape.size}. Set rae.size to the size of the frames, which must be square."
        )
    if shape.size % shape.patch:
        raise UserError(f"rae.patch={shape.patch} does not divide rae.size={shape.size}.")


def require_merge(grid: tuple[int, int], merge: int) -> None:
    """Refuse a grid of latents that the core cannot join.

    Raises:
        UserError: `merge` does not divide it.
    """
    if grid[0] % merge or grid[1] % merge:
        raise UserError(
            f"A frame is {grid[0]}x{grid[1]} latents, and model.merge={merge} does not divide "
            "that. Set model.merge=1, or representation.grid to another number of rows."
        )


def describe(encoder: FrameEncoder, merge: int, width: int) -> str:
    """Return one line on an encoder and on whether a core of this width can learn its latents.

    A core that is narrower than its tokens has channels cannot reach zero loss, however deep it
    is (arXiv 2510.11690).
    """
    rows, columns = encoder.grid
    channels = encoder.channels * merge**2
    line = f"encoder: {encoder.kind}, {rows}x{columns} latents of {encoder.channels} channels"
    if width < channels:
        line += (
            f"; note: model.width={width} is less than the {channels} channels of a token of the "
            "core, which limits what it can draw. A lower model.merge or a wider model helps"
        )
    return line


def make_frozen(
    asked: RepresentationConfig, shape: RAEConfig, seed: int, size: tuple[int, int]
) -> FrameEncoder:
    """Return an encoder that is not trained here, with an untrained decoder if it needs one.

    Args:
        asked: any kind but the embedded 'rae'.
        shape: of the embedded RAE; its decoder's is used.
        seed: of the decoder's first weights.
        size: height and width of the frames, in pixels.

    Raises:
        UserError: a missing library or model, or frames that do not fit.
    """
    if asked.kind == "vae":
        return load_vae(asked.source, size, asked.grid)
    if asked.kind == "pixels":
        height, width = size
        rows = asked.grid or height // _PATCH
        patch = max(1, height // max(1, rows))
        if height % patch or width % patch or height // patch != rows:
            raise UserError(
                f"Frames of {width}x{height} pixels cannot be cut into {rows} rows of square "
                "patches. Set representation.grid to a number that divides their height."
            )
        return Pixels(PixelsConfig(height, width, patch))
    decoder = (shape.width, shape.heads, shape.decoder_depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_pretrained(asked.kind, asked.source, size, asked.grid, decoder, asked.decoder)


def require_same(
    path: Path, asked: RepresentationConfig, shape: RAEConfig, size: tuple[int, int]
) -> None:
    """Refuse the file of an earlier stage that has another frozen encoder than is asked for.

    Raises:
        UserError: it says in what they differ.
    """
    found = describe_file(path)
    wanted = {"kind": asked.kind, "height": size[0], "width": size[1]}
    if asked.kind in FAMILIES:
        wanted["source"] = source_name(asked.source or FAMILIES[asked.kind].source)
        wanted["decoder_source"] = source_name(asked.decoder) if asked.decoder else ""
        if not asked.decoder:
            wanted["decoder_width"] = shape.width
            wanted["decoder_heads"] = shape.heads
            wanted["decoder_depth"] = shape.decoder_depth
    elif asked.kind == "vae":
        wanted["source"] = source_name(asked.source or SOURCE)
    if asked.grid:
        patches = found.get("height", 0) // found.get("patch", 1)
        found["grid"], wanted["grid"] = found.get("rows", patches), asked.grid
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"'{path}' does not fit this configuration: its {key} is {found.get(key)}, not "
                f"{value}. Give the settings that it was made with, or another out=."
            )
