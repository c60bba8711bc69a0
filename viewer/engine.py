"""The model in its own thread, behind a mailbox with the latest input.

The window posts what is held and what is asked for, and never waits; the thread steps the
session and publishes an immutable `Snapshot` after each change. Whatever goes wrong in the
thread is in the snapshot, so that a window can show it.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from worldmodel.errors import UserError
from worldmodel.viewer.commands import (
    Advance,
    Ask,
    Back,
    Calibrate,
    Chart,
    Command,
    Denoise,
    Drop,
    Experts,
    Fork,
    Jump,
    Leave,
    Live,
    Look,
    Name,
    Pause,
    Pick,
    Restart,
    Rewind,
    Say,
)
from worldmodel.viewer.instruments import Instruments
from worldmodel.viewer.journal import Journal
from worldmodel.viewer.meter import Quality, Rate
from worldmodel.viewer.outline import outline
from worldmodel.viewer.reading import Reading
from worldmodel.viewer.session import Answer, Moment, Session
from worldmodel.viewer.snapshot import Snapshot, begin_of, describe
from worldmodel.viewer.starts import Context, Reality
from worldmodel.world import World, WorldSpec

if TYPE_CHECKING:
    from worldmodel.viewer.trust import Gauge

TIMELINE = 40
"""Moments published for the timeline."""

MAX_DENOISE = 64


class Engine:
    """Runs a session in its own thread.

    Args:
        load: makes the world; called in the thread, so that the window opens at once.
        fps: steps per second aimed at; 0 for as many as possible, None for the world's own, to
            which then also a fresh key is held.
        start, context: where the session begins.
        beside: the real world to put beside the dream.
        lockstep: begin paused and take steps only for `Advance`, for scripts, until `Live`; a
            command that fails then counts as a failure instead of a notice.
        adapt: take fewer denoising steps where the pace is not kept.
        fulfil: drop an instruction that the frames fulfil, see `worldmodel.viewer.fulfil`; never
            in lockstep.
        journal: opens the session's file, once there is a world.
        history_bytes: memory for whole frames, see `Session`.
        gauge: makes the trust meter for the world's model, see `Instruments`.
        on_change: called from the thread after each new snapshot.
        on_step: called from the thread with each moment imagined, in order, none left out.
        on_answer: called from the thread with each answer.
        on_reading: called from the thread with how far the last moment can be trusted, where
            that was measured.
    """

    def __init__(
        self,
        load: Callable[[], World],
        *,
        fps: float | None = 0.0,
        start: int = 0,
        context: Callable[[WorldSpec], Context | None] | None = None,
        beside: Reality | None = None,
        lockstep: bool = False,
        adapt: bool = False,
        fulfil: bool = False,
        journal: Callable[[World], Journal] | None = None,
        history_bytes: float | None = None,
        gauge: "Callable[[Any], Gauge | None] | None" = None,
        on_change: Callable[[], None] | None = None,
        on_step: Callable[[Moment], None] | None = None,
        on_answer: Callable[[Moment, Answer], None] | None = None,
        on_reading: Callable[[Reading], None] | None = None,
    ) -> None:
        self._load, self._start, self._context, self._beside = load, start, context, beside
        self._lockstep = lockstep
        self._wanted_denoise = 0  # what the user asked for; 0: what the world came with
        self._open_journal, self._journal = journal, None
        self._history_bytes = history_bytes
        self._gauge = gauge
        self._fulfil = fulfil
        self._charting = False
        self._instruments = Instruments(None)
        self._taken = 0
        self._apart_s = 0.0
        self.session: Session | None = None
        """What is played, once there is a world; it belongs to the thread until that has ended."""
        self._period_s = 1.0 / fps if fps else 0.0
        self._own_pace = fps is None
        self._quality = Quality(self._period_s) if adapt and fps else None
        self._on_change, self._on_step, self._on_answer = on_change, on_step, on_answer
        self._on_reading = on_reading
        self._lock = threading.Condition()
        self._commands: deque[Command] = deque()
        self._held: tuple[str, ...] = ()
        self._tapped: set[str] = set()  # pressed since the last step, even if released again
        self._input_s: float | None = None
        self._stopping = False
        self._due_s = 0.0
        self._begin: str | None = None  # what this dream began with; None: look
        self._rate = Rate()
        self._snapshot = Snapshot()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.busy_since_s: float | None = None
        """When the step or answer in progress began (`time.perf_counter`), else None."""

    @property
    def snapshot(self) -> Snapshot:
        """The latest state; safe to read from any thread."""
        return self._snapshot

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """End the thread after the step in progress. Returns whether it ended in time."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def hold(self, keys: tuple[str, ...]) -> None:
        """Say which keys are held now; the latest word counts."""
        with self._lock:
            if keys == self._held:
                return
            self._tapped.update(set(keys) - set(self._held))
            self._held = keys
            self._mark_input()
            self._lock.notify()

    def post(self, command: Command) -> None:
        """Ask for something; commands are carried out in order."""
        with self._lock:
            self._commands.append(command)
            if isinstance(command, Advance | Say):
                self._mark_input()
            self._lock.notify()

    def _mark_input(self) -> None:
        if self._input_s is None:
            self._input_s = time.perf_counter()

    # Everything below runs in the thread.

    def _run(self) -> None:
        try:
            world = self._load()
        except Exception as error:
            self._fail(error)
            return
        try:
            if self._own_pace:
                self._period_s = 1.0 / world.spec.fps
            context = self._context(world.spec) if self._context else None
            session = Session(world, self._start, context, self._history_bytes, self._beside)
            self.session = session
            self._instruments = Instruments(getattr(world, "engine", None), self._gauge)
            session.on_recall = lambda done, of: self._recalled(session, done, of)
            status = "paused" if self._lockstep else "playing"
            told: dict[str, object] = {}
            try:
                self._journal = self._open_journal(world) if self._open_journal else None
            except UserError as error:  # play goes on, but nobody is to think that it is kept
                told = {"notice": str(error), "notice_s": time.perf_counter()}
            self._publish(session, status=status, info=describe(world), **told)
            while (command := self._next()) is not None:
                self._do(session, command)
        except Exception as error:
            self._fail(error)
        finally:
            self._close(world)

    def _close(self, world: World) -> None:
        try:
            if self._journal:
                self._journal.close()
            self._instruments.close()
            if self.session:
                self.session.close()
            world.close()
        except Exception as error:  # a recording that cannot be saved, for instance
            self._fail(error)

    def _next(self) -> Command | None:
        """Wait for what is to be done next: a command, or a step when one is due."""
        with self._lock:
            while not self._stopping:
                if self._commands:
                    self._taken += 1
                    return self._commands.popleft()
                wait_s = None
                if self._snapshot.status == "playing":
                    wait_s = self._due_s - time.perf_counter()
                    # A fresh key does not wait for the pace, unless that is the world's time.
                    if wait_s <= 0 or (self._tapped and not self._own_pace):
                        held = {*self._held, *self._tapped}
                        return Advance(tuple(sorted(held)))
                else:
                    self._tapped.clear()
                    self._input_s = None  # a pause is no latency
                busy = self._lockstep or self._snapshot.status == "failed"
                work_s = None if busy else self._instruments.work_s
                if work_s is not None and (wait_s is None or work_s < wait_s):
                    return Calibrate()
                self._lock.wait(wait_s)
        return None

    def _do(self, session: Session, command: Command) -> None:
        before = self._snapshot.steps_done
        try:
            self._carry_out(session, command)
            self._write(session, command)
            if self._snapshot.steps_done != before:
                self._measure(session)  # the frame is out and written: they are not to wait
        except UserError as error:
            if self._lockstep:
                self._fail(error)
            else:
                self._refuse(session, str(error), pause=isinstance(command, Advance))
        except Exception as error:
            self._fail(error)

    def _carry_out(self, session: Session, command: Command) -> None:
        snapshot = self._snapshot
        if snapshot.status == "failed" and not isinstance(command, Restart):
            return
        if isinstance(command, Rewind | Jump | Pick | Leave | Restart | Drop | Back):
            self._instruments.forget()
            self._begin = None
        match command:
            case Advance(keys):
                self._step(session, keys)
            case Say(text):
                session.say(text)
                self._publish(session)
            case Ask(text):
                self._answer(session, text)
            case Rewind(steps):
                self._busy(session.rewind, steps)
                self._publish(session, status="paused")
            case Jump(node):
                self._busy(session.jump, node)
                self._publish(session, status="paused")
            case Drop():
                self._busy(Session.drop, session)
                self._go_on(session, snapshot.status)
            case Back():
                self._busy(Session.back, session)
                self._publish(session, status="paused")
            case Fork(branches):
                session.fork(branches)
                self._go_on(session)
            case Pick(index):
                session.pick(index)
                self._go_on(session)
            case Leave():
                session.leave()
                self._publish(session, status="paused")
            case Name(node, name):
                session.tree.name(node, name)
                self._publish(session)
            case Chart(on):
                self._charting = on
                self._publish(session, status="paused")
            case Experts():
                notice = self._instruments.watch()
                self._publish(session, notice=notice, notice_s=time.perf_counter())
            case Calibrate():
                self._calibrate(session)
            case Live():
                self._lockstep = False
                self._publish(session, status="paused")
            case Look(at):
                self._publish(session, notice=at(session), notice_s=time.perf_counter())
            case Restart(offset):
                session.restart(offset)
                playing = not self._lockstep
                status = "playing" if playing else "paused"
                self._publish(session, status=status, failure=None, answer=None)
            case Pause(on):
                paused = snapshot.status != "paused" if on is None else on
                self._go_on(session, "paused" if paused else "playing")
            case Denoise(finer):
                self._wanted_denoise = self._denoise(session, finer)
                self._publish(session)

    def _answer(self, session: Session, question: str) -> None:
        answer = self._busy(session.ask, question)
        if self._on_answer:
            self._on_answer(session.now, answer)
        self._publish(session, answer=answer)

    def _busy(self, work: Callable[[Any], Any], given: Any) -> Any:
        self.busy_since_s = time.perf_counter()
        try:
            return work(given)
        finally:
            self.busy_since_s = None

    def _denoise(self, session: Session, finer: bool) -> int:
        """Change the world's denoising steps, where it has any. Returns them."""
        now = int(getattr(session.world, "denoise_steps", 0))
        if now:
            now = min(MAX_DENOISE, now * 2) if finer else max(1, now // 2)
            session.world.denoise_steps = now  # type: ignore[attr-defined]
        return now

    def _adapt(self, session: Session, step_s: float) -> None:
        """Let the denoising steps follow the machine."""
        now = self._snapshot.denoise_steps
        if self._quality is None or self._lockstep or not now:
            return
        self._wanted_denoise = self._wanted_denoise or now
        finer = self._quality.after(step_s, now, self._wanted_denoise)
        if finer is not None:
            self._denoise(session, finer)
            self._write(session, Denoise(finer))
            self._publish(session, wanted_denoise=self._wanted_denoise)

    def _go_on(self, session: Session, status: str = "playing") -> None:
        """Publish with a new pace; a script goes on by itself."""
        self._rate.restart()
        self._due_s = time.perf_counter()
        self._publish(session, status="paused" if self._lockstep else status)

    def _recalled(self, session: Session, done: int, of: int) -> None:
        """Tell how far a jump is that has to imagine steps again."""
        now_s = time.perf_counter()
        if done == of or now_s - self._snapshot.notice_s > 0.5:
            notice = f"imagining step {done} of {of} again" if done < of else ""
            self._tell(notice)

    def _write(self, session: Session, command: Command) -> None:
        """Keep the session's file up; one that cannot be written is said once."""
        if self._journal is None:
            return
        try:
            self._journal.write(command, session.at)
        except OSError as error:
            self._tell(f"The session is no longer being written: {error}.")
            self._journal = None

    def _step(self, session: Session, keys: tuple[str, ...]) -> None:
        with self._lock:
            input_s, self._input_s = self._input_s, None
            self._tapped.clear()
        begin_s = time.perf_counter()
        self.busy_since_s = begin_s
        self._instruments.begin()
        try:
            moments = session.advance_fork() if session.futures else (session.advance(keys),)
        finally:
            self.busy_since_s = None
        end_s = time.perf_counter()
        self._instruments.end()
        # The next step is due one period after this one was, not after it was taken; a model
        # that is behind by more than that does not catch up.
        was_due_s = min(self._due_s, begin_s)
        late = begin_s - was_due_s > self._period_s
        self._due_s = (begin_s if late else was_due_s) + self._period_s
        if self._on_step:
            for moment in moments:
                self._on_step(moment)
        self._publish(
            session,
            steps_done=self._snapshot.steps_done + 1,
            fps=self._rate.tick(end_s),
            step_ms=(end_s - begin_s) * 1e3,
            input_s=input_s,
        )
        self._adapt(session, end_s - begin_s)
        if session.ended and not self._lockstep:
            self._refuse(session, "The episode has ended; R starts again.", pause=True)

    def _measure(self, session: Session) -> None:
        """Read the instruments after a step."""
        before = self._instruments.dials
        if not session.futures:
            self._instruments.obey(session)
        step_s = self._snapshot.step_ms / 1e3
        reading = self._instruments.after(session.world, not session.futures, step_s)
        if self._lockstep and self._instruments.work_s is not None:
            begin_s = time.perf_counter()
            while self._instruments.work_s is not None:  # so that the same frames are always read
                self._instruments.work()
            self._apart_s += time.perf_counter() - begin_s
            self._rate.restart()  # that is not the pace of play
        elif self._instruments.overdue:
            self._instruments.work()
        if reading and self._on_reading:
            self._on_reading(reading)
        # What is read of many steps is published with the next one, while there is a next one.
        after = self._instruments.dials
        changed = replace(after, obeyed=before.obeyed) != before
        rests = self._snapshot.status == "paused" and not self._lockstep
        if changed or (rests and after != before):
            self._publish(session, input_s=self._snapshot.input_s)
        if self._fulfil and not self._lockstep and not session.futures:
            self._settle(session)

    def _settle(self, session: Session) -> None:
        """Drop the instruction if the current frame fulfils it, as the user would."""
        told = session.instruction
        if not told or not self._instruments.fulfilled(session):
            return
        session.say("")
        self._write(session, Say(""))
        self._publish(
            session,
            notice=f"done: {told}",
            notice_s=time.perf_counter(),
            input_s=self._snapshot.input_s,
        )

    def _calibrate(self, session: Session) -> None:
        """Use a moment in which there is nothing else to do."""
        self._instruments.work()
        if not self._instruments.dials.calibrating:
            self._publish(session, input_s=self._snapshot.input_s)

    def _tell(self, notice: str) -> None:
        """Tell the user while something goes on."""
        serial = self._snapshot.serial + 1
        told = {"serial": serial, "notice": notice, "notice_s": time.perf_counter()}
        self._snapshot = replace(self._snapshot, **told)
        if self._on_change:
            self._on_change()

    def _refuse(self, session: Session, notice: str, pause: bool) -> None:
        """Tell the user; after a step that cannot be taken also pause, or it would be retried."""
        status = "paused" if pause else self._snapshot.status
        self._publish(session, notice=notice, notice_s=time.perf_counter(), status=status)

    def _publish(self, session: Session, **changes: object) -> None:
        if self._begin is None:
            self._begin = begin_of(session)
        self._snapshot = replace(
            self._snapshot,
            **{
                "serial": self._snapshot.serial + 1,
                "commands_done": self._taken,
                "now": session.now,
                "timeline": session.timeline(TIMELINE),
                "futures": session.futures,
                "chart": outline(session) if self._charting else (),
                "journal": str(self._journal.path) if self._journal else "",
                "instruction": session.instruction,
                "dials": self._instruments.dials,
                "start": session.start,
                "begin": self._begin,
                "imagined": int(getattr(session.world, "length", 0)),
                "apart_s": self._apart_s,
                "wanted_fps": 1 / self._period_s if self._period_s else 0.0,
                "denoise_steps": getattr(session.world, "denoise_steps", 0),
                "input_s": None,
                **changes,
            },
        )
        if self._on_change:
            self._on_change()

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, UserError):
            traceback.print_exception(error, file=sys.stderr)
        serial = self._snapshot.serial + 1
        self._snapshot = replace(self._snapshot, serial=serial, status="failed", failure=error)
        if self._on_change:
            self._on_change()
