"""The store on a full disk, in a folder that may not be written, and under a short torture."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.commands import DataConfig, main
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

SPEC = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "walk", dx=0.5),)), 32, 32)

WRITE = """
import resource, signal, sys
import numpy as np
from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

path, limit, first, size = sys.argv[1], *map(int, sys.argv[2:])
spec = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "walk", dx=0.5),)), 32, 32)
writer = EpisodeWriter(path, spec)
if limit:  # a write beyond it fails, as it does where a disk is full
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    for seed in range(first, first + 100):
        frames = np.random.default_rng(seed).integers(0, 256, (size + 1, 32, 32, 3), np.uint8)
        done = np.zeros((size, 3), np.float32), np.zeros(size, np.uint16)
        print(writer.write(Episode(frames, *done, {}, (), {"seed": seed})), flush=True)
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def write(path: Path, limit: int = 0, first: int = 0, size: int = 16):
    words = [sys.executable, "-c", WRITE, str(path), str(limit), str(first), str(size)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def frames_of(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size + 1, 32, 32, 3), np.uint8)


def assert_only_whole_episodes(path: Path, names: list[str], size: int = 16) -> None:
    store = EpisodeStore(path)
    assert sorted(store.ids) == sorted(names)
    for name in store.ids:
        np.testing.assert_array_equal(
            store.check(name).frames, frames_of(store.describe(name).seed, size)
        )
    assert not [n for n in os.listdir(path / "episodes") if n.startswith(".")]


def make_store(path: Path) -> list[str]:
    writer = EpisodeWriter(path, SPEC)
    done = np.zeros((16, 3), np.float32), np.zeros(16, np.uint16)
    return [
        writer.write(Episode(frames_of(seed, 16), *done, {}, (), {"seed": seed}))
        for seed in range(3)
    ]


def test_a_write_that_hits_a_limit_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    names = make_store(path)
    failed = write(path, limit=20_000, first=50)  # an episode's frames take some 50 kB
    assert failed.returncode == 2
    assert "cannot be written: " in failed.stderr
    assert "File too large" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert failed.stdout == ""
    assert_only_whole_episodes(path, names)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing(disk: Path) -> None:
    failed = write(disk / "x.zarr")
    assert failed.returncode == 2, failed.stderr
    assert "No space left on device" in failed.stderr
    assert failed.stderr.count("\n") == 1
    names = failed.stdout.split()
    assert 10 < len(names) < 60
    assert_only_whole_episodes(disk / "x.zarr", names)


def refuses_to_write(path: Path, reason: str) -> None:
    """What a store that may only be read still does, and what it says to the rest."""
    done = np.zeros((16, 3), np.float32), np.zeros(16, np.uint16)
    episode = Episode(frames_of(9, 16), *done, {}, (), {"seed": 9})
    names = EpisodeStore(path).ids
    with pytest.raises(UserError, match=rf"cannot be written: .*{reason}") as caught:
        EpisodeWriter(path, SPEC).write(episode)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"store cannot be made at .*{reason}"):
        EpisodeWriter(path.parent / "new.zarr", SPEC)
    assert main(DataConfig("validate", str(path))) == 0  # reading needs no right to write
    assert_only_whole_episodes(path, names)


def test_a_disk_that_is_read_only(disk: Path) -> None:
    make_store(disk / "x.zarr")
    remount = ["mount", "-o", "remount,ro", str(disk)]
    if subprocess.run(remount, capture_output=True).returncode:
        pytest.skip("a file system cannot be made read-only here")
    refuses_to_write(disk / "x.zarr", "Read-only file system")


@pytest.mark.skipif(os.name == "posix" and os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "store" / "x.zarr"
    path.parent.mkdir()
    make_store(path)
    folders = [path.parent, path, *(p for p in path.rglob("*") if p.is_dir())]
    for folder in folders:
        os.chmod(folder, 0o555)
    try:
        refuses_to_write(path, "Permission denied")
    finally:
        for folder in folders:
            os.chmod(folder, 0o755)


def test_repair_where_nothing_can_be_moved_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zarr"
    names = make_store(path)
    (path / "episodes" / names[0] / "packed/c/0").unlink()

    def denied(*_) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", denied)
    with pytest.raises(UserError, match=r"cannot be moved aside: .*Permission denied"):
        main(DataConfig("repair", str(path)))
    assert sorted(EpisodeStore(path).ids) == sorted(names)


def load_torture() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "torture_store.py"
    spec = importlib.util.spec_from_file_location("torture_store", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["torture_store"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_two_writers_and_a_reader_through_a_few_kills(tmp_path: Path) -> None:
    outcome = load_torture().torture(tmp_path / "x.zarr", kills=5, seed=3)
    assert outcome.kills == 5
    assert outcome.in_flight > 0
    assert outcome.committed >= 5
    assert outcome.present >= outcome.committed
    assert outcome.lost == outcome.damaged == []
    assert outcome.reads > 0
    assert outcome.bad_reads == 0
