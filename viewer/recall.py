"""Bringing a dream back to any node of the tree, within a bounded memory. No pygame here.

A dream's state is immutable, so to keep one costs what it does not share with the others. The
recent ones are all kept. Of the older ones every `EVERY`-th step lasts, the further back the
fewer, so that a session of any length takes no more memory than one of a few minutes. A node
whose state is gone is imagined again from the recorded inputs, exactly: in the same batches, from
the nearest node that is kept.

States are kept as they were imagined, before anything was said for the next step.
"""

from collections.abc import Callable, Sequence
from typing import Any

from worldmodel.viewer.tree import Node, Tree, action_of

EVERY = 64
"""Most steps to imagine again for a place not too long ago."""


class Recall:
    """States of a dream by the node that they are at.

    Args:
        tree: what they are nodes of.
        reset: `reset(dream, root)` brings a dream to the start that is the node `root`.
        room: how many steps of the past all states may hold together, besides what one state
            looks back on. At most half of them are of states that last.
    """

    def __init__(self, tree: Tree, reset: Callable[[Any, int], object], room: int) -> None:
        self._tree, self._reset, self._room = tree, reset, room
        self._recent, self._lasting = _Shelf(), _Shelf()  # the former in the order of use

    def keep(self, node: int, dream: Any) -> None:
        """Remember a dream as it is at a node; nothing may have been said to it there."""
        state = dream.fork(1)[0]
        room = self._room + len(_pieces(state))
        self._recent.put(node, state)
        while len(self._recent.states) > 1 and self.size > room:
            oldest = next(iter(self._recent.states))
            state = self._recent.take(oldest)
            number = self._tree[oldest].number
            if number and number % EVERY == 0:
                self._lasting.put(oldest, state)
                self._thin()

    @property
    def size(self) -> int:
        """How many steps of the past the states hold together."""
        return self._recent.size + self._lasting.size

    def reach(
        self, target: int, dream: Any, on_step: Callable[[int, int], None] | None = None
    ) -> Any:
        """Return a dream that is at a node, to which nothing was said there.

        Args:
            target: id of the node.
            dream: any dream of the same model; it stays as it is.
            on_step: told how many of how many steps have been imagined again.
        """
        todo: list[Node] = []
        here = {target}
        for node in map(self._tree.__getitem__, reversed(self._tree.path(target))):
            if all(map(self._holds, here)):
                break
            todo.append(node)
            here = {member.parent for member in self._team(node)}
        held = {node: self._held(node, dream) for node in here}
        for node, state in held.items():
            self.keep(node, state)  # it was used last
        dreams = {node: state.fork(1)[0] for node, state in held.items()}
        for done, node in enumerate(reversed(todo), start=1):
            dreams = self._again(node, dreams)
            if on_step:
                on_step(done, len(todo))
        return dreams[target]

    def _again(self, node: Node, before: dict[int, Any]) -> dict[int, Any]:
        """Imagine a node, and what was imagined together with it, from those before."""
        team = self._team(node)
        dreams = [before[member.parent].fork(1)[0] for member in team]
        for member, dream in zip(team, dreams, strict=True):
            dream.denoise_steps = member.denoise_steps
            if member.said is not None:
                dream.say(member.said or None)
        first = dreams[0]
        actions = [action_of(member, first.spec.actions) for member in team]
        if node.team:
            first.batch_step(dreams, actions)
        else:
            first.step(actions[0])
        for member, dream in zip(team, dreams, strict=True):
            self.keep(member.id, dream)
        return {member.id: dream for member, dream in zip(team, dreams, strict=True)}

    def _team(self, node: Node) -> Sequence[Node]:
        return [self._tree[member] for member in node.team] or [node]

    def _holds(self, node: int) -> bool:
        """Whether a node can be reached at once; a start can always be."""
        kept = node in self._recent.states or node in self._lasting.states
        return kept or self._tree[node].parent < 0

    def _held(self, node: int, dream: Any) -> Any:
        """The state of such a node; nobody may change it."""
        found = self._recent.states.get(node) or self._lasting.states.get(node)
        if found is None:
            found = dream.fork(1)[0]
            self._reset(found, node)
        return found

    def _thin(self) -> None:
        """Drop lasting states while there are too many, where least is lost.

        That is where those before and after are near each other for how long ago it was. What was
        imagined together goes together: it could not be gone on from without the others.
        """
        while self._lasting.size > self._room // 2:
            teams: dict[int, list[int]] = {}
            for node in sorted(self._lasting.states):
                teams.setdefault(min(self._tree[node].team, default=node), []).append(node)
            now, at = len(self._tree), [0, *teams, len(self._tree)]
            least = min(
                range(1, len(at) - 1), key=lambda i: (at[i + 1] - at[i - 1]) / (now - at[i])
            )
            for node in teams[at[least]]:
                self._lasting.take(node)


class _Shelf:
    """States by node, and how many steps they hold together: neighbours share most of theirs."""

    def __init__(self) -> None:
        self.states: dict[int, Any] = {}
        self._users: dict[int, int] = {}  # of each piece

    @property
    def size(self) -> int:
        return len(self._users)

    def put(self, node: int, state: Any) -> None:
        """Add a state as the last one, in place of one of the same node."""
        if node in self.states:
            self.take(node)
        self.states[node] = state
        for piece in _pieces(state):
            self._users[piece] = self._users.get(piece, 0) + 1

    def take(self, node: int) -> Any:
        """Take a state away and return it."""
        state = self.states.pop(node)
        for piece in _pieces(state):
            self._users[piece] -= 1
            if not self._users[piece]:
                del self._users[piece]
        return state


def _pieces(state: Any) -> frozenset[int]:
    """What a state holds of the past; one piece where it does not say."""
    return getattr(state, "pieces", None) or frozenset((id(state),))
