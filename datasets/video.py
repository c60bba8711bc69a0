"""MP4 files in and out: frames at their times, and whole episodes as H.264."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream

from worldmodel.errors import UserError

CODECS = ("libx264", "mpeg4")  # the first that this build of FFmpeg has
VIDEO_ERRORS = (FFmpegError, OSError, ValueError, IndexError)  # of files that are no videos
_GAP_S = 10.0  # a longer gap between two frames is a broken time stamp, not a still picture


def makes_h264() -> bool:
    """Return whether this build of FFmpeg has H.264; browsers play nothing else that we write."""
    return CODECS[0] in av.codecs_available


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float, quality: int = 12) -> int:
    """Write frames as an MP4 that appears at `path` once it is whole.

    Args:
        path: the file; its folder must exist.
        frames: uint8 RGB [H, W, 3], all of one size; an odd side loses its last row or column.
        fps: frames per second.
        quality: H.264's crf, 0 lossless to 51 poor.

    Returns:
        the number of frames written.

    Raises:
        UserError: the file cannot be written.
    """
    codec = next(name for name in CODECS if name in av.codecs_available)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    count = 0
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            speed = Fraction(fps).limit_denominator(1000)
            stream = cast(VideoStream, container.add_stream(codec, rate=speed))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(quality)} if codec == "libx264" else {"qscale": "2"}
            for frame in frames:
                height, width = (side & ~1 for side in frame.shape[:2])  # yuv420p wants even sides
                if not count:
                    stream.height, stream.width = height, width
                even = np.ascontiguousarray(frame[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
                count += 1
            container.mux(stream.encode(None))
        temporary.replace(path)
    except (OSError, FFmpegError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path} cannot be written: {error}.") from error
    return count


def rate(path: Path) -> float:
    """Return the frames per second that a video says it has.

    Raises:
        one of VIDEO_ERRORS: not a video.
    """
    with av.open(str(path)) as container:
        found = container.streams.video[0].average_rate
    if not found:
        raise ValueError("it does not say its frames per second")
    return float(found)


def decode(path: Path, start_s: float = 0.0) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield (seconds, frame) of a video from the key frame before `start_s` on.

    Raises:
        one of VIDEO_ERRORS: not a video, or a damaged one.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if start_s > 0 and stream.time_base:
            container.seek(int(start_s / stream.time_base), stream=stream)
        for number, frame in enumerate(container.decode(stream)):
            time = frame.time
            yield (number / float(stream.average_rate or 25) if time is None else time), frame


def resampled(path: Path, fps: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield a video at another rate and size.

    Frame k shows what the video shows at k / fps seconds: frames are repeated or left out,
    never blended.

    Args:
        path: the video.
        fps: frames per second wanted.
        size: (width, height) wanted, see `fit`.

    Yields:
        uint8 RGB [height, width, 3].

    Raises:
        one of VIDEO_ERRORS: not a video, or a damaged one.
    """
    held: np.ndarray | None = None
    emitted, last, shift = 0, 0.0, None
    for at, frame in decode(path):
        if shift is None:
            shift = -at
        elif not -1e-6 <= at + shift - last <= _GAP_S:
            shift = last + 1.0 / fps - at
        time = at + shift
        while held is not None and emitted / fps < time - 1e-6:
            yield held
            emitted += 1
        held, last = fit(frame.to_ndarray(format="rgb24"), size), time
    if held is not None and emitted / fps <= last + 1e-6:
        yield held


def fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a frame in another size: the largest centred part of that shape, scaled by area.

    Args:
        frame: uint8 RGB [H, W, 3].
        size: (width, height).

    Returns:
        uint8 RGB [height, width, 3], a copy.
    """
    width, height = size
    tall, wide = frame.shape[:2]
    scale = min(wide / width, tall / height)
    cut_w, cut_h = min(wide, round(width * scale)), min(tall, round(height * scale))
    left, top = (wide - cut_w) // 2, (tall - cut_h) // 2
    part = np.ascontiguousarray(frame[top : top + cut_h, left : left + cut_w])
    if (cut_w, cut_h) == (width, height):
        return part.copy()
    method = cv2.INTER_AREA if scale >= 1 else cv2.INTER_LINEAR  # area cannot enlarge
    return np.asarray(cv2.resize(part, (width, height), interpolation=method), np.uint8)
