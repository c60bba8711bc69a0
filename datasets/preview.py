"""Episodes to look at: a sheet of frames, actions and sentences, or a film with captions."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldmodel.world import Annotation, Episode, WorldSpec

_CELL = 192  # pixels of a frame's longer side, at least
_GAP = 12
_LINE = 18
_CAPTION_LINES = 3
_SENTENCES = 4  # instructions and questions listed below an episode
_PAPER, _INK, _FAINT, _ACCENT = (250, 250, 248), (25, 25, 28), (110, 110, 116), (176, 42, 30)


def contact_sheet(
    episodes: Sequence[tuple[str, Episode]], spec: WorldSpec, columns: int = 8, every: int = 4
) -> Image.Image:
    """Return one row of frames per episode.

    Args:
        episodes: pairs of id and episode, at least one.
        spec: their world.
        columns: frames per episode, fewer where it is shorter.
        every: steps between them.
    """
    strips = [_strip(name, episode, spec, columns, every) for name, episode in episodes]
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def film(episodes: Sequence[tuple[str, Episode]], spec: WorldSpec) -> Iterator[np.ndarray]:
    """Yield every frame of the episodes, enlarged, over a bar with its action and its caption.

    Args:
        episodes: pairs of id and episode.
        spec: their world.

    Yields:
        uint8 RGB [height, width, 3], all of one size with even sides.
    """
    scale = max(1, round(2 * _CELL / max(spec.width, spec.height)))
    width, tall = max(2 * _CELL, spec.width * scale), spec.height * scale
    size = (width + width % 2, tall + 3 * _LINE + (tall + 3 * _LINE) % 2)
    for name, episode in episodes:
        for at, frame in enumerate(episode.frames):
            image = Image.new("RGB", size, _PAPER)
            large = Image.fromarray(frame).resize(
                (spec.width * scale, tall), Image.Resampling.NEAREST
            )
            image.paste(large, ((size[0] - large.width) // 2, 0))
            draw = ImageDraw.Draw(image)
            font = ImageFont.load_default(14)
            draw.text((_GAP, tall), f"{name}  {at}", _FAINT, _small())
            draw.text((_GAP, tall + _LINE), _done(episode, spec, at), _ACCENT, font)
            said = _caption(episode.annotations, at, at + 1)
            for line in _wrapped(said, size[0] - 2 * _GAP, draw)[:1]:
                draw.text((_GAP, tall + 2 * _LINE), line, _INK, _small())
            yield np.asarray(image)


def _strip(name: str, episode: Episode, spec: WorldSpec, columns: int, every: int) -> Image.Image:
    scale = max(1, round(_CELL / max(spec.width, spec.height)))
    cell, tall = max(spec.width * scale, 96), spec.height * scale
    shown = range(0, len(episode.frames), every)[:columns]
    below = _sentences(episode, shown.start, shown[-1] + every)
    width = _GAP + columns * (cell + _GAP)
    under = (1 + _CAPTION_LINES) * _LINE
    height = _GAP + _LINE + tall + under + len(below) * _LINE + 2 * _GAP
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    title = ImageFont.load_default(15)
    policy = episode.info.get("policy", "unknown")
    heading = f"{name}   {episode.num_steps} steps, policy {policy}"
    draw.text((_GAP, _GAP // 2), heading, _INK, title)
    for column, at in enumerate(shown):
        left, top = _GAP + column * (cell + _GAP), _GAP + _LINE
        frame = Image.fromarray(episode.frames[at])
        frame = frame.resize((spec.width * scale, tall), Image.Resampling.NEAREST)
        image.paste(frame, (left, top))
        top += tall + 3
        font = ImageFont.load_default(14)
        draw.text((left, top), f"{at}", _FAINT, font)
        draw.text((left + 34, top), _done(episode, spec, at), _ACCENT, font)
        said = _caption(episode.annotations, at, at + every)
        for number, line in enumerate(_wrapped(said, cell, draw)):
            draw.text((left, top + (number + 1) * _LINE), line, _INK, _small())
    top = _GAP + _LINE + tall + under + _GAP // 2
    for number, line in enumerate(below):
        draw.text((_GAP, top + number * _LINE), line, _INK, ImageFont.load_default(14))
    draw.line((0, height - 1, width, height - 1), _FAINT)
    return image


def _small() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _done(episode: Episode, spec: WorldSpec, at: int) -> str:
    """Return the text of the action that follows frame `at`."""
    if at >= episode.num_steps:
        return "(end)"
    if episode.info.get("labelled") is False:
        return "(unknown)"
    action = spec.actions.from_mask(int(episode.keys[at]))
    if action.idle and np.any(episode.actions[at]):  # a move that no keys make
        dx, dy, dyaw = episode.actions[at]
        return f"{dx:+.2f} {dy:+.2f} {dyaw:+.1f}"
    return spec.actions.text(action).removeprefix("action: ")


def _caption(annotations: Sequence[Annotation], start: int, stop: int) -> str:
    """Return the first caption of frames start to stop (exclusive)."""
    found = (a for a in annotations if a.kind == "caption" and start <= a.start < stop)
    first = next(found, None)
    if first is None:
        return ""
    return first.text if first.start == start else f"({first.start}) {first.text}"


def _sentences(episode: Episode, start: int, stop: int) -> list[str]:
    """Return lines with instructions and questions about frames start to stop (exclusive)."""
    lines = []
    for kind in ("instruction", "question"):
        found = [a for a in episode.annotations if a.kind == kind and start <= a.start < stop]
        for a in found[: _SENTENCES // 2]:
            place = f"{a.start}" if a.start == a.stop else f"{a.start}-{a.stop}"
            answer = f"  ->  {a.answer}" if a.answer else ""
            lines.append(f"{kind} {place}:  {a.text}{answer}")
    return lines


def _wrapped(text: str, width: int, draw: ImageDraw.ImageDraw) -> list[str]:
    """Return the text in lines of at most `width` pixels; what does not fit is cut with dots."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, _small()) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > _CAPTION_LINES:
        lines = lines[:_CAPTION_LINES]
        lines[-1] += " ..."
    return lines
