"""Arrays of a store, written whole: what zarr-python would write, without its cost per chunk.

`reader` is the other half. The layout is that of `schema`.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.blosc import NOSHUFFLE
from numcodecs.blosc import compress as blosc_compress
from numcodecs.zstd import compress as zstd_compress

from worldmodel.datasets.memory import keep_pages
from worldmodel.datasets.schema import CHUNK_FRAMES, LZ4_LEVEL, SHARD_FRAMES, ZSTD_LEVEL

_NOWHERE = (1 << 64) - 1
_BYTES = {"name": "bytes"}
_CRC32C = {"name": "crc32c"}
_ZSTD = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
_LZ4 = {
    "name": "blosc",
    "configuration": {
        "typesize": 1,
        "cname": "lz4hc",
        "clevel": LZ4_LEVEL,
        "shuffle": "noshuffle",
        "blocksize": 0,
    },
}


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Write frames, uint8 [F, H, W, 3], F at least 1, as a new array: chunks in shards.

    Raises:
        OSError: the folder exists, or cannot be written.
    """
    count, *size = frames.shape
    padded = -(-count // CHUNK_FRAMES) * CHUNK_FRAMES
    shard = min(SHARD_FRAMES, padded)
    inner = {
        "chunk_shape": [CHUNK_FRAMES, *size],
        "codecs": [_BYTES, _LZ4, _CRC32C],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, _CRC32C],
        "index_location": "end",
    }
    codec = {"name": "sharding_indexed", "configuration": inner}
    _write_metadata(folder, [count, *size], [shard, *size], [codec])
    flat = np.ascontiguousarray(frames).reshape(count, -1)
    keep_pages()
    for number, first in enumerate(range(0, count, shard)):
        starts = range(first, min(first + shard, count), CHUNK_FRAMES)
        coded = [_coded(flat[start : start + CHUNK_FRAMES]) for start in starts]
        path = folder.joinpath("c", str(number), *["0"] * len(size))
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join([*coded, _index(coded, shard // CHUNK_FRAMES)]))


def write_bytes(folder: Path, data: bytes) -> None:
    """Write bytes, at least one, as a new array uint8 [bytes] of one chunk.

    Raises:
        OSError: the folder exists, or cannot be written.
    """
    shape = [len(data)]
    _write_metadata(folder, shape, shape, [_BYTES, _ZSTD, _CRC32C])
    (folder / "c").mkdir()
    (folder / "c" / "0").write_bytes(_checked(zstd_compress(data, ZSTD_LEVEL)))


def write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Make a folder that is there a group.

    Raises:
        OSError: it cannot be written.
    """
    group = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    (folder / "zarr.json").write_text(json.dumps(group))


def _write_metadata(folder: Path, shape: list[int], chunk: list[int], codecs: list[Any]) -> None:
    metadata = {
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    folder.mkdir(parents=True)
    (folder / "zarr.json").write_text(json.dumps(metadata))


def _coded(frames: np.ndarray) -> bytes:
    """Return the bytes of a chunk; `frames` are [F, bytes]."""
    missing = CHUNK_FRAMES - len(frames)
    if missing:  # in the last one: Zarr's chunks are all of one size
        frames = np.pad(frames, ((0, missing), (0, 0)))
    return _checked(blosc_compress(frames.reshape(-1), b"lz4hc", LZ4_LEVEL, NOSHUFFLE))


def _index(coded: list[bytes], room: int) -> bytes:
    """Return the index of a shard with room for so many chunks, of which these are there."""
    index = np.full((room, 2), _NOWHERE, "<u8")
    lengths = np.array([len(chunk) for chunk in coded], np.uint64)
    index[: len(coded), 0] = np.cumsum(lengths) - lengths
    index[: len(coded), 1] = lengths
    return _checked(index.tobytes())


def _checked(data: bytes) -> bytes:
    """Return the data with its crc32c behind it."""
    return data + struct.pack("<I", google_crc32c.value(data))
