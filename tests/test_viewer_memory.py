"""What a session keeps is bounded, and what it no longer keeps comes back to the bit."""

import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.dream import MAX_HISTORY, MIN_HISTORY, Dream
from worldmodel.viewer import film, recall
from worldmodel.viewer.commands import Branch
from worldmodel.viewer.film import Film
from worldmodel.viewer.session import Session

make_dream = runpy.run_path(str(Path(__file__).with_name("test_dream.py")))["make_dream"]
ToyDream = runpy.run_path(str(Path(__file__).with_name("viewer_toy.py")))["ToyDream"]

FORK = (Branch(("w",)), Branch(("a",)), Branch(say="turn left"))


def dream_with(history: int) -> Dream:
    dream = make_dream()
    dream.history = history
    return dream


def a_round(session: Session, turn: int) -> None:
    """What a person does in half a minute: drives, speaks, forks, goes back, begins anew."""
    for _ in range(12):
        session.advance(("w",))
    session.say("turn left")
    session.advance()
    session.say("")
    session.fork(FORK)
    for _ in range(4):
        session.advance_fork()
    session.pick(turn % 3)
    session.advance(("d",))
    for _ in range(turn % 7):
        session.rewind(1)
    if turn % 5 == 4:
        session.restart(turn % 2)


def held_bytes(session: Session) -> int:
    """Bytes of all keys and values that a session holds, each storage once."""
    shelves = session._recall._recent, session._recall._lasting
    states: list[Any] = [state for shelf in shelves for state in shelf.states.values()]
    found = {}
    for dream in (session.world, *states):
        for stream in dream._streams:
            for segment in stream.segments:
                storage = segment.kv.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def test_the_states_of_a_session_are_bounded_by_bytes_and_full_early(monkeypatch) -> None:
    monkeypatch.setattr(recall, "EVERY", 8)
    history, window, words = 60, 3, 12
    session = Session(dream_with(history))
    config = session.world.engine.core.config
    token = 2 * config.depth * config.kv_heads * config.width // config.heads * 4
    most = (history + 2 * window) * token * (config.frame_tokens + words)
    held, nodes = [], []
    for turn in range(20):
        a_round(session, turn)
        held.append(held_bytes(session))
        nodes.append(len(session.tree))
    assert nodes[-1] > 8 * history
    assert max(held) <= most
    full = [size for size, count in zip(held, nodes, strict=True) if count > 2 * history]
    assert max(full) <= 1.25 * full[0]


def test_a_rewind_beyond_what_is_kept_gives_identical_frames_in_few_steps(monkeypatch) -> None:
    monkeypatch.setattr(recall, "EVERY", 8)
    session = Session(dream_with(40))
    told: list[int] = []
    session.on_recall = lambda done, of: told.append(of) if done == of else None
    for i in range(60):
        if i in (20, 40):
            session.say("turn left" if i == 20 else "")
        session.advance(("w",) if i % 3 else ("a",))
    frames = [session.film.whole(node.id) for node in session.tree]
    session.rewind(15)
    assert not told  # the recent past is there at once
    while session.length:
        session.rewind(1)
        assert np.array_equal(session.world.frame, frames[session.length]), session.length
    assert told
    assert max(told) <= 8
    assert sum(told) < 2 * 60  # what was imagined again is kept in turn
    session.jump(60)
    assert np.array_equal(session.world.frame, frames[60])


def test_the_middle_of_a_long_fork_comes_back_in_few_steps_and_to_the_bit(monkeypatch) -> None:
    monkeypatch.setattr(recall, "EVERY", 8)
    session = Session(dream_with(60))
    told: list[int] = []
    session.on_recall = lambda done, of: told.append(of) if done == of else None
    session.advance(("w",))
    session.fork(FORK)
    for _ in range(30):
        session.advance_fork()
    others = [future.now.node for future in session.futures]
    session.pick(1)
    for _ in range(60):
        session.advance(("d",))
    frames = [session.film.whole(node.id) for node in session.tree]
    for back in (3, 0, 9, 1):
        node = others[0]
        for _ in range(back):
            node = session.tree[node].parent
        session.jump(node)
        assert np.array_equal(session.world.frame, frames[node]), node
    assert told
    assert max(told) < 30  # from the middle of the fork, not from where it began


def test_the_further_back_the_fewer_states_last() -> None:
    dream = ToyDream()
    dream.history = 48
    session = Session(dream)
    for _ in range(3000):
        session.advance(("w",))
    kept = [0, *session._recall._lasting.states, *session._recall._recent.states]
    assert len(kept) <= 1 + 49
    for number in range(3000):
        again = number - max(node for node in kept if node <= number)
        assert again < max(recall.EVERY, (3000 - number) // 3), number


def test_a_larger_model_keeps_fewer_states(monkeypatch) -> None:
    assert make_dream().history == MAX_HISTORY
    step_bytes = 2 * 3 * 32 * 17 * 4  # keys and values, depth, head, tokens, float32
    monkeypatch.setattr("worldmodel.dream.MAX_HISTORY_BYTES", 100 * step_bytes)
    assert make_dream().history == 100
    assert make_dream(depth=6).history == MIN_HISTORY


def test_small_pictures_are_bounded_though_every_frame_is_to_stay(monkeypatch) -> None:
    monkeypatch.setattr(film, "MAX_THUMBS", 16)
    frame = np.zeros((8, 8, 3), np.uint8)
    kept = Film(4 * frame.nbytes, lambda node: True)
    for node in range(100):
        kept.add(node, node, frame.copy())
        assert kept.sizes[1] <= 16
    assert kept.sizes == (4, 16)
    assert [kept.whole(node) is not None for node in (95, 96, 99)] == [False, True, True]


def test_small_pictures_are_spread_and_those_to_stay_stay(monkeypatch) -> None:
    monkeypatch.setattr(film, "MAX_THUMBS", 16)
    frame = np.zeros((8, 8, 3), np.uint8)
    kept = Film(4 * frame.nbytes, lambda node: node == 33)
    for node in range(200):
        kept.add(node, node, frame.copy())
    there = [node for node in range(196) if kept.small(node) is not None]
    assert len(there) == 16
    assert {0, 33, 64, 128} <= set(there)
    assert max(b - a for a, b in pairwise(there)) <= 32


@pytest.mark.parametrize("side", [8, 200])
def test_a_small_picture_does_not_hold_the_batch_that_its_frame_came_in(side: int) -> None:
    batch = np.zeros((9, side, side, 3), np.uint8)
    kept = Film(1, lambda node: False)
    for node in range(9):
        kept.add(node, node, batch[node])
    assert max(side for side in kept.small(8).shape[:2]) <= film.THUMB_SIDE
    for node in range(8):
        picture = kept.small(node)
        assert picture is not None
        assert picture.base is None or picture.base.nbytes <= picture.nbytes
        assert not np.shares_memory(picture, batch)
