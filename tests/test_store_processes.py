"""The store under several processes, and under SIGKILL."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from worldmodel.datasets import disk
from worldmodel.datasets.store import EpisodeStore, leftovers, remove_leftovers

TOY = runpy.run_path(str(Path(__file__).with_name("writer_toy.py")))
start, go, frames_of = TOY["start"], TOY["go"], TOY["frames_of"]


def test_writers_at_once_make_one_store(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    ranges = [(0, 12), (8, 12), (8, 12)]  # 8..11 by all three, 12..19 by two: the same content
    processes = [start(path, *r) for r in ranges]
    for process in processes:
        go(process)
    for process in processes:
        assert process.wait(60) == 0
    store = EpisodeStore(path)
    assert [store.describe(name).seed for name in store.ids] == list(range(20))
    for seed, name in enumerate(store.ids):
        store.check(name)
        np.testing.assert_array_equal(store.frames(name), frames_of(seed))
    assert leftovers(path) == []
    assert os.listdir(tmp_path) == ["x.zarr"]


def test_killed_writers_lose_nothing_committed(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    promised: set[str] = set()
    for turn in range(6):
        process = start(path, 1000 * turn, 1000)
        go(process)
        assert process.stdout is not None
        promised.add(process.stdout.readline().strip())
        time.sleep(0.05 + 0.013 * turn)  # so that the kill falls on different moments of a write
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        promised |= set(rest.split())
    store = EpisodeStore(path)
    cut = {name for name in promised if name not in store.ids}
    assert len(cut) <= 6  # at most a last line that was cut short while printing
    assert all(any(name.startswith(short) for name in store.ids) for short in cut)
    for name in store.ids:
        store.check(name)
        np.testing.assert_array_equal(store.frames(name), frames_of(store.describe(name).seed))
    remove_leftovers(path)
    assert not any(name.startswith(".") for name in os.listdir(path / "episodes"))
    assert len(EpisodeStore(path)) == len(store)


def test_what_a_killed_writer_left_is_seen_before_its_parent_has_asked_for_it(tmp_path):
    path = tmp_path / "a.zarr"
    made = start(path, 0, 1)
    go(made)
    assert made.wait(60) == 0
    writer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        left = path / "episodes" / f".tmp-ep-x.{disk.host()}.{writer.pid}.1"
        left.mkdir()
        assert leftovers(path) == []
        writer.kill()
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet forgotten
        os.kill(writer.pid, 0)
        assert leftovers(path) == [left]
    finally:
        writer.kill()
        writer.wait()
