"""The Habitat world on the real simulator; skipped, visibly, where habitat-sim is not installed."""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeStore
from worldmodel.envs import make_policy, make_world
from worldmodel.envs.habitat import rooms
from worldmodel.envs.habitat.navigation import CoveragePolicy, bearing_of
from worldmodel.errors import UserError

if importlib.util.find_spec("habitat_sim") is None:
    pytest.skip("habitat-sim is not installed", allow_module_level=True)

OPEN = {}  # the one world that a process may hold, by its name and options


@pytest.fixture
def habitat():
    """Return what opens a world; it closes the one that was open, unless it is the same."""

    def open_world(name="habitat", **options):
        key = (name, *sorted(options.items()))
        if key not in OPEN:
            close_all()
            OPEN[key] = make_world(name, **options)
        return OPEN[key]

    return open_world


def close_all():
    while OPEN:
        OPEN.popitem()[1].close()


@pytest.fixture(scope="module", autouse=True)
def _closed_at_the_end():
    yield
    close_all()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Flat 0 as one file with y up, and with z up."""
    folder = tmp_path_factory.mktemp("scenes")
    return {up: rooms.write_scene(folder / f"flat_{up}.glb", 0, up) for up in "yz"}


SENSES = {"depth": True, "semantic": True}


def flat_of(world):
    return rooms.make_flat(int(world.info["scene"].removeprefix("flat_")))


def thing_places(flat):
    return {name: (-z, -x) for name, x, z in flat.things}  # in the world's axes


def test_a_frame_and_its_facts(habitat):
    world = habitat(**SENSES)
    step = world.reset(0)
    assert step.frame.shape == (64, 64, 3)
    assert step.frame.dtype == np.uint8
    assert step.frame.std() > 8, "a wall, a floor and a ceiling at least look different"
    facts = step.facts
    assert set(facts) == {
        "pose", "free", "rays", "collided", "bearing", "distance", "depth", "semantic",
    }  # fmt: skip
    assert facts["rays"].shape == (24,)
    assert facts["free"] == facts["rays"][0]
    assert facts["depth"].shape == facts["semantic"].shape == (64, 64)
    assert world.spec.objects == rooms.KINDS


@pytest.mark.parametrize("seed", range(4))
def test_it_starts_on_the_floor_inside_the_flat(habitat, seed):
    world = habitat(**SENSES)
    pose = world.reset(seed).facts["pose"]
    flat = flat_of(world)
    assert 0 < -pose[1] < sum(flat.widths)
    assert 0 < -pose[0] < flat.depth
    assert world.simulator.position[1] < 0.4, "not on the roof, nor on a table"


def test_starts_differ_and_come_again_in_another_process(habitat):
    world = habitat(**SENSES)
    poses = [world.reset(seed).facts["pose"].tolist() for seed in range(8)]
    assert len({tuple(np.round(pose, 2)) for pose in poses}) == 8
    assert np.ptp([pose[2] for pose in poses]) > 90, "the heading is drawn too"
    code = (
        "import hashlib\nfrom worldmodel.envs import make_world\n"
        "w = make_world('habitat', depth=True, semantic=True)\n"
        "s = w.reset(5)\nprint(s.facts['pose'].tolist())\n"
        "print(hashlib.sha256(s.frame.tobytes()).hexdigest())\nw.close()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    import hashlib

    frame = world.reset(5).frame
    said = run.stdout.splitlines()[-2:]
    assert said == [str(poses[5]), hashlib.sha256(frame.tobytes()).hexdigest()]


def test_keys_move_by_metres_and_degrees(habitat):
    world = habitat(**SENSES)
    step = world.reset(1)
    step = turn_to_space(world, step)
    before = step.facts["pose"].astype(float)
    step = world.step(world.spec.actions.press("w"))
    after = step.facts["pose"].astype(float)
    yaw = math.radians(before[2])
    assert after[:2] - before[:2] == pytest.approx(
        [0.25 * math.cos(yaw), 0.25 * math.sin(yaw)], abs=2e-3
    )
    assert not step.facts["collided"][0]
    assert step.text == "action: w"
    turned = world.step(world.spec.actions.press("a")).facts["pose"]
    assert (turned[2] - after[2]) % 360 == pytest.approx(15, abs=1e-2)
    back = world.step(Action((), 0.0, 0.0, -15.0))
    assert back.text == "action: dx=+0.00 dy=+0.00 dyaw=-15.0"
    assert np.array_equal(back.frame, step.frame), "the same pose looks the same"


def turn_to_space(world, step):
    """Turn until there are two metres ahead."""
    for _ in range(24):
        if step.facts["free"] > 2:
            return step
        step = world.step(world.spec.actions.press("a"))
    raise AssertionError("no way is free")


def test_it_turns_left_when_the_picture_moves_right(habitat):
    """Yaw counts to the left: what was in the middle of the picture is then to the right."""
    world, step, kind = with_a_thing_ahead(habitat)
    middle = column_of(step, kind)
    step = world.step(world.spec.actions.press("a"))
    if (step.facts["semantic"] == kind + 1).any():
        assert column_of(step, kind) > middle + 3
    assert np.isnan(step.facts["bearing"][kind]) or step.facts["bearing"][kind] < -5


def visible(step):
    return np.flatnonzero(~np.isnan(step.facts["distance"])).tolist()


def with_a_thing_ahead(habitat):
    """The world, a step from which one thing is about ahead, not too near, and which that is."""
    world = habitat(**SENSES)
    for seed in range(40):
        step = world.reset(seed)
        for _ in range(24):
            near = [k for k in visible(step) if abs(step.facts["bearing"][k]) < 8]
            if len(visible(step)) == 1 and near and 1.5 < step.facts["distance"][near[0]] < 5:
                return world, step, near[0]
            step = world.step(world.spec.actions.press("a"))
    raise AssertionError("nothing to see anywhere")


def column_of(step, kind):
    """The mean column of a thing in the picture of semantic ids."""
    return np.nonzero(step.facts["semantic"] == kind + 1)[1].mean()


def test_bearing_and_distance_are_those_of_the_picture(habitat):
    world, step, kind = with_a_thing_ahead(habitat)
    pose = step.facts["pose"].astype(float)
    place = thing_places(flat_of(world))[world.spec.objects[kind]]
    assert step.facts["distance"][kind] == pytest.approx(math.dist(place, pose[:2]), abs=0.02)
    assert step.facts["bearing"][kind] == pytest.approx(
        bearing_of(pose, np.array([*place, 0])), abs=0.5
    )
    side = (32 - column_of(step, kind) - 0.5) / 32
    seen = math.degrees(math.atan(side))  # 90 degrees across
    assert seen == pytest.approx(step.facts["bearing"][kind], abs=6)
    depth = float(np.median(step.facts["depth"][step.facts["semantic"] == kind + 1]))
    assert depth == pytest.approx(step.facts["distance"][kind], abs=0.75)


def test_things_have_their_colours(habitat):
    world = habitat(**SENSES)
    strongest = {"red": 0, "green": 1, "blue": 2}
    checked = set()
    for seed in range(60):
        step = world.reset(seed)
        for kind in visible(step):
            colour = world.spec.objects[kind].split()[0]
            mask = step.facts["semantic"] == kind + 1
            if colour in strongest and mask.sum() > 60:
                mean = step.frame[mask].mean(axis=0)
                assert mean.argmax() == strongest[colour], world.spec.objects[kind]
                assert mean.max() > 70
                checked.add(colour)
    assert checked == set(strongest)


def test_the_way_is_free_up_to_where_the_agent_stops(habitat):
    world = habitat(**SENSES)
    for seed in range(3):
        step = world.reset(seed)
        began, free = step.facts["pose"].astype(float), float(step.facts["free"])
        for _ in range(60):
            step = world.step(Action((), 0.1, 0.0, 0.0))
            if step.facts["collided"][0]:
                break
        assert step.facts["collided"][0], "every way ends somewhere"
        went = math.dist(step.facts["pose"][:2], began[:2])
        assert went + 0.2 == pytest.approx(free, abs=0.25)


def test_sliding_can_be_turned_off(habitat):
    ends = {}
    for sliding in (True, False):
        world = habitat(sliding=sliding)
        step = world.reset(2)
        path = 0.0
        for _ in range(80):
            before = step.facts["pose"][:2].astype(float)
            step = world.step(Action((), 0.1, 0.02, 0.0))
            if step.facts["collided"][0]:
                path += math.dist(step.facts["pose"][:2], before)
        ends[sliding] = path
    assert ends[True] > ends[False] + 0.1


def test_the_simulators_own_actions_do_the_same_as_keys(habitat):
    ends = {}
    for control in ("velocity", "discrete"):
        world = habitat(control=control)
        world.reset(3)
        for key in "wawwdwaaw":
            step = world.step(world.spec.actions.press(key))
        ends[control] = step
    poses = [step.facts["pose"] for step in ends.values()]
    assert poses[0][:2] == pytest.approx(poses[1][:2], abs=0.02)
    assert (poses[0][2] - poses[1][2] + 180) % 360 - 180 == pytest.approx(0, abs=0.1)
    with pytest.raises(UserError, match="takes keys"):
        habitat(control="discrete").step(Action((), 0.1, 0, 0))


def test_what_is_up_in_a_file_can_be_said(habitat, files):
    """The same flat with y up and with z up is the same world, and the other way round is not."""
    frames = {}
    for name, path, up in (("y", "y", "y"), ("z", "z", "z"), ("auto", "z", "auto")):
        step = habitat(f"habitat:{files[path]}", up=up).reset(4)
        assert step.frame.std() > 8
        frames[name] = step
    assert np.array_equal(frames["z"].frame, frames["auto"].frame), "z is the simulator's default"
    for up in "yz":
        world = habitat(f"habitat:{files[up]}", up=up)
        low, high = (
            np.array([c[0], c[1], c[2]]) for c in world.simulator._sim.pathfinder.get_bounds()
        )
        flat = rooms.make_flat(0)
        assert (high - low)[[0, 2]] == pytest.approx([sum(flat.widths), flat.depth], abs=0.7)
    assert not list(files["y"].parent.glob("*.json")), "nothing is written beside the user's file"


def test_a_single_file_has_starts_of_its_own_for_every_split(habitat, files):
    seeds = {}
    for split in ("train", "val", "test"):
        world = habitat(f"habitat:{files['y']}", up="y", split=split)
        seeds[split] = set()
        for seed in range(3):
            world.reset(seed)
            seeds[split].add(world.info["level_seed"])
            assert "bearing" not in world.reset(seed).facts, "nothing in this file has a name"
    assert not seeds["train"] & seeds["val"]
    assert not (seeds["train"] | seeds["val"]) & seeds["test"]


def test_coverage_sees_the_flat_and_the_shortest_path_arrives(habitat):
    world = habitat(**SENSES)
    policy = make_policy("coverage", 0)
    assert isinstance(policy, CoveragePolicy)
    step = world.reset(0)
    policy.attach(world)
    policy.reset(0)
    best = 0.0
    for _ in range(250):
        step = world.step(policy.act(step, world.spec))
        best = max(best, policy.seen_share)
    assert best > 0.9
    policy = make_policy("geodesic", 1)
    policy.attach(world)
    step, nearest = world.reset(1), {}
    for _ in range(300):
        step = world.step(policy.act(step, world.spec))
        for kind in visible(step):
            far = float(step.facts["distance"][kind])
            nearest[kind] = min(far, nearest.get(kind, 99.0))
    assert sum(far < 1.6 for far in nearest.values()) >= 2, nearest


def test_a_process_holds_one_world_at_a_time(habitat):
    world = habitat(**SENSES)
    world.reset(0)
    with pytest.raises(UserError, match="one Habitat world at a time"):
        make_world("habitat")
    assert world.reset(0).frame.std() > 8, "the first one still lives"


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("cut", "could not be opened"),
        ("wall", "nobody can walk in"),
        ("navmesh", "could not be loaded"),
        ("gpu", "no CUDA device gpu=17"),
        ("island", "no floor to stand on"),
    ],
)
def test_what_the_library_dies_of_is_one_sentence(files, tmp_path, case, says):
    """In a process of its own, by the command line: exit code 2, and no traceback."""
    import trimesh

    scene, options = tmp_path / "scene.glb", "up: y\n"
    if case == "cut":
        scene.write_bytes(files["y"].read_bytes()[:9000])
    elif case == "wall":
        wall = trimesh.creation.box((3, 3, 0.01))
        scene.write_bytes(trimesh.Scene([wall]).export(file_type="glb"))
    else:
        scene.write_bytes(files["y"].read_bytes())
    if case == "navmesh":
        (tmp_path / "bad.navmesh").write_bytes(b"no navmesh at all")
        options += "navmesh: bad.navmesh\n"
    options += {"gpu": "gpu: 17\n", "island": "island: 99\n"}.get(case, "")
    (tmp_path / "flat.yaml").write_text(f"scene: scene.glb\n{options}")
    command = [sys.executable, "-m", "worldmodel.cli", "collect", "episodes=1", "workers=1"]
    command += [f"env=habitat:{tmp_path}/flat.yaml", f"out={tmp_path}/x.zarr", "steps=4"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert says in run.stderr
    assert "Traceback" not in run.stderr


def test_two_processes_collect_into_a_store(tmp_path):
    close_all()
    command = [sys.executable, "-m", "worldmodel.cli"]
    collect = ["collect", "env=habitat", "out=h.zarr", "episodes=4", "workers=2", "steps=40"]
    run = subprocess.run(
        [*command, *collect, "policy=geodesic"],
        capture_output=True, text=True, timeout=280, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    run = subprocess.run(
        [*command, "data", "validate", "store=h.zarr"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    store = EpisodeStore(tmp_path / "h.zarr")
    assert len(store.ids) == 4
    said = {a.kind for name in store.ids for a in store.read(name).annotations}
    assert said >= {"caption", "question"}
