"""Turning with the mouse: a stretch of its way presses the key that turns. No pygame here."""

from dataclasses import dataclass, replace

STRETCH = 24.0
"""Units of length (`Layout.unit`) that the mouse moves for one press."""

AHEAD = 3
"""Presses that may be due: a mouse is quicker than a model."""


@dataclass(frozen=True)
class Mouse:
    """The mouse while a button is held to turn.

    Attributes:
        on: whether the button is held.
        way: units to the right that no step was taken for yet.
        pressed: the arrow key of a press that no frame has answered yet, or ''.
    """

    on: bool = False
    way: float = 0.0
    pressed: str = ""

    @property
    def arrow(self) -> str:
        """The arrow key to press now: 'left', 'right', or '' for none."""
        if not self.on or self.pressed or abs(self.way) < STRETCH:
            return ""
        return "right" if self.way > 0 else "left"

    def moved(self, units: float) -> "Mouse":
        """Return the mouse further to the right."""
        most = STRETCH * (AHEAD + 0.99)
        return replace(self, way=min(max(self.way + units, -most), most)) if self.on else self

    def turned(self) -> "Mouse":
        """Return the mouse after a frame that answers its press."""
        done = STRETCH if self.pressed == "right" else -STRETCH
        return replace(self, way=self.way - done, pressed="")
