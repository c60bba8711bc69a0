"""Actions as text: the vocabulary that every world, store, model and viewer shares.

An action is a displacement in the agent's own frame: `dx` metres forward, `dy` metres to the
left, `dyaw` degrees counter-clockwise (to the left). Worlds with keys describe them in an
`ActionTable`; an action then also carries the keys that make it. One action has three surface
forms, and the model is trained on all of them:

    action: dx=+0.50 dy=+0.00 dyaw=+0.0        canonical, metric
    action: w+a                                keys
    action: step forward and turn left         phrases

A key need not move anything ('fire', 'pick up'); an action with such a key has no metric form.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from worldmodel.errors import UserError, suggest

FORMS = ("metric", "keys", "phrase")
MAX_KEYS = 16  # a store keeps the keys held in a step as 16 bits
IDLE_KEYS = "none"
IDLE_PHRASES = ("stand still", "wait", "do nothing", "stop")

_METRIC = re.compile(r"^dx=([+-]\d+\.\d+) dy=([+-]\d+\.\d+) dyaw=([+-]\d+\.\d+)$")


@dataclass(frozen=True)
class Action:
    """What the agent does in one step.

    Attributes:
        keys: names of the keys held, in the table's order; empty for none or for an action
            that no keys make.
        dx: metres forward. dy: metres to the left. dyaw: degrees counter-clockwise.
    """

    keys: tuple[str, ...] = ()
    dx: float = 0.0
    dy: float = 0.0
    dyaw: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is done."""
        return not self.keys and self.dx == self.dy == self.dyaw == 0.0


@dataclass(frozen=True)
class ActionRow:
    """One line of the action table: a key, what it does, and how people say it.

    Attributes:
        joins: the keys that can be held together with this one; None for all.
    """

    name: str
    key: str
    meaning: str
    dx: float = 0.0
    dy: float = 0.0
    dyaw: float = 0.0
    unit: str = "m"
    phrases: tuple[str, ...] = ()
    joins: tuple[str, ...] | None = None

    @property
    def moves(self) -> bool:
        """Whether the key displaces the agent by a known amount."""
        return any((self.dx, self.dy, self.dyaw))


@dataclass(frozen=True)
class ActionTable:
    """All keys of a world.

    Keys held together add up; opposite keys cancel; of keys that cannot be held together the
    one further down the table counts.
    """

    rows: tuple[ActionRow, ...]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key names in table order."""
        return tuple(row.key for row in self.rows)

    def press(self, keys: Iterable[str]) -> Action:
        """Return the action of holding `keys`, without those that cancel or give way.

        Raises:
            UserError: a key that the table does not have.
        """
        held = frozenset(keys)
        if held not in self._pressed:
            self._pressed[held] = self._press(held)
        return self._pressed[held]

    @cached_property
    def _pressed(self) -> dict[frozenset[str], Action]:
        """What `press` has found so far: worlds and policies press the same few all the time."""
        return {}

    def _press(self, held: frozenset[str]) -> Action:
        for key in held:
            if key not in self.keys:
                raise UserError(f"Unknown key '{key}'.{suggest(key, self.keys)}")
        rows = [row for row in self.rows if row.key in held]
        rows = [r for r in rows if not any(_opposite(r, other) for other in rows)]
        rows = _together(rows)
        return Action(
            keys=tuple(row.key for row in rows),
            dx=sum(row.dx for row in rows),
            dy=sum(row.dy for row in rows),
            dyaw=sum(row.dyaw for row in rows),
        )

    def mask(self, action: Action) -> int:
        """Return the action's keys as a bit mask over the rows (bit i is row i)."""
        return sum(1 << i for i, row in enumerate(self.rows) if row.key in action.keys)

    def from_mask(self, mask: int) -> Action:
        """Return the action of a bit mask over the rows."""
        return self.press(row.key for i, row in enumerate(self.rows) if mask >> i & 1)

    def text(self, action: Action, form: str = "keys", pick: int = 0) -> str:
        """Return the action's text in one of `FORMS`.

        An action without keys that moves has only the metric form; one with a key that moves
        nothing has no metric form and is written with its keys instead. `pick` chooses among a
        row's phrases (taken modulo their number).
        """
        if form == "metric" and not self._metric(action):
            form = "keys"
        if form == "metric" or (not action.keys and not action.idle):
            dx, dy, dyaw = action.dx, action.dy, action.dyaw  # z: no -0.00
            return f"action: dx={dx:+z.2f} dy={dy:+z.2f} dyaw={dyaw:+z.1f}"
        if form == "keys":
            return f"action: {'+'.join(action.keys) or IDLE_KEYS}"
        if form == "phrase":
            if action.idle:
                return f"action: {IDLE_PHRASES[pick % len(IDLE_PHRASES)]}"
            rows = [row for row in self.rows if row.key in action.keys]
            said = [row.phrases[pick % len(row.phrases)] for row in rows]
            return f"action: {' and '.join(said)}"
        raise ValueError(f"unknown action form {form!r}, expected one of {FORMS}")

    def parse(self, text: str) -> Action:
        """Return the action that a text in any of the forms means; the inverse of `text`.

        Raises:
            UserError: a text that is none of the forms.
        """
        body = " ".join(text.removeprefix("action:").lower().split())
        if match := _METRIC.match(body):
            dx, dy, dyaw = (float(g) + 0.0 for g in match.groups())
            movers = [row.key for row in self.rows if row.moves]
            for mask in range(1 << len(movers)):
                keyed = self.press(key for i, key in enumerate(movers) if mask >> i & 1)
                near = abs(keyed.dx - dx) < 5.1e-3 and abs(keyed.dy - dy) < 5.1e-3
                if near and abs(keyed.dyaw - dyaw) < 5.1e-2:  # 11.25 is written +11.2
                    return keyed
            return Action((), dx, dy, dyaw)
        if body == IDLE_KEYS or body in IDLE_PHRASES:
            return Action()
        said = {phrase: row.key for row in self.rows for phrase in row.phrases}
        parts = body.split(" and ")
        if all(part in said for part in parts):
            return self.press(said[part] for part in parts)
        parts = body.split("+")
        if all(part in self.keys for part in parts):
            return self.press(parts)
        names = [*self.keys, *said]
        raise UserError(f"'{text}' is not an action of this world.{suggest(body, names)}")

    def to_json(self) -> list[dict[str, Any]]:
        """Return the table as plain data, for stores and checkpoints."""
        rows = [asdict(row) for row in self.rows]
        return [{k: v for k, v in row.items() if k != "joins" or v is not None} for row in rows]

    @staticmethod
    def from_json(rows: Sequence[dict[str, Any]]) -> "ActionTable":
        """Return the table that `to_json` wrote."""
        return ActionTable(tuple(_row_of(row) for row in rows))

    def _metric(self, action: Action) -> bool:
        held = [row for row in self.rows if row.key in action.keys]
        if not held:
            return not self.rows or any(row.moves for row in self.rows)
        return all(row.moves for row in held)


def _row_of(data: dict[str, Any]) -> ActionRow:
    joins = data.get("joins")
    joins = None if joins is None else tuple(joins)
    return ActionRow(**{**data, "phrases": tuple(data["phrases"]), "joins": joins})


def _opposite(a: ActionRow, b: ActionRow) -> bool:
    moved = (a.dx, a.dy, a.dyaw)
    return a.moves and all(x == -y for x, y in zip(moved, (b.dx, b.dy, b.dyaw), strict=True))


def _together(rows: Sequence[ActionRow]) -> list[ActionRow]:
    """Return the rows that can be held together; the last one is always among them."""
    kept: list[ActionRow] = []
    for row in reversed(rows):
        if all(_joins(row, other) and _joins(other, row) for other in kept):
            kept.insert(0, row)
    return kept


def _joins(row: ActionRow, other: ActionRow) -> bool:
    return row.joins is None or other.key in row.joins
