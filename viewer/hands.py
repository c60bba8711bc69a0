"""What hands hold: keys, a pad's stick and cross, the mouse; as keys of the world."""

from dataclasses import replace

import pygame

from worldmodel.viewer.keys import Binding, Keymap
from worldmodel.viewer.mouse import Mouse
from worldmodel.viewer.pad import Pad
from worldmodel.viewer.playable import Playable
from worldmodel.viewer.snapshot import Snapshot


class Hands:
    """Keeps what is held.

    Args:
        bindings: the window's commands.

    Attributes:
        keymap: what the keys do; another one once there is a world.
    """

    def __init__(self, bindings: tuple[Binding, ...]) -> None:
        self.keymap = Keymap(None, bindings)
        self._down: set[int] = set()
        self._held: dict[int, str] = {}  # physical key -> the action table's key
        self._pad, self._mouse = Pad(), Mouse()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the world that are held."""
        ways = self.keymap.ways
        pad = (ways[arrow] for arrow in self._pad.arrows if arrow in ways)
        return tuple(sorted({*self._held.values(), *pad}))

    def press(self, key: int) -> bool:
        """Take note of a physical key; returns whether it was down already, and repeats."""
        repeated = key in self._down
        self._down.add(key)
        return repeated

    def hold(self, key: int, action: str) -> None:
        """Hold a key of the world."""
        self._held[key] = action

    def lift(self, key: int) -> bool:
        """Let go of a physical key; returns whether it held one of the world."""
        self._down.discard(key)
        return self._held.pop(key, None) is not None

    def release(self) -> None:
        """Let go of all keys: their KEYUP will go elsewhere."""
        self._down.clear()
        self._held.clear()
        self._mouse = Mouse()

    def tilt(self, event: pygame.event.Event) -> tuple[str, ...]:
        """Take an event of a pad's stick or cross; returns the arrows that are new."""
        before, self._pad = self._pad.arrows, self._pad.moved(event)
        return tuple(arrow for arrow in self._pad.arrows if arrow not in before)

    def slide(self, event: pygame.event.Event, unit: float) -> None:
        """Take an event of the mouse, which turns while its right button is held."""
        if event.type == pygame.MOUSEMOTION:
            self._mouse = self._mouse.moved(event.rel[0] / unit)
        elif event.button == 3:
            self._mouse = Mouse(on=event.type == pygame.MOUSEBUTTONDOWN)

    def turn(self, engine: Playable, drawn: Snapshot) -> None:
        """Press what turns as the mouse does, once for each frame that shows it."""
        if drawn.status != "playing" or drawn.futures or not self.keymap.turns:
            self._mouse = Mouse(self._mouse.on)  # that is not made up for later
        elif key := self.keymap.ways.get(self._mouse.arrow):
            self._mouse = replace(self._mouse, pressed=self._mouse.arrow)
            engine.hold(tuple(sorted({*self.keys, key})))
            engine.hold(self.keys)

    def answered(self, keys: tuple[str, ...]) -> None:
        """A frame that these keys led to is on screen."""
        if self._mouse.pressed and self.keymap.ways[self._mouse.pressed] in keys:
            self._mouse = self._mouse.turned()
