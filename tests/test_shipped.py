"""The checkpoint that ships, through the real command: it loads, obeys, replays, and is small."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from worldmodel import checkpoint as checkpoints
from worldmodel.dream import Dream
from worldmodel.envs import make_world

NAME = "doom-nano"
WORLDMODEL = [sys.executable, "-P", "-m", "worldmodel.cli"]
SCRIPT = """
checkpoint: doom-nano
start: {seed: 2}
seed: 5
steps: 12
events:
  - {at: 0, hold: w+a, for: 4}
  - {at: 4, say: "Turn right!"}
  - {at: 10, clear: true}
"""


@pytest.fixture(scope="module")
def dream():
    return Dream.load(NAME)


def play(folder: Path, *settings: str) -> subprocess.CompletedProcess:
    (folder / "script.yaml").write_text(SCRIPT)
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [*WORLDMODEL, "play", "headless=true", "script=script.yaml", *settings],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_bundled_weights_are_under_120_mib():
    total = sum(p.stat().st_size for p in checkpoints.BUNDLED.rglob("*") if p.is_file())
    assert total < 120 * 2**20
    for name in checkpoints.bundled_names():
        assert (checkpoints.BUNDLED / name / "README.md").is_file()  # the model card


@pytest.mark.parametrize("name", checkpoints.bundled_names())
def test_every_bundled_checkpoint_imagines_its_own_world(name):
    dream = Dream.load(name)
    assert dream.engine.checkpoint.name == name
    first = dream.reset(seed=0).frame
    for row in dream.spec.actions.rows:
        frame = dream.step(dream.spec.actions.press([row.key])).frame
        assert frame.shape == first.shape
        assert frame.std() > 5, "a picture, not one colour"


def test_the_same_script_gives_the_same_frames(tmp_path):
    for name in ("a", "b"):
        done = play(tmp_path, f"frames={name}.npz", f"report={name}.json", f"record={name}.mp4")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("device: ")
    a, b = (np.load(tmp_path / f"{n}.npz")["frames"] for n in ("a", "b"))
    assert a.shape == (12, 64, 64, 3)
    assert np.array_equal(a, b)
    assert (tmp_path / "a.mp4").stat().st_size > 1000
    report = json.loads((tmp_path / "a.json").read_text())
    needed = {"device", "dtype", "checkpoint", "frames", "fps", "latency_ms", "start_s"}
    assert needed | {"peak_memory_mb", "events"} <= set(report)
    texts = [event["text"] for event in report["events"]]
    assert texts[:4] == ["action: w+a"] * 4
    assert texts[4:10] == ["instruction: turn right!"] * 6
    assert texts[10:] == ["action: none"] * 2


def test_keys_move_the_view_and_idling_does_not(dream):
    """Turning changes the picture far more than standing still, from most starts."""
    table = dream.spec.actions
    moved, still = [], []
    for start in range(6):
        for keys, changes in ((["a"], moved), ([], still)):
            first = dream.reset(seed=start).frame.astype(float)
            for _ in range(4):
                last = dream.step(table.press(keys)).frame
            changes.append(np.abs(last - first).mean())
    assert np.median(moved) > 2 * np.median(still)


def test_left_and_right_give_different_futures(dream):
    table = dream.spec.actions
    dream.reset(seed=1)
    left, right = dream.fork(2)
    for _ in range(4):
        a, b = Dream.batch_step([left, right], [table.press(["a"]), table.press(["d"])])
    assert np.abs(a.frame.astype(float) - b.frame).mean() > 5


def test_racing_nano_stands_drives_off_and_steers():
    """A car at rest moves by the gas alone, and the wheel decides where to."""
    pytest.importorskip("Box2D")
    dream = Dream.load("racing-nano")
    table = dream.spec.actions
    told = [table.press(keys) for keys in ([], ["w"], ["w", "a"], ["w", "d"])]
    world = make_world("carracing", split="val")
    for level in (0, 1):
        first = world.reset(seed=level).frame
        team = dream.fork(len(told))
        for member in team:
            member.reset(seed=level, frames=first[None])
        for _ in range(8):
            steps = Dream.batch_step(team, told)
        still, driven, left, right = (step.frame.astype(float) for step in steps)
        assert np.abs(driven - first).mean() > 3 * np.abs(still - first).mean()
        assert np.abs(left - right).mean() > 5
    world.close()


def test_a_damaged_weight_file_is_one_sentence(tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(checkpoints.BUNDLED / NAME, folder)
    weights = folder / "core.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = play(tmp_path, f"checkpoint={folder}")
    assert done.returncode == 2
    assert "core.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_display_is_one_sentence(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux knows whether there is a display before a window is opened")
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [*WORLDMODEL, "play"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "headless=true" in done.stderr
    assert "Traceback" not in done.stderr
