"""Readable type from free fonts that are installed anyway, whatever the script.

Plain ASCII is set in Aileron (which Pillow carries), other text in a system font that has all its
letters or, where there is none, in several, pygame's FreeSans among them.
"""

import io
from functools import lru_cache

import pygame

Colour = tuple[int, int, int]

SYSTEM_FONTS = (
    "dejavusans,segoeui,helveticaneue,liberationsans,arial",
    "notosanscjksc,notosanscjkjp,notosansjp,hiraginosansgb,microsoftyahei,msgothic,malgungothic",
    "notosansarabic,notosanshebrew,notosansdevanagari,notosans,arialunicodems,freesans",
    "notoemoji,segoeuiemoji,symbola",
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


Run = tuple[str, pygame.font.Font]


def runs(text: str, size: int, bold: bool = False) -> tuple[Run, ...]:
    """Cut `text` into parts, each with a font of `size` pixels that can show it.

    One font for all is preferred; a letter that none of them has is a box.
    """
    first = _bold(size) if bold else _plain(size)
    return ((text, first),) if text.isascii() else _mixed(text, size, bold)


@lru_cache(maxsize=256)
def _mixed(text: str, size: int, bold: bool) -> tuple[Run, ...]:
    paths = [path for names in SYSTEM_FONTS if (path := _system_file(names))]
    usual = [_bold(size)] if bold else [_plain(size), *(_loaded(path, size) for path in paths)]
    fonts = [*usual, _bold(size), *(_loaded(path, size) for path in paths if bold)]
    for font in fonts:
        if all(_shows(font, char) for char in text):
            return ((text, font),)
    found: list[Run] = []
    for char in text:
        said, font = found[-1] if found else ("", fonts[0])
        if not found or not (char.isspace() or _shows(font, char)):
            said, font = "", next((f for f in fonts if _shows(f, char)), font)
            found.append((said, font))
        found[-1] = said + char, font
    return tuple(found)


def forget() -> None:
    """Drop all loaded fonts: those from before a `pygame.quit` can no longer write."""
    for load in (_plain, _bold, _loaded, _mixed, _shows):
        load.cache_clear()


@lru_cache(maxsize=4096)
def _shows(font: pygame.font.Font, char: str) -> bool:
    """Whether a font has a letter: what it has not looks like what no font has.

    `Font.metrics`, which is there to say so, has an answer for every letter in pygame-ce 2.5.
    """
    looks = (font.render(c, True, (0, 0, 0)) for c in (char, "\uffff"))
    there, missing = (pygame.image.tobytes(image, "RGBA") for image in looks)
    return char.isspace() or there != missing


def printable(text: str) -> str:
    """Return `text` with control characters made visible, so that 'exact text' stays exact."""
    return "".join(char if char.isprintable() else " / " if char == "\n" else "·" for char in text)


def measure(text: str, size: int, bold: bool = False) -> int:
    """Return the width of `text` in pixels."""
    return sum(font.size(part)[0] for part, font in runs(text, size, bold))


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
    images = [font.render(part, True, colour) for part, font in runs(text, size, bold)]
    place = pygame.Rect(0, 0, sum(i.width for i in images), max(i.height for i in images))
    anchor = {"left": "midleft", "right": "midright", "center": "center"}[align]
    setattr(place, anchor, (round(at[0]), round(at[1])))
    x = place.x
    for image in images:
        surface.blit(image, (x, place.centery - image.height // 2))
        x += image.width
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
