"""Bringing a dream back to any node of the tree, within a bounded memory. No pygame here.

A Dream remembers its own past, and its states are immutable and shared between forks. So a copy
is kept of each dream that was left behind; a node on its path is reached by going back in it.
The copies share the states of a common past; when they hold too many others, the ones used
longest ago are dropped. A node that none of them holds is imagined again from the recorded
inputs, exactly: in the same batches, from the nearest node that can be reached.

A sentence changes the state that it is said in. So the past of a dream has a node as it was
imagined ("untold") only where nothing was said before the next one.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from worldmodel.viewer.tree import Node, Tree, action_of

KEPT_STATES = 1024
"""States of abandoned futures; one is some 100 kB in doom-nano. A Dream bounds its own past."""

MAX_KEPT = 32


class Recall:
    """Dreams left behind, by the node that they are at.

    Args:
        tree: what they are nodes of.
        reset: `reset(dream, root)` brings a dream to the start that is the node `root`.
    """

    def __init__(self, tree: Tree, reset: Callable[[Any, int], object]) -> None:
        self._tree, self._reset = tree, reset
        self._kept: dict[int, tuple[Any, int]] = {}  # and its depth; in the order of use

    def keep(self, node: int, dream: Any) -> None:
        """Remember a dream that is at a node, untold, unless that can be reached already."""
        if self._holder(node, untold=True) is not None:
            return
        self._kept[node] = dream.fork(1)[0], _depth(dream)
        most = min(KEPT_STATES, getattr(dream, "history", KEPT_STATES))
        while len(self._kept) > 1 and (len(self._kept) > MAX_KEPT or self.states > most):
            del self._kept[next(iter(self._kept))]

    @property
    def states(self) -> int:
        """How many states the dreams hold together."""
        held: set[int] = set()
        for node, (_, depth) in self._kept.items():
            held.update(self._tree.path(node)[-1 - depth :])
        return len(held)

    def reach(
        self, target: int, dream: Any, on_step: Callable[[int, int], None] | None = None
    ) -> tuple[Any, bool]:
        """Return a dream that is at a node, and whether it is untold there.

        Args:
            target: id of the node.
            dream: any dream of the same model; it stays as it is.
            on_step: told how many of how many steps have been imagined again.
        """
        for untold in (True, False):
            if (found := self._held(target, untold)) is not None:
                return found, untold
        path = self._tree.path(target)
        nodes = [self._tree[node] for node in path]
        begin = next(
            (
                i
                for i in range(len(path) - 2, -1, -1)
                if self._leads_on(nodes[i], nodes[i + 1])
                and self._holder(path[i], self._goes_on(nodes[i + 1])) is not None
            ),
            -1,
        )
        if begin < 0:
            found, begin = dream.fork(1)[0], 0
            self._reset(found, path[0])
        else:
            found = self._held(path[begin], self._goes_on(nodes[begin + 1]))
        return self._again(found, nodes[begin:], on_step), True

    def _again(
        self, dream: Any, nodes: Sequence[Node], on_step: Callable[[int, int], None] | None
    ) -> Any:
        """Imagine nodes again; the first one is where the dream is."""
        dreams: list[Any] = []
        for done, (before, node) in enumerate(pairwise(nodes), start=1):
            team = [self._tree[member] for member in node.team] or [node]
            if self._leads_on(before, node):
                dreams = dream.fork(len(team)) if node.team else [dream]
            for member, its in zip(team, dreams, strict=True):
                its.denoise_steps = node.denoise_steps
                if member.said is not None:
                    its.say(member.said or None)
            actions = [action_of(member, dream.spec.actions) for member in team]
            if node.team:
                dream.batch_step(dreams, actions)
                dream = dreams[node.team.index(node.id)]
            else:
                dream.step(actions[0])
            if on_step:
                on_step(done, len(nodes) - 1)
        return dream

    def _leads_on(self, before: Node, node: Node) -> bool:
        """Whether all that was imagined together with `node` follows `before`."""
        return all(self._tree[member].parent == before.id for member in node.team)

    def _goes_on(self, node: Node) -> bool:
        """Whether a node, or one imagined with it, follows the one before it untold."""
        return any(self._tree[member].said is None for member in node.team or (node.id,))

    def _holder(self, node: int, untold: bool) -> int | None:
        """Return the node of a kept dream that can go back to a node, and there is untold."""
        number = self._tree[node].number
        for leaf, (_, depth) in reversed(self._kept.items()):
            back = self._tree[leaf].number - number
            if not (0 <= back <= depth and self._tree.ancestor(leaf, number) == node):
                continue
            after = self._tree[self._tree.ancestor(leaf, number + 1)]
            if not (untold and back and after.said is not None):
                return leaf
        return None

    def _held(self, node: int, untold: bool) -> Any:
        leaf = self._holder(node, untold)
        if leaf is None:
            return None
        self._kept[leaf] = kept = self._kept.pop(leaf)  # used last
        dream = kept[0].fork(1)[0]
        dream.rewind(self._tree[leaf].number - self._tree[node].number)
        return dream


def _depth(dream: Any) -> int:
    """Return how many steps a dream can go back."""
    probe = dream.fork(1)[0]
    probe.rewind(dream.length)
    return dream.length - probe.length
