"""When an instruction is fulfilled: what would fulfil it, the rule, and what the engine does."""

import runpy
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from worldmodel.dream import Dream
from worldmodel.envs.grammar import INSTRUCTIONS
from worldmodel.evaluate.pose import PoseReader
from worldmodel.evaluate.triples import save_reader
from worldmodel.viewer.commands import Advance, Branch, Say
from worldmodel.viewer.engine import Engine
from worldmodel.viewer.fulfil import EVERY, Fulfilment, goals
from worldmodel.viewer.journal import Head, Journal, read_session, scenario_of
from worldmodel.viewer.script import SessionPlayer
from worldmodel.viewer.session import Session

ToyDream = runpy.run_path(str(Path(__file__).with_name("viewer_toy.py")))["ToyDream"]
OBJECTS = ("red torch", "blue pillar")
DARK, LIGHT = "get out of the shadow", "how bright is it?"


class Turns(PoseReader):
    """Reads a turn of so many degrees of every step."""

    def __init__(self, degrees: float = 45.0) -> None:
        super().__init__(48, 64)
        self.degrees = degrees

    def motion(self, frames: np.ndarray) -> np.ndarray:
        assert frames.shape == (3, 48, 64, 3)
        return np.array([[0.0, 0.0, self.degrees]], np.float32)


class Talker(ToyDream):
    """A toy that looks like a model to the instruments, and says what it sees."""

    spec = replace(ToyDream.spec, objects=OBJECTS)

    def __init__(self, *given) -> None:
        super().__init__(*given)
        checkpoint = SimpleNamespace(folder=None, spec=self.spec, start_frames=())
        self.engine = SimpleNamespace(checkpoint=checkpoint)
        self.asked: list[str] = []
        self.sees = {}

    def answer(self, question: str) -> str:
        self.asked.append(question)
        if question == LIGHT:
            return "bright" if self.length > 8 else "dark"
        return self.sees[question]


def test_every_wording_of_the_grammar_has_its_goal_and_nothing_else_has() -> None:
    found = goals(True, OBJECTS)
    watched = {"left", "right", "around", "lighten", "darken", "goto", "toward", "look", "find"}
    for kind, forms in INSTRUCTIONS.items():
        for form in (*forms.seen, *forms.held_out):
            goal = found.get(form.replace("{object}", "red torch"))
            assert (goal.kind if goal else None) == (kind if kind in watched else None), form
    assert found["swing left"].asked == ()
    assert found["escape the gloom"].asked == (("how bright is it?", "bright"),)
    assert found["gaze at the red torch"].asked == (("what is ahead?", "a red torch"),)
    assert found["head for the blue pillar"].asked == (
        ("what is ahead?", "a blue pillar"),
        ("is the blue pillar near or far?", "near"),
    )
    for free in ("turn left a bit", "go to the green unicorn", "dance", "left", ""):
        assert free not in found
    assert {goal.kind for goal in goals(False, OBJECTS).values()} == watched - {
        *("left", "right", "around")
    }
    assert {goal.kind for goal in goals(True, ()).values()} == {"left", "right", "around"}


@pytest.mark.parametrize(
    ("sentence", "degrees", "steps"),
    [("turn left", 45, 3), ("Turn Right", -30, 4), ("turn around", 60, 4), ("turn around", -60, 4)],
)
def test_a_turn_is_fulfilled_after_two_readings_of_enough_degrees(sentence, degrees, steps) -> None:
    session, watch = Session(ToyDream()), Fulfilment(lambda: Turns(degrees), ())
    session.advance()
    assert not watch.read(session)
    session.say(sentence)
    for _ in range(steps - 1):
        session.advance()
        assert not watch.read(session)
    session.advance()
    assert watch.read(session)


def test_the_wrong_way_keys_and_other_sentences_fulfil_no_turn() -> None:
    for sentence, keys in (("turn right", ()), ("turn left", ("a",)), ("walk left", ()), ("", ())):
        session, watch = Session(ToyDream()), Fulfilment(lambda: Turns(), ())
        session.say(sentence)
        for _ in range(12):
            session.advance(keys)
            assert not watch.read(session), sentence


@pytest.mark.parametrize("how", ["rewind", "again", "restart", "fork"])
def test_it_begins_anew_with_a_sentence_or_elsewhere(how) -> None:
    session, watch = Session(ToyDream()), Fulfilment(lambda: Turns(40), ())
    session.advance()
    session.say("turn left")
    for _ in range(3):  # 120 degrees, the first reading that says so
        session.advance()
        assert not watch.read(session)
    if how == "rewind":
        session.rewind(1)
    elif how == "again":
        session.say("turn left")
    elif how == "restart":
        session.restart()
        session.advance()
        session.say("turn left")
    else:
        session.fork((Branch(say="turn left"), Branch(("w",))))
        session.advance_fork()
        session.pick(0)
    met = []
    for _ in range(4):
        session.advance()
        met.append(watch.read(session))
    assert met == [False, False, False, True]


def test_light_has_to_be_seen_otherwise_first_and_is_asked_for_now_and_then() -> None:
    session, watch = Session(world := Talker()), Fulfilment(None, OBJECTS)
    session.say(DARK)
    steps = 0
    while not watch.read(session):
        session.advance()
        steps += 1
        assert steps < 40
    # Read at steps 1, 7 (dark), 13 and 19 (no longer): two readings that say so.
    assert steps == 1 + 3 * EVERY
    assert world.asked == [LIGHT] * 4

    session, watch = Session(Talker()), Fulfilment(None, OBJECTS)
    for _ in range(10):
        session.advance()
    session.say(DARK)  # where it never was dark
    for _ in range(40):
        session.advance()
        assert not watch.read(session)


def test_an_object_is_asked_for_one_question_a_step() -> None:
    session, watch = Session(world := Talker()), Fulfilment(None, OBJECTS)
    ahead, near = (question for question, _ in goals(False, OBJECTS)["go to the red torch"].asked)
    session.say("go to the red torch")
    seen = {
        0: {ahead: "a wall"},
        2: {ahead: "a red torch", near: "far"},
        9: {near: "near"},
        17: {ahead: "a blue pillar"},
        24: {ahead: "a red torch"},
    }
    asked = []
    for step in range(1, 40):
        world.sees |= seen.get(step - 1, {})
        before = len(world.asked)
        session.advance()
        met = watch.read(session)
        asked.append(tuple(world.asked[before:]))
        assert len(asked[-1]) <= 1
        if met:
            break
    said = [question for step in asked for question in step]
    far, reached, other = [ahead, near], [ahead, near], [ahead]
    assert said == [ahead, *far, *reached, *other, *reached, *reached]
    assert asked[0]
    assert asked[EVERY]
    assert not any(asked[1:EVERY])


def test_only_a_reader_that_is_there_whole_and_fits_is_used(tmp_path) -> None:
    def watch(spec) -> tuple[bool, list[bool]]:
        checkpoint = SimpleNamespace(folder=tmp_path, spec=spec)
        watch = Fulfilment.of(SimpleNamespace(checkpoint=checkpoint))
        session, met = Session(ToyDream()), []
        session.say("turn left")
        for _ in range(4):
            session.advance()
            met.append(watch.read(session, None))
        return watch._reader is not None, met

    path = tmp_path / "pose.safetensors"
    assert watch(ToyDream.spec) == (False, [False] * 4)
    save_reader(PoseReader(48, 64), path)
    assert watch(ToyDream.spec)[0]
    assert watch(replace(ToyDream.spec, width=32)) == (False, [False] * 4)
    path.write_bytes(b"torn")
    assert watch(ToyDream.spec) == (False, [False] * 4)


# The engine


def _until(engine: Engine, met, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not met(engine.snapshot):
        assert engine.snapshot.failure is None
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def _replayed(load, path: Path, **options) -> Session:
    """Play a session file as `worldmodel play session=` does."""
    engine = Engine(load, lockstep=True, **options)
    player = SessionPlayer(read_session(path).commands)
    engine.start()
    try:
        _until(engine, lambda now: player.tick(engine, now, 0.0))
    finally:
        assert engine.stop()
    assert engine.session
    return engine.session


def _lived(load, path: Path, sentence: str, **options) -> tuple[Session, list[str]]:
    """Play until a sentence is fulfilled, and a little on; returns the notices as well."""
    notices: list[str] = []
    engine: Engine
    engine = Engine(
        load,
        fulfil=True,
        journal=lambda world: Journal(path, Head()),
        on_change=lambda: notices.append(engine.snapshot.notice),
        **options,
    )
    engine.post(Say(sentence))
    engine.start()
    try:
        _until(engine, lambda now: now.instruction == sentence)
        _until(engine, lambda now: not now.instruction)
        done = engine.snapshot.steps_done
        _until(engine, lambda now: now.steps_done > done + 3)
    finally:
        assert engine.stop()
    assert engine.session
    return engine.session, list(dict.fromkeys(notices))


def _same(session: Session, again: Session) -> None:
    assert list(session.tree) == list(again.tree)
    for node in session.tree:
        frames = session.film.whole(node.id), again.film.whole(node.id)
        assert frames[0] is not None
        assert np.array_equal(*frames), node.id  # type: ignore[arg-type]


def test_the_engine_drops_what_is_fulfilled_says_so_and_the_session_plays_again(tmp_path) -> None:
    path = tmp_path / "s.jsonl"
    session, notices = _lived(Talker, path, DARK, fps=200)
    assert f"done: {DARK}" in notices
    commands = read_session(path).commands
    assert [c.text for c in commands if isinstance(c, Say)] == [DARK, ""]
    assert isinstance(commands[-1], Advance)
    _same(session, _replayed(Talker, path, fulfil=True))
    scenario = scenario_of(session.tree, session.at, Head(), session.start_of(session.at))
    assert [event for event in scenario["events"] if "clear" in event] == [
        {"at": 1 + 3 * EVERY, "clear": True}
    ]


@pytest.mark.parametrize("options", [{"lockstep": True, "fulfil": True}, {"lockstep": True}, {}])
def test_scripts_keep_their_timing_and_so_does_who_switched_it_off(options) -> None:
    world = Talker()
    engine = Engine(lambda: world, fps=500, **options)
    engine.post(Say(DARK))
    for _ in range(40 if options else 0):
        engine.post(Advance())
    engine.start()
    try:
        _until(engine, lambda now: now.steps_done >= 40)
        assert engine.snapshot.instruction == DARK
        assert world.asked == []
    finally:
        assert engine.stop()


def test_a_world_without_a_model_keeps_its_instruction() -> None:
    engine = Engine(ToyDream, fps=500, fulfil=True)
    engine.post(Say("turn left"))
    engine.start()
    try:
        _until(engine, lambda now: now.steps_done >= 40)
        assert engine.snapshot.instruction == "turn left"
    finally:
        assert engine.stop()


def test_the_shipped_model_turns_left_and_is_done(tmp_path) -> None:
    def load() -> Dream:
        return Dream.load("doom-nano", device="cpu", dtype="float32")

    path = tmp_path / "s.jsonl"
    session, notices = _lived(load, path, "turn left")
    assert "done: turn left" in notices
    steps = [node for node in session.tree if node.instruction == "turn left"]
    assert 8 <= len(steps) <= 32  # 8 of 11.25 degrees are 90
    _same(session, _replayed(load, path))


def test_asking_the_shipped_model_changes_no_frame() -> None:
    def imagined(watched: bool) -> list[np.ndarray]:
        dream = Dream.load("doom-nano", device="cpu", dtype="float32")
        session, watch = Session(dream, 2), Fulfilment.of(dream.engine)
        session.say("go to the red torch")
        frames = []
        for _ in range(EVERY + 3):
            frames.append(session.advance().frame)
            if watched:
                watch.read(session)
        return frames

    assert np.array_equal(imagined(True), imagined(False))
