"""The real world beside the dream: it goes where the dream goes, or says why it waits."""

import functools
import os
import runpy
import threading
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.dream import Dream
from worldmodel.envs import make_world
from worldmodel.errors import UserError
from worldmodel.evaluate.planning import integrate
from worldmodel.evaluate.pose import PoseReader
from worldmodel.evaluate.scenario import Start, parse_scenario
from worldmodel.evaluate.triples import save_reader
from worldmodel.viewer.app import settle
from worldmodel.viewer.beside import TREND
from worldmodel.viewer.besideview import difference
from worldmodel.viewer.commands import Advance, Back, Branch, Drop, Restart, from_json, to_json
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.journal import Head, Journal, scenario_of
from worldmodel.viewer.session import Session
from worldmodel.viewer.starts import Reality, make_context, take_picture
from worldmodel.world import Episode, Step, WorldSpec

TOY_PATH = Path(__file__).with_name("viewer_toy.py")
TOY = runpy.run_path(str(TOY_PATH))
ToyDream, TABLE = TOY["ToyDream"], TOY["TABLE"]
play = functools.partial(TOY["play"], timeout_s=120)
NOTHING = Action()


class Ground:
    """A real world whose frames tell its seed, where it is and how it is turned."""

    spec = ToyDream.spec

    def __init__(self, steps: int = 1000) -> None:
        self.resets = 0
        self.steps = 0
        self.closed = False
        self.entered, self.held = threading.Event(), threading.Event()
        self.held.set()  # cleared: a reset waits until it is set again
        self._most = steps

    def reset(self, seed: int | None = None) -> Step:
        self.resets += 1
        self.entered.set()
        assert self.held.wait(60)
        self.seed, self.done = seed or 0, [NOTHING]
        return self._step("")

    def step(self, action: Action) -> Step:
        self.steps += 1
        self.done.append(action)
        return self._step(TABLE.text(action))

    def close(self) -> None:
        self.closed = True

    def _step(self, text: str) -> Step:
        over = len(self.done) > self._most
        pose = np.array([sum(a.dx for a in self.done), 0, sum(a.dyaw for a in self.done)])
        return Step(shown(self.seed, self.done), terminated=over, facts={"pose": pose}, text=text)


def shown(seed: int, done: list[Action]) -> np.ndarray:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :, 0] = 10 + 40 * seed
    for i, action in enumerate(done):
        frame[i % 48, :, 1] = 50 + 10 * action.dx + action.dyaw
        frame[i % 48, :, 2] = len(done) % 256
    return frame


@dataclass(frozen=True)
class Around(Reality):
    """The toy's real world."""

    name: str = "ground"
    world: Ground | None = None

    def open(self, spec: WorldSpec) -> Ground:
        return self.world or Ground()


def beside(world: Ground | None = None, start: int = 0) -> Session:
    return Session(ToyDream(), start=start, beside=Around(world=world))


def expected(keys: str, seed: int = 0) -> np.ndarray:
    """The real frame after one step under each of the keys; '-' is none."""
    return shown(seed, [NOTHING, *(TABLE.press(() if k == "-" else (k,)) for k in keys)])


def drive(session: Session, keys: str) -> None:
    for key in keys:
        session.advance(() if key == "-" else (key,))


def sees(session: Session, keys: str, seed: int = 0) -> bool:
    sight = session.now.sight
    assert sight is not None
    return np.array_equal(sight.frame, expected(keys, seed))


def test_both_worlds_begin_alike_and_get_the_same_actions():
    world = Ground()
    session = beside(world, start=2)
    assert np.array_equal(session.world.context[0], expected("", 2))
    drive(session, "w-ad")
    assert [action.keys for action in world.done[1:]] == [("w",), (), ("a",), ("d",)]
    sight = session.now.sight
    assert sees(session, "w-ad", 2)
    assert (sight.number, sight.waits, sight.name) == (4, "", "ground, val seed 2")
    assert sight.pose == (0.5, 0.0, 0.0)
    assert 0 < sight.psnr < 60
    assert len(sight.trend) == 5
    drive(session, "w" * TREND)
    assert len(session.now.sight.trend) == TREND
    session.restart(1)
    assert sees(session, "", 3)
    session.close()
    assert world.closed


def test_the_real_world_follows_through_rewinds_jumps_and_forks():
    session = beside()
    drive(session, "wwad")
    session.rewind(2)
    assert sees(session, "ww")
    drive(session, "s")
    assert sees(session, "wws")
    session.jump(4)
    assert sees(session, "wwad")
    session.fork((Branch(("w",)), Branch(("a",))))
    session.advance_fork()
    session.advance_fork()
    assert sees(session, "wwad")  # it waits for the choice
    other = session.futures[0].now.node
    session.pick(1)
    assert sees(session, "wwadaa")
    assert session.now.sight.number == 6
    drive(session, "d")
    assert sees(session, "wwadaad")
    session.jump(other)  # where it never was
    assert sees(session, "wwadww")
    session.close()


def test_going_back_many_times_does_the_past_again_once_only():
    world = Ground()
    session = beside(world)
    drive(session, "w" * 40)
    world.held.clear()
    world.entered.clear()
    session.rewind(1)
    assert world.entered.wait(60)  # it began with the past of a frame that is left again
    for _ in range(19):
        session.rewind(1)
    world.held.set()
    drive(session, "a")
    assert sees(session, "w" * 20 + "a")
    assert (world.resets, world.steps) == (2, 40 + 20 + 1)
    session.close()


def test_a_sentence_that_is_an_action_is_followed_and_another_one_is_waited_for():
    session = beside()
    session.say("turn left")
    drive(session, "--")
    assert sees(session, "aa")
    session.say("walk to the torch")
    drive(session, "--")
    sight = session.now.sight
    assert sees(session, "aa")
    assert (sight.number, sight.psnr) == (2, None)
    assert "sentence" in sight.waits
    session.say("")
    drive(session, "w")
    assert "sentence" in session.now.sight.waits  # keys do not bring it back
    session.back()
    assert (session.length, session.now.sight.waits) == (2, "")
    drive(session, "w")
    assert sees(session, "aaw")
    session.close()


def test_dropping_into_the_dream_takes_the_last_real_frames_and_back_returns_there():
    session = beside()
    drive(session, "wwadw")
    session.drop()
    frames = [expected("wwadw"[:n]) for n in (2, 3, 4, 5)]
    assert np.array_equal(session.world.context, frames)
    assert (session.length, session.now.sight.number) == (0, 5)
    drive(session, "dd")
    assert sees(session, "wwadwdd")
    session.drop()
    drive(session, "s")
    assert sees(session, "wwadwdds")
    session.back()
    assert (session.length, session.now.sight.number) == (0, 7)
    drive(session, "a")
    assert sees(session, "wwadwdda")
    with pytest.raises(UserError, match="middle of a walk"):
        session.start_of(session.at)
    session.jump(3)
    assert session.start_of(3) == Start(world="ground", split="val", seed=0)
    assert sees(session, "wwa")
    session.close()
    alone = Session(ToyDream())
    for refused in (alone.drop, alone.back):
        with pytest.raises(UserError, match="beside=doom"):
            refused()


def test_the_end_of_the_real_episode_is_said():
    session = beside(Ground(steps=2))
    drive(session, "www")
    assert session.now.sight.waits == "The real episode ended here."
    session.drop()
    assert session.now.sight.waits == ""
    drive(session, "w")
    assert session.now.sight.waits == "The real episode ended here."
    session.close()


def test_a_real_world_that_breaks_is_an_error():
    class Broken(Ground):
        def step(self, action):
            raise RuntimeError("the engine is gone")

    session = beside(Broken())
    with pytest.raises(RuntimeError, match="engine is gone"):
        drive(session, "w")


def test_the_pose_of_the_dream_is_read_off_its_frames_from_where_it_began(tmp_path):
    reader = PoseReader(48, 64)
    save_reader(reader, tmp_path / "pose.safetensors")
    around = Around(pose=str(tmp_path / "pose.safetensors"))
    session = Session(ToyDream(), beside=around)
    frames = [session.now.sight.frame, session.now.frame]
    assert session.now.sight.pose_error == (0, 0)
    for key in "wa":
        drive(session, key)
        frames.append(session.now.frame)
    walked = [Action((), *map(float, step)) for step in reader.motion(np.stack(frames))]
    sight = session.now.sight
    assert sight.dreamt == pytest.approx(tuple(integrate(walked)[-1]), abs=1e-4)
    (x, y, yaw), pose = sight.dreamt, (0.5, 0.0, 11.25)
    assert sight.pose == pose
    assert sight.pose_error == pytest.approx((np.hypot(x - 0.5, y), abs(yaw - 11.25)), abs=1e-4)
    seen = reader.motion(np.stack([expected(""), *map(expected, ("", "w", "wa"))]))
    walked = [Action((), *map(float, step)) for step in seen]
    assert sight.read == pytest.approx(tuple(integrate(walked)[-1]), abs=1e-4)
    assert sight.reading_error not in (None, sight.pose_error)
    session.drop()
    assert session.now.sight.pose_error == (0, 0)
    session.close()
    assert settle(PlayConfig(beside="doom", pose="none"), None, Head()).beside.pose == "none"
    save_reader(PoseReader(32, 32), tmp_path / "pose.safetensors")
    with pytest.raises(UserError, match="32x32 pixels, not 64x48"):
        Session(ToyDream(), beside=around)


def test_doom_stands_beside_the_shipped_model_and_goes_back_with_it():
    session = Session(Dream.load(device="cpu"), start=3, beside=Reality("doom"))
    doom = make_world("doom", split="val")
    walk = [doom.reset(3), *(doom.step(doom.spec.actions.press((key,))) for key in "wwaw")]
    doom.close()
    assert np.array_equal(session.now.frame, walk[0].frame)
    assert session.now.sight.psnr == 60
    drive(session, "wwd")
    session.rewind(1)
    drive(session, "aw")
    sight = session.now.sight
    assert np.array_equal(sight.frame, walk[-1].frame)
    assert sight.pose == pytest.approx(tuple(map(float, walk[-1].facts["pose"])))
    assert 5 < sight.psnr < 60
    session.drop()
    assert np.array_equal(session.now.frame, walk[-1].frame)
    session.close()


# Recordings


def a_store(path: Path, keys: str = "wwaddw", episodes: int = 2, metric: bool = False) -> str:
    """Episodes of the toy's ground; with `metric` their actions are no keys."""
    writer = EpisodeWriter(path, Ground.spec)
    for seed in range(episodes):
        actions = [TABLE.press(() if key == "-" else (key,)) for key in keys]
        if metric:
            actions = [Action((), a.dx / 2, a.dy, a.dyaw) for a in actions]
        world = Ground()
        frames = [world.reset(seed).frame, *(world.step(action).frame for action in actions)]
        writer.write(
            Episode(
                frames=np.stack(frames),
                actions=np.array([[a.dx, a.dy, a.dyaw] for a in actions], np.float32),
                keys=np.array([TABLE.mask(action) for action in actions], np.uint16),
                facts={},
                annotations=(),
                info={"world": "toy", "seed": seed, "split": "train", "policy": "test"},
            )
        )
    return str(path)


def test_a_recording_leads_until_somebody_takes_over(tmp_path):
    store = a_store(tmp_path / "s.zarr")
    session = Session(ToyDream(), start=1, beside=Reality(store))
    drive(session, "---")
    assert sees(session, "wwa", 1)
    assert session.now.text == "action: a"
    assert session.now.sight.name == "s.zarr, episode 1"
    drive(session, "d")  # what was done then as well
    assert sees(session, "wwad", 1)
    drive(session, "s-")
    assert "took over" in session.now.sight.waits
    assert session.now.text == "action: none"
    assert sees(session, "wwad", 1)
    session.back()
    drive(session, "-")
    assert sees(session, "wwadd", 1)
    drive(session, "s")
    session.drop()
    assert session.start_of(session.at) == Start(seed=1, store=store, episode=1, step=5)
    assert np.array_equal(session.world.context[-1], expected("wwadd", 1))
    drive(session, "-")
    assert sees(session, "wwaddw", 1)
    drive(session, "-")
    assert "ended" in session.now.sight.waits
    with pytest.raises(UserError, match=r"2 episodes.*episode 2"):
        session.restart(1)
    session.close()


def test_recorded_actions_without_keys_are_imagined_again_as_they_were(tmp_path):
    dream = ToyDream()
    dream.history = 1  # so that all else is imagined again
    session = Session(dream, beside=Reality(a_store(tmp_path / "s.zarr", metric=True)))
    drive(session, "-----")
    text, frame = session.now.text, session.now.frame
    assert text.startswith("action: dx=")
    session.restart()
    session.jump(5)
    assert np.array_equal(session.now.frame, frame)
    assert np.array_equal(session.world.frame, frame)
    with pytest.raises(UserError, match="without keys"):
        scenario_of(session.tree, session.at, Head(), Start())
    session.close()


@pytest.mark.parametrize(
    ("name", "part"),
    [("none.zarr", "no store"), ("dooom", "Did you mean 'doom'"), ("other.zarr", "the keys")],
)
def test_what_cannot_be_put_beside_is_said(tmp_path, monkeypatch, name, part):
    monkeypatch.chdir(tmp_path)
    from worldmodel.actions import ActionTable

    EpisodeWriter(tmp_path / "other.zarr", WorldSpec("other", ActionTable(TABLE.rows[:2]), 48, 64))
    with pytest.raises(UserError, match=part):
        Session(ToyDream(), beside=Reality(name))


# The program


def frames_of(path: Path) -> np.ndarray:
    with np.load(path) as kept:
        return kept["frames"]


def test_a_session_with_a_real_world_beside_plays_again_to_the_same_frames(tmp_path):
    store = a_store(tmp_path / "s.zarr")
    commands = (*[Advance()] * 4, Drop(), *[Advance(("s",))] * 2, Back(), Advance(), Restart(1))
    session = Session(ToyDream(), beside=Reality(store))
    frames = []
    head = Head("toy", beside=store, start=Start(seed=0, store=store, episode=0), denoise_steps=4)
    journal = Journal(tmp_path / "s.jsonl", head)
    for command in (*commands, Advance()):
        journal.write(command, session.at)
        match command:
            case Advance(keys):
                frames.append(session.advance(keys).frame)
            case Drop():
                session.drop()
            case Back():
                session.back()
            case Restart(offset):
                session.restart(offset)
    journal.close()
    session.close()
    outputs = ["frames=f.npz", "report=r.json", "scenario=p.yaml", "record=b.mp4"]
    done = play(tmp_path, "session=s.jsonl", *outputs)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(frames_of(tmp_path / "f.npz"), frames)
    with np.load(tmp_path / "f.npz") as kept:
        assert np.array_equal(kept["real"][-1], expected("w", 1))
        assert not kept["real"][5].any()  # it waited
    with av.open(str(tmp_path / "b.mp4")) as video:
        left, right = np.split(next(video.decode(video=0)).to_ndarray(format="rgb24"), 2, axis=1)
    assert np.abs(left[5::11, 5::11].astype(int) - expected("w")).mean() < 12
    assert np.abs(right[5::11, 5::11].astype(int) - frames[0]).mean() < 12
    assert '"psnr"' in (tmp_path / "r.json").read_text()
    assert "took over" in (tmp_path / "r.json").read_text()
    assert f"store: {store}" in (tmp_path / "p.yaml").read_text()
    # The path to the last frame alone, without what is real beside it.
    done = play(tmp_path, "script=p.yaml", "frames=g.npz", "denoise_steps=4")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(frames_of(tmp_path / "g.npz")[-1], frames[-1])
    for command in (Drop(), Back()):
        line = to_json(command)
        assert line is not None
        assert from_json(line) == command


def test_the_settings_agree_with_where_a_script_begins(tmp_path):
    cfg = PlayConfig(beside="doom", start=3)
    assert settle(cfg, None, Head()).beside == Reality("doom")
    for start, seed, split in (
        ({"seed": 4}, 3, "val"),
        ({"world": "doom", "split": "test", "seed": 4}, 3, "test"),
    ):
        plan = settle(cfg, parse_scenario({"steps": 1, "start": start}), Head())
        assert (plan.start, plan.beside) == (seed, Reality("doom", split))
    elsewhere = parse_scenario({"steps": 1, "start": {"image": "a.png"}})
    with pytest.raises(UserError, match=r"names 'a.png'.*beside=doom"):
        settle(cfg, elsewhere, Head())
    plan = settle(PlayConfig(image="b.png", start=2), elsewhere, Head())
    assert plan.given == Start(seed=2, image="b.png")
    with pytest.raises(UserError, match="one of image and beside"):
        PlayConfig(image="a.png", beside="doom")
    with pytest.raises(UserError, match="imagined world"):
        PlayConfig(world="doom", beside="doom")


def test_the_map_of_the_difference_is_black_where_frames_agree():
    a = np.full((4, 4, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0, 1], b[0, 1, 2] = 255, 130
    seen = difference(a, b)
    assert not seen[1:].any()
    assert tuple(seen[0, 0]) == (255, 255, 255)
    assert 0 < seen[0, 1].sum() < seen[0, 0].sum()


# Pictures and cameras


def test_pictures_that_are_none_are_refused_and_photographs_stand_upright(tmp_path):
    from PIL import Image

    tiny, broken, photo = (str(tmp_path / name) for name in ("t.png", "b.png", "p.jpg"))
    Image.new("RGB", (64, 7)).save(tiny)
    with pytest.raises(UserError, match="only 64x7 pixels"):
        make_context(Start(image=tiny), ToyDream.spec)
    Image.new("RGB", (300, 300), (1, 2, 3)).save(broken)
    Path(broken).write_bytes(Path(broken).read_bytes()[:100])
    with pytest.raises(UserError, match=r"b\.png"):
        make_context(Start(image=broken), ToyDream.spec)
    picture = Image.new("RGB", (64, 64))
    picture.paste((255, 255, 255), (0, 0, 64, 20))  # the top, which the file has on its right
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90).save(photo, exif=exif, quality=95)
    context = make_context(Start(image=photo), ToyDream.spec)
    assert context is not None
    assert context.frames[0][:6].mean() > 200 > 50 > context.frames[0][30:].mean()


def test_a_camera_gives_a_picture_to_start_from(tmp_path):
    from worldmodel.viewer.video import VideoWriter

    video = VideoWriter(tmp_path / "v.mp4", 10)
    for shade in (200, 20, 20):
        video.add(np.full((48, 64, 3), shade, np.uint8))
    video.close()
    path = take_picture(str(tmp_path / "v.mp4"), tmp_path / "recordings")
    context = make_context(Start(image=str(path)), ToyDream.spec)
    assert context is not None
    assert abs(context.frames.mean() - 200) < 8
    with pytest.raises(UserError, match=r"camera '99'.*image=FILE"):
        take_picture("99", tmp_path)
    (tmp_path / "s.yaml").write_text("steps: 2")
    done = play(tmp_path, "script=s.yaml", "camera=v.mp4", "scenario=p.yaml")
    assert done.returncode == 0, done.stderr
    assert "-camera.png" in (tmp_path / "p.yaml").read_text()
