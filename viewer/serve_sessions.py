"""The sessions of a server: who plays what, and what is still to be sent to them.

Everything here runs in the server's event loop, save the engines, which have their threads.
"""

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from worldmodel.viewer.commands import Command, Look, Pause
from worldmodel.viewer.engine import Engine, Snapshot
from worldmodel.viewer.remote_wire import IN_FLIGHT, Hold, Shot

MOST_WAITING = 16
"""Commands that may wait for the model; more are not taken."""

MOST_UNSENT = 32
"""Small messages that may wait for a viewer that does not read."""


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
            shot = Shot(shot.snapshot, self._shot.input, shot.notice_age_s)
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
    """

    def __init__(self, make: Callable[[Callable[[], None]], Engine]) -> None:
        self.id = secrets.token_urlsafe(16)
        self.outbox: Outbox | None = None
        self.left_s = self.asked_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._asked = 0  # commands posted
        self._inputs: deque[tuple[float, int]] = deque(maxlen=64)
        self._resume, self._holding = True, False
        self.engine = make(self._changed)
        self.engine.start()

    def sit(self) -> Outbox:
        """Let a viewer in; who was there before is shown nothing more."""
        self.outbox = Outbox()
        self.asked_s = time.monotonic()
        self._inputs.clear()
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

    def do(self, command: Command | Hold, number: int | None) -> str:
        """Do what a viewer asks for. Returns what to tell where that is not done."""
        self.asked_s = time.monotonic()
        if number is not None:
            self._inputs.append((time.perf_counter(), number))
        if isinstance(command, Hold):
            self._holding = bool(command.keys)
            self.engine.hold(command.keys)
        elif self._asked - self.engine.snapshot.commands_done >= MOST_WAITING:
            return "That was too fast: the model still does what was asked before."
        else:
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

    async def end(self) -> None:
        """Stop the engine."""
        self.outbox = None
        await asyncio.to_thread(self.engine.stop)

    def _post(self, command: Command) -> None:
        self._asked += 1
        self.engine.post(command)

    def _changed(self) -> None:
        """Called by the engine, in its thread."""
        with contextlib.suppress(RuntimeError):  # the server is closing
            self._loop.call_soon_threadsafe(partial(self._show, self.engine.snapshot))

    def _show(self, snapshot: Snapshot) -> None:
        if self.outbox is None or snapshot.now is None:
            return
        answered = None
        while snapshot.input_s and self._inputs and self._inputs[0][0] <= snapshot.input_s:
            answered = self._inputs.popleft()[1]
        age_s = time.perf_counter() - snapshot.notice_s
        self.outbox.show(Shot(snapshot, answered, age_s))


class Seats:
    """All sessions of a server.

    Args:
        make: makes the engine of a session; given the start and what to call on changes.
        most: how many there may be.
        grace_s: how long one is kept for a viewer that lost the connection.
        idle_s: after how long without a key one pauses.
    """

    def __init__(
        self,
        make: Callable[[int, Callable[[], None]], Engine],
        most: int,
        grace_s: float,
        idle_s: float,
    ) -> None:
        self._make, self._most = make, most
        self._grace_s, self._idle_s = grace_s, idle_s
        self._seats: dict[str, Seat] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def find(self, session: str) -> Seat | None:
        """Return the session with an id."""
        return self._seats.get(session)

    def open(self, start: int) -> Seat | None:
        """Begin a session; None where there are as many as there may be."""
        if len(self._seats) >= self._most:
            return None
        seat = Seat(partial(self._make, start))
        self._seats[seat.id] = seat
        return seat

    def end(self, seat: Seat) -> None:
        """End a session for good."""
        if self._seats.pop(seat.id, None):
            task = asyncio.create_task(seat.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def sweep(self) -> None:
        """Pause sessions that nobody plays, and end those that nobody came back to."""
        now_s = time.monotonic()
        for seat in list(self._seats.values()):
            if seat.outbox is None and now_s - seat.left_s > self._grace_s:
                self.end(seat)
            else:
                seat.rest(self._idle_s)

    async def close(self) -> None:
        """End all of them."""
        for seat in list(self._seats.values()):
            self.end(seat)
        await asyncio.gather(*self._ending)
