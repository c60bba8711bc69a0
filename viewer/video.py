"""Files of frames: GIF, PNG, and MP4 in a thread of its own, so that it never delays the model."""

import contextlib
import queue
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from worldmodel.errors import UserError
from worldmodel.heap import give_back

STRIP_FRAMES = 8
GIF_COLOURS = 128
MIN_SIDE = 512
"""Small frames are enlarged by a whole factor to at least this many pixels."""

CODECS = ("libx264", "mpeg4")
MILLI = Fraction(1, 1000)


class VideoWriter:
    """Writes frames to `path`; the file appears there, whole, when closed.

    Until then it grows as `<name>.part.mp4` in fragments of about a second: if the program is
    killed, that file plays up to there, and an older file at `path` is untouched.

    Args:
        path: where the MP4 goes; its folder must exist.
        fps: nominal frames per second.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path = Path(path)
        self.frames = 0
        self._part = self.path.with_name(f"{self.path.stem}.part.mp4")
        self._fps = max(1.0, fps)
        self._queue: queue.Queue[tuple[Sequence[np.ndarray], float] | None]
        self._queue = queue.Queue(maxsize=256)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def add(self, *frames: np.ndarray, at_s: float | None = None) -> None:
        """Append a picture of one frame, uint8 RGB [H, W, 3], or of several side by side.

        Args:
            frames: of one size; they must not be changed afterwards. Those of the first picture
                decide the size of all, see `mosaic`.
            at_s: seconds since the recording began; by default one frame interval after the
                previous frame.
        """
        at_s = self.frames / self._fps if at_s is None else at_s
        self.frames += 1
        self._queue.put((frames, at_s))

    def close(self) -> Path | None:
        """Finish the file. Returns its path, or None if no frame came.

        Raises:
            UserError: the file could not be written.
        """
        self._queue.put(None)
        self._thread.join()
        if self._error:
            raise UserError(f"Cannot write the video '{self.path}': {self._error}.")
        return self.path if self.frames else None

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:
            self._error = error
            while self._queue.get() is not None:  # nobody may block on a full queue
                pass
        finally:
            give_back()

    def _write(self) -> None:
        item = self._queue.get()
        if item is None:
            return
        import av

        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        with av.open(str(self._part), "w", format="mp4", options=options) as container:
            height, width = item[0][0].shape[:2]
            factor = max(1, -(-MIN_SIDE // min(height, width)))
            size = height * factor, width * factor * min(2, len(item[0]))
            stream = _add_stream(container, size, self._fps)
            last = -1
            while item is not None:
                frames, at_s = item
                cut = mosaic(frames, size)[: stream.height, : stream.width]
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(cut), format="rgb24")
                last = max(last + 1, round(at_s * 1000))  # time stamps must grow
                picture.pts, picture.time_base = last, MILLI
                container.mux(stream.encode(picture))
                item = self._queue.get()
            container.mux(stream.encode(None))
        _defragment(self._part, self.path)


def write_gif(file: IO[bytes], frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames uint8 RGB [H, W, 3] as a GIF that repeats; viewers show at most 50 a second."""
    from PIL import Image

    colours = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 16)])).quantize(
        GIF_COLOURS, dither=Image.Dither.NONE
    )
    factor = max(1, -(-256 // min(frames[0].shape[:2])))
    size = (frames[0].shape[1] * factor, frames[0].shape[0] * factor)
    pages = [
        Image.fromarray(frame).quantize(palette=colours, dither=Image.Dither.NONE).resize(size, 0)
        for frame in frames
    ]
    wait_ms = max(20, round(1000 / fps))
    pages[0].save(
        file, "GIF", save_all=True, append_images=pages[1:], duration=wait_ms, loop=0, disposal=1
    )


def write_strip(file: IO[bytes], frames: Sequence[np.ndarray]) -> None:
    """Write up to `STRIP_FRAMES` of the frames side by side, evenly spread, as a PNG."""
    from PIL import Image

    picks = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round().astype(int)
    factor = max(1, -(-128 // min(frames[0].shape[:2])))
    strip = np.concatenate([frames[i] for i in picks], axis=1)
    Image.fromarray(strip.repeat(factor, axis=0).repeat(factor, axis=1)).save(file, "PNG")


def mosaic(frames: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Return frames side by side, in as many rows as shows them largest, on black.

    Args:
        frames: uint8 [H, W, 3], of one size; they are enlarged by whole factors.
        size: height and width of the picture.

    Returns:
        uint8 [*size, 3].
    """
    height, width = frames[0].shape[:2]

    def scale(columns: int) -> float:
        rows = -(-len(frames) // columns)
        return min(size[0] / (rows * height), size[1] / (columns * width))

    columns = max(range(1, len(frames) + 1), key=scale)
    factor = scale(columns)
    factor = int(factor) if factor >= 1 else factor
    tall, wide = max(1, int(height * factor)), max(1, int(width * factor))
    down, across = np.arange(tall) * height // tall, np.arange(wide) * width // wide
    rows = -(-len(frames) // columns)
    top, left = (size[0] - rows * tall) // 2, (size[1] - columns * wide) // 2
    picture = np.zeros((*size, 3), np.uint8)
    for i, frame in enumerate(frames):
        y, x = top + i // columns * tall, left + i % columns * wide
        picture[y : y + tall, x : x + wide] = frame[down][:, across]
    return picture


def _add_stream(container: Any, size: tuple[int, int], fps: float) -> Any:
    import av

    codec = next(name for name in CODECS if name in av.codecs_available)
    options = (
        {"preset": "veryfast", "tune": "zerolatency", "crf": "17"}
        if codec == "libx264"
        else {"qscale": "3"}
    )
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
    stream.options = options
    stream.pix_fmt = "yuv420p"
    stream.height, stream.width = (side & ~1 for side in size)  # yuv420p wants even
    stream.codec_context.time_base = MILLI
    stream.codec_context.gop_size = max(1, round(fps))
    return stream


def _defragment(part: Path, path: Path) -> None:
    """Copy the fragments into a plain, seekable MP4 at `path` and drop them."""
    import av

    whole = path.with_name(f"{path.stem}.whole.mp4")
    try:
        with av.open(str(part)) as source, av.open(str(whole), "w", format="mp4") as target:
            video = source.streams.video[0]
            copy = target.add_stream_from_template(video)
            for packet in source.demux(video):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
        whole.replace(path)
        part.unlink()
    finally:
        with contextlib.suppress(FileNotFoundError):
            whole.unlink()
