"""The parts of remote play by themselves: messages, the shared model, what to send first."""

import asyncio
import io
import json
import runpy
import threading
from dataclasses import replace
from pathlib import Path as FilePath

import numpy as np
import pytest
from PIL import Image

from worldmodel.cli import main
from worldmodel.dream import Dream
from worldmodel.errors import UserError
from worldmodel.viewer import serve_model, serve_sessions
from worldmodel.viewer.commands import (
    Advance,
    Ask,
    Branch,
    Chart,
    Denoise,
    Drop,
    Experts,
    Fork,
    Jump,
    Leave,
    Name,
    Pause,
    Pick,
    Restart,
    Rewind,
    Say,
)
from worldmodel.viewer.instruments import Dials
from worldmodel.viewer.journal import Head
from worldmodel.viewer.obedience import Obeyed
from worldmodel.viewer.outline import Stop
from worldmodel.viewer.reading import Reading
from worldmodel.viewer.remote_shot import MOST_STOPS, Shot, cut, pack, unpack
from worldmodel.viewer.remote_wire import (
    IN_FLIGHT,
    VERSION,
    Bye,
    Got,
    Hello,
    Hold,
    Kept,
    Path,
    Ping,
    ProtocolError,
    Welcome,
    hear,
    read_server,
    say,
    welcome,
)
from worldmodel.viewer.serve import PAGE, greeting
from worldmodel.viewer.serve_config import ServeConfig, is_loopback
from worldmodel.viewer.serve_model import SharedEngine
from worldmodel.viewer.serve_sessions import MOST_UNSENT, Bucket, Outbox, Seat, Seats
from worldmodel.viewer.session import Answer, Future, Moment
from worldmodel.viewer.snapshot import Snapshot, describe

toy = runpy.run_path(str(FilePath(__file__).with_name("serve_toy.py")))


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
        Jump(3),
        Name(3, "red door"),
        Chart(True),
        Chart(False),
        Path(),
        Path(3),
    ],
)
def test_what_is_said_is_heard(said):
    assert hear(say(said)) == (said, None)
    assert hear(say(said, 12)) == (said, 12)


@pytest.mark.parametrize("said", [Denoise(True), Drop(), Experts()])
def test_commands_that_need_the_session_itself_are_not_heard(said):
    with pytest.raises(ProtocolError):
        hear(say(said))


def stop(node: int, parent: int = -1, **more) -> Stop:
    plain = {"row": 0, "column": node, "number": node, "steps": 1, "start": 0, "name": ""}
    plain |= {"label": "w", "led": "keys", "text": "action: w", "here": False, "passed": True}
    picture = np.full((6, 6, 3), 9 * node % 255, np.uint8)
    return Stop(node=node, parent=parent, picture=picture, **{**plain, **more})


def a_state(**more) -> Snapshot:
    given = {
        "serial": 9,
        "status": "playing",
        "now": moment(2),
        "futures": (Future(Branch(("w",)), moment(3, branch=1), 1),),
        "chart": (stop(0), stop(2, 0, name="red door", here=True)),
        "dials": Dials(
            True, Reading(0.01, None, 5.5, 2.25), (1.5, 2.25), obeyed=Obeyed(3, 4, "w", "w+a")
        ),
        "instruction": "go",
        "answer": Answer(1, "what?", "a wall"),
        "start": 4,
        "denoise_steps": 2,
        "steps_done": 5,
        "imagined": 4,
        "fps": 11.5,
        "step_ms": 35.2,
        "notice": "hm",
    }
    return Snapshot(**{**given, **more})


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_state_arrives_whole(kind):
    snapshot, sent, known = a_state(), set(), {}
    message = pack(Shot(snapshot, 12, 0.5, 30.5), 95, kind, sent)
    shot = unpack(message, known)
    assert (shot.input, shot.notice_age_s, shot.waited_ms) == (12, 0.5, 30.5)
    assert 0 <= shot.picture_ms < 10_000
    for mine, theirs in (
        (snapshot.now, shot.snapshot.now),
        (snapshot.futures[0].now, shot.snapshot.futures[0].now),
    ):
        assert np.abs(mine.frame.astype(int) - theirs.frame).max() <= 6
        for name in ("number", "keys", "text", "instruction", "node", "branch"):
            assert getattr(mine, name) == getattr(theirs, name)
    for name in ("serial", "status", "instruction", "answer", "start", "fps", "imagined"):
        assert getattr(snapshot, name) == getattr(shot.snapshot, name)
    assert (shot.snapshot.dials, shot.snapshot.step_ms) == (snapshot.dials, 35.2)
    for mine, theirs in zip(snapshot.chart, shot.snapshot.chart, strict=True):
        assert np.abs(mine.picture.astype(int) - theirs.picture).max() <= 6
        assert replace(mine, picture=None) == replace(theirs, picture=None)
    again = pack(Shot(snapshot, 12, 0.5), 95, kind, sent)  # small pictures are sent once
    assert len(again) < len(message)
    assert all(stop.picture is not None for stop in unpack(again, known).snapshot.chart)
    # Where nothing is measured nothing is said of trust.
    plain = unpack(pack(Shot(a_state(dials=Dials()), None, 0.0), 95))
    assert plain.snapshot.dials == Dials()


def test_a_large_map_is_cut_to_what_matters():
    roots = [stop(i, row=i, column=0) for i in range(900)]
    way, named = stop(900, 3, row=3), stop(901, 5, row=5, name="red door")
    stops = (*roots, way, named, stop(902, 900, row=3, here=True))
    kept = cut(stops, 300)
    assert len(kept) == 300
    assert [kept[kept[-1].parent].node, kept[kept[kept[-1].parent].parent].node] == [900, 3]
    assert any(one.name == "red door" for one in kept)
    assert {one.row for one in kept} == set(range(len({one.row for one in kept})))
    assert all(one.parent < i for i, one in enumerate(kept))
    assert cut(stops[:3], 300) == stops[:3]
    state = a_state(chart=(*stops[:-1], replace(stops[-1], parent=901)), futures=())
    assert len(unpack(pack(Shot(state, None, 0.0), 90)).snapshot.chart) == MOST_STOPS


def reheaded(change) -> bytes:
    """A state in whose head something was changed."""
    message = pack(Shot(a_state(), 12, 0.5), 90)
    size = int.from_bytes(message[:4], "big")
    text = change(message[4 : 4 + size])
    return len(text).to_bytes(4, "big") + text + message[4 + size :]


@pytest.mark.parametrize(
    "change",
    [
        *(lambda t, n=n: t.replace(b'"fps": 11.5', b'"fps": ' + n) for n in (b"NaN", b"1e999")),
        lambda t: t.replace(b'"number": 2', b'"number": 1e999'),
        lambda t: t.replace(b'"parent": 0', b'"parent": 1'),
        lambda t: t.replace(b'"here": true', b'"here": false'),
        lambda t: t.replace(b'"row": 0', b'"row": -1'),
        lambda t: t.replace(b'"pictures": [0, 2]', b'"pictures": [0]'),
        lambda t: b"[" * 100_000,
    ],
)
def test_a_server_with_bad_intent_is_not_believed(change):
    assert unpack(reheaded(lambda text: text)).snapshot.serial == 9
    with pytest.raises(ProtocolError):
        unpack(reheaded(change))


def test_a_small_message_with_a_huge_picture_is_not_unpacked():
    message = pack(Shot(a_state(chart=(), futures=()), None, 0.0), 90)
    size = int.from_bytes(message[:4], "big")
    for side, kind in ((20_000, "PNG"), (3_000, "JPEG"), (65_000, "JPEG")):
        file = io.BytesIO()
        blank = Image.new("L", (side, 1 if side > 30_000 else side))
        blank.save(file, kind)
        bomb = file.getvalue()
        if side > 30_000:  # one that only says so
            bomb = bomb.replace(b"\x00\x01\xfd\xe8", b"\xfd\xe8\xfd\xe8")
        head = json.loads(message[4 : 4 + size]) | {"images": [len(bomb)]}
        text = json.dumps(head).encode()
        with pytest.raises(ProtocolError):
            unpack(len(text).to_bytes(4, "big") + text + bomb)


@pytest.mark.parametrize(
    "message", [b"", b"\0\0\0\2{}", b"\0\0\0\1[", b"\xff\xff\xff\xffx", b"JPEG"]
)
def test_a_state_that_is_none_is_refused(message):
    with pytest.raises(ProtocolError):
        unpack(message)


@pytest.mark.parametrize(
    "message", ["", "{}", '{"welcome": 3}', '{"welcome": 2}', '{"pong": "x"}', '{"scenario": 1}']
)
def test_a_server_that_is_none_is_refused(message):
    with pytest.raises(ProtocolError):
        read_server(message)


def test_a_welcome_arrives_whole(tiny):
    info = describe(Dream.load(tiny))
    there = read_server(welcome(info, "id", True, 12.5))
    assert isinstance(there, Welcome)
    assert (there.session, there.resumed, there.fps) == ("id", True, 12.5)
    for name in ("spec", "name", "device", "dtype", "num_starts", "window", "phrases"):
        assert getattr(there.info, name) == getattr(info, name)


def test_a_path_arrives():
    scenario = {"steps": 3, "events": [{"at": 0, "hold": "w", "for": 3}]}
    message = json.dumps({"scenario": scenario, "name": "red door"})
    assert read_server(message) == Kept(scenario, "red door")


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


class Idle:
    """An engine that never has anything to show."""

    alive, snapshot = True, Snapshot()

    def start(self) -> None: ...

    def hold(self, keys) -> None: ...

    def post(self, command) -> None: ...

    def stop(self, timeout_s: float = 5.0) -> bool:
        assert timeout_s == 0 or not self.alive  # nobody else is to wait for it
        return True


def test_a_session_that_nobody_plays_makes_room_after_a_while(monkeypatch):
    engines = []

    def make(start, on_change) -> Idle:
        engines.append(Idle())
        return engines[-1]

    async def play() -> None:
        seats = Seats(make, 2, 120.0, 60.0, Head())
        first, second = seats.open(0), seats.open(0)
        first.sit()
        second.sit()
        second.leave()
        assert seats.open(0) == "All sessions of this server are taken."
        monkeypatch.setattr(serve_sessions, "MAKES_ROOM_S", 0.0)
        third = seats.open(0)
        assert isinstance(third, Seat)
        assert seats.find(second.id) is None
        assert seats.find(first.id) is first  # who plays stays
        # Sessions that still finish a step are not piled up, however often somebody begins.
        while isinstance(third, Seat):
            seats.end(third)
            third = seats.open(0)
        assert third == "Too many sessions begin at once."
        assert len(engines) <= 2 + serve_sessions.MOST_ENDING
        for engine in engines:
            engine.alive = False
        await seats.close()

    asyncio.run(play())


def test_what_a_new_session_costs_is_measured_and_bounded(monkeypatch):
    monkeypatch.setattr(Idle, "alive", False)

    async def play() -> int:
        seats, begun = Seats(lambda start, on_change: Idle(), 2, 120.0, 60.0, Head()), 0
        while isinstance(seat := seats.open(0), Seat):
            begun += 1
            seats.end(seat)
        return begun

    # Each is taken to cost half a second until the first one has shown what it does.
    assert asyncio.run(play()) == round(serve_sessions.OPENING_BURST_S / 0.5)


def test_the_page_speaks_this_version():
    assert f"const VERSION = {VERSION}," in PAGE["/page.js"][1].read_text(encoding="utf-8")


def test_a_bucket_gives_what_flows_in():
    bucket = Bucket(rate=0.0, most=3)
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]


@pytest.fixture
def shared(tiny, monkeypatch):
    """A shared engine that waits long for others, and how many wishes it did at a time."""
    monkeypatch.setattr(serve_model, "GATHER_S", 0.5)
    dream = Dream.load(tiny, device="cpu", dtype="float32")
    engine = SharedEngine(dream.engine)
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
    dream = Dream.load(tiny, device="cpu", dtype="float32")
    engine = SharedEngine(dream.engine)
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
        {"format": "png"},
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
