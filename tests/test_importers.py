"""Importers on files that others write: videos, Minari, NWM, LeRobot."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worldmodel.datasets.commands import DataConfig, main
from worldmodel.datasets.importers import nwm, video
from worldmodel.datasets.importers.common import ImportOptions, moves_between
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.video import fit, resampled, write_mp4
from worldmodel.errors import UserError


def run(store: Path, kind: str, source: Path, **options) -> int:
    return main(DataConfig("import", str(store), format=kind, source=str(source), **options))


def colour(count: int, rgb: tuple[int, int, int], height: int = 48, width: int = 64) -> np.ndarray:
    """Frames of one colour with a bright bar that moves a pixel a frame."""
    frames = np.full((count, height, width, 3), rgb, np.uint8)
    for i in range(count):
        frames[i, :, i % width] = 255
    return frames


# --- pictures ------------------------------------------------------------------------------------


def test_fit_takes_the_middle_and_averages_areas() -> None:
    frame = np.zeros((40, 100, 3), np.uint8)
    frame[:, 30:70] = 200  # the middle square, all of it
    assert (fit(frame, (20, 20)) == 200).all()
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    grey = fit(np.repeat(checks[..., None], 3, axis=2), (16, 16))
    assert np.abs(grey.astype(int) - 127).max() <= 1  # a sampler would see black or white
    assert fit(frame, (150, 60)).shape == (60, 150, 3)
    same = fit(frame, (100, 40))
    np.testing.assert_array_equal(same, frame)
    assert not np.shares_memory(same, frame)


# --- video ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fps", "count"), [(10.0, 20), (5.0, 10), (20.0, 39), (3.0, 6)])
def test_resampling_shows_each_moment(tmp_path: Path, fps: float, count: int) -> None:
    levels = np.linspace(0, 228, 20).astype(np.uint8)  # frame i is 12 i bright
    frames = np.broadcast_to(levels[:, None, None, None], (20, 32, 32, 3))
    write_mp4(tmp_path / "a.mp4", frames, 10.0)
    shown = np.stack(list(resampled(tmp_path / "a.mp4", fps, (16, 16))))
    assert shown.shape == (count, 16, 16, 3)
    expected = np.floor(np.arange(count) / fps * 10.0 + 1e-6) * 12
    np.testing.assert_allclose(shown.mean(axis=(1, 2, 3)), expected, atol=4)


def test_videos_are_cut_at_scenes_and_bad_files_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    reds, blues = colour(30, (200, 30, 30)), colour(25, (30, 30, 200))
    write_mp4(folder / "a.mp4", [*reds, *blues, *colour(5, (30, 200, 30))], 10.0)
    write_mp4(folder / "deep" / "b.mp4", blues, 10.0)
    (folder / "broken.mp4").write_bytes(b"not a video at all" * 100)
    whole = (folder / "deep" / "b.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").touch()
    (folder / "notes.txt").write_text("no video")
    store = tmp_path / "x.zarr"
    assert run(store, "video", folder, size=(32, 32)) == 0
    told = capsys.readouterr()
    for name in ("broken.mp4", "cut.mp4", "empty.mp4"):
        assert f"{name}: left out" in told.err
    assert "a.mp4: 1 scenes shorter than 16 frames left out" in told.err
    assert "3 episodes read" in told.out
    opened = EpisodeStore(store)
    infos = [opened.info(name) for name in opened.ids]
    assert [(i["scene"], i["start_s"]) for i in infos] == [
        ("a.mp4", 0.0), ("a.mp4", 3.0), ("deep/b.mp4", 0.0)
    ]  # fmt: skip
    assert [opened.lengths[name] + 1 for name in opened.ids] == [30, 25, 25]
    for name in opened.ids:
        episode = opened.read(name)
        assert np.isnan(episode.actions).all()
        assert not episode.keys.any()
        assert episode.info["labelled"] is False
        assert opened.describe(name).split == "video"
    assert main(DataConfig("validate", str(store))) == 0
    assert main(DataConfig("info", str(store))) == 0
    assert "3 episodes, whose actions nobody knows" in capsys.readouterr().out
    assert main(DataConfig("preview", str(store), out=str(tmp_path / "p.png"))) == 0


def test_scenes_are_divided_at_the_longest_and_never_cut_at_1() -> None:
    frames = [*colour(30, (200, 30, 30)), *colour(30, (30, 30, 200))]
    cut = list(video.scenes(frames, ImportOptions(longest=25, shortest=1)))
    assert [(start, len(part)) for start, part in cut] == [(0, 25), (25, 5), (30, 25), (55, 5)]
    np.testing.assert_array_equal(np.concatenate([part for _, part in cut]), np.stack(frames))
    whole = list(video.scenes(frames, ImportOptions(cut=1.0)))
    assert [(start, len(part)) for start, part in whole] == [(0, 60)]


def test_movement_is_no_cut() -> None:
    rng = np.random.default_rng(0)
    wide = np.repeat(rng.integers(0, 256, (48, 40, 3), np.uint8), 10, axis=1)
    pan = [wide[:, 4 * i : 4 * i + 64] for i in range(60)]
    assert len(list(video.scenes(pan, ImportOptions()))) == 1


def test_of_only_bad_videos_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x" * 999)
    with pytest.raises(UserError, match="None of the 1 files"):
        run(tmp_path / "x.zarr", "video", tmp_path)
    write_mp4(tmp_path / "b.mp4", colour(5, (1, 2, 3)), 10.0)
    with pytest.raises(UserError, match="Nothing of"):
        run(tmp_path / "x.zarr", "video", tmp_path)
    assert not (tmp_path / "x.zarr").exists()


# --- nwm -----------------------------------------------------------------------------------------


def trajectory(folder: Path, poses: dict[str, Any], count: int, protocol: int = 4) -> None:
    folder.mkdir(parents=True)
    (folder / "traj_data.pkl").write_bytes(pickle.dumps(poses, protocol))
    for i, frame in enumerate(colour(count, (90, 120, 30), 60, 80)):
        Image.fromarray(frame).save(folder / f"{i}.jpg", quality=95)


def circle(count: int, radius: float = 2.0) -> dict[str, np.ndarray]:
    """Walk a circle to the left, 6 degrees a frame."""
    angle = np.radians(6.0) * np.arange(count)
    position = radius * np.stack([np.sin(angle), 1 - np.cos(angle)], axis=1)
    return {"position": position, "yaw": (angle + np.pi) % (2 * np.pi) - np.pi}


def test_moves_are_seen_from_the_agent() -> None:
    pose = np.array([[0, 0, 90], [0, 2, 90], [-1, 2, 170], [-1, 2, -170]], float)
    moves = [[2, 0, 0], [0, 1, 80], [0, 0, 20]]
    np.testing.assert_allclose(moves_between(pose), moves, atol=1e-6)


@pytest.mark.parametrize("protocol", range(6))
def test_nwm_trajectories(tmp_path: Path, protocol: int) -> None:
    trajectory(tmp_path / "in" / "walk", circle(40), 40, protocol)
    store = tmp_path / "x.zarr"
    assert run(store, "nwm", tmp_path / "in", size=(32, 24)) == 0
    opened = EpisodeStore(store)
    episode = opened.read(opened.ids[0])
    assert (opened.spec.fps, episode.frames.shape) == (4.0, (40, 24, 32, 3))
    step = 2 * 2.0 * np.sin(np.radians(3.0))  # the chord of 6 degrees
    expected = [step * np.cos(np.radians(3.0)), step * np.sin(np.radians(3.0)), 6.0]
    np.testing.assert_allclose(episode.actions, np.tile(expected, (39, 1)), atol=1e-4)
    assert np.abs(episode.facts["pose"][:, 2]).max() <= 180
    assert opened.describe(opened.ids[0]).split == "train"
    assert main(DataConfig("validate", str(store))) == 0


def test_nwm_spacing_and_scale(tmp_path: Path) -> None:
    poses = {"position": np.stack([np.arange(45) * 0.25, np.zeros(45)], 1), "yaw": np.zeros(45)}
    trajectory(tmp_path / "in" / "walk", {**poses, "yaw": poses["yaw"][:, None]}, 45)
    options = {"spacing": 2, "scale": (4.0, 1.0, 1.0), "fps": 10.0}
    assert run(tmp_path / "x.zarr", "nwm", tmp_path / "in", **options) == 0
    opened = EpisodeStore(tmp_path / "x.zarr")
    episode = opened.read(opened.ids[0])
    assert (opened.spec.fps, episode.num_steps) == (5.0, 22)
    np.testing.assert_allclose(episode.actions, np.tile([2.0, 0, 0], (22, 1)), atol=1e-6)
    bar = episode.frames[7].mean(axis=(0, 2)).argmax()
    assert abs(int(bar) - round((14 - 10) * 64 / 60)) <= 1  # frame 14 of 80x60, cropped to 60x60


def test_nwm_bad_trajectories_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trajectory(tmp_path / "good", circle(20), 20)
    trajectory(tmp_path / "few_pictures", circle(20), 12)
    trajectory(tmp_path / "short", circle(5), 5)
    trajectory(tmp_path / "unequal", {"position": np.zeros((20, 2)), "yaw": np.zeros(9)}, 20)
    trajectory(tmp_path / "nan", {"position": np.full((20, 2), np.nan), "yaw": np.zeros(20)}, 20)
    trajectory(tmp_path / "other", {"pos": 1}, 20)
    trajectory(tmp_path / "damaged", circle(20), 20)
    file = tmp_path / "damaged" / "traj_data.pkl"
    file.write_bytes(file.read_bytes()[:-20])
    assert run(tmp_path / "x.zarr", "nwm", tmp_path) == 0
    told = capsys.readouterr().err
    for name in ("few_pictures", "short", "unequal", "nan", "other", "damaged"):
        assert f"{name}: left out" in told
    assert len(EpisodeStore(tmp_path / "x.zarr")) == 1


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_cannot_run_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    trajectory(tmp_path / "good", circle(20), 20)
    trajectory(tmp_path / "evil", {**circle(20), "x": Evil(mark)}, 20)
    hidden = np.array([Evil(mark)], dtype=object)
    trajectory(tmp_path / "nested", {**circle(20), "x": hidden}, 20)
    assert run(tmp_path / "x.zarr", "nwm", tmp_path) == 0
    told = capsys.readouterr().err
    assert told.count("which is refused") == 2
    assert "evil: left out" in told
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # it would have run
    assert mark.exists()


@pytest.mark.parametrize(
    "callable_",
    [eval, exec, getattr, open, print, np.load, np.fromfile, os.remove, pickle.loads, type],
)
def test_functions_are_refused_by_name(callable_) -> None:
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        nwm.load_plain_pickle(pickle.dumps(callable_))
    with pytest.raises(pickle.UnpicklingError):
        nwm.load_plain_pickle(b"cnumpy\nndarray.__init__.__globals__\n.")


# --- hdf5 of Minari ------------------------------------------------------------------------------


def minari(path: Path, observations, actions, **extra) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for number in range(2):
            group = file.create_group(f"episode_{number}")
            group.attrs["total_steps"] = len(actions)
            group["actions"] = actions
            for name in ("rewards", "terminations", "truncations"):
                group[name] = np.zeros(len(actions))
            if isinstance(observations, dict):
                for name, values in observations.items():
                    group[f"observations/{name}"] = values
            else:
                group["observations"] = observations


def test_minari_discrete_actions_become_keys(tmp_path: Path) -> None:
    native = np.array([0, 2, 1, 2, 0, 1], np.int64)
    frames = colour(7, (20, 90, 160))
    minari(tmp_path / "a.hdf5", {"image": frames, "mission": np.zeros(7)}, native)
    assert run(tmp_path / "x.zarr", "hdf5", tmp_path / "a.hdf5", size=(64, 48)) == 0
    opened = EpisodeStore(tmp_path / "x.zarr")
    assert len(opened) == 2
    assert opened.spec.actions.keys == ("0", "1", "2")
    episode = opened.read(opened.ids[0])
    assert episode.keys.tolist() == [1, 4, 2, 4, 1, 2]
    np.testing.assert_array_equal(episode.frames, frames)
    table = opened.spec.actions
    assert table.text(table.from_mask(4)) == "action: 2"
    assert table.parse("action: action 2").keys == ("2",)


def test_minari_with_a_table_of_actions(tmp_path: Path) -> None:
    minari(tmp_path / "a.hdf5", colour(4, (9, 9, 9)), np.array([[1], [0], [1]], np.int32))
    rows = "- {name: left, key: a, dyaw: 15, unit: deg, phrases: [turn left]}\n"
    rows += "- {name: forward, key: w, dx: 0.25}\n"
    (tmp_path / "t.yaml").write_text(rows)
    table = str(tmp_path / "t.yaml")
    assert run(tmp_path / "x.zarr", "hdf5", tmp_path / "a.hdf5", table=table) == 0
    opened = EpisodeStore(tmp_path / "x.zarr")
    episode = opened.read(opened.ids[0])
    np.testing.assert_array_equal(episode.actions, [[0.25, 0, 0], [0, 0, 15], [0.25, 0, 0]])
    assert opened.spec.actions.text(opened.spec.actions.press(["a"]), "phrase").endswith("left")
    (tmp_path / "t.yaml").write_text(rows.splitlines()[0])
    with pytest.raises(UserError, match="actions 0 to 1, but the table has 1 rows"):
        run(tmp_path / "y.zarr", "hdf5", tmp_path / "a.hdf5", table=table)
    (tmp_path / "t.yaml").write_text("left: a")
    with pytest.raises(UserError, match="not a list of action rows"):
        run(tmp_path / "y.zarr", "hdf5", tmp_path / "a.hdf5", table=table)


def test_minari_continuous_actions_need_their_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native = np.arange(12, dtype=np.float32).reshape(6, 2)
    minari(tmp_path / "a.hdf5", colour(7, (20, 90, 160)).transpose(0, 3, 1, 2), native)
    columns = {"action_columns": (1, -1, 0), "scale": (0.5, 1.0, 10.0)}
    assert run(tmp_path / "x.zarr", "hdf5", tmp_path / "a.hdf5", **columns) == 0
    opened = EpisodeStore(tmp_path / "x.zarr")
    expected = np.stack([native[:, 1] * 0.5, np.zeros(6), native[:, 0] * 10], axis=1)
    np.testing.assert_allclose(opened.read(opened.ids[0]).actions, expected)
    assert run(tmp_path / "y.zarr", "hdf5", tmp_path / "a.hdf5") == 0
    assert "become unlabelled" in capsys.readouterr().err
    opened = EpisodeStore(tmp_path / "y.zarr")
    assert len(opened.select("video")) == 2
    assert opened.info(opened.ids[0])["labelled"] is False
    with pytest.raises(UserError, match="have columns 0 to 1"):
        run(tmp_path / "z.zarr", "hdf5", tmp_path / "a.hdf5", action_columns=(0, 1, 2))


def test_minari_jpeg_and_cameras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5py = pytest.importorskip("h5py")
    frames = colour(5, (20, 90, 160), 32, 32)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for number in range(3):
            group = file.create_group(f"episode_{number}")
            group["actions"] = np.zeros(4, np.int64)
            for camera in ("left", "right"):
                kind = h5py.vlen_dtype(np.uint8)
                data = group.create_dataset(f"observations/{camera}", (5,), kind)
                for i, frame in enumerate(frames):
                    data[i] = np.frombuffer(jpeg(frame if camera == "left" else 255 - frame), "u1")
        file["episode_1/observations/left"][2] = np.zeros(9, np.uint8)
    with pytest.raises(UserError, match=r"2 kinds of pictures \(left, right\)"):
        run(tmp_path / "x.zarr", "hdf5", tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="no observations 'front'; known: left, right"):
        run(tmp_path / "x.zarr", "hdf5", tmp_path / "a.hdf5", camera="front")
    assert run(tmp_path / "x.zarr", "hdf5", tmp_path / "a.hdf5", camera="left", size=(32, 32)) == 0
    assert "episode_1: left out" in capsys.readouterr().err
    opened = EpisodeStore(tmp_path / "x.zarr")
    assert [opened.info(name)["scene"] for name in opened.ids] == ["episode_0", "episode_2"]
    assert np.abs(opened.frames(opened.ids[0]).astype(int) - frames).mean() < 4


def jpeg(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, format="JPEG", quality=95)
    return out.getvalue()


def test_minari_what_is_no_picture_is_told_of(tmp_path: Path) -> None:
    minari(tmp_path / "a.hdf5", np.zeros((7, 4)), np.zeros(6, np.int64))
    with pytest.raises(UserError, match="Nothing of"):
        run(tmp_path / "x.zarr", "hdf5", tmp_path / "a.hdf5")


# --- lerobot -------------------------------------------------------------------------------------

LENGTHS = (20, 33)
CAMERA = "observation.images.front"


def rows_of(number: int, actions: np.ndarray) -> dict[str, list]:
    count = LENGTHS[number]
    return {
        "action": actions[:count].tolist(),
        "frame_index": list(range(count)),
        "episode_index": [number] * count,
        "timestamp": [i / 10 for i in range(count)],
    }


def lerobot(root: Path, version: str, image: bool = False) -> np.ndarray:
    """Write a data set as LeRobot lays it out; return the frames of both episodes."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    actions = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    frames = np.concatenate([colour(LENGTHS[0], (180, 60, 20)), colour(LENGTHS[1], (20, 60, 180))])
    features: dict[str, Any] = {
        CAMERA: {"dtype": "image" if image else "video", "shape": [48, 64, 3]},
        "action": {"dtype": "float32", "shape": [6], "names": ["x", "y", "z", "a", "b", "c"]},
    }
    info: dict[str, Any] = {"codebase_version": version, "fps": 10, "features": features}
    info["chunks_size"] = 1000
    meta = root / "meta"
    meta.mkdir(parents=True)
    tables = [rows_of(number, actions) for number in range(2)]
    if image:
        for number, part in enumerate(np.split(frames, [LENGTHS[0]])):
            tables[number][CAMERA] = [{"bytes": jpeg(f), "path": None} for f in part]
    if version == "v3.0":
        info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        (root / "data" / "chunk-000").mkdir(parents=True)
        joined = {name: tables[0][name] + tables[1][name] for name in tables[0]}
        parquet.write_table(arrow.table(joined), root / "data/chunk-000/file-000.parquet")
        videos = root / "videos" / CAMERA / "chunk-000"
        videos.mkdir(parents=True)
        write_mp4(videos / "file-000.mp4", frames, 10.0)
        episodes = {
            "episode_index": [0, 1],
            "length": list(LENGTHS),
            "tasks": [["Pick\nit up"], []],
            "data/chunk_index": [0, 0],
            "data/file_index": [0, 0],
            f"videos/{CAMERA}/chunk_index": [0, 0],
            f"videos/{CAMERA}/file_index": [0, 0],
            f"videos/{CAMERA}/from_timestamp": [0.0, LENGTHS[0] / 10],
            "stats/action/mean": [[0.0], [0.0]],
        }
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        parquet.write_table(arrow.table(episodes), meta / "episodes/chunk-000/file-000.parquet")
    else:
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        name = "{video_key}/episode_{episode_index:06d}.mp4"
        info["video_path"] = f"videos/chunk-{{episode_chunk:03d}}/{name}"
        (root / "data" / "chunk-000").mkdir(parents=True)
        videos = root / "videos" / "chunk-000" / CAMERA
        videos.mkdir(parents=True)
        lines = []
        for number, part in enumerate(np.split(frames, [LENGTHS[0]])):
            table = arrow.table(tables[number])
            parquet.write_table(table, root / f"data/chunk-000/episode_{number:06d}.parquet")
            write_mp4(videos / f"episode_{number:06d}.mp4", part, 10.0)
            tasks = ["Pick\nit up"] if number == 0 else []
            row = {"episode_index": number, "tasks": tasks, "length": LENGTHS[number]}
            lines.append(json.dumps(row))
        (meta / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    (meta / "info.json").write_text(json.dumps(info))
    return frames


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_versions(tmp_path: Path, version: str, image: bool) -> None:
    frames = lerobot(tmp_path / "l", version, image)
    options = {"action_columns": (0, 1, 5), "scale": (1.0, 1.0, 57.2958), "size": (64, 48)}
    assert run(tmp_path / "x.zarr", "lerobot", tmp_path / "l", **options) == 0
    opened = EpisodeStore(tmp_path / "x.zarr")
    assert opened.spec.fps == 10.0
    assert [opened.lengths[name] for name in opened.ids] == [19, 32]
    actions = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    for name, part in zip(opened.ids, np.split(frames, [LENGTHS[0]]), strict=True):
        episode = opened.read(name)
        expected = actions[: episode.num_steps, [0, 1, 5]] * [1, 1, 57.2958]
        np.testing.assert_allclose(episode.actions, expected, rtol=1e-5)
        assert np.abs(episode.frames.astype(int) - part).mean() < 4
    notes = opened.annotations(opened.ids[0])
    assert [(n.kind, n.start, n.stop, n.text) for n in notes] == [
        ("instruction", 0, 19, "pick it up")
    ]
    assert opened.annotations(opened.ids[1]) == ()


def test_lerobot_without_columns_is_unlabelled_and_bad_parts_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lerobot(tmp_path / "l", "v2.1")
    broken = tmp_path / "l" / "videos" / "chunk-000" / CAMERA / "episode_000000.mp4"
    broken.write_bytes(b"gone")
    assert run(tmp_path / "x.zarr", "lerobot", tmp_path / "l") == 0
    told = capsys.readouterr().err
    assert "episode 0: left out" in told
    assert "['x', 'y', 'z', 'a', 'b', 'c']" in told
    opened = EpisodeStore(tmp_path / "x.zarr")
    assert len(opened) == len(opened.select("video")) == 1
    assert main(DataConfig("validate", str(tmp_path / "x.zarr"))) == 0


def test_lerobot_refusals(tmp_path: Path) -> None:
    lerobot(tmp_path / "l", "v2.1")
    path = tmp_path / "l" / "meta" / "info.json"
    info = json.loads(path.read_text())
    with pytest.raises(UserError, match=f"cameras {CAMERA}; not 'top'"):
        run(tmp_path / "x.zarr", "lerobot", tmp_path / "l", camera="top")
    path.write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    with pytest.raises(UserError, match=r"version v1\.6; v2\.0, v2\.1, v3\.0 can be read"):
        run(tmp_path / "x.zarr", "lerobot", tmp_path / "l")
    path.write_text("{}")
    with pytest.raises(UserError, match="is not a LeRobot data set"):
        run(tmp_path / "x.zarr", "lerobot", tmp_path / "l")
