"""Commands, training, text and latents on stores at URLs."""

import json
import runpy
from pathlib import Path

import fsspec
import numpy as np
import pytest

from worldmodel.cli import main as cli
from worldmodel.datasets import disk
from worldmodel.datasets.collect import CollectConfig, seeds_done
from worldmodel.datasets.commands import DataConfig
from worldmodel.datasets.commands import main as data
from worldmodel.datasets.latents import LatentCache, cached_episodes, caches
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.text import TextDocument, TextStore, write_text, write_tokens
from worldmodel.datasets.url import Unreachable
from worldmodel.text import train_tokenizer
from worldmodel.train.data import load_stores

SHARED = runpy.run_path(str(Path(__file__).with_name("remote_stores.py")))
FOREVER, STEPS, Web, fill = (SHARED[name] for name in ("FOREVER", "STEPS", "Web", "fill"))
local, memory, patience, remote = (SHARED[n] for n in ("local", "memory", "patience", "remote"))
s3, s3_server, web = (SHARED[name] for name in ("s3", "s3_server", "web"))


def test_text_and_its_tokens_at_a_url(remote: str, tmp_path: Path, web: Web, capsys) -> None:
    documents = [TextDocument(f"d{i}", f"text number {i} " * 30) for i in range(40)]
    tokenizer = train_tokenizer([document.text for document in documents], 300)
    served = tmp_path / "www" / "t.zarr"
    for path in (remote, served):
        assert write_text(path, iter(documents), "here", "CC0-1.0") == (40, 0)
        assert write_text(path, iter(documents), "here", "CC0-1.0") == (0, 40)
        assert write_tokens(path, tokenizer) == write_tokens(path, tokenizer)
    here = TextStore(served)
    for path in (remote, web.store.replace("x.zarr", "t.zarr")):
        store = TextStore(path)
        assert list(store.documents()) == list(here.documents())
        assert store.size_on_disk() == here.size_on_disk()
        for mine, theirs in zip(
            store.tokens(tokenizer, "train") or [],
            here.tokens(tokenizer, "train") or [],
            strict=True,
        ):
            np.testing.assert_array_equal(mine, theirs)
        for command in ("info", "validate", "preview"):
            assert data(DataConfig(command, path)) == 0
        assert "1 shards checked, all intact" in capsys.readouterr().out


def test_latents_at_a_url(remote: str, web: Web, local: Path, capsys) -> None:
    fill(remote)
    latents = np.random.default_rng(0).normal(size=(STEPS + 1, 4, 2)).astype(np.float16)
    for path in (remote, str(local)):
        cache = LatentCache(disk.place(path), "0123456789ab")
        cache.create("RAE")
        for name in EpisodeStore(path).ids[:2]:
            cache.write(name, latents)
    for path in (remote, web.store):
        ids = EpisodeStore(path).ids
        [cache] = caches(disk.place(path))
        assert cached_episodes(cache) == ids[:2]
        assert [cache.has(name) for name in ids] == [True, True, False]
        np.testing.assert_array_equal(cache.read(ids[0]), latents)
        cache.check(ids[0], STEPS + 1)
        assert data(DataConfig("info", path)) == data(DataConfig("validate", path)) == 0
        assert "of 2 of 3 episodes" in capsys.readouterr().out
    web.bad = {"latents/0123456789ab/ep": ("503", FOREVER)}
    with pytest.raises(Unreachable, match="HTTP 503"):
        data(DataConfig("validate", web.store))


def test_every_command_that_reads_takes_a_url(web: Web, local: Path, tmp_path: Path, capsys):
    sheets = []
    for store in (web.store, str(local)):
        out = tmp_path / f"out-{len(sheets)}"
        for words in (
            ["info"],
            ["info", "split=val"],
            ["validate"],
            ["stats", f"out={out}/stats.json"],
            ["preview", f"out={out}/sheet.png"],
            ["export", "format=mp4", f"out={out}/films"],
            ["export", "format=hdf5", f"out={out}/hdf5"],
            ["split", f"out={out}/split.zarr", "val=0.3", "test=0.3"],
        ):
            assert cli(["data", words[0], f"store={store}", *words[1:]]) == 0, words
        sheets.append((out / "sheet.png").read_bytes())
        figures = json.loads((out / "stats.json").read_text())
        sheets[-1] += json.dumps({**figures, "store": ""}).encode()
        sheets[-1] += " ".join(EpisodeStore(out / "split.zarr").ids).encode()
    assert sheets[0] == sheets[1]
    assert "memory" not in capsys.readouterr().err


def test_every_command_that_writes_a_store_takes_a_url(
    remote: str, web: Web, local: Path, tmp_path: Path, capsys
) -> None:
    fill(tmp_path / "y.zarr", range(2, 6))
    words = [f"stores=[{web.store},{tmp_path}/y.zarr]", f"out={remote}"]
    assert cli(["data", "merge", *words]) == cli(["data", "merge", *words]) == 0
    assert f"{remote} now holds 6 episodes." in capsys.readouterr().out
    parent = remote.removesuffix("/x.zarr")
    assert cli(["data", "split", f"store={remote}", f"out={parent}/s.zarr"]) == 0
    hdf5 = tmp_path / "hdf5"
    assert cli(["data", "export", "format=hdf5", f"store={remote}", f"out={hdf5}"]) == 0
    back = f"{parent}/back.zarr"
    assert cli(["data", "import", "format=hdf5", f"source={hdf5}", f"store={back}"]) == 0
    assert EpisodeStore(back).ids == EpisodeStore(remote).ids
    (tmp_path / "word.txt").write_text("hello there")
    text = f"{parent}/t.zarr"
    assert cli(["data", "text", f"source={tmp_path}/word.txt", f"out={text}"]) == 0
    assert [d.text for d in TextStore(text).documents()] == ["hello there"]
    assert cli(["data", "index", f"store={remote}"]) == 0
    assert cli(["data", "validate", f"store={remote}"]) == 0


def test_training_reads_the_same_from_a_url(web: Web, s3: str, local: Path) -> None:
    fill(s3)
    [here] = load_stores((str(local),), "train")
    for path in (web.store, s3):
        [there] = load_stores((path,), "train")
        np.testing.assert_array_equal(there.frames[:], here.frames[:])
        np.testing.assert_array_equal(there.actions, here.actions)
        [on_demand] = load_stores((path,), "train", 0, 1e-9)  # too little memory for the frames
        np.testing.assert_array_equal(on_demand.frames[30:60], here.frames[30:60])


def test_what_is_collected_at_a_url_goes_on_there(s3: str) -> None:
    config = CollectConfig(out=s3)
    assert seeds_done(config) == set()
    fill(s3)
    assert seeds_done(config) == {0, 1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data info store=s4://bucket/x.zarr", "of no protocol that fsspec knows. Did you mean"),
        ("data info store=https://host/x.zarr?token", "has a query"),
        ("data info store=s3://me:secret@host/x.zarr", "a password in a URL"),
        ("data info store=oci://bucket/x.zarr", "zarr.json needs more packages"),
        ("data info store=memory://none.zarr", "There is no store at memory://none.zarr"),
        ("data merge stores=[{here},{here}] out={web}", "a web server can only be read"),
        ("data preview store={here} out=memory://a.png", "a path of this machine, not a URL"),
        ("data stats store={here} out=memory://a.json", "a path of this machine, not a URL"),
        ("data export store={here} format=mp4 out=s3://b/films", "a path of this machine"),
        ("data index store={web}", "a web server can only be read"),
        ("collect env=doom out=memory://x.zarr", "the memory of a process ends with it"),
        ("collect env=doom out={web} seed=9", "a web server can only be read"),
    ],
)
def test_a_url_that_will_not_do_is_one_sentence(
    web: Web, local: Path, capsys, words: str, said: str
) -> None:
    split = [word.format(here=local, web=web.store) for word in words.split()]
    assert cli(split) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "secret" not in error


def test_repair_moves_nothing_at_a_url(memory: str, capsys) -> None:
    fill(memory)
    assert cli(["data", "repair", f"store={memory}"]) == 0
    name = EpisodeStore(memory).ids[0]
    files, path = fsspec.core.url_to_fs(f"{memory}/episodes/{name}/packed/c/0")
    files.pipe_file(path, b"x")
    assert cli(["data", "validate", f"store={memory}"]) == 1
    assert "this one has to be put there again" in capsys.readouterr().out
    assert cli(["data", "repair", f"store={memory}"]) == 2
    assert "cannot be moved aside" in capsys.readouterr().err
    assert len(EpisodeStore(memory)) == 3
