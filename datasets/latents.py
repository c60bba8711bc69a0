"""Encoder latents kept in a store, by the encoder's hash: computed once, read by every training.

    x.zarr/latents/<hash>/zarr.json     group; attributes: the encoder's class and hash
    x.zarr/latents/<hash>/<id>/         float16 [T+1, N, C], one chunk, not compressed, so that
                                        readers may map its file into memory
    x.zarr/latents/<hash>/.tmp-*        in the making; never read (at URLs: `disk`)

The hash is over everything that decides what the encoder gives, so a cache of another encoder is
never taken for this one's. An episode's latents appear whole or not at all; whoever is stopped
goes on where it was. The array's attributes say how its file must be: {bytes, crc32}.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from worldmodel.datasets import disk
from worldmodel.datasets.care import Fault
from worldmodel.datasets.disk import Place
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.url import Unreachable, Url
from worldmodel.errors import UserError

if TYPE_CHECKING:  # who only looks at a store need not wait for torch
    from worldmodel.encoders import FrameEncoder

LATENTS = "latents"
_DRAWS = "decoder."  # weights that draw frames have no say in latents
_CHUNK = "c/0/0/0"
_PIXELS = 1 << 21  # that a GPU encodes together
_ERRORS = (OSError, ValueError, KeyError, TypeError)


def encoder_hash(encoder: "FrameEncoder") -> str:
    """Return 12 hex digits over what an encoder is, its weights and latent statistics.

    What it is includes what tensors do not show, as the size that frames are resized to.
    """
    import torch

    said = {k: v for k, v in encoder.describe().items() if not k.startswith(_DRAWS[:-1])}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        if not name.startswith(_DRAWS):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


class LatentCache:
    """The latents that one encoder gave for a store's episodes."""

    def __init__(self, store: Place, digest: str) -> None:
        """Look at the cache of the encoder with that hash; there may be none yet."""
        self.store, self.digest = store, digest
        self.folder = store / LATENTS / digest

    def has(self, name: str) -> bool:
        """Return whether an episode's latents are there."""
        return (self.folder / name / disk.RECORD).is_file()

    def read(self, name: str) -> np.ndarray:
        """Return an episode's latents, mapped from its file: float16 [T+1, N, C], read-only.

        At a URL they are fetched.

        Raises:
            UserError: they are missing or damaged.
        """
        folder = self.folder / name
        try:
            shape, facts = _described(folder)
            if facts["bytes"] != 2 * int(np.prod(shape)):
                raise ValueError(f"{facts['bytes']} bytes cannot have the shape {shape}")
            chunk = folder / _CHUNK
            if isinstance(chunk, Url):
                return np.frombuffer(chunk.read_bytes(facts["bytes"]), "<f2").reshape(shape)
            disk.check_size(chunk, _CHUNK, facts["bytes"])
            return np.memmap(chunk, "<f2", "r", shape=shape)
        except UserError:
            raise
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
            if disk.file_facts(latents.tobytes()) != facts:
                raise ValueError("the checksum does not match")
            if len(latents) != frames or not np.isfinite(latents).all():
                raise ValueError(f"{frames} frames of finite latents were expected")
        except UserError:
            raise
        except _ERRORS as error:
            raise UserError(self._damaged(name, error)) from error

    def write(self, name: str, latents: np.ndarray) -> None:
        """Keep an episode's latents, float16 [T+1, N, C].

        Raises:
            UserError: the store cannot be written.
        """
        data = np.ascontiguousarray(latents, "<f2")
        facts = disk.file_facts(data.tobytes())
        try:
            with disk.committing(self.folder / name) as folder:
                array = zarr.create_array(
                    folder,
                    shape=data.shape,
                    dtype=data.dtype,
                    chunks=data.shape,
                    compressors=None,
                    attributes={"encoder": self.digest, "file": facts},
                    config={"write_empty_chunks": True},
                    zarr_format=3,
                )
                array[...] = data
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error}.") from error

    def create(self, kind: str) -> None:
        """Make the cache's folders, where they are missing; `kind` is the encoder's class.

        Raises:
            UserError: the store cannot be written.
        """
        try:
            disk.create_group(self.folder.parent)
            disk.create_group(self.folder, {"encoder": kind, "hash": self.digest})
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made: {error}.") from error

    def _damaged(self, name: str, error: Exception) -> str:
        away = f"`worldmodel data repair store={self.store}` moves them aside"
        if isinstance(self.store, Url):
            away = f"delete {self.folder / name}"
        return (
            f"{self.store}: the latents {self.digest} of episode {name} are damaged "
            f"({str(error) or type(error).__name__}). The episode is intact; {away}, and "
            "`worldmodel data encode` computes them again."
        )


def frames_at_once(encoder: "FrameEncoder") -> int:
    """Return how many frames to encode together: on a GPU so many that small ones keep it busy."""
    if encoder.mean.device.type == "cpu":
        return 64
    return max(64, _PIXELS // (encoder.width * encoder.height))


def encode_store(store: EpisodeStore, encoder: "FrameEncoder", names: Iterable[str]) -> int:
    """Compute the latents of episodes where they are missing; return how many were computed.

    Args:
        store: where the episodes are, and the latents go.
        encoder: a module; on its device, in its number type.
        names: the episodes.

    Raises:
        UserError: frames of another size than the encoder's, a damaged episode, a full disk.
    """
    import torch

    size = (store.spec.height, store.spec.width)
    if size != (encoder.height, encoder.width):
        raise UserError(
            f"The encoder takes frames of {encoder.width}x{encoder.height} pixels, but "
            f"{store.path} holds frames of {size[1]}x{size[0]}."
        )
    cache = LatentCache(store.path, encoder_hash(encoder))
    cache.create(type(encoder).__name__)
    batch, done = frames_at_once(encoder), 0
    for name in names:
        if cache.has(name):
            continue
        frames = torch.from_numpy(store.frames(name))
        parts = [encoder.encode(part).half().cpu() for part in frames.split(batch)]
        cache.write(name, torch.cat(parts).numpy())
        done += 1
    return done


def caches(store: Place) -> list[LatentCache]:
    """Return the caches that a store has."""
    folder = store / LATENTS
    try:
        found = disk.names(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [LatentCache(store, name) for name in found if (folder / name / disk.RECORD).is_file()]


def cached_episodes(cache: LatentCache) -> list[str]:
    """Return the names of the episodes whose latents a cache holds."""
    return disk.names(cache.folder)


def latent_faults(store: EpisodeStore) -> Iterator[Fault]:
    """Yield what is wrong with a store's latents; those of vanished episodes are no fault."""
    for cache in caches(store.path):
        for name in cached_episodes(cache):
            if name in store.lengths:
                try:
                    cache.check(name, store.lengths[name] + 1)
                except Unreachable:
                    raise  # which says nothing about the data
                except UserError as error:
                    yield Fault(cache.folder / name, str(error))


def _described(folder: Place) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return shape and file facts of an array of latents."""
    array = json.loads((folder / "zarr.json").read_text())
    if array["data_type"] != "float16" or array["attributes"]["encoder"] != folder.parent.name:
        raise ValueError("they are of another encoder or number type")
    return tuple(array["shape"]), array["attributes"]["file"]
