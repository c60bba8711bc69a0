"""The on-disk contract of a store, version 1: what lies where, and what it means.

A store is a Zarr v3 hierarchy in a folder:

    x.zarr/zarr.json                  group; attributes: schema, world, provenance
    x.zarr/episodes/zarr.json         group
    x.zarr/episodes/<id>/zarr.json    group; attributes: the episode's record (see below)
    x.zarr/episodes/<id>/frames/      uint8 [T+1, H, W, 3]; chunks of 8 frames, shards of up to
                                      1024, blosc with lz4hc level 5 and no shuffle (zstd level 3
                                      until 0.1), crc32c per chunk and per shard index
    x.zarr/episodes/<id>/packed/      uint8 [bytes], one chunk, zstd level 3 + crc32c: everything
                                      small in one file; the record's `layout` says what is where
    x.zarr/episodes/.tmp-*            episodes in the making; never read

Root attributes: `schema` {name, version}; `world`, the `WorldSpec` with its action table,
objects, fps and frame size; `provenance` {package, created (UTC), licence, command}.

The record of an episode: `id`, `steps` (T), `split`, `info` (see `Episode`), `layout`, `files`
and `checksum`. `layout` maps an array's name to {dtype, shape, offset} in `packed`:
`actions` [T, 3], `keys` [T], `facts/<name>` [T+1, ...] and `annotations`, UTF-8 JSON.
`files` maps each file of the episode but the record itself to its {bytes, crc32}: a file that is
not there is known to be missing, where Zarr alone would read zeros. `checksum` is the crc32 of
the rest of the record.

An episode whose actions nobody knows (raw video) says `labelled: false` in its info; its actions
are NaN and its keys 0. Whoever samples actions has to look at that first.

The id `ep-<seed>-<split>-<steps>-<digest>` says what a reader needs to know first, so that
opening a store is one listing of a folder. The digest is taken over the content: the same
episode always has the same id, different ones never share one, whoever writes them.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.world import Annotation, Episode

SCHEMA_NAME = "worldmodel.episodes"
SCHEMA_VERSION = 1
CHUNK_FRAMES = 8
SHARD_FRAMES = 1024
LZ4_LEVEL = 5  # of frames: read twice as fast as zstd, for a tenth more bytes
ZSTD_LEVEL = 3  # of everything else
EPISODES = "episodes"
TEMPORARY = ".tmp-"

_ID = re.compile(r"^ep-(\d{8,})-([a-z0-9_]+)-(\d{5,})-([0-9a-f]{12})$")
_SPLIT = re.compile(r"^[a-z0-9_]+$")


@dataclass(frozen=True)
class EpisodeId:
    """What an episode's id says.

    Attributes:
        seed: the seed it was made with, >= 0. split: for instance 'train'.
        steps: T, its number of steps. digest: 12 hex digits over the content.
    """

    seed: int
    split: str
    steps: int
    digest: str

    def __str__(self) -> str:
        return f"ep-{self.seed:08d}-{self.split}-{self.steps:05d}-{self.digest}"

    @staticmethod
    def parse(name: str) -> "EpisodeId | None":
        """Return the parts of an id, or None for a name that is none."""
        if not (match := _ID.match(name)):
            return None
        seed, split, steps, digest = match.groups()
        return EpisodeId(int(seed), split, int(steps), digest)


def episode_id(episode: Episode, packed: bytes) -> EpisodeId:
    """Return the id of an episode; `packed` is what `pack` made of it.

    Raises:
        ValueError: a seed below 0 or a split with other characters than a-z, 0-9 and _.
    """
    seed, split = int(episode.info.get("seed", 0)), str(episode.info.get("split", "train"))
    if seed < 0 or not _SPLIT.match(split):
        raise ValueError(f"seed must be >= 0 and split of a-z, 0-9, _; got {seed} and {split!r}")
    digest = hashlib.sha256(np.ascontiguousarray(episode.frames).data)
    digest.update(packed)
    digest.update(to_text(episode.info).encode())
    return EpisodeId(seed, split, episode.num_steps, digest.hexdigest()[:12])


def to_text(value: Any) -> str:
    """Return JSON text that is the same for equal values; numpy scalars become plain ones.

    Raises:
        ValueError: a value that JSON cannot hold.
    """
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, default=_plain)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a plain JSON value")


def crc32(data: bytes) -> str:
    """Return the CRC-32 of bytes as 8 hex digits."""
    return f"{zlib.crc32(data):08x}"


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, Any]]:
    """Return the arrays' bytes, one after the other, and their layout.

    Raises:
        ValueError: an array of a dtype other than numbers and booleans.
    """
    parts, layout, offset = [], {}, 0
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise ValueError(f"'{name}' has dtype {array.dtype}, expected numbers or booleans")
        data = array.tobytes()
        layout[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        parts.append(data)
        offset += len(data)
    return b"".join(parts), layout


def unpack(packed: bytes, layout: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays that `pack` packed (writable copies)."""
    return {name: _unpack_one(packed, entry) for name, entry in layout.items()}


def _unpack_one(packed: bytes, entry: Mapping[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    count = int(np.prod(shape, dtype=np.int64))
    flat = np.frombuffer(packed, dtype, count=count, offset=entry["offset"]) if count else ()
    return np.array(flat, dtype).reshape(shape)


def episode_arrays(episode: Episode) -> dict[str, np.ndarray]:
    """Return everything of an episode but frames and info, as arrays to `pack`."""
    said = to_text([vars(annotation) for annotation in episode.annotations]).encode()
    arrays = {
        "actions": np.ascontiguousarray(episode.actions, np.float32).reshape(-1, 3),
        "keys": np.ascontiguousarray(episode.keys, np.uint16),
        "annotations": np.frombuffer(said, np.uint8),
    }
    return arrays | {f"facts/{name}": np.asarray(v) for name, v in sorted(episode.facts.items())}


def episode_from(
    frames: np.ndarray, arrays: Mapping[str, np.ndarray], info: dict[str, Any]
) -> Episode:
    """Return the episode of its frames, its unpacked arrays and its info."""
    return Episode(
        frames=frames,
        actions=arrays["actions"],
        keys=arrays["keys"],
        facts={n.removeprefix("facts/"): a for n, a in arrays.items() if n.startswith("facts/")},
        annotations=annotations_from(arrays),
        info=info,
    )


def annotations_from(arrays: Mapping[str, np.ndarray]) -> tuple[Annotation, ...]:
    """Return the sentences among an episode's unpacked arrays."""
    said = json.loads(arrays["annotations"].tobytes().decode())
    return tuple(Annotation(**fields) for fields in said)


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with its checksum."""
    return {**record, "checksum": crc32(to_text(record).encode())}


def sealed(record: Mapping[str, Any]) -> bool:
    """Return whether a record is as `seal` left it."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return record.get("checksum") == crc32(to_text(rest).encode())
