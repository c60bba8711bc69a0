"""The real world beside the dream: same start, same actions, step by step. No pygame here.

What the real world shows at a node of the tree follows from where it started and what was done
since; so it can be brought to any node by doing that again, and the tree needs nothing more. It
has a thread of its own and moves while the dream imagines. Where it cannot follow (a sentence
that is no action, a recording of which somebody left the path, the end of an episode) it waits,
and says why.
"""

import contextlib
import math
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from worldmodel.actions import Action
from worldmodel.errors import UserError
from worldmodel.evaluate.starts import CONTEXT_FRAMES
from worldmodel.viewer.film import Film
from worldmodel.viewer.starts import Context, Reality
from worldmodel.viewer.tree import Tree, action_of
from worldmodel.world import Step, World

TREND = 64
"""Steps that the trend of the PSNR goes back."""

CLOSE_S = 5.0

Pose = tuple[float, float, float]
"""x and y in metres, yaw in degrees."""


@dataclass(frozen=True)
class Sight:
    """What the real world shows beside a frame of the dream.

    Attributes:
        frame: uint8 RGB [H, W, 3].
        number: steps that the real world has taken since its own start.
        name: of the real world and that start.
        psnr: of the two frames, in dB; None where the real world waits.
        waits: why it does not follow; empty where it does.
        pose: x and y in metres, yaw in degrees; None where the world does not tell.
        dreamt: the pose that the dream is at, by what its frames show of the way since its start;
            None where nothing reads it off them.
        read: the same of the real frames: what the reading alone is wrong by.
        trend: PSNR of the last steps, oldest first.
    """

    frame: np.ndarray
    number: int
    name: str
    psnr: float | None = None
    waits: str = ""
    pose: Pose | None = None
    dreamt: Pose | None = None
    read: Pose | None = None
    trend: tuple[float, ...] = ()

    @property
    def pose_error(self) -> tuple[float, float] | None:
        """How far the dream's pose is from the real one: metres, and degrees from 0 to 180."""
        return None if self.waits else _poses_apart(self.pose, self.dreamt)

    @property
    def reading_error(self) -> tuple[float, float] | None:
        """The same of the pose that is read off the real frames."""
        return None if self.waits else _poses_apart(self.pose, self.read)


@dataclass(frozen=True)
class _Seen:
    """The real world at a node; its picture is on the film."""

    number: int
    psnr: float
    pose: Pose | None
    dreamt: Pose | None
    read: Pose | None
    over: bool


class Beside:
    """A real world that goes where the nodes of a tree go.

    Args:
        reality: what to open.
        dream: what is played.
        tree: the session's.
        imagined: its film.
        room: bytes for whole real frames.
    """

    def __init__(
        self, reality: Reality, dream: World, tree: Tree, imagined: Film, room: float
    ) -> None:
        self.reality = reality
        self._tree, self._imagined = tree, imagined
        self._film = Film(room, tree.is_stop)
        self._seen: dict[int, _Seen] = {}
        self._waits: dict[int, tuple[int, str]] = {}  # where, and why
        self._seeds: dict[int, int] = {}  # of the starts
        self._origins: dict[int, int] = {}  # starts of the dream in the middle of a real path
        self._at = -1  # node that the real world is at
        self._recent: deque[tuple[Action | None, np.ndarray]] = deque(maxlen=CONTEXT_FRAMES)
        self._first: tuple[Step, int] | None = None
        self._doing: Future[Step] | str = ""
        self._wanted = -1
        self._hand = _Hand()
        self._reader = reality.reader(dream)
        self._leads: dict[int, np.ndarray] = {}  # the frame before a start
        self._real: Any = self._hand.ask(partial(reality.open, dream.spec)).result()

    def begin(self, seed: int) -> Context:
        """Start the real world anew; returns what the dream begins with. `root` must follow.

        Raises:
            UserError: there is no such start.
        """
        first: Step = self._hand.ask(partial(self._reset, seed)).result()
        self._first = first, seed
        return Context(first.frame[None], source=self.reality.start(seed))

    def root(self, node: int) -> None:
        """The dream has begun at `node`, with what `begin` gave."""
        assert self._first is not None
        step, self._seeds[node] = self._first
        self._leads[node] = step.frame  # nothing moved before
        self._note(node, step, None)

    def here(self, node: int) -> tuple[Context, int]:
        """Return the last real frames up to where the real world is beside `node`, and that node.

        Raises:
            UserError: the real world cannot be brought back to there.
        """
        at = self._home(self.waits_at(node))
        self._hand.ask(partial(self._bring, at)).result()
        actions, frames = zip(*self._recent, strict=True)
        source = self.reality.start(self._seeds[self._start(at)], self._seen[at].number)
        return Context(np.stack(frames), actions[1:], source), at

    def root_here(self, node: int, origin: int) -> None:
        """The dream has begun at `node`, with what `here` gave."""
        self._origins[node] = origin
        self._leads[node] = self._recent[-2 if len(self._recent) > 1 else -1][1]
        self._film.add(node, 0, self._recent[-1][1])
        seen = self._seen[origin]
        pose = seen.pose
        self._seen[node] = _Seen(seen.number, self._psnr(node), pose, pose, pose, seen.over)

    def due(self, node: int) -> Action | None:
        """Return what a recording does after `node`; None where it ends or does not follow."""
        if not self.reality.recorded or node not in self._seen:
            return None
        self._hand.ask(partial(self._bring, self._home(node))).result()
        return self._real.due

    def step(self, node: int, action: Action | None, instruction: str = "") -> None:
        """Let the real world do what comes after `node`, in its own thread; `settle` must follow.

        Args:
            node: where the dream is.
            action: what is done; None where the instruction leads.
            instruction: the instruction in force.
        """
        self._doing = ""
        if node in self._waits:
            return
        if self._seen[node].over:
            self._doing = "The real episode ended here."
            return
        try:
            done = action or self._real.spec.actions.parse(instruction)
        except UserError:
            self._doing = "A sentence led from here on, which the real world does not follow."
            return
        self._doing = self._hand.ask(partial(self._do, self._home(node), done))

    def settle(self, node: int) -> None:
        """Wait for the step that leads to `node`, and compare the frames."""
        before = self._tree[node].parent
        reason = self._doing
        if isinstance(reason, Future):
            try:
                step = reason.result()
            except UserError as error:
                reason = str(error)
            else:
                self._note(node, step, self._action(node))
                return
        self._waits[node] = self._waits.get(before) or (before, reason)

    def reach(self, node: int) -> None:
        """Bring the real world to a node that may have been imagined without it."""
        todo = []
        here = node
        while here not in self._seen and here not in self._waits:
            todo.append(here)
            here = self._tree[here].parent
        for node in reversed(todo):
            given = self._tree[node]
            self.step(given.parent, action_of(given, self._real.spec.actions), given.instruction)
            self.settle(node)
        if node in self._seen:  # while nobody waits for it
            self._wanted = self._home(node)
            self._hand.ask(partial(self._bring_early, self._wanted))

    def waits_at(self, node: int) -> int:
        """Return the node that the real world is at beside `node`: the same, or where it waits."""
        while node not in self._seen:
            node = self._waits[node][0] if node in self._waits else self._tree[node].parent
        return node

    def sight(self, node: int) -> Sight:
        """Return what the real world shows beside a node."""
        at = self.waits_at(node)
        seen = self._seen[at]
        frame = self._film.whole(at)
        frame = self._film.small(at) if frame is None else frame
        frame = np.zeros((1, 1, 3), np.uint8) if frame is None else frame
        psnr = seen.psnr if at == node and math.isfinite(seen.psnr) else None
        waits = "" if at == node else self._waits.get(node, (at, "It waits for you."))[1]
        name = self.reality.label(self._seeds[self._start(at)])
        poses = seen.pose, seen.dreamt, seen.read
        return Sight(frame, seen.number, name, psnr, waits, *poses, self._trend(node))

    def close(self) -> None:
        """Close the real world; one that hangs is left to itself."""
        with contextlib.suppress(TimeoutError):
            self._hand.end(self._real.close, CLOSE_S)

    def _trend(self, node: int) -> tuple[float, ...]:
        values = []
        while node >= 0 and len(values) < TREND:
            if node in self._seen and math.isfinite(self._seen[node].psnr):
                values.append(self._seen[node].psnr)
            node = self._tree[node].parent
        return tuple(reversed(values))

    def _home(self, node: int) -> int:
        """Return the node at which the real world first was where it is at `node`."""
        while node in self._origins:
            node = self._origins[node]
        return node

    def _before(self, node: int) -> int:
        return self._home(self._tree[node].parent)

    def _start(self, node: int) -> int:
        """Return the root at which the real world started on its way to `node`."""
        while (node := self._home(node)) not in self._seeds:
            node = self._tree.ancestor(node, 0)
        return node

    def _action(self, node: int) -> Action:
        table, given = self._real.spec.actions, self._tree[node]
        return action_of(given, table) or table.parse(given.instruction)

    def _note(self, node: int, step: Step, action: Action | None) -> None:
        """Take note of the real world being at a node, after `action` or anew."""
        if action is None:
            self._recent.clear()
        self._recent.append((action, step.frame))
        self._at = node
        if node in self._seen:
            return
        number = 0 if action is None else self._seen[self._before(node)].number + 1
        self._film.add(node, number, step.frame)
        pose = step.facts.get("pose")
        there = None if pose is None else (float(pose[0]), float(pose[1]), float(pose[2]))
        dreamt = read = there
        if number:
            before = self._seen[self._tree[node].parent]
            dreamt = self._walked(node, self._imagined, before.dreamt)
            read = self._walked(node, self._film, before.read)
        over = step.terminated or step.truncated
        self._seen[node] = _Seen(number, self._psnr(node), there, dreamt, read, over)

    def _walked(self, node: int, film: Film, start: Pose | None) -> Pose | None:
        """Return where the step to a node leads from `start`, by what the frames show of it."""
        from worldmodel.evaluate.planning import integrate  # loads torch

        parent = self._tree[node].parent
        before = self._tree[parent].parent
        frames = [
            self._leads[parent] if before < 0 else film.whole(before),
            film.whole(parent),
            film.whole(node),
        ]
        if not (self._reader and start) or any(frame is None for frame in frames):
            return None
        (motion,) = self._reader.motion(np.stack(frames))  # type: ignore[arg-type]
        x, y, yaw = integrate([Action((), *map(float, motion))], start)[-1]
        return float(x), float(y), float(yaw)

    def _psnr(self, node: int) -> float:
        from worldmodel.evaluate.metrics import psnr  # loads torch

        real, imagined = self._film.whole(node), self._imagined.whole(node)
        if real is None or imagined is None or real.shape != imagined.shape:
            return math.nan
        return float(psnr(real, imagined))

    # What follows runs in the thread of the real world.

    def _reset(self, seed: int) -> Step:
        self._at = -1  # nowhere, until it is known which node that is
        return self._real.reset(seed)

    def _do(self, before: int, action: Action) -> Step:
        self._bring(before)
        return self._step(action)

    def _step(self, action: Action) -> Step:
        self._at = -1
        return self._real.step(action)

    def _bring(self, node: int, wanted: Callable[[], bool] = lambda: True) -> None:
        """Bring the real world to a node where it was before, by doing again what led there.

        It stops on the way as soon as that is no longer `wanted`.
        """
        todo, here = [], node
        while here != self._at and here not in self._seeds:
            todo.append(here)
            here = self._before(here)
        if here != self._at and wanted():
            self._note(here, self._reset(self._seeds[here]), None)
        for passing in reversed(todo):
            if not wanted():
                return
            action = self._action(passing)
            self._note(passing, self._step(action), action)

    def _bring_early(self, node: int) -> None:
        """Bring it to a node unless somebody went on to yet another one."""
        self._bring(node, lambda: node == self._wanted)


def _poses_apart(a: Pose | None, b: Pose | None) -> tuple[float, float] | None:
    """Return the distance in metres and the angle in degrees, 0 to 180, of two poses."""
    if a is None or b is None:
        return None
    return math.hypot(b[0] - a[0], b[1] - a[1]), abs((b[2] - a[2] + 180) % 360 - 180)


class _Hand:
    """A thread that carries out calls in their order; it does not keep the program alive."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._run, name="real", daemon=True).start()

    def ask(self, call: Callable[[], Any]) -> "Future[Any]":
        """Have something done; its result or error is in the future."""
        future: Future[Any] = Future()
        self._calls.put((future, call))
        return future

    def end(self, call: Callable[[], Any], timeout_s: float) -> None:
        """Do a last thing, and end."""
        last = self.ask(call)
        self._calls.put(None)
        last.result(timeout_s)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
