"""The instruments beside the imagination: how far it can be trusted, which experts fire.

They belong to the model's thread and look on: the frames are the same with and without them.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from worldmodel.viewer.fulfil import Fulfilment
from worldmodel.viewer.obedience import Obedience, Obeyed
from worldmodel.viewer.reading import Reading

if TYPE_CHECKING:  # they import torch, and the window is to open before that
    from worldmodel.viewer.routing import Routing, Watch
    from worldmodel.viewer.session import Session
    from worldmodel.viewer.trust import Gauge

TREND = 64
"""Readings that the trend goes back."""

SHARE = 0.3
"""Of the time of the steps, where none is to spare: what calibration takes as long as it lasts."""


@dataclass(frozen=True)
class Dials:
    """What the instruments show at one instant.

    Attributes:
        measures: whether there are real frames to measure against.
        trust: the last reading; None before the first one and where nothing is imagined.
        trend: drift of the last readings, oldest first.
        watching: whether the experts are watched.
        routing: what they picked lately; None while unwatched, and where there are none.
        calibrating: whether the real frames are still being measured.
        denoise_ms: how much of the last step its denoising passes took; None where unknown.
        obeyed: whether the frames show the keys that were told; None before the first reading.
    """

    measures: bool = False
    trust: Reading | None = None
    trend: tuple[float, ...] = ()
    watching: bool = False
    routing: "Routing | None" = None
    calibrating: bool = False
    denoise_ms: float | None = None
    obeyed: Obeyed | None = None


class Instruments:
    """Reads off a model while it is played.

    Args:
        engine: the model (`worldmodel.stream.Engine`); None shows nothing.
        gauge: makes the gauge for it, or gives None as long as somebody else measures the real
            frames; by default one that has all to measure itself.
    """

    def __init__(self, engine: Any, gauge: "Callable[[Any], Gauge | None] | None" = None) -> None:
        self._engine = engine
        self._make_gauge = gauge
        self._gauge: Gauge | None = None
        self._watch: Watch | None = None
        self._obedience: Obedience | None = None
        self._fulfilment: Fulfilment | None = None
        self._shared = gauge is not None  # with others, whose passes are in the same batch
        self._trend: deque[float] = deque(maxlen=TREND)
        self._settings = (0, 1.0)  # of the last step
        self._costs_s: dict[str, float] = {}  # of each kind of the gauge's work
        self._credit_s = 0.0
        self.dials = Dials(measures=bool(engine and len(engine.checkpoint.start_frames)))

    def begin(self) -> None:
        """Get ready for a step."""
        if self._gauge:
            self._gauge.begin()
        if self._watch:
            self._watch.forget()

    def end(self) -> None:
        """Take the time of a step that is over."""
        passes_ms = self._gauge.denoise_ms if self._gauge and not self._shared else None
        self.dials = replace(self.dials, denoise_ms=passes_ms)

    def after(self, world: Any, alone: bool, step_s: float = 0.0) -> Reading | None:
        """Take note of a step; returns a reading where one was made.

        Args:
            world: as it is after the step.
            alone: False for a fork, whose frames are not measured.
            step_s: the time that it took.
        """
        reading = None
        if alone and self.dials.measures:
            watched = self._gauge or not self._shared  # else it has not seen the passes yet
            if not self._gauge:
                from worldmodel.viewer.trust import Gauge

                # After the first frame: that is not to wait.
                self._gauge = (self._make_gauge or Gauge)(self._engine)
            self._settings = world.denoise_steps, world.guidance
            reading = self._gauge.read(world) if self._gauge and watched else None
            self._credit_s += SHARE * step_s
            self._costs_s[""] = step_s
        if reading:
            self._trend.append(reading.drift)
        routing = self._watch.read() if self._watch else None
        calibrating = self.work_s is not None or (alone and self.dials.measures and not self._gauge)
        trust = None if calibrating else reading or self.dials.trust
        self.dials = replace(
            self.dials,
            calibrating=calibrating,
            trust=trust,
            trend=tuple(self._trend),
            routing=routing,
        )
        return reading

    def obey(self, session: "Session") -> None:
        """Look whether the current frame shows what was told; after the first frame is out."""
        if self._obedience is None and self._engine:
            self._obedience = Obedience.of(self._engine)
        obeyed = self._obedience.read(session) if self._obedience else None
        self.dials = replace(self.dials, obeyed=obeyed or self.dials.obeyed)

    def fulfilled(self, session: "Session") -> bool:
        """Look whether the current frame fulfils the instruction; after each step under one."""
        if self._fulfilment is None and self._engine:
            self._fulfilment = Fulfilment.of(self._engine)
        return self._fulfilment is not None and self._fulfilment.read(session)

    @property
    def work_s(self) -> float | None:
        """How long the next piece of calibration will take; None where none is left.

        What was not done yet is taken to be as long as a step.
        """
        kind = self._gauge.pending(self._settings) if self._gauge else ""
        return self._costs_s.get(kind, self._costs_s[""]) if kind else None

    @property
    def overdue(self) -> bool:
        """Whether a piece of it is to be done although there is no time to spare."""
        return self.work_s is not None and self._credit_s >= self.work_s

    def work(self) -> None:
        """Do the next piece of calibration."""
        assert self._gauge
        kind, begin_s = self._gauge.pending(self._settings), time.perf_counter()
        self._gauge.work()
        self._costs_s[kind] = time.perf_counter() - begin_s
        self._credit_s = max(0.0, self._credit_s - self._costs_s[kind])
        self.dials = replace(self.dials, calibrating=self.work_s is not None)

    def forget(self) -> None:
        """Begin anew: the world is somewhere else now."""
        if self._gauge:
            self._gauge.forget()
        self._trend.clear()
        self.dials = replace(self.dials, trust=None, trend=())

    def watch(self) -> str:
        """Watch the experts, or no longer. Returns a sentence where there are none."""
        from worldmodel.moe import routers
        from worldmodel.viewer.routing import Watch

        if not self._engine or not routers(self._engine.core):
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
