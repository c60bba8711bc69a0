"""`collect` and `play` on Gymnasium worlds: a user's file, and an id without a description."""

import subprocess
import sys

import numpy as np
import pytest

from worldmodel.datasets.store import EpisodeStore


def run(*words, cwd):
    command = [sys.executable, "-m", "worldmodel.cli", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


def test_a_users_file_is_collected_and_played(tmp_path):
    pytest.importorskip("minigrid")
    (tmp_path / "maze.yaml").write_text(
        "id: minigrid:MiniGrid-Empty-5x5-v0\n"
        "kwargs: {tile_size: 8}\n"
        "size: 32\n"
        "actions:\n"
        "  - {name: ahead, key: w, native: forward}\n"
        "  - {name: left, key: a, native: left, phrases: [turn left]}\n"
    )
    words = ("env=maze.yaml", "out=m.zarr", "episodes=3", "steps=24", "workers=2")
    done = run("collect", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    store = EpisodeStore(tmp_path / "m.zarr")
    assert [row.key for row in store.spec.actions.rows] == ["w", "a"]
    assert store.spec.actions.rows[0].joins == ()
    episodes = [store.read(name) for name in store.ids]
    assert all(e.frames.shape[1:] == (32, 32, 3) for e in episodes)
    said = {note.text for e in episodes for note in e.annotations}
    assert said & {"ahead", "turn left"}
    assert len({e.info["level_seed"] for e in episodes}) == 3

    (tmp_path / "s.yaml").write_text("steps: 5\nevents:\n  - {at: 0, hold: a, for: 5}\n")
    played = run(
        "play", "world=maze.yaml", "headless=true", "script=s.yaml", "frames=f.npz", cwd=tmp_path
    )
    assert played.returncode == 0, played.stderr
    (frames,) = np.load(tmp_path / "f.npz").values()
    assert frames.shape == (5, 32, 32, 3)
    wrong = run("play", "world=maze.yml", "headless=true", "script=s.yaml", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Cannot read the world file 'maze.yml'" in wrong.stderr


def test_a_gymnasium_id_is_collected_and_assumptions_are_said_once(tmp_path):
    words = ("env=gym:CartPole-v1", "out=c.zarr", "episodes=4", "steps=8", "workers=2")
    done = run("collect", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("its keys are assumed") == 1
