import numpy as np
import pytest

from worldmodel.envs.doom import textures, wad
from worldmodel.envs.doom.levels import (
    DARK_LIGHT,
    KINDS,
    SPLITS,
    Level,
    Sector,
    level_seed,
    make_level,
)

LEVELS = [make_level("train", seed) for seed in range(40)]


def reachable_rooms(level: Level) -> int:
    found = {0}
    for _ in level.sectors:
        for (_, hall, room), (_, hall2, room2) in zip(
            level.openings[::2], level.openings[1::2], strict=True
        ):
            assert hall == hall2
            if {room, room2} & found:
                found |= {room, room2}
    return len(found)


def overlap(a: Sector, b: Sector) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def test_same_seed_same_level_other_seed_other_level():
    texts = [wad.textmap(make_level("train", seed)) for seed in range(40)]
    assert texts == [wad.textmap(level) for level in LEVELS]
    assert len(set(texts)) == 40


def test_splits_never_share_a_level():
    entropies = {level_seed(split, seed) for split in SPLITS for seed in range(200)}
    assert len(entropies) == 600
    texts = {wad.textmap(make_level(split, seed)) for split in SPLITS for seed in range(60)}
    assert len(texts) == 180


def test_every_level_hangs_together_and_has_dark_and_bright_rooms():
    for level in LEVELS:
        rooms = level.sectors[: level.rooms]
        assert 4 <= level.rooms <= 8
        assert reachable_rooms(level) == level.rooms
        assert min(r.light for r in rooms) <= DARK_LIGHT
        assert max(r.light for r in rooms) >= 224
        assert len({r.theme for r in rooms}) == level.rooms
        pairs = [(a, b) for n, a in enumerate(level.sectors) for b in level.sectors[:n]]
        assert not any(overlap(a, b) for a, b in pairs)


def test_objects_and_start_stand_free():
    for level in LEVELS:
        for thing in level.things:
            room = level.sector_at(thing.x, thing.y)
            assert room.theme >= 0
            radius = KINDS[thing.kind].radius
            assert room.x0 + radius < thing.x < room.x1 - radius
            assert room.y0 + radius < thing.y < room.y1 - radius
        x, y, _ = level.start
        assert all((x - t.x) ** 2 + (y - t.y) ** 2 > 48**2 for t in level.things)
        # Doorways are never blocked: no object stands in front of the middle of an opening.
        for (x0, y0, x1, y1), _, _ in level.openings:
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            assert all((cx - t.x) ** 2 + (cy - t.y) ** 2 > 64**2 for t in level.things)


def test_at_least_eight_kinds_of_objects_appear():
    assert len({thing.kind for level in LEVELS for thing in level.things}) == len(KINDS) >= 8


def test_wall_distance_agrees_with_marching():
    level = LEVELS[3]
    x, y, _ = level.start
    yaws = np.arange(0, 360, 17.0)
    far = level.wall_distance(x, y, yaws)
    for yaw, distance in zip(yaws, far, strict=True):
        along = np.arange(0, distance + 3, 1.0)
        xs = x + along * np.cos(np.radians(yaw))
        ys = y + along * np.sin(np.radians(yaw))
        inside = [any(s.contains(a, b) for s in level.sectors) for a, b in zip(xs, ys, strict=True)]
        first_outside = inside.index(False) if False in inside else len(inside)
        assert first_outside == pytest.approx(distance, abs=3)


def test_textures_are_distinct():
    pictures = {name: data for name, data in textures.lumps() if "CEIL" not in name}
    assert len(set(pictures.values())) == len(pictures)
    assert all(len(name) <= 8 for name in pictures)
