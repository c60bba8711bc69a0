"""The sessions of a server: who plays what, and what is still to be sent to them.

Everything here runs in the server's event loop, save the engines, which have their threads.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from worldmodel.errors import UserError
from worldmodel.viewer.commands import Chart, Command, Look, Pause
from worldmodel.viewer.engine import Engine, Snapshot
from worldmodel.viewer.journal import Head, scenario_of
from worldmodel.viewer.remote_shot import Shot
from worldmodel.viewer.remote_wire import IN_FLIGHT, Hold, Path
from worldmodel.viewer.session import Session

MOST_WAITING = 16
"""Commands that may wait for the model; more are not taken."""

MOST_UNSENT = 32
"""Small messages that may wait for a viewer that does not read."""

MOST_SCENARIO = 1 << 20
"""Bytes of a scenario that is sent."""

MAKES_ROOM_S = 15.0
"""After so long a session that nobody plays gives its place to who would find none."""

MOST_ENDING = 8
"""Sessions that were ended and still finish a step, beside those that are played."""

OPENING_SHARE, OPENING_BURST_S = 0.1, 5.0
"""What part of the time the model may spend on beginning new sessions, and how much at once:
whoever begins one after the other is not to slow down those who play."""


class Bucket:
    """A budget that fills at a steady rate, for what somebody may do.

    Args:
        rate: how much a second.
        most: how much can be saved up, and is there at first.
    """

    def __init__(self, rate: float, most: float) -> None:
        self._rate, self._most, self._left = rate, most, most
        self._then_s = time.monotonic()

    def take(self, amount: float = 1.0) -> bool:
        """Spend some of it, if there is enough; returns whether there was."""
        now_s = time.monotonic()
        self._left = min(self._most, self._left + self._rate * (now_s - self._then_s))
        self._then_s = now_s
        enough = self._left >= amount
        self._left -= amount * enough
        return enough


class Outbox:
    """What is to be sent to a viewer: small messages in order, and of states the latest alone.

    Attributes:
        stuck: whether the viewer left too much unread.
    """

    def __init__(self) -> None:
        self.stuck = False
        self._small: deque[str] = deque()
        self._shot: Shot | None = None
        self._on_way: deque[int] = deque()  # serials that were sent and have not arrived
        self._ready = asyncio.Event()

    def put(self, message: str) -> None:
        """Send a small message, unless the same one waits already."""
        if message in self._small:
            return
        self.stuck = self.stuck or len(self._small) >= MOST_UNSENT
        if not self.stuck:
            self._small.append(message)
        self._ready.set()

    def show(self, shot: Shot) -> None:
        """Send a state, unless a later one comes before there is room for it."""
        if self._shot and shot.input is None:
            before = self._shot
            shot = replace(shot, input=before.input, waited_ms=before.waited_ms)
        self._shot = shot
        self._ready.set()

    def got(self, serial: int) -> None:
        """Take note that a state has arrived, and with it all before it."""
        while self._on_way and self._on_way[0] <= serial:
            self._on_way.popleft()
        self._ready.set()

    async def next(self) -> str | Shot:
        """Wait for what is to be sent next."""
        while True:
            if self._small or self.stuck:
                return self._small.popleft() if self._small else ""
            if self._shot and len(self._on_way) < IN_FLIGHT:
                shot, self._shot = self._shot, None
                self._on_way.append(shot.snapshot.serial)
                return shot
            self._ready.clear()
            await self._ready.wait()


class Seat:
    """A session: an engine with a rollout of its own, and who plays it, if anybody does.

    Attributes:
        id: who knows it may go on with the session.
        outbox: of the viewer that is connected, else None.
        left_s: when the last viewer left (`time.monotonic`).
        asked_s: when somebody asked for something the last time.

    Args:
        make: makes the engine; given what to call on changes.
        head: what a scenario says of what is played.
        opened: called with the seconds until there was a frame.
    """

    def __init__(
        self,
        make: Callable[[Callable[[], None]], Engine],
        head: Head,
        opened: Callable[[float], None],
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.outbox: Outbox | None = None
        self.left_s = self.asked_s = self._began_s = time.monotonic()
        self._head = head
        self._opened: Callable[[float], None] | None = opened
        self._loop = asyncio.get_running_loop()
        self._asked = 0  # commands posted
        self._inputs: deque[tuple[float, int]] = deque(maxlen=64)
        self._resume, self._holding, self._charting = True, False, False
        self.engine = make(self._changed)
        self.engine.start()

    def sit(self) -> Outbox:
        """Let a viewer in; who was there before is shown nothing more."""
        self.outbox = Outbox()
        self.asked_s = time.monotonic()
        self._inputs.clear()
        if self._charting:  # who has the map open says so
            self._charting = False
            self._post(Chart(False))
        if self._resume:
            self._post(Pause(False))
        self._show(self.engine.snapshot)
        return self.outbox

    def leave(self) -> None:
        """Let the viewer go; time stands still until one comes back."""
        self.outbox = None
        self.left_s = time.monotonic()
        self._resume = self.engine.snapshot.status in ("playing", "loading")
        self._holding = False
        self.engine.hold(())
        self._post(Pause(True))

    def do(self, command: Command | Hold | Path, number: int | None) -> str:
        """Do what a viewer asks for. Returns what to tell where that is not done."""
        self.asked_s = time.monotonic()
        if number is not None:
            self._inputs.append((time.perf_counter(), number))
        if isinstance(command, Hold):
            self._holding = bool(command.keys)
            self.engine.hold(command.keys)
        elif self._asked - self.engine.snapshot.commands_done >= MOST_WAITING:
            return "That was too fast: the model still does what was asked before."
        elif isinstance(command, Path):
            self._post(Look(partial(self._tell_path, node=command.node)))
        else:
            if isinstance(command, Chart):
                self._charting = command.on
            self._post(command)
        return ""

    def rest(self, idle_s: float) -> None:
        """Pause where nobody has asked for anything in `idle_s` seconds, nor holds a key."""
        idle = time.monotonic() - self.asked_s > idle_s and not self._holding
        if idle and self.outbox and self.engine.snapshot.status == "playing":
            self._post(Pause(True))
            words = f"Paused: no key in {idle_s:.0f} s. Space goes on."
            self._post(Look(lambda _: words))
            self.asked_s = time.monotonic()

    def end(self) -> None:
        """Let the engine stop after the step in progress."""
        self.outbox = None
        self.engine.stop(0)

    def _tell_path(self, session: Session, node: int | None) -> str:
        """Send the scenario of the path to a node; called in the engine's thread."""
        node = session.at if node is None else node
        scenario = scenario_of(session.tree, node, self._head, session.start_of(node))
        name = session.tree.names.get(node, f"frame {node}")
        message = json.dumps({"scenario": scenario, "name": name})
        if len(message) > MOST_SCENARIO:
            raise UserError("This path is too long to be sent as a scenario; take a shorter one.")
        with contextlib.suppress(RuntimeError):  # the server is closing
            self._loop.call_soon_threadsafe(self._put, message)
        return ""

    def _put(self, message: str) -> None:
        if self.outbox:
            self.outbox.put(message)

    def _post(self, command: Command) -> None:
        self._asked += 1
        self.engine.post(command)

    def _changed(self) -> None:
        """Called by the engine, in its thread."""
        with contextlib.suppress(RuntimeError):  # the server is closing
            self._loop.call_soon_threadsafe(partial(self._show, self.engine.snapshot))

    def _show(self, snapshot: Snapshot) -> None:
        if snapshot.now and self._opened:
            self._opened(time.monotonic() - self._began_s)
            self._opened = None
        if self.outbox is None or snapshot.now is None:
            return
        answered, waited_ms, now_s = None, 0.0, time.perf_counter()
        while snapshot.input_s and self._inputs and self._inputs[0][0] <= snapshot.input_s:
            given_s, answered = self._inputs.popleft()
            waited_ms = max(0.0, (now_s - given_s) * 1e3 - snapshot.step_ms)
        self.outbox.show(Shot(snapshot, answered, now_s - snapshot.notice_s, waited_ms))


class Seats:
    """All sessions of a server.

    Args:
        make: makes the engine of a session; given the start and what to call on changes.
        most: how many there may be.
        grace_s: how long one is kept for a viewer that lost the connection.
        idle_s: after how long without a key one pauses.
        head: what a scenario says of what is played.
    """

    def __init__(
        self,
        make: Callable[[int, Callable[[], None]], Engine],
        most: int,
        grace_s: float,
        idle_s: float,
        head: Head,
    ) -> None:
        self._make, self._most, self._head = make, most, head
        self._grace_s, self._idle_s = grace_s, idle_s
        self._seats: dict[str, Seat] = {}
        self._ended: list[Seat] = []
        self._openings = Bucket(OPENING_SHARE, OPENING_BURST_S)
        self._opening_s = 0.5  # what one costs: the quickest so far, which waited for nobody

    def find(self, session: str) -> Seat | None:
        """Return the session with an id."""
        return self._seats.get(session)

    def open(self, start: int) -> Seat | str:
        """Begin a session, or return why none can begin now."""
        if len(self._seats) >= self._most:
            self._make_room()
        if len(self._seats) >= self._most:
            return "All sessions of this server are taken."
        if len(self._alive()) >= MOST_ENDING or not self._openings.take(self._opening_s):
            return "Too many sessions begin at once."
        seat = Seat(partial(self._make, start), self._head, self._opened)
        self._seats[seat.id] = seat
        return seat

    def end(self, seat: Seat) -> None:
        """End a session for good."""
        if self._seats.pop(seat.id, None):
            seat.end()
            self._ended.append(seat)

    def sweep(self) -> None:
        """Pause sessions that nobody plays, and end those that nobody came back to."""
        now_s = time.monotonic()
        for seat in list(self._seats.values()):
            if seat.outbox is None and now_s - seat.left_s > self._grace_s:
                self.end(seat)
            else:
                seat.rest(self._idle_s)
        self._alive()

    async def close(self) -> None:
        """End all of them."""
        for seat in list(self._seats.values()):
            self.end(seat)
        for seat in self._alive():
            await asyncio.to_thread(seat.engine.stop)

    def _opened(self, took_s: float) -> None:
        self._opening_s = min(self._opening_s, took_s)

    def _alive(self) -> list[Seat]:
        """Return the sessions that were ended and still finish a step."""
        self._ended = [seat for seat in self._ended if seat.engine.alive]
        return self._ended

    def _make_room(self) -> None:
        """End the session that nobody has played for longest, if that is long enough."""
        empty = [seat for seat in self._seats.values() if seat.outbox is None]
        first = min(empty, key=lambda seat: seat.left_s, default=None)
        if first and time.monotonic() - first.left_s > MAKES_ROOM_S:
            self.end(first)
