"""Small things that are drawn in several places: frames, sheets, keys, the line being typed."""

import numpy as np
import pygame
from pygame import Rect

from worldmodel.viewer.fonts import fit, measure, printable, put
from worldmodel.viewer.layout import Layout
from worldmodel.viewer.textbox import TextBox
from worldmodel.viewer.theme import AMBER, BACK, EDGE, FAINT, RAISED, RED, TEAL, TEXT


def frame_surface(frame: np.ndarray, size: tuple[int, int], smooth: bool) -> pygame.Surface:
    """Return a frame (uint8 RGB [H, W, 3]) as a surface of `size`."""
    height, width = frame.shape[:2]
    image = pygame.image.frombuffer(frame.tobytes(), (width, height), "RGB")
    scale = pygame.transform.smoothscale if smooth else pygame.transform.scale
    return scale(image, size)


def shade(surface: pygame.Surface, place: Rect, alpha: int, radius: int = 0) -> None:
    """Lay a dark, translucent sheet over `place`."""
    sheet = pygame.Surface(place.size, pygame.SRCALPHA)
    pygame.draw.rect(sheet, (*BACK, alpha), sheet.get_rect(), border_radius=radius)
    surface.blit(sheet, place)


def keycap(
    surface: pygame.Surface, layout: Layout, label: str, left: tuple[int, int], *, lit: bool
) -> Rect:
    """Draw a key with its left middle at `left`; lit while held. Returns its place."""
    size = layout.px(13)
    text = label.upper() if len(label) == 1 else label.capitalize()
    width = max(layout.px(26), measure(text, size, bold=True) + layout.px(14))
    place = Rect(left[0], left[1] - layout.px(13), width, layout.px(26))
    radius = layout.px(5)
    pygame.draw.rect(surface, BACK, place.move(0, layout.px(2)), border_radius=radius)
    pygame.draw.rect(surface, AMBER if lit else RAISED, place, border_radius=radius)
    if not lit:
        pygame.draw.rect(surface, EDGE, place, width=1, border_radius=radius)
    put(surface, text, place.center, size, BACK if lit else TEXT, bold=True, align="center")
    return place


def typing(
    surface: pygame.Surface, inner: Rect, layout: Layout, box: TextBox, now_s: float, fits: int
) -> None:
    """Draw the line being typed, with its cursor and what Tab would add.

    Args:
        surface: where to draw.
        inner: the room for the line.
        layout: gives sizes.
        box: the line.
        now_s: the time, for the cursor's blinking.
        fits: characters that the model reads; those after them are red.
    """
    size = layout.px(17)
    shown = fit(printable(box.text[: box.cursor]), size, inner.width - layout.px(40), tail=True)
    good = max(0, len(shown) - max(0, box.cursor - fits))
    x = inner.x
    for part, colour in ((shown[:good], TEXT), (shown[good:], RED), (box.composing, AMBER)):
        if part:
            x = put(surface, part, (x, inner.centery), size, colour).right
    cursor, room = x, inner.right - x
    if room > layout.px(10):
        after = fit(printable(box.text[box.cursor :]), size, room - layout.px(4))
        colour = RED if box.cursor >= fits else TEXT
        place = put(surface, after, (x + layout.px(2), inner.centery), size, colour)
        hint = fit(box.hint, size, inner.right - place.right - layout.px(4))
        put(surface, hint, (place.right, inner.centery), size, FAINT)
    if now_s % 1.0 < 0.6:
        top, bottom = inner.centery - layout.px(11), inner.centery + layout.px(11)
        pygame.draw.line(surface, TEAL, (cursor + 1, top), (cursor + 1, bottom), layout.px(1.5))


def heading(surface: pygame.Surface, layout: Layout, text: str, area: Rect) -> int:
    """Draw the heading of a part of the panel. Returns where the part begins."""
    y = area.y + layout.px(8)
    place = put(surface, text.upper(), (area.x, y), layout.px(12), FAINT, bold=True)
    line_x = place.right + layout.px(10)
    if line_x < area.right:
        pygame.draw.line(surface, EDGE, (line_x, y), (area.right, y))
    return y + layout.px(26)
