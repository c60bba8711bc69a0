"""What the window tells, in words and figures: the help, errors, obedience, stages, the start."""

import os
import runpy
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame

from worldmodel.dream import Dream
from worldmodel.evaluate.scenario import Start
from worldmodel.viewer import draw as drawing
from worldmodel.viewer import fonts, helpview, panel
from worldmodel.viewer.commands import Advance, Restart, Say
from worldmodel.viewer.engine import Engine, Snapshot, describe
from worldmodel.viewer.helpview import draw_help, help_pages, help_places, help_rows
from worldmodel.viewer.keyfile import KeyFile
from worldmodel.viewer.keys import BINDINGS, Keymap
from worldmodel.viewer.layout import make_layout
from worldmodel.viewer.mouse import STRETCH, Mouse
from worldmodel.viewer.obedience import EVERY, Obedience
from worldmodel.viewer.script import SessionPlayer
from worldmodel.viewer.session import Session
from worldmodel.viewer.snapshot import begin_of
from worldmodel.viewer.starts import make_context
from worldmodel.viewer.tape import Tape
from worldmodel.viewer.textbox import TextBox
from worldmodel.viewer.ui import Window
from worldmodel.viewer.view import ViewState
from worldmodel.viewer.window import first_size

TOY = runpy.run_path(str(Path(__file__).with_name("viewer_toy.py")))
ToyDream, TABLE = TOY["ToyDream"], TOY["TABLE"]
SIZES = [(160, 120), (320, 240), (480, 360), (640, 480), (1000, 800), (1800, 320), (400, 1100)]


@pytest.fixture(scope="module", autouse=True)
def pygame_fonts():
    pygame.font.init()
    fonts.forget()


@pytest.fixture
def written(monkeypatch):
    """All that is written on a surface: (text, place)."""
    said = []

    def put(surface, text, at, size, colour, **how):
        place = fonts.put(surface, text, at, size, colour, **how)
        said.append((text, place))
        return place

    for module in (drawing, helpview, panel):
        monkeypatch.setattr(module, "put", put)
    return said


def a_view(**changes):
    session = Session(ToyDream())
    session.advance(("w",))
    snapshot = Snapshot(status="playing", info=describe(session.world), now=session.now)
    return ViewState(replace(snapshot, **changes))


def played(engine, commands):
    """Yield the snapshots while an engine carries out commands, the last one at their end."""
    engine.start()
    try:
        player, done = SessionPlayer(commands), False
        while not done:
            done = player.tick(engine, snapshot := engine.snapshot, 0.0)
            assert snapshot.failure is None
            if snapshot.info:
                yield snapshot
            time.sleep(0.005)
    finally:
        engine.stop()


# The help


@pytest.mark.parametrize("size", SIZES)
def test_every_key_of_the_help_can_be_read_on_some_page(size, written):
    layout = make_layout(size)
    rows = help_rows(TABLE, Keymap(TABLE), BINDINGS)
    surface = pygame.Surface(size)
    places = help_places(layout, size, len(rows))
    assert surface.get_rect().contains(places.card)
    for page in range(1, help_pages(layout, size, len(rows)) + 1):
        draw_help(surface, layout, rows, page)
    assert all(places.card.contains(place) for _, place in written if place.width)
    meanings = [text.removesuffix("...") for text, _ in written]
    assert all(any(m and row[1].startswith(m) for m in meanings) for row in rows)


def test_the_help_names_the_keys_to_press_the_worlds_ones_and_the_mouse():
    keys = KeyFile({"fork": ("g",)}, {"w": ("i",)})
    bindings = keys.bindings(BINDINGS)
    keymap = Keymap(TABLE, bindings, keys.world)
    rows = dict(help_rows(TABLE, keymap, bindings))
    assert rows["i"] == "walk forward"
    assert rows["a"] == "turn left"
    assert rows["G"] == "futures side by side"
    assert "turn" in rows["Mouse"]
    assert "F" not in rows
    assert "Mouse" not in dict(help_rows(None, Keymap(None), BINDINGS))
    view = replace(a_view(), cap=keymap.cap)
    assert (view.cap("w"), view.cap("a")) == ("i", "a")


# The layout


def test_a_small_window_is_mostly_picture_and_types_where_it_tells():
    for size, least in (((160, 120), 0.6), ((320, 240), 0.6), ((480, 360), 0.65)):
        layout = make_layout(size)
        assert layout.picture.height >= least * size[1]
    tiny = make_layout((160, 120))
    assert tiny.box == tiny.sent
    assert make_layout((320, 240)).box.y > make_layout((320, 240)).sent.y
    surface, box = pygame.Surface((160, 120)), TextBox().opened("walk")
    seen = []
    for view in (a_view(), replace(a_view(), box=box)):
        drawing.draw(surface, view)
        seen.append(pygame.surfarray.array3d(surface))
    line = tiny.box
    assert (seen[0] != seen[1])[line.x : line.right, line.y : line.bottom].any()


def test_a_tall_window_has_the_panel_below_the_picture():
    layout = make_layout((400, 1100))
    assert layout.panel.height >= 260
    assert layout.panel.y > layout.picture.bottom
    assert layout.panel.bottom < layout.sent.y
    assert not make_layout((400, 600)).panel.width


def test_the_window_opens_as_large_as_the_screen_has_pixels_for():
    assert first_size((1000, 800), (1920, 1080)) == (1000, 800)
    assert first_size((1000, 800), (3840, 2160)) == (2000, 1600)
    assert first_size((640, 480), (3840, 2160)) == (640, 480)
    assert first_size((1000, 800), (1024, 768)) == (1000, 707)
    fine = make_layout((2000, 1600))
    assert fine.px(13) == 2 * make_layout((1000, 800)).px(13)


# Errors


@pytest.mark.parametrize("size", SIZES)
def test_what_stopped_the_model_stays_off_the_other_lines(size, written):
    error = RuntimeError("CUDA out of memory. " + "Tried to allocate 20 MiB. " * 20)
    view = a_view(status="failed", failure=error)
    surface = pygame.Surface(size)
    layout = drawing.draw(surface, view)
    told = [(text, place) for text, place in written if layout.area.collidepoint(place.center)]
    texts = " ".join(text for text, _ in told)
    assert "The model s" in texts
    assert "no memory" in texts
    assert all(surface.get_rect().contains(place) for _, place in told if place.width)
    assert all(place.bottom <= layout.sent.y + 4 for _, place in told)
    rows = sorted(place.y for _, place in told)
    assert all(b - a >= 8 for a, b in pairwise(rows))


def test_a_model_that_did_not_load_is_not_called_loading(written):
    view = ViewState(Snapshot(status="failed", failure=RuntimeError("no")))
    drawing.draw(pygame.Surface((1000, 800)), view)
    assert "did not load" in [text for text, _ in written]


# Letters


def test_each_script_of_a_mixed_sentence_has_a_font_that_shows_it():
    parts = fonts.runs("walk \u5929 \u05e9\u05dc", 16)
    assert "".join(part for part, _ in parts) == "walk \u5929 \u05e9\u05dc"
    hebrew = next(font for part, font in parts if "\u05e9" in part)
    if not fonts._shows(hebrew, "\u05e9"):
        pytest.skip("no font here has Hebrew letters")
    boxes = [fonts.runs(text, 16)[0][1] for text in ("\u05e9\u05dc",)]
    assert all(fonts._shows(font, "\u05e9") for font in boxes)
    assert not fonts._shows(fonts.runs("a", 16)[0][1], "\u05e9")
    assert len(fonts.runs("caf\u00e9", 16)) == 1
    surface = pygame.Surface((300, 40))
    place = fonts.put(surface, "walk \u5929 \u05e9\u05dc", (5, 20), 16, (255, 255, 255))
    assert place.width == fonts.measure("walk \u5929 \u05e9\u05dc", 16)
    drawn = np.argwhere(pygame.surfarray.array3d(surface).any(axis=2))
    assert place.inflate(2, 2).collidepoint(drawn.max(axis=0))


# Obedience


class Reader:
    """Sees 'w' wherever the first pixel grows by 20, and nothing else."""

    height, width, keys = 48, 64, TABLE.keys
    masks = (0, 1, 4)

    def predict(self, frames):
        assert len(frames) == 3
        grown = int(frames[2][0, 0, 0]) - int(frames[1][0, 0, 0])
        return np.array([1 if grown == 10 else 0], np.uint16)


def test_obedience_counts_what_the_frames_show_of_what_was_told():
    session = Session(ToyDream())
    gauge = Obedience(Reader(), TABLE)
    seen = []
    for keys in ("", "w", "w", "w", "w", "", "s", "a", "a", "ws"):
        session.advance(tuple(keys))
        seen.append(gauge.read(session))
    made = [reading for reading in seen if reading]
    # Of the steps under a key that the reader knows (w four times, the first one is the start's
    # second step; a twice) every second one is read; what has no key, or an unknown one, never.
    assert [(r.right, r.of, r.told, r.seen) for r in made] == [
        (1, 1, "w", "w"),
        (2, 2, "w", "w"),
        (2, 3, "a", "nothing"),
    ]
    assert EVERY == 2
    session.say("turn left")
    session.advance()
    session.advance()
    read = [gauge.read(session)]
    assert any(r and r.told == "a" for r in read) or gauge.read(session)
    assert Obedience(None, TABLE).read(session) is None


def test_the_shipped_model_shows_whether_it_obeys_and_what_its_passes_take():
    (*_, snapshot) = played(Engine(Dream.load, start=21, lockstep=True), [Advance(("w",))] * 9)
    assert snapshot.dials.obeyed
    assert snapshot.dials.obeyed.of == 4
    assert snapshot.dials.obeyed.told == "w"
    assert snapshot.dials.obeyed.right >= 2
    assert 0 < snapshot.dials.denoise_ms < snapshot.step_ms
    assert (snapshot.info.window, snapshot.imagined) == (16, 9)
    told = panel._context(ViewState(snapshot))
    assert told == "16 frames, 9 imagined"
    words = panel._stages(ViewState(snapshot, step_times_ms=(1.0,), draw_ms=7.0))
    assert "denoise" in words
    assert words.endswith("draw 7")


def test_a_pace_that_is_missed_is_said(written):
    view = replace(a_view(fps=5.0, wanted_fps=12.0), step_times_ms=(40.0,))
    drawing.draw(pygame.Surface((1000, 800)), view)
    texts = [text for text, _ in written]
    assert "frames / s of 12" in texts
    (device,) = (text for text in texts if text.startswith("on "))
    assert device.startswith("on cpu, ")
    assert device.endswith("float32")


# Where a dream began


def test_a_start_of_ones_own_is_named_until_another_one_is_taken(tmp_path, recwarn):
    from PIL import Image

    Image.new("RGB", (64, 64), (9, 99, 200)).save(tmp_path / "lake.png")
    start = Start(image=str(tmp_path / "lake.png"))
    context = make_context(start, ToyDream.spec)
    assert context.frames.flags.writeable  # torch warns about others
    engine = Engine(ToyDream, lockstep=True, context=lambda spec: make_context(start, spec))
    seen = [snapshot.begin for snapshot in played(engine, [Advance(), Restart(), Restart(1)])]
    assert list(dict.fromkeys(seen)) == ["the picture lake.png", ""]
    named = SimpleNamespace(at=0, start_of=lambda node: Start(store="a/b.zarr", episode=3, step=7))
    assert begin_of(named) == "b.zarr, episode 3, step 7"


# The mouse


def test_the_mouse_presses_once_for_each_stretch_and_waits_for_the_frame():
    mouse = Mouse(on=True).moved(STRETCH - 1)
    assert mouse.arrow == ""
    mouse = mouse.moved(STRETCH + 1)
    assert mouse.arrow == "right"
    mouse = replace(mouse, pressed="right")
    assert mouse.arrow == ""
    assert mouse.turned().arrow == "right"
    mouse = replace(mouse.turned(), pressed="right").turned()
    assert (mouse.arrow, mouse.way) == ("", 0)
    assert Mouse().moved(1000).arrow == ""
    far = Mouse(on=True).moved(-1e9)
    presses = 0
    while far.arrow:
        assert far.arrow == "left"
        far, presses = replace(far, pressed="left").turned(), presses + 1
    assert presses == 3


# The text box


class Idle:
    """A model that does nothing, and a list of what it is asked for."""

    busy_since_s = session = None

    def __init__(self, snapshot):
        self.snapshot, self.asked = snapshot, []

    def start(self):
        pass

    def hold(self, keys):
        pass

    def post(self, command):
        self.asked.append(command)


def test_a_sentence_is_pasted_and_composed_where_the_box_is(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr("worldmodel.viewer.ui.clipboard", lambda: "turn\nright \u884c")
    places = []
    monkeypatch.setattr(pygame.key, "set_text_input_rect", places.append)
    pygame.display.init()
    pygame.display.set_mode((1000, 800))
    try:
        engine = Idle(a_view().snapshot)
        tape = Tape(keep_frames=False, keep_events=False, fps=12.0, steady=False)
        window = Window(tape, None, True, lambda: "")

        def key(key, mod=0):
            pressed = {"key": key, "mod": mod, "unicode": "", "scancode": 0}
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, pressed))
            pygame.event.post(pygame.event.Event(pygame.KEYUP, pressed))

        key(pygame.K_RETURN)
        key(pygame.K_v, pygame.KMOD_CTRL)
        key(pygame.K_RETURN)
        key(pygame.K_ESCAPE)
        window.run(engine)
    finally:
        pygame.display.quit()
        fonts.forget()
    assert engine.asked == [Say("turn right \u884c")]
    assert places == [make_layout((1000, 800), 64 / 48).box]


def test_ctrl_goes_over_whole_words():
    box = TextBox().opened("walk to the  door")
    box = box.key("backspace", words=True)
    assert box.text == "walk to the  "
    box = box.key("left", words=True)
    assert box.cursor == len("walk to ")
    box = box.key("delete", words=True)
    assert box.text == "walk to   "
    box = box.key("home").key("right", words=True)
    assert box.cursor == len("walk")
    assert box.key("right", words=True).cursor == len("walk to")
    assert TextBox().opened().key("backspace", words=True).text == ""
