"""Contact sheets: rows of frames with labels, as PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACK, _INK, _FAINT = (24, 26, 30), (232, 234, 238), (150, 156, 166)
_GAP, _LINE, _MARGIN = 4, 18, 10


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: file name (without ending), title, what it shows, and the PNG."""

    name: str
    title: str
    caption: str
    png: bytes


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


def futures(
    past: np.ndarray,
    real: np.ndarray,
    imagined: np.ndarray,
    actions: Sequence[Sequence[str]],
    horizons: Sequence[int] = (1, 2, 4, 8, 12, 16, 24, 32),
) -> bytes:
    """Return a sheet of true futures above imagined ones.

    Args:
        past: last given frame of each clip, uint8 [K, H, W, 3].
        real: uint8 [K, T, H, W, 3].
        imagined: the same shape.
        actions: the text of the action that leads to each frame, K of T.
        horizons: the steps ahead to show, as far as there are such.
    """
    shown = [h for h in horizons if h <= real.shape[1]]
    at, rows = np.asarray(shown) - 1, []
    for k in range(len(past)):
        notes = ("", *[str(actions[k][h - 1]) for h in shown])
        rows.append(Row("real", np.concatenate([past[k : k + 1], real[k, at]]), notes))
        rows.append(Row("imagined", np.concatenate([past[k : k + 1], imagined[k, at]])))
    return draw(rows, ["given", *(f"+{h}" for h in shown)], tile=112)


def rollouts(
    past: np.ndarray, imagined: np.ndarray, labels: Sequence[str], columns: int = 16
) -> bytes:
    """Return a sheet of rollouts, a row each, evenly spaced in time.

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
    return draw(rows, ["given", *(f"+{i + 1}" for i in chosen)], tile=80)
