"""Procedural levels: rooms on a coarse grid, joined by corridors.

Every room and corridor is an axis-aligned rectangle and a sector of its own, so walls, light
and sight lines are known exactly without asking the engine. Lengths are in map units
(32 to the metre), angles in degrees counter-clockwise from +x.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from worldmodel.envs.doom import textures

UNITS_PER_METRE = 32.0
SPLITS = ("train", "val", "test")
DARK_LIGHT = 70  # of 255; sectors from here down are dark

_PITCH = 512  # between room centres; rooms reach 128 to 224 from theirs, so gaps are 64 to 256
_GRID = 3
_LIGHTS = {"bright": (224, 255), "dim": (128, 152), "dark": (56, DARK_LIGHT)}


Wall = tuple[int, int, int, int]


@dataclass(frozen=True)
class Kind:
    """A kind of object: its caption name, engine class, and how the class is drawn."""

    name: str
    actor: str
    number: int
    sprite: str
    scale: float
    radius: int
    bright: bool = False
    translation: str = ""


KINDS = (
    Kind("red torch", "WmRedTorch", 30001, "TREDA", 1.0, 16, True),
    Kind("green torch", "WmGreenTorch", 30002, "TGRNA", 1.0, 16, True),
    Kind("blue torch", "WmBlueTorch", 30003, "TBLUA", 1.0, 16, True),
    Kind("red pillar", "WmRedPillar", 30004, "COL3A", 1.6, 20),
    Kind("green pillar", "WmGreenPillar", 30005, "COL1A", 1.6, 20),
    Kind(
        "blue pillar",
        "WmBluePillar",
        30006,
        "COL3A",
        1.6,
        20,
        False,
        '"16:47=193:207", "160:191=195:207"',
    ),
    Kind("green tree", "WmGreenTree", 30007, "SMITA", 1.2, 20),
    Kind("grey statue", "WmGreyStatue", 30008, "SMT2A", 1.4, 20),
    Kind("burning barrel", "WmBurningBarrel", 30009, "FCANA", 1.2, 16, True),
    Kind("yellow lamp", "WmYellowLamp", 30010, "COLUA", 1.4, 16, True),
)


@dataclass(frozen=True)
class Sector:
    """A rectangle of floor: x0, y0, x1, y1 in map units; theme -1 is a corridor."""

    x0: int
    y0: int
    x1: int
    y1: int
    light: int
    theme: int
    ceiling: int = 128

    def contains(self, x: float, y: float) -> bool:
        """Whether a point lies in the rectangle."""
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1

    @property
    def centre(self) -> tuple[float, float]:
        """The rectangle's middle."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


@dataclass(frozen=True)
class Thing:
    """One object: index into `KINDS` and place."""

    kind: int
    x: int
    y: int


@dataclass(frozen=True)
class Level:
    """A level: rooms first, then corridors.

    Attributes:
        sectors: all rectangles; the first `rooms` are rooms.
        rooms: number of rooms.
        solid: the solid walls, each with its sector; the sector lies to the wall's right.
        openings: the lines between a corridor (first index, to the right) and a room.
        things: the objects.
        start: x, y, yaw of the agent; whole numbers.
    """

    sectors: tuple[Sector, ...]
    rooms: int
    solid: tuple[tuple[int, Wall], ...]
    openings: tuple[tuple[Wall, int, int], ...]
    things: tuple[Thing, ...]
    start: tuple[int, int, int]

    @cached_property
    def walls(self) -> np.ndarray:
        """float64 [W, 4], the solid walls as x0, y0, x1, y1; each is axis-aligned."""
        return np.array([wall for _, wall in self.solid], np.float64)

    def sector_at(self, x: float, y: float) -> Sector:
        """Return the sector of a point (the nearest one if it is in none)."""
        for sector in self.sectors:
            if sector.contains(x, y):
                return sector
        return min(self.sectors, key=lambda s: (s.centre[0] - x) ** 2 + (s.centre[1] - y) ** 2)

    def wall_distance(self, x: float, y: float, yaws: np.ndarray) -> np.ndarray:
        """Return the distances to the nearest solid wall along rays.

        Args:
            x: where the rays start, in map units.
            y: likewise.
            yaws: float [R], their directions in degrees.

        Returns:
            float64 [R] in map units.
        """
        angle = np.radians(yaws)[:, None]
        cos, sin = np.cos(angle), np.sin(angle)
        x0, y0, x1, y1 = self.walls.T
        upright = x0 == x1
        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.where(upright, (x0 - x) / cos, (y0 - y) / sin)
            across = np.where(upright, y + far * sin, x + far * cos)
        low = np.where(upright, np.minimum(y0, y1), np.minimum(x0, x1))
        high = np.where(upright, np.maximum(y0, y1), np.maximum(x0, x1))
        hit = (far >= 0) & (across >= low - 1e-6) & (across <= high + 1e-6)
        return np.where(hit, far, np.inf).min(axis=1)


def level_seed(split: str, seed: int) -> tuple[int, int]:
    """Return the entropy of a level: no two splits share one."""
    return SPLITS.index(split), seed


def make_level(split: str, seed: int) -> Level:
    """Return the level of a split and a seed (any integer from 0); always the same one."""
    rng = np.random.default_rng(level_seed(split, seed))
    cells = _pick_cells(rng)
    rooms = _make_rooms(rng, cells)
    halls, doors = _make_halls(rng, cells, rooms)
    things = _place_things(rng, cells)
    solid, openings = _make_walls(rooms, halls, doors)
    start = _pick_start(rng, cells, rooms)
    return Level((*rooms, *halls), len(rooms), solid, openings, things, start)


def _pick_cells(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return 4 to 8 grid cells that hang together."""
    count = int(rng.integers(4, 9))
    cells = [(int(rng.integers(_GRID)), int(rng.integers(_GRID)))]
    while len(cells) < count:
        near = {
            (i + di, j + dj)
            for i, j in cells
            for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1))
            if 0 <= i + di < _GRID and 0 <= j + dj < _GRID
        }
        free = sorted(near - set(cells))
        cells.append(free[int(rng.integers(len(free)))])
    return cells


def _middle(cell: tuple[int, int]) -> tuple[int, int]:
    return cell[0] * _PITCH, cell[1] * _PITCH


def _make_rooms(rng: np.random.Generator, cells: list[tuple[int, int]]) -> list[Sector]:
    """Return a room per cell; at least one is dark and one is bright."""
    moods = ["dark", "bright", *rng.choice(["bright", "dim", "dark"], 6, p=[0.55, 0.3, 0.15])]
    moods = [str(m) for m in rng.permutation(moods[: len(cells)])]
    themes = rng.permutation(len(textures.THEMES))
    rooms = []
    for n, (cell, mood) in enumerate(zip(cells, moods, strict=True)):
        x, y = _middle(cell)
        west, south, east, north = (int(v) for v in rng.integers(4, 8, 4) * 32)
        low, high = _LIGHTS[mood]
        light = int(rng.integers(low, high + 1))
        rooms.append(Sector(x - west, y - south, x + east, y + north, light, int(themes[n])))
    return rooms


def _make_halls(
    rng: np.random.Generator, cells: list[tuple[int, int]], rooms: list[Sector]
) -> tuple[list[Sector], list[tuple[int, int]]]:
    """Return the corridors, and for each the indices of the two rooms it joins."""
    edges = [
        (a, b)
        for a, (i, j) in enumerate(cells)
        for b, other in enumerate(cells)
        if other in ((i + 1, j), (i, j + 1))
    ]
    group = list(range(len(cells)))
    halls, doors = [], []
    for n in rng.permutation(len(edges)):
        a, b = edges[n]
        joined = group[a] == group[b]
        if joined and rng.random() > 0.35:
            continue
        old, new = group[a], group[b]
        group = [new if g == old else g for g in group]
        halls.append(_make_hall(rng, cells[a], rooms[a], rooms[b], cells[a][1] == cells[b][1]))
        doors.append((a, b))
    return halls, doors


def _make_hall(
    rng: np.random.Generator, cell: tuple[int, int], a: Sector, b: Sector, flat: bool
) -> Sector:
    # A narrow low passage looks like a door, a wide one like an opening.
    width, ceiling = ((72, 88), (96, 96), (128, 96), (160, 112))[int(rng.integers(4))]
    light = int(np.clip((a.light + b.light) // 2, 96, 192))
    x, y = _middle(cell)
    if flat:
        return Sector(a.x1, y - width // 2, b.x0, y + width // 2, light, -1, ceiling)
    return Sector(x - width // 2, a.y1, x + width // 2, b.y0, light, -1, ceiling)


def _place_things(rng: np.random.Generator, cells: list[tuple[int, int]]) -> tuple[Thing, ...]:
    """Return 1 to 3 objects per room, one per quarter, off the lines between doorways."""
    kinds = [int(k) for _ in range(3) for k in rng.permutation(len(KINDS))]
    things = []
    for cell in cells:
        x, y = _middle(cell)
        quarters = rng.permutation([(1, 1), (1, -1), (-1, 1), (-1, -1)])
        for sx, sy in quarters[: int(rng.choice([1, 2, 2, 3]))]:
            dx, dy = (int(v) for v in rng.integers(88, 105, 2))
            things.append(Thing(kinds[len(things)], x + int(sx) * dx, y + int(sy) * dy))
    return tuple(things)


def _pick_start(
    rng: np.random.Generator, cells: list[tuple[int, int]], rooms: list[Sector]
) -> tuple[int, int, int]:
    dark = [n for n, room in enumerate(rooms) if room.light <= DARK_LIGHT]
    # Three in ten start in the dark, so that leaving it is seen often enough.
    room = rng.choice(dark) if rng.random() < 0.3 else rng.integers(len(rooms))
    x, y = _middle(cells[int(room)])
    dx, dy = (int(v) for v in rng.integers(-40, 41, 2))
    return x + dx, y + dy, int(rng.integers(8)) * 45


def _sides(s: Sector) -> tuple[Wall, ...]:
    """Return the rectangle's sides, clockwise, as x0, y0, x1, y1."""
    return (
        (s.x0, s.y0, s.x0, s.y1),
        (s.x0, s.y1, s.x1, s.y1),
        (s.x1, s.y1, s.x1, s.y0),
        (s.x1, s.y0, s.x0, s.y0),
    )


def _split_sides(room: Sector, halls: list[Sector]) -> list[Wall]:
    """Return a room's sides, clockwise, without the parts that open into a corridor."""
    out = []
    for x0, y0, x1, y1 in _sides(room):
        parts = [(x0, y0, x1, y1)]
        for hall in halls:
            upright = x0 == x1 and x0 in (hall.x0, hall.x1)
            level = y0 == y1 and y0 in (hall.y0, hall.y1)
            if upright and min(y0, y1) < hall.y0 < hall.y1 < max(y0, y1):
                near, far = (hall.y0, hall.y1) if y0 < y1 else (hall.y1, hall.y0)
                parts = [(x0, y0, x0, near), (x0, far, x0, y1)]
            elif level and min(x0, x1) < hall.x0 < hall.x1 < max(x0, x1):
                near, far = (hall.x0, hall.x1) if x0 < x1 else (hall.x1, hall.x0)
                parts = [(x0, y0, near, y0), (far, y0, x1, y0)]
        out += parts
    return out


def _make_walls(
    rooms: list[Sector], halls: list[Sector], doors: list[tuple[int, int]]
) -> tuple[tuple[tuple[int, Wall], ...], tuple[tuple[Wall, int, int], ...]]:
    solid: list[tuple[int, Wall]] = []
    openings: list[tuple[Wall, int, int]] = []
    for n, room in enumerate(rooms):
        own = [hall for hall, pair in zip(halls, doors, strict=True) if n in pair]
        solid += [(n, wall) for wall in _split_sides(room, own)]
    for n, (hall, (a, b)) in enumerate(zip(halls, doors, strict=True), start=len(rooms)):
        west, north, east, south = _sides(hall)
        flat = hall.x0 == rooms[a].x1
        walls, ends = ((north, south), (west, east)) if flat else ((west, east), (south, north))
        solid += [(n, wall) for wall in walls]
        openings += [(ends[0], n, a), (ends[1], n, b)]
    return tuple(solid), tuple(openings)
