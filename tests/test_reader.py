"""The fast reader gives what zarr-python gives, and notices what zarr-python notices."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.clips import Window, read_clips
from worldmodel.datasets.reader import FrameReader, ShardLayout, ZarrFrames, open_frames
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

SHAPE = (50, 6, 5, 3)
LZ4: dict[str, Any] = {"cname": "lz4hc", "clevel": 5, "shuffle": "noshuffle"}
SPEC = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "walk", dx=0.5),)), 6, 5)


def frames(seed: int = 0, count: int = SHAPE[0]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE[1:]), np.uint8)


def make_array(folder: Path, values: np.ndarray, **options) -> dict[str, int]:
    """Write an array and return the sizes of its files."""
    defaults: dict[str, Any] = {"shards": (32, *SHAPE[1:]), "chunks": (8, *SHAPE[1:])}
    defaults |= {"compressors": [ZstdCodec(level=3), Crc32cCodec()], "fill_value": 7}
    array = zarr.create_array(
        folder, shape=values.shape, dtype=np.uint8, zarr_format=3, **(defaults | options)
    )
    array[...] = values
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def sharded(index_location: str, **options):
    codec = ShardingCodec(
        chunk_shape=(4, *SHAPE[1:]),
        codecs=[BytesCodec(), ZstdCodec(level=1)],
        index_location=index_location,
        **options,
    )
    return {"serializer": codec, "shards": None, "chunks": (16, *SHAPE[1:]), "compressors": None}


FAST = {
    "as stores were until 0.1": {"chunks": (16, *SHAPE[1:])},
    "zstd": {},
    "zstd, no checksum": {"compressors": [ZstdCodec(level=3)]},
    "as the store writes": {"compressors": [BloscCodec(**LZ4), Crc32cCodec()]},
    "blosc, shuffled, in blocks": {"compressors": [BloscCodec(shuffle="bitshuffle", blocksize=64)]},
    "one frame a chunk": {"chunks": (1, *SHAPE[1:])},
    "shard as long as a chunk": {"shards": (8, *SHAPE[1:])},
    "index first": sharded("start"),
    "index without checksum": sharded("end", index_codecs=[BytesCodec()]),
}
SLOW = {
    "gzip": {"compressors": [GzipCodec()]},
    "no shards": {"shards": None},
    "chunks of parts of frames": {"shards": (32, 6, 10, 3)},
    "other names of files": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
}


@pytest.mark.parametrize("kind", [*FAST, *SLOW])
def test_every_window_is_what_zarr_reads(tmp_path: Path, kind: str) -> None:
    values = frames()
    values[:32] = 7  # chunks of the fill value are not written
    sizes = make_array(tmp_path / "frames", values, **(FAST | SLOW)[kind])
    reader = open_frames(tmp_path / "frames", sizes)
    assert isinstance(reader, FrameReader if kind in FAST else ZarrFrames)
    for start in range(0, len(values), 1 if kind in FAST else 11):
        for stop in {start, start + 1, min(start + 16, 50), 50}:
            out = np.zeros((stop - start, *SHAPE[1:]), np.uint8)
            reader.read(start, stop, out)
            np.testing.assert_array_equal(out, values[start:stop])


@pytest.mark.parametrize("place", [0.05, 0.5, 0.9, 0.97, 0.999])
def test_a_flipped_byte_is_noticed_wherever_it_is(tmp_path: Path, place: float) -> None:
    sizes = make_array(tmp_path / "frames", frames())
    path = tmp_path / "frames/c/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)
    out = np.empty((32, *SHAPE[1:]), np.uint8)
    with pytest.raises(ValueError, match="checksum"):
        open_frames(tmp_path / "frames", sizes).read(0, 32, out)


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    sizes = make_array(tmp_path / "frames", frames(), **FAST["index without checksum"])
    path = tmp_path / "frames/c/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[-16:] = np.array([10, 1 << 40], "<u8").tobytes()
    path.write_bytes(data)
    with pytest.raises(ValueError, match="beyond"):
        open_frames(tmp_path / "frames", sizes).read(0, 1, np.empty((1, *SHAPE[1:]), np.uint8))


@pytest.mark.parametrize("field", [4, 12])
def test_a_blosc_chunk_that_lies_about_its_length_is_refused(tmp_path: Path, field: int) -> None:
    """Blosc would write or read as far as the chunk says."""
    kind = {"compressors": [BloscCodec(**LZ4)], "chunks": (32, *SHAPE[1:])}
    sizes = make_array(tmp_path / "frames", frames(), **kind)
    path = tmp_path / "frames/c/0/0/0/0"
    data = bytearray(path.read_bytes())
    data[field : field + 4] = b"\xff\xff\xff\x00"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="as long as it says"):
        open_frames(tmp_path / "frames", sizes).read(0, 32, np.empty((32, *SHAPE[1:]), np.uint8))


def test_a_file_that_goes_is_noticed_by_both_readers(tmp_path: Path) -> None:
    for kind in ("zstd", "as the store writes", "no shards"):
        folder = tmp_path / kind / "frames"
        sizes = make_array(folder, frames(), **(FAST | SLOW)[kind])
        reader = open_frames(folder, sizes)
        out = np.empty((4, *SHAPE[1:]), np.uint8)
        reader.read(0, 4, out)
        (folder / "c/0/0/0/0").unlink()
        with pytest.raises(ValueError, match="frames/c/0/0/0/0 is missing"):
            reader.read(0, 4, out)


def test_metadata_that_describe_nothing_are_refused() -> None:
    for text in ("[]", "{}", "no", '{"shape": 3}'):
        with pytest.raises((ValueError, KeyError, TypeError)):
            ShardLayout.parse(text)


def write_store(path: Path) -> EpisodeStore:
    writer = EpisodeWriter(path, SPEC)
    for seed in range(3):
        none = np.zeros((49, 3), np.float32), np.zeros(49, np.uint16)
        writer.write(Episode(frames(seed), *none, {}, (), {"seed": seed}))
    return EpisodeStore(path)


@pytest.mark.parametrize("threads", [1, 3, None])
def test_clips_are_read_together(tmp_path: Path, threads: int | None) -> None:
    store = write_store(tmp_path / "x.zarr")
    windows = [Window(store.ids[i % 3], i, i + 16) for i in range(20)]
    clips = read_clips(store, windows, threads)
    assert clips.shape == (20, 16, *SHAPE[1:])
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(clip, frames(i % 3)[i : i + 16])


def test_clips_of_damage_and_of_nothing(tmp_path: Path) -> None:
    store = write_store(tmp_path / "x.zarr")
    windows = [Window(name, 0, 8) for name in store.ids]
    with pytest.raises(ValueError, match="one length"):
        read_clips(store, [])
    with pytest.raises(ValueError, match="one length"):
        read_clips(store, [windows[0], dataclasses.replace(windows[1], stop=9)])
    with pytest.raises(IndexError):
        read_clips(store, [Window(store.ids[0], 45, 53)])
    os.truncate(store.path / "episodes" / store.ids[1] / "frames/c/0/0/0/0", 100)
    with pytest.raises(UserError, match="instead of"):
        read_clips(store, windows, threads=2)


@pytest.mark.parametrize("kind", ["as stores were until 0.1", "gzip"])
def test_a_store_in_another_layout_is_read_all_the_same(tmp_path: Path, kind: str) -> None:
    """As an old one, or one that zarr-python was asked to write anew, with other codecs."""
    store = write_store(tmp_path / "x.zarr")
    folder = store.path / "episodes" / store.ids[0]
    for path in sorted((folder / "frames").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    make_array(folder / "frames", frames(), **(FAST | SLOW)[kind], overwrite=True)
    from worldmodel.datasets import schema

    text = json.loads((folder / "zarr.json").read_text())
    record = {k: v for k, v in text["attributes"].items() if k != "checksum"}
    kept = {n: f for n, f in record["files"].items() if not n.startswith("frames")}
    for path in (folder / "frames").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            facts = {"bytes": len(data), "crc32": schema.crc32(data)}
            kept[path.relative_to(folder).as_posix()] = facts
    text["attributes"] = schema.seal({**record, "files": kept})
    (folder / "zarr.json").write_text(json.dumps(text))
    opened = EpisodeStore(store.path)
    np.testing.assert_array_equal(opened.frames(store.ids[0], 3, 21), frames()[3:21])
    opened.check(store.ids[0])
