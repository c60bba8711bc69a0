"""Playing a real world by hand into a store: a real window, real keys, a real SIGKILL."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.commands import DataConfig
from worldmodel.datasets.commands import main as data
from worldmodel.datasets.played import RecordedWorld, recover
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.workers import CollectConfig
from worldmodel.envs.gym_config import load_preset
from worldmodel.errors import UserError
from worldmodel.viewer import human
from worldmodel.viewer.keys import Keymap
from worldmodel.world import Annotation, Step, WorldSpec

SPEC = WorldSpec("count", ActionTable((ActionRow("on", "w", "go on", dx=1.0),)), 8, 8, fps=20.0)


class Count:
    """Shows how often it was stepped; with `turns` it stands still without a key."""

    spec = SPEC

    def __init__(self, turns: bool = False, ends: int = 99) -> None:
        self.turns, self.ends, self.closed = turns, ends, False

    def reset(self, seed=None) -> Step:
        self.info, self.now = {"level_seed": seed}, 0
        self.shown = self.show()
        return self.shown

    def show(self) -> Step:
        frame = np.full((8, 8, 3), self.now, np.uint8)
        facts = {"light": np.float32(self.now), "pair": np.array([self.now, np.nan], np.float32)}
        return Step(frame, terminated=self.now == self.ends, facts=facts)

    def step(self, action) -> Step:
        if not (self.turns and action.idle):
            self.now += 1
            self.shown = self.show()
        return self.shown

    def close(self) -> None:
        self.closed = True


def annotate(episode, spec, seed):
    return (Annotation("caption", 0, 0, f"{episode.num_steps} steps of seed {seed}"),)


@pytest.fixture
def config(tmp_path: Path) -> CollectConfig:
    return CollectConfig("count", str(tmp_path / "x.zarr"), policy="human", licence="CC0-1.0")


W, IDLE = SPEC.actions.press(["w"]), SPEC.actions.press([])


def test_each_episode_is_stored_when_it_ends_with_the_next_free_seed(config) -> None:
    world = RecordedWorld(Count(ends=3), config, annotate)
    world.reset(0)
    for action in (W, IDLE):
        world.step(action)
    assert not EpisodeStore(config.out).ids
    world.reset(1)  # ends the first one by hand
    assert len(EpisodeStore(config.out)) == 1
    for _ in range(3):
        step = world.step(W)
    assert step.terminated
    assert len(EpisodeStore(config.out)) == 2  # at once, not at the next reset
    world.reset(2)  # an episode without a step is none
    world.close()
    again = RecordedWorld(Count(), config, annotate)
    again.reset(0)
    again.step(W)
    again.close()
    store = EpisodeStore(config.out)
    assert [store.describe(name).seed for name in store.ids] == [0, 1, 2]
    episode = store.read(store.ids[0])
    assert episode.info == {
        "world": "count", "seed": 0, "split": "train", "policy": "human", "level_seed": 0
    }  # fmt: skip
    assert episode.annotations[0].text == "2 steps of seed 0"
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert episode.keys.tolist() == [1, 0]
    np.testing.assert_array_equal(episode.actions[:, 0], [1, 0])
    np.testing.assert_array_equal(episode.facts["light"], [0, 1, 2])
    assert np.isnan(episode.facts["pair"][:, 1]).all()
    assert store.provenance["licence"] == "CC0-1.0"
    assert data(DataConfig("validate", config.out)) == 0
    assert not list(Path(config.out).parent.glob("*.playing-*"))


def test_a_world_that_waits_for_keys_is_recorded_only_when_it_moves(config) -> None:
    world = RecordedWorld(Count(turns=True), config, annotate)
    world.reset(0)
    for action in (IDLE, W, IDLE, IDLE, W):
        world.step(action)
    world.close()
    store = EpisodeStore(config.out)
    assert store.read(store.ids[0]).keys.tolist() == [1, 1]


def test_what_was_cut_short_is_stored_up_to_the_last_complete_step(config) -> None:
    world = RecordedWorld(Count(), config, annotate)
    world.reset(0)
    for _ in range(5):
        world.step(W)
    (spill,) = Path(config.out).parent.glob("x.zarr.playing-*")
    whole = spill.read_bytes()
    assert recover(config.out, annotate) == []  # somebody is playing it
    world.close()
    full = EpisodeStore(config.out).read(EpisodeStore(config.out).ids[0])
    shutil.rmtree(config.out)
    spill.write_bytes(whole[:-3])
    assert "episode of 4 steps" in recover(config.out, annotate)[0]
    assert not spill.exists()
    store = EpisodeStore(config.out)
    np.testing.assert_array_equal(store.frames(store.ids[0]), full.frames[:5])
    spill.write_bytes(whole)  # killed between committing and deleting: the same episode again
    recover(config.out, annotate)
    spill.write_bytes(whole)
    recover(config.out, annotate)
    assert sorted(EpisodeStore(config.out).lengths.values()) == [4, 5]
    spill.write_bytes(whole[:20])  # nothing was played yet
    assert recover(config.out, annotate) == []
    assert not spill.exists()


def test_a_store_of_another_world_is_refused_before_playing(config) -> None:
    RecordedWorld(Count(), config, annotate).close()
    other = Count()
    other.spec = WorldSpec("count", SPEC.actions, 16, 16, fps=20.0)
    with pytest.raises(UserError, match="8x8 pixels"):
        RecordedWorld(other, config, annotate)


COMMAND = (sys.executable, "-P", "-m", "worldmodel.cli", "collect", "policy=human")


def test_without_a_display_it_is_one_sentence(tmp_path: Path) -> None:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    plain = {key: value for key, value in os.environ.items() if key not in hidden}
    run = subprocess.run(
        [*COMMAND, "env=minigrid", f"out={tmp_path / 'x.zarr'}"],
        env=plain, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith("worldmodel: There is no display")
    assert "policy=mix" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_settings_that_playing_by_hand_does_not_use_are_said(tmp_path: Path) -> None:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    run = subprocess.run(
        [*COMMAND, "env=minigrid", f"out={tmp_path / 'x.zarr'}", "episodes=3", "workers=4"],
        env={k: v for k, v in os.environ.items() if k not in hidden},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = "Playing by hand goes on until you close the window; not used: episodes=3, workers=4.\n"
    assert run.stdout == said
    assert run.returncode == 2


@pytest.mark.parametrize(("preset", "pause"), [("breakout", "F8"), ("carracing", "Space")])
def test_the_foot_of_the_window_names_a_key_that_is_not_the_worlds(preset, pause) -> None:
    table = ActionTable(tuple(row.row for row in load_preset(preset).rows))
    keymap = Keymap(table, human._BINDINGS)
    assert keymap.label("pause") == pause
    assert keymap.command(pause.lower()).name == "pause"
    assert keymap.label("next") == "Enter"
    assert keymap.label("say") == "", "there is no such command here"


# --- the real window -----------------------------------------------------------------------------


def until(condition, timeout_s=90.0):
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


class Person:
    """The command in a window, and hands on its keyboard."""

    def __init__(self, display: str, out: Path) -> None:
        hidden = ("WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
        plain = {key: value for key, value in os.environ.items() if key not in hidden}
        self.env = plain | {"DISPLAY": display}
        self.out, self.output = out, out.with_name("output.txt")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "env=doom", f"out={out}", "seed=5"],
                env=self.env, cwd=out.parent, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        until(lambda: "device: none" in self.text())  # the world is there
        window = until(lambda: self.do("search", "--onlyvisible", "--pid", str(self.process.pid)))
        self.do("windowfocus", "--sync", window.split("\n")[0])

    def do(self, *words: str) -> str:
        done = subprocess.run(
            ["xdotool", *words], env=self.env, capture_output=True, text=True, timeout=30
        )
        return done.stdout.strip()

    def text(self) -> str:
        assert self.process.poll() is None, self.output.read_text()
        return self.output.read_text()

    def played(self) -> int:
        """Bytes of the episode being played that are on disk."""
        spills = list(self.out.parent.glob(f"{self.out.name}.playing-*"))
        return sum(spill.stat().st_size for spill in spills)

    def walk(self) -> None:
        """Hold W until a good part of an episode is on disk."""
        before = self.played()
        self.do("keydown", "w")
        until(lambda: self.played() > before + 60_000)
        self.do("keyup", "w")


def ids(out: Path) -> list[str]:
    return EpisodeStore(out).ids if (out / "zarr.json").exists() else []


@pytest.mark.display
def test_a_person_plays_doom_and_nothing_is_lost(display: str, tmp_path: Path) -> None:
    out = tmp_path / "x.zarr"
    person = Person(display, out)
    try:
        person.walk()
        person.do("key", "Return")
        until(lambda: len(ids(out)) == 1)
        person.walk()
        played = person.played()
        assert played
        person.process.send_signal(signal.SIGKILL)
        person.process.wait(20)
        assert len(ids(out)) == 1
        person = Person(display, out)  # commits what was left, goes on with the next seed
        assert "that was cut short is now in" in person.text()
        assert len(ids(out)) == 2
        person.walk()
        person.do("key", "Escape")
        assert person.process.wait(60) == 0, person.output.read_text()
    finally:
        if person.process.poll() is None:
            person.process.kill()
            person.process.wait(20)
    assert "Stored 1 episode of" in person.output.read_text()
    store = EpisodeStore(out)
    assert [store.describe(name).seed for name in store.ids] == [5, 6, 7]
    for name in store.ids:
        episode = store.read(name)
        assert episode.info["policy"] == "human"
        assert episode.num_steps >= 5
        assert (episode.keys == 1).sum() >= 3  # W was held
        assert episode.annotations
        assert {"pose", "light"} <= set(episode.facts)
    assert data(DataConfig("validate", str(out))) == 0
    assert not person.played()
