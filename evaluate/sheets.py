"""Contact sheets: rows of frames with labels, as PNG, and the same frames moving, as MP4."""

import io
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACK, _INK, _FAINT = (24, 26, 30), (232, 234, 238), (150, 156, 166)
_GAP, _LINE, _MARGIN = 4, 18, 10


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Attributes:
        name: of the sheet, see `file`. title, caption: what it shows.
        png: a strip. mp4: the frames in motion; empty where this build of FFmpeg has no H.264,
            which is what browsers play.
    """

    name: str
    title: str
    caption: str
    png: bytes
    mp4: bytes = b""

    @property
    def file(self) -> str:
        """The name as one that every file system takes: it may be made of a user's sentence."""
        return "".join(c if c.isalnum() or c in "-_" else "_" for c in self.name)[:60]


def save_sheets(sheets: Sequence[Sheet], folder: Path) -> None:
    """Write the strips and films into a folder."""
    for sheet in sheets:
        (folder / f"{sheet.file}.png").write_bytes(sheet.png)
        if sheet.mp4:
            (folder / f"{sheet.file}.mp4").write_bytes(sheet.mp4)


@dataclass(frozen=True)
class Row:
    """One row of frames.

    Attributes:
        label: at the left.
        frames: uint8 [n, H, W, 3].
        notes: a short text above each frame, n of them, or none at all.
    """

    label: str
    frames: np.ndarray
    notes: tuple[str, ...] = ()


def draw(rows: Sequence[Row], heads: Sequence[str], tile: int = 96) -> bytes:
    """Return a PNG of rows of frames, each frame `tile` pixels wide.

    Args:
        rows: at least one, all with as many frames as there are heads.
        heads: a text above each column.
        tile: width of a frame on the sheet, pixels.
    """
    font = ImageFont.load_default(13)
    height = round(tile * rows[0].frames.shape[1] / rows[0].frames.shape[2])
    left = _MARGIN + max(int(font.getlength(row.label)) for row in rows) + _MARGIN
    heights = [height + _GAP + (_LINE if row.notes else 0) for row in rows]
    size = (left + len(heads) * (tile + _GAP) + _MARGIN, _LINE + sum(heights) + 2 * _MARGIN)
    sheet = Image.new("RGB", size, _BACK)
    pen = ImageDraw.Draw(sheet)
    columns = [left + i * (tile + _GAP) for i in range(len(heads))]
    for x, head in zip(columns, heads, strict=True):
        pen.text((x + tile / 2, _MARGIN), head, _FAINT, font, anchor="ma")
    y = _MARGIN + _LINE
    for row, used in zip(rows, heights, strict=True):
        for x, note in zip(columns, row.notes, strict=False):
            pen.text((x + tile / 2, y), note, _INK, font, anchor="ma")
        top = y + (_LINE if row.notes else 0)
        pen.text((_MARGIN, top + height / 2), row.label, _INK, font, anchor="lm")
        for x, frame in zip(columns, row.frames, strict=True):
            picture = Image.fromarray(frame).resize((tile, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x, top))
        y += used
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def animate(tiles: Sequence[Row], columns: int = 4, fps: float = 8.0, tile: int = 112) -> bytes:
    """Return an MP4 (H.264) of clips beside each other, each `tile` pixels wide.

    Args:
        tiles: at least one, all with as many frames; a note stands above the frame it belongs to.
        columns: tiles in a row.
        fps: frames per second.
        tile: width of a frame, pixels.

    Returns:
        the file's bytes, none where this build of FFmpeg has no H.264.
    """
    from worldmodel.datasets.video import makes_h264, write_mp4  # takes FFmpeg along

    if not makes_h264():
        return b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_mp4(path, _pictures(tiles, min(columns, len(tiles)), tile), fps, quality=24)
        return path.read_bytes()


def _pictures(tiles: Sequence[Row], columns: int, tile: int) -> Iterator[np.ndarray]:
    """Yield the pictures of a film of tiles, uint8 [H, W, 3]."""
    font = ImageFont.load_default(12)
    height = round(tile * tiles[0].frames.shape[1] / tiles[0].frames.shape[2])
    across, down = tile + _GAP, height + _LINE
    size = (columns * across + _GAP, math.ceil(len(tiles) / columns) * down + _GAP)
    for t in range(len(tiles[0].frames)):
        picture = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), _BACK)
        pen = ImageDraw.Draw(picture)
        for i, row in enumerate(tiles):
            x, y = _GAP + i % columns * across, i // columns * down
            note = row.notes[t] if row.notes else ""
            room = tile - font.getlength(note)
            label = row.label
            while label and font.getlength(label) > room - 2 * _GAP:
                label = label[:-1]
            pen.text((x, y + _LINE - 3), label, _FAINT, font, anchor="ls")
            pen.text((x + tile, y + _LINE - 3), note, _INK, font, anchor="rs")
            frame = Image.fromarray(row.frames[t]).resize((tile, height), Image.Resampling.LANCZOS)
            picture.paste(frame, (x, y + _LINE))
        yield np.asarray(picture)


def futures(
    past: np.ndarray,
    real: np.ndarray,
    imagined: np.ndarray,
    actions: Sequence[Sequence[str]],
    horizons: Sequence[int] = (1, 2, 4, 8, 12, 16, 24, 32),
) -> tuple[bytes, bytes]:
    """Return a sheet (PNG, MP4) of true futures above, and beside, imagined ones.

    Args:
        past: last given frame of each clip, uint8 [K, H, W, 3].
        real: uint8 [K, T, H, W, 3].
        imagined: the same shape.
        actions: the text of the action that leads to each frame, K of T.
        horizons: the steps ahead to show, as far as there are such.
    """
    shown = [h for h in horizons if h <= real.shape[1]]
    at, rows, moving = np.asarray(shown) - 1, [], []
    for k in range(len(past)):
        notes = ("", *[str(actions[k][h - 1]) for h in shown])
        rows.append(Row("real", np.concatenate([past[k : k + 1], real[k, at]]), notes))
        rows.append(Row("imagined", np.concatenate([past[k : k + 1], imagined[k, at]])))
        said = ("", *map(str, actions[k]))
        moving.append(Row("real", np.concatenate([past[k : k + 1], real[k]]), said))
        moving.append(Row("imagined", np.concatenate([past[k : k + 1], imagined[k]]), said))
    return draw(rows, ["given", *(f"+{h}" for h in shown)], tile=112), animate(moving)


def rollouts(
    past: np.ndarray, imagined: np.ndarray, labels: Sequence[str], columns: int = 16
) -> tuple[bytes, bytes]:
    """Return a sheet (PNG, MP4) of rollouts, a row each, evenly spaced in time.

    Args:
        past: last given frame of each, uint8 [S, H, W, 3].
        imagined: uint8 [S, T, H, W, 3].
        labels: S texts.
        columns: frames to show of each, besides the given one.
    """
    steps = imagined.shape[1]
    at = np.unique(np.linspace(steps / min(columns, steps), steps, min(columns, steps)).round())
    chosen = at.astype(int) - 1
    rows = [
        Row(label, np.concatenate([start[None], frames[chosen]]))
        for label, start, frames in zip(labels, past, imagined, strict=True)
    ]
    moving = [
        Row(label, np.concatenate([start[None], frames]))
        for label, start, frames in zip(labels, past, imagined, strict=True)
    ]
    heads = ["given", *(f"+{i + 1}" for i in chosen)]
    return draw(rows, heads, tile=80), animate(moving, columns=4)
