"""A tree of futures: every step of a session is a node. No pygame, no model, no pictures here.

Nodes are numbered in the order in which they were made, so the same commands always give the
same tree. A node knows the exact input that led to it, so it can be imagined again from those
before it; nothing but that is needed to save a tree (`worldmodel.viewer.journal`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worldmodel.actions import Action, ActionTable
from worldmodel.errors import UserError

MAX_NAME = 60


@dataclass(frozen=True, slots=True)
class Node:
    """One step, or a start.

    Attributes:
        id: number of the node in the tree.
        parent: id of the node before it; -1 for a start.
        number: steps since the start.
        start: number of the start scene.
        keys: keys held for it. Without keys the instruction led, or nothing was done.
        moved: what was done where no keys say it, as in a recording; else None.
        said: the sentence given just before it ('' where one was dropped), None for none.
        instruction: the instruction in force.
        denoise_steps: denoising steps of its frame.
        text: the exact text sent to the model.
        team: ids of the nodes that were imagined with it as one batch; empty for none. A batch
            rounds in its own way, so imagining a node again means imagining its team.
    """

    id: int
    parent: int
    number: int
    start: int
    keys: tuple[str, ...] = ()
    said: str | None = None
    instruction: str = ""
    denoise_steps: int = 0
    text: str = ""
    team: tuple[int, ...] = ()
    moved: Action | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """What leads to a node; see `Node`."""

    keys: tuple[str, ...] = ()
    said: str | None = None
    instruction: str = ""
    denoise_steps: int = 0
    moved: Action | None = None


def action_of(node: Node, table: ActionTable) -> Action | None:
    """Return what was done in the step to a node; None where the instruction led."""
    if node.moved:
        return node.moved
    return table.press(node.keys) if node.keys or not node.instruction else None


class Tree:
    """All nodes of a session; it only grows."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._others: dict[int, list[int]] = {}  # children that have not the number after it
        self._same: dict[Any, Any] = {}  # texts and keys repeat: each is kept once
        self.names: dict[int, str] = {}
        """Names given to nodes, by id."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def __getitem__(self, node: int) -> Node:
        """Return a node by its id.

        Raises:
            UserError: there is no such node.
        """
        if not 0 <= node < len(self._nodes):
            raise UserError(f"There is no node {node}; the tree has 0 to {len(self._nodes) - 1}.")
        return self._nodes[node]

    def root(self, start: int) -> Node:
        """Add a start."""
        return self._add(Node(len(self._nodes), -1, 0, start))

    def grow(self, parent: int, given: Input, text: str) -> Node:
        """Add a step."""
        return self._add(self._step(parent, given, text, len(self._nodes)))

    def grow_team(
        self, parents: Sequence[int], given: Sequence[Input], texts: Sequence[str]
    ) -> tuple[Node, ...]:
        """Add steps that were imagined as one batch."""
        first = len(self._nodes)
        team = tuple(range(first, first + len(parents)))
        steps = zip(parents, given, texts, team, strict=True)
        return tuple(self._add(self._step(*step, team)) for step in steps)

    def name(self, node: int, name: str) -> None:
        """Name a node; an empty name takes it away.

        Raises:
            UserError: there is no such node, or another one has that name.
        """
        self[node]
        clean = " ".join("".join(c if c.isprintable() else " " for c in name).split())[:MAX_NAME]
        if not clean:
            self.names.pop(node, None)
        elif any(other == clean and i != node for i, other in self.names.items()):
            raise UserError(f"Another frame is called '{clean}' already; take another name.")
        else:
            self.names[node] = clean

    def find(self, name: str) -> int:
        """Return the node that a name or a number means.

        Raises:
            UserError: there is none.
        """
        for node, given in self.names.items():
            if given == name:
                return node
        if name.isdecimal():
            return self[int(name)].id
        named = f" Named: {', '.join(self.names.values())}." if self.names else " None is named."
        raise UserError(f"There is no frame called '{name}'.{named}")

    def children(self, node: int) -> tuple[int, ...]:
        """Return the ids of the nodes that follow a node; those of -1 are the starts."""
        after = node + 1
        follows = after < len(self._nodes) and self._nodes[after].parent == node
        return (*((after,) if follows else ()), *self._others.get(node, ()))

    def ancestor(self, node: int, number: int) -> int:
        """Return the id of the node on the path to `node` that is `number` steps from its start."""
        here = self[node]
        while here.number > number:
            here = self._nodes[here.parent]
        return here.id

    def path(self, node: int) -> list[int]:
        """Return the ids from the start to `node`."""
        path = [self[node].id]
        while (parent := self._nodes[path[-1]].parent) >= 0:
            path.append(parent)
        return path[::-1]

    def is_stop(self, node: int) -> bool:
        """Whether a node is a start, an end, named, or one where futures part."""
        parent = self._nodes[node].parent
        return parent < 0 or node in self.names or len(self.children(node)) != 1

    def _step(
        self, parent: int, given: Input, text: str, node: int, team: tuple[int, ...] = ()
    ) -> Node:
        before = self[parent]
        return Node(
            node,
            parent,
            before.number + 1,
            before.start,
            self._once(given.keys),
            self._once(given.said),
            self._once(given.instruction),
            given.denoise_steps,
            self._once(text),
            team,
            given.moved,
        )

    def _once(self, value: Any) -> Any:
        return self._same.setdefault(value, value)

    def _add(self, node: Node) -> Node:
        self._nodes.append(node)
        if node.parent != node.id - 1:
            self._others.setdefault(node.parent, []).append(node.id)
        return node
