"""The help: every key with what it does, in as many columns and pages as the window needs."""

from dataclasses import dataclass, replace

import pygame
from pygame import Rect

from worldmodel.actions import ActionTable
from worldmodel.viewer.fonts import fit, put
from worldmodel.viewer.keys import Binding, Keymap
from worldmodel.viewer.layout import Layout
from worldmodel.viewer.theme import EDGE, FAINT, MUTED, SURFACE, TEXT
from worldmodel.viewer.widgets import keycap, shade

COLUMN, ROW = 350, 36
"""Units that a column is wide at least, and a row is high."""

SCALES = (1.0, 0.9, 0.8, 0.7, 0.6)
"""How small the help may be drawn before it takes another page."""


@dataclass(frozen=True)
class HelpPlaces:
    """How the help is laid out: its scale, the card, and how many columns of how many rows."""

    layout: Layout
    card: Rect
    columns: int
    rows: int


def help_rows(
    table: ActionTable | None, keymap: Keymap, bindings: tuple[Binding, ...]
) -> tuple[tuple[str, str], ...]:
    """Return keys and what they do: the world's, the mouse, the commands, those of a fork."""
    driving = [(keymap.cap(row.key), row.meaning) for row in table.rows] if table else []
    if keymap.ways:
        driving.append(("Arrows", "drive as well"))
    if keymap.turns:
        driving.append(("Mouse", "right button held: turn"))
    commands = [(label, b.meaning) for b in bindings if (label := keymap.label(b.name))]
    forks = any(binding.name == "fork" for binding in bindings)
    return (*driving, *commands, *((("1-9", "take a future of a fork"),) * forks))


def help_places(layout: Layout, size: tuple[int, int], count: int) -> HelpPlaces:
    """Return how `count` rows stand in a window of `size`: as large as all of them fit."""
    for scale in SCALES:
        scaled = replace(layout, unit=layout.unit * scale)
        columns = min(3, max(1, size[0] // scaled.px(COLUMN)))
        rows = max(1, size[1] // scaled.px(ROW) - 2)
        if columns * rows >= count:
            rows = max(1, -(-count // columns))
            break
    width = min(size[0], columns * scaled.px(COLUMN + 60))
    card = Rect(0, 0, width, min(size[1], scaled.px(ROW) * (rows + 2) - scaled.px(8)))
    card.center = size[0] // 2, size[1] // 2
    return HelpPlaces(scaled, card, columns, rows)


def help_pages(layout: Layout, size: tuple[int, int], count: int) -> int:
    """Return on how many pages `count` rows stand."""
    places = help_places(layout, size, count)
    return -(-count // (places.columns * places.rows))


def draw_help(
    surface: pygame.Surface, layout: Layout, rows: tuple[tuple[str, str], ...], page: int
) -> None:
    """Draw a page of the help over everything, counted from 1."""
    size = surface.get_size()
    shade(surface, surface.get_rect(), 215)
    places = help_places(layout, size, len(rows))
    pages = help_pages(layout, size, len(rows))
    small, card = places.layout, places.card
    pygame.draw.rect(surface, SURFACE, card, border_radius=small.px(12))
    pygame.draw.rect(surface, EDGE, card, width=1, border_radius=small.px(12))
    pad, row = small.px(28), small.px(ROW)
    top = card.y + row
    put(surface, "Keys of the viewer", (card.x + pad, top), small.px(20), TEXT, bold=True)
    if pages > 1:
        more = f"{page} of {pages}"
        put(surface, more, (card.right - pad, top), small.px(14), FAINT, align="right")
    first = (page - 1) * places.columns * places.rows
    width = (card.width - 2 * pad) // places.columns
    for i, (key, meaning) in enumerate(rows[first : first + places.columns * places.rows]):
        column, line = divmod(i, places.rows)
        left, y = card.x + pad + column * width, top + row * (line + 1)
        cap = keycap(surface, small, key, (left, y), lit=False)
        at = (max(cap.right + small.px(12), left + small.px(96)), y)
        room = left + width - at[0] - small.px(10)
        put(surface, fit(meaning, small.px(16), room), at, small.px(16), MUTED)
