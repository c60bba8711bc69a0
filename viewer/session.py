"""A play session without a window: one world, the tree of its futures, its instruction.

No pygame here. The engine calls a `Session` from its own thread; everything that leaves it is
immutable. How a world is brought back to any frame of the tree is in `worldmodel.viewer.recall`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worldmodel.actions import Action
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Start
from worldmodel.text import clean_sentence
from worldmodel.viewer.beside import Beside, Sight
from worldmodel.viewer.commands import Branch
from worldmodel.viewer.film import Film
from worldmodel.viewer.recall import Recall
from worldmodel.viewer.starts import Context, Reality
from worldmodel.viewer.tree import Input, Tree
from worldmodel.world import World

HISTORY_BYTES = 24 << 20
"""Whole frames kept; of older ones a small picture is."""

MAX_BRANCHES = 9


@dataclass(frozen=True)
class Moment:
    """One frame of the session and what led to it.

    Attributes:
        number: steps since the start; 0 is the start itself.
        frame: uint8 RGB [H, W, 3]; of a moment long past, a smaller picture.
        keys: names of the keys that were held.
        text: the exact text sent to the model for this frame.
        instruction: the instruction in force, or empty.
        node: number of the frame in the session's tree.
        branch: 0, or which branch of an open fork it belongs to, from 1, of how many `branches`.
        sight: what the real world shows beside it, where there is one; of the current frame only.
    """

    number: int
    frame: np.ndarray
    keys: tuple[str, ...] = ()
    text: str = ""
    instruction: str = ""
    node: int = 0
    branch: int = 0
    branches: int = 0
    sight: Sight | None = None


@dataclass(frozen=True)
class Answer:
    """What the model says to a question about a frame.

    Attributes:
        number: steps since the start of the frame asked about.
        question: as it was asked.
        text: what was said.
    """

    number: int
    question: str
    text: str


@dataclass(frozen=True)
class Future:
    """A branch of the open fork as it is now: what drives it, its frame, how long it has run."""

    branch: Branch
    now: Moment
    steps: int


@dataclass
class _Life:
    """A branch that runs: its dream, its node, and the sentence given since that node."""

    branch: Branch
    dream: Any
    at: int
    said: str | None


class Session:
    """A world being played: step, say, rewind, fork, pick, jump, start again.

    Args:
        world: what is played. Worlds other than a `Dream` may lack `say`, `rewind` and `fork`;
            using them is then a `UserError`.
        start: number of the start scene.
        context: an own start instead of a numbered one.
        history_bytes: memory for whole frames.
        beside: the real world to put beside a Dream, which then begins with its first frame.

    Raises:
        UserError: a real world that is not there or does not fit.
    """

    def __init__(
        self,
        world: World,
        start: int = 0,
        context: Context | None = None,
        history_bytes: float | None = None,
        beside: Reality | None = None,
    ) -> None:
        self.world = world
        self.tree = Tree()
        room = HISTORY_BYTES if history_bytes is None else history_bytes
        self.film = Film(room, self.tree.is_stop)
        self.instruction = ""
        self.ended = False
        self.on_recall: Callable[[int, int], None] | None = None
        """Called with how many of how many steps a jump has imagined again."""
        # The world's own past is a line, and the session's a tree: it keeps that itself.
        self._recall = Recall(self.tree, self._reset, getattr(world, "history", 1))
        if hasattr(world, "history"):
            world.history = 1  # type: ignore[attr-defined]
        self._contexts: dict[int, Context] = {}  # of the starts that have one
        self._context = context
        self._start = start
        self._said: str | None = None  # given since the current frame
        self._lives: list[_Life] = []
        self._path: list[int] = []
        self._shown: Moment | None = None
        self._beside = Beside(beside, world, self.tree, self.film, room) if beside else None
        try:
            self.restart()
        except BaseException:
            self.close()
            raise

    @property
    def start(self) -> int:
        """Number of the start scene in use."""
        return self._start

    @property
    def at(self) -> int:
        """Id of the current node; while a fork is open, the one that it was opened at."""
        return self._path[-1]

    @property
    def now(self) -> Moment:
        """The current frame."""
        if self._shown is None or self._shown.node != self.at:
            sight = self._beside.sight(self.at) if self._beside else None
            self._shown = replace(self.moment(self.at), sight=sight)
        return self._shown

    @property
    def length(self) -> int:
        """Steps since the start."""
        return self.tree[self.at].number

    @property
    def futures(self) -> tuple[Future, ...]:
        """The branches of the open fork; empty where none is open."""
        found = []
        for i, life in enumerate(self._lives, start=1):
            now = replace(self.moment(life.at), branch=i, branches=len(self._lives))
            found.append(Future(life.branch, now, now.number - self.length))
        return tuple(found)

    def moment(self, node: int) -> Moment:
        """Return a node with its picture; black where that is gone."""
        given = self.tree[node]
        frame = self.film.whole(node)
        if frame is None:
            frame = self.film.small(node)
        if frame is None:
            frame = np.zeros((1, 1, 3), np.uint8)
        return Moment(given.number, frame, given.keys, given.text, given.instruction, node)

    def triple(self, node: int) -> np.ndarray | None:
        """Return the frames uint8 [3, H, W, 3] of the step to a node, and the one before that.

        None where one of them is gone, or was never there.
        """
        parent = self.tree[node].parent
        before = self.tree[parent].parent if parent >= 0 else -1
        frames = [self.film.whole(at) for at in (before, parent, node)]
        return None if any(frame is None for frame in frames) else np.stack(frames)  # type: ignore[arg-type]

    def start_of(self, node: int) -> Start:
        """Return what a scenario calls the start of the path to a node.

        Raises:
            UserError: it has no name for it.
        """
        context = self._contexts.get(self.tree.ancestor(node, 0))
        if context is None:
            return Start(seed=self.tree[node].start)
        if context.source is None:
            raise UserError(
                "This dream began in the middle of a walk through the real world, which a "
                "scenario cannot name. The session's file has all of it."
            )
        return context.source

    def restart(self, offset: int = 0) -> Moment:
        """Begin again, `offset` start scenes further on. The instruction is dropped."""
        self._lives = []
        start = max(0, self._start + offset)
        context = None if offset else self._context
        if context and not _can(self.world, "say"):
            raise UserError(
                f"The world '{self.world.spec.name}' cannot start from given frames; only an "
                "imagined world can. Leave world= at 'dream', or start from a seed alone."
            )
        if self._beside:
            context = self._beside.begin(start)
        root = self._begin(start, context)
        if self._beside:
            self._beside.root(root)
        return self.now

    def drop(self) -> Moment:
        """Let the dream begin anew from the real frames up to now. The instruction is dropped.

        Raises:
            UserError: there is no real world beside the dream.
        """
        beside = self._real()
        self._lives = []
        context, origin = beside.here(self.at)
        beside.root_here(self._begin(self._start, context), origin)
        return self.now

    def back(self) -> Moment:
        """Go back to where the real world waits; if it does not, to where this dream began.

        Raises:
            UserError: there is no real world beside the dream.
        """
        at = self._real().waits_at(self.at)
        return self.jump(at if at != self.at else self.tree.ancestor(self.at, 0))

    def _begin(self, start: int, context: Context | None) -> int:
        """Bring the world to a start, as a new one of the tree. Returns its node."""
        frame = _reset(self.world, start, context)
        self._start, self._context = start, context
        root = self.tree.root(start)
        if context:
            self._contexts[root.id] = context
        self.instruction, self.ended, self._said = "", False, None
        self._path = [root.id]
        self._note(root.id, self.world, frame)
        return root.id

    def advance(self, keys: Sequence[str] = ()) -> Moment:
        """Take one step under `keys`; without any, the instruction drives, else nothing is done.

        A recording beside the dream leads where neither keys nor an instruction do.
        """
        if self.ended:
            raise UserError("The episode has ended; R starts again.")
        action = self._action(keys, self.instruction)
        if self._beside:
            if not keys and not self.instruction:
                action = self._beside.due(self.at) or action
            self._beside.step(self.at, action, self.instruction)
        step = self.world.step(action)  # type: ignore[arg-type]
        self.ended = step.terminated or step.truncated
        node = self.tree.grow(self.at, self._input(action, self._said), step.text)
        self._said = None
        self._path.append(node.id)
        self._note(node.id, self.world, step.frame)
        if self._beside:
            self._beside.settle(node.id)
        return self.now

    def say(self, text: str) -> str:
        """Set the instruction; an empty one clears it. Returns the instruction in force.

        Raises:
            UserError: a sentence that is too long or has control characters only, or a world
                that does not listen.
        """
        clean = clean_sentence(text) if text.strip() else ""
        if not _can(self.world, "say"):
            raise UserError(f"The world '{self.world.spec.name}' does not listen to sentences.")
        self.world.say(clean or None)  # type: ignore[attr-defined]
        self.instruction = self._said = clean
        return clean

    def ask(self, question: str) -> Answer:
        """Ask about the current frame; the rollout stays as it is.

        Raises:
            UserError: a question that is refused, or a world that does not answer.
        """
        clean = clean_sentence(question)
        if not _can(self.world, "answer"):
            raise UserError(f"The world '{self.world.spec.name}' does not answer questions.")
        text = self.world.answer(clean)  # type: ignore[attr-defined]
        return Answer(self.length, clean, text)

    def rewind(self, steps: int) -> Moment:
        """Go back `steps` steps, at most to the start. The instruction stays.

        Raises:
            UserError: a world that cannot go back.
        """
        if not _can(self.world, "fork"):
            raise UserError(f"The world '{self.world.spec.name}' cannot go back in time.")
        steps = min(max(steps, 0), self.length)
        return self.jump(self.tree.ancestor(self.at, self.length - steps))

    def jump(self, node: int) -> Moment:
        """Go to any node; what is left behind stays in the tree. The instruction stays.

        Raises:
            UserError: no such node, or a world that cannot do that.
        """
        target = self.tree[node]
        if not _can(self.world, "fork"):
            raise UserError(f"The world '{self.world.spec.name}' cannot go back in time.")
        if target.id == self.at and not self._lives:
            return self.now
        self._lives = []
        world: Any = self.world
        if target.id != self.at:
            world = self._recall.reach(target.id, world, self.on_recall)
            world.denoise_steps = _denoise_steps(self.world)
        self.world = world
        self._start = target.start
        self._context = self._contexts.get(self.tree.ancestor(target.id, 0))
        self.ended = False
        self._path = self.tree.path(target.id)
        self.film.add(target.id, target.number, world.frame)
        if self._beside:
            self._beside.reach(target.id)
        world.say(self.instruction or None)  # the past had another one, or none
        self._said = self.instruction if self.instruction or target.instruction else None
        return self.now

    def fork(self, branches: Sequence[Branch]) -> tuple[Future, ...]:
        """Open futures side by side; of an open fork, anew from where it was opened.

        A branch under keys runs without the instruction, one under a sentence has that instead.

        Raises:
            UserError: not 2 to 9 branches, an unknown key, a sentence that is refused, or a
                world that cannot fork.
        """
        if not (_can(self.world, "fork") and _can(self.world, "batch_step")):
            raise UserError(f"The world '{self.world.spec.name}' has one future only.")
        if not 2 <= len(branches) <= MAX_BRANCHES:
            raise UserError(
                f"A fork has 2 to {MAX_BRANCHES} branches, not {len(branches)}. Press keys of the "
                "world to add or drop them."
            )
        if self.ended:
            raise UserError("The episode has ended; R starts again.")
        lives = []
        world: Any = self.world
        for branch, dream in zip(branches, world.fork(len(branches)), strict=True):
            branch = replace(branch, say=clean_sentence(branch.say) if branch.say else "")
            self.world.spec.actions.press(branch.keys)  # refuses unknown keys by name
            said = self._said
            if branch.say != self.instruction:
                dream.say(branch.say or None)
                said = branch.say
            lives.append(_Life(branch, dream, self.at, said))
        self._lives = lives
        return self.futures

    def advance_fork(self) -> tuple[Moment, ...]:
        """Take one step in every branch, as one batch."""
        lives = self._lives
        actions = [self._action(life.branch.keys, life.branch.say) for life in lives]
        world: Any = self.world
        for life in lives:
            life.dream.denoise_steps = _denoise_steps(world)
        steps = world.batch_step([life.dream for life in lives], actions)
        given = [
            replace(self._input(action, life.said), instruction=life.branch.say)
            for life, action in zip(lives, actions, strict=True)
        ]
        nodes = self.tree.grow_team(
            [life.at for life in lives], given, [step.text for step in steps]
        )
        for life, node, step in zip(lives, nodes, steps, strict=True):
            life.at, life.said = node.id, None
            self._note(node.id, life.dream, step.frame)
        return tuple(future.now for future in self.futures)

    def pick(self, index: int) -> Moment:
        """Go on with a branch of the open fork; its sentence, or none, is the instruction now.

        Raises:
            UserError: no fork is open, or it has no such branch.
        """
        if not 0 <= index < len(self._lives):
            raise UserError(f"There is no branch {index + 1} to take.")
        life = self._lives[index]
        self._lives = []
        self.world = life.dream
        self.instruction, self._said = life.branch.say, life.said
        self._path = self.tree.path(life.at)
        if self._beside:
            self._beside.reach(life.at)
        return self.now

    def leave(self) -> Moment:
        """Close the fork; its branches stay in the tree."""
        self._lives = []
        return self.now

    def timeline(self, most: int) -> tuple[Moment, ...]:
        """Return up to `most` moments over the whole path that have a picture, now being last."""
        path = self._path
        stride = 1
        while len(path) > 1 and -(-(len(path) - 1) // stride) > most - 1:
            stride *= 2
        seen = [node for node in path[:-1:stride] if node in self.film]
        return (*(self.moment(node) for node in seen), self.now)

    def clip(self, steps: int) -> list[np.ndarray]:
        """Return the frames of the last `steps` steps of the path, oldest first."""
        frames: list[np.ndarray] = []
        for node in reversed(self._path[-max(1, steps) :]):
            frame = self.film.whole(node)
            if frame is None:
                break
            frames.append(frame)
        return frames[::-1]

    def close(self) -> None:
        """Close what the session opened itself: the real world beside the dream."""
        if self._beside:
            self._beside.close()

    def _real(self) -> Beside:
        if not self._beside:
            raise UserError("No real world is beside this dream; beside=doom would put one there.")
        return self._beside

    def _input(self, action: Action | None, said: str | None) -> Input:
        """Return what leads to the next node."""
        keys = action.keys if action else ()
        moved = action if action and not action.keys and not action.idle else None
        return Input(keys, said, self.instruction, _denoise_steps(self.world), moved)

    def _note(self, node: int, world: World, frame: np.ndarray) -> None:
        """Remember a node that has just come: its frame, and the world if that can be forked."""
        self.film.add(node, self.tree[node].number, frame)
        if _can(world, "fork"):
            self._recall.keep(node, world)

    def _action(self, keys: Sequence[str], instruction: str) -> Action | None:
        return self.world.spec.actions.press(keys) if keys or not instruction else None

    def _reset(self, world: World, root: int) -> None:
        _reset(world, self.tree[root].start, self._contexts.get(root))


def _reset(world: World, start: int, context: Context | None) -> np.ndarray:
    """Bring a world to a start, without an instruction. Returns its frame."""
    reset: Any = world.reset
    if context is None:
        step = reset(start)
    else:
        step = reset(start, frames=context.frames, actions=list(context.actions))
    if _can(world, "say"):
        world.say(None)  # type: ignore[attr-defined]
    return step.frame


def _denoise_steps(world: World) -> int:
    return int(getattr(world, "denoise_steps", 0))


def _can(world: World, method: str) -> bool:
    return callable(getattr(world, method, None))
