"""What a session leaves behind: an MP4, the raw frames, a report. Each file appears whole."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from worldmodel.errors import UserError
from worldmodel.viewer.reading import Reading
from worldmodel.viewer.session import Answer, Moment
from worldmodel.viewer.video import VideoWriter


class Tape:
    """Takes every imagined moment, from the model's thread, and keeps what is asked for.

    Args:
        keep_frames, keep_events: whether frames or texts are kept in memory for `write_frames`
            and `events`; a session without them does not grow.
        fps: frames per second of recordings.
        steady: True to give every frame the same time in recordings (scripts), False to give it
            the time at which it was imagined.
    """

    def __init__(self, *, keep_frames: bool, keep_events: bool, fps: float, steady: bool) -> None:
        self.events: list[dict[str, Any]] = []
        self.num_steps = 0
        self._frames: list[np.ndarray] = []
        self._real: list[np.ndarray | None] = []
        self._futures: list[np.ndarray] = []  # of the step of an open fork
        self._keep_frames, self._keep_events = keep_frames, keep_events
        self._fps, self._steady = fps, steady
        self._lock = threading.Lock()
        self._video: VideoWriter | None = None
        self._began_s = 0.0

    def add(self, moment: Moment) -> None:
        """Take one imagined moment."""
        with self._lock:
            if self._keep_frames:
                self._frames.append(moment.frame)
                sight = moment.sight
                self._real.append(sight.frame if sight and not sight.waits else None)
            self._note(moment, moment.keys, moment.text)
            self.num_steps += 1
            self._shoot(moment)

    def _shoot(self, moment: Moment) -> None:
        """Add a moment to the recording: futures of a fork together, what is real beside it."""
        if not self._video or moment.branch > moment.branches:  # of how many is not known
            return
        if moment.branch == 1:
            self._futures = []
        if moment.branch:
            self._futures.append(moment.frame)
            frames = self._futures
        else:
            sight = moment.sight
            frames = [sight.frame, moment.frame] if sight else [moment.frame]
        if len(frames) >= moment.branches and len({frame.shape for frame in frames}) == 1:
            at_s = None if self._steady else time.perf_counter() - self._began_s
            self._video.add(*frames, at_s=at_s)

    def add_answer(self, moment: Moment, answer: Answer) -> None:
        """Take an answer about the current moment: an event between two steps."""
        with self._lock:
            self._note(moment, (), answer.question, answer=answer.text)

    def add_reading(self, reading: Reading) -> None:
        """Take how far the last moment can be trusted: a part of its event."""
        with self._lock:
            if self.events:
                self.events[-1]["trust"] = reading.to_json()

    def _note(self, moment: Moment, keys: tuple[str, ...], text: str, **more: Any) -> None:
        if moment.branch:
            more["branch"] = moment.branch
        if moment.sight and moment.sight.psnr is not None:
            more["psnr"] = round(moment.sight.psnr, 2)
        for name in ("pose_error", "reading_error"):
            if moment.sight and (error := getattr(moment.sight, name)):
                more[name] = {"m": round(error[0], 3), "deg": round(error[1], 1)}
        if moment.sight and moment.sight.waits:
            more["real"] = moment.sight.waits
        if self._keep_events:
            self.events.append(
                {
                    "step": self.num_steps,
                    "number": moment.number,
                    "keys": list(keys),
                    "instruction": moment.instruction,
                    "text": text,
                    **more,
                }
            )

    @property
    def recording_s(self) -> float | None:
        """Length of the running recording in seconds, None when none runs."""
        return time.perf_counter() - self._began_s if self._video else None

    def record(self, path: str | Path) -> None:
        """Start a recording."""
        with self._lock:
            self._video = VideoWriter(path, self._fps)
            self._began_s = time.perf_counter()

    def stop(self) -> tuple[Path, int] | None:
        """End the running recording. Returns its path and number of frames, if there are any."""
        with self._lock:
            video, self._video = self._video, None
        path = video.close() if video else None
        return (path, video.frames) if video and path else None

    def write_frames(self, path: str | Path) -> None:
        """Write the kept frames as an NPZ with `frames`, uint8 [steps, H, W, 3].

        Where a real world was beside them also `real`, of the same shape; black where it waited.
        """
        if self._frames:
            kept: dict[str, Any] = {"frames": np.stack(self._frames)}
            if any(frame is not None for frame in self._real):
                black = np.zeros_like(self._frames[0])
                kept["real"] = np.stack([black if f is None else f for f in self._real])
            write_whole(path, lambda file: np.savez_compressed(file, **kept))


def write_whole(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that it appears at once and complete, or not at all.

    Raises:
        UserError: it cannot be written.
    """
    target = Path(path)
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            write(file)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"Cannot write '{target}': {error.strerror or error}.") from error


def prepare(path: str) -> None:
    """Make the folder of an output file, so that a long run does not fail at its end.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    if not path:
        return
    target = Path(path).absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot make the folder of '{path}': {error.strerror or error}."
        ) from error
    if target.is_dir():
        raise UserError(f"'{path}' is a folder; give the name of a file.")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"The folder of '{path}' is not writable.")
