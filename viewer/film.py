"""The pictures of a tree, within a bounded memory. No pygame here."""

from collections.abc import Callable

import numpy as np

THUMB_SIDE = 96
MAX_THUMBS = 2048


class Film:
    """Frames by node: the latest ones whole, and small pictures spread over all of them.

    When there are too many small ones, those of every second step go, then of every second one
    that is left, and so on; what `keeps` picks stays.

    Args:
        room: bytes of whole frames that are kept.
        keeps: whether a node's small picture is to stay.
    """

    def __init__(self, room: float, keeps: Callable[[int], bool]) -> None:
        self._room, self._keeps = room, keeps
        self._whole: dict[int, np.ndarray] = {}
        self._small: dict[int, tuple[int, np.ndarray]] = {}
        self._bytes = 0

    def add(self, node: int, number: int, frame: np.ndarray) -> None:
        """Keep the frame uint8 [H, W, 3] of a node that is `number` steps from its start."""
        if node not in self._whole:
            self._bytes += frame.nbytes
        self._whole[node] = frame
        while self._bytes > self._room and len(self._whole) > 1:
            oldest = next(iter(self._whole))
            self._bytes -= self._whole.pop(oldest).nbytes
        if node not in self._small:
            self._small[node] = (number, _small(frame))
        if len(self._small) > MAX_THUMBS + MAX_THUMBS // 8:
            self._thin()

    def whole(self, node: int) -> np.ndarray | None:
        """Return the frame of a node, if it is still there."""
        return self._whole.get(node)

    def small(self, node: int) -> np.ndarray | None:
        """Return a picture of a node of at most about `THUMB_SIDE` pixels, if there is one."""
        found = self._small.get(node)
        return found[1] if found else self._whole.get(node)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many frames and how many small pictures there are."""
        return len(self._whole), len(self._small)

    def _thin(self) -> None:
        stride = 1
        while len(self._small) > MAX_THUMBS and stride < 1 << 20:
            stride *= 2
            self._small = {
                node: (number, picture)
                for node, (number, picture) in self._small.items()
                if number % stride == 0 or self._keeps(node)
            }


def _small(frame: np.ndarray) -> np.ndarray:
    factor = -(-max(frame.shape[:2]) // THUMB_SIDE)
    if factor == 1:
        return frame
    height, width = (side // factor for side in frame.shape[:2])
    cut = frame[: height * factor, : width * factor]
    blocks = cut.reshape(height, factor, width, factor, 3)
    return blocks.mean(axis=(1, 3)).astype(np.uint8)
