"""Arrays are written as zarr-python would write them, and safely."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from worldmodel.actions import ActionTable
from worldmodel.datasets.arrays import write_bytes, write_frames, write_group
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

SIZE = (6, 5, 3)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE), np.uint8)


def sizes(folder: Path) -> dict[str, int]:
    files = [path for path in (folder / "c").rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def metadata(folder: Path) -> dict[str, Any]:
    array = zarr.open_array(folder, mode="r", zarr_format=3)
    return dict(array.metadata.to_dict())


@pytest.mark.parametrize("count", [1, 8, 21, 1024, 1025])
def test_frames_are_what_zarr_would_write(tmp_path: Path, count: int) -> None:
    frames = noise(count)
    write_frames(tmp_path / "ours", frames)
    zarr.create_array(
        tmp_path / "zarr",
        data=frames,
        chunks=(8, *SIZE),
        shards=(min(1024, -(-count // 8) * 8), *SIZE),
        compressors=[BloscCodec(cname="lz4hc", clevel=5, shuffle="noshuffle"), Crc32cCodec()],
    )
    assert metadata(tmp_path / "ours") == metadata(tmp_path / "zarr")
    assert sizes(tmp_path / "ours") == sizes(tmp_path / "zarr")
    array = zarr.open_array(tmp_path / "ours", mode="r", zarr_format=3)
    np.testing.assert_array_equal(np.asarray(array[:]), frames)


def test_black_frames_are_written_so_that_a_missing_file_is_no_black_one(tmp_path: Path) -> None:
    write_frames(tmp_path / "ours", np.zeros((1030, *SIZE), np.uint8))
    assert set(sizes(tmp_path / "ours")) == {"c/0/0/0/0", "c/1/0/0/0"}
    array = zarr.open_array(tmp_path / "ours", mode="r", zarr_format=3)
    assert not np.asarray(array[:]).any()


def test_frames_that_lie_in_memory_in_another_order(tmp_path: Path) -> None:
    turned = noise(20)[:, ::-1]
    write_frames(tmp_path / "ours", turned)
    array = zarr.open_array(tmp_path / "ours", mode="r", zarr_format=3)
    np.testing.assert_array_equal(np.asarray(array[:]), turned)


def test_bytes_are_what_zarr_would_write(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 9, 1000, np.uint8)
    write_bytes(tmp_path / "ours", data.tobytes())
    codecs = [ZstdCodec(level=3), Crc32cCodec()]
    zarr.create_array(tmp_path / "zarr", data=data, chunks=(1000,), compressors=codecs)
    assert metadata(tmp_path / "ours") == metadata(tmp_path / "zarr")
    ours, theirs = ((tmp_path / name / "c/0").read_bytes() for name in ("ours", "zarr"))
    assert ours == theirs


def test_a_group_is_one_for_zarr(tmp_path: Path) -> None:
    write_group(tmp_path, {"id": "x", "files": {"a": 1}})
    assert dict(zarr.open_group(tmp_path, mode="r").attrs) == {"id": "x", "files": {"a": 1}}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_an_episode_that_cannot_be_synced_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EpisodeWriter(tmp_path / "x.zarr", WorldSpec("toy", ActionTable(()), *SIZE[:2]))
    still = np.zeros((19, 3), np.float32), np.zeros(19, np.uint16)
    sync, synced = os.fsync, []

    def fails(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        if synced[-1].endswith("frames/c/0/0/0/0"):
            raise OSError(errno.EIO, "Input/output error")
        sync(file)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(UserError, match="Input/output error"):
        writer.write(Episode(noise(20), *still, {}, (), {"seed": 0}))
    assert not EpisodeStore(writer.path).ids
    assert os.listdir(tmp_path / "x.zarr/episodes") == ["zarr.json"]
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}"))
    )
    synced.clear()
    name = writer.write(Episode(noise(20), *still, {}, (), {"seed": 0}))
    made = [path for path in synced if ".tmp-" in path]
    whole = [*(tmp_path / "x.zarr/episodes" / name).rglob("*")]
    assert len(made) == 1 + len(whole), "every file and folder, before it is renamed"
    assert synced[-1] == str(tmp_path / "x.zarr/episodes")
