"""Encoder latents kept in a store, by the encoder's hash: computed once, read by every training.

    x.zarr/latents/<hash>/zarr.json     group; attributes: the encoder's class and hash
    x.zarr/latents/<hash>/<id>/         float16 [T+1, N, C], one chunk, not compressed, so that
                                        readers may map its file into memory
    x.zarr/latents/<hash>/.tmp-*        in the making; never read

The hash is over everything that decides what the encoder gives, so a cache of another encoder is
never taken for this one's. An episode's latents appear whole or not at all; whoever is stopped
goes on where it was. The array's attributes say how its file must be: {bytes, crc32}.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.errors import ContainsGroupError

from worldmodel.datasets.care import Fault
from worldmodel.datasets.schema import TEMPORARY, crc32
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError

if TYPE_CHECKING:  # who only looks at a store need not wait for torch
    import torch

    from worldmodel.encoders import FrameEncoder

LATENTS = "latents"
_DRAWS = "decoder."  # weights that draw frames have no say in latents
_CHUNK = "c/0/0/0"
_ERRORS = (OSError, ValueError, KeyError, TypeError)


def encoder_hash(encoder: "torch.nn.Module") -> str:
    """Return 12 hex digits over an encoder's class, weights and latent statistics."""
    import torch

    digest = hashlib.sha256(type(encoder).__name__.encode())
    for name, value in sorted(encoder.state_dict().items()):
        if not name.startswith(_DRAWS):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


class LatentCache:
    """The latents that one encoder gave for a store's episodes."""

    def __init__(self, store: Path, digest: str) -> None:
        """Look at the cache of the encoder with that hash; there may be none yet."""
        self.store, self.digest = store, digest
        self.folder = store / LATENTS / digest

    def has(self, name: str) -> bool:
        """Return whether an episode's latents are there."""
        return (self.folder / name / "zarr.json").is_file()

    def read(self, name: str) -> np.ndarray:
        """Return an episode's latents, mapped from its file: float16 [T+1, N, C], read-only.

        Raises:
            UserError: they are missing or damaged.
        """
        folder = self.folder / name
        try:
            shape, facts = _described(folder)
            size = (folder / _CHUNK).stat().st_size
            if size != facts["bytes"] or size != 2 * int(np.prod(shape)):
                raise ValueError(f"{_CHUNK} has {size} bytes instead of {facts['bytes']}")
            return np.memmap(folder / _CHUNK, "<f2", "r", shape=shape)
        except _ERRORS as error:
            raise UserError(self._damaged(name, error)) from error

    def check(self, name: str, frames: int) -> None:
        """Verify every byte of an episode's latents.

        Raises:
            UserError: they are damaged, or not those of so many frames.
        """
        latents = self.read(name)
        try:
            _, facts = _described(self.folder / name)
            if crc32(latents.tobytes()) != facts["crc32"]:
                raise ValueError("the checksum does not match")
            if len(latents) != frames or not np.isfinite(latents).all():
                raise ValueError(f"{frames} frames of finite latents were expected")
        except _ERRORS as error:
            raise UserError(self._damaged(name, error)) from error

    def write(self, name: str, latents: np.ndarray) -> None:
        """Keep an episode's latents, float16 [T+1, N, C].

        Raises:
            UserError: the store cannot be written.
        """
        temporary = self.folder / f"{TEMPORARY}{name}.{os.getpid()}.{time.monotonic_ns()}"
        data = np.ascontiguousarray(latents, "<f2")
        facts = {"bytes": data.nbytes, "crc32": crc32(data.tobytes())}
        try:
            array = zarr.create_array(
                temporary,
                shape=data.shape,
                dtype=data.dtype,
                chunks=data.shape,
                compressors=None,
                attributes={"encoder": self.digest, "file": facts},
                config={"write_empty_chunks": True},
                zarr_format=3,
            )
            array[...] = data
            with (temporary / _CHUNK).open("rb") as file:
                os.fsync(file.fileno())
            os.rename(temporary, self.folder / name)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not self.has(name):  # else another process was faster
                raise UserError(f"{self.folder} cannot be written: {error}.") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def create(self, kind: str) -> None:
        """Make the cache's folders, where they are missing; `kind` is the encoder's class.

        Raises:
            UserError: the store cannot be written.
        """
        about = {"encoder": kind, "hash": self.digest}
        for folder, attributes in ((self.folder.parent, {}), (self.folder, about)):
            if not (folder / "zarr.json").is_file():
                try:
                    zarr.create_group(folder, zarr_format=3, attributes=attributes, overwrite=False)
                except OSError as error:
                    raise UserError(f"{folder} cannot be made: {error}.") from error
                except ContainsGroupError:
                    pass  # another process was faster

    def _damaged(self, name: str, error: Exception) -> str:
        return (
            f"{self.store}: the latents {self.digest} of episode {name} are damaged "
            f"({str(error) or type(error).__name__}). The episode is intact; "
            f"`worldmodel data repair store={self.store}` moves them aside, and "
            "`worldmodel data encode` computes them again."
        )


def encode_store(
    store: EpisodeStore, encoder: "FrameEncoder", names: Iterable[str], batch: int = 64
) -> int:
    """Compute the latents of episodes where they are missing; return how many were computed.

    Args:
        store: where the episodes are, and the latents go.
        encoder: a module; on its device, in its number type.
        names: the episodes.
        batch: frames encoded at once.

    Raises:
        UserError: frames of another size than the encoder's, a damaged episode, a full disk.
    """
    import torch

    assert isinstance(encoder, torch.nn.Module)
    size = (store.spec.height, store.spec.width)
    if size != (encoder.height, encoder.width):
        raise UserError(
            f"The encoder takes frames of {encoder.width}x{encoder.height} pixels, but "
            f"{store.path} holds frames of {size[1]}x{size[0]}."
        )
    cache = LatentCache(store.path, encoder_hash(encoder))
    cache.create(type(encoder).__name__)
    done = 0
    for name in names:
        if cache.has(name):
            continue
        frames = torch.from_numpy(store.frames(name))
        parts = [encoder.encode(part).half().cpu() for part in frames.split(batch)]
        cache.write(name, torch.cat(parts).numpy())
        done += 1
    return done


def caches(store: Path) -> list[LatentCache]:
    """Return the caches that a store has."""
    folder = store / LATENTS
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if (path / "zarr.json").is_file())
    return [LatentCache(store, path.name) for path in found]


def cached_episodes(cache: LatentCache) -> list[str]:
    """Return the names of the episodes whose latents a cache holds."""
    return sorted(
        path.name
        for path in cache.folder.iterdir()
        if path.is_dir() and not path.name.startswith(TEMPORARY)
    )


def latent_faults(store: EpisodeStore) -> Iterator[Fault]:
    """Yield what is wrong with a store's latents; those of vanished episodes are no fault."""
    for cache in caches(store.path):
        for name in cached_episodes(cache):
            if name in store.lengths:
                try:
                    cache.check(name, store.lengths[name] + 1)
                except UserError as error:
                    yield Fault(cache.folder / name, str(error))


def _described(folder: Path) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return shape and file facts of an array of latents."""
    array = json.loads((folder / "zarr.json").read_text())
    if array["data_type"] != "float16" or array["attributes"]["encoder"] != folder.parent.name:
        raise ValueError("they are of another encoder or number type")
    return tuple(array["shape"]), array["attributes"]["file"]
