"""The instruments beside the imagination: how far it can be trusted, which experts fire.

They belong to the model's thread and look on: the frames are the same with and without them.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from worldmodel.viewer.reading import Reading
from worldmodel.world import World

if TYPE_CHECKING:  # they import torch, and the window is to open before that
    from worldmodel.viewer.routing import Routing, Watch
    from worldmodel.viewer.trust import Gauge

TREND = 64
"""Readings that the trend goes back."""


@dataclass(frozen=True)
class Dials:
    """What the instruments show at one instant.

    Attributes:
        measures: whether there are real frames to measure against.
        trust: the last reading; None before the first one and where nothing is imagined.
        trend: drift of the last readings, oldest first.
        watching: whether the experts are watched.
        routing: what they picked lately; None while unwatched, and where there are none.
    """

    measures: bool = False
    trust: Reading | None = None
    trend: tuple[float, ...] = ()
    watching: bool = False
    routing: "Routing | None" = None


class Instruments:
    """Reads off a model (`worldmodel.stream.Engine`) while it is played; None shows nothing."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._gauge: Gauge | None = None
        self._watch: Watch | None = None
        self._trend: deque[float] = deque(maxlen=TREND)
        self.dials = Dials(measures=bool(engine and len(engine.checkpoint.start_frames)))

    def begin(self) -> None:
        """Get ready for a step."""
        if self._gauge:
            self._gauge.passes.forget()
        if self._watch:
            self._watch.forget()

    def after(self, world: World, alone: bool) -> Reading | None:
        """Take note of a step; returns a reading where one was made.

        Args:
            world: as it is after the step.
            alone: False for a fork, whose frames are not measured.
        """
        reading = None
        if alone and self.dials.measures:
            if self._gauge:
                reading = self._gauge.read(world)
            else:
                from worldmodel.viewer.trust import Gauge

                self._gauge = Gauge(self._engine)  # after the first frame: that is not to wait
        if reading:
            self._trend.append(reading.drift)
        routing = self._watch.read() if self._watch else None
        trust = reading or self.dials.trust
        self.dials = replace(self.dials, trust=trust, trend=tuple(self._trend), routing=routing)
        return reading

    def forget(self) -> None:
        """Begin anew: the world is somewhere else now."""
        if self._gauge:
            self._gauge.forget()
        self._trend.clear()
        self.dials = replace(self.dials, trust=None, trend=())

    def watch(self) -> str:
        """Watch the experts, or no longer. Returns a sentence where there are none."""
        from worldmodel.viewer.routing import Watch, routed

        if not self._engine or not routed(self._engine.core):
            return "This model has no experts to choose from."
        if self._watch:
            self._watch.close()
        self._watch = None if self._watch else Watch(self._engine.core)
        self.dials = replace(self.dials, watching=self._watch is not None, routing=None)
        return ""

    def close(self) -> None:
        """Let go of the model."""
        for instrument in (self._gauge, self._watch):
            if instrument:
                instrument.close()
