"""What the tests of remote play share: a tiny model, servers, viewers, and a wire that can break.

Read with `runpy` (tests are no package).
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.checkpoint import Checkpoint, save
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.text import train_tokenizer
from worldmodel.transformer import Core, CoreConfig
from worldmodel.viewer.remote_shot import Shot, unpack
from worldmodel.viewer.remote_wire import MAX_SHOT, Bye, Got, Hello, Said, hear, say
from worldmodel.world import WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "walk forward", dx=0.5, phrases=("step forward",)),
        ActionRow("back", "s", "walk back", dx=-0.5, phrases=("step back",)),
        ActionRow("turn left", "a", "turn left", dyaw=11.25, phrases=("turn left",)),
        ActionRow("turn right", "d", "turn right", dyaw=-11.25, phrases=("turn right",)),
    )
)
SPEC = WorldSpec("toy", TABLE, 16, 16)
OPTIONS: dict[str, Any] = {"compression": None, "max_size": MAX_SHOT, "proxy": None}


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def save_tiny(folder: Path) -> str:
    """Write a real checkpoint whose steps take milliseconds; returns where it is."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["action: w instruction: turn right"] * 9, 300)
    shape = {"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 32, "experts": 4}
    core = Core(CoreConfig(tokenizer.vocab_size, (4, 4), latent_channels=4, merge=2, **shape))
    rae = RAE(RAEConfig(16, 4, 4, width=16, heads=2, encoder_depth=1, decoder_depth=1))
    ramp = np.linspace(0, 200, 16).astype(np.uint8)
    frames = np.zeros((3, 3, 16, 16, 3), np.uint8)
    frames[..., 0], frames[..., 1] = ramp[:, None], ramp
    frames[..., 2] = np.arange(3, dtype=np.uint8)[:, None, None, None] * 80  # each start its own
    keys = np.zeros((3, 2), np.int32)
    save(Checkpoint("tiny", core, rae, tokenizer, SPEC, frames, keys, 0.9, {}), folder / "tiny")
    return str(folder / "tiny")


class Server:
    """A running `worldmodel serve`."""

    def __init__(self, folder: Path, *settings: str, **env: str) -> None:
        self.output = folder / f"serve-{time.monotonic_ns()}.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worldmodel", "serve", *settings],
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until(lambda: "window:" in self.text or self.process.poll() is not None, 120)
        found = re.search(r"browser: http://(.*)/", self.text)
        assert found, self.text
        self.address = found.group(1)
        self.port = int(self.address.rsplit(":", 1)[1])

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


def dial(address: str, **options: Any) -> ClientConnection:
    return connect(f"ws://{address}/play", **{**OPTIONS, **options})


class Viewer:
    """A well-behaved viewer."""

    def __init__(self, address: str, token: str = "", session: str = "", start: int = 0) -> None:
        self.connection = dial(address).__enter__()
        self.say(Hello(token, session, start))
        self.small: list[str] = []
        self.shot: Shot | None = None

    def say(self, said: Said, number: int | None = None) -> None:
        self.connection.send(say(said, number))

    def hears(self) -> None:
        """Take the next message."""
        message = self.connection.recv(60)
        if isinstance(message, str):
            self.small.append(message)
        else:
            self.shot = unpack(message)
            self.say(Got(self.shot.snapshot.serial))

    def sees(self, fits: Callable[[Any], Any]) -> Any:
        """Wait for a state that fits, after the one that came last; returns it."""
        while True:
            before = self.shot
            self.hears()
            if self.shot is not before and self.shot and fits(self.shot.snapshot):
                return self.shot.snapshot

    def told(self, part: str) -> str:
        """Wait for a small message with some words in it."""
        while True:
            for message in self.small:
                if part in message:
                    return message
            self.hears()

    def leave(self) -> None:
        """Say goodbye, unless the connection is gone."""
        with contextlib.suppress(ConnectionClosed, OSError):
            self.say(Bye())
        self.connection.close()

    def drop(self) -> None:
        """Lose the connection, as a network does it."""
        self.connection.socket.shutdown(socket.SHUT_RDWR)

    def closed(self) -> tuple[int, str]:
        """Wait for the server to hang up; returns its code and reason."""
        try:
            while True:
                self.connection.recv(60)
        except ConnectionClosed as error:
            return (error.rcvd.code, error.rcvd.reason) if error.rcvd else (1006, "")


class Wire:
    """Between a viewer and a server: writes down what passes, and can be cut."""

    def __init__(self, address: str) -> None:
        self.address_there = address
        self.said: list[Said] = []
        self.texts: list[str] = []
        self.open: list[ServerConnection] = []
        self.whole = True
        self._server = serve(
            self._carry, "127.0.0.1", 0, **{k: OPTIONS[k] for k in OPTIONS if k != "proxy"}
        )
        port = self._server.socket.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _carry(self, near: ServerConnection) -> None:
        if not self.whole:
            near.close()
            return
        self.open.append(near)
        with dial(self.address_there) as far:
            threading.Thread(target=self._back, args=(far, near), daemon=True).start()
            try:
                for message in near:
                    self.said.append(hear(message)[0])
                    far.send(message)
            except ConnectionClosed:
                pass

    def _back(self, far: ClientConnection, near: ServerConnection) -> None:
        try:
            for message in far:
                if isinstance(message, bytes):
                    now = unpack(message).snapshot
                    moments = [future.now for future in now.futures] or [now.now]
                    self.texts += [moment.text for moment in moments if moment]
                near.send(message)
        except ConnectionClosed:
            pass
        code = far.close_code or 1006
        near.close(code if code not in (1005, 1006) else 1011, far.close_reason or "")

    def sent(self, text: str, times: int = 2) -> None:
        """Wait until the model has been sent a text (again)."""
        before = len(self.texts)
        until(lambda: self.texts[before:].count(text) >= times)

    def cut(self) -> None:
        """Break all connections, and let none through until `mend`."""
        self.whole = False
        for near in self.open:
            near.socket.close() if near.close_code is None else None
        self.open.clear()

    def mend(self) -> None:
        self.whole = True

    def close(self) -> None:
        self._server.shutdown()
