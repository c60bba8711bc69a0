"""Stores of episodes: `EpisodeWriter` commits them atomically, `EpisodeStore` reads them.

Any number of processes may write and read one store at once, without locks: an episode is built
in a temporary folder and renamed into place. The layout on disk is that of `schema`.
"""

import contextlib
import json
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from worldmodel.datasets import schema
from worldmodel.datasets.reader import FrameReader, ZarrFrames, check_size, open_frames
from worldmodel.datasets.schema import EPISODES, SHARD_FRAMES, TEMPORARY, EpisodeId
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, WorldSpec

_OPEN_EPISODES = 1024  # episodes a store keeps open; each takes some 10 kB
_ABANDONED_S = 3600.0  # age at which another machine's unfinished episode counts as abandoned
_READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, IndexError)


class EpisodeWriter:
    """Adds episodes to a store, and makes the store if there is none."""

    def __init__(
        self,
        path: str | Path,
        spec: WorldSpec,
        licence: str = "unspecified",
        command: str | None = None,
    ) -> None:
        """Open the store at `path` for episodes of the world `spec`.

        Args:
            path: folder of the store; made if missing.
            spec: the world that the episodes are from.
            licence: under which the data may be used; kept when the store is made.
            command: what makes the store; by default this process's command line.

        Raises:
            UserError: the path is something else, cannot be written, or holds another world's
                episodes (other frame size, action table, objects or fps).
        """
        self.path = Path(path)
        self.spec = spec
        # Absolute: a world may change the process's folder while a thread commits (engines do).
        self._episodes = self.path.absolute() / EPISODES
        if not _is_store(self.path):
            _create(self.path, spec, licence, _command_line() if command is None else command)
        _refuse_other_world(self.path, EpisodeStore(self.path).spec, spec)

    def write(self, episode: Episode) -> str:
        """Commit an episode and return its id; when this returns it is safely on disk.

        The same episode written twice is kept once.

        Raises:
            UserError: frames of another size than the store's, or a disk that is full.
            ValueError: an episode that the schema cannot hold.
        """
        size = (self.spec.height, self.spec.width)
        if episode.frames.shape[1:3] != size:
            raise UserError(
                f"{self.path} holds frames of {_size(size)}, so frames of "
                f"{_size(episode.frames.shape[1:3])} cannot be added; use another store."
            )
        packed, layout = schema.pack(schema.episode_arrays(episode))
        name = schema.episode_id(episode, packed)
        folder = self._episodes
        temporary = folder / f"{TEMPORARY}{name}.{_host()}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            _write_array(temporary / "frames", episode.frames)
            _write_array(temporary / "packed", np.frombuffer(packed, np.uint8))
            record = {
                "id": str(name),
                "steps": name.steps,
                "split": name.split,
                "info": json.loads(schema.to_text(episode.info)),
                "layout": layout,
                "files": {file: _file_facts(temporary / file) for file in _files(temporary)},
            }
            zarr.create_group(temporary, zarr_format=3, attributes=schema.seal(record))
            _sync_tree(temporary)
            _commit(temporary, folder / str(name))
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(f"{self.path} cannot be written: {error}.") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return str(name)


class EpisodeStore:
    """Reads the committed episodes of a store.

    Attributes:
        path: folder of the store.
        spec: the world that the episodes are from.
        provenance: package version, time, licence and command of the store's making.
        ids: ids of the episodes committed when the store was opened, sorted by seed.
        lengths: number of steps T of each id; an episode has T+1 frames.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the store at `path`.

        Raises:
            UserError: no such path, not a store, or a store of another schema version.
        """
        self.path = Path(path)
        attributes = _root_attributes(self.path)
        try:
            self.spec = WorldSpec.from_json(attributes["world"])
            self.provenance: dict[str, Any] = dict(attributes["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path / 'zarr.json'} is damaged ({error!r}): it should describe the world "
                "of the store. The episodes beside it are untouched; restore that one file."
            ) from error
        parsed = {name: EpisodeId.parse(name) for name in _names(self.path)}
        parts = {name: part for name, part in parsed.items() if part}
        self.ids = sorted(parts, key=lambda name: (parts[name].seed, name))
        self.lengths = {name: parts[name].steps for name in self.ids}
        self._parts = parts
        self._readers: dict[str, _Reader] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}  # what is open stays with its process

    def describe(self, name: str) -> EpisodeId:
        """Return seed, split and steps of an episode, without touching the disk."""
        if name not in self._parts:
            raise UserError(f"{self.path} has no episode '{name}'.")
        return self._parts[name]

    def select(self, split: str) -> list[str]:
        """Return the ids of one split, in order; empty where there are none."""
        return [name for name in self.ids if self._parts[name].split == split]

    def read(self, name: str) -> Episode:
        """Return a whole episode.

        Raises:
            UserError: no such episode, or one that is damaged; it names the array.
        """
        reader = self._reader(name)
        frames = reader.frames(0, self.lengths[name] + 1)
        with _explained(self.path, name, "packed"):
            return schema.episode_from(frames, reader.arrays(), dict(reader.record["info"]))

    def frames(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return frames start to stop (exclusive) of an episode: uint8 [stop-start, H, W, 3].

        Raises:
            UserError: no such episode, or damaged frames.
            IndexError: frames that the episode does not have.
        """
        stop = self.describe(name).steps + 1 if stop is None else stop
        if not 0 <= start <= stop <= self.lengths[name] + 1:
            raise IndexError(f"{name} has {self.lengths[name] + 1} frames, not {start}..{stop}")
        return self._reader(name).frames(start, stop)

    def frames_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Read the frames from `start` on into `out`, uint8 [n, H, W, 3], C-contiguous.

        Raises:
            UserError: no such episode, damaged frames, or frames of another size.
            IndexError: frames that the episode does not have.
        """
        stop = start + len(out)
        if not 0 <= start <= stop <= self.describe(name).steps + 1:
            raise IndexError(f"{name} has {self.lengths[name] + 1} frames, not {start}..{stop}")
        self._reader(name).frames(start, stop, out)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return everything of an episode but its frames: `actions`, `keys`, `facts/<name>`.

        Raises:
            UserError: no such episode, or a damaged one.
        """
        return self._reader(name).arrays()

    def annotations(self, name: str) -> tuple[Annotation, ...]:
        """Return the sentences about an episode.

        Raises:
            UserError: no such episode, or a damaged one.
        """
        return schema.annotations_from(self.arrays(name))

    def info(self, name: str) -> dict[str, Any]:
        """Return an episode's info.

        Raises:
            UserError: no such episode, or a damaged one.
        """
        return dict(self._reader(name).record["info"])

    def check(self, name: str) -> Episode:
        """Verify every byte of an episode, files and what they decode to, and return it.

        Raises:
            UserError: what is damaged.
        """
        reader = _Reader(self.path, name)
        for file in reader.record["files"]:
            reader.verify(file)
        episode = self.read(name)
        with _explained(self.path, name, "content"):
            if episode.frames.shape[1:3] != (self.spec.height, self.spec.width):
                raise ValueError(f"its frames are of {_size(episode.frames.shape[1:3])}")
            packed, _ = schema.pack(schema.episode_arrays(episode))
            if str(schema.episode_id(episode, packed)) != name:
                raise ValueError("it is not what its id says")
        return episode

    def size_on_disk(self, name: str) -> int:
        """Return the bytes that an episode takes on disk."""
        files = self._reader(name).record["files"].values()
        return sum(facts["bytes"] for facts in files)

    def _reader(self, name: str) -> "_Reader":
        self.describe(name)
        if name not in self._readers:
            while len(self._readers) >= _OPEN_EPISODES:
                self._readers.pop(next(iter(self._readers)), None)
            self._readers[name] = _Reader(self.path, name)
        return self._readers[name]


class _Reader:
    """One open episode: its record, and its frames once they are asked for."""

    def __init__(self, store: Path, name: str) -> None:
        self.store, self.name = store, name
        self.folder = store / EPISODES / name
        self._frames: FrameReader | ZarrFrames | None = None
        self._packed = b""
        with _explained(store, name, "record"):
            text = (self.folder / "zarr.json").read_text()
            self.record: dict[str, Any] = json.loads(text)["attributes"]
            if not schema.sealed(self.record) or self.record["id"] != name:
                raise ValueError("its checksum does not match")

    def frames(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        with _explained(self.store, self.name, "frames"):
            source = self._frames = self._frames or self._open_frames()
            shape = source.shape
            if out is None:
                out = np.empty((stop - start, *shape[1:]), np.uint8)
            elif out.shape[1:] != shape[1:] or out.dtype != np.uint8:
                raise ValueError(f"its frames are of {_size(shape[1:3])}")
            if stop > shape[0]:
                raise ValueError(f"it has {shape[0]} frames")
            source.read(start, stop, out)
            return out

    def _open_frames(self) -> FrameReader | ZarrFrames:
        self.verify("frames/zarr.json")
        files = self.record["files"]
        sizes = {n[7:]: files[n]["bytes"] for n in files if n.startswith("frames/")}
        return open_frames(self.folder / "frames", sizes)

    def arrays(self) -> dict[str, np.ndarray]:
        with _explained(self.store, self.name, "packed"):
            if not self._packed:
                self.verify("packed/zarr.json")
                self._expect("packed/c/0")
                self._packed = np.asarray(_open_array(self.folder / "packed")[:]).tobytes()
            return schema.unpack(self._packed, self.record["layout"])

    def verify(self, file: str) -> None:
        with _explained(self.store, self.name, file.split("/", maxsplit=1)[0]):
            self._expect(file)
            if _file_facts(self.folder / file) != self.record["files"][file]:
                raise ValueError(f"the checksum of {file} does not match")

    def _expect(self, file: str) -> None:
        check_size(self.folder / file, file, self.record["files"][file]["bytes"])


def leftovers(path: str | Path) -> list[Path]:
    """Return the temporary folders that killed writers left in a store."""
    folder = Path(path) / EPISODES
    return [folder / n for n in sorted(os.listdir(folder)) if _is_leftover(folder / n)]


def strays(path: str | Path) -> list[Path]:
    """Return what lies among the episodes of a store and is neither episode nor temporary."""
    path = Path(path)
    known = {"zarr.json"}
    names = [n for n in _names(path) if n not in known and not n.startswith(TEMPORARY)]
    return [path / EPISODES / name for name in sorted(names) if not EpisodeId.parse(name)]


def remove_leftovers(path: str | Path) -> int:
    """Delete what killed writers left; return how many. Working writers are not disturbed."""
    found = leftovers(path)
    for folder in found:
        shutil.rmtree(folder, ignore_errors=True)
    return len(found)


def _is_leftover(folder: Path) -> bool:
    if not folder.name.startswith(TEMPORARY):
        return False
    with contextlib.suppress(OSError, ValueError):
        _, host, pid, _ = folder.name.removeprefix(TEMPORARY).split(".")
        if host == _host():
            return not _alive(int(pid))
        return time.time() - folder.stat().st_mtime > _ABANDONED_S
    return folder.exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    return socket.gethostname().replace(".", "_") or "host"


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path / EPISODES)
    except OSError as error:
        raise UserError(f"{path} has lost its folder '{EPISODES}': {error}.") from error


def _is_store(path: Path) -> bool:
    return (path / "zarr.json").is_file()


def _root_attributes(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        raise UserError(f"There is no store at {path}; `worldmodel collect out={path}` makes one.")
    if not _is_store(path):
        raise UserError(f"{path} is not a store of episodes: it has no zarr.json.")
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        kind, number = attributes["schema"]["name"], attributes["schema"]["version"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a store of episodes, or its zarr.json is damaged ({error!r})."
        ) from error
    if kind != schema.SCHEMA_NAME:
        raise UserError(f"{path} is a Zarr hierarchy of another kind ('{kind}'), not episodes.")
    if number != schema.SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {number}, but this worldmodel "
            f"({version('worldmodel')}) reads version {schema.SCHEMA_VERSION}; "
            "use the worldmodel that made it, or collect it again."
        )
    return attributes


def _create(path: Path, spec: WorldSpec, licence: str, command: str) -> None:
    """Make an empty store; where another process is faster, its store is taken."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not a store of episodes; choose another path.")
    provenance = {
        "package": f"worldmodel {version('worldmodel')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "licence": licence,
        "command": command,
    }
    attributes = {
        "schema": {"name": schema.SCHEMA_NAME, "version": schema.SCHEMA_VERSION},
        "world": spec.to_json(),
        "provenance": provenance,
    }
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        zarr.create_group(temporary, zarr_format=3, attributes=attributes)
        zarr.create_group(temporary / EPISODES, zarr_format=3)
        _sync_tree(temporary)
        _commit(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"A store cannot be made at {path}: {error}.") from error


def _refuse_other_world(path: Path, stored: WorldSpec, spec: WorldSpec) -> None:
    if (stored.height, stored.width) != (spec.height, spec.width):
        raise UserError(
            f"{path} holds frames of {_size((stored.height, stored.width))}, so frames of "
            f"{_size((spec.height, spec.width))} cannot be added; use another store."
        )
    for name in ("name", "actions", "objects", "fps"):
        if getattr(stored, name) != getattr(spec, name):
            raise UserError(
                f"{path} holds episodes of the world '{stored.name}' with other {name} than "
                f"those of '{spec.name}' now; use another store."
            )


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _size(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]} pixels"


def _write_array(folder: Path, values: np.ndarray) -> None:
    length = max(1, len(values))
    if values.ndim == 1:
        chunks, shards = (length,), None
    else:
        chunk, rest = schema.CHUNK_FRAMES, values.shape[1:]
        chunks = (chunk, *rest)
        shards = (min(SHARD_FRAMES, -(-length // chunk) * chunk), *rest)
    array = zarr.create_array(
        folder,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        shards=shards,
        compressors=[ZstdCodec(level=schema.ZSTD_LEVEL), Crc32cCodec()],
        config={"write_empty_chunks": True},  # else black chunks and missing ones look alike
        zarr_format=3,
    )
    array[...] = values


def _open_array(folder: Path) -> zarr.Array:
    return zarr.open_array(folder, mode="r", zarr_format=3)


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _file_facts(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {"bytes": len(data), "crc32": schema.crc32(data)}


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _commit(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place; one that is already there has the same content."""
    try:
        os.rename(temporary, final)
    except OSError:
        if not (final / "zarr.json").is_file():
            raise
        shutil.rmtree(temporary)
    _sync(final.parent)


@contextlib.contextmanager
def _explained(store: Path, name: str, array: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading into one clear sentence."""
    try:
        yield
    except UserError:
        raise
    except _READ_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{store}: '{array}' of episode {name} is damaged ({reason}). The other episodes "
            f"are intact; `worldmodel data repair store={store}` moves this one aside."
        ) from error
