"""Sessions played again without a display, as processes: frames, scenarios, episodes, keymaps."""

import os
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Start, load_scenario
from worldmodel.viewer.commands import Advance, Branch, Fork, Leave, Name, Pick, Rewind, Say
from worldmodel.viewer.journal import Head, Journal
from worldmodel.viewer.keep import Keeper
from worldmodel.viewer.keyfile import load_keyfile
from worldmodel.viewer.keys import BINDINGS, Keymap
from worldmodel.viewer.phrases import fitting, known_phrases
from worldmodel.viewer.session import Session
from worldmodel.viewer.textbox import Typist

TOY_PATH = Path(__file__).with_name("viewer_toy.py")
TOY = runpy.run_path(str(TOY_PATH))
ToyDream, TABLE = TOY["ToyDream"], TOY["TABLE"]
play = TOY["play"]

COMMANDS = (
    *[Advance(("w",))] * 5,
    Name(5, "the door"),
    Say("turn left"),
    Advance(),
    Fork((Branch(("w",)), Branch(say="walk"))),
    Advance(),
    Advance(),
    Pick(0),
    Advance(("d",)),
    Rewind(2),
    Advance(("s",)),
    Fork((Branch(("a",)), Branch(("d",)), Branch(say="go"))),
    Advance(),
)


def a_session(path: Path, commands=COMMANDS, sha256="") -> Path:
    journal = Journal(path, Head("toy", sha256, start=Start(seed=3), seed=7, denoise_steps=4))
    for command in commands:
        journal.write(command, 0)
    journal.close()
    return path


def frames_of(path: Path) -> np.ndarray:
    return np.load(path)["frames"]


def test_a_session_gives_the_same_frames_every_time(tmp_path) -> None:
    a_session(tmp_path / "s.jsonl")
    for name in ("a.npz", "b.npz"):
        done = play(tmp_path, "session=s.jsonl", f"frames={name}", "screenshot=s.png")
        assert done.returncode == 0, done.stderr
    first, second = frames_of(tmp_path / "a.npz"), frames_of(tmp_path / "b.npz")
    assert np.array_equal(first, second)
    session = Session(ToyDream(seed=7), start=3)  # and the ones of the session as it was played
    for _ in range(5):
        session.advance(("w",))
    assert np.array_equal(first[4], session.now.frame)
    assert len(first) == 6 + 2 * 2 + 2 + 3
    with Image.open(tmp_path / "s.png") as shot:
        assert shot.size == (1000, 800)
    assert not (tmp_path / "sessions").exists()


def test_another_checkpoint_than_the_sessions_is_said(tmp_path) -> None:
    a_session(tmp_path / "s.jsonl", sha256="abc")
    done = play(tmp_path, "session=s.jsonl")
    assert done.returncode == 0, done.stderr
    assert "frames will differ" in done.stdout


def test_the_path_to_a_named_frame_becomes_a_scenario_and_an_episode(tmp_path) -> None:
    a_session(tmp_path / "s.jsonl")
    outputs = ("frames=f.npz", "scenario=p.yaml", "store=e.zarr")
    done = play(tmp_path, "session=s.jsonl", "node=the door", *outputs)
    assert done.returncode == 0, done.stderr
    scenario = load_scenario(tmp_path / "p.yaml")
    assert (scenario.steps, scenario.seed, scenario.start.seed) == (5, 7, 3)
    done = play(tmp_path, "script=p.yaml", "frames=g.npz")
    assert done.returncode == 0, done.stderr
    frames = frames_of(tmp_path / "f.npz")[:5]
    assert np.array_equal(frames_of(tmp_path / "g.npz"), frames)
    store = EpisodeStore(str(tmp_path / "e.zarr"))
    episode = store.read(store.ids[0])
    assert np.array_equal(episode.frames[1:], frames)
    assert episode.keys.tolist() == [TABLE.mask(TABLE.press(["w"]))] * 5
    assert episode.info["imagined"] is True


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["session=none.jsonl"], "Cannot read the session"),
        (["session=s.jsonl", "node=window"], "no frame called 'window'"),
        (["session=s.jsonl", "script=p.yaml"], "not both"),
        (["session=s.jsonl", "store=e.zarr"], "led by 'walk to it'"),
        (["session=s.jsonl", "keymap=none.yaml"], "Cannot read the keymap"),
        (["node=3", "script=p.yaml"], "needs session=FILE"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, part) -> None:
    said = (Say("walk to it") if isinstance(c, Say) else c for c in COMMANDS)
    a_session(tmp_path / "s.jsonl", (*said, Leave()))
    (tmp_path / "p.yaml").write_text("steps: 1", encoding="utf-8")
    done = play(tmp_path, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert part in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_last_seconds_are_exported_in_three_formats(tmp_path) -> None:
    import av

    session = Session(ToyDream())
    for _ in range(20):
        session.advance(("w",))
    keeper = Keeper(lambda world: Head(), tmp_path / "s", tmp_path / "r", fps=8, clip_s=1.5)
    told: list[str] = []
    assert "last 2 s" in keeper.clip(session, told.append)
    for thread in threading.enumerate():
        if thread.name == "export":
            thread.join(30)
    assert "Exported 12 frames" in told[0]
    (video,) = (tmp_path / "r").glob("*.mp4")
    with av.open(str(video)) as opened:
        assert opened.streams.video[0].frames == 12
    (gif,) = (tmp_path / "r").glob("*.gif")
    with Image.open(gif) as opened:
        assert opened.n_frames == 12  # type: ignore[attr-defined]
        assert opened.size == (384, 288)
    (strip,) = (tmp_path / "r").glob("*.png")
    with Image.open(strip) as opened:
        assert opened.size == (64 * 3 * 8, 48 * 3)
    with pytest.raises(UserError, match="no step to export"):
        keeper.clip(Session(ToyDream()), told.append)


# Keys of one's own


def test_a_keymap_gives_commands_and_actions_other_keys(tmp_path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("viewer: {map: [tab], fork: g}\nworld: {w: [i, up], a: j}", encoding="utf-8")
    keys = load_keyfile(str(path))
    keymap = Keymap(TABLE, keys.bindings(BINDINGS), keys.world)
    assert [keymap.action(key) for key in ("i", "up", "j", "s", "w", "left")] == [
        *("w", "w", "a", "s"),
        *(None, None),
    ]
    assert keymap.command("tab").name == "map"
    assert keymap.command("m") is None
    assert keymap.label("fork") == "G"
    with pytest.raises(UserError, match="Unknown key 'x'"):
        Keymap(TABLE, BINDINGS, {"x": ("y",)})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("viewer: {mapp: [m]}", "Did you mean 'map'"),
        ("keys: {}", "Unknown name 'keys'"),
        ("viewer: {map: {}}", "a key or a list of keys"),
        ("viewer: [", "not YAML"),
        ("- a", "names with their keys"),
    ],
)
def test_a_keymap_that_is_wrong_is_refused_by_name(tmp_path, text, part) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=part):
        load_keyfile(str(path))


# Sentences


def test_sentences_are_recalled_with_the_arrows_and_the_draft_comes_back() -> None:
    typist = Typist()
    for sentence in ("turn left", "go on", "go on"):
        typist.open()
        typist.type(sentence)
        typist.sent(sentence)
        typist.close()
    typist.open()
    typist.type("walk")
    seen = []
    for key in ("up", "up", "up", "down", "down"):
        typist.key(key)
        seen.append(typist.box.text)
    assert seen == ["go on", "turn left", "turn left", "go on", "walk"]


def test_tab_completes_known_phrases_and_goes_round() -> None:
    typist = Typist()
    typist.phrases = ("turn left", "turn right", "turn around")
    typist.open(opened_by="/")
    typist.type("/")  # the key that opened the box
    typist.type("Turn ")
    assert typist.box.hint == "left"
    seen = []
    for _ in range(4):
        typist.key("tab")
        seen.append(typist.box.text)
    assert seen == ["turn left", "turn right", "turn around", "turn left"]
    typist.key("backspace")
    assert (typist.box.text, typist.box.hint) == ("turn lef", "t")
    typist.open(label="Name")
    typist.type("turn")
    typist.key("tab")
    assert (typist.box.text, typist.box.hint) == ("turn", "")


def test_phrases_come_from_the_action_table_and_the_grammar() -> None:
    phrases = known_phrases(ToyDream.spec)
    assert {"step forward", "turn left", "stand still"} <= set(phrases)
    assert not any("{" in phrase for phrase in phrases)


def test_what_the_model_does_not_read_is_known_to_the_character() -> None:
    count = lambda text: len(text.split())  # noqa: E731
    assert fitting("a b c", count, 3) == 5
    assert fitting("a b c d e", count, 3) == 6
    assert fitting("anything", None, 0) == 8
