"""Checkpoints: a folder of safetensors and JSON, hashed, never pickled.

config.json            format, shapes, world, provenance, metrics, sha256 of the other files
core.safetensors       the transformer
encoder.safetensors    the frame encoder and decoder; of a pretrained one all weights, so that a
                       checkpoint needs nothing else: 170 MB for a base model, 830 MB for So400m
tokenizer.json         the text tokenizer
starts.safetensors     start contexts: frames uint8 [S, n, H, W, 3], keys int32 [S, n - 1]
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from worldmodel.encoders import FrameEncoder
from worldmodel.encoders.files import remake
from worldmodel.errors import UserError, suggest
from worldmodel.text import TextTokenizer
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import WorldSpec

FORMAT = 1
BUNDLED = Path(__file__).parent / "checkpoints"
FILES = ("core.safetensors", "encoder.safetensors", "tokenizer.json", "starts.safetensors")


@dataclass
class Checkpoint:
    """A loaded model with all that a rollout needs.

    Attributes:
        name: of the folder.
        core, encoder, tokenizer: the model, on CPU in float32 until moved.
        spec: the world that it imagines.
        start_frames: uint8 [S, n, H, W, 3]; start_keys: int32 [S, n - 1] key masks.
        context_level: signal level at which frames of the past are shown.
        details: the rest of `config.json`: provenance, metrics, licence.
        folder: where it was read from; None for one that was not saved yet.
    """

    name: str
    core: Core
    encoder: FrameEncoder
    tokenizer: TextTokenizer
    spec: WorldSpec
    start_frames: np.ndarray
    start_keys: np.ndarray
    context_level: float
    details: dict[str, Any]
    folder: Path | None = None


def bundled_names() -> list[str]:
    """Return the names of the checkpoints that ship with the package."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "config.json").is_file())


def find(name: str) -> Path:
    """Return the folder of a bundled name or a path.

    Raises:
        UserError: neither exists.
    """
    if name in bundled_names():
        return BUNDLED / name
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise UserError(
            f"The folder '{name}' is no checkpoint: it has no config.json. Give a folder that "
            "`worldmodel train` wrote, or a bundled name."
        )
    raise UserError(f"There is no checkpoint '{name}'.{suggest(name, bundled_names())}")


def load(name: str) -> Checkpoint:
    """Load a checkpoint by bundled name or folder, verifying every file's hash.

    Raises:
        UserError: not found, another format, a file that is missing, truncated or changed, or an
            encoder whose library is not installed.
    """
    folder = find(name)
    config = _read_config(folder)
    for file in FILES:
        _verify(folder / file, config["files"][file])
    try:
        grid = tuple(config["core"]["latent_grid"])
        core = Core(CoreConfig(**{**config["core"], "latent_grid": grid}))
        encoder = remake(config["encoder"])
        spec = WorldSpec.from_json(config["world"])
    except UserError:
        raise
    except Exception as error:  # whatever wrong shapes may lead to
        raise UserError(
            f"'{folder / 'config.json'}' is damaged ({error!r}). Copy it "
            "again, reinstall the package, or train again."
        ) from None
    _fill(core.load_state_dict, folder / "core.safetensors")
    _fill(encoder.fill, folder / "encoder.safetensors")
    tokenizer = TextTokenizer.load(folder / "tokenizer.json")
    if tokenizer.vocab_size != core.config.vocab:
        raise UserError(
            f"The tokenizer of '{folder}' has {tokenizer.vocab_size} tokens, but the core was "
            f"trained with {core.config.vocab}. Put the tokenizer back that belongs to it."
        )
    starts = load_file(folder / "starts.safetensors")
    return Checkpoint(
        name=folder.name,
        core=core.eval(),
        encoder=encoder.eval(),
        tokenizer=tokenizer,
        spec=spec,
        start_frames=starts["frames"].numpy(),
        start_keys=starts["keys"].numpy(),
        context_level=config["context_level"],
        details=config["details"],
        folder=folder,
    )


def save(checkpoint: Checkpoint, folder: Path, half: bool = True) -> None:
    """Write a checkpoint; `config.json` with the hashes comes last, atomically.

    Args:
        checkpoint: what to write.
        folder: where to; made if missing.
        half: store weights as float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = (checkpoint.core.state_dict(), FILES[0]), (checkpoint.encoder.tensors(), FILES[1])
    for tensors, file in parts:
        state = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        if half:
            state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        save_file(state, folder / file)
    checkpoint.tokenizer.save(folder / FILES[2])
    starts = {
        "frames": torch.from_numpy(np.ascontiguousarray(checkpoint.start_frames)),
        "keys": torch.from_numpy(np.ascontiguousarray(checkpoint.start_keys.astype(np.int32))),
    }
    save_file(starts, folder / FILES[3])
    config = {
        "format": FORMAT,
        "core": asdict(checkpoint.core.config),
        "encoder": checkpoint.encoder.describe(),
        "world": checkpoint.spec.to_json(),
        "context_level": checkpoint.context_level,
        "details": checkpoint.details,
        "files": {file: _digest(folder / file) for file in FILES},
    }
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder / "config.json")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        version = config["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{path}' is damaged ({error}). Reinstall the package or train again."
        ) from None
    if version != FORMAT:
        raise UserError(
            f"The checkpoint '{folder}' has format {version}; this version reads format "
            f"{FORMAT}. Install the version of worldmodel that wrote it, or train again."
        )
    missing = {"core", "encoder", "world", "context_level", "details", "files"} - set(config)
    if missing:
        raise UserError(f"'{path}' is damaged: it lacks {', '.join(sorted(missing))}.")
    files = config["files"]
    unhashed = [f for f in FILES if not isinstance(files, dict) or f not in files]
    if unhashed:
        raise UserError(f"'{path}' is damaged: it lacks the sha256 of {', '.join(unhashed)}.")
    return config


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, digest: str) -> None:
    if not path.is_file():
        raise UserError(
            f"The checkpoint file '{path}' is missing. Copy the folder whole, reinstall the "
            "package, or train again."
        )
    if _digest(path) != digest:
        raise UserError(
            f"The checkpoint file '{path}' is damaged or was changed: its sha256 does not match "
            "config.json. Copy it again, reinstall the package, or train again."
        )


def _fill(take: Callable[[dict[str, torch.Tensor]], Any], path: Path) -> None:
    """Give a module its stored tensors, in float32, by the function that takes them."""
    try:
        state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        take(state)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"'{path}' does not fit config.json: {str(error).splitlines()[0]}."
        ) from None
