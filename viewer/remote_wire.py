"""What a server and its viewers say to each other, version 1; docs/remote.md has the tables.

A viewer sends JSON objects with one verb each. The server sends JSON objects, and one binary
message for each state worth showing: a JSON head and the frames as JPEG, so that a picture and
what is said of it never part. Anything else is refused. No network and no pygame here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from worldmodel.errors import UserError
from worldmodel.viewer.commands import (
    Advance,
    Ask,
    Branch,
    Command,
    Fork,
    Leave,
    Pause,
    Pick,
    Restart,
    Rewind,
    Say,
    from_json,
    to_json,
)
from worldmodel.viewer.keys import Keymap
from worldmodel.viewer.session import Answer, Future, Moment
from worldmodel.viewer.snapshot import ModelInfo, Snapshot
from worldmodel.world import WorldSpec

VERSION = 1
PATH = "/play"
"""Where the WebSocket is; the page is at '/'."""

MAX_MESSAGE = 16 << 10
"""Bytes of a message of a viewer."""

MAX_SHOT = 16 << 20
"""Bytes of a message of a server."""

MOST_STEPS = 1 << 20
"""How far one message may go back, or on to another start."""

IN_FLIGHT = 4
"""States that may be on their way to a viewer that has not said that it got them."""

REMOTE = Advance | Say | Ask | Rewind | Restart | Fork | Pick | Leave | Pause
"""The commands that a server takes."""

BAD, WRONG_TOKEN, TAKEN, TOO_MANY, OTHER_VERSION, FULL = 4400, 4401, 4409, 4429, 4426, 4503
"""Why a connection was closed, beside the codes that WebSocket itself has."""


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


Said = Hello | Hold | Got | Ping | Bye | Command


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
        case Pause(on):
            data = {"pause": on}
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
        case {"ping": int() | float() as mark, **rest} if not rest:
            said = Ping(mark)
        case {"bye": True, **rest} if not rest:
            said = Bye()
        case {"pause": True | False | None as on, **rest} if not rest:
            said = Pause(on)
        case _:
            said = _command(data)
    return said, number


def _command(data: dict[str, Any]) -> Command:
    try:
        command = from_json(data)
    except UserError:
        raise ProtocolError("no such message") from None
    if not isinstance(command, REMOTE) or to_json(command) != data:
        raise ProtocolError("no such message")
    if isinstance(command, Rewind | Restart) and abs(*data.values()) > MOST_STEPS:
        raise ProtocolError("a number that is too large")
    return command


def _object(message: str | bytes) -> dict[str, Any]:
    if not isinstance(message, str):
        raise ProtocolError("a binary message")
    try:
        data = json.loads(message, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(data, dict):
        raise ProtocolError("not a JSON object")
    return data


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _whole(value: object) -> bool:
    """Whether a value is a count that fits in a browser's numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


# What the server says


def welcome(info: ModelInfo, session: str, resumed: bool) -> str:
    """Return the server's first message."""
    model = {
        "name": info.name,
        "device": info.device,
        "reason": info.reason,
        "dtype": info.dtype,
        "threads": info.threads,
        "starts": info.num_starts,
        "phrases": list(info.phrases),
    }
    keymap = Keymap(info.spec.actions)
    return json.dumps(
        {
            "welcome": VERSION,
            "session": session,
            "resumed": resumed,
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
    """

    info: ModelInfo
    session: str
    resumed: bool


def read_server(message: str) -> "Welcome | Ping | str":
    """Return what a server says in JSON: a welcome, a pong (as the ping it answers), a notice.

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
                    phrases=tuple(map(str, model["phrases"])),
                )
                return Welcome(info, str(data["session"]), bool(data["resumed"]))
            case {"pong": int() | float() as mark}:
                return Ping(mark)
            case {"notice": str(text)}:
                return text
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ProtocolError(str(error)) from None
    raise ProtocolError("no such message")


@dataclass(frozen=True)
class Shot:
    """A state worth showing.

    Attributes:
        snapshot: as the engine published it, without what a viewer has to know for itself (the
            model, the timeline, when an input was given).
        input: number of the newest input that its frame answers, or None.
        notice_age_s: how long ago its notice was written.
    """

    snapshot: Snapshot
    input: int | None
    notice_age_s: float


def pack(shot: Shot, quality: int) -> bytes:
    """Return a state as a binary message: length of the head (4 bytes), head, JPEGs.

    Args:
        shot: the state.
        quality: of the JPEGs, 1 to 100.
    """
    now = shot.snapshot
    assert now.now is not None
    moments = [now.now, *(future.now for future in now.futures)]
    images = [_jpeg(moment.frame, quality) for moment in moments]
    answer = now.answer
    head = {
        "serial": now.serial,
        "status": now.status,
        "now": _moment_json(now.now),
        "futures": [
            {
                **({"say": f.branch.say} if f.branch.say else {"keys": list(f.branch.keys)}),
                "steps": f.steps,
                "now": _moment_json(f.now),
            }
            for f in now.futures
        ],
        "instruction": now.instruction,
        "answer": [answer.number, answer.question, answer.text] if answer else None,
        "start": now.start,
        "denoise_steps": now.denoise_steps,
        "steps_done": now.steps_done,
        "fps": round(now.fps, 2),
        "step_ms": round(now.step_ms, 2),
        "notice": now.notice,
        "notice_age_s": round(shot.notice_age_s, 2),
        "failure": f"{type(now.failure).__name__}: {now.failure}" if now.failure else None,
        "input": shot.input,
        "images": [len(image) for image in images],
    }
    text = json.dumps(head).encode()
    return b"".join([len(text).to_bytes(4, "big"), text, *images])


def unpack(message: bytes) -> Shot:
    """Return the state of a binary message.

    Raises:
        ProtocolError: a message that `pack` would not write.
    """
    try:
        size = int.from_bytes(message[:4], "big")
        head: dict[str, Any] = json.loads(message[4 : 4 + size])
        frames, at = [], 4 + size
        for length in head["images"]:
            frames.append(_frame(message[at : at + length]))
            at += length
        futures = [
            Future(
                Branch(tuple(given.get("keys", ())), str(given.get("say", ""))),
                _moment(given["now"], frame, branch),
                int(given["steps"]),
            )
            for branch, (given, frame) in enumerate(
                zip(head["futures"], frames[1:], strict=True), start=1
            )
        ]
        answer, failure = head["answer"], head["failure"]
        snapshot = Snapshot(
            serial=int(head["serial"]),
            status=str(head["status"]),
            now=_moment(head["now"], frames[0]),
            futures=tuple(futures),
            instruction=str(head["instruction"]),
            answer=Answer(int(answer[0]), str(answer[1]), str(answer[2])) if answer else None,
            start=int(head["start"]),
            denoise_steps=int(head["denoise_steps"]),
            steps_done=int(head["steps_done"]),
            fps=float(head["fps"]),
            step_ms=float(head["step_ms"]),
            notice=str(head["notice"]),
            failure=RuntimeError(str(failure)) if failure else None,
        )
        return Shot(snapshot, head["input"], float(head["notice_age_s"]))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, cv2.error) as error:
        raise ProtocolError(f"a state that cannot be read: {error}") from None


def _moment_json(moment: Moment) -> dict[str, Any]:
    return {
        "number": moment.number,
        "keys": list(moment.keys),
        "text": moment.text,
        "instruction": moment.instruction,
        "node": moment.node,
    }


def _moment(data: Mapping[str, Any], frame: np.ndarray, branch: int = 0) -> Moment:
    given = Moment(int(data["number"]), frame, tuple(map(str, data["keys"])), branch=branch)
    return replace(
        given,
        text=str(data["text"]),
        instruction=str(data["instruction"]),
        node=int(data["node"]),
    )


_FULL_COLOUR = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Frame uint8 RGB [H, W, 3] as JPEG, with all of its colour: the frames are small."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, *_FULL_COLOUR]
    return cv2.imencode(".jpg", frame[..., ::-1], options)[1].tobytes()


def _frame(image: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError("a picture that is none")
    return np.ascontiguousarray(found[..., ::-1])
