"""The pose regressor: its geometry, what it learns, what it says of paths."""

from types import SimpleNamespace

import numpy as np
import pytest

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.errors import UserError
from worldmodel.evaluate import pose as pose_
from worldmodel.evaluate.planning import integrate
from worldmodel.evaluate.rollouts import Clips
from worldmodel.evaluate.triples import ReaderConfig, save_reader
from worldmodel.world import Episode, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("up", "w", "up", dx=0.5),
        ActionRow("turn left", "a", "left", dyaw=10.0, unit="deg"),
        ActionRow("turn right", "d", "right", dyaw=-10.0, unit="deg"),
    )
)
SPEC = WorldSpec("scroll", TABLE, height=32, width=32)


def episode(seed, steps=40):
    """A texture that scrolls down when walking, sideways when turning, with true poses."""
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)]
    keys = rng.choice([0, 1, 2, 4, 3, 5], steps).astype(np.uint16)
    moves = [TABLE.from_mask(int(key)) for key in keys]
    for move in moves:
        shift = (round(6 * move.dx), round(0.3 * move.dyaw))
        frames.append(np.roll(frames[-1], shift, axis=(0, 1)))
    poses = integrate(moves, (3, 4, 350)).astype(np.float32)
    poses[:, 2] %= 360
    actions = np.array([(m.dx, m.dy, m.dyaw) for m in moves], np.float32)
    return Episode(np.stack(frames), actions, keys, {"pose": poses}, (), {"split": "train"})


def memory_store(episodes):
    names = {f"e{i}": one for i, one in enumerate(episodes)}

    def arrays(name):
        return {f"facts/{k}": v for k, v in names[name].facts.items()}

    return SimpleNamespace(
        spec=SPEC, ids=list(names), select=lambda split: list(names), read=names.__getitem__,
        arrays=arrays,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reader():
    store = memory_store([episode(i) for i in range(30)])
    return pose_.train_pose(store, ReaderConfig(steps=110, batch=32))


def test_motions_and_paths_are_inverse_across_the_turn_of_the_circle():
    rng = np.random.default_rng(0)
    moves = [Action((), *map(float, row)) for row in rng.normal(size=(9, 3)) * (0.5, 0.2, 40)]
    path = integrate(moves, (1, 2, 355))
    path[:, 2] %= 360
    found = pose_.relative(path)
    assert found == pytest.approx(np.array([(m.dx, m.dy, m.dyaw) for m in moves]), abs=1e-9)
    far, apart = pose_.path_errors(found[None], path[None])
    assert max(far.max(), apart.max()) < 1e-6


def test_the_errors_of_a_walk_that_stays_and_of_one_that_turns_wrong():
    truth = integrate([Action((), 1.0, 0.0, 0.0)] * 3)[None]
    far, apart = pose_.path_errors(np.zeros((1, 3, 3)), truth)
    assert far[0].tolist() == [1, 2, 3]
    assert apart[0].tolist() == [0, 0, 0]
    far, apart = pose_.path_errors(np.array([[(1, 0, 0), (1, 0, 190), (0, 0, 0)]], float), truth)
    assert apart[0].tolist() == [0, 170, 170]
    assert far[0, 0] == 0


def test_it_reads_motion_that_it_has_not_seen_and_tells_good_walks_from_none(reader):
    episodes = [episode(1000 + i) for i in range(6)]
    store = memory_store(episodes)
    frames, keys = (np.stack([getattr(e, part) for e in episodes]) for part in ("frames", "keys"))
    actions = np.stack([e.actions for e in episodes])
    clips = Clips(frames, keys, actions, 4, tuple(store.ids), (0,) * 6)
    truth, told = pose_.true_poses(store, clips), actions[:, 3:]
    still = np.repeat(clips.past[:, -1:], clips.future.shape[1], axis=1)
    found = {}
    for name, imagined in (("right", clips.future), ("still", still)):
        futures = {"imagined": imagined, "reconstruction": clips.future}
        metrics = pose_.measure_pose(clips, futures, clips.past, truth, reader, told)
        found[name] = {(m.name, m.horizon): m for m in metrics}
    right, still_ = found["right"], found["still"]
    assert (
        right["pose_reader_forward", None].value
        < 0.3 * right["pose_reader_forward", None].baselines["still"]
    )
    assert right["pose_reader_turn", None].value < 2.5
    last = right["pose_position", 37]
    assert last.value == pytest.approx(last.baselines["real"])
    assert last.value < 0.5 * last.baselines["still"]
    assert last.baselines["told"] < 1e-3
    assert still_["pose_position", 37].value > 2 * last.value
    assert still_["pose_position", 37].unit == "m"
    assert right["pose_yaw", 37].value < still_["pose_yaw", 37].value


def test_saved_and_loaded_it_reads_the_same(reader, tmp_path):
    path = tmp_path / "pose.safetensors"
    save_reader(reader, path)
    frames = episode(77).frames
    assert np.array_equal(pose_.load_pose(path).motion(frames), reader.motion(frames))
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="pose=auto"):
        pose_.load_pose(path)


def test_a_store_without_poses_is_known_and_refused():
    bare = episode(0)
    store = memory_store([Episode(bare.frames, bare.actions, bare.keys, {}, (), bare.info)])
    assert not pose_.has_pose(store)
    with pytest.raises(UserError, match="fact 'pose'"):
        pose_.train_pose(store)
