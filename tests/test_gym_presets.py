"""Every described world is collected; and what MiniWorld tells of itself is in the picture."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from worldmodel.cli import main
from worldmodel.datasets.store import EpisodeStore
from worldmodel.envs import make_world
from worldmodel.envs.gym_config import PRESETS
from worldmodel.errors import UserError

ROOT = Path(__file__).parents[1]


def world_of(preset):
    """The world; skips where its package is not installed."""
    try:
        return make_world(preset)
    except UserError as error:
        if "needs a package" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_collected(preset, tmp_path):
    world_of(preset).close()
    words = [f"env={preset}", f"out={tmp_path}/x.zarr", "episodes=1", "steps=16", "workers=1"]
    assert main(["collect", *words]) == 0
    assert main(["data", "validate", f"store={tmp_path}/x.zarr"]) == 0
    store = EpisodeStore(tmp_path / "x.zarr")
    (episode,) = (store.read(name) for name in store.ids)
    assert episode.num_steps == 16
    assert episode.keys.any()
    assert {note.kind for note in episode.annotations} >= {"caption", "question"}


def test_documented_tables_are_those_of_the_presets():
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    text = (ROOT / "docs" / "worlds.md").read_text(encoding="utf-8")
    assert tables["with_tables"](text) == text
    assert all(f"<!-- table {name} -->" in text for name in PRESETS)


def test_miniworld_tells_where_the_agent_is_and_what_it_sees():
    world = world_of("miniworld")
    assert world.spec.objects == ("red box",)
    press, seen = world.spec.actions.press, 0
    for seed in (2, 11, 13):
        step = world.reset(seed)
        for key in "wwaaaaaaaaaaaw":
            before, step = step, world.step(press(key))
            (x, y, yaw), (to_x, to_y, to_yaw) = (s.facts["pose"].tolist() for s in (before, step))
            if key == "a":
                assert (to_x, to_y) == (x, y)
                assert (to_yaw - yaw) % 360 == pytest.approx(30, abs=1e-3)
            elif before.facts["wall"] > 1:
                ahead = np.radians(yaw)
                moved = [to_x - x, to_y - y]
                assert moved == pytest.approx([0.3 * np.cos(ahead), 0.3 * np.sin(ahead)], abs=1e-4)
                nearer = float(before.facts["wall"] - step.facts["wall"])
                assert nearer == pytest.approx(0.3, abs=1e-3)
            red = step.frame.astype(int) @ [1, -1, -1] > 20
            bearing, distance = float(step.facts["bearing"][0]), float(step.facts["distance"][0])
            assert np.isnan(distance) == np.isnan(bearing)
            assert red.any() == (distance > 0), "it is told if and only if it is in the picture"
            if red.any():
                column = np.nonzero(red)[1].mean() + 0.5
                wide = np.tan(np.radians(world.env.unwrapped.agent.cam_fov_y / 2))
                angle = np.degrees(np.arctan((32 - column) / 32 * wide))
                if abs(bearing) < 20:  # all of it is in the picture
                    assert angle == pytest.approx(bearing, abs=4)
                    seen += 1
                assert angle * bearing > 0 or abs(bearing) < 5
    assert seen > 2
    world.close()
