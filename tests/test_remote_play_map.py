"""The map, the paths and the instruments of sessions on a real server."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path as FilePath

import pytest

from worldmodel.viewer.commands import Advance, Branch, Chart, Fork, Jump, Name, Pick, Restart
from worldmodel.viewer.remote_wire import Hold, Path

toy = runpy.run_path(str(FilePath(__file__).with_name("serve_toy.py")))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator:
    folder = tmp_path_factory.mktemp("serve")
    running = toy["Server"](folder, f"checkpoint={toy['save_tiny'](folder)}", "port=0", "fps=20")
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.text


@pytest.fixture
def viewer(server) -> Iterator:
    """Starts viewers, and lets them leave."""
    here = []

    def start(**hello):
        here.append(toy["Viewer"](server.address, **hello))
        return here[-1]

    yield start
    for one in here:
        one.leave()


def test_the_map_has_all_futures_and_leads_anywhere(viewer):
    me, other = viewer(), viewer(start=1)
    me.sees(lambda now: now.steps_done > 2)
    me.say(Fork((Branch(("w",)), Branch(("a",)))))
    me.sees(lambda now: now.futures and now.futures[0].steps > 2)
    me.say(Pick(1))
    me.say(Chart(True))
    now = me.sees(lambda now: now.chart)
    assert now.status == "paused"
    here = next(stop for stop in now.chart if stop.here)
    assert (here.node, here.text) == (now.now.node, "action: a")
    left = next(stop for stop in now.chart if stop.text == "action: w" and not stop.passed)
    assert here.picture.shape == left.picture.shape == (16, 16, 3)
    me.say(Name(left.node, "red door"))
    now = me.sees(lambda now: any(stop.name == "red door" for stop in now.chart))
    me.say(Jump(left.node))
    now = me.sees(lambda now: now.now.node == left.node)
    assert next(stop for stop in now.chart if stop.here).name == "red door"
    me.say(Path(left.node))
    kept = json.loads(me.told('"scenario"'))
    assert kept["name"] == "red door"
    assert kept["scenario"]["start"] == {"seed": 0}
    assert kept["scenario"]["steps"] == left.number
    assert kept["scenario"]["checkpoint"] == "tiny"  # not the server's folder
    last = kept["scenario"]["events"][-1]
    assert (last["hold"], last["at"] + last["for"]) == ("w", left.number)
    me.say(Chart(False))
    me.sees(lambda now: not now.chart)

    # Nodes are a session's own, and there are no more than it has made.
    me.say(Jump(10**6))
    assert "There is no node 1000000" in me.sees(lambda now: "no node" in now.notice).notice
    other.say(Jump(left.node + 10**5))
    other.sees(lambda now: "no node" in now.notice)
    assert other.shot.snapshot.start == 1


def test_how_far_to_trust_is_measured_for_each_session(viewer):
    one, two = viewer(), viewer(start=2)
    for me in (one, two):
        me.say(Hold(("w",)))
    first = one.sees(lambda now: now.dials.trust).dials
    assert first.measures
    assert not first.calibrating
    assert len(first.trend) == 1
    second = two.sees(lambda now: now.dials.trust).dials.trust
    assert second != first.trust
    assert first.trust.instability is not None  # two passes, its own of the batch
    one.say(Restart(0))  # somewhere else: what was read counts no more
    one.sees(lambda now: now.dials.trust is None)
    one.say(Hold(("a",)), 5)
    one.sees(lambda now: now.now.text == "action: a")
    assert one.shot.input == 5
    assert 0 <= one.shot.waited_ms < 10_000
    assert 0 < one.shot.picture_ms < 10_000


def test_a_map_that_was_left_open_is_not_sent_to_who_comes_next(viewer):
    me = viewer()
    session = json.loads(me.told('"welcome"'))["session"]
    me.sees(lambda now: now.steps_done)
    me.say(Chart(True))
    me.sees(lambda now: now.chart)
    again = viewer(session=session)
    assert not again.sees(lambda now: not now.chart).chart
    again.say(Hold(("w",)))
    again.say(Advance(("w",)))
    assert not again.sees(lambda now: now.now.text == "action: w").chart
