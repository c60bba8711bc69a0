"""A store's split in memory: what every stage of training draws from."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeStore
from worldmodel.envs.grammar import held_out
from worldmodel.errors import UserError
from worldmodel.world import Annotation, WorldSpec

_READERS = 16  # threads that read a store, at most


class StoreFrames:
    """The frames of episodes, end to end, read from disk when they are asked for.

    Stands in for an array uint8 [F, H, W, 3]; takes a number, a slice or an array of numbers.
    """

    def __init__(self, episodes: Sequence[tuple[EpisodeStore, str]]) -> None:
        """Take the episodes, each a store and an id, in order; at least one."""
        lengths = [store.lengths[name] + 1 for store, name in episodes]
        self._episodes = tuple(episodes)
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        spec = episodes[0][0].spec
        self.shape = (int(self._starts[-1]), spec.height, spec.width, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: "int | slice | np.ndarray") -> np.ndarray:
        if isinstance(key, slice):
            numbers = np.arange(len(self))[key]
        else:
            numbers = np.atleast_1d(np.asarray(key, np.int64))
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"frames {numbers.min()} to {numbers.max()} of {len(self)}")
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        # Runs of neighbouring frames of one episode are read together.
        where = np.searchsorted(self._starts, numbers, side="right") - 1
        breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(where) != 0)) + 1
        edges = [0, *breaks.tolist(), len(numbers)]
        for begin, end in pairwise(edges):
            if begin < end:
                store, name = self._episodes[where[begin]]
                first = int(numbers[begin] - self._starts[where[begin]])
                store.frames_into(name, first, out[begin:end])
        return out[0] if isinstance(key, int | np.integer) else out


@dataclass(frozen=True)
class Recordings:
    """All episodes of a split, end to end.

    Attributes:
        spec: the world that they come from.
        frames: uint8 [F, H, W, 3], all frames of all episodes, in memory or read when needed.
        keys: uint16 [F]; keys[i] is the key mask of the step from frame i to frame i + 1. The
            entry of an episode's last frame is unused.
        actions: float32 [F, 3], the displacement (dx, dy, dyaw) of the same step; NaN where nobody
            knows it, as in unlabelled video.
        starts: int64 [E + 1], where each episode begins; the last entry is F.
        annotations: one tuple an episode, frame numbers relative to its beginning; without what
            the grammar reserves for evaluation.
        sources: the store and the id of each episode; empty where they come from no store.
    """

    spec: WorldSpec
    frames: np.ndarray | StoreFrames
    keys: np.ndarray
    actions: np.ndarray
    starts: np.ndarray
    annotations: tuple[tuple[Annotation, ...], ...]
    sources: tuple[tuple[EpisodeStore, str], ...] = ()

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.annotations)

    def action(self, frame: int) -> Action | None:
        """Return the action from `frame` to the next, None where nobody knows it."""
        if mask := int(self.keys[frame]):
            return self.spec.actions.from_mask(mask)
        moved = self.actions[frame]
        return None if np.isnan(moved).any() else Action((), *map(float, moved))

    def without_frames(self) -> "Recordings":
        """Return the same without what only a look at frames needs: small enough to send."""
        return replace(self, frames=self.frames[:0], sources=())

    def captions(self) -> list[tuple[int, str]]:
        """Return (frame number, caption) of all captions."""
        return [
            (int(self.starts[e]) + note.start, note.text)
            for e, notes in enumerate(self.annotations)
            for note in notes
            if note.kind == "caption"
        ]


def load_recordings(path: str, split: str, limit: int = 0, in_memory: bool = True) -> Recordings:
    """Read a split of the store at `path`.

    Args:
        path: folder of the store.
        split: for instance 'train'.
        limit: above 0, so many episodes only.
        in_memory: False leaves the frames on disk, to be read when they are asked for.

    Raises:
        UserError: no store there, or none of its episodes are of this split.
    """
    store = EpisodeStore(path)
    ids = store.select(split)
    ids = ids[:limit] if limit else ids
    if not ids:
        raise UserError(
            f"The store '{path}' has no episodes of the split '{split}'. Collect some: "
            f"worldmodel collect env={store.spec.name} split={split} out={path}"
        )
    sources = tuple((store, name) for name in ids)
    lengths = [store.lengths[i] + 1 for i in ids]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    height, width = store.spec.height, store.spec.width
    if in_memory:
        frames = np.empty((int(starts[-1]), height, width, 3), np.uint8)
    else:
        frames = StoreFrames(sources)
    keys = np.zeros(int(starts[-1]), np.uint16)
    actions = np.zeros((int(starts[-1]), 3), np.float32)
    annotations: list[tuple[Annotation, ...]] = [()] * len(ids)

    def read(part: range) -> None:
        own = copy(store)  # with its own open episodes
        for e in part:
            name, begin, end = ids[e], starts[e], starts[e + 1]
            arrays = own.arrays(name)
            keys[begin : end - 1] = arrays["keys"]
            actions[begin : end - 1] = arrays["actions"]
            if isinstance(frames, np.ndarray):
                own.frames_into(name, 0, frames[begin:end])
            free = (n for n in own.annotations(name) if not held_out(n.text, n.answer))
            annotations[e] = tuple(free)

    threads = min(len(ids), _READERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "read") as pool:  # decoding leaves Python's lock to others
        list(pool.map(read, (range(i, len(ids), threads) for i in range(threads))))
    return Recordings(store.spec, frames, keys, actions, starts, tuple(annotations), sources)


def load_stores(
    paths: Sequence[str], split: str, limit: int = 0, memory_gb: float = 0.0
) -> list[Recordings]:
    """Read a split of several stores; see `load_recordings`.

    Args:
        paths: folders of the stores.
        split: for instance 'train'.
        limit: above 0, so many episodes of each only.
        memory_gb: where all frames together take more, they stay on disk; 0 for no limit.

    Raises:
        UserError: as `load_recordings`; frames of different sizes.
    """
    stores = [EpisodeStore(path) for path in paths]
    size = (stores[0].spec.height, stores[0].spec.width)
    need = 0
    for store in stores:
        height, width = store.spec.height, store.spec.width
        if (height, width) != size:
            raise UserError(
                f"The frames of '{store.path}' are {width}x{height} pixels, but those of "
                f"'{stores[0].path}' are {size[1]}x{size[0]}; one model sees frames of one size."
            )
        names = store.select(split)[: limit or None]
        need += sum(store.lengths[name] + 1 for name in names) * height * width * 3
    in_memory = not memory_gb or need <= memory_gb * 1e9
    return [load_recordings(path, split, limit, in_memory) for path in paths]


def join(parts: Sequence[Recordings]) -> Recordings:
    """Return recordings end to end, as one; the first one's world stands for all.

    For what looks at frames and sentences only: a key mask means nothing without its own world.
    """
    if len(parts) == 1:
        return parts[0]
    arrays = [part.frames for part in parts if isinstance(part.frames, np.ndarray)]
    sources = tuple(source for part in parts for source in part.sources)
    offsets = np.cumsum([0, *(len(part.frames) for part in parts)])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return replace(
        parts[0],
        frames=np.concatenate(arrays) if len(arrays) == len(parts) else StoreFrames(sources),
        keys=np.concatenate([part.keys for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        starts=np.concatenate([*starts, offsets[-1:]]).astype(np.int64),
        annotations=tuple(notes for part in parts for notes in part.annotations),
        sources=sources,
    )
