"""How fast are random 16-frame clips read, from a store and from what else one might use?

python benchmarks/read_speed.py [--store X.zarr] [--sizes 64 128] [--rounds 5] [--seconds 0.5]
                                [--episodes 8] [--cpu]

The same frames (of a store, or of the world 'doom' drawn in each size) are written in every format,
and every format reads the same random clips. `limit` only decodes, from memory, the chunks that
the clips lie in: what the store would reach if finding and loading them took no time. Arrays with
other codecs are read by the store's reader as well, to show what its own costs and brings. Cold:
the file's pages are dropped from the system's cache before each read. Each contestant has processes
of its own, for what one leaves in memory changes how fast the next one gets some. They alternate;
the medians of the rounds are shown, and of the ratios within each round. --cpu counts clips per
second of CPU time, warm, in one process: for a machine that is busy. HDF5 with the store's codec
needs hdf5plugin.
"""

# ruff: noqa: D101, D102

import argparse
import contextlib
import itertools
import mmap
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import cv2
import h5py
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from worldmodel.actions import ActionTable
from worldmodel.datasets import schema
from worldmodel.datasets.reader import _DECODERS, FrameReader, ShardLayout, open_frames
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.datasets.video import write_mp4
from worldmodel.envs import make_policy, make_world
from worldmodel.world import Episode, WorldSpec

CLIP = 16
STEPS = 256
WORKERS = (1, 2)


class Contestant(ABC):
    """One way to read `CLIP` frames from `start` on of episode number `episode`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = EpisodeStore(folder / "x.zarr")

    @abstractmethod
    def read(self, episode: int, start: int) -> np.ndarray: ...

    def files(self, episode: int) -> list[Path]:
        """The files whose pages a cold read must not find in memory."""
        return [self.folder / "x.zarr/episodes" / self.store.ids[episode] / "frames/c/0/0/0/0"]

    def bytes_per_frame(self) -> float:
        files = {file for episode in range(len(self.store)) for file in self.files(episode)}
        total = sum(file.stat().st_size for file in files)
        return total / sum(steps + 1 for steps in self.store.lengths.values())


class Store(Contestant):
    def read(self, episode: int, start: int) -> np.ndarray:
        return self.store.frames(self.store.ids[episode], start, start + CLIP)


class PlainZarr(Contestant):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        root = folder / "x.zarr/episodes"
        self.arrays = [zarr.open_array(root / name / "frames", mode="r") for name in self.store.ids]

    def read(self, episode: int, start: int) -> np.ndarray:
        return np.asarray(self.arrays[episode][start : start + CLIP])


class Limit(Contestant):
    """All chunks in memory, compressed; only the decoder works."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.chunks: list[list[bytes]] = []
        for episode in range(len(self.store)):
            file = self.files(episode)[0]
            layout = ShardLayout.parse((file.parents[4] / "zarr.json").read_bytes())
            assert layout is not None
            reader = FrameReader(file.parents[4], layout, {0: file.stat().st_size})
            with file.open("rb") as opened:
                index = reader._read_index(opened.fileno(), 0).tolist()
            data = file.read_bytes()
            there = [place for place in index if place[1] < len(data)]
            self.chunks.append([data[at : at + size - 4] for at, size in there])
            self.chunk, self.decode = layout.chunk, _DECODERS[layout.codec]
        self.out = np.empty((self.chunk, self.store.spec.height, self.store.spec.width, 3), "u1")

    def read(self, episode: int, start: int) -> np.ndarray:
        for chunk in range(start // self.chunk, -(-(start + CLIP) // self.chunk)):
            self.decode(self.chunks[episode][chunk], self.out)
        return self.out


class Array(Contestant):
    """Read as the store reads, but compressed in another way."""

    codec: BloscCodec | ZstdCodec

    @classmethod
    def where(cls, folder: Path, episode: int) -> Path:
        return folder / cls.__name__ / str(episode)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.readers = [
            open_frames(
                self.where(folder, episode),
                {"c/0/0/0/0": self.files(episode)[0].stat().st_size},
            )
            for episode in range(len(self.store))
        ]

    def read(self, episode: int, start: int) -> np.ndarray:
        out = np.empty((CLIP, *self.readers[episode].shape[1:]), np.uint8)
        self.readers[episode].read(start, start + CLIP, out)
        return out

    def files(self, episode: int) -> list[Path]:
        return [self.where(self.folder, episode) / "c/0/0/0/0"]


class Zstd3(Array):
    codec = ZstdCodec(level=3)


class ZstdFast(Array):
    codec = ZstdCodec(level=-1)


class Lz4(Array):
    codec = BloscCodec(cname="lz4", clevel=9, shuffle="noshuffle")


class Lz4Best(Array):
    codec = BloscCodec(cname="lz4hc", clevel=9, shuffle="noshuffle")


class Hdf5(Contestant):
    name = "contiguous"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if self.name == "lz4hc":
            import hdf5plugin  # noqa: F401  registers the codec
        self.file = h5py.File(folder / f"{self.name}.h5", "r")
        self.starts = np.cumsum([0] + [self.store.lengths[n] + 1 for n in self.store.ids])

    def read(self, episode: int, start: int) -> np.ndarray:
        first = int(self.starts[episode]) + start
        frames = self.file["frames"]
        assert isinstance(frames, h5py.Dataset)
        return frames[first : first + CLIP]

    def files(self, episode: int) -> list[Path]:
        return [self.folder / f"{self.name}.h5"]


class Hdf5Chunked(Hdf5):
    name = "chunked"


class Hdf5Gzip(Hdf5):
    name = "gzip"


class Hdf5Lz4(Hdf5):
    name = "lz4hc"


class Memmap(Hdf5):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.frames = np.load(folder / "frames.npy", mmap_mode="r")

    def read(self, episode: int, start: int) -> np.ndarray:
        first = int(self.starts[episode]) + start
        return np.array(self.frames[first : first + CLIP])

    def files(self, episode: int) -> list[Path]:
        self.frames._mmap.madvise(mmap.MADV_DONTNEED)  # mapped pages are not dropped otherwise
        return [self.folder / "frames.npy"]


class Mp4(Contestant):
    def files(self, episode: int) -> list[Path]:
        return [self.folder / f"{episode}.mp4"]


class PyAV(Mp4):
    def read(self, episode: int, start: int) -> np.ndarray:
        found = []
        with av.open(str(self.files(episode)[0])) as container:
            stream = container.streams.video[0]
            assert stream.time_base is not None
            assert stream.average_rate is not None
            ticks = float(1 / (stream.time_base * stream.average_rate))
            container.seek(round(start * ticks), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None and round(frame.pts / ticks) >= start:
                    found.append(frame.to_ndarray(format="rgb24"))
                if len(found) == CLIP:
                    break
        return np.stack(found)


class OpenCV(Mp4):
    def read(self, episode: int, start: int) -> np.ndarray:
        video = cv2.VideoCapture(str(self.files(episode)[0]))
        video.set(cv2.CAP_PROP_POS_FRAMES, start)
        found = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB) for _ in range(CLIP)]
        video.release()
        return np.stack(found)


CONTESTANTS: dict[str, type[Contestant]] = {
    "store": Store,
    "limit: decoding alone": Limit,
    "store's reader, zstd 3": Zstd3,
    "store's reader, zstd -1": ZstdFast,
    "store's reader, lz4": Lz4,
    "store's reader, lz4hc 9": Lz4Best,
    "zarr-python": PlainZarr,
    "HDF5 contiguous": Hdf5,
    "HDF5 chunked": Hdf5Chunked,
    "HDF5 chunked, gzip 4": Hdf5Gzip,
    "HDF5 chunked, lz4hc 5": Hdf5Lz4,
    "np.memmap": Memmap,
    "MP4, PyAV": PyAV,
    "MP4, OpenCV": OpenCV,
}


def played(size: int, episodes: int) -> list[np.ndarray]:
    """Return frames of the world 'doom', of whole episodes under its policy."""
    world, found = make_world("doom", size=size), []
    for seed in range(episodes):
        policy: Any = make_policy("mix", seed)
        policy.attach(world)
        step = world.reset(seed)
        policy.reset(seed)
        frames = [step.frame]
        for _ in range(STEPS):
            step = world.step(policy.act(step, world.spec))
            frames.append(step.frame)
        found.append(np.stack(frames))
    world.close()
    return found


def prepare(folder: Path, episodes: list[np.ndarray]) -> None:
    """Write the same frames in all formats."""
    height, width = episodes[0].shape[1:3]
    writer = EpisodeWriter(folder / "x.zarr", WorldSpec("x", ActionTable(()), height, width, 8.75))
    for seed, frames in enumerate(episodes):
        steps = len(frames) - 1
        still = np.zeros((steps, 3), np.float32), np.zeros(steps, np.uint16)
        writer.write(Episode(frames, *still, {}, (), {"seed": seed}))
        write_mp4(folder / f"{seed}.mp4", frames, 8.75)
        for kind in Array.__subclasses__():
            chunk, shape = schema.CHUNK_FRAMES, frames.shape[1:]
            zarr.create_array(
                kind.where(folder, seed),
                data=frames,
                chunks=(chunk, *shape),
                shards=(-(-len(frames) // chunk) * chunk, *shape),
                compressors=[kind.codec, Crc32cCodec()],
            )
    whole = np.concatenate(episodes)
    np.save(folder / "frames.npy", whole)
    chunks = (schema.CHUNK_FRAMES, height, width, 3)
    options = {
        "contiguous": {},
        "chunked": {"chunks": chunks},
        "gzip": {"chunks": chunks, "compression": "gzip"},
    }
    with contextlib.suppress(ImportError):
        import hdf5plugin

        codec = hdf5plugin.Blosc(cname="lz4hc", clevel=schema.LZ4_LEVEL, shuffle=0)
        options["lz4hc"] = {"chunks": chunks, **codec}
    for name, how in options.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("frames", data=whole, **how)
    os.sync()


def drop(files: list[Path]) -> None:
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def work(folder: Path, name: str, pipe: Connection) -> None:
    """Read when told to; answer with (clips, seconds)."""
    cv2.setNumThreads(1)
    contestant = CONTESTANTS[name](folder)
    while (order := pipe.recv()) is not None:
        cold, seconds, seed, clock = order
        rng = np.random.default_rng(seed)
        clips, spent = 0, 0.0
        while spent < seconds:
            episode = int(rng.integers(len(contestant.store)))
            steps = contestant.store.lengths[contestant.store.ids[episode]]
            start = int(rng.integers(steps + 2 - CLIP))
            if cold:
                drop(contestant.files(episode))
            began = clock()
            contestant.read(episode, start)
            spent += clock() - began
            clips += 1
        pipe.send((clips, spent))


def measure(folder: Path, names: list[str], rounds: int, seconds: float, cpu: bool) -> dict:
    """Return clips/s of each round by contestant, cold or not, workers."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, list[Connection]] = {name: [] for name in names}
    processes = []
    for name in names:
        for _ in range(1 if cpu else max(WORKERS)):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(folder, name, theirs), daemon=True)
            process.start()
            pipes[name].append(ours)
            processes.append(process)
    found: dict[tuple, list[float]] = {}
    for turn in range(rounds + 1):
        for cold in (False,) if cpu else (False, True):
            for workers in (1,) if cpu else WORKERS:
                for name in names:
                    if cold and name.startswith("limit"):
                        continue
                    for i, pipe in enumerate(pipes[name][:workers]):
                        clock = time.process_time if cpu else time.perf_counter
                        pipe.send((cold, seconds, [turn, i], clock))
                    answers = [pipe.recv() for pipe in pipes[name][:workers]]
                    if turn:  # the first round opens files and fills caches
                        rate = sum(clips / spent for clips, spent in answers)
                        found.setdefault((name, cold, workers), []).append(rate)
    for pipe in itertools.chain(*pipes.values()):
        pipe.send(None)
    for process in processes:
        process.join()
    return found


def check(folder: Path, names: list[str]) -> None:
    """Every lossless contestant reads the same pixels."""
    truth = Memmap(folder)
    for name in names:
        contestant = CONTESTANTS[name](folder)
        if isinstance(contestant, Limit):
            continue
        for episode, start in ((0, 0), (1, 5), (2, 100)):
            wanted, got = truth.read(episode, start), contestant.read(episode, start)
            error = np.abs(wanted.astype(int) - got).mean()
            assert error < (12 if isinstance(contestant, Mp4) else 1e-9), (name, error)


def table(folder: Path, names: list[str], rates: dict[tuple, list[float]]) -> str:
    head = "| read from | bytes/frame | warm, 1 | warm, 2 | cold, 1 | cold, 2 | store is, warm |"
    lines = [head, "|---|" + "---:|" * 6]
    for name in names:
        cells = [f"{CONTESTANTS[name](folder).bytes_per_frame():.0f}"]
        for cold in (False, True):
            for workers in WORKERS:
                rate = rates.get((name, cold, workers))
                cells.append("" if rate is None else f"{statistics.median(rate):.0f}")
        pairs = zip(rates["store", False, 1], rates[name, False, 1], strict=True)
        ratio = statistics.median(ours / other for ours, other in pairs)
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.2f} x |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="frames to use; else some are played")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    names = list(CONTESTANTS)
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401
    if "hdf5plugin" not in sys.modules:
        names.remove("HDF5 chunked, lz4hc 5")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as temporary:
        print(f"{os.cpu_count()} cores; clips of {CLIP} frames a second")
        sizes = [EpisodeStore(options.store).spec.height] if options.store else options.sizes
        for size in sizes:
            folder = Path(temporary) / str(size)
            folder.mkdir()
            if options.store:
                store = EpisodeStore(options.store)
                episodes = [store.frames(name) for name in store.ids[: options.episodes]]
            else:
                episodes = played(size, options.episodes)
            prepare(folder, episodes)
            check(folder, names)
            rates = measure(folder, names, options.rounds, options.seconds, options.cpu)
            print(f"\n{size}x{size} pixels, {size * size * 3} bytes raw\n")
            print(table(folder, names, rates), flush=True)


if __name__ == "__main__":
    main()
