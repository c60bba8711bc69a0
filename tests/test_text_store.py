"""Text stores: what goes in comes out, mistakes are one sentence, and training reads them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.cli import compose
from worldmodel.datasets import disk
from worldmodel.datasets import text as texts
from worldmodel.datasets.commands import DataConfig, main
from worldmodel.datasets.importers.text import folder_documents, python_documents
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.datasets.text import TextDocument, TextStore, cut, write_text, write_tokens
from worldmodel.errors import UserError
from worldmodel.sequence import Text
from worldmodel.text import EOS, TextTokenizer, train_tokenizer
from worldmodel.train import run as training
from worldmodel.train.config import TrainConfig
from worldmodel.train.data import load_recordings
from worldmodel.train.samples import Mixture, Sampler
from worldmodel.world import Annotation, Episode, WorldSpec

WORDS = "the river goes round a hill and every boat on it has a green sail".split()  # noqa: SIM905


def document(number: int, words: int = 150) -> TextDocument:
    rng = np.random.default_rng(number)
    return TextDocument(f"{number}.txt", f"{number} {' '.join(rng.choice(WORDS, words))}.\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    below = tmp_path / "texts" / "deep"
    below.mkdir(parents=True)
    for number in range(30):
        made = document(number)
        path = (below if number % 2 else below.parent) / made.name
        path.write_bytes(made.text.encode())
    (below / "umlaut.MD").write_bytes(b"\xef\xbb\xbf" + "Über\r\nalles\r".encode())
    (below / "zen.rst").write_text("日本語 " * 300, encoding="utf-8")
    (below / "copy.txt").write_bytes(document(3).text.encode())
    (below / "empty.txt").write_bytes(b" \n")
    (below / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (below / "binary.txt").write_bytes(b"a\0b")
    (below / "picture.png").write_bytes(b"\x89PNG")
    (below.parent / ".git").mkdir()
    (below.parent / ".git" / "notes.txt").write_text("not a text of the folder")
    return below.parent


def run(command: str, **options) -> int:
    return main(DataConfig(command, **options))


def test_a_folder_becomes_a_store(folder, tmp_path, capsys):
    out = tmp_path / "x.zarr"
    assert run("text", source=str(folder), out=str(out), licence="CC0-1.0") == 0
    shown = capsys.readouterr()
    assert "32 documents added" in shown.out
    assert "latin.txt is left out: byte 3 is not UTF-8" in shown.err
    assert "binary.txt is left out: it is binary" in shown.err
    assert len(shown.err.splitlines()) == 2
    store = TextStore(out)
    held = {d.name: d.text for d in store.documents()}
    # Of equal texts the first by name is kept.
    assert {text for text in held.values()} >= {document(n).text for n in range(30)}
    assert held["deep/umlaut.MD"] == "Über\nalles\n"
    assert held["deep/zen.rst"] == "日本語 " * 300
    assert store.provenance["licence"] == "CC0-1.0"
    assert store.provenance["source"] == str(folder)
    # The same again adds nothing, and one more file is one more document.
    before = sorted(p.name for p in out.rglob("*"))
    assert run("text", source=str(folder), out=str(out)) == 0
    assert "0 documents added; 32 were there already" in capsys.readouterr().out
    assert sorted(p.name for p in out.rglob("*")) == before
    (folder / "more.txt").write_text("one more")
    assert run("text", source=str(folder / "more.txt"), out=str(out)) == 0
    assert len(list(TextStore(out).documents())) == 33


def test_any_reader_of_zarr_can_read_it(tmp_path):
    write_text(tmp_path / "x.zarr", [document(n) for n in range(5)], "here", "CC0-1.0")
    root = zarr.open_group(tmp_path / "x.zarr", mode="r")
    assert root.metadata.zarr_format == 3
    ((_, shard),) = root["shards"].groups()
    layout, packed = shard.attrs["layout"], shard["packed"][:].tobytes()
    at = {k: layout[k]["offset"] for k in layout}
    size = {k: layout[k]["shape"][0] for k in layout}
    ends = np.frombuffer(packed, layout["ends"]["dtype"], size["ends"], at["ends"]).tolist()
    whole = packed[at["text"] : at["text"] + size["text"]]
    names = json.loads(packed[at["names"] : at["names"] + size["names"]])
    for name, start, end in zip(names, [0, *ends], ends, strict=False):
        assert whole[start:end].decode() == document(int(name.removesuffix(".txt"))).text


def test_shards_are_of_a_bounded_size_and_documents_of_any(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "SHARD_BYTES", 800)
    made = [document(n, 1000 if n == 5 else 60) for n in range(20)]
    assert write_text(tmp_path / "x.zarr", iter(made), "here", "CC0-1.0") == (20, 0)
    store = TextStore(tmp_path / "x.zarr")
    assert len(store.ids) > 4
    assert {d.name: d.text for d in store.documents()} == {d.name: d.text for d in made}


def test_documents_are_of_one_split_whatever_the_store(tmp_path):
    made = [document(n) for n in range(300)]
    write_text(tmp_path / "a.zarr", made, "here", "x", val=0.2)
    write_text(tmp_path / "b.zarr", reversed(made[:100]), "here", "x", val=0.2)
    splits = [
        {s: {d.text for d in TextStore(tmp_path / name).documents(s)} for s in ("train", "val")}
        for name in ("a.zarr", "b.zarr")
    ]
    assert splits[0]["train"] | splits[0]["val"] == {d.text for d in made}
    assert not splits[0]["train"] & splits[0]["val"]
    assert 0.13 < len(splits[0]["val"]) / 300 < 0.27
    assert splits[1]["val"] == splits[0]["val"] & {d.text for d in made[:100]}
    # The share is the store's: another one that is given later changes nothing.
    write_text(tmp_path / "a.zarr", made, "here", "x", val=0.9)
    assert {d.text for d in TextStore(tmp_path / "a.zarr").documents("val")} == splits[0]["val"]


def test_pieces_hold_every_word_once():
    text = f"short words\n\n{'w ' * 900}{'x' * 1500} the  end"
    pieces = cut(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(300 <= len(piece) <= 910 for piece in pieces)
    assert cut("tiny") == ["tiny"]
    assert cut(" \n ") == []


def test_what_is_damaged_is_named(folder, tmp_path, capsys):
    out = tmp_path / "x.zarr"
    tokenizer = train_tokenizer(WORDS * 9, 300)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    run("text", source=str(folder), out=str(out), tokenizer=str(tmp_path / "tokenizer.json"))
    assert run("validate", store=str(out)) == 0
    assert "1 shards checked, all intact" in capsys.readouterr().out
    (shard,) = TextStore(out).ids
    ids = f"tokens/{texts.tokenizer_hash(tokenizer)}/{shard}"
    for place in (f"shards/{shard}", ids):
        for file in ("packed/c/0", "packed/zarr.json", "zarr.json"):
            path = out / place / file
            intact = path.read_bytes()
            for broken in (b"", intact[:-7], intact[:60] + b"!" + intact[61:], None):
                path.unlink()
                if broken is not None:
                    path.write_bytes(broken)
                assert run("validate", store=str(out)) == 1
                assert f"'{place}' is damaged" in capsys.readouterr().out
                path.write_bytes(intact)
    assert run("validate", store=str(out)) == 0


KILLED = """
import sys
from worldmodel.datasets import text
text.SHARD_BYTES = 1
def documents():
    number = 0
    while True:
        yield text.TextDocument(str(number), f"text {number}")
        number += 1
text.write_text(sys.argv[1], documents(), "here", "CC0-1.0")
"""


def test_a_killed_writer_harms_nothing(tmp_path, capsys):
    out = tmp_path / "x.zarr"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], cwd=tmp_path)
    while not (out / "shards").is_dir() or len(os.listdir(out / "shards")) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    held = {d.text for d in TextStore(out).documents()}
    assert len(held) >= 3
    assert held == {f"text {number}" for number in range(len(held))}
    left = out / "shards" / f".tmp-text-000001-000000006-0.{disk.host()}.{process.pid}.1"
    left.mkdir()
    assert run("validate", store=str(out), clean=True) == 0
    assert "unfinished shards of killed writers" in capsys.readouterr().out
    assert not list(out.glob("shards/.tmp-*"))
    assert {d.text for d in TextStore(out).documents()} == held


def test_commands_show_what_a_text_store_holds(folder, tmp_path, capsys):
    out = str(tmp_path / "x.zarr")
    run("text", source=str(folder), out=out, licence="CC0-1.0", val=0.3)
    capsys.readouterr()
    assert run("info", store=out) == 0
    shown = capsys.readouterr().out
    by_split = [len(list(TextStore(out).documents(split))) for split in ("train", "val")]
    assert f"32, train {by_split[0]}, val {by_split[1]}" in shown
    assert "CC0-1.0" in shown
    assert str(folder) in shown
    assert run("preview", store=out, episodes=32) == 0
    shown = capsys.readouterr().out
    assert all(made.name in shown for made in map(document, range(30)))
    assert run("preview", store=out, split="val", out=str(tmp_path / "some.txt")) == 0
    written = (tmp_path / "some.txt").read_text()
    assert "(val, " in written
    assert "(train, " not in written


def test_mistakes_are_one_sentence_and_leave_nothing(folder, tmp_path):
    out = tmp_path / "new.zarr"
    empty, bad = tmp_path / "empty", tmp_path / "bad"
    empty.mkdir()
    bad.mkdir()
    (bad / "a.txt").write_bytes(b"\xff\xfe\x00")
    for options, match in [
        ({"source": str(empty)}, "has no text files"),
        ({"source": str(bad)}, "None of the 1 text files"),
        ({"source": str(tmp_path / "none")}, "does not exist"),
        ({"source": str(folder / "deep" / "picture.png")}, "is no text file"),
        ({"source": str(folder), "val": 1.0}, "val=1.0 is a share"),
        ({"source": str(folder), "out": str(folder)}, "is not a text store; choose another"),
        ({"source": str(folder), "out": None}, "out=PATH"),
        ({}, "source=FOLDER"),
        ({"tokenizer": str(tmp_path / "no.json"), "source": str(folder)}, "no checkpoint"),
        ({"tokenizer": str(folder / "0.txt"), "source": str(folder)}, "not a readable tokenizer"),
    ]:
        with pytest.raises(UserError, match=match) as caught:
            run("text", **({"out": str(out)} | options))
        assert "\n" not in str(caught.value)
        assert not out.exists(), options
    EpisodeWriter(tmp_path / "episodes.zarr", SPEC)
    with pytest.raises(UserError, match="is not a text store"):
        run("text", source=str(folder), out=str(tmp_path / "episodes.zarr"))
    run("text", source=str(folder), out=str(out))
    with pytest.raises(UserError, match="of another kind"):
        run("stats", store=str(out))
    with pytest.raises(UserError, match="Did you mean 'val'"):
        run("info", store=str(out), split="vall")
    settings = json.loads((out / "zarr.json").read_text())
    settings["attributes"]["schema"]["version"] = 99
    (out / "zarr.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="text schema version 99"):
        run("info", store=str(out))


def test_the_prose_of_python_is_parsed_and_not_run(tmp_path):
    library = tmp_path / "library"
    (library / "test").mkdir(parents=True)
    long = "It says what the thing is for, in a whole sentence."
    (library / "a.py").write_text(
        f'"""{long}"""\nraise SystemExit\n'
        f'class A:\n    """Of A. {long}"""\n'
        f'    async def f(self):\n        """x \\ud800 {long}"""\n'
    )
    (library / "broken.py").write_text("def f(:\n")
    (library / "test" / "b.py").write_text(f'"""{long}"""')
    made = {d.name: d.text for d in python_documents(library)}
    assert made["lib/a.py"] == f"{long}\n\nOf A. {long}\n\nx  {long}"
    assert [name for name in made if name.startswith("lib/")] == ["lib/a.py"]
    assert sum(name.startswith("topic/") for name in made) > 50
    assert "assert" in made["topic/assert"]


@pytest.mark.slow
def test_the_whole_library_of_python(tmp_path):
    made = list(python_documents())
    assert sum(len(d.text) for d in made) > 1_000_000
    assert write_text(tmp_path / "x.zarr", made, "CPython", "PSF-2.0")[0] > 300
    assert len(list(TextStore(tmp_path / "x.zarr").documents("val"))) > 10


SPEC = WorldSpec(
    "toy", ActionTable((ActionRow("forward", "w", "go", dx=0.5, phrases=("go on",)),)), 16, 16
)


@pytest.fixture
def episodes(tmp_path: Path) -> Path:
    note = Annotation("caption", 1, 1, "a hill")
    frames = np.random.default_rng(0).integers(0, 256, (13, 16, 16, 3), np.uint8)
    actions = np.tile(np.float32([0.5, 0, 0]), (12, 1))
    info = {"seed": 0, "split": "train"}
    episode = Episode(frames, actions, np.ones(12, np.uint16), {}, (note,), info)
    EpisodeWriter(tmp_path / "episodes.zarr", SPEC).write(episode)
    return tmp_path / "episodes.zarr"


def test_training_reads_a_text_store_and_only_its_train_split(folder, episodes, tmp_path):
    out = tmp_path / "x.zarr"
    write_text(out, folder_documents(folder, print), "here", "CC0-1.0", val=0.3)
    settings = [f"store={episodes}", f"out={tmp_path / 'run'}", "rae.size=16", "vocab=330"]
    config = compose("train", [*settings, "stage=tokenizer", f"text={out}"], TrainConfig)
    assert training.main(config) == 0
    tokenizer = TextTokenizer.load(tmp_path / "run" / "tokenizer.json")
    assert len(tokenizer.encode(" river")) == 1, "the store's words are in the vocabulary"

    pieces = training.load_prose(str(out))
    assert pieces == TextStore(out).pieces("train")
    held_out = set(TextStore(out).pieces("val"))
    assert held_out
    assert not held_out & set(pieces)

    def drawn() -> list[tuple[int, ...]]:
        recordings = load_recordings(str(episodes), "train")
        run = training.Run(config, tmp_path, None, None, recordings, pieces)
        prose = run.pieces(tokenizer)
        kinds = {kind: 0.0 for kind in ("caption", "imagine", "question", "video", "action")}
        mixture = Mixture(text=1.0, instructed=0, commanded=0, **kinds)
        sampler, rng = Sampler(recordings, tokenizer, mixture, prose), np.random.default_rng(1)
        spans = [sampler.draw(rng)[1][0] for _ in range(60)]
        assert all(isinstance(span, Text) for span in spans)
        return [span.ids for span in spans]

    encoded = drawn()
    total = write_tokens(out, tokenizer)
    assert TextStore(out).tokenizers() == [texts.tokenizer_hash(tokenizer)]
    assert write_tokens(out, tokenizer) == total
    stored = TextStore(out).tokens(tokenizer, "train")
    assert [tokenizer.decode(ids.tolist()) for ids in stored] == pieces
    assert drawn() == encoded, "stored tokens are the ones that would be made"
    assert all(ids[-1] == EOS and len(ids) <= 121 for ids in encoded)
    other = train_tokenizer(["another"] * 9, 280)
    assert TextStore(out).tokens(other, "train") is None
    (folder / "more.txt").write_text("one more")
    write_text(out, folder_documents(folder, print), "here", "CC0-1.0")
    assert TextStore(out).tokens(tokenizer, "train") is None, "a shard has no tokens yet"


def test_training_names_a_text_that_is_none(folder, episodes, tmp_path):
    for text, match in [
        (folder, "is not a text store; `worldmodel data text"),
        (tmp_path / "none", "does not exist; `worldmodel data text"),
        (episodes, "is not a text store"),
    ]:
        settings = [f"store={episodes}", f"out={tmp_path / 'run'}", "rae.size=16", f"text={text}"]
        with pytest.raises(UserError, match=match):
            training.main(compose("train", settings, TrainConfig))
    write_text(tmp_path / "v.zarr", [document(0)], "here", "x", val=0.999999)
    with pytest.raises(UserError, match="no documents of the split 'train'"):
        training.load_prose(str(tmp_path / "v.zarr"))
