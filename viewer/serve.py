"""`worldmodel serve`: one model for several people who play in windows or browsers elsewhere.

This file is the network: it lets people in, reads what they say, and cuts off who misbehaves.
Sessions are in `worldmodel.viewer.serve_sessions`, messages in `worldmodel.viewer.remote_wire`.
"""

import asyncio
import contextlib
import http
import json
import logging
import os
import secrets
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from worldmodel.errors import UserError
from worldmodel.viewer.engine import Engine
from worldmodel.viewer.journal import Head
from worldmodel.viewer.remote_shot import pack
from worldmodel.viewer.remote_wire import (
    BAD,
    FULL,
    MAX_MESSAGE,
    OTHER_VERSION,
    PATH,
    TAKEN,
    TOO_MANY,
    WRONG_TOKEN,
    Bye,
    Got,
    Hello,
    Hold,
    Ping,
    ProtocolError,
    hear,
    welcome,
)
from worldmodel.viewer.serve_config import ServeConfig, is_loopback
from worldmodel.viewer.serve_sessions import Bucket, Outbox, Seat, Seats
from worldmodel.viewer.snapshot import ModelInfo, describe

HELLO_S = 5.0
"""How long a viewer may take to say who it is."""

PING_S = 5.0
"""How often to ask whether a viewer is still there; it may be silent for twice as long."""

STALL_S = 20.0
"""How long a message may be on its way into the network."""

MESSAGES_S, MESSAGES_BURST = 120.0, 240.0
BYTES_S, BYTES_BURST = 128e3, 512e3
"""What a viewer may send a second, and at once."""

FAULTS = (1002, 1003, 1007, 1009)
"""Codes that WebSocket itself has for messages that are none, or too large."""

SPARE_CONNECTIONS = 64
"""Connections beyond two for each session: pages being loaded, people who come back."""

HISTORY_BYTES = 4 << 20
"""Whole frames that a session keeps."""

PAGE = {
    path: (kind, Path(__file__).with_name(name))
    for path, kind, name in (
        ("/", "text/html", "page.html"),
        ("/page.css", "text/css", "page.css"),
        ("/page.js", "text/javascript", "page.js"),
        ("/page_map.js", "text/javascript", "page_map.js"),
    )
}
"""What a browser gets: kind and file, by path."""

# The page is these files alone; it may talk to its own server and to nobody else.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Connection(ServerConnection):
    """A connection that is cut off when more comes in than any viewer sends.

    This counts what the library answers by itself too: pings, and parts of messages.

    Args:
        crowd: the connections that there are, oldest first; this one enters itself.
        most: how many there may be.
        args, kwargs: of the library.

    Attributes:
        refused: whether the viewer was sent away.
        seated: whether it has a session.
    """

    def __init__(
        self, crowd: "dict[Connection, None]", most: int, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.refused = self.seated = False
        self._crowd, self._most = crowd, most
        self._bytes = Bucket(BYTES_S, BYTES_BURST)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection; where there are too many, the oldest stranger is cut off.

        Viewers say at once who they are: most of those who keep silent do not mean well.
        """
        super().connection_made(transport)
        self._crowd[self] = None
        if len(self._crowd) > self._most:
            stranger = next((c for c in self._crowd if not c.seated), self)
            del self._crowd[stranger]
            stranger.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the connection is over."""
        self._crowd.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came from the network."""
        if self._bytes.take(len(data)):
            super().data_received(data)
        else:
            self.refused = True
            self.transport.abort()

    async def refuse(self, code: int, reason: str) -> None:
        """Send the viewer away."""
        self.refused = True
        await self.close(code, reason)


class Door:
    """Decides who comes in, and keeps each viewer and its session together.

    Args:
        seats: the sessions.
        info: what is played.
        cfg: the settings.
        token: what a viewer has to know, or empty.
    """

    def __init__(self, seats: Seats, info: ModelInfo, cfg: ServeConfig, token: str) -> None:
        self._seats, self._info, self._cfg, self._token = seats, info, cfg, token
        self._here: dict[str, Connection] = {}  # by the id of the session

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request over HTTP: the page, a refusal, or None to let a viewer in."""
        try:
            return self._answer(request)
        except (ValueError, LookupError):  # an address that is none, a header that is there twice
            return _plain(http.HTTPStatus.BAD_REQUEST, "That is no request.")

    def _answer(self, request: Request) -> Response | None:
        host, path = request.headers.get("Host", ""), urlsplit(request.path).path
        if not self._token and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            # Another name that leads here is how a page from elsewhere reaches a local server.
            return _plain(http.HTTPStatus.FORBIDDEN, "Open this page as localhost.")
        if path == PATH:
            origin = request.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return _plain(http.HTTPStatus.FORBIDDEN, "This page may not play here.")
            return None
        if path in PAGE:
            return _page(path)
        return _plain(http.HTTPStatus.NOT_FOUND, "There is nothing here.")

    async def handle(self, connection: ServerConnection) -> None:
        """Serve a viewer until it leaves or is sent away."""
        assert isinstance(connection, Connection)
        try:
            async with asyncio.timeout(HELLO_S):
                said, _ = hear(await connection.recv())
            if not isinstance(said, Hello):
                raise ProtocolError("the first message must be a hello")
        except (TimeoutError, ConnectionClosed):
            return await connection.refuse(BAD, "no hello")
        except ProtocolError as error:
            code = OTHER_VERSION if str(error).startswith("version") else BAD
            return await connection.refuse(code, _reason(error))
        given = said.token.encode("utf-8", "surrogatepass")
        if not secrets.compare_digest(given, self._token.encode()):
            await asyncio.sleep(1.0)  # who guesses is to wait
            return await connection.refuse(WRONG_TOKEN, "The token is wrong.")
        seat = self._seats.find(said.session)
        resumed = seat is not None
        if seat is None:
            seat = self._seats.open(said.start)
        if isinstance(seat, str):
            return await connection.refuse(FULL, seat)
        connection.seated = True
        if before := self._here.pop(seat.id, None):
            _later(before.close(TAKEN, "The session goes on elsewhere."))
        self._here[seat.id] = connection
        outbox = seat.sit()
        outbox.put(welcome(self._info, seat.id, resumed, self._cfg.fps))
        sender = asyncio.create_task(self._send(connection, outbox))
        try:
            await self._listen(connection, seat, outbox)
        except ProtocolError as error:
            await connection.refuse(BAD, _reason(error))
        finally:
            sender.cancel()
            if self._here.get(seat.id) is connection:  # or another one has taken over
                del self._here[seat.id]
                seat.leave()
                sent = connection.protocol.close_sent
                if connection.refused or (sent and sent.code in FAULTS):
                    # The place is kept for who lost the connection alone.
                    self._seats.end(seat)

    async def _listen(self, connection: Connection, seat: Seat, outbox: Outbox) -> None:
        """Do what a viewer asks for until it leaves.

        Raises:
            ProtocolError: it said something that is no message.
        """
        messages = Bucket(MESSAGES_S, MESSAGES_BURST)
        keys = set(self._info.spec.actions.keys)
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                if seat.outbox is not outbox:
                    return None  # another connection has taken over
                if not messages.take() or outbox.stuck:
                    return await connection.refuse(TOO_MANY, "Too many messages.")
                said, number = hear(message)
                match said:
                    case Ping(mark):
                        outbox.put(json.dumps({"pong": mark}))
                    case Got(serial):
                        outbox.got(serial)
                    case Bye():
                        self._seats.end(seat)
                        return await connection.close()
                    case Hello():
                        raise ProtocolError("a second hello")
                    case Hold(held) if not keys.issuperset(held):
                        raise ProtocolError("a key that the world has not")
                    case _:
                        if refused := seat.do(said, number):
                            outbox.put(json.dumps({"notice": refused}))

    async def _send(self, connection: Connection, outbox: Outbox) -> None:
        """Send what there is to send, as fast as the viewer takes it."""
        known: set[int] = set()  # nodes whose small pictures were sent
        how = self._cfg.quality, self._cfg.format, known
        try:
            while True:
                out = await outbox.next()
                if outbox.stuck:
                    return await connection.refuse(TOO_MANY, "Too much is unread.")
                if not isinstance(out, str):
                    out = await asyncio.to_thread(pack, out, *how)
                async with asyncio.timeout(STALL_S):
                    await connection.send(out)
        except ConnectionClosed:
            pass
        except Exception as error:
            if not isinstance(error, TimeoutError):
                traceback.print_exception(error, file=sys.stderr)
            connection.refused = True
            connection.transport.abort()  # rather than a viewer who waits in vain


def main(cfg: ServeConfig) -> int:
    """Serve until the process is told to stop (Ctrl-C or SIGTERM).

    Raises:
        UserError: no such checkpoint or device, or an address that cannot be listened at.
    """
    from worldmodel.dream import Dream
    from worldmodel.viewer.serve_model import Guest, SharedEngine
    from worldmodel.viewer.serve_trust import Usual

    token = cfg.token or os.environ.get("WORLDMODEL_TOKEN", "")
    if not token and not is_loopback(cfg.host):
        token = secrets.token_urlsafe(18)
    dream = Dream.load(cfg.checkpoint, cfg.device, cfg.dtype, cfg.denoise_steps, cfg.guidance)
    engine = SharedEngine(dream.engine)
    usual = Usual(Guest(engine), (cfg.denoise_steps, cfg.guidance))

    def load() -> Dream:
        settings = (cfg.denoise_steps, cfg.guidance, cfg.seed, dream.device_reason)
        mine = Dream(Guest(engine), *settings)
        mine.history = cfg.history
        return mine

    def make(start: int, on_change: Callable[[], None]) -> Engine:
        return Engine(
            load,
            fps=cfg.fps,
            start=start,
            gauge=usual.gauge,
            history_bytes=HISTORY_BYTES,
            on_change=on_change,
        )

    try:
        return asyncio.run(_serve(cfg, token, describe(dream), make))
    finally:
        usual.close()
        engine.close()


async def _serve(
    cfg: ServeConfig,
    token: str,
    info: ModelInfo,
    make: Callable[[int, Callable[[], None]], Engine],
) -> int:
    named = cfg.checkpoint if cfg.checkpoint == Path(cfg.checkpoint).name else info.name
    head = Head(checkpoint=named, seed=cfg.seed)  # nobody is told the server's folders
    seats = Seats(make, cfg.sessions, cfg.grace_s, cfg.idle_s, head)
    door = Door(seats, info, cfg, token)
    most = 2 * cfg.sessions + SPARE_CONNECTIONS
    logger = logging.getLogger("worldmodel.serve")
    logger.addFilter(lambda record: record.getMessage() != "opening handshake failed")  # not ours
    make_connection: Any = partial(Connection, {}, most)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    try:
        server = await serve(
            door.handle,
            cfg.host.strip("[]"),
            cfg.port,
            process_request=door.answer,
            create_connection=make_connection,
            compression=None,  # pictures are compressed already
            max_size=MAX_MESSAGE,
            open_timeout=HELLO_S,
            close_timeout=2.0,
            ping_interval=PING_S,
            ping_timeout=2 * PING_S,
            server_header=None,
            logger=logger,
        )
    except OSError as error:
        raise UserError(
            f"Cannot listen at {cfg.host} port {cfg.port}: {error.strerror or error}. Choose "
            "another with host= or port=; port=0 takes a free one."
        ) from None
    async with server:
        for line in greeting(cfg, server.sockets[0].getsockname()[1], token, info):
            print(line, flush=True)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
            seats.sweep()
        server.close()
        await seats.close()
    print("stopped", flush=True)
    return 0


def greeting(cfg: ServeConfig, port: int, token: str, info: ModelInfo) -> tuple[str, ...]:
    """Return what to print when the server is there."""
    everywhere = cfg.host in ("0.0.0.0", "::", "[::]")
    host = socket.gethostname() if everywhere else cfg.host.strip("[]")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    people = "one person" if cfg.sessions == 1 else f"{cfg.sessions} people"
    lines = [
        info.line,
        f"serving {info.name} to {people} at a time, {cfg.fps:g} frames/s each",
        f"browser: http://{address}/" + (f"#{token}" if token else ""),
        f"window:  worldmodel play remote={address}" + (f" token={token}" if token else ""),
    ]
    if not is_loopback(cfg.host):
        lines.append("What is sent can be read on its way: docs/remote.md says how to go by SSH.")
    return tuple(lines)


_closing: set[asyncio.Task[None]] = set()


def _later(work: Any) -> None:
    """Do something beside, without waiting for it."""
    task = asyncio.create_task(work)
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _reason(error: ProtocolError) -> str:
    """Return what to say when a connection is closed; WebSocket has room for 123 bytes."""
    return f"Refused: {error}."[:100].encode("ascii", "replace").decode()


def _plain(status: http.HTTPStatus, text: str) -> Response:
    return _response(status, "text/plain; charset=utf-8", f"{text}\n".encode())


def _page(path: str) -> Response:
    kind, file = PAGE[path]
    response = _response(http.HTTPStatus.OK, f"{kind}; charset=utf-8", file.read_bytes())
    response.headers["Content-Security-Policy"] = _POLICY
    return response


def _response(status: http.HTTPStatus, kind: str, body: bytes) -> Response:
    headers = Headers()
    headers["Content-Type"] = kind
    headers["Content-Length"] = str(len(body))
    headers["Cache-Control"] = "no-store"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Connection"] = "close"
    return Response(status.value, status.phrase, headers, body)
