"""`worldmodel play remote=`: a real window under Xvfb on a real server, and its engine alone."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path as FilePath

import numpy as np
import pytest

from worldmodel.cli import compose
from worldmodel.cli import main as cli
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import load_scenario, parse_scenario
from worldmodel.viewer.commands import (
    Advance,
    Branch,
    Chart,
    Experts,
    Fork,
    Jump,
    Name,
    Pause,
    Pick,
    Restart,
    Rewind,
    Say,
)
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.journal import to_yaml
from worldmodel.viewer.remote import Address, RemoteEngine
from worldmodel.viewer.remote_play import main
from worldmodel.viewer.remote_wire import Hold

toy = runpy.run_path(str(FilePath(__file__).with_name("serve_toy.py")))
Server, Wire, until = toy["Server"], toy["Wire"], toy["until"]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator:
    folder = tmp_path_factory.mktemp("serve")
    checkpoint = toy["save_tiny"](folder)
    running = Server(folder, f"checkpoint={checkpoint}", "port=0", "fps=10", "grace_s=2")
    yield running
    assert running.stop() == 0


@pytest.fixture
def wire(server) -> Iterator:
    between = Wire(server.address)
    yield between
    between.close()


@contextlib.contextmanager
def playing(address: str, inputs: list | None = None, **settings) -> Iterator[RemoteEngine]:
    """An engine without a window; `inputs` gets the time of each input that was answered."""

    def changed() -> None:
        if inputs is not None and engine.snapshot.input_s:
            inputs.append(engine.snapshot.input_s)

    engine = RemoteEngine(Address.parse(address), on_change=changed, **settings)
    engine.start()
    try:
        yield engine
    finally:
        assert engine.stop(20)


def test_an_engine_elsewhere_is_played_like_one_here(wire):
    steps, inputs = [], []
    with playing(wire.address, inputs, start=1, on_step=steps.append) as engine:
        now = until(lambda: engine.snapshot.steps_done > 3 and engine.snapshot)
        assert now.info.name == "tiny"
        assert now.info.spec.actions.keys == ("w", "s", "a", "d")
        assert now.start == 1
        assert [moment.number for moment in now.timeline] == sorted(
            {moment.number for moment in now.timeline}
        )
        engine.hold(("w",))
        until(lambda: engine.snapshot.now.text == "action: w")
        assert len(inputs) == 1  # the frame that answers the key, once
        until(lambda: engine.round_trip_ms)
        assert "ms there and back" in engine.about()
        engine.hold(())
        engine.post(Pause(True))
        number = until(lambda: engine.snapshot.status == "paused" and engine.snapshot).now.number
        engine.post(Rewind(2))
        until(lambda: engine.snapshot.now.number == number - 2)
        assert engine.snapshot.timeline[-1].number == number - 2
        engine.post(Experts())
        assert "from afar" in until(lambda: engine.snapshot.notice)
        assert {moment.text for moment in steps} >= {"action: none", "action: w"}
    assert isinstance(wire.said[0], toy["Hello"])


def test_a_broken_connection_is_told_and_mended_with_the_same_session(wire):
    with playing(wire.address) as engine:
        until(lambda: engine.snapshot.steps_done > 2)
        engine.hold(("w",))
        until(lambda: engine.snapshot.now.text == "action: w")
        number = engine.snapshot.now.number
        wire.cut()
        notice = until(lambda: engine.snapshot.notice)
        assert notice.startswith(f"No connection to {wire.address}")
        assert engine.about() == f"{wire.address}: not connected"
        engine.post(Say("turn right"))  # nobody hears it, and nobody waits
        until(lambda: "There is no connection" in engine.snapshot.notice)
        wire.mend()
        until(lambda: engine.round_trip_ms and engine.snapshot.now.number > number + 2)
        assert engine.snapshot.now.text == "action: w"  # the key is still held

        wire.cut()
        time.sleep(4)  # longer than the server keeps it
        wire.mend()
        until(lambda: "this is a new one" in engine.snapshot.notice)
        done = engine.snapshot.steps_done
        until(lambda: engine.snapshot.steps_done > done)  # counts on, though the session is new


def test_the_map_a_clip_and_a_path_come_over_the_wire(wire, tmp_path):
    kept = []

    def keep(scenario, name) -> str:
        kept.append((scenario, name))
        return f"kept {name}"

    with playing(wire.address, start=1, on_path=keep, keeps=16) as engine:
        until(lambda: engine.snapshot.steps_done > 2)
        engine.hold(("w",))
        until(lambda: engine.snapshot.now.text == "action: w")
        engine.hold(())
        engine.post(Fork((Branch(("a",)), Branch(("d",)))))
        futures = until(
            lambda: len(now := engine.snapshot.futures) == 2 and now[1].steps > 2 and now
        )
        left = futures[0].now.node
        engine.post(Pick(1))
        until(lambda: not engine.snapshot.futures)
        # What came of the branch that was taken is a part of the path here as well.
        shown = [moment.text for moment in engine.past.timeline]
        assert "action: d" in shown
        assert "action: a" not in shown
        assert len(engine.past.clip(16)) > 4
        assert len(engine.past.clip(2)) == 2
        engine.post(Chart(True))
        stops = until(lambda: engine.snapshot.chart)
        assert all(stop.picture is not None for stop in stops)
        end = next(stop for stop in stops if stop.text == "action: a")
        engine.post(Name(end.node, "red door"))
        until(lambda: any(stop.name == "red door" for stop in engine.snapshot.chart))
        wire.cut()
        until(lambda: engine.round_trip_ms is None)
        wire.mend()
        until(lambda: engine.round_trip_ms)
        engine.post(Pause(True))
        # The map is still open here, so it is there again.
        until(lambda: any(stop.picture is not None for stop in engine.snapshot.chart))
        engine.post(Jump(end.node))
        until(lambda: engine.snapshot.now.node == end.node)
        assert end.node >= left
        assert engine.snapshot.timeline[-1].node == end.node
        assert all(moment.text != "action: d" for moment in engine.snapshot.timeline)
        engine.ask_path(None)
        until(lambda: kept)
        until(lambda: engine.snapshot.notice == "kept red door")
        scenario, name = kept[0]
        assert name == "red door"
        assert parse_scenario(scenario).start.seed == 1
        engine.ask_path(10**6)
        until(lambda: "There is no node" in engine.snapshot.notice)


def test_a_kept_path_plays_again_here(wire, server, tmp_path):
    """The frames that were seen from afar, from the file that was kept here."""
    kept, seen = [], []
    with playing(
        wire.address, start=2, on_path=lambda scenario, _: kept.append(scenario) or "kept"
    ) as engine:
        until(lambda: engine.snapshot.now)
        engine.post(Pause(True))
        engine.post(Restart(0))
        engine.post(Pause(True))
        until(lambda: engine.snapshot.now and engine.snapshot.status == "paused")
        until(lambda: engine.snapshot.now.number == 0)
        for number, keys in enumerate((("w",), ("w",), ("a",), ("w", "d")), start=1):
            engine.post(Advance(keys))
            until(lambda number=number: engine.snapshot.now.number == number)
            seen.append(engine.snapshot.now.frame)
        engine.ask_path(None)
        until(lambda: kept)
    file, frames = tmp_path / "path.yaml", tmp_path / "frames.npz"
    checkpoint = server.output.parent / "tiny"
    file.write_text(to_yaml(kept[0] | {"checkpoint": str(checkpoint)}))
    words = ["play", f"script={file}", "headless=true", f"frames={frames}"]
    assert cli(words) == 0
    again = np.load(frames)["frames"]
    assert len(again) == len(seen) == 4
    for mine, theirs in zip(seen, again, strict=True):
        assert np.abs(mine.astype(float) - theirs).mean() < 8  # JPEG is not exact


def test_who_finds_no_place_waits_for_one(server):
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            here = stack.enter_context(playing(server.address))
            until(lambda here=here: here.snapshot.now)
        with playing(server.address) as late:
            until(lambda: late.snapshot.notice.startswith("All sessions of this server are taken"))
            assert late.snapshot.failure is None
            assert here.stop(20)
            until(lambda: late.snapshot.now)  # by itself


def test_a_server_that_comes_back_with_another_world(tmp_path):
    """Keys that the new world has not are not held; nobody is sent away for that."""
    checkpoint = toy["save_tiny"](tmp_path)
    first = Server(tmp_path, f"checkpoint={checkpoint}", "port=0", "fps=10")
    with playing(first.address) as engine:
        until(lambda: engine.snapshot.now)
        engine.hold(("d", "w"))
        until(lambda: engine.snapshot.now.text == "action: w+d")
        assert first.stop() == 0
        config = FilePath(checkpoint) / "config.json"
        tables = config.read_text()
        renamed = tables.replace('"key": "d"', '"key": "k"')
        assert renamed != tables
        config.write_text(renamed)
        second = Server(tmp_path, f"checkpoint={checkpoint}", f"port={first.port}", "fps=10")
        until(lambda: "this is a new one" in engine.snapshot.notice)
        until(lambda: engine.snapshot.now.text == "action: w")
        assert engine.snapshot.info.spec.actions.keys == ("w", "s", "a", "k")
    assert second.stop() == 0


def test_what_is_no_server_ends_in_a_sentence():
    with playing("127.0.0.1:9") as engine:
        failure = until(lambda: engine.snapshot.failure)
        assert isinstance(failure, UserError)
        assert "No worldmodel server answers at 127.0.0.1:9: connection refused" in str(failure)
        engine.post(Restart(0))  # R tries again
        until(lambda: engine.snapshot.failure is not failure and engine.snapshot.failure)


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("gpu-box", "gpu-box:8765", "ws://gpu-box:8765/play"),
        ("10.0.0.7:99", "10.0.0.7:99", "ws://10.0.0.7:99/play"),
        ("[::1]:99", "[::1]:99", "ws://[::1]:99/play"),
        ("http://localhost:99/", "localhost:99", "ws://localhost:99/play"),
        ("wss://far.example", "far.example:443", "wss://far.example:443/play"),
    ],
)
def test_addresses(text, name, url):
    assert Address.parse(text) == Address(name, url)


def test_the_link_for_a_browser_leads_here_as_well():
    address = Address.parse("http://gpu-box:99/#open%20sesame")
    assert address == Address("gpu-box:99", "ws://gpu-box:99/play", "open sesame")
    config = compose("play", ["remote=http://gpu-box:99/#it's", "start=3"], PlayConfig)
    assert (config.remote, config.start) == ("http://gpu-box:99/#it's", 3)


@pytest.mark.parametrize("text", ["", ":99", "host:port", "ftp://host", "host:99999", "[::1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UserError, match="is no address"):
        Address.parse(text)


def test_settings_of_the_server_are_refused():
    for settings in ({"checkpoint": "x"}, {"device": "cpu"}, {"script": "x"}, {"seed": 3}):
        with pytest.raises(UserError, match=f"{next(iter(settings))}= does not go with remote="):
            main(PlayConfig(remote="localhost", **settings))


class Person:
    """A running window, with somebody at its keyboard."""

    def __init__(self, display: str, folder: FilePath, *settings: str) -> None:
        hidden = ("WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
        plain = {key: value for key, value in os.environ.items() if key not in hidden}
        self.env = plain | {"DISPLAY": display}
        self.output = folder / "output.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worldmodel", "play", *settings],
                env=self.env,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def finds_window(self) -> None:
        search = ("search", "--onlyvisible", "--pid", str(self.process.pid))
        window = until(lambda: self.do(*search) or self.process.poll() is not None)
        assert self.process.poll() is None, self.output.read_text()
        self.do("windowfocus", "--sync", str(window).split("\n")[0])

    def do(self, *words: str) -> str:
        command = ["xdotool", *words]
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip()

    def leaves(self) -> int:
        return self.process.wait(60)


@pytest.mark.display
def test_the_window_plays_on_a_server_and_outlives_the_connection(display, wire, tmp_path):
    me = Person(display, tmp_path, f"remote={wire.address}", "report=r.json", "record=film.mp4")
    me.finds_window()
    wire.sent("action: none")
    me.do("keydown", "w")
    wire.sent("action: w")
    me.do("keyup", "w")
    me.do("key", "Return")
    time.sleep(0.5)
    me.do("type", "--delay", "40", "turn right")
    me.do("key", "Return")
    wire.sent("instruction: turn right")
    me.do("key", "f")
    wire.sent("action: d")
    me.do("key", "2")
    wire.sent("action: none")
    assert Pick(1) in wire.said
    forks = [said for said in wire.said if isinstance(said, Fork)]
    assert [branch.label for branch in forks[0].branches] == ["w", "a", "d", "turn right"]
    me.do("key", "plus")  # what is the server's alone
    me.do("key", "c")
    me.do("key", "m")
    until(lambda: Chart(True) in wire.said)
    me.do("key", "k")
    until(lambda: list(tmp_path.glob("sessions/*.yaml")))
    me.do("key", "Left", "key", "Return")
    until(lambda: Chart(False) in wire.said)
    jump = next(said for said in wire.said if isinstance(said, Jump))
    assert jump.node >= 0
    me.do("key", "space")  # after a jump time stands still
    me.do("keydown", "s")
    wire.sent("action: s")

    wire.cut()
    me.do("keyup", "s")
    time.sleep(1.5)
    wire.mend()
    wire.sent("action: none")  # it came back by itself, and knows that the key is up
    assert Hold(("s",)) not in wire.said[-3:]
    me.do("key", "Escape")
    assert me.leaves() == 0, me.output.read_text()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["checkpoint"] == "tiny"
    assert report["latency_ms"]["median"] > 0
    texts = [event["text"] for event in report["events"]]
    assert {"action: w", "instruction: turn right", "action: s"} <= set(texts)
    assert (tmp_path / "film.mp4").stat().st_size
    assert "Traceback" not in me.output.read_text()
    clips = [path.suffix for path in sorted(tmp_path.glob("recordings/*-clip.*"))]
    assert clips == [".gif", ".mp4", ".png"]
    [kept] = tmp_path.glob("sessions/*.yaml")
    scenario = load_scenario(kept)
    assert scenario.checkpoint == "tiny"
    assert scenario.steps > 3
    assert {event.kind for event in scenario.events} >= {"hold", "say"}


@pytest.mark.display
def test_a_window_without_a_server_says_so(display, tmp_path):
    me = Person(display, tmp_path, "remote=127.0.0.1:9")
    assert me.leaves() == 2
    assert "No worldmodel server answers at 127.0.0.1:9" in me.output.read_text()
