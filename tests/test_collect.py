"""Collecting with real worker processes: results, resumption, crashes, Ctrl-C and SIGKILL."""

import contextlib
import dataclasses
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from worldmodel.datasets.collect import CollectConfig, main
from worldmodel.datasets.commands import DataConfig
from worldmodel.datasets.commands import main as data
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError

# Spawned workers import it by name, so it is a file on sys.path and not a part of this test.
TOY = '''
import os
import signal
import sys
import time

import numpy as np

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.collect import CollectConfig, main
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Step, WorldSpec

SPEC = WorldSpec("toy", ActionTable((
    ActionRow("forward", "w", "walk", dx=0.5, phrases=("step forward",)),
    ActionRow("left", "a", "turn", dyaw=10.0, phrases=("turn left",)),
)), 16, 16)


class Toy:
    """A pattern that moves with the actions; its name says what goes wrong."""

    spec = SPEC

    def __init__(self, name, split):
        self.name, self.split, self.pace = name, split, float(os.environ.get("TOY_PACE", 0))
        if name == "unknown":
            raise UserError("Unknown world 'unknown'. Did you mean 'toy'?")

    def reset(self, seed=None):
        self.seed, self.t, self.shift = seed, 0, 0
        self.pattern = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        self.note("opened")
        self.info = {"level_seed": seed + (0 if self.split == "train" else 1000)}
        return self.show()

    def show(self):
        facts = {"pose": np.array([self.shift, 0, 0], np.float32), "light": np.float32(0.5)}
        return Step(np.roll(self.pattern, self.shift, 1), self.name == "short" and self.t == 5,
                    facts=facts)

    def step(self, action):
        time.sleep(self.pace)
        if self.seed == 2 and self.t == 3:
            if self.name == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.name == "exit":
                os._exit(3)
            if self.name in ("error", "oserror"):
                raise {"error": ValueError, "oserror": FileNotFoundError}[self.name]("no wall")
        if self.name == "broken":
            raise RuntimeError("the engine is gone")
        self.t += 1
        self.shift += len(action.keys)
        return self.show()

    def close(self):
        self.note("closed")

    def note(self, what):
        if folder := os.environ.get("TOY_CLOSED"):
            open(os.path.join(folder, f"{what}-{os.getpid()}"), "w").close()


class Random:
    def __init__(self, seed):
        self.reset(seed)

    def reset(self, seed):
        self.rng = np.random.default_rng(seed)

    def act(self, step, spec):
        return spec.actions.from_mask(int(self.rng.integers(0, 4)))


def make_world(name, split="train"):
    return Toy(name, split)


def make_policy(name, seed):
    return Random(seed)


def annotate(episode, spec, seed):
    if episode.info["world"] == "committing" and seed == 1:  # its process dies once
        note = os.path.join(os.environ["TOY_NOTES"], "died")
        if not os.path.exists(note):
            open(note, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    return (Annotation("caption", 0, 0, f"a pattern of seed {seed}"),)


if __name__ == "__main__":
    import toy_for_collect as toy

    config = CollectConfig("toy", sys.argv[1], int(sys.argv[2]), steps=40)
    sys.exit(main(config, toy.make_world, toy.make_policy, toy.annotate))
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "toy_for_collect.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delitem(sys.modules, "toy_for_collect", raising=False)
    return importlib.import_module("toy_for_collect")


def collect(toy: ModuleType, out: Path, **options) -> int:
    settings = {"env": "toy", "steps": 40, "episodes": 4, "workers": 1} | options
    config = CollectConfig(out=str(out), **settings)
    return main(config, toy.make_world, toy.make_policy, toy.annotate)


def seeds(store: EpisodeStore, split: str = "train") -> list[int]:
    return [store.describe(name).seed for name in store.select(split)]


def test_the_result_does_not_depend_on_the_number_of_workers(
    toy: ModuleType, tmp_path: Path
) -> None:
    for workers in (1, 3):
        assert collect(toy, tmp_path / f"{workers}.zarr", workers=workers, seed=7) == 0
    one, three = EpisodeStore(tmp_path / "1.zarr"), EpisodeStore(tmp_path / "3.zarr")
    assert seeds(one) == [7, 8, 9, 10]
    assert one.ids == three.ids  # an id holds a digest of the content
    episode, other = one.read(one.ids[1]), three.read(three.ids[1])
    np.testing.assert_array_equal(episode.frames, other.frames)
    assert episode.frames.shape == (41, 16, 16, 3)
    assert episode.info == {
        "world": "toy", "seed": 8, "split": "train", "policy": "mix", "level_seed": 8
    }  # fmt: skip
    assert episode.annotations[0].text == "a pattern of seed 8"
    assert set(episode.facts) == {"pose", "light"}
    assert episode.facts["light"].shape == (41,)
    rng = np.random.default_rng(8)
    masks = [int(rng.integers(0, 4)) for _ in range(40)]
    np.testing.assert_array_equal(episode.keys, masks)
    np.testing.assert_allclose(episode.actions[:, 0], [0.5 * (m & 1) for m in masks])
    np.testing.assert_allclose(episode.facts["pose"][1:, 0], np.cumsum(np.bitwise_count(masks)))


def test_a_second_run_adds_what_is_missing(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.zarr"
    assert collect(toy, out, episodes=2) == 0
    before = EpisodeStore(out).ids
    assert collect(toy, out, episodes=3) == 0
    assert "holds 2 of these; going on" in capsys.readouterr().out
    assert EpisodeStore(out).ids[:2] == before
    assert seeds(EpisodeStore(out)) == [0, 1, 2]
    assert collect(toy, out, episodes=3) == 0
    assert "already holds all 3" in capsys.readouterr().out
    assert collect(toy, out, episodes=2, split="val") == 0
    store = EpisodeStore(out)
    assert (seeds(store), seeds(store, "val")) == ([0, 1, 2], [0, 1])
    assert store.info(store.select("val")[1])["level_seed"] == 1001


def test_an_episode_may_end_early(toy: ModuleType, tmp_path: Path) -> None:
    assert collect(toy, tmp_path / "x.zarr", env="short", episodes=2) == 0
    assert list(EpisodeStore(tmp_path / "x.zarr").lengths.values()) == [5, 5]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("crash", "died (signal SIGKILL)"),
        ("exit", "died (exit code 3)"),
        ("error", "failed: ValueError: no wall (toy_for_collect.py:"),
        ("oserror", "failed: FileNotFoundError: no wall (toy_for_collect.py:"),
    ],
)
def test_an_episode_that_fails_is_reported_and_the_others_are_collected(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], env: str, said: str
) -> None:
    assert collect(toy, tmp_path / "x.zarr", env=env, episodes=5) == 1
    assert seeds(EpisodeStore(tmp_path / "x.zarr")) == [0, 1, 3, 4]
    text = capsys.readouterr().err
    assert f"Worker 1 {said}" in text
    assert "the episode with seed 2 is not stored" in text
    assert "1 episodes are missing" in text
    assert "Traceback" not in text


def test_what_was_played_when_its_worker_died_is_played_again(
    toy: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOY_NOTES", str(tmp_path))
    assert collect(toy, tmp_path / "x.zarr", env="committing", episodes=4) == 1
    # Seed 1 was being committed and seed 2 played: only that one is lost.
    assert seeds(EpisodeStore(tmp_path / "x.zarr")) == [0, 1, 3]
    text = capsys.readouterr().err
    assert "seed 1 is tried again" in text
    assert "the episode with seed 2 is not stored" in text


def test_a_worker_that_cannot_begin_ends_the_run(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code" / "toy_for_collect.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(UserError, match="one after the other"):
        collect(toy, tmp_path / "x.zarr", episodes=50)


def test_the_bar_shows_speed_and_remaining_time(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect(toy, tmp_path / "x.zarr", episodes=2) == 0
    bar = capsys.readouterr().err.split("\r")[-1]
    assert "80/80" in bar
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+frame/s, episodes=2\]", bar)


def test_a_world_that_never_works_ends_the_run(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 episodes failed one after the other"):
        collect(toy, tmp_path / "x.zarr", env="broken", episodes=50)


def test_a_mistake_that_a_worker_finds_comes_out_as_it_is(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown world 'unknown'\. Did you mean 'toy'"):
        collect(toy, tmp_path / "x.zarr", env="unknown", workers=2)
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("episodes", 0), ("steps", 0), ("workers", 0), ("seed", -1)]
)
def test_settings_that_make_no_sense(
    toy: ModuleType, tmp_path: Path, name: str, value: int
) -> None:
    with pytest.raises(UserError, match=f"{name}={value}"):
        collect(toy, tmp_path / "x.zarr", **{name: value})


def test_a_path_that_is_no_store(toy: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    with pytest.raises(UserError, match="not a store"):
        collect(toy, tmp_path / "file")


# --- a collector that is stopped -----------------------------------------------------------------


def start(tmp_path: Path, episodes: int, pace: float = 0.0) -> subprocess.Popen:
    code = tmp_path / "code"
    environment = dict(os.environ, TOY_PACE=str(pace), TOY_CLOSED=str(tmp_path))
    # Not the script's own folder: under PYTHONSAFEPATH that one is not on the path.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), os.getenv("PYTHONPATH")]))
    script = str(code / "toy_for_collect.py")
    return subprocess.Popen(
        [sys.executable, script, str(tmp_path / "x.zarr"), str(episodes)],
        env=environment,
        start_new_session=True,
        # A test run in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def committed(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(name.startswith("ep-") for name in os.listdir(path / "episodes"))
    return 0


def group_is_gone(group: int) -> bool:
    return not members(group)


def members(group: int) -> list[str]:
    """Commands of the group's living processes; the dead that nobody waits for do not count."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [row[-1] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly(toy: ModuleType, tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "x.zarr"
    process = start(tmp_path, 1000, pace=0.002)
    wait_for(lambda: committed(out) >= 3 and len(list(tmp_path.glob("opened-*"))) == 2)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # a terminal sends it to the whole group
    else:
        process.send_signal(how)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in text
    assert "give the same command again to go on" in text
    assert f"{committed(out)} of 1000 episodes are safe" in text
    wait_for(lambda: group_is_gone(process.pid))
    assert len(list(tmp_path.glob("closed-*"))) == 2  # both workers closed their worlds
    assert data(DataConfig("validate", str(out))) == 0
    assert not any(name.startswith(".") for name in os.listdir(out / "episodes"))


def test_a_killed_collector_leaves_a_store_that_validates(toy: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "x.zarr"
    before: dict[str, np.ndarray] = {}
    for turn in range(4):
        process = start(tmp_path, 1000)
        enough = len(before) + 4
        wait_for(lambda enough=enough: committed(out) >= enough)
        time.sleep(0.007 * turn)
        if turn % 2:
            process.kill()  # the workers notice that their parent is gone
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for(lambda group=process.pid: group_is_gone(group))
        assert data(DataConfig("validate", str(out))) == 0
        store = EpisodeStore(out)
        for name, frames in before.items():
            np.testing.assert_array_equal(store.frames(name), frames)
        before = {name: store.frames(name) for name in store.ids}
    asked = len(before) + 3
    assert collect(toy, out, episodes=asked, workers=2) == 0
    store = EpisodeStore(out)
    assert set(range(asked)) <= set(seeds(store))
    assert len(set(seeds(store))) == len(store)  # no seed twice
    assert data(DataConfig("validate", str(out), clean=True)) == 0
    assert not any(name.startswith(".") for name in os.listdir(out / "episodes"))


def test_two_collectors_at_once_share_a_store(toy: ModuleType, tmp_path: Path) -> None:
    processes = [start(tmp_path, 12) for _ in range(2)]
    for process in processes:
        _, text = process.communicate(timeout=60)
        assert process.returncode == 0, text
    assert seeds(EpisodeStore(tmp_path / "x.zarr")) == list(range(12))


def test_the_config_is_what_the_yaml_says() -> None:
    import yaml

    import worldmodel.conf

    for verb, config in [("collect", CollectConfig()), ("data", DataConfig())]:
        path = Path(str(worldmodel.conf.__file__)).parent / f"{verb}.yaml"
        text = path.read_text()
        said = yaml.safe_load(text)
        for name, value in dataclasses.asdict(config).items():
            default = list(value) if isinstance(value, tuple) else value
            assert said.pop(name) == default, name
        assert not said
        lines = text.splitlines()
        assert lines[0].startswith("# ")
        for number, line in enumerate(lines):
            if line and not line.startswith("#"):
                assert lines[number - 1].startswith("# "), f"{line} has no comment"
