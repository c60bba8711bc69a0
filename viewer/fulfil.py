"""Whether an instruction is fulfilled, read off the imagined frames. No pygame here.

A turn is summed from what a small network reads of each step (`worldmodel.evaluate.pose`, the
checkpoint's `pose.safetensors`). About light and objects the model itself is asked a question of
the grammar; its answers err (docs/viewer.md), and they change no frame.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.envs.grammar import phrasings
from worldmodel.errors import UserError
from worldmodel.world import WorldSpec

if TYPE_CHECKING:  # it imports torch, and the window is to open before that
    from worldmodel.evaluate.pose import PoseReader
    from worldmodel.viewer.session import Session
    from worldmodel.viewer.tree import Node

TURN, AROUND = 90.0, 170.0
"""Degrees that fulfil a turn; the clips trained on turn 40 to 140 and 155 to 205."""

EVERY = 6
"""Steps from one time of asking to the next: an answer takes about as long as a step."""

IN_A_ROW = 2
"""Readings in a row that have to say so."""

# "is there a ...?" and "where is the ...?" name what is not there far more often.
_AHEAD, _NEAR = ("ahead?", "a {object}"), ("range?", "near")

_TURNS = ("left", "right", "around")
_ASKED = {
    "lighten": (("light?", "bright"),),  # "is it dark?" wavers in a dim place
    "darken": (("dark?", "yes"),),
    "look": (_AHEAD,),
    "find": (_AHEAD,),
    "goto": (_AHEAD, _NEAR),
    "toward": (_AHEAD, _NEAR),
}


@dataclass(frozen=True)
class Goal:
    """What fulfils an instruction.

    Attributes:
        kind: its production in the grammar (`worldmodel.envs.grammar.INSTRUCTIONS`).
        asked: questions to the model, in this order, each with the answer that it takes; none
            for a turn.
    """

    kind: str
    asked: tuple[tuple[str, str], ...] = ()

    def turned(self, degrees: float) -> bool:
        """Whether a turn of so many degrees, positive to the left, is enough."""
        if self.kind == "around":
            return abs(degrees) >= AROUND
        return (degrees if self.kind == "left" else -degrees) >= TURN


def goals(turns: bool, objects: Iterable[str]) -> dict[str, Goal]:
    """Return what fulfils which sentence: all wordings of the grammar, the held-out ones too.

    Args:
        turns: whether turns can be read.
        objects: names of the world's objects. Where there are none the model has not learned to
            answer about light and objects, and it is not asked.
    """
    found = {text: Goal(kind) for kind in _TURNS if turns for text in _wordings(kind)}
    for thing in objects:
        for kind, wanted in _ASKED.items():
            asked = tuple(
                (phrasings(question)[0].format(object=thing), answer.format(object=thing))
                for question, answer in wanted
            )
            found |= {text.format(object=thing): Goal(kind, asked) for text in _wordings(kind)}
    return found


class Fulfilment:
    """Watches one instruction after the other while it leads.

    It is fulfilled once it was seen unfulfilled and then `IN_A_ROW` readings say that it is.

    Args:
        load: gives what reads the motion of a step off frames, when the first turn is told; None
            where nothing does.
        objects: names of the world's objects, see `goals`.
    """

    def __init__(
        self, load: "Callable[[], PoseReader | None] | None", objects: Iterable[str]
    ) -> None:
        self._load = load
        self._reader: PoseReader | None = None
        self._goals = goals(load is not None, objects)
        self._at = -1  # the node that was read last
        self._begin()

    @staticmethod
    def of(engine: Any) -> "Fulfilment":
        """Return the one for a model (`worldmodel.stream.Engine`)."""
        folder, spec = engine.checkpoint.folder, engine.checkpoint.spec
        path = folder / "pose.safetensors" if folder else None
        load = partial(_load, path, spec) if path and path.exists() else None
        return Fulfilment(load, spec.objects)

    def read(self, session: "Session", sentence: str | None = None) -> bool:
        """Take note of the current frame, after each step. Returns whether that fulfils it.

        It is watched for the instruction, or for another `sentence`. A step under a key counts
        for nothing. A new sentence, even the same one again, begins anew, and so does a frame
        that does not follow the one before.
        """
        node = session.tree[session.at]
        if node.said is not None or node.parent != self._at:
            self._begin()
        self._at = node.id
        watched = session.instruction if sentence is None else sentence
        goal = self._goals.get(watched.lower())
        # What was said after the step leads only from the next one on.
        if goal is None or node.instruction != session.instruction or node.keys:
            return False
        met = self._ask(session, goal) if goal.asked else self._turn(session, goal, node)
        if met is None:
            return False
        self._armed = self._armed or not met
        self._row = self._row + 1 if met and self._armed else 0
        return self._row >= IN_A_ROW

    def _begin(self) -> None:
        self._armed, self._row = False, 0
        self._degrees = 0.0
        self._asking, self._rest = 0, 0  # number of the next question; steps before it

    def _turn(self, session: "Session", goal: Goal, node: "Node") -> bool | None:
        frames = session.triple(node.id)
        if frames is None:
            return None
        if self._load:
            self._reader, self._load = self._load(), None
        if self._reader is None:
            return None
        (motion,) = self._reader.motion(frames)
        self._degrees += float(motion[2])
        return goal.turned(self._degrees)

    def _ask(self, session: "Session", goal: Goal) -> bool | None:
        """Ask one question; returns what they all together say, once that is known."""
        if self._rest:
            self._rest -= 1
            return None
        question, wanted = goal.asked[self._asking]
        met = session.ask(question).text == wanted
        self._asking += 1
        if met and self._asking < len(goal.asked):
            return None  # the next one after the next step: no frame is to wait for two answers
        self._asking, self._rest = 0, EVERY - 1
        return met


def _load(path: Path, spec: WorldSpec) -> "PoseReader | None":
    from worldmodel.evaluate.pose import load_pose

    try:
        reader = load_pose(path)
    except UserError:  # a file that is damaged
        return None
    return reader if (reader.width, reader.height) == (spec.width, spec.height) else None


def _wordings(kind: str) -> tuple[str, ...]:
    return (*phrasings(kind), *phrasings(kind, held_out=True))
