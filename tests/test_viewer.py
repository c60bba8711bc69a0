"""The viewer without a window: session, engine, keys, text box, layout, drawing."""

import os
import runpy
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


import worldmodel
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Start, parse_scenario
from worldmodel.viewer.commands import Branch, Chart, Fork, Jump
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.draw import spread
from worldmodel.viewer.engine import (
    Advance,
    Ask,
    Denoise,
    Engine,
    Pause,
    Restart,
    Rewind,
    Say,
    describe,
)
from worldmodel.viewer.keys import Keymap
from worldmodel.viewer.script import ScriptPlayer
from worldmodel.viewer.session import Answer, Moment, Session
from worldmodel.viewer.starts import make_context
from worldmodel.viewer.textbox import TextBox

TOY = runpy.run_path(str(Path(__file__).with_name("viewer_toy.py")))
ToyDream, TABLE = TOY["ToyDream"], TOY["TABLE"]


class RealWorld:
    """A world that is no Dream: it cannot listen or go back, and it ends."""

    spec = ToyDream.spec

    def __init__(self):
        self.toy = ToyDream()

    def reset(self, seed=None):
        return self.toy.reset(seed)

    def step(self, action):
        step = self.toy.step(action)
        return type(step)(step.frame, terminated=len(self.toy.past) > 3, text=step.text)

    def close(self):
        pass


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def engine_of():
    engines = []

    def make(load=ToyDream, **options):
        engine = Engine(load, **options)
        engines.append(engine)
        engine.start()
        return engine

    yield make
    for engine in engines:
        assert engine.stop(), "the model thread did not end"


# Session


def test_keys_sentences_and_nothing_reach_the_model_as_exact_text():
    session = Session(ToyDream())
    assert session.advance(("a", "w")).text == "action: w+a"
    assert session.advance().text == "action: none"
    session.say("turn  right\x07\n")
    assert session.advance().text == "instruction: turn right"
    assert session.advance(("w",)).text == "instruction: turn right\naction: w"
    session.say(" ")
    assert session.advance().text == "action: none"
    assert session.length == 5


def test_a_question_is_answered_about_the_current_frame_and_changes_nothing():
    session = Session(ToyDream())
    session.say("turn left")
    session.advance(("w",))
    past = list(session.world.past)
    assert session.ask(" what is\nahead?\x07") == Answer(
        1, "what is ahead?", "3 words after 1 steps"
    )
    assert (session.world.past, session.world.said) == (past, "turn left")
    assert session.length == 1
    with pytest.raises(UserError, match="empty"):
        session.ask(" ")


def test_rewind_takes_the_world_along_and_stops_at_the_start():
    session = Session(ToyDream())
    frames = [session.advance(("w",)).frame for _ in range(5)]
    assert np.array_equal(session.rewind(2).frame, frames[2])
    assert np.array_equal(session.advance(("w",)).frame, frames[3])
    assert session.rewind(99).number == 0
    assert len(session.world.past) == 1


def test_restart_drops_the_instruction_and_can_move_on():
    session = Session(ToyDream(), start=3)
    first = session.now.frame
    session.say("turn left")
    session.advance()
    session.restart()
    assert np.array_equal(session.now.frame, first)
    assert (session.instruction, session.world.said) == ("", None)
    session.restart(1)
    assert session.start == 4
    assert not np.array_equal(session.now.frame, first)


def test_a_real_world_refuses_what_it_cannot_do():
    session = Session(RealWorld())
    with pytest.raises(UserError, match="does not listen"):
        session.say("hello")
    with pytest.raises(UserError, match="does not answer"):
        session.ask("what is ahead?")
    with pytest.raises(UserError, match="cannot go back"):
        session.rewind(1)
    for _ in range(3):
        session.advance()
    with pytest.raises(UserError, match="ended"):
        session.advance()


def test_memory_of_a_long_session_stays_flat(monkeypatch):
    monkeypatch.setattr("worldmodel.viewer.session.HISTORY_BYTES", 1)
    monkeypatch.setattr("worldmodel.viewer.film.MAX_THUMBS", 64)
    session = Session(ToyDream())
    for _ in range(300):
        session.advance()
    frames, thumbs = session.film.sizes
    assert frames == 1
    assert thumbs <= 72
    assert session.length == 300
    shown = session.timeline(10)
    assert (shown[0].number, shown[-1].number) == (0, 300)
    assert 3 <= len(shown) <= 10


def test_timeline_stands_still_while_it_grows():
    moments = [Moment(i, np.zeros((1, 1, 3), np.uint8)) for i in range(100)]
    assert [m.number for m in spread(moments, 8)] == [0, 16, 32, 48, 64, 80, 96, 99]
    assert [m.number for m in spread(moments[:99], 8)] == [0, 16, 32, 48, 64, 80, 96, 98]
    assert [m.number for m in spread(moments, 1)] == [99]
    assert spread(moments, 0) == ()


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  turn\tright\r\n", "turn right"),
        ("a\x00b\x1b[31mc", "ab[31mc"),
        ("e\u0301t\u00e9 打开门 🚪", "été 打开门 🚪"),
        ("\ud800x", "x"),
    ],
)
def test_sentences_of_any_unicode_lose_control_characters_only(raw, clean):
    session = Session(ToyDream())
    assert session.say(raw) == clean
    assert session.world.said == clean


@pytest.mark.parametrize("bad", ["x" * 10_000, "\x00\x07"])
def test_a_sentence_that_is_refused_leaves_the_old_one(bad):
    session = Session(ToyDream())
    session.say("turn left")
    with pytest.raises(UserError):
        session.say(bad)
    assert (session.instruction, session.world.said) == ("turn left", "turn left")


def test_the_instruction_stays_while_time_goes_back():
    session = Session(ToyDream())
    session.advance()
    session.say("turn left")
    session.advance()
    session.say("")
    session.advance()
    session.rewind(2)
    assert (session.instruction, session.world.said) == ("", None)
    assert session.advance().text == "action: none"


# Engine


def test_a_tap_between_two_steps_is_not_lost(engine_of, monkeypatch):
    monkeypatch.setenv("TOY_DELAY_S", "0.1")
    seen = []
    engine = engine_of(on_step=seen.append)
    until(lambda: engine.busy_since_s)
    engine.hold(("d",))
    engine.hold(())
    count = len(seen)
    until(lambda: len(seen) >= count + 3)
    assert [moment.keys for moment in seen].count(("d",)) == 1


def test_a_fresh_key_does_not_wait_for_the_pace(engine_of):
    engine = engine_of(fps=0.5)
    until(lambda: engine.snapshot.steps_done == 1)
    begin = time.monotonic()
    engine.hold(("w",))
    until(lambda: engine.snapshot.now.keys == ("w",))
    assert time.monotonic() - begin < 1.0
    assert engine.snapshot.steps_done == 2


def test_posting_never_waits_for_a_slow_model(engine_of, monkeypatch):
    monkeypatch.setenv("TOY_DELAY_S", "0.4")
    engine = engine_of()
    until(lambda: engine.busy_since_s)
    begin = time.monotonic()
    for _ in range(200):
        engine.hold(("w",))
        engine.hold(())
        engine.post(Say("turn left"))
        _ = engine.snapshot
    assert time.monotonic() - begin < 0.2


def test_keys_reach_the_model_while_it_answers(engine_of):
    asked, go_on = threading.Event(), threading.Event()

    class Slow(ToyDream):
        def answer(self, question):
            asked.set()
            assert go_on.wait(10)
            return "a wall"

    seen, answers = [], []
    engine = engine_of(
        Slow, on_step=seen.append, on_answer=lambda now, answer: answers.append((now, answer))
    )
    until(lambda: engine.snapshot.steps_done >= 2)
    engine.post(Ask("what is ahead?"))
    assert asked.wait(10)
    done = engine.snapshot.steps_done
    assert engine.busy_since_s
    engine.hold(("d",))
    engine.hold(())
    engine.post(Say("turn left"))
    assert engine.snapshot.answer is None
    go_on.set()
    until(lambda: engine.snapshot.instruction and engine.snapshot.steps_done >= done + 2)
    assert engine.snapshot.answer == Answer(done, "what is ahead?", "a wall")
    assert answers == [(seen[done - 1], engine.snapshot.answer)]
    assert [moment.keys for moment in seen].count(("d",)) == 1
    engine.post(Restart())
    until(lambda: engine.snapshot.answer is None)


def test_a_question_to_a_world_that_cannot_answer_is_a_notice(engine_of):
    engine = engine_of(RealWorld, fps=1)  # its end would be the next notice
    engine.post(Ask("what is ahead?"))
    until(lambda: "does not answer" in engine.snapshot.notice)
    assert engine.snapshot.failure is None


def test_pause_single_step_rewind_and_next(engine_of):
    engine = engine_of()
    until(lambda: engine.snapshot.steps_done >= 3)
    engine.post(Pause(True))
    until(lambda: engine.snapshot.status == "paused")
    done = engine.snapshot.steps_done
    time.sleep(0.05)
    assert engine.snapshot.steps_done == done
    engine.post(Advance(("w",)))
    until(lambda: engine.snapshot.steps_done == done + 1)
    number = engine.snapshot.now.number
    engine.post(Rewind(2))
    until(lambda: engine.snapshot.now.number == number - 2)
    assert engine.snapshot.status == "paused"
    engine.post(Denoise(finer=True))
    until(lambda: engine.snapshot.denoise_steps == 8)
    engine.post(Restart(1))
    until(lambda: engine.snapshot.start == 1 and engine.snapshot.status == "playing")


def test_the_pace_is_kept(engine_of):
    engine = engine_of(fps=50)
    until(lambda: engine.snapshot.steps_done >= 1)
    time.sleep(0.5)
    assert 15 <= engine.snapshot.steps_done <= 28


def test_a_refused_sentence_is_a_notice_and_the_game_goes_on(engine_of):
    engine = engine_of()
    engine.post(Say("very " * 30))
    until(lambda: "30 tokens" in engine.snapshot.notice)
    done = engine.snapshot.steps_done
    until(lambda: engine.snapshot.steps_done > done)
    assert engine.snapshot.instruction == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_model_is_shown_and_restarts(engine_of, monkeypatch, capfd):
    monkeypatch.setenv("TOY_FAIL", "step")
    engine = engine_of()
    until(lambda: engine.snapshot.status == "failed")
    assert engine.alive
    assert "out of memory" in str(engine.snapshot.failure)
    assert "Traceback" in capfd.readouterr().err
    monkeypatch.delenv("TOY_FAIL")
    engine.post(Restart())
    until(lambda: engine.snapshot.steps_done > 5)
    assert engine.snapshot.failure is None


def test_a_world_that_cannot_be_loaded_is_a_failure(engine_of):
    def load():
        raise UserError("no such checkpoint")

    engine = engine_of(load)
    until(lambda: engine.snapshot.status == "failed")
    assert isinstance(engine.snapshot.failure, UserError)


def test_a_real_world_has_one_future_and_a_map_of_it(engine_of):
    engine = engine_of(RealWorld, fps=1)
    until(lambda: engine.snapshot.info)
    engine.post(Fork((Branch(("w",)), Branch(("a",)))))
    until(lambda: "one future only" in engine.snapshot.notice)
    engine.post(Advance(("w",)))
    engine.post(Chart(True))
    until(lambda: engine.snapshot.chart)
    assert engine.snapshot.chart[-1].here
    engine.post(Jump(0))
    until(lambda: "cannot go back" in engine.snapshot.notice)
    assert engine.snapshot.failure is None


def test_the_end_of_an_episode_pauses(engine_of):
    engine = engine_of(RealWorld)
    until(lambda: engine.snapshot.status == "paused")
    assert "ended" in engine.snapshot.notice
    engine.post(Restart())
    until(lambda: engine.snapshot.steps_done > 3)


def test_the_world_is_closed_in_the_end():
    toy = ToyDream()
    engine = Engine(lambda: toy)
    engine.start()
    until(lambda: engine.snapshot.steps_done > 2)
    assert engine.stop()
    assert toy.closed


def test_the_device_line():
    assert describe(ToyDream()).line.startswith("device: cpu (no CUDA device found), float32")


# Scripts


def play_script(data, load=ToyDream):
    seen = []
    engine = Engine(load, lockstep=True, on_step=seen.append)
    player = ScriptPlayer(parse_scenario(data))
    engine.start()
    try:
        until(lambda: engine.snapshot.failure or player.tick(engine, engine.snapshot, 0.0))
        return seen, engine.snapshot
    finally:
        engine.stop()


def test_a_script_makes_exactly_one_step_per_step():
    events = [
        {"at": 0, "hold": "w+a", "for": 2},
        {"at": 3, "say": "turn left"},
        {"at": 4, "press": "s"},
        {"at": 5, "clear": True},
        {"at": 6, "rewind": 3},
    ]
    seen, _ = play_script({"steps": 8, "events": events})
    assert [moment.text for moment in seen] == [
        "action: w+a",
        "action: w+a",
        "action: none",
        "instruction: turn left",
        "instruction: turn left\naction: s",
        "action: none",
        "action: none",
        "action: none",
    ]
    assert [moment.number for moment in seen] == [1, 2, 3, 4, 5, 6, 4, 5]


def test_a_sentence_that_is_refused_ends_a_script():
    seen, last = play_script({"steps": 4, "events": [{"at": 2, "say": "very " * 30}]})
    assert isinstance(last.failure, UserError)
    assert len(seen) == 2


# Starts


def test_a_picture_of_any_size_is_a_start(tmp_path):
    from PIL import Image

    Image.new("RGB", (300, 200), (10, 200, 30)).save(tmp_path / "a.png")
    context = make_context(Start(image=str(tmp_path / "a.png")), ToyDream.spec)
    assert context is not None
    assert context.frames.shape == (1, 48, 64, 3)
    session = Session(ToyDream(), context=context)
    assert session.world.context.shape == (1, 48, 64, 3)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="no picture"):
        make_context(Start(image=str(tmp_path / "b.png")), ToyDream.spec)
    with pytest.raises(UserError, match="No such file"):
        make_context(Start(image=str(tmp_path / "c.png")), ToyDream.spec)
    with pytest.raises(UserError, match="no store"):
        make_context(Start(store=str(tmp_path / "none.zarr")), ToyDream.spec)


# Keys and text box


def test_keys_of_the_world_win_and_arrows_follow_their_meaning():
    keymap = Keymap(TABLE)
    assert [keymap.action(key) for key in ("w", "up", "down", "left", "right", "q")] == [
        "w",
        "w",
        "s",
        "a",
        "d",
        None,
    ]
    assert keymap.command("w") is None
    assert keymap.command("7", "/").name == "say"  # where / is typed with shift
    assert Keymap(None).command("space").name == "pause"


def test_typing_at_the_cursor():
    box = TextBox().opened().typed("open the dor")
    box = box.key("left").typed("o").key("end").typed("!")
    assert box.text == "open the door!"
    assert box.key("home").key("delete").text == "pen the door!"
    assert box.key("backspace").text == "open the door"
    assert TextBox().opened().typed("a\x00\x1b\nb é 打").text == "a b é 打"
    assert TextBox().opened().key("backspace").key("left").key("delete") == TextBox(True)


# Settings


def test_the_yaml_and_the_dataclass_agree_and_every_key_is_explained():
    path = Path(worldmodel.__file__).parent / "conf" / "play.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    given = yaml.safe_load("\n".join(lines))
    assert given == {key: getattr(PlayConfig(), key) for key in PlayConfig.__dataclass_fields__}
    for index, line in enumerate(lines):
        if line and not line.startswith("#"):
            assert lines[index - 1].startswith("# "), line


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"headless": True}, "script=FILE"),
        ({"denoise_steps": 0}, "denoise_steps"),
        ({"fps": -1}, "fps"),
        ({"width": 5}, "160x120"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, part):
    with pytest.raises(UserError, match=part):
        PlayConfig(**given)
