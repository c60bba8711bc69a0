"""What the viewer draws, in windows of any size: the frame, a fork, the map; and a gamepad."""

import os
import runpy
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame
from pygame import Rect

from worldmodel.viewer.beside import Sight
from worldmodel.viewer.commands import Branch
from worldmodel.viewer.draw import draw, thumbs
from worldmodel.viewer.engine import Snapshot, describe
from worldmodel.viewer.forkview import tiles
from worldmodel.viewer.gauges import meter_place
from worldmodel.viewer.instruments import Dials
from worldmodel.viewer.layout import make_layout
from worldmodel.viewer.mapview import map_places
from worldmodel.viewer.outline import outline
from worldmodel.viewer.pad import Pad
from worldmodel.viewer.reading import Reading
from worldmodel.viewer.routing import Routing
from worldmodel.viewer.session import Session
from worldmodel.viewer.textbox import TextBox
from worldmodel.viewer.view import ViewState

ToyDream = runpy.run_path(str(Path(__file__).with_name("viewer_toy.py")))["ToyDream"]

HELP = (("w", "walk forward"), ("Backspace", "a meaning that is long " * 9)) * 20
W, A, TURN = Branch(("w",)), Branch(("a",)), Branch(say="turn right")


@pytest.fixture(scope="module", autouse=True)
def fonts():
    pygame.font.init()


def a_view():
    session = Session(ToyDream())
    for step in range(30):
        session.advance(("w",) if step % 2 else ())
    session.say("turn right")
    session.advance()
    snapshot = Snapshot(
        status="playing",
        info=describe(session.world),
        now=session.now,
        timeline=session.timeline(40),
        instruction=session.instruction,
        denoise_steps=4,
        fps=11.5,
        step_ms=40.0,
    )
    return ViewState(snapshot, held=("w",), latency_ms=50.0, step_times_ms=(40.0, 90.0))


def all_dials():
    """The instruments at rest, with every light, and with experts of small and large models."""
    yield Dials(measures=True)
    for score in (0.0, 4.0, 4.01, 16.0, 1e9):
        yield Dials(True, Reading(0.1, None, score, 1e6), (0.0, 1e6) * 40)
    yield Dials(True, watching=True)
    for layers, experts in ((1, 1), (6, 12), (64, 300)):
        picks = ((0,) * experts, tuple(range(experts)))
        yield Dials(True, watching=True, routing=Routing((picks,) * layers))


def all_beside(view):
    """The real world beside the dream: as it follows, waits, and is of another size."""
    frame, pose = view.snapshot.now.frame, (1e4, -2.0, 900.0)
    for sight in (
        Sight(frame, 3, "doom, val seed 3", 12.5, "", pose, pose, pose, (0.0, 99.0) * 32),
        Sight(frame, 3, "doom", 60.0, "", pose),
        Sight(frame, 3, "a name " * 20, waits="it cannot " * 30, trend=(20.0,)),
        Sight(frame[:5, :7], 3, "doom", 12.5),
    ):
        now = replace(view.snapshot, now=replace(view.snapshot.now, sight=sight))
        yield replace(view, snapshot=now)
        yield replace(view, snapshot=now, apart=True)


@pytest.mark.parametrize("size", [(1, 1), (90, 60), (420, 300), (500, 1400), (2600, 500)])
@pytest.mark.parametrize("smooth", [True, False])
def test_every_state_is_drawn_in_every_size(size, smooth):
    view = a_view()
    box = TextBox().opened().typed("откро́й дверь 打开门 🚪 " * 50)
    failed = replace(view.snapshot, status="failed", failure=RuntimeError("x " * 500))
    surface = pygame.Surface(size)
    for state in (
        ViewState(Snapshot()),
        view,
        replace(view, help=1, help_rows=HELP, recording_s=61.0, notice="too long " * 80),
        replace(view, box=box, busy_s=3.0),
        replace(view, snapshot=failed),
        replace(view, snapshot=replace(view.snapshot, status="paused")),
        *(replace(view, snapshot=replace(view.snapshot, dials=dials)) for dials in all_dials()),
        *all_beside(view),
    ):
        draw(surface, replace(state, smooth=smooth))


def test_the_picture_shows_the_frame_in_true_colours_and_shape():
    view = a_view()
    surface = pygame.Surface((1000, 800))
    layout = draw(surface, view)
    assert layout.picture.width >= 512
    assert abs(layout.picture.width / layout.picture.height - 64 / 48) < 0.01
    frame = view.snapshot.now.frame
    for row, column in ((10, 10), (30, 50)):
        x = layout.picture.x + round((column + 0.5) * layout.picture.width / 64)
        y = layout.picture.y + round((row + 0.5) * layout.picture.height / 48)
        shown = np.array(surface.get_at((x, y))[:3], dtype=int)
        assert np.abs(shown - frame[row, column]).max() <= 8


def test_the_mark_of_the_meter_moves_through_three_equal_zones():
    places = [meter_place(score) for score in (0.0, 2.0, 4.0, 4.1, 8.0, 16.0, 16.1, 64.0, 1e9)]
    assert places == sorted(places)
    assert [min(2, int(3 * place)) for place in places] == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_held_keys_light_up():
    view = a_view()
    lit, dark = pygame.Surface((1000, 800)), pygame.Surface((1000, 800))
    layout = draw(lit, view)
    draw(dark, replace(view, held=()))
    panel = layout.panel
    changed = np.argwhere(
        np.any(pygame.surfarray.array3d(lit) != pygame.surfarray.array3d(dark), axis=-1)
    )
    assert len(changed) > 100
    assert all(panel.collidepoint(int(x), int(y)) for x, y in changed)


def test_thumbnails_stay_inside_and_end_with_now():
    view = a_view()
    for width in (300, 700, 1600):
        layout = make_layout((width, 700), 64 / 48)
        shown = thumbs(layout, view.snapshot)
        assert shown[-1][1] is view.snapshot.now
        assert all(layout.timeline.contains(place) for place, _ in shown)


# Fork and map


def views():
    """A forked session and its map, as the window shows them."""
    session = Session(ToyDream())
    for _ in range(20):
        session.advance(("w",))
    session.fork((W, A, TURN))
    session.advance_fork()
    session.pick(1)
    session.advance()
    session.tree.name(3, "a name that is rather long for a small card")
    chart = outline(session)
    session.fork((W, A, TURN, *[Branch((key,)) for key in "sd"]))
    session.advance_fork()
    snapshot = Snapshot(
        status="playing",
        info=describe(session.world),
        now=session.now,
        timeline=session.timeline(40),
        futures=session.futures,
        journal="sessions/x.jsonl",
    )
    yield ViewState(snapshot)
    yield ViewState(replace(snapshot, status="failed", failure=RuntimeError("no")))
    paused = replace(snapshot, status="paused")
    yield ViewState(paused, help=1, help_rows=HELP, notice="too long " * 50)
    for selected in (0, 5, len(chart) - 1):
        yield ViewState(replace(snapshot, futures=(), chart=chart), charted=selected)
    box = TextBox().opened("the name " * 40)
    yield ViewState(replace(snapshot, chart=chart), charted=1, box=replace(box, label="Name"))


@pytest.mark.parametrize("size", [(1, 1), (90, 60), (420, 300), (1000, 800), (2600, 500)])
def test_fork_and_map_are_drawn_in_every_size(size) -> None:
    surface = pygame.Surface(size)
    for view in views():
        draw(surface, view)


@pytest.mark.parametrize("size", [(500, 400), (1000, 800), (2000, 1600)])
@pytest.mark.parametrize("count", range(2, 10))
def test_futures_stand_beside_each_other_inside_their_room(size, count) -> None:
    layout = make_layout(size, 64 / 48)
    places = tiles(layout, count, 64 / 48)
    captioned = [Rect(p.x, p.y, p.width, p.height + layout.px(60)) for p in places]
    assert all(layout.area.contains(place) for place in captioned)
    assert not any(a.colliderect(b) for a, b in combinations(captioned, 2))


def test_the_selected_frame_is_in_view_on_the_largest_map() -> None:
    session = Session(ToyDream())
    for start in range(30):
        for _ in range(start * 3 + 1):
            session.advance(("w",))
        session.fork((W, A))
        session.advance_fork()
        session.leave()
        session.rewind(1)
        session.advance(("s",))
    stops = outline(session)
    layout = make_layout((1000, 800), 64 / 48)
    for selected in range(len(stops)):
        places = map_places((1000, 800), layout, stops, selected, 64 / 48)
        assert places.chart.contains(places.cards[selected])


# A gamepad


def test_stick_and_cross_are_the_arrow_keys() -> None:
    axis, cross = pygame.JOYAXISMOTION, pygame.JOYHATMOTION
    pad = Pad()
    seen = []
    for event in (
        pygame.event.Event(axis, axis=1, value=-0.9),
        pygame.event.Event(axis, axis=0, value=0.8),
        pygame.event.Event(axis, axis=1, value=0.1),
        pygame.event.Event(axis, axis=4, value=1.0),
        pygame.event.Event(cross, value=(-1, 0)),
        pygame.event.Event(axis, axis=0, value=0.0),
    ):
        pad = pad.moved(event)
        seen.append(pad.arrows)
    assert seen == [("up",), ("right", "up"), ("right",), ("right",), ("left",), ("left",)]
