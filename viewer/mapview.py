"""The map: the tree of the session on the whole window, with pictures."""

from dataclasses import dataclass

import pygame
from pygame import Rect

from worldmodel.viewer.fonts import fit, measure, printable, put, wrap
from worldmodel.viewer.layout import Layout
from worldmodel.viewer.outline import Stop
from worldmodel.viewer.textbox import TextBox
from worldmodel.viewer.theme import AMBER, BACK, EDGE, FAINT, MUTED, RAISED, SURFACE, TEAL, TEXT
from worldmodel.viewer.widgets import frame_surface, keycap, typing

HINTS = (
    ("Arrows", "look around"),
    ("Enter", "go there"),
    ("N", "name it"),
    ("Esc", "close"),
)


@dataclass(frozen=True)
class MapPlaces:
    """Where the map's parts stand: the chart, the side panel (empty in narrow windows), cards."""

    chart: Rect
    side: Rect
    foot: Rect
    cards: tuple[Rect, ...]


def map_places(
    size: tuple[int, int], layout: Layout, stops: tuple[Stop, ...], selected: int, aspect: float
) -> MapPlaces:
    """Return where all is; the selected stop is as near the middle as the map's edges allow."""
    margin = layout.px(24)
    whole = Rect(margin, margin, max(1, size[0] - 2 * margin), max(1, size[1] - 2 * margin))
    side_w = layout.px(296) if size[0] >= layout.px(760) else 0
    side = Rect(whole.right - side_w, whole.y, side_w, whole.height)
    left_w = whole.width - (side_w + margin if side_w else 0)
    foot = Rect(whole.x, whole.bottom - layout.px(40), left_w, layout.px(40))
    top = whole.y + layout.px(64)
    chart = Rect(whole.x, top, left_w, max(1, foot.y - layout.px(12) - top))
    columns = max((stop.column for stop in stops), default=0) + 1
    rows = max((stop.row for stop in stops), default=0) + 1
    # Cards are as large as lets the whole tree be seen, within reason.
    edge, between, least = layout.px(8), layout.px(42), layout.px(58)
    room = (chart.width - 2 * edge + least) // columns
    height = (chart.height - edge) // rows - between
    height = min(max(min(height, round((room - least) / aspect)), layout.px(42)), layout.px(96))
    card = (round(height * min(aspect, 1.6)), height)
    pitch = (card[0] + min(max(room - card[0], least), layout.px(84)), height + between)
    now = stops[selected] if stops else None
    wide = (columns - 1) * pitch[0] + card[0] + 2 * edge
    x = _scrolled(chart.width, wide, (now.column if now else 0) * pitch[0], card[0])
    y = _scrolled(chart.height, rows * pitch[1] + edge, (now.row if now else 0) * pitch[1], card[1])
    cards = tuple(
        Rect(
            chart.x + edge + x + stop.column * pitch[0],
            chart.y + edge + y + stop.row * pitch[1],
            *card,
        )
        for stop in stops
    )
    return MapPlaces(chart, side, foot, cards)


def draw_map(
    surface: pygame.Surface,
    layout: Layout,
    stops: tuple[Stop, ...],
    selected: int,
    aspect: float,
    smooth: bool,
    box: TextBox,
    now_s: float,
) -> None:
    """Draw the whole map; `box` is open while a frame is being named."""
    surface.fill(BACK)
    places = map_places(surface.get_size(), layout, stops, selected, aspect)
    _title(surface, layout, places, stops)
    surface.set_clip(places.chart)
    for stop, place in zip(stops, places.cards, strict=True):
        if stop.parent >= 0:
            _edge(surface, layout, places, stop, places.cards[stop.parent], place)
    for i, (stop, place) in enumerate(zip(stops, places.cards, strict=True)):
        _card(surface, layout, stop, place, chosen=i == selected)
    surface.set_clip(None)
    if places.side.width and stops:
        _side(surface, layout, places.side, stops[selected], aspect, smooth)
    _foot(surface, layout, places.foot, box, now_s)


def _scrolled(room: int, size: int, at: int, card: int) -> int:
    """Return how far the map is moved so that `at` is in view."""
    if size <= room:
        return 0
    return -min(max(at + card // 2 - room // 2, 0), size - room)


def _title(
    surface: pygame.Surface, layout: Layout, places: MapPlaces, stops: tuple[Stop, ...]
) -> None:
    y = places.chart.y - layout.px(50)
    title = put(surface, "Map", (places.chart.x, y), layout.px(24), TEXT, bold=True)
    ends = len({stop.row for stop in stops})
    steps = sum(stop.steps for stop in stops)
    about = f"{ends} future{'s' * (ends != 1)}, {steps} step{'s' * (steps != 1)} imagined"
    at = (title.right + layout.px(14), y + layout.px(2))
    put(surface, about, at, layout.px(15), MUTED)


def _edge(
    surface: pygame.Surface, layout: Layout, places: MapPlaces, stop: Stop, begin: Rect, end: Rect
) -> None:
    if not places.chart.colliderect(begin.union(end)):
        return
    bright = AMBER if stop.led == "keys" else TEAL if stop.led == "say" else MUTED
    colour = bright if stop.passed else EDGE
    width = layout.px(2)
    start, stop_at = (begin.right, begin.centery), (end.x, end.centery)
    if begin.centery == end.centery:
        pygame.draw.line(surface, colour, start, stop_at, width)
    else:
        bend = begin.right + layout.px(10)
        points = [start, (bend, start[1]), (bend, stop_at[1]), stop_at]
        pygame.draw.lines(surface, colour, False, points, width)
    room = end.x - begin.right - layout.px(18)
    size = layout.px(12)
    text = fit(printable(stop.label), size, room)
    x = begin.right + layout.px(14)
    put(surface, text, (x, end.centery - layout.px(10)), size, bright if stop.passed else MUTED)
    put(surface, f"+{stop.steps}", (x, end.centery + layout.px(10)), size, FAINT)


def _card(
    surface: pygame.Surface, layout: Layout, stop: Stop, place: Rect, *, chosen: bool
) -> None:
    pygame.draw.rect(surface, RAISED, place)
    if stop.picture is not None:
        surface.blit(frame_surface(stop.picture, place.size, True), place)
    if not (stop.passed or chosen):
        veil = pygame.Surface(place.size, pygame.SRCALPHA)
        veil.fill((*BACK, 90))
        surface.blit(veil, place)
    if chosen:
        pygame.draw.rect(surface, TEXT, place.inflate(layout.px(8), layout.px(8)), layout.px(2))
    if stop.here:
        mark = Rect(place.x, place.bottom - layout.px(4), place.width, layout.px(4))
        pygame.draw.rect(surface, AMBER, mark)
    size = layout.px(13)
    colour = TEXT if stop.name or chosen else MUTED if stop.passed else FAINT
    text = "here" if stop.here and not stop.name else _called(stop)
    text = fit(printable(text), size, place.width + layout.px(66))
    at = (place.x, place.bottom + layout.px(16))
    under = Rect(0, 0, measure(text, size) + layout.px(6), layout.px(18))
    under.midleft = (at[0] - layout.px(2), at[1])
    pygame.draw.rect(surface, BACK, under)  # lines pass behind names
    put(surface, text, at, size, colour)


def _called(stop: Stop) -> str:
    return stop.name or (f"step {stop.number}" if stop.number else f"start {stop.start + 1}")


def _side(
    surface: pygame.Surface, layout: Layout, place: Rect, stop: Stop, aspect: float, smooth: bool
) -> None:
    pygame.draw.rect(surface, SURFACE, place, border_radius=layout.px(12))
    pad = layout.px(22)
    inner = Rect(place.x + pad, place.y + pad, place.width - 2 * pad, place.height - 2 * pad)
    large = Rect(inner.x, inner.y, inner.width, min(round(inner.width / aspect), inner.height // 2))
    pygame.draw.rect(surface, RAISED, large)
    if stop.picture is not None:
        surface.blit(frame_surface(stop.picture, large.size, smooth), large)
    y = large.bottom + layout.px(26)
    name = fit(printable(stop.name or _called(stop).capitalize()), layout.px(20), inner.width, True)
    put(surface, name, (inner.x, y), layout.px(20), TEXT, bold=True)
    y += layout.px(28)
    size = layout.px(14)
    where = f"frame {stop.node}, step {stop.number} of start {stop.start + 1}"
    lines = [(where, MUTED)]
    if stop.steps:
        steps = f"{stop.steps} step{'s' * (stop.steps != 1)}: {stop.label}"
        lines += [(line, MUTED) for line in wrap(printable(steps), size, inner.width, most=2)]
    if stop.text:
        lines += [(line, TEXT) for line in wrap(printable(stop.text), size, inner.width, most=4)]
    if stop.here:
        lines.append(("You are here.", AMBER))
    for line, colour in lines:
        put(surface, fit(line, size, inner.width), (inner.x, y), size, colour)
        y += layout.px(22)


def _foot(surface: pygame.Surface, layout: Layout, place: Rect, box: TextBox, now_s: float) -> None:
    if box.open:
        pygame.draw.rect(surface, SURFACE, place, border_radius=layout.px(8))
        pygame.draw.rect(surface, TEAL, place, layout.px(1.5), border_radius=layout.px(8))
        inner = place.inflate(-layout.px(28), 0)
        label = put(surface, box.label, inner.midleft, layout.px(13), MUTED)
        room = Rect(label.right + layout.px(10), inner.y, 0, inner.height)
        room.width = max(1, inner.right - room.x)
        typing(surface, room, layout, box, now_s, len(box.text))
        return
    x = place.x
    for key, meaning in HINTS:
        room = place.right - x
        if room < measure(key + meaning, layout.px(13)) + layout.px(32):
            break
        cap = keycap(surface, layout, key, (x, place.centery), lit=False)
        at = (cap.right + layout.px(6), place.centery)
        x = put(surface, meaning, at, layout.px(13), MUTED).right + layout.px(16)
