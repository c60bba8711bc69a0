"""Painted wall, floor and ceiling textures: bold patterns that survive at 64x64 pixels.

The engine maps the colours to its 256-colour palette, so the hues are chosen from the ramps
that the palette has (reds, greens, blues, yellows, browns, greys).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

SIZE = 128

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Theme:
    """The look of a room.

    Attributes:
        name: what captions call its walls, for instance 'red brick'.
        pattern: how the walls are painted, one of `_PATTERNS`.
        wall, joint: their two colours.
        floor, floor_joint, ceiling: the colours of floor and ceiling.
    """

    name: str
    pattern: str
    wall: Colour
    joint: Colour
    floor: Colour
    floor_joint: Colour
    ceiling: Colour


THEMES = (
    Theme(
        "red brick",
        "brick",
        (167, 43, 43),
        (67, 15, 15),
        (119, 119, 119),
        (67, 67, 67),
        (55, 55, 55),
    ),
    Theme(
        "blue tile",
        "tile",
        (83, 83, 255),
        (0, 0, 139),
        (183, 183, 183),
        (111, 111, 111),
        (79, 79, 79),
    ),
    Theme(
        "green panel",
        "panel",
        (79, 151, 63),
        (27, 67, 19),
        (119, 79, 43),
        (75, 47, 19),
        (47, 47, 47),
    ),
    Theme(
        "brown wood",
        "plank",
        (139, 95, 55),
        (63, 35, 11),
        (203, 167, 127),
        (151, 111, 71),
        (91, 63, 35),
    ),
    Theme(
        "grey stone",
        "stone",
        (147, 147, 147),
        (67, 67, 67),
        (63, 131, 47),
        (43, 91, 31),
        (71, 71, 71),
    ),
    Theme(
        "yellow stripe",
        "stripe",
        (231, 187, 51),
        (79, 59, 27),
        (55, 55, 55),
        (27, 27, 27),
        (99, 99, 99),
    ),
    Theme(
        "white tile",
        "tile",
        (227, 227, 227),
        (131, 131, 131),
        (175, 47, 47),
        (103, 23, 23),
        (147, 147, 147),
    ),
    Theme(
        "sand block",
        "block",
        (199, 163, 119),
        (115, 79, 43),
        (51, 51, 203),
        (0, 0, 115),
        (127, 95, 63),
    ),
)

HALL = Theme(
    "dark metal", "panel", (99, 99, 99), (39, 39, 39), (83, 83, 83), (47, 47, 47), (47, 47, 47)
)


def names(theme: int) -> tuple[str, str, str]:
    """Return the lump names of wall, floor and ceiling; index -1 is the corridors' look."""
    tag = "H" if theme < 0 else str(theme)
    return f"WMWALL{tag}", f"WMFLOR{tag}", f"WMCEIL{tag}"


@cache
def lumps() -> tuple[tuple[str, bytes], ...]:
    """Return all textures as (name, PNG bytes)."""
    out: list[tuple[str, bytes]] = []
    for index, theme in [*enumerate(THEMES), (-1, HALL)]:
        wall, floor, ceiling = names(index)
        out.append((wall, _png(_wall(theme))))
        out.append((floor, _png(_checker(theme.floor, theme.floor_joint))))
        out.append((ceiling, _png(_grid(theme.ceiling))))
    return tuple(out)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


def _fill(colour: Colour, size: int = SIZE) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


def _wall(theme: Theme) -> np.ndarray:
    image = _fill(theme.wall)
    _PATTERNS[theme.pattern](image, theme.wall, theme.joint)
    # A dark skirting board separates wall from floor, which makes distance legible.
    image[SIZE - 10 :] = np.asarray(theme.joint, np.uint8) // 2
    image[:4] = theme.joint
    return image


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (int(min(255, c * factor)) for c in colour)
    return r, g, b


def _brick(image: np.ndarray, wall: Colour, joint: Colour) -> None:
    shades = (1.0, 0.82, 1.12, 0.9)
    for row, top in enumerate(range(0, SIZE, 16)):
        shift = 16 if row % 2 else 0
        for column, left in enumerate(range(-32, SIZE, 32)):
            x0, x1 = max(0, left + shift), max(0, left + shift + 29)
            image[top : top + 13, x0:x1] = _shade(wall, shades[(row * 3 + column) % 4])
            image[top : top + 13, x1 : max(0, left + shift + 32)] = joint
        image[top + 13 : top + 16] = joint


def _tile(image: np.ndarray, wall: Colour, joint: Colour) -> None:
    for row in range(4):
        for column in range(4):
            factor = 1.0 if (row + column) % 2 else 0.72
            y, x = row * 32, column * 32
            image[y : y + 32, x : x + 32] = _shade(wall, factor)
    image[::32] = image[1::32] = joint
    image[:, ::32] = image[:, 1::32] = joint


def _panel(image: np.ndarray, wall: Colour, joint: Colour) -> None:
    for left in (0, 64):
        image[:, left : left + 4] = joint
        image[:, left + 4 : left + 10] = _shade(wall, 1.3)
        image[24:104, left + 20 : left + 52] = _shade(wall, 0.62)
        image[24:28, left + 20 : left + 52] = joint


def _plank(image: np.ndarray, wall: Colour, joint: Colour) -> None:
    for i, left in enumerate(range(0, SIZE, 16)):
        image[:, left : left + 16] = _shade(wall, (1.0, 0.8, 1.15, 0.9)[i % 4])
        image[:, left : left + 2] = joint
    image[56:66] = joint


def _stone(image: np.ndarray, wall: Colour, joint: Colour) -> None:
    shades = (1.0, 0.85, 1.1, 0.78, 0.95)
    for row, top in enumerate(range(0, SIZE, 32)):
        shift = 32 if row % 2 else 0
        for column in range(-1, 3):
            x0, x1 = max(0, column * 64 + shift), max(0, column * 64 + shift + 61)
            image[top : top + 29, x0:x1] = _shade(wall, shades[(row * 2 + column) % 5])
            image[top : top + 29, x1 : max(0, column * 64 + shift + 64)] = joint
        image[top + 29 : top + 32] = joint


def _block(image: np.ndarray, wall: Colour, joint: Colour) -> None:
    for row in range(2):
        for column in range(2):
            y, x = row * 64, column * 64
            image[y : y + 64, x : x + 64] = _shade(wall, 0.8 if (row + column) % 2 else 1.0)
    image[::64] = image[1::64] = image[2::64] = joint
    image[:, ::64] = image[:, 1::64] = image[:, 2::64] = joint


def _stripe(image: np.ndarray, wall: Colour, joint: Colour) -> None:
    y, x = np.mgrid[:SIZE, :SIZE]
    image[((x + y) % 64) < 24] = joint
    image[:28] = _shade(wall, 0.8)
    image[28:32] = image[96:100] = joint
    image[100:] = _shade(wall, 0.8)


def _checker(colour: Colour, joint: Colour) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] // 64
    image = _fill(colour)
    image[(x + y) % 2 == 1] = _shade(colour, 0.75)
    image[::64] = image[1::64] = joint
    image[:, ::64] = image[:, 1::64] = joint
    return image


def _grid(colour: Colour) -> np.ndarray:
    image = _fill(colour)
    image[:4] = image[:, :4] = _shade(colour, 0.55)
    return image


_PATTERNS: dict[str, Callable[[np.ndarray, Colour, Colour], None]] = {
    "block": _block,
    "brick": _brick,
    "panel": _panel,
    "plank": _plank,
    "stone": _stone,
    "stripe": _stripe,
    "tile": _tile,
}
