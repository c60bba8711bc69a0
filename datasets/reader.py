"""Fast windows of a sharded Zarr array of frames, past the per-read cost of zarr-python.

The array stays plain Zarr v3. Its metadata is parsed here; where it is the common kind (shards
along the first axis, chunks of whole frames, blosc or zstd and perhaps crc32c), a window is read
by one `pread` of the bytes that its chunks take, which are decoded straight into the result. Any
other array is left to zarr-python. The checksums that Zarr checks are checked here as well. At a
URL a window is one request for a range of bytes.
"""

import json
import os
import shutil
import struct
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import decompress as blosc_decompress
from numcodecs.zstd import decompress as zstd_decompress

from worldmodel.datasets.disk import Place, check_size
from worldmodel.datasets.memory import keep_pages
from worldmodel.datasets.url import Url

_NOWHERE = (1 << 64) - 1  # offset of a chunk that was not written: it has the fill value
_CRC = 4  # bytes of a crc32c
_LITTLE_BYTES = ({"name": "bytes"}, {"name": "bytes", "configuration": {"endian": "little"}})


@dataclass(frozen=True)
class ShardLayout:
    """How an array uint8 [F, H, W, 3] lies in its shards.

    Attributes:
        shape: of the array.
        shard, chunk: frames of a shard and of a chunk.
        fill: value of chunks that were not written.
        codec: how chunks are compressed, 'blosc' or 'zstd'.
        checked: whether a crc32c follows each chunk.
        index_first: whether the index lies at the shard's beginning instead of its end.
        index_checked: whether a crc32c follows the index.
    """

    shape: tuple[int, ...]
    shard: int
    chunk: int
    fill: int
    codec: str
    checked: bool
    index_first: bool
    index_checked: bool

    @staticmethod
    def parse(metadata: str | bytes) -> "ShardLayout | None":
        """Return the layout that a `zarr.json` describes, None for one that zarr must read.

        Raises:
            ValueError, KeyError, TypeError: text that is no array metadata.
        """
        array: Mapping[str, Any] = json.loads(metadata)
        shape = tuple(array["shape"])
        shard = array["chunk_grid"]["configuration"]["chunk_shape"]
        keys = array["chunk_key_encoding"]
        codecs = array["codecs"]
        simple = (
            array["data_type"] == "uint8"
            and array["chunk_grid"]["name"] == "regular"
            and keys["name"] == "default"
            and keys.get("configuration", {}).get("separator", "/") == "/"
            and not array.get("storage_transformers")
            and len(codecs) == 1
            and codecs[0]["name"] == "sharding_indexed"
            and tuple(shard[1:]) == shape[1:]
        )
        if not simple:
            return None
        inner = codecs[0]["configuration"]
        chunk, index = inner["chunk_shape"], inner["index_codecs"]
        names = [codec["name"] for codec in inner["codecs"]]
        known = (
            tuple(chunk[1:]) == shape[1:]
            and inner["codecs"][0] in _LITTLE_BYTES
            and len(names) > 1
            and names[1] in _DECODERS
            and names[2:] in ([], ["crc32c"])
            and index[0] == _LITTLE_BYTES[1]
            and [codec["name"] for codec in index[1:]] in ([], ["crc32c"])
        )
        if not known:
            return None
        return ShardLayout(
            shape=shape,
            shard=shard[0],
            chunk=chunk[0],
            fill=int(array["fill_value"]),
            codec=names[1],
            checked=names[-1] == "crc32c",
            index_first=inner.get("index_location", "end") == "start",
            index_checked=len(index) == 2,
        )

    @property
    def index_bytes(self) -> int:
        """Size of a shard's index with its checksum."""
        return 16 * (self.shard // self.chunk) + _CRC * self.index_checked


def open_frames(
    folder: Place, files: Mapping[str, int], metadata: bytes | None = None
) -> "FrameReader | ZarrFrames":
    """Return a reader of the array in `folder`, a fast one where its layout allows.

    Args:
        folder: of the array, the one with its `zarr.json`.
        files: bytes that each file below `folder` must have, by its path.
        metadata: the content of its `zarr.json`, where that is already read.

    Raises:
        ValueError, KeyError, TypeError: metadata that describe no array of frames.
    """
    keep_pages()
    layout = ShardLayout.parse(metadata or (folder / "zarr.json").read_bytes())
    chunks = {name: size for name, size in files.items() if name != "zarr.json"}
    if layout is None:
        return ZarrFrames(folder, chunks)
    sizes = {int(name.split("/")[1]): size for name, size in chunks.items()}
    reader = UrlFrameReader if isinstance(folder, Url) else FrameReader
    return reader(folder, layout, sizes)


class ZarrFrames:
    """Frames of an array that only zarr-python knows how to read."""

    def __init__(self, folder: Place, sizes: Mapping[str, int]) -> None:
        """Read the array in `folder`; `sizes` are the bytes of its files but the metadata.

        Of an array at a URL all files are fetched at once, into a folder that goes with this.
        """
        if isinstance(folder, Url):
            scratch = tempfile.mkdtemp(prefix="worldmodel_array_")
            weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
            folder = _fetched(folder, sizes, Path(scratch) / folder.name)
        self._folder, self._sizes = folder, sizes
        self._array = zarr.open_array(folder, mode="r", zarr_format=3)
        self.shape: tuple[int, ...] = self._array.shape

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Read frames start to stop (exclusive) into `out`.

        Raises:
            ValueError: a file that is missing or has another size.
        """
        for name, size in self._sizes.items():  # Zarr reads a missing file as zeros
            check_size(self._folder / name, f"{self._folder.name}/{name}", size)
        out[...] = self._array[start:stop]


def _fetched(folder: Url, sizes: Mapping[str, int], copy: Path) -> Path:
    for name, size in {"zarr.json": None, **sizes}.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((folder / name).read_bytes(size))
    return copy


class FrameReader:
    """Windows of one array of frames in a local folder; safe to use from several threads."""

    def __init__(self, folder: Place, layout: ShardLayout, sizes: Mapping[int, int]) -> None:
        """Read the array in `folder`.

        Args:
            folder: of the array, the one with its `zarr.json`.
            layout: what that says.
            sizes: bytes that each shard must have, by number; the others have the fill value.
        """
        self.layout, self.sizes = layout, sizes
        self.shape = layout.shape
        self._path = f"{folder}/c/{{}}" + "/0" * (len(layout.shape) - 1)
        self._frame_bytes = int(np.prod(layout.shape[1:]))
        self._indices: dict[int, np.ndarray] = {}

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Read frames start to stop (exclusive, inside the array) into `out`, C-contiguous.

        Raises:
            ValueError: a shard that is missing or has another size, or a checksum that is wrong.
            RuntimeError: bytes that cannot be decoded.
        """
        size = self.layout.shard
        for shard in range(start // size, -(-stop // size)):
            first, last = max(start, shard * size), min(stop, (shard + 1) * size)
            part = out[first - start : last - start]
            self._read_shard(shard, first - shard * size, last - shard * size, part)

    def _read_shard(self, shard: int, start: int, stop: int, out: np.ndarray) -> None:
        if shard not in self.sizes:  # never written
            out[...] = self.layout.fill
            return
        chunk = self.layout.chunk
        file = self._open(shard)
        try:
            index = self._indices.get(shard)
            if index is None:
                index = self._indices[shard] = self._read_index(file, shard)
            places = index[start // chunk : -(-stop // chunk)].tolist()
            written = [place for place in places if place[0] != _NOWHERE]
            begin = min((offset for offset, _ in written), default=0)
            end = max((offset + length for offset, length in written), default=0)
            data = self._read(file, end - begin, begin)
        finally:
            self._close(file)
        at = start // chunk * chunk
        for offset, length in places:
            low, high = max(start, at), min(stop, at + chunk)
            part = out[low - start : high - start]
            if offset == _NOWHERE:
                part[...] = self.layout.fill
            else:
                coded = data[offset - begin : offset - begin + length]
                self._decode(coded, part, low - at)
            at += chunk

    def _decode(self, coded: bytes, out: np.ndarray, skip: int) -> None:
        """Decode a chunk; `out` takes its frames from `skip` on."""
        if self.layout.checked:
            coded = _checked(coded, "a chunk")
        decode = _DECODERS[self.layout.codec]
        if len(out) == self.layout.chunk:
            decode(coded, out)
            return
        whole = np.empty(self.layout.chunk * self._frame_bytes, np.uint8)
        decode(coded, whole)
        flat = out.reshape(-1)
        first = skip * self._frame_bytes
        flat[:] = whole[first : first + flat.size]

    def _open(self, shard: int) -> Any:
        path = self._path.format(shard)
        try:
            file = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{_short(path)} is missing") from None
        size, expected = os.fstat(file).st_size, self.sizes[shard]
        if size != expected:
            os.close(file)
            raise ValueError(f"{_short(path)} has {size} bytes instead of {expected}")
        return file

    def _read(self, file: Any, length: int, offset: int) -> bytes:
        data = os.pread(file, length, max(0, offset))
        if len(data) != length:
            raise ValueError(f"{length} bytes were expected and {len(data)} are there")
        return data

    def _close(self, file: Any) -> None:
        os.close(file)

    def _read_index(self, file: Any, shard: int) -> np.ndarray:
        """Return uint64 [chunks of a shard, 2]: offset and length of each."""
        size, total = self.layout.index_bytes, self.sizes[shard]
        data = self._read(file, size, 0 if self.layout.index_first else total - size)
        if self.layout.index_checked:
            data = _checked(data, "the index")
        index = np.frombuffer(data, "<u8").reshape(-1, 2)
        there = index[index[:, 0] != _NOWHERE]
        if len(there) and int(there.sum(axis=1).max()) > total:
            raise ValueError("the index points beyond the shard")
        return index


class UrlFrameReader(FrameReader):
    """Windows of one array of frames at a URL; safe to use from several threads."""

    def _open(self, shard: int) -> Url:
        return Url(self._path.format(shard))

    def _read(self, file: Url, length: int, offset: int) -> bytes:
        try:
            return file.read_range(max(0, offset), length)
        except FileNotFoundError:
            raise ValueError(f"{_short(file.address)} is missing") from None

    def _close(self, file: Url) -> None:
        pass  # each request stands for itself


def _decode_blosc(coded: bytes, out: np.ndarray) -> None:
    size, _, coded_size = struct.unpack_from("<III", coded, 4) if len(coded) >= 16 else (0, 0, 0)
    if (size, coded_size) != (out.nbytes, len(coded)):  # Blosc itself believes these numbers
        raise ValueError("a chunk is not as long as it says")
    blosc_decompress(coded, out)


_DECODERS: dict[str, Callable[[bytes, np.ndarray], Any]] = {
    "blosc": _decode_blosc,
    "zstd": zstd_decompress,
}


def _checked(data: bytes, what: str) -> bytes:
    """Return the data without the crc32c at its end."""
    body = data[:-_CRC]
    if struct.pack("<I", google_crc32c.value(body)) != data[-_CRC:]:
        raise ValueError(f"the checksum of {what} does not match")
    return body


def _short(path: str) -> str:
    return "frames" + path.rpartition("/frames")[2]
