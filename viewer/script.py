"""Plays a scenario in the viewer: one step of the model per step of the scenario."""

from worldmodel.evaluate.scenario import Cue, Scenario, compile_scenario
from worldmodel.viewer.engine import Advance, Engine, Rewind, Say, Snapshot


class ScriptPlayer:
    """Posts the next cue when the frame of the previous one is on screen.

    Args:
        scenario: what to play.
        period_s: least time between two steps, for people who watch; 0 for none.
    """

    def __init__(self, scenario: Scenario, period_s: float = 0.0) -> None:
        self.scenario = scenario
        self._period_s = period_s
        self._cues: tuple[Cue, ...] | None = None
        self._next = 0
        self._last_s = float("-inf")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the step in progress."""
        return self._cues[self._next - 1].keys if self._cues and self._next else ()

    def tick(self, engine: Engine, drawn: Snapshot, now_s: float) -> bool:
        """Go on if it is time. `drawn` is what is on screen. Returns whether the script is over.

        Raises:
            UserError: a cue that this world cannot follow.
        """
        if drawn.info is None:
            return False
        if self._cues is None:
            self._cues = compile_scenario(self.scenario, drawn.info.spec.actions)
        if drawn.steps_done < self._next or now_s - self._last_s < self._period_s:
            return False
        if self._next == len(self._cues):
            return True
        cue = self._cues[self._next]
        if cue.rewind:
            engine.post(Rewind(cue.rewind))
        if cue.clear:
            engine.post(Say(""))
        if cue.say is not None:
            engine.post(Say(cue.say))
        engine.post(Advance(cue.keys))
        self._next += 1
        self._last_s = now_s
        return False
