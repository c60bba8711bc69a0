"""The pictures of a tree, within a bounded memory. No pygame here."""

from collections.abc import Callable

import numpy as np

THUMB_SIDE = 96
MAX_THUMBS = 1024
_STOP = 64  # the rank of a node that is to stay; others have less


class Film:
    """Frames by node: the latest ones whole, of older ones small pictures spread over all.

    When there are too many small ones, one of an odd step goes for each that comes, then of every
    second of those that are left, and so on, the oldest first; what `keeps` picks goes last.

    Args:
        room: bytes of whole frames that are kept.
        keeps: whether a node's small picture is to stay.
    """

    def __init__(self, room: float, keeps: Callable[[int], bool]) -> None:
        self._room, self._keeps = room, keeps
        self._whole: dict[int, tuple[int, np.ndarray]] = {}  # number and frame
        self._small: dict[int, np.ndarray] = {}
        self._ranks: dict[int, dict[int, None]] = {}  # nodes of the small ones, see `_rank`
        self._bytes = 0

    def add(self, node: int, number: int, frame: np.ndarray) -> None:
        """Keep the frame uint8 [H, W, 3] of a node that is `number` steps from its start."""
        if node not in self._whole:
            self._bytes += frame.nbytes
        self._whole[node] = number, frame
        while self._bytes > self._room and len(self._whole) > 1:
            self._shrink(next(iter(self._whole)))

    def whole(self, node: int) -> np.ndarray | None:
        """Return the frame of a node, if it is still there."""
        found = self._whole.get(node)
        return found[1] if found else None

    def small(self, node: int) -> np.ndarray | None:
        """Return a picture of a node of at most about `THUMB_SIDE` pixels, if there is one."""
        frame = self.whole(node)
        return self._small.get(node) if frame is None else _small(frame)

    def __contains__(self, node: int) -> bool:
        """Whether there is a picture of a node, whole or small."""
        return node in self._whole or node in self._small

    @property
    def sizes(self) -> tuple[int, int]:
        """How many frames and how many small pictures there are."""
        return len(self._whole), len(self._small)

    def _shrink(self, node: int) -> None:
        """Keep a small picture in place of a whole frame."""
        number, frame = self._whole.pop(node)
        self._bytes -= frame.nbytes
        if node in self._small:
            return
        self._small[node] = np.array(_small(frame))  # a copy: those of a fork are one array
        self._ranks.setdefault(_rank(number), {})[node] = None
        while len(self._small) > MAX_THUMBS:
            self._drop()

    def _drop(self) -> None:
        """Drop the small picture that is missed least, or find that it is to stay."""
        rank = min(rank for rank, nodes in self._ranks.items() if nodes)
        node = next(iter(self._ranks[rank]))
        del self._ranks[rank][node]
        if rank < _STOP and self._keeps(node):
            self._ranks.setdefault(_STOP, {})[node] = None
        else:
            del self._small[node]


def _rank(number: int) -> int:
    """How often a step's number can be halved."""
    return (number & -number).bit_length() - 1 if number else _STOP - 1


def _small(frame: np.ndarray) -> np.ndarray:
    factor = -(-max(frame.shape[:2]) // THUMB_SIDE)
    if factor == 1:
        return frame
    height, width = (side // factor for side in frame.shape[:2])
    cut = frame[: height * factor, : width * factor]
    blocks = cut.reshape(height, factor, width, factor, 3)
    return blocks.mean(axis=(1, 3)).astype(np.uint8)
