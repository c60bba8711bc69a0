"""Stores at URLs: in memory, behind web servers good and bad, and in an object store."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from worldmodel.cli import main as cli
from worldmodel.datasets import arrays, disk
from worldmodel.datasets.commands import DataConfig
from worldmodel.datasets.commands import main as data
from worldmodel.datasets.store import (
    EpisodeStore,
    EpisodeWriter,
    leftovers,
    remove_leftovers,
    strays,
)
from worldmodel.datasets.text import write_text
from worldmodel.datasets.url import Unreachable
from worldmodel.errors import UserError
from worldmodel.world import WorldSpec

SHARED = runpy.run_path(str(Path(__file__).with_name("remote_stores.py")))
FOREVER, SPEC, STEPS = SHARED["FOREVER"], SHARED["SPEC"], SHARED["STEPS"]
Unreliable, Web, assert_same_stores = (
    SHARED["Unreliable"],
    SHARED["Web"],
    SHARED["assert_same_stores"],
)
fill, make_episode = SHARED["fill"], SHARED["make_episode"]
local, memory, patience, remote = (SHARED[n] for n in ("local", "memory", "patience", "remote"))
s3, s3_server, unreliable, web = (SHARED[n] for n in ("s3", "s3_server", "unreliable", "web"))

SHARD, PACKED = "frames/c/0", "packed/c/0"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_store_behind_a_web_server_is_the_one_on_its_disk(
    web: Web, local: Path, ranges: bool
) -> None:
    web.ranges = ranges
    assert_same_stores(web.store, local)


def test_a_window_takes_only_the_bytes_of_its_chunks(web: Web, local: Path) -> None:
    store = EpisodeStore(web.store)
    name = store.ids[0]
    shard = local / "episodes" / name / "frames/c/0/0/0/0"
    store.frames(name, 0, 8)
    web.sent = 0
    store.frames(name, 8, 16)
    assert 0 < web.sent < shard.stat().st_size / 4


def test_pythons_own_web_server_will_do(local: Path, capfd) -> None:
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "-d", str(local.parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"port (\d+)", process.stdout.readline())
        assert found is not None
        address = f"http://127.0.0.1:{found[1]}/x.zarr"
        assert_same_stores(address, local)
        assert cli(["data", "validate", f"store={address}"]) == 0
        assert "3 episodes checked, all intact" in capfd.readouterr().out
    finally:
        process.kill()
        process.wait()


def test_without_listings_the_index_tells_what_there_is(web: Web, local: Path, capsys) -> None:
    web.lists = False
    with pytest.raises(UserError, match=r"index\.json, which `worldmodel data index` makes"):
        EpisodeStore(web.store)
    assert cli(["data", "index", f"store={local}"]) == 0
    assert "the index names 3 in episodes" in capsys.readouterr().out
    assert_same_stores(web.store, local)
    assert strays(web.store) == strays(local) == []
    assert data(DataConfig("validate", str(local))) == 0
    (local / "episodes" / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json is no list of names"):
        EpisodeStore(web.store)


def test_a_listing_goes_before_an_index_that_is_old(web: Web, local: Path) -> None:
    assert data(DataConfig("index", str(local))) == 0
    fill(local, range(3, 5))
    assert len(EpisodeStore(web.store)) == 5
    web.lists = False
    assert len(EpisodeStore(web.store)) == 3


def test_what_is_not_there_or_not_a_store(web: Web, local: Path) -> None:
    (local.parent / "folder").mkdir()
    with pytest.raises(UserError, match=r"There is no store at .*y\.zarr"):
        EpisodeStore(web.store.replace("x.zarr", "y.zarr"))
    with pytest.raises(UserError, match=r"is not a store of episodes|There is no store"):
        EpisodeStore(web.store.replace("x.zarr", "folder"))
    with pytest.raises(UserError, match="a web server can only be read"):
        EpisodeWriter(web.store, SPEC)


@pytest.mark.parametrize("trouble", ["drop", "500", "503", "429", "silence"])
def test_what_passes_is_tried_again(web: Web, local: Path, trouble: str) -> None:
    store = EpisodeStore(web.store)
    name = store.ids[0]
    web.bad = {SHARD: (trouble, 1), PACKED: (trouble, 1), f"{name}/zarr.json": (trouble, 1)}
    np.testing.assert_array_equal(store.check(name).frames, make_episode(0).frames)
    assert all(left == 0 for _, left in web.bad.values())


CAUSES = {
    "drop": "cannot be read: .*payload.*5 tries in",
    "500": r"cannot be read: HTTP 500 Internal Server Error \(5 tries in \d s\)\.$",
    "503": "cannot be read: HTTP 503 Service Unavailable",
    "silence": "cannot be read: no answer within 1 s",
    "403": r"cannot be read: HTTP 403 Forbidden\.$",
}


@pytest.mark.parametrize("trouble", CAUSES)
def test_what_does_not_pass_is_one_sentence_and_spoils_nothing(
    web: Web, trouble: str, capsys
) -> None:
    store = EpisodeStore(web.store)
    name, other = store.ids[:2]
    store.frames(name, 0, 8)
    web.bad = {f"{name}/{SHARD}": (trouble, FOREVER)}
    web.asked.clear()
    with pytest.raises(Unreachable, match=CAUSES[trouble]) as caught:
        store.frames(name, 8, 16)
    assert f"{web.store}/episodes/{name}/{SHARD}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(web.asked) <= 6
    np.testing.assert_array_equal(store.frames(other), make_episode(1).frames)
    web.bad = {}
    np.testing.assert_array_equal(store.frames(name), make_episode(0).frames)
    # It is no damage: whoever looks for that stops, and says the same.
    web.bad = {SHARD: (trouble, FOREVER)}
    assert cli(["data", "validate", f"store={web.store}"]) == 2
    printed = capsys.readouterr()
    assert re.search(CAUSES[trouble], printed.err.strip())
    assert "damaged" not in printed.out + printed.err


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("trouble", ["short", "changed", "404"])
def test_what_the_server_has_wrong_is_damage_until_it_has_it_right(
    web: Web, trouble: str, ranges: bool, cached: bool
) -> None:
    web.ranges = ranges
    store = EpisodeStore(web.store)
    name = store.ids[0]
    if cached:
        store.read(name)
    web.bad = {SHARD: (trouble, FOREVER)}
    said = {"404": "missing", "changed": "checksum", "short": "byte|short"}[trouble]
    with pytest.raises(UserError, match=rf"'frames' of episode {name} is damaged \(.*{said}"):
        store.frames(name, STEPS - 8, STEPS)
    web.bad = {}
    np.testing.assert_array_equal(store.frames(name), make_episode(0).frames)


@pytest.mark.parametrize("file", ["packed/c/0", "packed/zarr.json", "frames/zarr.json"])
@pytest.mark.parametrize("trouble", ["short", "changed", "404"])
def test_every_object_of_an_episode_is_checked(web: Web, trouble: str, file: str) -> None:
    store = EpisodeStore(web.store)
    name = store.ids[0]
    web.bad = {f"{name}/{file}": (trouble, FOREVER)}
    array = file.partition("/")[0]
    with pytest.raises(UserError, match=rf"'{array}' of episode {name} is damaged"):
        store.read(name)
    web.bad = {}
    store.check(name)


def test_an_episode_that_was_put_anew_in_other_chunks_is_opened_anew(
    web: Web, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EpisodeStore(web.store)
    name = store.ids[0]
    store.frames(name, 0, 9)
    shutil.rmtree(local / "episodes" / name)
    monkeypatch.setattr(arrays, "CHUNK_FRAMES", 4)  # as another version might
    assert fill(local, range(1)) == [name]
    with pytest.raises(UserError, match="damaged"):  # what it knows of the old one does not fit
        store.frames(name, 0, 9)
    np.testing.assert_array_equal(store.frames(name), make_episode(0).frames)


def test_a_server_that_is_gone(web: Web, capsys) -> None:
    address = web.store
    web.shutdown()
    web.server_close()
    for command in ("info", "validate", "stats", "preview"):
        assert cli(["data", command, f"store={address}"]) == 2
        said = capsys.readouterr().err
        assert f"{address}/zarr.json cannot be read: Cannot connect" in said
        assert said.count("\n") == 1


# --- what can be written -------------------------------------------------------------------------


def test_a_store_written_at_a_url_is_the_one_written_here(remote: str, local: Path) -> None:
    assert fill(remote) == fill(local)
    assert_same_stores(remote, local)
    assert fill(remote) == fill(local)  # once more, and nothing is there twice
    assert len(EpisodeStore(remote)) == 3
    assert leftovers(remote) == strays(remote) == []
    files, path = fsspec.core.url_to_fs(remote)
    files.invalidate_cache()
    assert sorted(found.partition("x.zarr/")[2] for found in files.find(path)) == sorted(
        file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()
    )


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    fill(f"file://{tmp_path}/x.zarr")
    assert EpisodeStore(f"file://{tmp_path}/x.zarr").path == tmp_path / "x.zarr"
    assert len(EpisodeStore(tmp_path / "x.zarr")) == 3


def test_other_data_at_a_url_is_not_written_over(remote: str) -> None:
    files, path = fsspec.core.url_to_fs(remote)
    files.pipe_file(f"{path}/precious", b"x")
    for write in (fill, lambda at: write_text(at, [], "here", "CC0-1.0")):
        with pytest.raises(UserError, match="exists and is not a"):
            write(remote)
    assert files.find(path) == [f"{path}/precious"]


def test_another_world_at_a_url_is_refused(remote: str) -> None:
    fill(remote)
    other = WorldSpec("maze", SPEC.actions, 16, 16)
    with pytest.raises(UserError, match="with other name than"):
        EpisodeWriter(remote, other)


def test_the_first_of_two_makers_of_a_store_is_the_one(remote: str) -> None:
    """Both saw nothing there: what the second then makes leaves the first's as it is."""
    place = disk.place(remote)
    disk.create(place, "episodes", {"who": "first"})
    disk.create(place, "episodes", {"who": "second"})
    assert json.loads((place / "zarr.json").read_bytes())["attributes"] == {"who": "first"}


def unfinished(store: str, seed: int, maker: str, objects: int) -> tuple[str, str]:
    """Put what a writer leaves who is killed after so many objects; return mark and episode."""
    scratch = f"memory://scratch-{time.monotonic_ns()}/x.zarr"
    [name] = fill(scratch, range(seed, seed + 1))
    source, start = fsspec.core.url_to_fs(f"{scratch}/episodes/{name}")
    files, folder = fsspec.core.url_to_fs(f"{store}/episodes")
    mark = f"{folder}/writing-{name}.{maker}"
    files.pipe_file(mark, b"")
    for path in [found for found in source.find(start) if found != f"{start}/zarr.json"][:objects]:
        files.pipe_file(f"{folder}/{name}{path.removeprefix(start)}", source.cat_file(path))
    return mark.rpartition("/")[2], name


@pytest.mark.parametrize("objects", [0, 1, 4])
def test_an_episode_is_there_once_its_record_is(remote: str, objects: int) -> None:
    fill(remote)
    gone = f"{disk.host()}.{2**22 + 5}.1"
    mark, name = unfinished(remote, 7, gone, objects)
    assert len(EpisodeStore(remote)) == 3
    assert strays(remote) == []
    assert [left.name for left in leftovers(remote)] == [mark]
    assert fill(remote, range(7, 8)) == [name]  # another writer does not mind
    store = EpisodeStore(remote)
    assert len(store) == 4
    store.check(name)
    assert remove_leftovers(remote) == 1
    store.check(name)
    assert leftovers(remote) == []


def test_only_what_no_writer_works_at_is_removed(remote: str, capsys) -> None:
    fill(remote)
    dead, first = unfinished(remote, 7, f"{disk.host()}.{2**22 + 5}.1", 3)
    live, second = unfinished(remote, 8, f"{disk.host()}.{os.getpid()}.2", 3)
    far, third = unfinished(remote, 9, "elsewhere.7.3", 3)
    assert data(DataConfig("validate", remote)) == 0
    assert "1 unfinished episodes of killed writers" in capsys.readouterr().out
    assert data(DataConfig("validate", remote, clean=True)) == 0
    files, path = fsspec.core.url_to_fs(f"{remote}/episodes")
    files.invalidate_cache()
    there = {found.rpartition("/")[2] for found in files.ls(path, detail=False)}
    assert {live, far, second, third} <= there
    assert not {dead, first} & there
    assert len(EpisodeStore(remote)) == 3


TOY = runpy.run_path(str(Path(__file__).with_name("writer_toy.py")))
start, go, frames_of = TOY["start"], TOY["go"], TOY["frames_of"]


def test_two_writers_at_once_make_one_store_in_a_bucket(s3: str) -> None:
    processes = [start(s3, 0, 8), start(s3, 4, 8)]  # 4 to 7 by both: the same content
    for process in processes:
        go(process)
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    store = EpisodeStore(s3)
    assert [store.describe(name).seed for name in store.ids] == list(range(12))
    for seed, name in enumerate(store.ids):
        np.testing.assert_array_equal(store.check(name).frames, frames_of(seed))
    assert leftovers(s3) == []


def test_writers_in_threads_share_a_store_in_memory(memory: str) -> None:
    threads = [threading.Thread(target=fill, args=(memory, range(n, n + 8))) for n in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = EpisodeStore(memory)
    assert [store.describe(name).seed for name in store.ids] == list(range(12))
    for seed, name in enumerate(store.ids):
        np.testing.assert_array_equal(store.check(name).frames, make_episode(seed).frames)


def test_writers_killed_at_a_bucket_lose_nothing_committed(s3: str) -> None:
    promised: set[str] = set()
    for turn in range(3):
        process = start(s3, 1000 * turn, 1000)
        go(process)
        assert process.stdout is not None
        promised.add(process.stdout.readline().strip())
        time.sleep(0.3 + 0.037 * turn)  # so that the kill falls on different moments of a write
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        promised |= set(rest.split())
    store = EpisodeStore(s3)
    cut = {name for name in promised if name not in store.ids}
    assert len(cut) <= 3  # at most a last line that was cut short while printing
    assert all(any(name.startswith(short) for name in store.ids) for short in cut)
    for name in store.ids:
        seed = store.describe(name).seed
        np.testing.assert_array_equal(store.check(name).frames, frames_of(seed))
    assert remove_leftovers(s3) <= 3
    assert leftovers(s3) == strays(s3) == []
    assert EpisodeStore(s3).ids == store.ids


def test_a_writer_whose_server_goes_says_what_was_not_committed(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EpisodeWriter(s3, SPEC)
    names = [writer.write(make_episode(seed)) for seed in range(2)]
    nobody = Web(Path("/nonexistent"))
    nobody.server_close()
    nobody.shutdown()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.server_port}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with pytest.raises(UserError) as caught:
            writer.write(make_episode(2))
    said = str(caught.value)
    assert re.search(r"^s3://.* cannot be read: .*connect.* \(5 tries in \d s\)\. Episode ", said)
    assert re.search(r"ep-0+2-train-.* was not committed; those before it are safe\.$", said)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert EpisodeStore(s3).ids == names
    writer.write(make_episode(2))
    assert len(EpisodeStore(s3)) == 3


@pytest.mark.parametrize("trouble", ["500", "503", "drop"])
def test_what_passes_at_a_bucket_costs_nothing(
    unreliable: Unreliable, s3: str, trouble: str
) -> None:
    writer = EpisodeWriter(s3, SPEC)
    [name] = fill(f"memory://scratch-{time.monotonic_ns()}", range(1))
    words = ("/writing-", SHARD, "packed/zarr", f"PUT /{s3[5:]}/episodes/{name}/zarr", "DELETE")
    unreliable.bad = {word: (trouble, 2) for word in (*words, "list-type")}
    assert writer.write(make_episode(0)) == name
    store = EpisodeStore(s3)
    del unreliable.bad["DELETE"]  # whose answer has no body that could be cut off
    assert all(left == 0 for _, left in unreliable.bad.values())
    unreliable.bad = {word: (trouble, 2) for word in (SHARD, "packed/c", f"{name}/zarr")}
    np.testing.assert_array_equal(store.check(name).frames, make_episode(0).frames)
    assert all(left == 0 for _, left in unreliable.bad.values())
    assert leftovers(s3) == []


@pytest.mark.parametrize("at", ["frames/c/0", "packed/zarr.json", "zarr.json"])
def test_a_commit_that_fails_at_a_bucket_leaves_the_others(
    unreliable: Unreliable, s3: str, at: str
) -> None:
    [first] = fill(s3, range(1))
    [name] = fill(f"memory://scratch-{time.monotonic_ns()}", range(1, 2))
    unreliable.bad = {f"PUT /{s3[5:]}/episodes/{name}/{at}": ("503", FOREVER)}
    writer = EpisodeWriter(s3, SPEC)
    with pytest.raises(UserError, match=rf"HTTP 503 .*Episode {name} was not committed"):
        writer.write(make_episode(1))
    unreliable.bad = {}
    store = EpisodeStore(s3)
    assert store.ids == [first]
    store.check(first)
    assert writer.write(make_episode(1)) == name
    EpisodeStore(s3).check(name)


def test_a_bucket_that_is_not_there_or_closed(s3: str, monkeypatch, capsys) -> None:
    missing = "s3://no-such-bucket/x.zarr"
    assert cli(["data", "info", f"store={missing}"]) == 2
    assert "There is no store at s3://no-such-bucket/x.zarr" in capsys.readouterr().err
    with pytest.raises(UserError, match="no-such-bucket"):
        EpisodeWriter(missing, SPEC)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert cli(["data", "info", f"store={s3}"]) == 2
    said = capsys.readouterr().err
    assert "credentials" in said.lower()
    assert said.count("\n") == 1
