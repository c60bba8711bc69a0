"""The tree of futures without a window: fork, pick, jump, name; recall; session files."""

import os
import runpy
import time
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


from worldmodel.errors import UserError
from worldmodel.evaluate.cues import compile_scenario
from worldmodel.evaluate.scenario import Start, load_scenario
from worldmodel.viewer import recall
from worldmodel.viewer.commands import (
    Advance,
    Branch,
    Denoise,
    Fork,
    Jump,
    Leave,
    Name,
    Pause,
    Pick,
    Restart,
    Rewind,
    Say,
    from_json,
    to_json,
)
from worldmodel.viewer.engine import Engine
from worldmodel.viewer.journal import (
    Head,
    Journal,
    new_session,
    read_session,
    scenario_of,
    to_yaml,
)
from worldmodel.viewer.meter import Quality
from worldmodel.viewer.outline import move, outline
from worldmodel.viewer.session import Session

TOY = runpy.run_path(str(Path(__file__).with_name("viewer_toy.py")))
ToyDream, TABLE = TOY["ToyDream"], TOY["TABLE"]

W, A, TURN = Branch(("w",)), Branch(("a",)), Branch(say="turn right")


def forked(session: Session, steps: int = 4) -> list[list[np.ndarray]]:
    """Fork a session three ways; frames of each branch."""
    session.fork((W, A, TURN))
    frames = [[moment.frame for moment in session.advance_fork()] for _ in range(steps)]
    return [list(branch) for branch in zip(*frames, strict=True)]


def test_a_fork_runs_every_branch_under_its_own_keys_or_sentence_as_one_batch() -> None:
    session = Session(ToyDream())
    session.say("turn left")
    session.advance()
    session.fork((W, A, TURN))
    moments = session.advance_fork()
    assert [m.text for m in moments] == ["action: w", "action: a", "instruction: turn right"]
    assert [m.branch for m in moments] == [1, 2, 3]
    session.advance_fork()
    assert [future.steps for future in session.futures] == [2, 2, 2]
    assert session.length == 1  # the fork is still where it was opened
    teams = {session.tree[m.node].team for m in moments}
    assert teams == {tuple(m.node for m in moments)}


def test_a_picked_branch_goes_on_and_the_others_stay_in_the_tree() -> None:
    session = Session(ToyDream())
    session.advance(("w",))
    frames = forked(session)
    others = [future.now.node for future in session.futures]
    session.pick(2)
    assert np.array_equal(session.now.frame, frames[2][-1])
    assert session.instruction == "turn right"
    assert session.advance().text == "instruction: turn right"
    assert session.length == 6
    session.jump(others[0])
    assert np.array_equal(session.now.frame, frames[0][-1])
    session.say("")
    assert session.advance(("a",)).text == "action: a"


def test_leaving_a_fork_is_being_back() -> None:
    session = Session(ToyDream())
    session.say("turn left")
    before = session.advance().frame
    forked(session)
    session.leave()
    assert not session.futures
    assert np.array_equal(session.now.frame, before)
    assert session.advance().text == "instruction: turn left"
    assert len(session.tree.children(1)) == 4


@pytest.mark.parametrize(
    ("branches", "part"),
    [
        ((W,), "2 to 9"),
        ((W,) * 10, "2 to 9"),
        ((W, Branch(("x",))), "Unknown key 'x'"),
        ((W, Branch(say="very " * 30)), "30 tokens"),
    ],
)
def test_a_fork_that_is_refused_changes_nothing(branches, part) -> None:
    session = Session(ToyDream())
    with pytest.raises(UserError, match=part):
        session.fork(branches)
    assert not session.futures
    assert session.advance(("w",)).text == "action: w"


def test_no_branch_no_pick_and_no_such_node() -> None:
    session = Session(ToyDream())
    with pytest.raises(UserError, match="no branch 1"):
        session.pick(0)
    with pytest.raises(UserError, match="no node 7"):
        session.jump(7)


def wander(session: Session) -> None:
    """A session with everything in it."""
    for _ in range(6):
        session.advance(("w",))
    session.say("turn left")
    session.advance()
    forked(session)
    session.pick(1)
    session.advance(("w", "a"))
    session.rewind(3)  # into the middle of the picked branch
    session.advance(("s",))
    forked(session, 2)
    session.fork((A, W))
    for _ in range(3):
        session.advance_fork()
    session.pick(0)
    forked(session, 2)  # at once after another
    session.pick(2)
    session.advance()
    session.restart(1)
    session.advance(("d",))
    session.world.denoise_steps = 8
    session.advance(("d",))


def remembering(states: int) -> ToyDream:
    """A dream of which a session keeps so many states."""
    dream = ToyDream()
    dream.history = states
    return dream


@pytest.mark.parametrize("kept", [10_000, 24, 10, 4, 1])
def test_every_node_is_reached_again_exactly_however_little_is_kept(kept, monkeypatch) -> None:
    monkeypatch.setattr(recall, "EVERY", 3)
    session = Session(remembering(kept))
    wander(session)
    frames = {node.id: session.film.whole(node.id) for node in session.tree}
    assert all(frame is not None for frame in frames.values())
    rng = np.random.default_rng(0)
    order = [node for _ in range(6) for node in rng.permutation(len(frames))]
    for node in map(int, order):
        session.jump(node)
        assert np.array_equal(session.world.frame, frames[node]), node
        assert session.length == session.tree[node].number
    assert session.world.denoise_steps == 8  # a setting, not a part of the past
    assert session._recall.size <= kept + 1


def test_jumping_tells_how_far_it_is_when_it_imagines_again() -> None:
    session = Session(remembering(1))
    told = []
    session.on_recall = lambda done, of: told.append((done, of))
    for _ in range(5):
        session.advance(("w",))
    session.restart()
    session.advance(("a",))
    session.restart()
    session.jump(5)
    assert told == [(i, 5) for i in range(1, 6)]


def test_names_are_unique_and_findable() -> None:
    session = Session(ToyDream())
    session.advance()
    session.tree.name(1, "  the red\ndoor ")
    assert session.tree.find("the red door") == session.tree.find("1") == 1
    with pytest.raises(UserError, match="called 'the red door' already"):
        session.tree.name(0, "the red door")
    with pytest.raises(UserError, match="no frame called 'x'"):
        session.tree.find("x")
    session.tree.name(1, "")
    assert not session.tree.names


# The map


def test_the_outline_shows_starts_ends_forks_and_names_in_rows() -> None:
    session = Session(ToyDream())
    for _ in range(3):
        session.advance(("w",))
    session.tree.name(2, "corner")
    forked(session, 5)
    session.pick(1)
    session.advance()
    stops = outline(session)
    at = {stop.node: stop for stop in stops}
    assert [(s.row, s.column) for s in (at[0], at[2], at[3])] == [(0, 0), (0, 1), (0, 2)]
    ends = [stop for stop in stops if stop.column == 3]
    assert [stop.row for stop in ends] == [0, 1, 2]
    assert [stop.label for stop in ends] == ["w", "a", "turn right"]
    assert [stop.led for stop in ends] == ["keys", "keys", "say"]
    assert [stop.here for stop in ends] == [False, True, False]
    assert [stop.steps for stop in ends] == [5, 6, 5]
    assert at[2].name == "corner"
    index = stops.index
    assert move(stops, index(at[3]), "right") == index(ends[1])  # where one came from
    assert move(stops, index(ends[1]), "up") == index(ends[0])
    assert move(stops, index(ends[1]), "down") == index(ends[2])
    assert move(stops, index(ends[2]), "left") == index(at[3])
    assert move(stops, index(at[0]), "left") == index(at[0])


def test_a_long_run_has_stops_on_its_way_and_unplayed_starts_are_left_out() -> None:
    session = Session(ToyDream())
    session.restart(1)
    session.restart(1)
    for _ in range(200):
        session.advance(("w",))
    numbers = [stop.number for stop in outline(session)]
    assert numbers == [0, 64, 128, 200] or numbers == [0, 32, 64, 96, 128, 160, 200]


# Session files

COMMANDS = (
    Advance(("w",)),
    Advance(("w", "a")),
    Say("turn left é 打"),
    Advance(),
    Fork((W, A, TURN)),
    Advance(),
    Advance(),
    Pick(2),
    Advance(),
    Name(3, "door"),
    Rewind(2),
    Advance(("s",)),
    Denoise(True),
    Advance(("s",)),
    Fork((W, A)),
    Advance(),
    Leave(),
    Restart(1),
    Advance(("d",)),
    Jump(5),
    Advance(),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_commands_survive_being_written(command) -> None:
    data = to_json(command)
    assert data is not None
    assert from_json(data) == command


def a_file(path: Path) -> Path:
    journal = Journal(path, Head("toy", "abc", start=Start(seed=3), seed=7))
    for command in (*COMMANDS, Pause(True)):
        journal.write(command, 0)
    journal.close()
    return path


def test_a_session_file_is_read_back_and_a_torn_last_line_is_left_out(tmp_path) -> None:
    path = a_file(tmp_path / "s.jsonl")
    record = read_session(path)
    assert record.commands == COMMANDS
    assert record.head == Head("toy", "abc", start=Start(seed=3), seed=7)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert read_session(path).commands == COMMANDS[:-1]
    path.write_bytes(whole.rstrip(b"\n") + b"\0\0\0\n")
    assert read_session(path).commands == COMMANDS[:-1]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: text.replace('{"t"', "{t", 1), "Line 2 .* is damaged"),
        (lambda text: text.replace('"step"', '"stepp"', 1), "is no command"),
        (lambda text: text.replace('"session":1', '"session":9'), "format 9"),
        (lambda text: text.split("\n", 1)[1], "is no session file"),
        (lambda text: "", "is no session file"),
    ],
)
def test_a_file_that_is_no_session_is_refused_in_one_sentence(tmp_path, change, part) -> None:
    path = a_file(tmp_path / "s.jsonl")
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=part):
        read_session(path)


def test_nothing_is_written_before_something_is_done(tmp_path) -> None:
    journal = Journal(tmp_path / "s.jsonl", Head())
    journal.close()
    assert not list(tmp_path.iterdir())


def test_the_path_to_a_node_is_a_scenario_that_gives_its_texts(tmp_path) -> None:
    session = Session(ToyDream(), start=3)
    wander(session)
    session.jump(len(session.tree) - 4)
    for _ in range(3):
        session.advance(("w",))
    path = session.tree.path(session.at)
    scenario = scenario_of(
        session.tree, session.at, Head("toy", seed=7), session.start_of(session.at)
    )
    file = tmp_path / "s.yaml"
    file.write_text(to_yaml(scenario), encoding="utf-8")
    read = load_scenario(file)
    assert (read.checkpoint, read.seed, read.start.seed) == ("toy", 7, 3)
    again = Session(ToyDream(), start=3)
    texts = []
    for cue in compile_scenario(read, TABLE):
        if cue.say is not None or cue.clear:
            again.say(cue.say or "")
        texts.append(again.advance(cue.keys).text)
    assert texts == [session.tree[node].text for node in path[1:]]
    with pytest.raises(UserError, match="no step"):
        scenario_of(session.tree, 0, Head(), Start())


# The real model, and the engine


def test_a_real_dream_is_recalled_to_the_bit_and_its_session_plays_again() -> None:
    make_dream = runpy.run_path(str(Path(__file__).with_name("test_dream.py")))["make_dream"]
    commands = (
        *[Advance(("w",))] * 2,
        Say("turn left"),
        Advance(),
        Fork((W, A, Branch(say="turn left"))),
        *[Advance()] * 2,
        Pick(2),
        Advance(),
        Rewind(2),
        Advance(("d",)),
        Restart(1),
        Advance(("a",)),
    )

    def play(states: int) -> Session:
        dream = make_dream(guidance=2.0)
        dream.history = states
        session = Session(dream)
        for command in commands:
            match command:
                case Advance(keys):
                    session.advance_fork() if session.futures else session.advance(keys)
                case Say(text):
                    session.say(text)
                case Fork(branches):
                    session.fork(branches)
                case Pick(index):
                    session.pick(index)
                case Rewind(steps):
                    session.rewind(steps)
                case Restart(offset):
                    session.restart(offset)
        return session

    session, again = play(1), play(100)
    frames = [session.film.whole(node.id) for node in session.tree]
    assert all(np.array_equal(frame, again.film.whole(node)) for node, frame in enumerate(frames))
    assert list(session.tree) == list(again.tree)
    for node in (9, 0, len(frames) - 1, 7, 4, 10):
        session.jump(node)
        assert np.array_equal(session.world.frame, frames[node]), node


def test_denoising_follows_the_machine_and_the_session_says_so(tmp_path) -> None:
    quality = Quality(0.1, window=3)
    slow = [quality.after(0.3, 4, 4) for _ in range(4)]
    assert slow == [None, None, False, None]  # it takes a while, and then a while again
    fast = [Quality(0.1, window=1).after(0.01, now, 4) for now in (1, 2, 4)]
    assert fast == [True, True, None]  # never more than was asked for
    assert Quality(0.1, window=1).after(0.3, 1, 4) is None

    class Slow(ToyDream):
        def _step(self, action, team):
            time.sleep(0.02 * self.denoise_steps)
            return super()._step(action, team)

    path = tmp_path / "s.jsonl"
    engine = Engine(Slow, fps=100, adapt=True, journal=lambda world: Journal(path, Head()))
    engine.start()
    try:
        end = time.monotonic() + 20
        while engine.snapshot.denoise_steps != 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert engine.snapshot.wanted_denoise == 4
    finally:
        assert engine.stop()
    assert Denoise(False) in read_session(path).commands


def test_a_session_that_cannot_be_written_is_said_and_play_goes_on(tmp_path) -> None:
    def refuse(world):
        return Journal(new_session(Path("/proc/nowhere")), Head())

    class Full(Journal):
        def write(self, command, node):
            raise OSError(28, "No space left on device")

    for journal, part in (
        (refuse, "is not being written: cannot make"),
        (lambda world: Full(tmp_path / "s.jsonl", Head()), "no longer being written"),
    ):
        engine = Engine(ToyDream, journal=journal, fps=200)
        engine.start()
        try:
            end = time.monotonic() + 10
            while not (part in engine.snapshot.notice and engine.snapshot.steps_done > 2):
                assert time.monotonic() < end, engine.snapshot.notice
                time.sleep(0.005)
            assert not engine.snapshot.failure
        finally:
            assert engine.stop()
