"""A real server process and real WebSocket viewers, good ones and bad ones."""

import contextlib
import http.client
import json
import re
import runpy
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from urllib.parse import quote

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from worldmodel.dream import Dream
from worldmodel.viewer.commands import (
    Advance,
    Ask,
    Branch,
    Fork,
    Leave,
    Pause,
    Pick,
    Restart,
    Rewind,
    Say,
)
from worldmodel.viewer.remote_wire import MAX_MESSAGE, Bye, Hello, Hold, Ping, say
from worldmodel.viewer.serve import SPARE_CONNECTIONS

toy = runpy.run_path(str(FilePath(__file__).with_name("serve_toy.py")))
Server, Viewer, dial, until = toy["Server"], toy["Viewer"], toy["dial"], toy["until"]
TOKEN = "open sesame, please"
MOST = 2 * 3 + SPARE_CONNECTIONS
"""Connections that the server with three places takes."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return toy["save_tiny"](tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory) -> Iterator:
    """Three places, no token: for this machine alone."""
    folder = tmp_path_factory.mktemp("serve")
    settings = ("port=0", "sessions=3", "fps=20", "quality=95", "grace_s=15")
    running = Server(folder, f"checkpoint={tiny}", *settings)
    yield running
    assert running.stop() == 0
    assert running.text.endswith("stopped\n")
    assert "Traceback" not in running.text


@pytest.fixture(scope="module")
def guarded(tiny, tmp_path_factory) -> Iterator:
    """One place, behind a token; who leaves or sleeps loses it soon."""
    settings = ("port=0", "sessions=1", "fps=20", "grace_s=2", "idle_s=2")
    folder = tmp_path_factory.mktemp("serve")
    running = Server(folder, f"checkpoint={tiny}", *settings, WORLDMODEL_TOKEN=TOKEN)
    yield running
    assert running.stop() == 0


@pytest.fixture
def viewer(server) -> Iterator:
    """Starts viewers, and lets them leave."""
    here = []

    def start(**hello):
        here.append(Viewer(server.address, **hello))
        return here[-1]

    yield start
    for one in here:
        one.leave()


def test_keys_sentences_and_commands_drive_the_model(viewer):
    me = viewer(start=1)
    hello = json.loads(me.told('"welcome"'))
    assert hello["resumed"] is False
    assert hello["model"]["name"] == "tiny"
    assert hello["keys"]["left"] == "a"
    me.sees(lambda now: now.now.text == "action: none")
    me.say(Hold(("w",)), 7)
    me.sees(lambda now: now.now.text == "action: w")
    assert me.shot.input == 7  # this frame answers that key
    me.say(Hold(("w", "a")))
    me.sees(lambda now: now.now.text == "action: w+a")
    me.say(Hold())
    me.say(Say("turn  right"))
    me.sees(lambda now: now.now.text == "instruction: turn right")
    assert me.shot.snapshot.instruction == "turn right"
    me.say(Ask("what is ahead?"))
    answer = me.sees(lambda now: now.answer).answer
    assert answer.question == "what is ahead?"
    me.say(Say(""))
    me.say(Pause(True))
    number = me.sees(lambda now: now.status == "paused" and not now.instruction).now.number
    me.say(Advance(("d",)))
    now = me.sees(lambda now: now.now.number > number)
    assert (now.now.number, now.now.text, now.status) == (number + 1, "action: d", "paused")
    me.say(Rewind(3))
    assert me.sees(lambda now: now.now.number < number).now.number == number - 2
    me.say(Restart(1))
    now = me.sees(lambda now: now.start == 2)
    assert now.now.number == 0


def test_futures_run_side_by_side_and_one_is_taken(viewer):
    me = viewer()
    me.sees(lambda now: now.steps_done)
    branches = (Branch(("w",)), Branch(("a",)), Branch(say="turn right"))
    me.say(Fork(branches))
    now = me.sees(lambda now: now.futures and now.futures[0].steps > 2)
    assert tuple(future.branch for future in now.futures) == branches
    assert [future.now.text for future in now.futures] == [
        "action: w",
        "action: a",
        "instruction: turn right",
    ]
    me.say(Fork((*branches, Branch(("d",)))))
    me.sees(lambda now: len(now.futures) == 4)
    me.say(Pick(2))
    assert me.sees(lambda now: not now.futures).instruction == "turn right"
    me.say(Fork(branches))
    number = me.sees(lambda now: now.futures and now.futures[0].steps > 2).now.number
    me.say(Leave())
    assert me.sees(lambda now: not now.futures).now.number == number


def test_the_frames_are_those_of_the_dream(viewer, tiny):
    me = viewer(start=2)
    me.say(Pause(True))
    me.say(Restart(0))
    me.say(Pause(True))
    frame = me.sees(lambda now: now.now.number == 0 and now.status == "paused").now.frame
    dream = Dream.load(tiny)
    assert _near(frame, dream.reset(2).frame)
    me.say(Advance(("a",)))
    frame = me.sees(lambda now: now.now.number == 1).now.frame
    assert _near(frame, dream.step(dream.spec.actions.press(["a"])).frame)


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.abs(a.astype(float) - b).mean() < 8  # JPEG is not exact


def test_each_viewer_has_a_rollout_of_its_own(viewer):
    one, two = viewer(start=0), viewer(start=1)
    one.say(Hold(("w",)))
    two.say(Hold(("s",)))
    first = one.sees(lambda now: now.now.text == "action: w")
    second = two.sees(lambda now: now.now.text == "action: s")
    assert (first.start, second.start) == (0, 1)
    two.say(Pause(True))
    two.sees(lambda now: now.status == "paused")
    one.sees(lambda now: now.steps_done > first.steps_done + 3)


def test_who_is_one_too_many_is_told_so_and_comes_in_when_one_leaves(viewer, server):
    here = [viewer() for _ in range(3)]
    for one in here:
        one.sees(lambda now: now.now)
    late = Viewer(server.address)
    assert late.closed() == (4503, "All sessions of this server are taken.")
    here[0].say(Bye())
    assert here[0].closed()[0] == 1000
    viewer().sees(lambda now: now.now)


def test_who_comes_back_gets_its_rollout_back(viewer):
    me = viewer(start=1)
    session = json.loads(me.told('"welcome"'))["session"]
    me.say(Hold(("w",)))
    left = me.sees(lambda now: now.now.text == "action: w" and now.now.number > 4)
    me.drop()
    again = viewer(session=session)
    assert json.loads(again.told('"welcome"'))["resumed"] is True
    now = again.sees(lambda now: now.now.text == "action: none")  # the key is up, and time goes on
    assert now.start == 1
    assert now.now.number > left.now.number

    other = viewer(session=session)  # from another window
    other.sees(lambda now: now.now)
    assert again.closed()[0] == 4409
    other.sees(lambda now: now.steps_done > now.now.number - 1)
    assert json.loads(viewer(session="nobody").told('"welcome"'))["resumed"] is False


# Those who do not behave. Somebody else plays all the time, and must not notice.


@pytest.fixture
def witness(viewer) -> Iterator[None]:
    me = viewer(start=2)
    me.say(Hold(("d",)))
    first = me.sees(lambda now: now.now.text == "action: d")
    over = threading.Event()
    gone: list[Exception] = []

    def play() -> None:
        try:
            while not over.is_set():
                me.hears()
        except Exception as error:
            gone.append(error)

    thread = threading.Thread(target=play)
    thread.start()
    yield
    steps = me.shot.snapshot.steps_done
    until(lambda: me.shot.snapshot.steps_done > steps + 2 or gone)
    over.set()
    thread.join(60)
    assert not gone
    assert me.shot.snapshot.steps_done > first.steps_done


def rest(connection) -> tuple[int, str]:
    """How the server hangs up."""
    try:
        while True:
            connection.recv(60)
    except ConnectionClosed as error:
        return (error.rcvd.code, error.rcvd.reason) if error.rcvd else (1006, "")


HELLO = say(Hello())
BAD = {
    "no JSON": "w",
    "a list": "[1]",
    "bytes": b"\x00\x01",
    "no number": '{"ping": NaN}',
    "no end": '{"ping": 1e999}',
    "no end of digits": '{"ping": ' + "9" * 4000 + "}",
    "deep": "[" * 8000,
    "a huge number": '{"rewind": ' + "9" * 5000 + "}",
    "no such verb": '{"fly": true}',
    "two verbs": '{"say": "w", "rewind": 1}',
    "a wrong type": '{"hold": "w"}',
    "keys that are none": '{"hold": [1]}',
    "a key that the world has not": '{"hold": ["k"]}',
    "branches that are none": '{"fork": [{"keys": ["w"], "run": "rm"}, 3]}',
    "branches of lists": '{"fork": [{"keys": [["a"]]}, {"keys": ["w"]}]}',
    "branches of numbers": '{"fork": [{"keys": [1]}, {"keys": ["w"]}]}',
    "a branch far away": '{"pick": ' + "9" * 4000 + "}",
    "a branch that is none": '{"pick": true}',
    "a number without end": '{"restart": ' + "9" * 4000 + "}",
    "a negative count": '{"got": -1}',
    "an input that is none": '{"say": "w", "input": "first"}',
    "a second hello": HELLO,
    "what is the server's": '{"finer": true}',
    "a node that is none": '{"jump": -1}',
    "a path that is none": '{"scenario": "all"}',
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_message_is_refused(server, witness, what):
    with dial(server.address) as connection:
        connection.send(HELLO)
        connection.send(BAD[what])
        code, reason = rest(connection)
    assert code == 4400
    assert reason.startswith("Refused: ")


def test_without_a_hello_nothing_is_to_be_had(server, witness):
    with dial(server.address) as silent, dial(server.address) as other, dial(server.address) as old:
        other.send('{"hold": []}')
        assert rest(other)[0] == 4400
        old.send('{"hello": 0, "token": "", "session": "", "start": 0}')
        assert rest(old)[0] == 4426
        assert rest(silent) == (4400, "no hello")


def test_an_oversized_message_is_refused(server, witness):
    with dial(server.address) as connection:
        connection.send(HELLO)
        connection.send(json.dumps({"say": "x" * MAX_MESSAGE}))
        assert rest(connection)[0] == 1009


def pour(send, message) -> None:
    """Send one message again and again until the server has had enough."""
    for _ in range(200_000):
        try:
            send(message)
        except (ConnectionClosed, OSError):
            return
    pytest.fail("the server takes everything")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\xc1\x85\0\0\0\0xxxxx", 1002),  # compressed, which was not agreed upon
        (b"\x81\x05hello", 1002),  # not masked
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # no UTF-8
        (b"\x83\x80\0\0\0\0", 1002),  # of no kind
        (b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009),  # of 2**63 bytes
    ],
)
def test_what_is_no_frame_is_refused(server, witness, frame, code):
    with dial(server.address) as connection:
        connection.send(HELLO)
        session = json.loads(connection.recv(60))["session"]
        connection.socket.sendall(frame)
        assert rest(connection)[0] == code
    again = Viewer(server.address, session=session)
    assert json.loads(again.told('"welcome"'))["resumed"] is False  # the place is not kept
    again.leave()


def test_a_flood_of_messages_is_refused(server, witness):
    with dial(server.address) as connection:
        connection.send(HELLO)
        pour(connection.send, say(Ping(1.0)))
        assert rest(connection)[0] in (4429, 1006)


def test_a_flood_of_pings_and_an_endless_message_are_cut_off(server, witness):
    ping = b"\x89\xfd\x00\x00\x00\x00" + b"x" * 125
    part = b"\x01\xfe" + struct.pack(">H", 1000) + bytes(4) + b"x" * 1000  # never the last one
    for flood in (ping, part):
        with dial(server.address) as connection:
            connection.send(HELLO)
            pour(connection.socket.sendall, flood)


def test_commands_pile_up_to_a_bound(viewer, witness):
    me = viewer()
    me.sees(lambda now: now.steps_done)
    for _ in range(60):
        me.say(Restart(0))
    assert "too fast" in me.told('"notice"')
    done = me.shot.snapshot.steps_done
    me.sees(lambda now: now.steps_done > done)  # and it goes on


def test_who_does_not_read_gets_the_latest_state_later(viewer, witness):
    me = viewer()
    me.sees(lambda now: now.steps_done)
    first = me.shot.snapshot.steps_done
    me.say(Hold(("w",)))
    time.sleep(2)  # reads nothing, and says of nothing that it came
    seen = 0
    while me.shot.snapshot.steps_done < first + 15:
        me.hears()
        seen += 1
    assert seen < 15  # what was no longer new was not sent


def test_who_does_nothing_or_speaks_rubbish_is_cut_off(server, witness):
    def opened(words: bytes) -> socket.socket:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        raw.sendall(words)
        return raw

    hand = f"GET /play HTTP/1.1\r\nHost: {server.address}\r\nConnection: Upgrade\r\n" + (
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        "dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    deaf = opened(hand.encode())  # comes in, and never answers anything
    words = HELLO.encode()
    deaf.sendall(bytes([0x81, 0x80 | len(words)]) + bytes(4) + words)
    starts = (
        b"",
        b"GET / HTTP/1.1\r\nHost: x",
        b"\x16\x03 rubbish\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
    )
    for raw in (*map(opened, starts), deaf):
        with contextlib.suppress(ConnectionError):
            while raw.recv(4096):
                pass
        raw.close()


def test_a_crowd_of_silent_connections_gives_way_to_who_has_something_to_say(server, witness):
    place = ("127.0.0.1", server.port)
    crowd = [socket.create_connection(place, timeout=60) for _ in range(2 * MOST)]
    assert crowd[0].recv(1) == b""  # the oldest one was cut off
    assert _comes_in(server.address)
    for raw in crowd:
        raw.close()


def test_who_begins_session_after_session_is_slowed_down(server, witness):
    """Each begins with work for the model; those who play are not to pay for it."""
    begun, refused = 0, 0
    end = time.monotonic() + 60
    while not refused and time.monotonic() < end:
        with dial(server.address) as connection:
            connection.send(HELLO)
            connection.send(say(Bye()))
            code, reason = rest(connection)
        begun, refused = begun + (code == 1000), refused + (code == 4503)
    assert refused
    assert begun
    assert reason == "Too many sessions begin at once."
    until(lambda: _comes_in(server.address))


def _comes_in(address: str, token: str = "") -> bool:
    try:
        with dial(address) as connection:
            connection.send(say(Hello(token)))
            connection.recv(60)
            connection.send(say(Bye()))
            return True
    except (WebSocketException, OSError):
        return False


# Who may come in


def test_a_page_from_elsewhere_may_not_play_here(server):
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        with pytest.raises(InvalidStatus) as refused, dial(server.address, origin=origin):
            pass
        assert refused.value.response.status_code == 403
    with dial(server.address, origin=f"http://{server.address}"):
        pass
    # a name of somebody else's that leads to this machine
    assert _get(server.port, "/", Host="evil.example:80")[0] == 403
    assert _get(server.port, "/", Host=f"localhost:{server.port}")[0] == 200


def test_the_page_is_served_and_nothing_else(server):
    status, headers, body = _get(server.port, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "unsafe" not in headers["Content-Security-Policy"]
    folder = FilePath(__file__).parents[1] / "viewer"
    assert body == (folder / "page.html").read_bytes()
    for name in re.findall(r'(?:src|href)="(page[^"]*)"', body.decode()):
        assert _get(server.port, f"/{name}")[2] == (folder / name).read_bytes()
    assert _get(server.port, "/../pyproject.toml")[0] == 404
    assert _get(server.port, "/play")[0] == 426
    assert _get(server.port, "//[")[0] == 400
    here = f"127.0.0.1:{server.port}"
    for twice in ("Host: evil.example", f"Origin: http://{here}\r\nOrigin: http://evil.example"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
            raw.sendall(f"GET /play HTTP/1.1\r\nHost: {here}\r\n{twice}\r\n\r\n".encode())
            assert raw.recv(99).startswith(b"HTTP/1.1 400 ")


def _get(port: int, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def test_a_token_is_asked_for(guarded):
    assert TOKEN in guarded.text
    for wrong in ("", "wrong", TOKEN[:-1], TOKEN + " ", "säsam", "\ud800"):
        assert Viewer(guarded.address, wrong).closed() == (4401, "The token is wrong.")
    url = f"ws://{guarded.address}/play?token={quote(TOKEN)}"  # addresses are written down
    with connect(url, **toy["OPTIONS"]) as connection:
        connection.send(HELLO)
        assert rest(connection)[0] == 4401
    me = Viewer(guarded.address, TOKEN)
    me.sees(lambda now: now.steps_done)
    assert _get(guarded.port, "/")[0] == 200  # the page says nothing, and asks for it
    me.say(Bye())
    assert me.closed()[0] == 1000


def test_who_sleeps_is_paused_and_who_stays_away_loses_the_session(guarded):
    me = Viewer(guarded.address, TOKEN)
    session = json.loads(me.told('"welcome"'))["session"]
    now = me.sees(lambda now: now.status == "paused" and now.notice)
    assert now.notice == "Paused: no key in 2 s. Space goes on."
    time.sleep(0.5)
    me.say(Ping(0.0))
    me.told('"pong"')
    assert me.shot.snapshot.steps_done == now.steps_done  # time stands still
    me.say(Pause(None))
    me.sees(lambda after: after.steps_done > now.steps_done)
    me.drop()
    full = Viewer(guarded.address, TOKEN)  # the place is kept
    assert full.closed()[0] == 4503
    again = Viewer(guarded.address, TOKEN, session)
    assert json.loads(again.told('"welcome"'))["resumed"] is True
    again.drop()
    until(lambda: _comes_in(guarded.address, TOKEN))
    assert json.loads(Viewer(guarded.address, TOKEN, session).told('"welcome"'))["resumed"] is False
