"""Episodes that a person plays: every step is on disk at once, every ended episode in the store.

The episode being played is a file beside the store, `x.zarr.playing-<process>-<time>`, to which
each step is appended. When the episode ends, it is committed from that file; after a crash the
next start does so, with all complete steps. The file is locked while its process lives.

A record of the file is its length and CRC-32 (two little-endian uint32), and that many bytes:
zlib over the length of a JSON text (uint32), the text, and the arrays that its `layout` describes.
The first record has `spec`, `info` and `licence` instead of arrays.
"""

import contextlib
import errno
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.actions import Action
from worldmodel.datasets import disk, schema
from worldmodel.datasets.collect import seeds_done
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.datasets.workers import Annotate, CollectConfig, Tape, episode_info
from worldmodel.errors import UserError
from worldmodel.world import Episode, Step, World, WorldSpec

MAX_STEPS = 10_000
"""An episode ends after so many: it has to fit into memory once."""

_SYNC_S = 1.0  # what a power cut may take
_HEAD = struct.Struct("<II")


class RecordedWorld:
    """A world whose episodes go into a store. Implements `World`.

    Each `reset` ends the episode and begins one with the next free seed, from the one asked for
    on. A step in which a world without a pace of its own stood still is not recorded.

    Args:
        world: what is played; closed with this one.
        config: names the store, the split, and what the episodes' info says.
        annotate: gives sentences about an episode.

    Raises:
        UserError: a store that does not fit the world or cannot be written.
    """

    def __init__(self, world: World, config: CollectConfig, annotate: Annotate) -> None:
        self._world, self._config, self._annotate = world, config, annotate
        EpisodeWriter(config.out, world.spec, licence=config.licence)  # refuse before playing
        self._taken = seeds_done(config)
        self._spill: _Spill | None = None
        self._last = Step(np.zeros((world.spec.height, world.spec.width, 3), np.uint8))
        self.seed, self.num_steps = -1, 0
        """Of the episode being played."""
        self.episodes, self.steps = 0, 0
        """Committed by this object."""

    @property
    def spec(self) -> WorldSpec:
        """The world's description."""
        return self._world.spec

    def reset(self, seed: int | None = None) -> Step:
        """Commit what was played, and begin with the next free seed."""
        self._finish()
        seed = self._config.seed if seed is None else seed
        while seed in self._taken:
            seed += 1
        self._last = self._world.reset(seed)
        self._taken.add(seed)
        self.seed, self.num_steps = seed, 0
        info = episode_info(self._world, self._config, seed)
        self._spill = _Spill(self._config, self.spec, info)
        self._spill.add(self._last)
        return self._last

    def step(self, action: Action) -> Step:
        """Do one action, and record it; the last step of an episode commits it."""
        assert self._spill is not None
        before, self._last = self._last, self._world.step(action)
        if action.idle and self._last.frame is before.frame:
            return self._last
        self._spill.add(self._last, action, self.spec.actions.mask(action))
        self.num_steps += 1
        if self.num_steps == MAX_STEPS:
            self._last = replace(self._last, truncated=True)
        if self._last.terminated or self._last.truncated:
            self._finish()
        return self._last

    def close(self) -> None:
        """Commit what was played, and close the world."""
        try:
            self._finish()
        finally:
            self._world.close()

    def _finish(self) -> None:
        if self._spill is None:
            return
        steps = _commit(self._spill.path, self._config.out, self._annotate)
        self._spill.remove()
        self._spill = None
        self.num_steps = 0
        self.episodes += steps > 0
        self.steps += steps


def recover(out: str, annotate: Annotate) -> list[str]:
    """Commit the episodes that processes which are gone were playing into the store `out`.

    Returns:
        A line about each that was found.

    Raises:
        UserError: `out` is a URL, beside which no step can be kept while it is played.
    """
    said = []
    store = disk.local(out, "out").absolute()
    for path in sorted(store.parent.glob(f"{_escaped(store.name)}.playing-*")):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if not _lock(file.fileno()):
                continue  # somebody plays it
            try:
                steps = _commit(path, out, annotate)
            except (UserError, ValueError, KeyError) as error:
                said.append(f"{path} holds an episode that cannot be committed: {error}")
                continue
            path.unlink()
            if steps:
                said.append(f"An episode of {steps} steps that was cut short is now in {out}.")
    return said


class _Spill:
    """The file of the episode being played."""

    def __init__(self, config: CollectConfig, spec: WorldSpec, info: dict[str, Any]) -> None:
        name = f"{Path(config.out).name}.playing-{os.getpid()}-{time.time_ns()}"
        self.path = disk.local(config.out, "out").absolute().with_name(name)
        self._synced_s = time.monotonic()
        with self._explained():
            self._file = self.path.open("xb", buffering=0)
        _lock(self._file.fileno())
        self._append({"spec": spec.to_json(), "info": info, "licence": config.licence}, {})

    def add(self, step: Step, action: Action | None = None, keys: int = 0) -> None:
        """Append a step; the first one has no action.

        Raises:
            UserError: a disk that is full.
        """
        arrays = {"frame": step.frame, **{f"facts/{n}": v for n, v in step.facts.items()}}
        if action is not None:
            arrays["move"] = np.array([action.dx, action.dy, action.dyaw], np.float32)
            arrays["keys"] = np.array(keys, np.uint16)
        self._append({}, arrays)

    def remove(self) -> None:
        """Delete the file: its episode is committed."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _append(self, head: dict[str, Any], arrays: Mapping[str, Any]) -> None:
        packed, layout = schema.pack({name: np.asarray(value) for name, value in arrays.items()})
        text = schema.to_text({**head, "layout": layout}).encode()
        body = zlib.compress(struct.pack("<I", len(text)) + text + packed, 1)
        record = _HEAD.pack(len(body), zlib.crc32(body)) + body
        with self._explained():
            begin = self._file.tell()
            try:
                if self._file.write(record) != len(record):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(begin)  # half a record would hide all that follow
                self._file.seek(begin)
                raise
            if time.monotonic() - self._synced_s > _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced_s = time.monotonic()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error}.") from error


def _commit(path: Path, out: str, annotate: Annotate) -> int:
    """Write a spilled episode into the store; return its steps, 0 where there was none."""
    records = _records(path)
    head, _ = next(records, ({}, {}))
    _, first = next(records, ({}, {}))
    if not first:
        return 0
    spec, info = WorldSpec.from_json(head["spec"]), dict(head["info"])
    episode = _assembled(spec, info, first, [arrays for _, arrays in records])
    if not episode.num_steps:
        return 0
    said = tuple(annotate(episode, spec, info["seed"]))
    writer = EpisodeWriter(out, spec, licence=head["licence"])
    writer.write(replace(episode, annotations=said))
    return episode.num_steps


def _assembled(
    spec: WorldSpec, info: dict[str, Any], first: dict[str, Any], rest: list[dict[str, Any]]
) -> Episode:
    tape = Tape(spec, len(rest))
    tape.start(_step(first))
    for arrays in rest:
        dx, dy, dyaw = (float(value) for value in arrays["move"])
        keys = spec.actions.from_mask(int(arrays["keys"])).keys
        tape.add(Action(keys, dx, dy, dyaw), _step(arrays))
    return tape.episode(info)


def _step(arrays: Mapping[str, np.ndarray]) -> Step:
    facts = {n.removeprefix("facts/"): a for n, a in arrays.items() if n.startswith("facts/")}
    return Step(arrays["frame"], facts=facts)


def _records(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Yield the complete records of a file; one that was cut off ends it."""
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            size, crc = _HEAD.unpack(head)
            body = file.read(size)
            if len(body) != size or zlib.crc32(body) != crc:
                return
            plain = zlib.decompress(body)
            (length,) = struct.unpack_from("<I", plain)
            text = json.loads(plain[4 : 4 + length])
            yield text, schema.unpack(plain[4 + length :], text["layout"])


def _lock(handle: int) -> bool:
    """Lock an open file while this process lives; return whether nobody else had."""
    try:
        import fcntl
    except ImportError:  # Windows: two players of one store at once are not told apart
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
