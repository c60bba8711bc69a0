"""Plays a scenario or a session in the viewer, a step of the model per step of the script."""

from collections.abc import Sequence

from worldmodel.evaluate.cues import Cue, compile_scenario
from worldmodel.evaluate.scenario import Scenario
from worldmodel.viewer.commands import (
    Advance,
    Ask,
    Branch,
    Command,
    Fork,
    Jump,
    Live,
    Pick,
    Rewind,
    Say,
)
from worldmodel.viewer.playable import Playable
from worldmodel.viewer.snapshot import Snapshot


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
        self._forked = False
        self._awaited = 0  # commands that have to be carried out before the end
        self._last_s = float("-inf")

    progress = ""
    """What to say about how far it is: nothing."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the step in progress."""
        return self._cues[self._next - 1].keys if self._cues and self._next else ()

    def tick(self, engine: Playable, drawn: Snapshot, now_s: float) -> bool:
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
            if self._forked:
                self._forked, self._awaited = False, drawn.commands_done + 1
                engine.post(Pick(0))
            return drawn.commands_done >= self._awaited
        cue = self._cues[self._next]
        if cue.pick and self._forked:
            self._forked = False
            engine.post(Pick(0))
        if cue.fork:
            self._forked = True
            engine.post(Fork(tuple(Branch(branch.keys, branch.say) for branch in cue.fork)))
        elif not self._forked:
            self._say(engine, cue)
        engine.post(Advance(cue.keys))
        self._next += 1
        self._last_s = now_s
        return False

    def _say(self, engine: Playable, cue: Cue) -> None:
        """Post what comes before the step of a cue."""
        if cue.rewind:
            engine.post(Rewind(cue.rewind))
        if cue.clear:
            engine.post(Say(""))
        if cue.say is not None:
            engine.post(Say(cue.say))
        for question in cue.ask:
            engine.post(Ask(question))


class SessionPlayer:
    """Plays what a session file holds, as fast as the model goes, and then lets a person go on.

    Args:
        commands: what was done.
        node: name or number of the frame to end at; empty for where the session ended.
        live: whether a person goes on afterwards.
    """

    def __init__(self, commands: Sequence[Command], node: str = "", live: bool = False) -> None:
        self._commands, self._node, self.live = list(commands), node, live
        self._told = not live
        self._next = 0
        self._wanted: int | None = None  # what will have been carried out
        self.keys: tuple[str, ...] = ()
        """The keys of the step in progress."""

    @property
    def progress(self) -> str:
        """How far it is, for a person who waits to go on."""
        if not self.live:
            return ""
        return f"playing the session again, {self._next} of {len(self._commands)}"

    def stop(self) -> None:
        """Leave out what is still to come."""
        del self._commands[self._next :]
        self._node = ""

    def tick(self, engine: Playable, drawn: Snapshot, now_s: float) -> bool:
        """Go on if the last command is on screen. Returns whether all is over."""
        if drawn.info is None:
            return False
        if self._wanted is None:
            self._wanted = drawn.commands_done
        if drawn.commands_done < self._wanted:
            return False
        if self._next < len(self._commands):
            command = self._commands[self._next]
            self.keys = command.keys if isinstance(command, Advance) else ()
            self._next += 1
        elif self._node and engine.session:
            command, self._node = Jump(engine.session.tree.find(self._node)), ""
        elif not self._told:
            command, self._told = Live(), True
        else:
            return True
        engine.post(command)
        self._wanted += 1
        return False
