"""Whether the imagination does what it is told, read off its frames. No pygame here.

A small network that was trained on real frames (`worldmodel.evaluate.inverse_dynamics`, the
checkpoint's `idm.safetensors`) says which keys lead from one frame to the next. It errs on real
frames as well: `worldmodel eval` says how often.
"""

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worldmodel.actions import ActionTable
from worldmodel.errors import UserError
from worldmodel.viewer.tree import Node, action_of

if TYPE_CHECKING:  # they import torch, and the window is to open before that
    from worldmodel.evaluate.inverse_dynamics import InverseDynamics
    from worldmodel.viewer.session import Session

EVERY = 2
"""Steps from one reading to the next: one takes about 1.5 ms of a CPU core."""

LAST = 32
"""Readings that count."""

NOTHING = "nothing"
"""What stands for no keys."""


@dataclass(frozen=True)
class Obeyed:
    """How often the frames showed the keys that were told.

    Attributes:
        right, of: so many of the last readings.
        told, seen: keys of the last one, such as 'w+a'; `NOTHING` for none.
    """

    right: int
    of: int
    told: str
    seen: str


class Obedience:
    """Reads steps that were told an action; standing still is no art and does not count.

    Args:
        reader: says which keys lead to a frame; None where nothing does.
        table: the world's keys.
    """

    def __init__(self, reader: "InverseDynamics | None", table: ActionTable) -> None:
        self._reader, self._table = reader, table
        self._right: deque[bool] = deque(maxlen=LAST)
        self._steps = 0

    @staticmethod
    def of(engine: Any) -> "Obedience":
        """Return the one for a model (`worldmodel.stream.Engine`)."""
        from worldmodel.evaluate.inverse_dynamics import load_idm

        folder, spec = engine.checkpoint.folder, engine.checkpoint.spec
        reader = None
        with contextlib.suppress(UserError):  # a file that is damaged
            if folder and (folder / "idm.safetensors").exists():
                reader = load_idm(folder / "idm.safetensors")
        if reader and (reader.width, reader.height, reader.keys) != (
            *(spec.width, spec.height),
            spec.actions.keys,
        ):
            reader = None
        return Obedience(reader, spec.actions)

    def read(self, session: "Session") -> Obeyed | None:
        """Take note of the current frame; returns a reading where one was made."""
        node = session.tree[session.at]
        told = self._told(node) if self._reader else 0
        if not self._reader or told not in self._reader.masks or not told:
            return None
        self._steps += 1
        if self._steps % EVERY != 1:
            return None
        frames = session.triple(node.id)
        if frames is None:
            return None
        seen = int(self._reader.predict(frames)[0])
        self._right.append(seen == told)
        keys = [self._table.from_mask(mask).keys for mask in (told, seen)]
        words = ("+".join(held) or NOTHING for held in keys)
        return Obeyed(sum(self._right), len(self._right), *words)

    def _told(self, node: Node) -> int:
        """Return the keys that a step was told, as a mask; 0 where there is nothing to compare."""
        if node.number < 2:  # the reader needs the frame before the one that a step starts from
            return 0
        try:
            action = action_of(node, self._table) or self._table.parse(node.instruction)
        except UserError:  # a sentence that is no action
            return 0
        return self._table.mask(action)
