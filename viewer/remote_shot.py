"""The pictures of a server: a state of a session as one binary message, JSON head and images.

A picture and what is said of it never part. No network and no pygame here.
"""

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from worldmodel.viewer.commands import Branch
from worldmodel.viewer.instruments import TREND, Dials
from worldmodel.viewer.obedience import Obeyed
from worldmodel.viewer.outline import Stop
from worldmodel.viewer.reading import Reading
from worldmodel.viewer.remote_wire import BROKEN, ProtocolError, strict_json
from worldmodel.viewer.serve_config import FORMATS
from worldmodel.viewer.session import Answer, Future, Moment
from worldmodel.viewer.snapshot import Snapshot

MOST_STOPS = 400
"""Stops of a map that are sent."""

THUMB_QUALITY = 75
MAX_PIXELS, MAX_THUMB_PIXELS = 4 << 20, 1 << 16
"""Larger pictures of a server are not unpacked: a small message can hold a huge one."""


@dataclass(frozen=True)
class Shot:
    """A state worth showing.

    Attributes:
        snapshot: as the engine published it, without what a viewer has to know for itself (the
            model, the timeline, when an input was given).
        input: number of the newest input that its frame answers, or None.
        notice_age_s: how long ago its notice was written.
        waited_ms: how long that input waited for its step; 0 without one.
        picture_ms: how long its pictures took; known when it has come.
    """

    snapshot: Snapshot
    input: int | None
    notice_age_s: float
    waited_ms: float = 0.0
    picture_ms: float = 0.0


def pack(shot: Shot, quality: int, kind: str = "jpeg", known: set[int] | None = None) -> bytes:
    """Return a state as a binary message: length of the head (4 bytes), head, images.

    Args:
        shot: the state.
        quality: of the images, 1 to 100.
        kind: of the images, one of `FORMATS`.
        known: nodes whose small pictures the viewer has; those that are sent are added.
    """
    begin_s = time.perf_counter()
    now = shot.snapshot
    assert now.now is not None
    moments = [now.now, *(future.now for future in now.futures)]
    images = [_image(moment.frame, quality, kind) for moment in moments]
    chart = cut(now.chart, MOST_STOPS)
    known = set() if known is None else known
    fresh = [stop for stop in chart if stop.picture is not None and stop.node not in known]
    known.update(stop.node for stop in fresh)
    images += [_image(s.picture, THUMB_QUALITY, kind) for s in fresh if s.picture is not None]
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
        "imagined": now.imagined,
        "fps": round(now.fps, 2),
        "ms": {
            "wait": round(shot.waited_ms, 1),
            "step": round(now.step_ms, 1),
            "picture": round((time.perf_counter() - begin_s) * 1e3, 1),
        },
        "trust": _dials_json(now.dials),
        "map": [_stop_json(stop) for stop in chart],
        "pictures": [stop.node for stop in fresh],
        "notice": now.notice,
        "notice_age_s": round(shot.notice_age_s, 2),
        "failure": f"{type(now.failure).__name__}: {now.failure}" if now.failure else None,
        "input": shot.input,
        "images": [len(image) for image in images],
    }
    text = json.dumps(head).encode()
    return b"".join([len(text).to_bytes(4, "big"), text, *images])


def unpack(message: bytes, known: dict[int, np.ndarray] | None = None) -> Shot:
    """Return the state of a binary message.

    Args:
        message: what came.
        known: small pictures by node, for the map; those that came are added.

    Raises:
        ProtocolError: a message that `pack` would not write.
    """
    known = {} if known is None else known
    try:
        size = int.from_bytes(message[:4], "big")
        head = strict_json(message[4 : 4 + size])
        large = 1 + len(head["futures"])
        if len(head["images"]) != large + len(head["pictures"]) or len(head["map"]) > MOST_STOPS:
            raise ValueError("the number of pictures")
        frames, at = [], 4 + size
        for i, length in enumerate(head["images"]):
            most = MAX_PIXELS if i < large else MAX_THUMB_PIXELS
            frames.append(_frame(message[at : at + length], most))
            at += length
        futures = [
            Future(
                Branch(tuple(given.get("keys", ())), str(given.get("say", ""))),
                _moment(given["now"], frame, branch),
                int(given["steps"]),
            )
            for branch, (given, frame) in enumerate(
                zip(head["futures"], frames[1:large], strict=True), start=1
            )
        ]
        known.update(zip(map(int, head["pictures"]), frames[large:], strict=True))
        answer, failure, ms = head["answer"], head["failure"], head["ms"]
        snapshot = Snapshot(
            serial=int(head["serial"]),
            status=str(head["status"]),
            now=_moment(head["now"], frames[0]),
            futures=tuple(futures),
            chart=_chart(head["map"], known),
            instruction=str(head["instruction"]),
            answer=Answer(int(answer[0]), str(answer[1]), str(answer[2])) if answer else None,
            dials=_dials(head["trust"]),
            start=int(head["start"]),
            denoise_steps=int(head["denoise_steps"]),
            steps_done=int(head["steps_done"]),
            imagined=int(head["imagined"]),
            fps=float(head["fps"]),
            step_ms=float(ms["step"]),
            notice=str(head["notice"]),
            failure=RuntimeError(str(failure)) if failure else None,
        )
        times = float(ms["wait"]), float(ms["picture"])
        return Shot(snapshot, head["input"], float(head["notice_age_s"]), *times)
    except (*BROKEN, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ProtocolError(f"a state that cannot be read: {error}") from None


def cut(stops: Sequence[Stop], most: int) -> tuple[Stop, ...]:
    """Return at most so many stops of a map, with all that lie on the way to each.

    The way to the current frame and what has a name come first, then what is new.
    """
    if len(stops) <= most:
        return tuple(stops)
    wanted: set[int] = set()
    for i in sorted(
        range(len(stops)), key=lambda i: (not stops[i].here, not stops[i].name, -stops[i].node)
    ):
        way = []
        while i >= 0 and i not in wanted:
            way.append(i)
            i = stops[i].parent
        if len(wanted) + len(way) <= most:
            wanted.update(way)
    kept = sorted(wanted)
    place = {old: new for new, old in enumerate(kept)} | {-1: -1}
    rows = {row: i for i, row in enumerate(sorted({stops[i].row for i in kept}))}
    return tuple(
        replace(stops[i], parent=place[stops[i].parent], row=rows[stops[i].row]) for i in kept
    )


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


def _dials_json(dials: Dials) -> dict[str, Any] | None:
    """What the instruments show; None where there is nothing to measure against."""
    if not dials.measures:
        return None
    return {
        "calibrating": dials.calibrating,
        "reading": dials.trust.to_json() if dials.trust else None,
        "trend": [round(drift, 2) for drift in dials.trend],
        "obeyed": astuple(dials.obeyed) if dials.obeyed else None,
    }


def _dials(data: Mapping[str, Any] | None) -> Dials:
    if data is None:
        return Dials()
    reading = data["reading"]
    if reading:
        unrest = reading["instability"]
        figures = (float(reading[name]) for name in ("round_trip", "score", "drift"))
        trip, score, drift = figures
        reading = Reading(trip, None if unrest is None else float(unrest), score, drift)
    trend = tuple(map(float, data["trend"][-TREND:]))
    obeyed = data["obeyed"]
    if obeyed:
        right, of, told, seen = obeyed
        obeyed = Obeyed(int(right), int(of), str(told), str(seen))
    calibrating = bool(data["calibrating"])
    return Dials(True, reading or None, trend, calibrating=calibrating, obeyed=obeyed or None)


_STOP = ("node", "parent", "row", "column", "number", "steps", "start", "here", "passed")
_STOP_TEXT = ("name", "label", "led", "text")


def _stop_json(stop: Stop) -> dict[str, Any]:
    return {name: getattr(stop, name) for name in (*_STOP, *_STOP_TEXT)}


def _chart(rows: Sequence[Mapping[str, Any]], known: Mapping[int, np.ndarray]) -> tuple[Stop, ...]:
    stops = []
    for i, row in enumerate(rows):
        plain: dict[str, Any] = {name: int(row[name]) for name in _STOP[:-2]}
        plain |= {name: bool(row[name]) for name in _STOP[-2:]}
        plain |= {name: str(row[name]) for name in _STOP_TEXT}
        if not -1 <= plain["parent"] < i or min(plain["row"], plain["column"]) < 0:
            raise ValueError("a map that is no tree")
        stops.append(Stop(picture=known.get(plain["node"]), **plain))
    if stops and not any(stop.here for stop in stops):
        raise ValueError("a map without a place")
    return tuple(stops)


_FULL_COLOUR = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


def _image(frame: np.ndarray, quality: int, kind: str) -> bytes:
    """Frame uint8 RGB [H, W, 3] as an image; a JPEG has all of its colour: frames are small."""
    if kind == "webp":
        options = [cv2.IMWRITE_WEBP_QUALITY, quality]
    else:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, *_FULL_COLOUR]
    suffix = ".webp" if kind == "webp" else ".jpg"
    return cv2.imencode(suffix, frame[..., ::-1], options)[1].tobytes()


def _frame(image: bytes, most: int) -> np.ndarray:
    """Image to frame; one that says it is larger than `most` pixels is not unpacked."""
    found = Image.open(io.BytesIO(image), formats=FORMATS)
    if found.width * found.height > most:
        raise ValueError(f"a picture of {found.width} x {found.height}")
    return np.array(found.convert("RGB"))
