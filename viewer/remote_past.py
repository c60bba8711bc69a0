"""What a viewer has seen of the path to here: the timeline, and the last seconds for a clip.

The server has all of it, but what was seen need not be sent again. No pygame here.
"""

from collections.abc import Sequence

import numpy as np

from worldmodel.viewer.session import Future, Moment

TIMELINE = 80
"""Moments kept for the timeline."""


class Past:
    """Moments of the path to here, oldest first.

    Args:
        room: latest frames that are kept, for `clip`.
    """

    def __init__(self, room: int) -> None:
        self.timeline: tuple[Moment, ...] = ()
        """Some of them, over the whole path; the last one is the current moment."""
        self._room = room
        self._latest: list[Moment] = []
        self._futures: list[list[Moment]] = []  # what came of each branch of the open fork
        self._origin = -1  # where that was opened
        self._target: int | None = None

    def jumps(self, node: int) -> None:
        """Take note that somebody goes to a node, which may be on another path."""
        self._target = node

    def saw(self, now: Moment, futures: Sequence[Future]) -> None:
        """Take a state that came."""
        if now.node == self._target:
            self._target = None
            if not any(moment.node == now.node for moment in self.timeline):
                self.timeline, self._latest = (), []
        taken: list[Moment] = []
        if futures:
            self._saw_fork(now, futures)
        else:  # where a branch was taken, what came of it is a part of the path
            taken = next((seen for seen in self._futures if seen[-1].node == now.node), [])
            self._futures = []
        for moment in (*taken, now):
            self.timeline = (*_until(self.timeline, moment.number), moment)
            self._latest = [*_until(self._latest, moment.number), moment][-self._room :]
        self.timeline = _spread(self.timeline)

    def _saw_fork(self, now: Moment, futures: Sequence[Future]) -> None:
        if (len(futures), now.node) != (len(self._futures), self._origin):
            self._futures, self._origin = [[] for _ in futures], now.node
        self._futures = [
            [*_until(seen, future.now.number), future.now][-self._room :]
            for seen, future in zip(self._futures, futures, strict=True)
        ]

    def forget(self) -> None:
        """Begin anew, with another session."""
        self.timeline, self._latest, self._futures, self._target = (), [], [], None

    def clip(self, steps: int) -> list[np.ndarray]:
        """Return the frames of the last `steps` moments that came, oldest first."""
        return [moment.frame for moment in self._latest[-max(1, steps) :]]


def _until(moments: Sequence[Moment], number: int) -> list[Moment]:
    return [moment for moment in moments if moment.number < number]


def _spread(moments: Sequence[Moment]) -> tuple[Moment, ...]:
    from worldmodel.viewer.draw import spread  # with pygame, which must not come too early

    return tuple(spread(moments, TIMELINE))
