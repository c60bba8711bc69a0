import hashlib
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldmodel.envs import make_world
from worldmodel.envs.doom import world as world_module
from worldmodel.envs.doom.levels import (
    DARK_LIGHT,
    KINDS,
    UNITS_PER_METRE,
    Level,
    Sector,
    Thing,
)
from worldmodel.envs.doom.world import ACTIONS, RAYS, DoomWorld
from worldmodel.errors import UserError

KEYS = ["w", "w", "a", "w+a", "d", "s", "q", "e", "w+e", "a", "a", "none", "s+d", "w"]

DIGEST = """
from test_doom_world import KEYS, digest
print(digest(int({seed})))
"""


@pytest.fixture(scope="module")
def world():
    world = DoomWorld()
    yield world
    world.close()


def press(text):
    return ACTIONS.parse(text)


def digest(seed: int, split: str = "train") -> str:
    world = make_world("doom", split=split)
    found = hashlib.sha256(world.reset(seed).frame.tobytes())
    for text in KEYS * 3:
        found.update(world.step(press(text)).frame.tobytes())
    world.close()
    return found.hexdigest()


def moved(before, after):
    """Metres forward, metres left and degrees left, in the frame of the first pose."""
    east, north = (after["pose"] - before["pose"])[:2].astype(float)
    yaw = np.radians(float(before["pose"][2]))
    turn = (float(after["pose"][2] - before["pose"][2]) + 180) % 360 - 180
    ahead = east * np.cos(yaw) + north * np.sin(yaw)
    return ahead, north * np.cos(yaw) - east * np.sin(yaw), turn


ENGINES = """
import os, sys, time
from pathlib import Path
from worldmodel.envs.doom.world import DoomWorld
world = DoomWorld()
world.reset(0)
for _ in range(3):
    world.step(world.spec.actions.press(("w",)))
mine = [
    path.parent.name
    for path in Path("/proc").glob("[0-9]*/stat")
    if path.read_text().rpartition(")")[2].split()[1] == str(os.getpid())
]
print(*mine, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="needs /proc, and a kernel that ends the engine"
)
def test_the_engine_of_a_killed_program_ends():
    program = subprocess.Popen(
        [sys.executable, "-c", ENGINES], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    try:
        assert program.stdout is not None
        (engine,) = program.stdout.readline().split()
        assert Path(f"/proc/{engine}/comm").read_text().strip() == "vizdoom"
    finally:
        program.kill()
        program.wait(10)
    end = time.monotonic() + 10
    while lives(engine):
        assert time.monotonic() < end, "the engine lives on"
        time.sleep(0.05)


def lives(pid: str) -> bool:
    """Whether a process runs; one that its new parent has not asked about is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_same_seed_same_frames_in_two_processes(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})" + DIGEST
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(seed=5)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for _ in range(2)
    ]
    first, second = (run.communicate(timeout=120)[0].strip() for run in runs)
    assert first == second == digest(5)
    assert list(tmp_path.iterdir()) == []  # the engine leaves nothing behind


def test_other_seeds_and_splits_look_different():
    assert len({digest(5), digest(6), digest(5, "val"), digest(5, "test")}) == 4


def test_reset_repeats_the_start(world):
    first = world.reset(7)
    for text in KEYS:
        world.step(press(text))
    again = world.reset(7)
    np.testing.assert_array_equal(first.frame, again.frame)
    np.testing.assert_array_equal(first.facts["pose"], again.facts["pose"])
    assert world.info == {"world": "doom", "split": "train", "level_seed": 7}
    assert world.reset(None) is not None
    assert world.info["level_seed"] == 8


def test_spec_and_facts(world):
    step = world.reset(0)
    spec = world.spec
    assert step.frame.shape == (spec.height, spec.width, 3) == (64, 64, 3)
    assert step.frame.dtype == np.uint8
    assert len(spec.objects) == len(KINDS)
    shapes = {name: (np.shape(v), np.asarray(v).dtype) for name, v in step.facts.items()}
    count = (len(KINDS),)
    wanted = {
        "pose": (3,), "light": (), "wall": (), "bearing": count, "distance": count,
        "rays": (RAYS,), "theme": (),
    }  # fmt: skip
    assert shapes == {name: (shape, np.dtype("float32")) for name, shape in wanted.items()}
    assert 0 <= step.facts["light"] <= 1


@pytest.mark.parametrize("text", ["w", "s", "a", "d", "q", "e", "w+q", "s+e", "none"])
def test_one_step_moves_by_the_tables_amount(world, text):
    """From the very first step on, and with no inertia afterwards."""
    action = press(text)
    before = world.reset(3)
    after = world.step(action)
    ahead, left, turn = moved(before.facts, after.facts)
    assert ahead == pytest.approx(action.dx, abs=0.015)
    assert left == pytest.approx(action.dy, abs=0.015)
    assert turn == pytest.approx(action.dyaw, abs=0.01)
    rest = world.step(press("none"))
    np.testing.assert_array_equal(rest.facts["pose"], after.facts["pose"])


def test_walking_and_turning_together_follows_a_curve(world):
    before = world.reset(3)
    after = world.step(press("w+a"))
    ahead, left, turn = moved(before.facts, after.facts)
    assert turn == pytest.approx(11.25, abs=0.01)
    assert np.hypot(ahead, left) == pytest.approx(0.5, abs=0.02)
    assert left > 0


def test_wall_fact_is_the_way_until_the_wall(world):
    step = world.reset(3)
    start, wall = step.facts["pose"], float(step.facts["wall"])
    assert step.facts["rays"][0] == pytest.approx(wall)
    for _ in range(200):
        step = world.step(press("w"))
        if step.facts["wall"] < 0.6:
            break
    gone = float(np.hypot(*(step.facts["pose"] - start)[:2]))
    assert gone + float(step.facts["wall"]) == pytest.approx(wall, abs=0.3)
    radius = 0.5  # of the walker: it cannot come nearer
    assert step.facts["wall"] >= radius - 0.02


def test_bearing_points_at_the_object_and_turning_left_lowers_it(world):
    checked = 0
    for seed in range(12):
        before = world.reset(seed)
        for _ in range(32):
            after = world.step(press("a"))
            for k in np.flatnonzero(~np.isnan(before.facts["bearing"])):
                bearing = float(before.facts["bearing"][k])
                kinds = [t for t in world.level.things if t.kind == k]
                if len(kinds) > 1 or np.isnan(after.facts["bearing"][k]):
                    continue
                assert float(after.facts["bearing"][k]) == pytest.approx(bearing - 11.25, abs=0.01)
                x, y, yaw = before.facts["pose"].astype(float)
                away = np.radians(yaw + bearing)
                distance = float(before.facts["distance"][k])
                there = np.array([x + distance * np.cos(away), y + distance * np.sin(away)])
                place = np.array([kinds[0].x, kinds[0].y]) / UNITS_PER_METRE
                np.testing.assert_allclose(there, place, atol=0.01)
                checked += 1
            before = after
    assert checked > 50


def one_room(*things: Thing) -> Level:
    sides = ((-256, -256, -256, 256), (-256, 256, 256, 256), (256, 256, 256, -256))
    room = Sector(-256, -256, 256, 256, 255, 4)
    walls = tuple((0, side) for side in (*sides, (256, -256, -256, -256)))
    return Level((room,), 1, walls, (), things, (0, 0, 0))


@pytest.mark.parametrize(("y", "side"), [(60, "left"), (0, "ahead"), (-60, "right")])
def test_every_kind_is_seen_where_the_facts_say(world, monkeypatch, y, side):
    monkeypatch.setattr(world_module, "make_level", lambda split, seed: one_room())
    empty = world.reset(0)
    assert np.isnan(empty.facts["bearing"]).all()
    looks = []
    for k in range(len(KINDS)):
        level = one_room(Thing(k, 160, y))
        monkeypatch.setattr(world_module, "make_level", lambda split, seed, level=level: level)
        step = world.reset(0)
        bearing = float(step.facts["bearing"][k])
        assert bearing == pytest.approx(np.degrees(np.arctan2(y, 160)), abs=0.01)
        assert np.sign(bearing) == {"left": 1, "ahead": 0, "right": -1}[side]
        assert np.isnan(np.delete(step.facts["bearing"], k)).all()
        changed = np.abs(step.frame.astype(int) - empty.frame).max(axis=2) > 24
        assert changed.sum() > 20
        expected = 32 - 32 * (y / 160) / 0.75
        assert np.nonzero(changed)[1].mean() == pytest.approx(expected, abs=3)
        looks.append(step.frame[changed].mean(axis=0).astype(int).tolist())
    assert len({tuple(look) for look in looks}) == len(KINDS)


def test_what_is_behind_is_not_visible(world, monkeypatch):
    behind = one_room(Thing(0, -160, 0))
    monkeypatch.setattr(world_module, "make_level", lambda split, seed: behind)
    assert np.isnan(world.reset(0).facts["distance"]).all()


def test_dark_places_are_dark_but_not_black(world):
    dark, bright = [], []
    for seed in range(25):
        step = world.reset(seed)
        light = float(step.facts["light"]) * 255
        for _ in range(8):
            step = world.step(press("a"))
            grey = cv2.cvtColor(step.frame, cv2.COLOR_RGB2GRAY)
            if light <= DARK_LIGHT + 0.5:
                dark.append((np.median(grey), grey.max()))
            elif light > 200:
                bright.append((np.median(grey), grey.max()))
    dark, bright = np.array(dark), np.array(bright)
    assert dark[:, 0].mean() < 0.5 * bright[:, 0].mean()
    assert (dark[:, 1] > 15).mean() > 0.98
    assert dark[:, 0].mean() < 40


def test_close_removes_the_scratch_folder_and_forbids_more():
    world = DoomWorld(native=120)
    world.reset(0)
    folder = world._scratch.path
    assert folder.exists()
    world.close()
    world.close()
    assert not folder.exists()
    with pytest.raises(UserError, match="closed"):
        world.reset(1)


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="Did you mean 'doom'"):
        make_world("dom")
    with pytest.raises(UserError, match="Did you mean 'split'"):
        make_world("doom", splitt="val")
    with pytest.raises(UserError, match="Did you mean 'train'"):
        make_world("doom", split="trian")
    with pytest.raises(UserError, match="native"):
        make_world("doom", native=100)
    with pytest.raises(UserError, match="size"):
        make_world("doom", size=1000)
    world = make_world("doom")
    with pytest.raises(UserError, match="reset"):
        world.step(press("w"))
    with pytest.raises(UserError, match="seed"):
        world.reset(-1)
    world.close()
