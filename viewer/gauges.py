"""The parts of the panel that look into the model: how far to trust it, which experts fire."""

import math

import pygame
from pygame import Rect

from worldmodel.viewer.fonts import fit, put
from worldmodel.viewer.layout import Layout
from worldmodel.viewer.obedience import NOTHING, Obeyed
from worldmodel.viewer.reading import AMBER_ABOVE, RED_ABOVE
from worldmodel.viewer.theme import (
    AMBER,
    EDGE,
    FAINT,
    GREEN,
    MUTED,
    RAISED,
    RED,
    TEAL,
    TEXT,
    Colour,
)
from worldmodel.viewer.view import ViewState
from worldmodel.viewer.widgets import heading

LIGHTS = {
    "green": (GREEN, "like real frames"),
    "amber": (AMBER, "unsure"),
    "red": (RED, "not to be trusted"),
}
FULL = 3.0
"""An expert with so many times an even share of the picks is as bright as can be."""


def draw_trust(surface: pygame.Surface, layout: Layout, view: ViewState, area: Rect) -> int:
    """Draw the trust meter and the trend of the drift. Returns where they end."""
    dials = view.snapshot.dials
    if not dials.measures or area.height < layout.px(84):
        return area.y
    y = heading(surface, layout, "Trust", area)
    if dials.trust:
        colour, word = LIGHTS[dials.trust.light]
    else:
        colour, word = FAINT, "calibrating" if dials.calibrating else "no reading yet"
    dot = (area.x + layout.px(6), y)
    pygame.draw.aacircle(surface, colour, dot, layout.px(5))
    put(surface, word, (area.x + layout.px(20), y), layout.px(15), colour)
    if dials.trust:
        score = f"+{dials.trust.score:.1f} spreads"
        put(surface, score, (area.right, y), layout.px(13), MUTED, align="right")
    bar = Rect(area.x, y + layout.px(16), area.width, layout.px(6))
    _meter(surface, layout, bar, dials.trust.score if dials.trust else None)
    y = bar.bottom + layout.px(14)
    chart = Rect(area.x, y, area.width, layout.px(24))
    if chart.bottom + layout.px(20) > area.bottom:
        return y + layout.px(6)
    _trend(surface, layout, chart, dials.trend)
    caption = f"drift, {dials.trend[-1]:.1f} times a real clip's" if dials.trend else "drift"
    put(surface, caption, (area.x, chart.bottom + layout.px(12)), layout.px(13), MUTED)
    y = chart.bottom + layout.px(32)
    if not dials.obeyed or y + layout.px(10) > area.bottom:
        return y
    _obeyed(surface, layout, dials.obeyed, Rect(area.x, y, area.width, 0))
    return y + layout.px(24)


def _obeyed(surface: pygame.Surface, layout: Layout, obeyed: Obeyed, line: Rect) -> None:
    """Write how often the frames showed the keys, and what the last one that was read showed."""
    size = layout.px(13)
    words = f"{obeyed.right} of {obeyed.of} keys obeyed"
    label = put(surface, words, (line.x, line.y), size, MUTED)
    told, seen = (
        words.upper() if words != NOTHING else words for words in (obeyed.told, obeyed.seen)
    )
    last = f"told {told}, saw {seen}"
    room = line.right - label.right - layout.px(10)
    colour = FAINT if obeyed.told == obeyed.seen else AMBER
    put(surface, fit(last, size, room), (line.right, line.y), size, colour, align="right")


def _meter(surface: pygame.Surface, layout: Layout, bar: Rect, score: float | None) -> None:
    """Three zones, of which the one that holds is lit, and a mark where the score is in it."""
    gap = layout.px(3)
    width = (bar.width - 2 * gap) // 3
    place = None if score is None else meter_place(score)
    for i, (colour, _) in enumerate(LIGHTS.values()):
        zone = Rect(bar.x + i * (width + gap), bar.y, width, bar.height)
        lit = place is not None and i == min(2, int(3 * place))
        shade = colour if lit else _between(RAISED, colour, 0.18)
        pygame.draw.rect(surface, shade, zone, border_radius=bar.height // 2)
        if lit and place is not None:
            x = zone.x + round((3 * place - i) * (width - layout.px(3)))
            mark = Rect(x, bar.y - layout.px(3), layout.px(3), bar.height + layout.px(6))
            pygame.draw.rect(surface, TEXT, mark, border_radius=layout.px(1))


def meter_place(score: float) -> float:
    """Return where a score stands on the meter, 0 to 1: each light has a third.

    The first third is even, from there each third is four times as long as the one before it.
    """
    if score <= AMBER_ABOVE:
        return 0.333 * score / AMBER_ABOVE
    return min(1.0, (1 + math.log(score / AMBER_ABOVE) / math.log(RED_ABOVE / AMBER_ABOVE)) / 3)


def _trend(surface: pygame.Surface, layout: Layout, chart: Rect, values: tuple[float, ...]) -> None:
    """A line of the drift, and a faint one where real clips are."""
    top = max(2.0, *values) if values else 2.0
    real = chart.bottom - round(chart.height / top)
    for x in range(chart.x, chart.right, layout.px(6)):
        pygame.draw.line(surface, EDGE, (x, real), (x + layout.px(2), real))
    pygame.draw.line(surface, EDGE, chart.bottomleft, chart.bottomright)
    step = layout.px(4)
    values = values[-(chart.width // step) :]
    points = [
        (chart.x + i * step, chart.bottom - chart.height * value / top)
        for i, value in enumerate(values)
    ]
    if len(points) > 1:
        pygame.draw.aalines(surface, TEAL, False, points)
    if points:
        pygame.draw.aacircle(surface, TEAL, points[-1], layout.px(2))


def draw_experts(surface: pygame.Surface, layout: Layout, view: ViewState, area: Rect) -> int:
    """Draw a strip of the experts for each layer, text beside vision. Returns where they end."""
    routing = view.snapshot.dials.routing
    if area.height < layout.px(96):
        return area.y
    y = heading(surface, layout, "Experts", area)
    if not routing:
        put(surface, "with the next step", (area.x, y), layout.px(13), MUTED)
        return y + layout.px(26)
    gap, size = layout.px(14), layout.px(13)
    width = (area.width - gap) // 2
    room = area.bottom - y - layout.px(44)
    pitch = min(layout.px(12), room // len(routing.picks))
    for i, (word, colour) in enumerate((("text", TEAL), ("vision", AMBER))):
        x = area.x + i * (width + gap)
        put(surface, word, (x, y), size, colour)
        for layer, modalities in enumerate(routing.picks):
            strip = Rect(x, y + layout.px(13) + layer * pitch, width, max(1, pitch - layout.px(2)))
            _strip(surface, strip, modalities[i], colour)
    y += layout.px(13) + len(routing.picks) * pitch
    words = f"first layer on top; bright is {FULL:.0f} times even"
    put(surface, words, (area.x, y + layout.px(8)), layout.px(12), FAINT)
    return y + layout.px(30)


def _strip(surface: pygame.Surface, strip: Rect, picks: tuple[int, ...], colour: Colour) -> None:
    total, count = sum(picks), len(picks)
    for i, pick in enumerate(picks):
        left, right = (strip.x + strip.width * n // count for n in (i, i + 1))
        heat = min(1.0, pick / total * count / FULL) if total else 0.0
        cell = Rect(left, strip.y, max(1, right - left - 1), strip.height)
        surface.fill(_between(RAISED, colour, heat), cell)


def _between(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue
