"""Stores of episodes: `EpisodeWriter` commits them atomically, `EpisodeStore` reads them.

Any number of processes may write and read one store at once, without locks: an episode is there
whole or not at all (`disk` says how, on disks and at URLs). The layout is that of `schema`.
"""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from worldmodel.datasets import disk, schema
from worldmodel.datasets.arrays import write_bytes, write_frames, write_group
from worldmodel.datasets.disk import Place, place
from worldmodel.datasets.reader import FrameReader, ZarrFrames, open_frames
from worldmodel.datasets.schema import EPISODES, EpisodeId
from worldmodel.datasets.url import Unreachable, Url
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, WorldSpec

_OPEN_EPISODES = 1024  # episodes a store keeps open; each takes some 10 kB
_READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, IndexError)


class EpisodeWriter:
    """Adds episodes to a store, and makes the store if there is none."""

    def __init__(
        self,
        path: str | Place,
        spec: WorldSpec,
        licence: str = "unspecified",
        command: str | None = None,
    ) -> None:
        """Open the store at `path` for episodes of the world `spec`.

        Args:
            path: folder of the store, or its URL; made if missing.
            spec: the world that the episodes are from.
            licence: under which the data may be used; kept when the store is made.
            command: what makes the store; by default this process's command line.

        Raises:
            UserError: the path is something else, cannot be written, or holds another world's
                episodes (other frame size, action table, objects or fps).
        """
        self.path = disk.writable(path)
        self.spec = spec
        # Absolute: a world may change the process's folder while a thread commits (engines do).
        self._episodes = self.path.absolute() / EPISODES
        if not _is_store(self.path):
            _create(self.path, spec, licence, command_line() if command is None else command)
        _refuse_other_world(self.path, EpisodeStore(self.path).spec, spec)

    def write(self, episode: Episode) -> str:
        """Commit an episode and return its id; when this returns it is safely on disk, or at a URL.

        The same episode written twice is kept once.

        Raises:
            UserError: frames of another size than the store's, a disk that is full, or a server
                that fails; what was committed before is intact.
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
        try:
            with disk.committing(self._episodes / str(name)) as folder:
                write_frames(folder / "frames", episode.frames)
                write_bytes(folder / "packed", packed)
                record = {
                    "id": str(name),
                    "steps": name.steps,
                    "split": name.split,
                    "info": json.loads(schema.to_text(episode.info)),
                    "layout": layout,
                    "files": disk.facts_of_files(folder),
                }
                write_group(folder, schema.seal(record))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error}. {_lost(name)}") from error
        except Unreachable as error:
            raise UserError(f"{error} {_lost(name)}") from error
        return str(name)


class EpisodeStore:
    """Reads the committed episodes of a store.

    Attributes:
        path: folder of the store, or its URL.
        spec: the world that the episodes are from.
        provenance: package version, time, licence and command of the store's making.
        ids: ids of the episodes committed when the store was opened, sorted by seed.
        lengths: number of steps T of each id; an episode has T+1 frames.
    """

    def __init__(self, path: str | Place) -> None:
        """Open the store at `path`, a folder or a URL.

        Raises:
            UserError: no such path, not a store, or a store of another schema version.
        """
        self.path = place(path)
        attributes = _root_attributes(self.path)
        try:
            self.spec = WorldSpec.from_json(attributes["world"])
            self.provenance: dict[str, Any] = dict(attributes["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path / 'zarr.json'} is damaged ({error!r}): it should describe the world "
                "of the store. The episodes beside it are untouched; restore that one file."
            ) from error
        parsed = {name: EpisodeId.parse(name) for name in disk.members(self.path, EPISODES)}
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
        with _explained(reader, "packed"):
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
        with _explained(reader, "content"):
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
        reader = self._readers.get(name)
        if reader is None or reader.failed:
            while len(self._readers) >= _OPEN_EPISODES:
                self._readers.pop(next(iter(self._readers)), None)
            reader = self._readers[name] = _Reader(self.path, name)
        return reader


class _Reader:
    """One open episode: its record, and its frames once they are asked for.

    One that `failed` is opened anew: whatever was wrong may have been put right meanwhile.
    """

    def __init__(self, store: Place, name: str) -> None:
        self.store, self.name = store, name
        self.folder = store / EPISODES / name
        self._frames: FrameReader | ZarrFrames | None = None
        self._packed = b""
        self.failed = False
        with _explained(self, "record"):
            text = (self.folder / "zarr.json").read_text()
            self.record: dict[str, Any] = json.loads(text)["attributes"]
            if not schema.sealed(self.record) or self.record["id"] != name:
                raise ValueError("its checksum does not match")

    def frames(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        with _explained(self, "frames"):
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
        metadata = self.verify("frames/zarr.json")
        sizes = {name: facts["bytes"] for name, facts in self._files("frames").items()}
        return open_frames(self.folder / "frames", sizes, metadata)

    def arrays(self) -> dict[str, np.ndarray]:
        with _explained(self, "packed"):
            if not self._packed:
                files = self._files("packed")
                with disk.on_disk(self.folder / "packed", files) as folder:
                    disk.verified(folder, "zarr.json", files["zarr.json"])
                    disk.check_size(folder / "c/0", "packed/c/0", files["c/0"]["bytes"])
                    self._packed = np.asarray(open_array(folder)[:]).tobytes()
            return schema.unpack(self._packed, self.record["layout"])

    def verify(self, file: str) -> bytes:
        with _explained(self, file.split("/", maxsplit=1)[0]):
            return disk.verified(self.folder, file, self.record["files"][file])

    def _files(self, array: str) -> dict[str, dict[str, Any]]:
        """Return the facts of an array's files, by their path below it."""
        start = f"{array}/"
        every = self.record["files"].items()
        return {name.removeprefix(start): facts for name, facts in every if name.startswith(start)}


def leftovers(path: str | Place) -> list[Place]:
    """Return what killed writers left in a store: temporary folders, or marks at a URL."""
    return disk.leftovers(place(path) / EPISODES)


def strays(path: str | Place) -> list[Place]:
    """Return what lies among the episodes of a store and is neither episode nor temporary."""
    path = place(path)
    names = disk.members(path, EPISODES)
    return [path / EPISODES / name for name in names if not EpisodeId.parse(name)]


def remove_leftovers(path: str | Place) -> int:
    """Delete what killed writers left; return how many. Working writers are not disturbed."""
    found = leftovers(path)
    for left in found:
        disk.remove_leftover(left)
    return len(found)


def _is_store(path: Place) -> bool:
    return (path / disk.RECORD).is_file()


def _root_attributes(path: Place) -> Mapping[str, Any]:
    try:
        attributes = json.loads((path / disk.RECORD).read_bytes())["attributes"]
        kind, number = attributes["schema"]["name"], attributes["schema"]["version"]
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.exists():
            raise UserError(f"{path} is not a store of episodes: it has no zarr.json.") from error
        makes = f"`worldmodel collect out={path}` makes one"
        if isinstance(path, Url) and path.web:
            makes = f"{path / disk.RECORD} is not there"
        raise UserError(f"There is no store at {path}; {makes}.") from error
    except UserError:
        raise
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


def _create(path: Place, spec: WorldSpec, licence: str, command: str) -> None:
    """Make an empty store; where another process is faster, its store is taken."""
    if not disk.is_free(path, EPISODES) and not _is_store(path):
        raise UserError(f"{path} exists and is not a store of episodes; choose another path.")
    attributes = {
        "schema": {"name": schema.SCHEMA_NAME, "version": schema.SCHEMA_VERSION},
        "world": spec.to_json(),
        "provenance": {
            "package": f"worldmodel {version('worldmodel')}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "licence": licence,
            "command": command,
        },
    }
    try:
        disk.create(path, EPISODES, attributes)
    except OSError as error:
        raise UserError(f"A store cannot be made at {path}: {error}.") from error


def _refuse_other_world(path: Place, stored: WorldSpec, spec: WorldSpec) -> None:
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


def _lost(name: EpisodeId) -> str:
    return f"Episode {name} was not committed; those before it are safe."


def command_line() -> str:
    """Return what this process was called with, for a store's provenance."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _size(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]} pixels"


def open_array(folder: Path) -> zarr.Array:
    """Open an array in a folder of this machine."""
    return zarr.open_array(folder, mode="r", zarr_format=3)


@contextlib.contextmanager
def _explained(reader: _Reader, array: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading into one clear sentence."""
    try:
        yield
    except UserError:
        raise
    except _READ_ERRORS as error:
        reader.failed = True
        store, reason = reader.store, str(error) or type(error).__name__
        advice = f"`worldmodel data repair store={store}` moves this one aside."
        if isinstance(store, Url):
            advice = "this one has to be put there again."
        raise UserError(
            f"{store}: '{array}' of episode {reader.name} is damaged ({reason}). The other "
            f"episodes are intact; {advice}"
        ) from error
