"""`worldmodel data import|export`: real files of every format, there and back."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.commands import DataConfig, main
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.datasets.video import decode
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "walk", dx=0.5, phrases=("step forward",)),
        ActionRow("left", "a", "turn", dyaw=10.0, unit="deg", phrases=("turn left",)),
    )
)
SPEC = WorldSpec("toy", TABLE, 48, 64, fps=8.75, objects=("red torch",))


def scene(seed: int, count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth moving pictures, as video codecs like them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 16.0
    phase = rng.uniform(0, 6, 3)
    t = np.arange(count)[:, None, None, None] / 12.0
    waves = np.sin(x[..., None] + phase + t) + np.cos(y[..., None] * 0.7 - phase + t)
    return (127 + 60 * waves).clip(0, 255).astype(np.uint8)


def make_episode(seed: int, steps: int) -> Episode:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 4, steps).astype(np.uint16)
    pressed = [TABLE.from_mask(mask) for mask in keys.tolist()]
    distance = rng.normal(size=(steps + 1, 1)).astype(np.float32)
    distance[::3] = np.nan  # not visible
    return Episode(
        frames=scene(seed, steps + 1),
        actions=np.array([(a.dx, a.dy, a.dyaw) for a in pressed], np.float32).reshape(-1, 3),
        keys=keys,
        facts={
            "distance": distance,
            "light": rng.random(steps + 1).astype(np.float32),
            "pose": rng.normal(size=(steps + 1, 3)).astype(np.float32),
        },
        annotations=(
            Annotation("instruction", 0, steps, "walk to the red torch · 暗い"),
            Annotation("question", 1, 1, "what is there?", "a torch"),
        ),
        info={"world": "toy", "seed": seed, "split": "val" if seed == 2 else "train"},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer = EpisodeWriter(tmp_path_factory.mktemp("store") / "x.zarr", SPEC)
    for seed, steps in enumerate((30, 1, 40)):
        writer.write(make_episode(seed, steps))
    nothing = np.full((20, 3), np.nan, np.float32), np.zeros(20, np.uint16)
    info = {"seed": 3, "split": "video", "labelled": False}
    writer.write(Episode(scene(3, 21), *nothing, {}, (), info))
    return writer.path


def run(command: str, store: Path, **options) -> int:
    return main(DataConfig(command, str(store), **options))


def same_but_frames(a: Episode, b: Episode) -> None:
    for x, y in [(a.actions, b.actions), (a.keys, b.keys)]:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert list(a.facts) == list(b.facts)
    for name in a.facts:
        assert a.facts[name].dtype == b.facts[name].dtype
        np.testing.assert_array_equal(a.facts[name], b.facts[name])
    assert a.annotations == b.annotations
    assert a.info == b.info


# --- there and back ------------------------------------------------------------------------------


def test_hdf5_brings_everything_back(store: Path, tmp_path: Path) -> None:
    assert run("export", store, format="hdf5", out=str(tmp_path / "h")) == 0
    back = tmp_path / "back.zarr"
    for _ in range(2):  # the second import adds nothing
        assert run("import", back, format="hdf5", source=str(tmp_path / "h")) == 0
    assert EpisodeStore(back).ids == EpisodeStore(store).ids  # ids are made from the content
    assert EpisodeStore(back).spec == SPEC
    assert run("validate", back) == 0


def test_hdf5_has_minaris_layout(store: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    assert run("export", store, format="hdf5", out=str(tmp_path / "h"), split="train") == 0
    with h5py.File(tmp_path / "h" / "data" / "main_data.hdf5") as file:
        assert set(file) == {"episode_0", "episode_1"}
        group = file["episode_0"]
        assert {"observations", "actions", "rewards", "terminations", "truncations", "infos"} <= {
            *group
        }
        assert group["observations"].shape == (31, 48, 64, 3)
        assert group["actions"].shape == (30, 3)
        assert group["infos"]["pose"].shape == (31, 3)
        assert dict(group.attrs) | {"id": 0, "seed": 0, "total_steps": 30} == dict(group.attrs)
        assert group["truncations"][()].tolist() == [False] * 29 + [True]
    about = json.loads((tmp_path / "h" / "data" / "metadata.json").read_text())
    assert (about["total_episodes"], about["total_steps"]) == (2, 31)
    assert json.loads(about["observation_space"])["shape"] == [48, 64, 3]


def test_lerobot_brings_everything_but_exact_pixels_back(store: Path, tmp_path: Path) -> None:
    assert run("export", store, format="lerobot", out=str(tmp_path / "l")) == 0
    back = tmp_path / "back.zarr"
    assert run("import", back, format="lerobot", source=str(tmp_path / "l")) == 0
    before, after = EpisodeStore(store), EpisodeStore(back)
    assert after.spec == SPEC
    assert [after.describe(n).seed for n in after.ids] == [0, 1, 2, 3]
    for a, b in zip(before.ids, after.ids, strict=True):
        first, second = before.read(a), after.read(b)
        same_but_frames(first, second)
        assert np.abs(first.frames.astype(int) - second.frames).mean() < 3
    assert run("validate", back) == 0
    info = json.loads((tmp_path / "l" / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"]) == (4, 31 + 2 + 41 + 21)
    stats = json.loads((tmp_path / "l" / "meta" / "stats.json").read_text())
    assert stats["action"]["max"] == [0.5, 0.0, 10.0]


def test_mp4_with_lines_of_actions(store: Path, tmp_path: Path) -> None:
    assert run("export", store, format="mp4", out=str(tmp_path / "m")) == 0
    opened = EpisodeStore(store)
    assert {p.stem for p in (tmp_path / "m").iterdir()} == set(opened.ids)
    name = opened.ids[0]
    episode = opened.read(name)
    film = [f.to_ndarray(format="rgb24") for _, f in decode(tmp_path / "m" / f"{name}.mp4")]
    assert np.abs(np.stack(film).astype(int) - episode.frames).mean() < 3
    lines = [json.loads(s) for s in (tmp_path / "m" / f"{name}.jsonl").read_text().splitlines()]
    assert lines[0]["info"] == episode.info
    assert WorldSpec.from_json(lines[0]["world"]) == SPEC
    assert len(lines) == 1 + 31 + 2
    for i, line in enumerate(lines[1:31]):
        assert line["frame"] == i
        assert [line["dx"], line["dy"], line["dyaw"]] == episode.actions[i].tolist()
        assert TABLE.mask(TABLE.press(line["keys"])) == episode.keys[i]
        assert TABLE.parse(line["text"]).keys == tuple(line["keys"])
    assert lines[31] == {"frame": 30}
    assert Annotation(**lines[33]["annotation"]) == episode.annotations[1]
    unknown = (tmp_path / "m" / f"{opened.ids[3]}.jsonl").read_text().splitlines()
    assert json.loads(unknown[1])["dx"] is None


def test_mp4_can_be_imported_as_raw_video(store: Path, tmp_path: Path) -> None:
    assert run("export", store, format="mp4", out=str(tmp_path / "m"), split="val") == 0
    back = tmp_path / "back.zarr"
    options = {"format": "video", "source": str(tmp_path / "m"), "size": (64, 48), "seed": 7}
    assert run("import", back, **options, licence="CC0-1.0") == 0
    opened = EpisodeStore(back)
    assert opened.provenance["licence"] == "CC0-1.0"
    assert [(e.seed, e.split, e.steps) for e in map(opened.describe, opened.ids)] == [
        (7, "video", 40)
    ]
    assert np.abs(opened.frames(opened.ids[0]).astype(int) - scene(2, 41)).mean() < 3


# --- what import and export refuse ---------------------------------------------------------------


def test_mistakes(store: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "text").write_text("hello")
    new = tmp_path / "new.zarr"
    for command, target, options, said in [
        ("import", new, {}, "import needs format=; known: video, hdf5, nwm, lerobot"),
        ("import", new, {"format": "vido"}, r"format=vido\. Did you mean 'video'\?"),
        ("import", new, {"format": "video"}, "needs the place to read from"),
        ("import", new, {"format": "video", "source": "no/where"}, "There is nothing at"),
        ("import", new, {"format": "video", "source": str(tmp_path / "full")}, "no videos in"),
        ("import", new, {"format": "video", "source": str(tmp_path / "text")}, "None of the 1"),
        ("import", new, {"format": "hdf5", "source": str(tmp_path / "full")}, "neither an HDF5"),
        ("import", new, {"format": "hdf5", "source": str(tmp_path / "text")}, "cannot be read as"),
        ("import", new, {"format": "nwm", "source": str(tmp_path / "full")}, "no trajectories"),
        ("import", new, {"format": "lerobot", "source": str(tmp_path / "full")}, "not a LeRobot"),
        ("import", new, {"format": "nwm", "size": (0, 4)}, "size="),
        ("import", new, {"format": "nwm", "fps": 0.0}, r"fps=0\.0"),
        ("import", new, {"format": "nwm", "spacing": 0}, "spacing=0"),
        ("import", new, {"format": "nwm", "action_columns": (1,)}, "must be three numbers"),
        ("export", store, {"out": str(new)}, "export needs format="),
        ("export", store, {"format": "mp4"}, "export needs the place"),
        ("export", store, {"format": "mp4", "out": str(tmp_path / "full")}, "exists already"),
        ("export", store, {"format": "mp4", "out": str(tmp_path / "text" / "x")}, "be written"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            run(command, target, **options)
        assert "\n" not in str(caught.value), said
    assert not new.exists()


@pytest.mark.parametrize(("kind", "package"), [("hdf5", "h5py"), ("lerobot", "pyarrow")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    store: Path, tmp_path: Path, kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = rf"needs the package {package}, .* pip install 'worldmodel\[formats\]'"
    with pytest.raises(UserError, match=said):
        run("export", store, format=kind, out=str(tmp_path / "out"))
    with pytest.raises(UserError, match=said):
        run("import", tmp_path / "new.zarr", format=kind, source=str(store))


def test_another_world_is_not_mixed_in(store: Path, tmp_path: Path) -> None:
    assert run("export", store, format="hdf5", out=str(tmp_path / "h")) == 0
    other = EpisodeWriter(tmp_path / "o.zarr", dataclasses.replace(SPEC, fps=5.0)).path
    with pytest.raises(UserError, match="other fps"):
        run("import", other, format="hdf5", source=str(tmp_path / "h"))
    assert len(EpisodeStore(other)) == 0
