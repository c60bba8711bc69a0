"""The tree as a map shows it: starts, ends, forks and named frames, with rows and columns.

No pygame here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from worldmodel.viewer.session import Session
from worldmodel.viewer.tree import Node

RUN = 12
"""A run of more steps than this has stops on its way,"""
MOST_ON_RUN = 5
"""at most so many."""


@dataclass(frozen=True)
class Stop:
    """A node on the map.

    Attributes:
        node: its id. parent: index of the stop before it; -1 for a start.
        row, column: its place; a future has a row, the first one goes on in its parent's.
        number: steps since the start. steps: steps since the stop before it.
        start: number of the start scene.
        name: its name, or empty.
        label: what led here from the stop before it, such as 'w' or 'turn right'.
        led: 'keys', 'say' or '' for nothing.
        text: the exact text sent to the model.
        picture: uint8 [h, w, 3], None where it is gone.
        here: whether it is the current node. passed: whether it is on the way to that.
    """

    node: int
    parent: int
    row: int
    column: int
    number: int
    steps: int
    start: int
    name: str
    label: str
    led: str
    text: str
    picture: np.ndarray | None
    here: bool
    passed: bool


def outline(session: Session) -> tuple[Stop, ...]:
    """Return the stops of a session's tree, each after its parent."""
    tree, here = session.tree, session.at
    passed = set(tree.path(here))
    shown = set(_shown(session))
    stops: list[Stop] = []
    rows = 0
    # Of each node to visit: the stop before it, the nodes since, and its row (None: a new one).
    roots = [root for root in tree.children(-1) if root == here or tree.children(root)]
    visit: list[tuple[int, int, list[Node], int | None]] = [
        (root, -1, [], None) for root in reversed(roots)
    ]
    while visit:
        at, before, run, row = visit.pop()
        node = tree[at]
        if row is None:
            row, rows = rows, rows + 1
        run = [*run, node] if len(run) < 64 else [*run[:63], node]  # enough for the label
        index = before
        if at in shown:
            parent = stops[before] if before >= 0 else None
            label, led = _label(run[1:] if parent is None else run)
            index = len(stops)
            stops.append(
                Stop(
                    node=at,
                    parent=before,
                    row=row,
                    column=parent.column + 1 if parent else 0,
                    number=node.number,
                    steps=node.number - (parent.number if parent else 0),
                    start=node.start,
                    name=tree.names.get(at, ""),
                    label=label,
                    led=led,
                    text=node.text,
                    picture=session.film.small(at),
                    here=at == here,
                    passed=at in passed,
                )
            )
            run = []
        children = tree.children(at)
        first = [(child, index, run, row) for child in children[:1]]
        others: list[tuple[int, int, list[Node], int | None]] = [
            (child, index, [], None) for child in children[1:]
        ]
        visit += reversed([*first, *others])
    return tuple(stops)


def move(stops: tuple[Stop, ...], selected: int, way: str) -> int:
    """Return the index of the stop one goes to from another: 'left', 'right', 'up' or 'down'."""
    if not stops:
        return 0
    now = stops[min(selected, len(stops) - 1)]
    index = stops.index(now)
    if way == "left":
        return now.parent if now.parent >= 0 else index
    if way == "right":
        after = [i for i, stop in enumerate(stops) if stop.parent == index]
        return next((i for i in after if stops[i].passed), after[0] if after else index)
    sign = 1 if way == "down" else -1
    beyond = [i for i, stop in enumerate(stops) if (stop.row - now.row) * sign > 0]

    def distance(i: int) -> tuple[int, int]:
        return abs(stops[i].row - now.row), abs(stops[i].column - now.column)

    return min(beyond, key=distance, default=index)


def _shown(session: Session) -> Iterator[int]:
    """Yield the ids of the nodes that are stops, and of some on the way of long runs."""
    tree = session.tree
    for node in tree:
        if not (tree.is_stop(node.id) or node.id == session.at):
            continue
        yield node.id
        way = []
        at = node.parent
        while at >= 0 and not (tree.is_stop(at) or at == session.at):
            way.append(at)
            at = tree[at].parent
        if len(way) < RUN:
            continue
        stride = 8
        while len(way) // stride > MOST_ON_RUN:
            stride *= 2
        ends = (node.number, tree[at].number if at >= 0 else 0)
        yield from (
            passing
            for passing in way
            if tree[passing].number % stride == 0
            and min(abs(tree[passing].number - end) for end in ends) >= stride // 2
            and passing in session.film
        )


def _label(run: list[Node]) -> tuple[str, str]:
    """Return what led through a run of nodes, and its kind."""
    said = []
    for node in run:
        words = "+".join(node.keys) or node.instruction
        if words and said[-1:] != [words]:
            said.append(words)
    keys = any(node.keys for node in run)
    led = "keys" if keys else "say" if any(node.instruction for node in run) else ""
    return (", ".join(said[:3]) + (" ..." if len(said) > 3 else "")) or "idle", led
