"""The parts of remote play by themselves: messages, the shared model, what to send first."""

import asyncio
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.cli import main
from worldmodel.dream import Dream
from worldmodel.errors import UserError
from worldmodel.viewer import serve_model
from worldmodel.viewer.commands import (
    Advance,
    Ask,
    Branch,
    Fork,
    Jump,
    Leave,
    Pause,
    Pick,
    Restart,
    Rewind,
    Say,
)
from worldmodel.viewer.remote_wire import (
    IN_FLIGHT,
    VERSION,
    Bye,
    Got,
    Hello,
    Hold,
    Ping,
    ProtocolError,
    Shot,
    Welcome,
    hear,
    pack,
    read_server,
    say,
    unpack,
    welcome,
)
from worldmodel.viewer.serve import PAGE, Bucket, greeting
from worldmodel.viewer.serve_config import ServeConfig, is_loopback
from worldmodel.viewer.serve_model import SharedEngine
from worldmodel.viewer.serve_sessions import MOST_UNSENT, Outbox
from worldmodel.viewer.session import Answer, Future, Moment
from worldmodel.viewer.snapshot import Snapshot, describe

toy = runpy.run_path(str(Path(__file__).with_name("serve_toy.py")))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return toy["save_tiny"](tmp_path_factory.mktemp("model"))


def moment(number: int, **more) -> Moment:
    frame = np.full((8, 12, 3), 20 * number, np.uint8)
    return Moment(number, frame, ("w",), "action: w", "go", node=number + 3, **more)


@pytest.mark.parametrize(
    "said",
    [
        Hello("säsam", "id", 3),
        Hold(("w", "a")),
        Got(7),
        Ping(0.25),
        Bye(),
        Pause(None),
        Pause(True),
        Say("turn right"),
        Ask("what is ahead?"),
        Advance(("w",)),
        Rewind(3),
        Restart(-1),
        Fork((Branch(("w",)), Branch(say="turn right"))),
        Pick(2),
        Leave(),
    ],
)
def test_what_is_said_is_heard(said):
    assert hear(say(said)) == (said, None)
    assert hear(say(said, 12)) == (said, 12)


@pytest.mark.parametrize("said", [Jump(3)])
def test_commands_that_need_the_session_itself_are_not_heard(said):
    with pytest.raises(ProtocolError):
        hear(say(said))


def test_a_state_arrives_whole():
    snapshot = Snapshot(
        serial=9,
        status="playing",
        now=moment(2),
        futures=(Future(Branch(("w",)), moment(3, branch=1), 1),),
        instruction="go",
        answer=Answer(1, "what?", "a wall"),
        start=4,
        denoise_steps=2,
        steps_done=5,
        fps=11.5,
        step_ms=35.25,
        notice="hm",
    )
    shot = unpack(pack(Shot(snapshot, 12, 0.5), quality=95))
    assert (shot.input, shot.notice_age_s) == (12, 0.5)
    for mine, theirs in (
        (snapshot.now, shot.snapshot.now),
        (snapshot.futures[0].now, shot.snapshot.futures[0].now),
    ):
        assert np.abs(mine.frame.astype(int) - theirs.frame).max() <= 2
        for name in ("number", "keys", "text", "instruction", "node", "branch"):
            assert getattr(mine, name) == getattr(theirs, name)
    for name in ("serial", "status", "instruction", "answer", "start", "denoise_steps", "fps"):
        assert getattr(snapshot, name) == getattr(shot.snapshot, name)


@pytest.mark.parametrize(
    "message", [b"", b"\0\0\0\2{}", b"\0\0\0\1[", b"\xff\xff\xff\xffx", b"JPEG"]
)
def test_a_state_that_is_none_is_refused(message):
    with pytest.raises(ProtocolError):
        unpack(message)


@pytest.mark.parametrize("message", ["", "{}", '{"welcome": 2}', '{"welcome": 1}', '{"pong": "x"}'])
def test_a_server_that_is_none_is_refused(message):
    with pytest.raises(ProtocolError):
        read_server(message)


def test_a_welcome_arrives_whole(tiny):
    info = describe(Dream.load(tiny))
    there = read_server(welcome(info, "id", True))
    assert isinstance(there, Welcome)
    assert (there.session, there.resumed) == ("id", True)
    for name in ("spec", "name", "device", "dtype", "num_starts", "phrases"):
        assert getattr(there.info, name) == getattr(info, name)


def test_states_wait_for_room_and_the_latest_one_is_sent():
    async def play() -> None:
        outbox = Outbox()
        for serial in range(1, 20):
            outbox.show(Shot(Snapshot(serial=serial), serial if serial == 18 else None, 0.0))
            if serial <= IN_FLIGHT:
                assert (await outbox.next()).snapshot.serial == serial
        with pytest.raises(TimeoutError):  # too many are on their way
            await asyncio.wait_for(outbox.next(), 0.05)
        outbox.put("pong")
        assert await outbox.next() == "pong"  # small messages overtake
        outbox.got(2)
        shot = await outbox.next()
        assert shot.snapshot.serial == 19
        assert shot.input == 18  # of a state that was left out: its input is answered as well
        for i in range(MOST_UNSENT + 1):
            outbox.put(str(i))
        assert outbox.stuck

    asyncio.run(play())


def test_the_page_speaks_this_version():
    assert f"const VERSION = {VERSION}," in PAGE.read_text(encoding="utf-8")


def test_a_bucket_gives_what_flows_in():
    bucket = Bucket(rate=0.0, most=3)
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]


@pytest.fixture
def shared(tiny, monkeypatch):
    """A shared engine that waits long for others, and how many wishes it did at a time."""
    monkeypatch.setattr(serve_model, "GATHER_S", 0.5)
    dream = Dream.load(tiny, device="cpu", dtype="float32")
    engine = SharedEngine(dream.engine.checkpoint, dream.engine.device, dream.engine.dtype)
    teams = []
    done = engine._do
    monkeypatch.setattr(engine, "_do", lambda wishes: teams.append(len(wishes)) or done(wishes))
    yield engine, teams
    engine.close()


def test_rollouts_are_stepped_in_one_batch_and_stay_their_own(shared, tiny):
    engine, teams = shared
    keys = ("w", "a", "s")
    found, steps, together = {}, 12, threading.Barrier(3)

    def play(i: int) -> None:
        dream = Dream(engine, guidance=2.0 if i else 1.0)
        dream.reset(i)
        if i == 2:
            dream.say("turn right")
        together.wait(60)
        for _ in range(steps):
            step = dream.step(dream.spec.actions.press([keys[i]]))
        found[i] = step.frame, dream.answer("what is ahead?")

    threads = [threading.Thread(target=play, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert teams.count(3) > 6  # of 12 steps and 12 pictures each
    for i in range(3):
        alone = Dream.load(tiny, device="cpu", dtype="float32", guidance=2.0 if i else 1.0)
        alone.reset(i)
        if i == 2:
            alone.say("turn right")
        for _ in range(steps):
            step = alone.step(alone.spec.actions.press([keys[i]]))
        assert np.abs(found[i][0].astype(int) - step.frame).max() <= 1
        assert found[i][1] == alone.answer("what is ahead?")


def test_a_step_that_fails_harms_no_other_one(shared):
    engine, _ = shared
    good, bad = Dream(engine), Dream(engine)
    good.reset(0)
    bad.reset(1)
    wrong = bad._stream.latent.new_zeros(2, 1, 3, 3)
    failures = []

    def fail() -> None:
        try:
            engine.follow([bad._stream], [[]], wrong)
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=fail)
    thread.start()
    step = good.step(good.spec.actions.press(["w"]))
    thread.join()
    assert step.frame.shape == (16, 16, 3)
    assert len(failures) == 1


def test_a_closed_model_answers_nobody(tiny):
    dream = Dream.load(tiny)
    engine = SharedEngine(dream.engine.checkpoint, torch.device("cpu"), torch.float32)
    engine.close()
    with pytest.raises(RuntimeError, match="no longer served"):
        Dream(engine).reset()


def test_a_dream_keeps_no_more_history_than_it_is_told(tiny):
    dream = Dream.load(tiny)
    dream.history = 3
    (other,) = dream.fork(1)
    for _ in range(6):
        other.step(None)
    other.rewind(100)
    assert other.length == 4


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *((host, True) for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9")),
        *((host, False) for host in ("0.0.0.0", "::", "gpu-box", "", "10.0.0.1")),
    ],
)
def test_what_is_this_machine_alone(host, ours):
    assert is_loopback(host) is ours


def test_the_greeting_says_how_to_come_in(tiny):
    info = describe(Dream.load(tiny))
    lines = greeting(ServeConfig(host="0.0.0.0"), 99, "secret", info)
    assert any(line.endswith(":99/#secret") for line in lines)
    assert any(line.endswith(":99 token=secret") for line in lines)
    assert any("SSH" in line for line in lines)
    assert "SSH" not in " ".join(greeting(ServeConfig(host="[::1]"), 99, "", info))
    assert "http://[::1]:99/" in " ".join(greeting(ServeConfig(host="[::1]"), 99, "", info))


@pytest.mark.parametrize(
    "settings",
    [
        *({"port": -1}, {"sessions": 0}, {"quality": 0}, {"fps": 0}, {"fps": 500}),
        *({"token": "short"}, {"denoise_steps": 0}, {"history": 0}, {"idle_s": 0}),
        {"grace_s": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError):
        ServeConfig(**settings)


def test_an_address_that_is_taken_or_not_ours_is_a_sentence(capsys, tiny):
    for host in ("192.0.2.1", "no-such-host.invalid"):
        assert main(["serve", f"checkpoint={tiny}", f"host={host}", "port=0"]) == 2
        assert f"Cannot listen at {host}" in capsys.readouterr().err
