"""An engine that is elsewhere: the model runs on a server, the window is here.

To the window it is what `worldmodel.viewer.engine.Engine` is: input is posted and never waited
for, and a `Snapshot` says what there is to show. A lost connection is said, and sought again; the
window goes on drawing meanwhile. The network has a thread of its own.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException

from worldmodel.errors import UserError
from worldmodel.viewer.commands import Advance, Chart, Command, Jump, Look, Restart, Say
from worldmodel.viewer.reading import Reading
from worldmodel.viewer.remote_past import Past
from worldmodel.viewer.remote_shot import Shot, unpack
from worldmodel.viewer.remote_wire import (
    BAD,
    FULL,
    MAX_SHOT,
    OTHER_VERSION,
    PATH,
    REMOTE,
    TAKEN,
    TOO_MANY,
    WRONG_TOKEN,
    Bye,
    Got,
    Hello,
    Hold,
    Kept,
    Path,
    Ping,
    ProtocolError,
    Said,
    Welcome,
    read_server,
    say,
)
from worldmodel.viewer.session import Answer, Moment, Session
from worldmodel.viewer.snapshot import Snapshot

DEFAULT_PORT = 8765
OPEN_S = 10.0
"""How long a connection may take to open."""

PING_S = 1.0
SILENCE_S = 8.0
"""After so long without a word the connection counts as lost."""

BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between tries to connect; the last one from then on."""

_FATAL = {
    WRONG_TOKEN: "The token is not the one of this server. Give token=..., or set "
    "WORLDMODEL_TOKEN; the server prints it when it starts.",
    OTHER_VERSION: "The server speaks another version. Install the same worldmodel on both sides.",
    TAKEN: "This session goes on in another window.",
    BAD: "The server does not understand this window. Install the same worldmodel on both sides.",
    TOO_MANY: "The server found that this window asks too much of it.",
}


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        name: as people write it, for instance 'gpu-box:8765'.
        url: of its WebSocket.
        token: that the link for a browser has, or empty.
    """

    name: str
    url: str
    token: str = ""

    @staticmethod
    def parse(text: str) -> "Address":
        """Return the address that a text means: HOST, HOST:PORT, or a ws://, wss:// or http URL.

        The link that a server prints for browsers will do, with its token.

        Raises:
            UserError: a text that means none.
        """
        secure = text.startswith(("wss://", "https://"))
        try:
            parts = urlsplit(text if "://" in text else f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = parts = None
        if not host or not parts or parts.scheme not in ("", "ws", "wss", "http", "https"):
            raise UserError(
                f"remote={text} is no address. Give HOST:PORT, for instance remote=gpu-box:8765."
            )
        port = port or (443 if secure else DEFAULT_PORT)
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        url = f"{'wss' if secure else 'ws'}://{name}{PATH}"
        return Address(name, url, unquote(parts.fragment))


class RemoteEngine:
    """Plays a session of a server.

    Args:
        address: of the server.
        token: that the server asks for, or empty.
        start: number of the start scene.
        keeps: frames that are kept for clips.
        on_change: called from the network's thread after each new snapshot.
        on_step: called from there with each new moment that came; where the network is slow
            some are left out.
        on_answer: called from there with each answer.
        on_reading: called from there with each new reading of the trust meter.
        on_path: called from there with the scenario of a path that was asked for, and the name
            of the frame that it ends at; returns what to tell.
    """

    session = None
    """The server has it."""

    def __init__(
        self,
        address: Address,
        token: str = "",
        start: int = 0,
        on_change: Callable[[], None] | None = None,
        on_step: Callable[[Moment], None] | None = None,
        on_answer: Callable[[Moment, Answer], None] | None = None,
        on_reading: Callable[[Reading], None] | None = None,
        on_path: Callable[[dict[str, Any], str], str] | None = None,
        keeps: int = 1,
    ) -> None:
        self.address = address
        self.past = Past(keeps)
        """What came of the path to here; for the functions of `Look`, in place of a session."""
        self.ms: dict[str, float] = {}
        """What the last key took, in milliseconds by stage: until its step began, the step, the
        pictures, and the rest, which is the way there and back."""
        self.round_trip_ms: float | None = None
        """How long a message takes to the server and back; None while there is no connection."""
        self._token, self._start, self._session = token, start, ""
        self._on_change, self._on_step, self._on_answer = on_change, on_step, on_answer
        self._on_reading, self._on_path = on_reading, on_path
        self._charting = False
        self._pictures: dict[int, np.ndarray] = {}  # small ones by node, for the map
        self._snapshot = Snapshot()
        self._held: tuple[str, ...] = ()
        self._count = 0  # inputs
        self._given_s: dict[int, float] = {}  # when they were given
        self._steps_before = 0  # of sessions that the server has forgotten
        self._heard_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._out: asyncio.Queue[str] | None = None  # while there is a connection
        self._again = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    @property
    def snapshot(self) -> Snapshot:
        """The latest state; safe to read from any thread."""
        return self._snapshot

    @property
    def busy_since_s(self) -> float | None:
        """Since when the server has been silent while it plays; None where it is not to speak."""
        playing = self._snapshot.status == "playing" and self._out is not None
        return self._heard_s if playing else None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Leave the server. Returns whether that ended in time."""
        if self._thread.ident is None:
            self._loop.close()
            return True
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._leave)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def hold(self, keys: tuple[str, ...]) -> None:
        """Say which keys are held now; the latest word counts."""
        if keys != self._held:
            self._held = keys
            self._call(Hold(keys))

    def post(self, command: Command) -> None:
        """Ask for something; commands are carried out in order."""
        self._call(command)

    def about(self) -> str:
        """Return where the model is, and how far away."""
        if self.round_trip_ms is None:
            return f"{self.address.name}: not connected"
        silent_s = time.perf_counter() - self._heard_s
        if silent_s > 2 * PING_S + 1:
            return f"{self.address.name}: silent for {silent_s:.0f} s"
        return f"{self.address.name}, {self.round_trip_ms:.0f} ms there and back"

    def stages(self) -> str:
        """Return what the last key took until its frame was here, and what of it its parts did."""
        parts = ", ".join(f"{name} {ms:.0f}" for name, ms in self.ms.items())
        return f"{parts} ms" if parts else ""

    def ask_path(self, node: int | None) -> None:
        """Ask for the scenario of the path to a node, None for the current one; see `on_path`."""
        self._call(Path(node))

    def _call(self, said: Said) -> None:
        given_s = time.perf_counter()
        with contextlib.suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(self._say, said, given_s)

    # Everything below runs in the thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._live())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.close()

    def _say(self, said: Said, given_s: float) -> None:
        if isinstance(said, Look):
            self._look(said)
            return
        if isinstance(said, Chart):
            self._charting = said.on
        elif isinstance(said, Jump):
            self.past.jumps(said.node)
        if self._out is None:
            self._say_alone(said)
            return
        if not isinstance(said, Hold | Path | REMOTE):
            self._tell("That does not work from afar: the server keeps the session.")
            return
        number = None
        if isinstance(said, Hold | Advance | Say):  # what is to be seen with the next frame
            self._count += 1
            number = self._count
            self._given_s[number] = given_s
        self._out.put_nowait(say(said, number))

    def _say_alone(self, said: Said) -> None:
        """Take something while there is no connection."""
        if isinstance(said, Restart) and self._snapshot.failure:
            self._again.set()
        elif isinstance(said, Chart):
            self._publish(chart=self._snapshot.chart if said.on else ())
        elif not isinstance(said, Hold):
            self._tell(f"There is no connection to {self.address.name}.")

    def _look(self, said: Look) -> None:
        try:
            self._tell(said.at(cast(Session, self.past)))
        except UserError as error:
            self._tell(str(error))

    def _leave(self) -> None:
        if self._out is not None:
            self._out.put_nowait(say(Bye()))
            self._loop.call_later(1.0, self._cancel)  # where the server does not hang up
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._task:
            self._task.cancel()

    async def _live(self) -> None:
        """Connect again and again, until the engine is stopped."""
        tries = 0
        while True:
            heard_s = self._heard_s
            try:
                await self._connect()
                return  # we said goodbye
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd else None
                reason = closed.rcvd.reason if closed.rcvd else "it broke"
                reason = reason or "the server went away"
                fatal = _FATAL.get(code or 0)
                if code == FULL:
                    self._session, reason = "", reason.rstrip(".")
                else:
                    reason = f"No connection to {self.address.name} ({reason})"
            except ProtocolError as error:
                fatal, reason = f"{self.address.name} is no worldmodel server: {error}.", ""
            except (OSError, TimeoutError, WebSocketException) as error:
                fatal, why = None, _why(error)
                reason = f"No connection to {self.address.name} ({why})"
                if self._snapshot.info is None:
                    fatal = (
                        f"No worldmodel server answers at {self.address.name}: {why}. "
                        "Start one there with: worldmodel serve host=0.0.0.0"
                    )
            finally:
                self._out, self.round_trip_ms = None, None
            if fatal:
                await self._fail(UserError(fatal))
                tries = 0
                continue
            tries = 0 if self._heard_s > heard_s else tries + 1
            await self._wait(reason, BACK_OFF_S[min(tries, len(BACK_OFF_S) - 1)])

    async def _fail(self, error: UserError) -> None:
        """Show why there is no way on, until the user wants to try again."""
        self._publish(status="failed", failure=error)
        self._again.clear()
        await self._again.wait()
        self._publish(status="paused", failure=None)

    async def _wait(self, reason: str, pause_s: float) -> None:
        """Wait before the next try, and say so."""
        end_s = time.perf_counter() + pause_s
        while (left_s := end_s - time.perf_counter()) > 0:
            self._tell(f"{reason}: trying again in {max(1, round(left_s))} s.")
            await asyncio.sleep(min(0.5, left_s))

    async def _connect(self) -> None:
        """Play over one connection; returns when we have said goodbye."""
        async with connect(
            self.address.url,
            compression=None,
            max_size=MAX_SHOT,
            open_timeout=OPEN_S,
            close_timeout=1.0,
            ping_interval=None,  # our own pings say how far it is
            proxy=None,
        ) as connection:
            await connection.send(say(Hello(self._token, self._session, self._start)))
            self._out = out = asyncio.Queue()
            self._given_s.clear()
            self._pictures.clear()
            tasks = [asyncio.create_task(work) for work in self._talk(connection, out)]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()

    def _talk(self, connection: ClientConnection, out: "asyncio.Queue[str]"):
        async def speak() -> None:
            while True:
                message = await out.get()
                await connection.send(message)
                if message == say(Bye()):
                    return

        async def listen() -> None:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    message = await connection.recv()
                self._heard_s = time.perf_counter()
                self._hear(message, out)

        async def ping() -> None:
            while True:
                out.put_nowait(say(Ping(time.perf_counter())))
                await asyncio.sleep(PING_S)

        return speak(), listen(), ping()

    def _hear(self, message: str | bytes, out: "asyncio.Queue[str]") -> None:
        if isinstance(message, bytes):
            shot = unpack(message, self._pictures)
            out.put_nowait(say(Got(shot.snapshot.serial)))
            self._show(shot)
            return
        match read_server(message):
            case Welcome() as welcome:
                self._arrive(welcome, out)
            case Kept(scenario, name):
                self._keep(scenario, name)
            case Ping(mark):
                self.round_trip_ms = (time.perf_counter() - mark) * 1e3
                self._publish()
            case str(notice):
                self._tell(notice)

    def _arrive(self, welcome: Welcome, out: "asyncio.Queue[str]") -> None:
        lost = self._session and not welcome.resumed
        self._session = welcome.session
        self.past.forget()
        if not welcome.resumed:
            self._steps_before = self._snapshot.steps_done
        keys = tuple(key for key in self._held if key in welcome.info.spec.actions.keys)
        if keys:
            out.put_nowait(say(Hold(keys)))
        if self._charting:
            out.put_nowait(say(Chart(True)))
        self._publish(info=welcome.info, wanted_fps=welcome.fps, timeline=(), notice="")
        if lost:
            self._tell("The server no longer has your session; this is a new one.")

    def _keep(self, scenario: dict[str, Any], name: str) -> None:
        if self._on_path:
            try:
                self._tell(self._on_path(scenario, name))
            except UserError as error:
                self._tell(str(error))

    def _show(self, shot: Shot) -> None:
        """Publish a state that came."""
        before, new = self._snapshot, shot.snapshot
        now = new.now
        assert now is not None
        input_s = self._given_s.get(shot.input) if shot.input else None
        if shot.input:
            self._given_s = {n: s for n, s in self._given_s.items() if n > shot.input}
        if input_s:
            spent = {"wait": shot.waited_ms, "step": new.step_ms, "picture": shot.picture_ms}
            whole_ms = (time.perf_counter() - input_s) * 1e3
            self.ms = {**spent, "way": max(0.0, whole_ms - sum(spent.values()))}
        self.past.saw(now, new.futures)
        said_s = time.perf_counter() - shot.notice_age_s
        fresh = bool(new.notice) and said_s > before.notice_s
        steps_done = self._steps_before + new.steps_done
        if self._on_step and steps_done > before.steps_done:
            for moment in [future.now for future in new.futures] or [now]:
                self._on_step(moment)
        if self._on_answer and new.answer and new.answer != before.answer:
            self._on_answer(now, new.answer)
        reading = new.dials.trust
        if self._on_reading and reading and reading != before.dials.trust:
            self._on_reading(reading)
        self._snapshot = replace(
            new,
            serial=before.serial + 1,
            info=before.info,
            wanted_fps=before.wanted_fps,
            timeline=self.past.timeline,
            steps_done=steps_done,
            input_s=input_s,
            notice=new.notice if fresh else before.notice,
            notice_s=said_s if fresh else before.notice_s,
        )
        self._changed()

    def _tell(self, notice: str) -> None:
        self._publish(notice=notice, notice_s=time.perf_counter())

    def _publish(self, **changes: object) -> None:
        serial = self._snapshot.serial + 1
        self._snapshot = replace(self._snapshot, **{"serial": serial, "input_s": None, **changes})
        self._changed()

    def _changed(self) -> None:
        if self._on_change:
            self._on_change()


def _why(error: Exception) -> str:
    """Return in a few words why there is no connection."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, InvalidURI):
        return "no such address"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:100]
