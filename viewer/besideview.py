"""The real world beside the dream, and where they differ: what stands where, and how it looks."""

import numpy as np
import pygame
from pygame import Rect, Surface

from worldmodel.viewer.beside import Sight
from worldmodel.viewer.fonts import fit, printable, put, wrap
from worldmodel.viewer.layout import Layout, grid
from worldmodel.viewer.session import Moment
from worldmodel.viewer.theme import AMBER, EDGE, FAINT, MUTED, SURFACE, TEAL, TEXT
from worldmodel.viewer.widgets import frame_surface, shade

FULL = 128
"""Difference of a channel, of 255, from which on the map is white."""

SAME_DB = 60.0
"""From this PSNR on two frames are the same."""

TREND_DB = (8.0, 40.0)
"""What the trend of the PSNR reaches from and to: two unrelated frames, and two hard to tell."""


def places(layout: Layout, count: int, aspect: float) -> list[Rect]:
    """Return the places of `count` frames; each has its name above, all have the figures below."""
    area, caption = layout.area, layout.px(34)
    room = Rect(area.x, area.y + caption, area.width, max(1, area.height - layout.px(96)))
    largest, in_a_row = (
        grid(room, count, aspect, layout.px(16), caption, rows) for rows in (count, 1)
    )
    # What is side by side is easier to compare, as long as it is not much smaller.
    return in_a_row if in_a_row[0].height > 0.8 * largest[0].height else largest


def difference(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Return a picture of how far two frames are apart, uint8 [H, W, 3]: black, amber, white.

    Args:
        real: uint8 [H, W, 3].
        imagined: uint8 of the same shape.
    """
    apart = np.abs(real.astype(np.int16) - imagined).max(axis=2, keepdims=True)
    heat = np.minimum(1.0, apart / FULL)
    amber = np.minimum(1.0, 2 * heat) * np.asarray(AMBER)
    white = np.maximum(0.0, 2 * heat - 1) * (255 - np.asarray(AMBER))
    return (amber + white).astype(np.uint8)


def draw_beside(
    surface: Surface, layout: Layout, now: Moment, aspect: float, smooth: bool, apart: bool
) -> None:
    """Draw the real frame, the imagined one and, if `apart`, where they differ; below, how far."""
    sight = now.sight
    assert sight is not None
    real, dream, *rest = places(layout, 2 + apart, aspect)
    surface.blit(frame_surface(sight.frame, real.size, smooth), real)
    surface.blit(frame_surface(now.frame, dream.size, smooth), dream)
    _title(surface, layout, real, "REAL", f"step {sight.number}", AMBER)
    _title(surface, layout, dream, "IMAGINED", f"step {now.number}", TEAL)
    if sight.waits:
        _waiting(surface, layout, real, sight.waits)
    for place in rest:
        if sight.waits or sight.frame.shape != now.frame.shape:
            pygame.draw.rect(surface, SURFACE, place)
        else:
            picture = difference(sight.frame, now.frame)
            surface.blit(frame_surface(picture, place.size, smooth=False), place)
        _title(surface, layout, place, "DIFFERENCE", f"white from {FULL}", TEXT)
    _figures(surface, layout, sight)


def _title(
    surface: Surface, layout: Layout, place: Rect, name: str, detail: str, colour: tuple
) -> None:
    y = place.y - layout.px(16)
    label = put(surface, name, (place.x, y), layout.px(13), colour, bold=True)
    size, room = layout.px(13), place.right - label.right - layout.px(10)
    put(surface, fit(detail, size, room), (place.right, y), size, FAINT, align="right")


def _waiting(surface: Surface, layout: Layout, place: Rect, why: str) -> None:
    shade(surface, place, 150)
    size, step = layout.px(15), layout.px(21)
    lines = wrap(printable(f"It waits. {why}"), size, place.width - layout.px(24), most=5)
    y = place.centery - step * (len(lines) - 1) // 2
    for line in lines:
        put(surface, line, (place.centerx, y), size, TEXT, align="center")
        y += step


def _figures(surface: Surface, layout: Layout, sight: Sight) -> None:
    """The PSNR now and over the last steps, and where the real world is."""
    area = layout.area
    band = Rect(area.x, area.bottom - layout.px(80), area.width, layout.px(80))
    if band.height > area.height // 2:
        return
    at = (band.x, band.y + layout.px(24))
    put(surface, _decibels(sight.psnr), at, layout.px(30), TEXT, bold=True)
    unit = "dB PSNR of the two frames"
    put(surface, unit, (band.x, band.y + layout.px(50)), layout.px(13), MUTED)
    room = min(layout.px(340), band.width)
    pose = fit(_pose(sight), layout.px(13), room - layout.px(12))
    put(surface, pose, (band.x, band.y + layout.px(70)), layout.px(13), MUTED)
    left = band.x + room
    chart = Rect(left, band.y + layout.px(8), band.right - left, band.height - layout.px(16))
    if chart.width > layout.px(60):
        _trend(surface, layout, chart, sight.trend)


def _pose(sight: Sight) -> str:
    if sight.pose is None:
        return "the real world tells no pose"
    if sight.pose_error and sight.reading_error:
        apart, reading = (
            f"{m:.1f} m {deg:.0f} deg" for m, deg in (sight.pose_error, sight.reading_error)
        )
        return f"pose off {apart}; reading alone {reading}"
    return "" if sight.waits else "pose of the dream: not read"


def _decibels(psnr: float | None) -> str:
    if psnr is None:
        return "-"
    return "same" if psnr >= SAME_DB else f"{psnr:.1f}"


def _trend(surface: Surface, layout: Layout, chart: Rect, values: tuple[float, ...]) -> None:
    """A line of the PSNR, newest to the right."""
    low, high = TREND_DB
    for level in range(10, 41, 10):
        y = chart.bottom - round(chart.height * (level - low) / (high - low))
        pygame.draw.line(surface, EDGE, (chart.x, y), (chart.right - layout.px(22), y))
        at = (chart.right, y)
        put(surface, str(level), at, layout.px(11), FAINT, align="right")
    step = (chart.width - layout.px(30)) / 63
    points = [
        (
            chart.right - layout.px(28) - (len(values) - 1 - i) * step,
            chart.bottom - chart.height * (min(high, max(low, value)) - low) / (high - low),
        )
        for i, value in enumerate(values)
    ]
    if len(points) > 1:
        pygame.draw.aalines(surface, TEAL, False, points)
    if points:
        pygame.draw.aacircle(surface, TEAL, points[-1], layout.px(3))
