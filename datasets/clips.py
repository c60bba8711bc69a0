"""Clips of consecutive frames from all episodes of a store: in order, or shuffled by epoch.

The shuffled order is a permutation computed number by number, so an index takes memory for its
episodes only, any position of any epoch is at hand at once (resume, ranks), and the order is a
pure function of the seed and the epoch.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError

_ROUNDS = 4  # of the Feistel network: three make a pseudo-random permutation, four a strong one
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Window:
    """Frames `start` to `stop` (exclusive) of the episode `name`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Clip:
    """The data of a window of n frames.

    Attributes:
        window: where it is from.
        frames: uint8 RGB [n, H, W, 3].
        actions: float32 [n-1, 3], (dx, dy, dyaw) between the frames.
        keys: uint16 [n-1], the keys held as a bit mask over the action table's rows.
    """

    window: Window
    frames: np.ndarray
    actions: np.ndarray
    keys: np.ndarray


class ClipIndex:
    """All windows of `length` frames of a store's episodes, by number."""

    def __init__(
        self,
        store: EpisodeStore,
        length: int,
        split: str | None = None,
        every: int = 1,
        seed: int = 0,
    ) -> None:
        """Index the windows.

        Args:
            store: the episodes; those shorter than `length` frames are left out.
            length: frames of a clip, at least 1.
            split: only episodes of this split; None for all.
            every: frames between the starts of neighbouring windows; `length` for no overlap.
            seed: of the shuffled orders.

        Raises:
            UserError: the store has no clip of that length in that split.
        """
        if length < 1 or every < 1:
            raise ValueError(f"length and every must be at least 1, got {length} and {every}")
        names = store.ids if split is None else store.select(split)
        spare = {name: store.lengths[name] + 1 - length for name in names}
        self.store, self.length, self.every, self.seed = store, length, every, seed
        self._names = [name for name in names if spare[name] >= 0]
        counts = [spare[name] // every + 1 for name in self._names]
        self._ends = np.cumsum(counts, dtype=np.int64)
        if not self._names:
            where = f"of the split '{split}' " if split else ""
            raise UserError(
                f"{store.path} has no episode {where}with {length} frames; "
                f"splits: {', '.join(splits(store)) or '(none)'}."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def window(self, number: int) -> Window:
        """Return window `number`, counted through the episodes in order.

        Raises:
            IndexError: a number that is not in 0 .. len-1.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of {len(self)}")
        episode = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[episode - 1]) if episode else 0
        start = (number - before) * self.every
        return Window(self._names[episode], start, start + self.length)

    def at(self, epoch: int, position: int) -> Window:
        """Return the window at a position of an epoch's shuffled order."""
        return self.window(permute(position, len(self), key=(self.seed, epoch)))

    def order(self, epoch: int, rank: int = 0, ranks: int = 1) -> Iterator[Window]:
        """Yield every window once, shuffled; of several ranks, each gets its share."""
        return (self.at(epoch, position) for position in range(rank, len(self), ranks))

    def read(self, window: Window) -> Clip:
        """Return a window's data.

        Raises:
            UserError: a damaged episode.
        """
        arrays = self.store.arrays(window.name)
        steps = slice(window.start, window.stop - 1)
        return Clip(
            window=window,
            frames=self.store.frames(window.name, window.start, window.stop),
            actions=arrays["actions"][steps],
            keys=arrays["keys"][steps],
        )


def read_clips(
    store: EpisodeStore, windows: Sequence[Window], threads: int | None = None
) -> np.ndarray:
    """Return the frames of windows of one length: uint8 [B, n, H, W, 3].

    Args:
        store: the episodes.
        windows: B windows of n frames each.
        threads: how many read at once (zstd works outside Python's lock); None for one a core.

    Raises:
        UserError: no such episode, or a damaged one.
        ValueError: no windows, or windows of different lengths.
    """
    lengths = {window.stop - window.start for window in windows}
    if len(lengths) != 1:
        raise ValueError(f"windows must have one length, got {sorted(lengths)}")
    size = (store.spec.height, store.spec.width, 3)
    out = np.empty((len(windows), lengths.pop(), *size), np.uint8)

    def read(part: range) -> None:
        for i in part:
            store.frames_into(windows[i].name, windows[i].start, out[i])

    count = min(threads or os.cpu_count() or 1, len(windows))
    if count == 1:
        read(range(len(windows)))
    else:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(read, [range(t, len(windows), count) for t in range(count)]))
    return out


def splits(store: EpisodeStore) -> dict[str, int]:
    """Return the number of episodes of each split, by name."""
    found = [store.describe(name).split for name in store.ids]
    return {split: found.count(split) for split in sorted(set(found))}


def permute(position: int, count: int, key: tuple[int, ...]) -> int:
    """Return where a pseudo-random permutation of 0 .. count-1 sends `position`.

    A Feistel network permutes the next power of four; numbers that fall outside the range are
    sent on until they fall inside (cycle walking), which keeps it a permutation.
    """
    if not 0 <= position < count:
        raise IndexError(f"position {position} of {count}")
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    state = 0
    for part in key:
        state = _mix(state ^ part)
    while True:
        left, right = position >> half, position & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(state + (turn << 56) + right) & low)
        position = left << half | right
        if position < count:
            return position


def _mix(value: int) -> int:
    """Return 64 well-mixed bits of an integer (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK64
    return value ^ value >> 31
