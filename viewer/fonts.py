"""Readable type from free fonts that are installed anyway, whatever the script.

Plain ASCII is set in Aileron (which Pillow carries), other text in pygame's FreeSans or, where
that lacks a letter, in a system font that has it.
"""

import io
from functools import lru_cache

import pygame

Colour = tuple[int, int, int]

SYSTEM_FONTS = (
    "notosanscjksc,notosanscjkjp,notosansjp,hiraginosansgb,microsoftyahei,msgothic,malgungothic",
    "notosansarabic,notosanshebrew,notosansdevanagari,notosans,segoeui,arialunicodems",
    "dejavusans,liberationsans,arial,freesans",
)


@lru_cache(maxsize=64)
def _plain(size: int) -> pygame.font.Font:
    from PIL import ImageFont

    data = getattr(ImageFont.load_default(size), "font_bytes", None)
    return pygame.font.Font(io.BytesIO(data) if data else None, size)


@lru_cache(maxsize=64)
def _bold(size: int) -> pygame.font.Font:
    return pygame.font.Font(None, round(size * 1.36))  # pygame shrinks its own font by 0.6875


@lru_cache(maxsize=8)
def _system_file(names: str) -> str | None:
    return pygame.font.match_font(names)


@lru_cache(maxsize=64)
def _loaded(path: str, size: int) -> pygame.font.Font:
    return pygame.font.Font(path, size)


def font_for(text: str, size: int, bold: bool = False) -> pygame.font.Font:
    """Return a font of `size` pixels that can show `text` (as far as any installed one can)."""
    first = _bold(size) if bold else _plain(size)
    if text.isascii():
        return first
    return _wide_font("".join(sorted(set(text))), size)


@lru_cache(maxsize=256)
def _wide_font(letters: str, size: int) -> pygame.font.Font:
    fallback = _bold(size)
    if _shows(fallback, letters):
        return fallback
    for names in SYSTEM_FONTS:
        path = _system_file(names)
        if path and _shows(font := _loaded(path, size), letters):
            return font
    return fallback


def forget() -> None:
    """Drop all loaded fonts: those from before a `pygame.quit` can no longer write."""
    for load in (_plain, _bold, _loaded, _wide_font):
        load.cache_clear()


def _shows(font: pygame.font.Font, letters: str) -> bool:
    return all(metric is not None for metric in font.metrics(letters))


def printable(text: str) -> str:
    """Return `text` with control characters made visible, so that 'exact text' stays exact."""
    return "".join(char if char.isprintable() else " / " if char == "\n" else "·" for char in text)


def measure(text: str, size: int, bold: bool = False) -> int:
    """Return the width of `text` in pixels."""
    return font_for(text, size, bold).size(text)[0]


def fit(text: str, size: int, width: int, bold: bool = False, tail: bool = False) -> str:
    """Shorten `text` to `width` pixels with an ellipsis; `tail` keeps its end instead."""
    text = text[-2000:] if tail else text[:2000]  # SDL cannot render endless lines
    if measure(text, size, bold) <= width:
        return text
    low, high = 0, len(text)
    while low < high:  # the longest part that still fits
        middle = (low + high + 1) // 2
        part = "..." + text[-middle:] if tail else text[:middle] + "..."
        low, high = (middle, high) if measure(part, size, bold) <= width else (low, middle - 1)
    if low == 0:
        return ""
    return "..." + text[-low:] if tail else text[:low].rstrip() + "..."


def put(
    surface: pygame.Surface,
    text: str,
    at: tuple[float, float],
    size: int,
    colour: Colour,
    *,
    bold: bool = False,
    align: str = "left",
) -> pygame.Rect:
    """Write `text` with its middle line at height `at[1]`; `align` says what `at[0]` is.

    Returns:
        Where it stands.
    """
    if not text:
        return pygame.Rect(round(at[0]), round(at[1]), 0, 0)
    image = font_for(text, size, bold).render(text, True, colour)
    x, y = round(at[0]), round(at[1])
    anchor = {"left": "midleft", "right": "midright", "center": "center"}[align]
    place = image.get_rect(**{anchor: (x, y)})
    surface.blit(image, place)
    return place


def wrap(text: str, size: int, width: int, most: int = 6) -> list[str]:
    """Break `text` into at most `most` lines of `width` pixels."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if not line or measure(longer, size) <= width:
            line = longer
        else:
            lines.append(line)
            line = word
    lines = [fit(part, size, width) for part in [*lines, line] if part]
    return (
        lines
        if len(lines) <= most
        else [*lines[: most - 1], fit(lines[most - 1] + " ...", size, width)]
    )
