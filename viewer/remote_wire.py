"""What a server and its viewers say to each other, version 2; docs/remote.md has the tables.

A viewer sends JSON objects with one verb each. The server sends JSON objects, and one binary
message for each state worth showing (`worldmodel.viewer.remote_shot`). Anything else is refused.
No network and no pygame here.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from worldmodel.errors import UserError
from worldmodel.viewer.commands import (
    Advance,
    Ask,
    Chart,
    Command,
    Fork,
    Jump,
    Leave,
    Name,
    Pause,
    Pick,
    Restart,
    Rewind,
    Say,
    from_json,
    to_json,
)
from worldmodel.viewer.keys import Keymap
from worldmodel.viewer.snapshot import ModelInfo
from worldmodel.world import WorldSpec

VERSION = 2
PATH = "/play"
"""Where the WebSocket is; the page is at '/'."""

MAX_MESSAGE = 16 << 10
"""Bytes of a message of a viewer."""

MAX_SHOT = 16 << 20
"""Bytes of a message of a server."""

FAR = 1 << 53
"""Numbers from here on do not fit in a browser's."""

MOST_STEPS = 1 << 20
"""How far one message may go back, or on to another start."""

IN_FLIGHT = 8
"""States that may be on their way to a viewer that has not said that it got them."""

REMOTE = Advance | Say | Ask | Rewind | Restart | Fork | Pick | Leave | Pause | Jump | Name | Chart
"""The commands that a server takes."""

BAD, WRONG_TOKEN, TAKEN, TOO_MANY, OTHER_VERSION, FULL = 4400, 4401, 4409, 4429, 4426, 4503
"""Why a connection was closed, beside the codes that WebSocket itself has."""


BROKEN = (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError)
"""What reading a message raises that another program, or somebody with bad intent, wrote."""


class ProtocolError(ValueError):
    """A message that is none."""


@dataclass(frozen=True)
class Hello:
    """The first message of a viewer.

    Attributes:
        token: of the server, or empty.
        session: id of the session to go on with, or empty.
        start: number of the start scene of a new session.
    """

    token: str = ""
    session: str = ""
    start: int = 0


@dataclass(frozen=True)
class Hold:
    """Which keys are held now."""

    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Got:
    """The state with this serial number has come."""

    serial: int


@dataclass(frozen=True)
class Ping:
    """Asks for a pong with the same mark, which measures the way there and back."""

    mark: float


@dataclass(frozen=True)
class Bye:
    """The viewer leaves for good; its session may end."""


@dataclass(frozen=True)
class Path:
    """Asks for the scenario of the path to a node; None for the current one."""

    node: int | None = None


Said = Hello | Hold | Got | Ping | Bye | Path | Command


def say(said: Said, number: int | None = None) -> str:
    """Return what a viewer says as a message; `number` names an input, see `Shot`."""
    match said:
        case Hello(token, session, start):
            data: dict[str, Any] = {"hello": VERSION, "token": token, "session": session}
            data["start"] = start
        case Hold(keys):
            data = {"hold": list(keys)}
        case Got(serial):
            data = {"got": serial}
        case Ping(mark):
            data = {"ping": mark}
        case Bye():
            data = {"bye": True}
        case Path(node):
            data = {"scenario": node}
        case Pause(on):
            data = {"pause": on}
        case Chart(on):
            data = {"map": on}
        case command:
            data = to_json(command) or {}
    return json.dumps(data if number is None else {**data, "input": number})


def hear(message: str | bytes) -> tuple[Said, int | None]:
    """Return what a viewer says, and the number of the input if it has one.

    Raises:
        ProtocolError: a message that `say` would not write.
    """
    data = _object(message)
    number = data.pop("input", None)
    if number is not None and not _whole(number):
        raise ProtocolError("'input' must be a whole number")
    match data:
        case {"hello": _, "token": str(token), "session": str(session), "start": start} if len(
            data
        ) == 4 and _whole(start):
            if data["hello"] != VERSION:
                raise ProtocolError(f"version {data['hello']!r}, this is version {VERSION}")
            said: Said = Hello(token, session, start)
        case {"hold": list(keys), **rest} if not rest and all(isinstance(k, str) for k in keys):
            said = Hold(tuple(keys))
        case {"got": serial, **rest} if not rest and _whole(serial):
            said = Got(serial)
        case {"ping": int() | float() as mark, **rest} if not rest and abs(mark) < FAR:
            said = Ping(mark)
        case {"bye": True, **rest} if not rest:
            said = Bye()
        case {"pause": True | False | None as on, **rest} if not rest:
            said = Pause(on)
        case {"map": bool(on), **rest} if not rest:
            said = Chart(on)
        case {"scenario": node, **rest} if not rest and (node is None or _whole(node)):
            said = Path(node)
        case _:
            said = _command(data)
    return said, number


def _command(data: dict[str, Any]) -> Command:
    try:
        command = from_json(data)
    except (UserError, *BROKEN):
        raise ProtocolError("no such message") from None
    if not isinstance(command, REMOTE) or to_json(command) != data:
        raise ProtocolError("no such message")
    match command:
        case Rewind(count) | Restart(count):
            fits = isinstance(count, int) and abs(count) <= MOST_STEPS
        case Pick(number) | Jump(number) | Name(number, _):
            fits = _whole(number)
        case Fork(branches):
            fits = all(isinstance(key, str) for branch in branches for key in branch.keys)
        case _:
            fits = True
    if not fits:
        raise ProtocolError("a value that does not fit")
    return command


def _object(message: str | bytes) -> dict[str, Any]:
    if not isinstance(message, str):
        raise ProtocolError("a binary message")
    try:
        data = strict_json(message)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(data, dict):
        raise ProtocolError("not a JSON object")
    return data


def strict_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, in which all numbers are finite.

    Raises:
        ValueError, RecursionError: it is none.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _whole(value: object) -> bool:
    """Whether a value is a count that fits in a browser's numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < FAR


# What the server says


def welcome(info: ModelInfo, session: str, resumed: bool, fps: float) -> str:
    """Return the server's first message; `fps` is the pace that it aims at."""
    model = {
        "name": info.name,
        "device": info.device,
        "reason": info.reason,
        "dtype": info.dtype,
        "threads": info.threads,
        "starts": info.num_starts,
        "window": info.window,
        "phrases": list(info.phrases),
    }
    keymap = Keymap(info.spec.actions)
    return json.dumps(
        {
            "welcome": VERSION,
            "session": session,
            "resumed": resumed,
            "fps": fps,
            "model": model,
            "world": info.spec.to_json(),
            "keys": keymap.actions,  # what a browser's key is to the world
            "ways": keymap.ways,
        }
    )


@dataclass(frozen=True)
class Welcome:
    """The server's first message.

    Attributes:
        info: what is played.
        session: id to come back with.
        resumed: whether it is the session that was asked for.
        fps: frames per second that the server aims at.
    """

    info: ModelInfo
    session: str
    resumed: bool
    fps: float


@dataclass(frozen=True)
class Kept:
    """The scenario of a path, as it was asked for with `Path`.

    Attributes:
        scenario: see `worldmodel.evaluate.scenario`.
        name: of the frame that it ends at.
    """

    scenario: dict[str, Any]
    name: str


def read_server(message: str) -> Welcome | Ping | Kept | str:
    """Return what a server says in JSON: a welcome, a scenario, a notice, a pong as its ping.

    Raises:
        ProtocolError: a message that is none of these.
    """
    try:
        data = _object(message)
        match data:
            case {"welcome": version}:
                if version != VERSION:
                    raise ProtocolError(f"version {version!r}, this is version {VERSION}")
                model = data["model"]
                info = ModelInfo(
                    spec=WorldSpec.from_json(data["world"]),
                    name=str(model["name"]),
                    device=str(model["device"]),
                    reason=str(model["reason"]),
                    dtype=str(model["dtype"]),
                    threads=int(model["threads"]),
                    num_starts=int(model["starts"]),
                    window=int(model["window"]),
                    phrases=tuple(map(str, model["phrases"])),
                )
                resumed, fps = bool(data["resumed"]), float(data["fps"])
                return Welcome(info, str(data["session"]), resumed, fps)
            case {"pong": int() | float() as mark}:
                return Ping(mark)
            case {"scenario": dict(scenario), "name": str(name)}:
                return Kept(scenario, name)
            case {"notice": str(text)}:
                return text
    except (UserError, *BROKEN) as error:
        raise ProtocolError(str(error)) from None
    raise ProtocolError("no such message")
