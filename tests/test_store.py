"""The store: round trips, refusals and damage."""

import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets import schema
from worldmodel.datasets.store import (
    EpisodeStore,
    EpisodeWriter,
    leftovers,
    remove_leftovers,
    strays,
)
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "walk forward", dx=0.5, phrases=("step forward", "walk on")),
        ActionRow("left", "a", "turn left", dyaw=11.25, unit="deg", phrases=("turn left",)),
    )
)
SPEC = WorldSpec("toy", TABLE, height=8, width=12, fps=9.5, objects=("red torch", "blue key"))


def make_episode(seed: int, steps: int = 20, split: str = "train", black: bool = False) -> Episode:
    rng = np.random.default_rng(seed)
    shape = (steps + 1, SPEC.height, SPEC.width, 3)
    frames = np.zeros(shape, np.uint8) if black else rng.integers(0, 256, shape, np.uint8)
    return Episode(
        frames=frames,
        actions=rng.normal(size=(steps, 3)).astype(np.float32),
        keys=rng.integers(0, 4, steps).astype(np.uint16),
        facts={"pose": rng.normal(size=(steps + 1, 3)).astype(np.float32)},
        annotations=(Annotation("caption", 0, 0, "ein dunkler Gang · 暗い"),),
        info={"world": "toy", "seed": seed, "split": split, "policy": "mix"},
    )


def assert_equal(a: Episode, b: Episode) -> None:
    for x, y in [(a.frames, b.frames), (a.actions, b.actions), (a.keys, b.keys)]:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert list(a.facts) == list(b.facts)
    for name in a.facts:
        assert a.facts[name].dtype == b.facts[name].dtype
        np.testing.assert_array_equal(a.facts[name], b.facts[name])
    assert a.annotations == b.annotations
    assert a.info == b.info


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the episodes of seeds 0, 1 (black) and 2."""
    writer = EpisodeWriter(tmp_path / "x.zarr", SPEC, licence="CC0-1.0", command="make it")
    for seed in (2, 0, 1):
        writer.write(make_episode(seed, black=seed == 1))
    return writer.path


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    facts: dict[str, np.ndarray] = {
        np.dtype(code).name: np.arange(21 * 2).reshape(21, 2).astype(code)
        for code in ["?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d", "F", "D"]
    }
    facts["gaps"] = np.where(np.arange(21) % 2, np.nan, 1.0).astype(np.float32)
    facts["big_endian"] = np.arange(21, dtype=">f4")
    facts["empty"] = np.zeros((21, 0), np.float32)
    episode = dataclasses.replace(make_episode(7), facts=dict(sorted(facts.items())))
    name = EpisodeWriter(tmp_path / "x.zarr", SPEC).write(episode)
    assert_equal(EpisodeStore(tmp_path / "x.zarr").read(name), episode)


def test_spec_provenance_ids_and_splits(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "x.zarr", SPEC, licence="CC0-1.0", command="make it")
    for seed, split in [(100000001, "val"), (3, "train"), (20, "test"), (1, "val")]:
        writer.write(make_episode(seed, steps=seed % 7 + 1, split=split))
    store = EpisodeStore(writer.path)
    assert store.spec == SPEC
    assert store.provenance["licence"] == "CC0-1.0"
    assert store.provenance["command"] == "make it"
    assert [store.describe(name).seed for name in store.ids] == [1, 3, 20, 100000001]
    assert [store.describe(name).seed for name in store.select("val")] == [1, 100000001]
    assert store.select("nope") == []
    assert list(store.lengths.values()) == [2, 4, 7, 100000001 % 7 + 1]
    assert all(len(store.frames(name)) == store.lengths[name] + 1 for name in store.ids)


@pytest.mark.parametrize("steps", [0, 1, 15, 16, 1023, 1024, 2100])
def test_windows_of_frames_across_chunks_and_shards(tmp_path: Path, steps: int) -> None:
    episode = make_episode(1, steps)
    name = EpisodeWriter(tmp_path / "x.zarr", SPEC).write(episode)
    store = EpisodeStore(tmp_path / "x.zarr")
    assert_equal(store.read(name), episode)
    for start in (0, 1, 15, 16, 1020, steps, steps + 1):
        for stop in (start, start + 1, start + 17, steps + 1):
            if start <= stop <= steps + 1:
                np.testing.assert_array_equal(
                    store.frames(name, start, stop), episode.frames[start:stop]
                )
    with pytest.raises(IndexError):
        store.frames(name, 0, steps + 2)
    store.check(name)


def test_any_zarr_reader_sees_the_frames(store: Path) -> None:
    name = EpisodeStore(store).ids[0]
    array = zarr.open_group(store, mode="r")[f"episodes/{name}/frames"]
    np.testing.assert_array_equal(np.asarray(array), make_episode(0).frames)  # pyright: ignore


def test_an_episode_takes_few_files(store: Path) -> None:
    files = [path for path in (store / "episodes").rglob("*") if path.is_file()]
    assert len(files) == 1 + 3 * 5


def test_same_episode_twice_is_kept_once(store: Path) -> None:
    EpisodeWriter(store, SPEC).write(make_episode(0))
    assert len(EpisodeStore(store)) == 3
    other = dataclasses.replace(make_episode(0), info={"seed": 0, "policy": "other"})
    EpisodeWriter(store, SPEC).write(other)
    assert len(EpisodeStore(store)) == 4
    assert leftovers(store) == []


def test_a_writer_keeps_its_place_when_the_process_changes_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writer = EpisodeWriter("x.zarr", SPEC)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    writer.write(make_episode(1))
    assert len(EpisodeStore(tmp_path / "x.zarr")) == 1
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_store_can_be_sent_to_another_process(store: Path) -> None:
    opened = EpisodeStore(store)
    opened.read(opened.ids[0])
    again = pickle.loads(pickle.dumps(opened))
    assert_equal(again.read(again.ids[0]), make_episode(0))


def test_numpy_scalars_in_info_become_plain(tmp_path: Path) -> None:
    info = {"seed": np.int64(3), "split": "train", "area": np.float32(2.5), "list": [1, None]}
    episode = dataclasses.replace(make_episode(3), info=info)
    name = EpisodeWriter(tmp_path / "x.zarr", SPEC).write(episode)
    expected = {"seed": 3, "split": "train", "area": 2.5, "list": [1, None]}
    assert EpisodeStore(tmp_path / "x.zarr").info(name) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"info": {"seed": 0, "split": "../up"}},
        {"info": {"seed": -1}},
        {"info": {"seed": 0, "thing": object()}},
        {"facts": {"names": np.array(["a"] * 21, dtype=object)}},
    ],
)
def test_what_the_schema_cannot_hold_is_refused(store: Path, change: dict) -> None:
    with pytest.raises(ValueError):
        EpisodeWriter(store, SPEC).write(dataclasses.replace(make_episode(5), **change))
    assert sorted(os.listdir(store / "episodes")) == sorted([*EpisodeStore(store).ids, "zarr.json"])


# --- damage --------------------------------------------------------------------------------------


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0x55
    path.write_bytes(data)


DAMAGE = {
    "shard missing": ("frames", lambda e: (e / "frames/c/0/0/0/0").unlink()),
    "shard folder missing": ("frames", lambda e: os.rename(e / "frames/c", e / "gone")),
    "shard truncated": ("frames", lambda e: os.truncate(e / "frames/c/0/0/0/0", 1000)),
    "shard empty": ("frames", lambda e: os.truncate(e / "frames/c/0/0/0/0", 0)),
    "chunk damaged": ("frames", lambda e: flip(e / "frames/c/0/0/0/0", 0.3)),
    "index damaged": ("frames", lambda e: flip(e / "frames/c/0/0/0/0", 0.999)),
    "array metadata gone": ("frames", lambda e: (e / "frames/zarr.json").unlink()),
    "array metadata damaged": ("frames", lambda e: flip(e / "frames/zarr.json", 0.1)),
    "packed missing": ("packed", lambda e: (e / "packed/c/0").unlink()),
    "packed damaged": ("packed", lambda e: flip(e / "packed/c/0", 0.5)),
    "record missing": ("record", lambda e: (e / "zarr.json").unlink()),
    "record damaged": ("record", lambda e: flip(e / "zarr.json", 0.5)),
    "record not text": ("record", lambda e: (e / "zarr.json").write_bytes(b"\xff\xfe\x00")),
    "record is a list": ("record", lambda e: (e / "zarr.json").write_text("[]")),
}


@pytest.mark.parametrize("black", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_rest_stays_readable(store: Path, damage: str, black: bool) -> None:
    array, harm = DAMAGE[damage]
    ids = EpisodeStore(store).ids
    name = ids[1] if black else ids[0]
    harm(store / "episodes" / name)
    opened = EpisodeStore(store)
    for use in (opened.read, opened.check):
        with pytest.raises(UserError) as caught:
            use(name)
        text = str(caught.value)
        assert str(store) in text
        assert name in text
        assert f"'{array}'" in text
        assert "other episodes are intact" in text
        assert "\n" not in text
    assert_equal(opened.read(ids[2]), make_episode(2))
    opened.check(ids[2])


def test_a_shard_that_goes_while_the_store_is_open_does_not_read_as_black(store: Path) -> None:
    opened = EpisodeStore(store)
    name = opened.ids[1]
    assert not opened.frames(name, 0, 4).any()
    (store / "episodes" / name / "frames/c/0/0/0/0").unlink()
    with pytest.raises(UserError, match="missing"):
        opened.frames(name, 0, 4)


def test_a_second_shard_is_missed_only_where_it_is_needed(tmp_path: Path) -> None:
    name = EpisodeWriter(tmp_path / "x.zarr", SPEC).write(make_episode(1, steps=1100))
    (tmp_path / "x.zarr/episodes" / name / "frames/c/1/0/0/0").unlink()
    store = EpisodeStore(tmp_path / "x.zarr")
    assert len(store.frames(name, 1000, 1024)) == 24
    with pytest.raises(UserError, match="c/1/0/0/0 is missing"):
        store.frames(name, 1020, 1030)


def test_an_episode_under_a_wrong_name_is_found(store: Path) -> None:
    ids = EpisodeStore(store).ids
    os.rename(store / "episodes" / ids[0], store / "episodes" / ids[0].replace("train", "test"))
    opened = EpisodeStore(store)
    with pytest.raises(UserError, match="record"):
        opened.check(opened.ids[0])


# --- what is not a store, or another one ---------------------------------------------------------


def edit_root(path: Path, change) -> None:
    data = json.loads((path / "zarr.json").read_text())
    change(data["attributes"])
    (path / "zarr.json").write_text(json.dumps(data))


def test_wrong_schema_version(store: Path) -> None:
    edit_root(store, lambda a: a["schema"].update(version=2))
    for use in (EpisodeStore, lambda path: EpisodeWriter(path, SPEC)):
        with pytest.raises(UserError, match=r"schema version 2, but .* reads version 1"):
            use(store)


def test_damaged_world_in_the_root(store: Path) -> None:
    edit_root(store, lambda a: a["world"].pop("actions"))
    with pytest.raises(UserError, match=r"zarr\.json is damaged"):
        EpisodeStore(store)


def test_what_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store at"):
        EpisodeStore(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="not a store"):
        EpisodeStore(tmp_path / "folder")
    (tmp_path / "file").write_text("hello")
    with pytest.raises(UserError, match="not a store"):
        EpisodeStore(tmp_path / "file")
    zarr.create_group(tmp_path / "other.zarr", attributes={"schema": {"name": "x", "version": 1}})
    with pytest.raises(UserError, match="another kind"):
        EpisodeStore(tmp_path / "other.zarr")
    for text in ("{", "[]", '{"attributes": {}}', '{"attributes": {"schema": 1}}'):
        (tmp_path / "folder" / "zarr.json").write_text(text)
        with pytest.raises(UserError, match="not a store"):
            EpisodeStore(tmp_path / "folder")


def test_writing_to_what_is_not_a_store_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    (tmp_path / "file").write_text("hello")
    for name in ("folder", "file"):
        with pytest.raises(UserError, match="exists and is not a store"):
            EpisodeWriter(tmp_path / name, SPEC)
    assert (tmp_path / "folder" / "precious").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    with pytest.raises(UserError, match="cannot be made"):
        EpisodeWriter(tmp_path / "file" / "x.zarr", SPEC)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": 16}, "12x8 pixels, so frames of 12x16 pixels"),
        ({"fps": 30.0}, "other fps"),
        ({"objects": ("cup",)}, "other objects"),
        ({"actions": ActionTable(TABLE.rows[:1])}, "other actions"),
        ({"name": "maze"}, "other name"),
    ],
)
def test_another_world_is_refused(store: Path, change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        EpisodeWriter(store, dataclasses.replace(SPEC, **change))
    assert len(EpisodeStore(store)) == 3


def test_frames_of_another_size_are_refused(store: Path) -> None:
    episode = dataclasses.replace(make_episode(9), frames=np.zeros((21, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="12x8 pixels, so frames of 4x4 pixels"):
        EpisodeWriter(store, SPEC).write(episode)
    assert len(EpisodeStore(store)) == 3


def test_unknown_episode(store: Path) -> None:
    for use in (EpisodeStore(store).read, EpisodeStore(store).frames, EpisodeStore(store).info):
        with pytest.raises(UserError, match="no episode 'x'"):
            use("x")


# --- what writers leave --------------------------------------------------------------------------


def test_leftovers_are_ignored_found_and_removed(store: Path) -> None:
    episodes = store / "episodes"
    name = EpisodeStore(store).ids[0]
    host = os.uname().nodename.replace(".", "_")
    dead = episodes / f"{schema.TEMPORARY}{name}.{host}.{2**22 + 5}.1"
    live = episodes / f"{schema.TEMPORARY}{name}.{host}.{os.getpid()}.2"
    far = episodes / f"{schema.TEMPORARY}{name}.elsewhere.7.3"
    odd = episodes / f"{schema.TEMPORARY}odd"
    for folder in (dead, live, far, odd):
        (folder / "frames").mkdir(parents=True)
    (episodes / "notes").mkdir()
    assert len(EpisodeStore(store)) == 3
    assert strays(store) == [episodes / "notes"]
    assert leftovers(store) == sorted([dead, odd])
    os.utime(far, (0, 0))
    assert leftovers(store) == sorted([dead, odd, far])
    assert remove_leftovers(store) == 3
    assert live.is_dir()


def test_a_write_that_fails_leaves_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EpisodeWriter(store, SPEC)

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match=r"cannot be written: .*No space left"):
        writer.write(make_episode(5))
    monkeypatch.undo()
    assert len(EpisodeStore(store)) == 3
    assert not any(n.startswith(".") for n in os.listdir(store / "episodes"))


def test_a_store_that_lost_its_episodes_folder(store: Path) -> None:
    os.rename(store / "episodes", store / "elsewhere")
    with pytest.raises(UserError, match="has lost its folder 'episodes'"):
        EpisodeStore(store)
