"""`worldmodel data validate|repair|merge|split|stats`, and films by `preview`."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets import care, schema
from worldmodel.datasets.commands import DataConfig, main
from worldmodel.datasets.stats import measure
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "walk", dx=0.5, phrases=("step forward",)),
        ActionRow("left", "a", "turn", dyaw=10.0, phrases=("turn left",)),
    )
)
SPEC = WorldSpec("toy", TABLE, 16, 24, fps=10.0)


def make_episode(seed: int, steps: int = 20, **info) -> Episode:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 4, steps).astype(np.uint16)
    pressed = [TABLE.from_mask(mask) for mask in keys.tolist()]
    return Episode(
        frames=rng.integers(0, 256, (steps + 1, 16, 24, 3), np.uint8),
        actions=np.array([(a.dx, a.dy, a.dyaw) for a in pressed], np.float32),
        keys=keys,
        facts={"pose": rng.uniform(0, 4, (steps + 1, 3)).astype(np.float32)},
        annotations=(Annotation("caption", 0, 0, "a room"),),
        info={"world": "toy", "seed": seed, "split": "train", "policy": "mix", **info},
    )


def make_store(path: Path, seeds: range, spec: WorldSpec = SPEC) -> Path:
    writer = EpisodeWriter(path, spec, licence="CC0-1.0", command="make it")
    for seed in seeds:
        writer.write(make_episode(seed, scene=f"house {seed // 2}"))
    return writer.path


def run(command: str, store: Path, **options) -> int:
    return main(DataConfig(command, str(store), **options))


def rewrite_record(folder: Path, change) -> None:
    """Change a record and seal it again, as a writer with a fault would."""
    group = json.loads((folder / "zarr.json").read_text())
    record = {k: v for k, v in group["attributes"].items() if k != "checksum"}
    change(record)
    group["attributes"] = schema.seal(record)
    (folder / "zarr.json").write_text(json.dumps(group))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def shorten(folder: Path) -> None:
    """Say one step less than there is, in every place that says it, with right checksums."""

    def change(record) -> None:
        record["steps"] -= 1
        record["layout"]["actions"]["shape"][0] -= 1

    rewrite_record(folder, change)


FAULTS = {
    "flipped byte": ("'frames'", lambda e: flip(e / "frames/c/0/0/0/0")),
    "flipped byte of the small arrays": ("'packed'", lambda e: flip(e / "packed/c/0")),
    "flipped byte of the record": ("'record'", lambda e: flip(e / "zarr.json")),
    "truncated shard": (
        "has 2000 bytes instead of",
        lambda e: os.truncate(e / "frames/c/0/0/0/0", 2000),
    ),
    "missing array": ("'frames'", lambda e: shutil.rmtree(e / "frames")),
    "missing small arrays": ("'packed'", lambda e: shutil.rmtree(e / "packed")),
    "wrong length": ("21 frames need 20 actions", shorten),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_names_the_fault_and_repair_moves_the_episode_aside(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "x.zarr", range(4))
    said, harm = FAULTS[fault]
    ids = EpisodeStore(store).ids
    harm(store / "episodes" / ids[1])
    intact = [EpisodeStore(store).read(name) for name in (ids[0], ids[2], ids[3])]
    assert run("validate", store) == 1
    text = capsys.readouterr().out
    assert text.count(ids[1]) >= 1
    assert said in text
    assert "4 episodes checked, 1 problems" in text
    assert run("repair", store) == 0
    assert f"moved to {store / 'damaged' / ids[1]}" in capsys.readouterr().out
    assert (store / "damaged" / ids[1]).is_dir()
    reasons = (store / "damaged" / "reasons.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in reasons] == [ids[1]]
    opened = EpisodeStore(store)
    assert opened.ids == [ids[0], ids[2], ids[3]]
    for name, episode in zip(opened.ids, intact, strict=True):
        np.testing.assert_array_equal(opened.read(name).frames, episode.frames)
    assert run("validate", store) == 0
    assert run("repair", store) == 0
    assert "all intact; 3 episodes remain" in capsys.readouterr().out


def nan_pose(episode: Episode) -> Episode:
    pose = episode.facts["pose"].copy()
    pose[7, 2] = np.nan
    return dataclasses.replace(episode, facts={"pose": pose})


def nan_action(episode: Episode) -> Episode:
    actions = episode.actions.copy()
    actions[5] = np.nan
    return dataclasses.replace(episode, actions=actions)


def unknown_key(episode: Episode) -> Episode:
    keys = episode.keys.copy()
    keys[3] = 4
    return dataclasses.replace(episode, keys=keys)


WRONG_VALUES = {
    "NaN pose": ("a pose that is not finite at frame 7", nan_pose),
    "NaN action": ("actions that are not finite at step 5", nan_action),
    "unknown key": ("keys at step 3 that the action table does not have", unknown_key),
    "unlabelled with actions": (
        "marked as unlabelled, but has actions",
        lambda e: dataclasses.replace(e, info={**e.info, "labelled": False}),
    ),
    "sentence past the end": (
        "a sentence about frames 3 to 21 of its 21",
        lambda e: dataclasses.replace(e, annotations=(Annotation("instruction", 3, 21, "go"),)),
    ),
    "duplicate": ("is a duplicate of ep-00000000-train", lambda e: make_episode(0, copy=True)),
}


@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_values_that_make_no_sense_are_found(
    tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "x.zarr", range(2))
    said, change = WRONG_VALUES[wrong]
    name = EpisodeWriter(store, SPEC).write(change(make_episode(9)))
    assert run("validate", store) == 1
    out = capsys.readouterr().out
    assert said in out
    assert out.count("\n") == 2
    if wrong != "duplicate":
        assert f"episode {name}" in out
    assert run("repair", store) == 0
    assert len(EpisodeStore(store)) == 2
    assert len(os.listdir(store / "damaged")) == 2
    assert run("validate", store) == 0


def test_repair_moves_strays_and_never_overwrites_what_it_moved(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x.zarr", range(2))
    for text in ("first", "second"):
        (store / "episodes" / "notes.txt").write_text(text)
        assert run("repair", store) == 0
    assert (store / "damaged" / "notes.txt").read_text() == "first"
    assert (store / "damaged" / "notes.txt.1").read_text() == "second"


def test_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_store(tmp_path / "a.zarr", range(0, 3))
    b = make_store(tmp_path / "b.zarr", range(2, 5))
    out = tmp_path / "c.zarr"
    for _ in range(2):  # the second time there is nothing left to do
        assert run("merge", Path("-"), stores=(str(a), str(b)), out=str(out)) == 0
        assert "now holds 5 episodes" in capsys.readouterr().out
    merged = EpisodeStore(out)
    assert merged.ids == sorted({*EpisodeStore(a).ids, *EpisodeStore(b).ids})
    assert merged.provenance["licence"] == "CC0-1.0"
    for name in merged.ids:
        merged.check(name)
    name = EpisodeStore(b).ids[2]
    np.testing.assert_array_equal(merged.read(name).frames, EpisodeStore(b).read(name).frames)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"actions": ActionTable(TABLE.rows[:1])}, "differ in actions"),
        ({"height": 8, "fps": 5.0}, "differ in height, fps"),
    ],
)
def test_merge_refuses_other_worlds_before_it_writes(
    tmp_path: Path, change: dict, said: str
) -> None:
    a = make_store(tmp_path / "a.zarr", range(1))
    b = EpisodeWriter(tmp_path / "b.zarr", dataclasses.replace(SPEC, **change)).path
    with pytest.raises(UserError, match=said) as caught:
        run("merge", a, stores=(str(a), str(b)), out=str(tmp_path / "c.zarr"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c.zarr").exists()


def test_merge_says_what_is_missing(tmp_path: Path) -> None:
    a = make_store(tmp_path / "a.zarr", range(1))
    with pytest.raises(UserError, match="at least two stores"):
        run("merge", a, stores=(str(a),), out=str(tmp_path / "c.zarr"))
    with pytest.raises(UserError, match="needs the place to write to"):
        run("merge", a, stores=(str(a), str(a)))
    with pytest.raises(UserError, match="is one of the stores"):
        run("merge", a, stores=(str(a), str(a)), out=str(a))


def levels_of(path: Path) -> dict[str, set[str]]:
    store = EpisodeStore(path)
    found: dict[str, set[str]] = {}
    for name in store.ids:
        found.setdefault(store.describe(name).split, set()).add(store.info(name)["scene"])
    return found


def test_split_keeps_levels_whole_and_follows_from_the_seed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x.zarr", range(24))  # two episodes in each of 12 scenes
    found = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.zarr"
        assert run("split", store, out=str(out), val=0.25, test=0.1, seed=seed) == 0
        assert len(EpisodeStore(out)) == 24
        found.append(levels_of(out))
    assert found[0] == found[1] != found[2]
    for splits in found:
        assert {name: len(levels) for name, levels in splits.items()} == {
            "train": 8,
            "val": 3,
            "test": 1,
        }
        assert len(set.union(*splits.values())) == 12
    first = EpisodeStore(tmp_path / "0.zarr")
    assert all(first.info(name)["made_for"] == "train" for name in first.ids)
    frames = {first.describe(name).seed: first.read(name).frames for name in first.ids}
    for seed in range(24):
        np.testing.assert_array_equal(frames[seed], make_episode(seed).frames)


def test_split_by_another_entry_and_what_it_refuses(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x.zarr", range(6))
    out = str(tmp_path / "y.zarr")
    for options, said in [
        ({"by": "level"}, "by=level: an episode's info has only policy, scene, seed"),
        ({"val": 0.6, "test": 0.5}, "must be shares"),
        ({"val": 0.4, "test": 0.5}, "3 levels are too few"),
    ]:
        with pytest.raises(UserError, match=said):
            run("split", store, out=out, **options)
        assert not Path(out).exists()
    assert run("split", store, out=out, by="seed", val=0.4, test=0.0) == 0
    assert len(EpisodeStore(out).select("val")) == 2
    with pytest.raises(UserError, match="already holds episodes"):
        run("split", store, out=out)
    with pytest.raises(UserError, match="is the store itself"):
        run("split", store, out=str(store), by="seed")


def test_split_never_lets_unlabelled_episodes_into_train(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "x.zarr", SPEC)
    for seed in range(8):
        episode = make_episode(seed, labelled=False, scene=str(seed))
        nothing = np.full_like(episode.actions, np.nan), np.zeros_like(episode.keys)
        writer.write(dataclasses.replace(episode, actions=nothing[0], keys=nothing[1]))
    assert run("validate", writer.path) == 0
    assert run("split", writer.path, out=str(tmp_path / "y.zarr")) == 0
    assert set(levels_of(tmp_path / "y.zarr")) == {"video", "video_val", "video_test"}


def test_stats_as_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = EpisodeWriter(tmp_path / "x.zarr", SPEC)
    for seed, steps in enumerate((8, 20, 100)):
        pose = np.zeros((steps + 1, 3), np.float32)
        pose[:, 0] = np.linspace(-0.5, 2.5, steps + 1)  # squares -1 to 2
        keys = np.ones(steps, np.uint16)
        keys[: steps // 4] = 0
        frames = np.full((steps + 1, 16, 24, 3), 20 if seed == 0 else 200, np.uint8)
        actions = np.outer(keys, [0.5, 0, 0]).astype(np.float32)
        info = {"seed": seed, "level_seed": seed // 2}
        writer.write(Episode(frames, actions, keys, {"pose": pose}, (), info))
    out = tmp_path / "figures.json"
    assert run("stats", writer.path, out=str(out)) == 0
    text = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures == measure(EpisodeStore(writer.path), EpisodeStore(writer.path).ids)
    assert figures["actions"] == {
        "w": {"steps": 96, "share": 0.75},
        "none": {"steps": 32, "share": 0.25},
    }
    assert figures["lengths"]["classes"] == {
        "<=16": 1, "<=64": 1, "<=256": 1, "<=1024": 0, ">1024": 0,
    }  # fmt: skip
    assert figures["moves"]["dx"] == {"min": 0.0, "mean": 0.375, "max": 0.5, "still": 0.25}
    assert figures["coverage"] == {
        "cell_m": 1.0,
        "levels": 2,
        "cells": 8,
        "cells_per_level": 4.0,
        "visits_per_cell": round(131 / 8, 1),
    }
    assert figures["brightness"]["p5"] == 20.0
    assert figures["brightness"]["dark"] == round(3 / (3 + 6 + 26), 3)
    for said in ("8 to 100 steps, median 20", "75.0 % ####", "8 squares of 1 m in 2 levels"):
        assert said in text


def test_stats_of_nothing_and_of_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = EpisodeWriter(tmp_path / "e.zarr", SPEC).path
    assert run("stats", empty) == 0
    assert "0 in 0 steps" in capsys.readouterr().out
    store = make_store(tmp_path / "x.zarr", range(2))
    (store / "episodes" / EpisodeStore(store).ids[0] / "packed/c/0").unlink()
    assert run("stats", store) == 0
    assert "1 (0 unlabelled, 1 damaged and left out)" in capsys.readouterr().out


def test_preview_as_a_film(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x.zarr", range(3))
    out = tmp_path / "deep" / "film.mp4"
    assert run("preview", store, out=str(out), episodes=2) == 0
    with av.open(str(out)) as film:
        assert float(film.streams.video[0].average_rate or 0) == 10.0
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 2 * 21
    large = np.kron(make_episode(0).frames[4], np.ones((16, 16, 1), np.uint8))
    assert np.abs(frames[4][:256, :384].astype(int) - large).mean() < 12
    bar = frames[4][256:]
    assert (bar.min(axis=-1) > 200).mean() > 0.5  # paper
    assert (bar.max(axis=-1) < 200).any()  # and ink
    assert os.listdir(out.parent) == ["film.mp4"]


def test_levels_are_called_by_the_first_name_there_is() -> None:
    assert care.level_of({"seed": 3}) == "seed 3"
    assert care.level_of({"seed": 3, "level_seed": 4}) == "level_seed 4"
    assert care.level_of({"seed": 3, "level_seed": 4, "scene": "hall"}) == "scene hall"
    assert care.level_of({"seed": 3, "scene": "hall"}, by="seed") == "seed 3"
