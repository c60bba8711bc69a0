"""A gamepad: the left stick and the cross drive as the arrow keys do, buttons are commands."""

from dataclasses import dataclass

import pygame

DEAD = 0.5
"""How far a stick is moved until it counts."""

BUTTONS = {0: "fork", 1: "rewind", 2: "step", 3: "map", 6: "restart", 7: "pause"}
"""Commands by button, as Xbox pads number them: A, B, X, Y, back, start."""


@dataclass(frozen=True)
class Pad:
    """Where a pad's stick and cross are.

    Attributes:
        stick, cross: (right, up), -1 to 1.
    """

    stick: tuple[float, float] = (0.0, 0.0)
    cross: tuple[int, int] = (0, 0)

    def moved(self, event: pygame.event.Event) -> "Pad":
        """Return the pad after an event of a stick or a cross; others change nothing."""
        if event.type == pygame.JOYAXISMOTION and event.axis == 0:
            return Pad((event.value, self.stick[1]), self.cross)
        if event.type == pygame.JOYAXISMOTION and event.axis == 1:
            return Pad((self.stick[0], -event.value), self.cross)  # down is positive there
        if event.type == pygame.JOYHATMOTION:
            return Pad(self.stick, event.value)
        return self

    @property
    def arrows(self) -> tuple[str, ...]:
        """The arrow keys that this stands for."""
        right, up = (max(s, c, key=abs) for s, c in zip(self.stick, self.cross, strict=True))
        found = {"right": right > DEAD, "left": right < -DEAD, "up": up > DEAD, "down": up < -DEAD}
        return tuple(arrow for arrow, held in found.items() if held)


class Pads:
    """The pads that are plugged in; pygame sends events only of those that somebody holds."""

    def __init__(self) -> None:
        pygame.joystick.init()
        self._open: dict[int, pygame.joystick.JoystickType] = {}

    def plug(self, event: pygame.event.Event) -> None:
        """Open a pad that was plugged in, or forget one that was taken away."""
        if event.type == pygame.JOYDEVICEADDED:
            pad = pygame.joystick.Joystick(event.device_index)
            self._open[pad.get_instance_id()] = pad
        elif event.type == pygame.JOYDEVICEREMOVED:
            self._open.pop(event.instance_id, None)
