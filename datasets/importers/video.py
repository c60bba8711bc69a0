"""Videos without actions: a file, or a folder of files.

Each file is resampled in time and size, cut where the scene changes, and every scene becomes an
episode whose actions are unknown: NaN, no keys, `labelled: false` in its info. What cannot be
decoded is reported and left out.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from worldmodel.actions import ActionTable
from worldmodel.datasets.importers.common import (
    UNLABELLED_SPLIT,
    Imported,
    ImportOptions,
    Report,
    unlabelled,
)
from worldmodel.datasets.video import VIDEO_ERRORS, rate, resampled
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv"}
_LEVELS = 4  # of each colour in a histogram


def read(source: Path, options: ImportOptions, report: Report) -> Imported:
    """Return the world and the episodes of a video or a folder of videos.

    Raises:
        UserError: there are no videos at `source`, or none of them can be read.
    """
    files = _videos(source)
    fps = options.fps or _first_rate(files, source)
    width, height = options.size
    spec = WorldSpec("video", ActionTable(()), height, width, fps)
    return spec, _episodes(source, files, fps, options, report)


def _videos(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    files = [p for p in source.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(
            f"There are no videos in {source} (looked for {' '.join(sorted(SUFFIXES))})."
        )
    return sorted(files)


def _first_rate(files: list[Path], source: Path) -> float:
    for file in files:
        try:
            return round(rate(file), 3)
        except VIDEO_ERRORS:
            continue  # it is reported when its turn comes
    raise UserError(f"None of the {len(files)} files of {source} can be read as a video.")


def _episodes(
    source: Path, files: list[Path], fps: float, options: ImportOptions, report: Report
) -> Iterator[Episode]:
    seed = options.seed
    for file in files:
        name = file.name if file == source else file.relative_to(source).as_posix()
        short = 0
        try:
            for start, frames in scenes(resampled(file, fps, options.size), options):
                if len(frames) < options.shortest:
                    short += 1
                    continue
                actions, keys = unlabelled(len(frames) - 1)
                info = {
                    "world": "video",
                    "seed": seed,
                    "split": options.split or UNLABELLED_SPLIT,
                    "policy": "unknown",
                    "labelled": False,
                    "scene": name,
                    "start_s": round(start / fps, 3),
                }
                yield Episode(frames, actions, keys, {}, (), info)
                seed += 1
        except VIDEO_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            report(f"{name}: left out from where it cannot be decoded ({reason}).")
        if short:
            report(f"{name}: {short} scenes shorter than {options.shortest} frames left out.")


def scenes(
    frames: Iterable[np.ndarray], options: ImportOptions
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number of the first frame, frames [n, H, W, 3]) of each scene.

    A scene ends where half the sum of the absolute differences of two neighbouring frames'
    colour histograms (4 x 4 x 4 colours, each summing to 1) is above `options.cut`, or after
    `options.longest` frames.
    """
    held: list[np.ndarray] = []
    before: np.ndarray | None = None
    count = 0
    for count, frame in enumerate(frames, start=1):
        colours = histogram(frame)
        changed = before is not None and 0.5 * np.abs(colours - before).sum() > options.cut
        if held and (changed or len(held) == options.longest):
            yield count - 1 - len(held), np.stack(held)
            held = []
        held.append(frame)
        before = colours
    if held:
        yield count - len(held), np.stack(held)


def histogram(frame: np.ndarray) -> np.ndarray:
    """Return the shares float64 [64] of a frame's pixels by colour."""
    levels = frame.reshape(-1, 3) // (256 // _LEVELS)
    index = levels @ np.array([_LEVELS * _LEVELS, _LEVELS, 1])
    return np.bincount(index, minlength=_LEVELS**3) / len(index)
