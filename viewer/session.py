"""A play session without a window: one world, its history, its instruction. No pygame here.

The engine calls a `Session` from its own thread; everything that leaves it is immutable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.actions import Action
from worldmodel.errors import UserError
from worldmodel.text import clean_sentence
from worldmodel.world import World

HISTORY_BYTES = 32 << 20
MIN_HISTORY, MAX_HISTORY = 64, 1800
"""Moments remembered; never more than a Dream can go back (`dream.MAX_HISTORY`)."""


@dataclass(frozen=True)
class Moment:
    """One frame of the session and what led to it.

    Attributes:
        number: steps since the start; 0 is the start itself.
        frame: uint8 RGB [H, W, 3].
        keys: names of the keys that were held.
        text: the exact text sent to the model for this frame.
        instruction: the instruction in force, or empty.
    """

    number: int
    frame: np.ndarray
    keys: tuple[str, ...] = ()
    text: str = ""
    instruction: str = ""


@dataclass(frozen=True)
class Context:
    """An own start for a Dream: frames uint8 [n, H, W, 3] and the n-1 actions between them."""

    frames: np.ndarray
    actions: tuple[Action, ...] = ()


def spread(moments: Sequence[Moment], most: int) -> tuple[Moment, ...]:
    """Return up to `most` of `moments`, over their whole length, the last one always.

    The spacing in steps is a power of two, so that a growing timeline stands still.
    """
    if most < 2 or not moments:
        return tuple(moments[-1:] if most == 1 else ())
    *past, now = moments
    kept, stride = past, 1
    while len(kept) > most - 1:  # ends: at last only number 0 is left
        stride *= 2
        kept = [moment for moment in past if moment.number % stride == 0]
    return (*kept, now)


class Session:
    """A world being played: step, say, rewind, start again.

    Args:
        world: what is played. Worlds other than a `Dream` may lack `say` and `rewind`; using
            them is then a `UserError`.
        start: number of the start scene.
        context: an own start instead of a numbered one.
    """

    def __init__(self, world: World, start: int = 0, context: Context | None = None) -> None:
        self.world = world
        self.instruction = ""
        self.ended = False
        self._context = context
        self._moments: list[Moment] = []
        self._start = start
        self.restart()

    @property
    def start(self) -> int:
        """Number of the start scene in use."""
        return self._start

    @property
    def now(self) -> Moment:
        """The current frame."""
        return self._moments[-1]

    @property
    def length(self) -> int:
        """Steps since the start."""
        return self.now.number

    def restart(self, offset: int = 0) -> Moment:
        """Begin again, `offset` start scenes further on. The instruction is dropped."""
        self._start = max(0, self._start + offset)
        if offset:
            self._context = None
        reset: Any = self.world.reset
        if self._context is not None:
            context = self._context
            if not _can(self.world, "say"):
                raise UserError(
                    f"The world '{self.world.spec.name}' cannot start from given frames; only an "
                    "imagined world can. Leave world= at 'dream', or start from a seed alone."
                )
            step = reset(frames=context.frames, actions=list(context.actions))
        else:
            step = reset(self._start)
        self.instruction, self.ended = "", False
        if _can(self.world, "say"):
            self.world.say(None)  # type: ignore[attr-defined]
        self._moments = [Moment(0, step.frame)]
        return self.now

    def advance(self, keys: Sequence[str] = ()) -> Moment:
        """Take one step under `keys`; without any, the instruction drives, else nothing is done."""
        if self.ended:
            raise UserError("The episode has ended; R starts again.")
        if keys or not self.instruction:
            action = self.world.spec.actions.press(keys)
            step, pressed = self.world.step(action), action.keys
        else:
            dream: Any = self.world
            step, pressed = dream.step(None), ()
        self.ended = step.terminated or step.truncated
        self._moments.append(
            Moment(self.length + 1, step.frame, pressed, step.text, self.instruction)
        )
        self._forget()
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
        self.instruction = clean
        return clean

    def rewind(self, steps: int) -> Moment:
        """Go back `steps` steps, at most to the oldest one remembered. The instruction stays.

        Raises:
            UserError: a world that cannot go back.
        """
        if not _can(self.world, "rewind"):
            raise UserError(f"The world '{self.world.spec.name}' cannot go back in time.")
        steps = min(steps, len(self._moments) - 1)
        if steps > 0:
            self.world.rewind(steps)  # type: ignore[attr-defined]
            del self._moments[-steps:]
            self.ended = False
            if _can(self.world, "say"):  # the past had another instruction, or none
                self.world.say(self.instruction or None)  # type: ignore[attr-defined]
        return self.now

    def timeline(self, most: int) -> tuple[Moment, ...]:
        """Return up to `most` moments over the whole memory, the last one being now."""
        return spread(self._moments, most)

    def _forget(self) -> None:
        """Drop the oldest moments: the memory of a long session stays flat."""
        most = max(MIN_HISTORY, min(MAX_HISTORY, HISTORY_BYTES // self.now.frame.nbytes))
        if len(self._moments) > most + most // 8:
            del self._moments[: len(self._moments) - most]


def _can(world: World, method: str) -> bool:
    return callable(getattr(world, method, None))
