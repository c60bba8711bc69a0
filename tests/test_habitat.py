"""Habitat: scenes, descriptions and motion without the simulator; and the world on the real one.

What needs habitat-sim is skipped where it is not installed; the rest runs everywhere.
"""

import importlib.util
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from worldmodel.actions import Action
from worldmodel.envs import make_policy, make_world
from worldmodel.envs.habitat import config as describing
from worldmodel.envs.habitat import floor, navigation, rooms
from worldmodel.envs.habitat.config import HabitatConfig, action_table, arc, describe
from worldmodel.errors import UserError
from worldmodel.world import Step, WorldSpec

trimesh = pytest.importorskip("trimesh")

REAL = importlib.util.find_spec("habitat_sim") is not None
real = pytest.mark.skipif(not REAL, reason="habitat-sim is not installed")


# Scenes


def test_a_number_always_gives_the_same_flat_and_no_two_are_alike():
    flats = [rooms.make_flat(n) for n in range(rooms.NUM_FLATS)]
    assert flats == [rooms.make_flat(n) for n in range(rooms.NUM_FLATS)]
    assert len({repr(flat) for flat in flats}) == rooms.NUM_FLATS
    assert {name for flat in flats for name, _, _ in flat.things} == set(rooms.KINDS)


@pytest.mark.parametrize("number", range(rooms.NUM_FLATS))
def test_one_can_walk_around_everything_in_a_flat(number):
    flat = rooms.make_flat(number)
    assert len(flat.things) >= 4
    for name, x, z in flat.things:
        assert 0.8 < x < sum(flat.widths) - 0.8, name
        assert 0.8 < z < flat.depth - 0.8, name
        assert math.hypot(x - flat.widths[0], z - flat.door) > 1.5, f"{name} is in the way"
    for (_, *a), (_, *b) in itertools.combinations(flat.things, 2):
        assert math.dist(a, b) > 1.6


@pytest.mark.parametrize("up", ["y", "z"])
def test_a_scene_file_has_the_size_of_its_flat(tmp_path, up):
    flat = rooms.make_flat(3)
    scene = trimesh.load(rooms.write_scene(tmp_path / "flat.glb", 3, up))
    size = np.ptp(scene.bounds, axis=0)
    across, deep = sum(flat.widths), flat.depth
    expected = (across, rooms.HEIGHT, deep) if up == "y" else (across, deep, rooms.HEIGHT)
    assert size == pytest.approx(expected, abs=1e-4)
    materials = [mesh.visual.material for mesh in scene.geometry.values()]
    assert all(m.baseColorTexture is not None for m in materials)


def test_walls_are_seen_from_inside(tmp_path):
    """The renderer draws front faces only."""
    flat = rooms.make_flat(0)
    (left, right), depth = flat.widths, flat.depth
    for middle in ((left / 2, 1.3, depth / 2), (left + right / 2, 1.3, depth / 2)):
        seen = 0
        for mesh in rooms._shell(flat):
            inside = (mesh.triangles_center[:, 0] < left) == (middle[0] < left)
            towards = (mesh.face_normals * (middle - mesh.triangles_center)).sum(axis=1)
            if inside.all() and np.ptp(mesh.vertices, axis=0).max() > 2:
                assert (towards > 0).all()
                seen += 1
        assert seen >= 5  # floor, ceiling and at least three walls


def test_a_dataset_names_only_what_it_holds(tmp_path):
    path = rooms.write_dataset(tmp_path, 3)
    listed = json.loads(path.read_text())
    assert set(listed) == {"stages", "objects", "scene_instances"}
    ids = {}
    for file in (tmp_path / "objects").glob("*.json"):
        config = json.loads(file.read_text())
        assert (file.parent / config["render_asset"]).stat().st_size > 500
        ids[file.name.split(".")[0]] = config["semantic_id"]
    assert {ids[kind.replace(" ", "_")]: kind for kind in rooms.KINDS} == dict(
        enumerate(rooms.KINDS, start=1)
    )
    scenes = sorted((tmp_path / "scenes").glob("*.scene_instance.json"))
    assert len(scenes) == 3
    for number, file in enumerate(scenes):
        scene = json.loads(file.read_text())
        stage = scene["stage_instance"]["template_name"]
        assert (tmp_path / "stages" / f"{stage}.stage_config.json").is_file()
        placed = {(o["template_name"].replace("_", " "), *o["translation"][::2])
                  for o in scene["object_instances"]}  # fmt: skip
        assert placed == set(rooms.make_flat(number).things)


# Descriptions


def test_a_yaml_file_describes_a_world_and_options_come_on_top(tmp_path):
    rooms.write_scene(tmp_path / "flat.glb")
    (tmp_path / "flat.yaml").write_text("scene: flat.glb\nup: y\nstep: 1\nobjects: [red box]\n")
    config = describe(str(tmp_path / "flat.yaml"), {"size": 96})
    assert config == HabitatConfig(
        scene=str(tmp_path / "flat.glb"), up="y", step=1.0, objects=("red box",), size=96
    )
    assert config.pixels == 192


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hfow": 90}, "no option 'hfow'. Did you mean 'hfov'?"),
        ({"up": "x"}, "unknown up 'x'"),
        ({"control": "velocty"}, "Did you mean 'velocity'?"),
        ({"size": 4}, "size must be from 8 to 2048, got 4"),
        ({"size": "64"}, "size must be a whole number"),
        ({"depth": 1}, "depth must be true or false"),
        ({"native": 32}, "native must be from size (64)"),
        ({"navmesh": "nowhere.navmesh"}, "no navmesh file nowhere.navmesh"),
        ({"gpu": -2}, "gpu must be from -1"),
    ],
)
def test_a_wrong_option_is_refused(options, says):
    with pytest.raises(UserError, match=r"habitat") as raised:
        describe("rooms", options)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("flat.glb", None, "there is no scene file"),
        ("flat.glb", b"", "is empty"),
        ("flat.glb", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("flat.fbx", b"x", "expected 'rooms', a file that ends in .glb"),
        ("flat.yaml", b"- a\n", "must hold the fields"),
        ("flat.yaml", b"scene: [", "is no YAML file"),
        ("flat.yaml", None, "could not be read"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, capsys, name, content, says):
    from worldmodel.cli import main

    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        make_world(f"habitat:{path}")
    assert says in str(raised.value)
    command = ["collect", f"env=habitat:{path}", f"out={tmp_path}/x.zarr", "episodes=1"]
    assert main([*command, "workers=1"]) == 2
    assert says in capsys.readouterr().err


def test_without_habitat_sim_the_ways_to_get_it_are_said():
    """In a process that cannot import it, whether or not it is installed."""
    code = (
        "import sys; sys.modules['habitat_sim'] = None\n"
        "from worldmodel.envs import make_world\n"
        "from worldmodel.errors import UserError\n"
        "try: make_world('habitat')\n"
        "except UserError as error: print(error); sys.exit(2)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2, run.stderr
    assert "conda install habitat-sim headless -c conda-forge -c aihabitat" in run.stdout
    assert "BUILD_FROM_SOURCE.md" in run.stdout


def test_doctor_tells_of_habitat(capsys):
    from worldmodel.doctor import main

    main()
    line = next(row for row in capsys.readouterr().out.splitlines() if "habitat-sim" in row)
    assert ("conda install" in line) == (not REAL)


@pytest.mark.parametrize("count", [3, 9, 10, 25])
def test_splits_share_no_scene(count):
    scenes = tuple(f"s{n:02}" for n in range(count))
    shares = [describing.split_scenes(scenes, split) for split in ("train", "val", "test")]
    assert sorted(itertools.chain(*shares)) == sorted(scenes)
    assert all(shares)
    assert len(shares[0]) >= count - 2 * math.ceil(count / 10)
    with pytest.raises(UserError, match="at least three"):
        describing.split_scenes(scenes[:2], "train")


# Motion


def test_an_action_walks_the_arc_of_many_small_ones():
    action = Action((), 0.5, -0.2, 40.0)
    x = y = yaw = 0.0
    for _ in range(4000):
        x += (action.dx * math.cos(yaw) - action.dy * math.sin(yaw)) / 4000
        y += (action.dx * math.sin(yaw) + action.dy * math.cos(yaw)) / 4000
        yaw += math.radians(action.dyaw) / 4000
    assert arc(action) == pytest.approx((x, y), abs=1e-3)
    assert arc(Action((), 0.25)) == (0.25, 0.0)


def test_axes_are_turned_and_turned_back():
    assert describing.to_ours(0, 0, -1) == (1, 0, 0)  # its ahead is ours
    assert describing.to_ours(-1, 0, 0) == (0, 1, 0)  # its left is ours
    assert describing.to_theirs(*describing.to_ours(1.5, 2.5, 3.5)) == (1.5, 2.5, 3.5)


def test_discrete_keys_are_the_simulators_own_and_exclude_each_other():
    table = action_table(HabitatConfig(control="discrete", step=0.25, turn=10.0))
    assert set(table.keys) == {"w", "a", "d"} == set(describing.NATIVE)
    assert len(table.press(("w", "a")).keys) == 1
    assert table.text(table.press("w"), "metric") == "action: dx=+0.25 dy=+0.00 dyaw=+0.0"
    velocity = action_table(HabitatConfig())
    assert velocity.press(("w", "a", "q")) == Action(("w", "a", "q"), 0.25, 0.25, 15.0)


# The floor


def test_the_floor_is_the_lowest_of_the_large_islands():
    assert floor.pick_island([40.0, 34.0, 0.5], [2.6, 0.2, -1.0]) == 1  # roof, floor, a pit
    assert floor.pick_island([10.0, 90.0], [2.8, 0.0]) == 1
    assert floor.pick_island([], []) == -1


def test_places_are_spread_evenly_over_triangles():
    corners = np.array([[0, 0, 0], [3, 0, 0], [0, 0, 3], [9, 0, 0], [10, 0, 0], [9, 0, 1]], float)
    triangles = np.array([[0, 1, 2], [3, 4, 5]])
    points = floor.sample(corners, triangles, 5000, np.random.default_rng(0))
    large = points[points[:, 0] < 5]
    assert len(large) / 5000 == pytest.approx(0.9, abs=0.02)
    assert (large[:, 0] + large[:, 2] <= 3 + 1e-6).all()
    assert large.mean(axis=0) == pytest.approx([1, 0, 1], abs=0.05)


def test_rays_end_at_walls():
    free = np.zeros((40, 60), bool)
    free[5:35, 5:55] = True  # x from 0.5 to 5.5, z from 0.5 to 3.5
    ahead, left, back, right = floor.FloorMap(free, 0.0, 0.0, 0.1, 0.2).rays(
        2.0, 2.0, np.array([0.0, 90.0, 180.0, 270.0])
    )
    assert ahead == pytest.approx(1.5 + 0.2, abs=0.11)
    assert left == pytest.approx(1.5 + 0.2, abs=0.11)
    assert back == pytest.approx(1.5 + 0.2, abs=0.11)
    assert right == pytest.approx(3.5 + 0.2, abs=0.11)


# Policies


class Hall:
    """A hall of 8 x 6 metres with a wall across, open at one end; moved by the real action maths.

    It is a `Navigator`: its ways go around the end of the wall.
    """

    GAP = np.array([4.0, 5.2, 0.0])

    def __init__(self, table=None):
        self.spec = WorldSpec("hall", table or action_table(HabitatConfig()))
        self.pose = np.array([1.0, 1.0, 200.0])

    def floor_points(self, count, rng):
        points = rng.uniform([0.3, 0.3, 0], [7.7, 5.7, 0], (count, 3))
        return points[np.abs(points[:, 0] - 4) > 0.3]

    def object_points(self):
        return np.array([[7.0, 1.0, 0.0]])

    def path(self, goal):
        here = np.array([*self.pose[:2], 0.0])
        apart = (here[0] < 4) != (goal[0] < 4)
        return np.array([here, self.GAP, goal]) if apart else np.array([here, goal])

    def look(self):
        angles = np.radians(self.pose[2] + np.arange(24) * 15.0)
        steps = np.arange(0.05, 9, 0.05)
        x = self.pose[0] + np.cos(angles)[:, None] * steps
        y = self.pose[1] + np.sin(angles)[:, None] * steps
        open_ = (x > 0) & (x < 8) & (y > 0) & (y < 6) & ~((np.abs(x - 4) < 0.05) & (y < 4.5))
        rays = np.where(open_.all(axis=1), 9.0, steps[np.argmin(open_, axis=1)])
        return Step(np.zeros((8, 8, 3), np.uint8), facts={"pose": self.pose, "rays": rays})

    def step(self, action):
        ahead, left = arc(action)
        yaw = math.radians(self.pose[2])
        x = self.pose[0] + ahead * math.cos(yaw) - left * math.sin(yaw)
        y = self.pose[1] + ahead * math.sin(yaw) + left * math.cos(yaw)
        crosses = (x < 4) != (self.pose[0] < 4) and y < 4.5
        if 0 < x < 8 and 0 < y < 6 and not crosses:
            self.pose[:2] = x, y
        self.pose[2] = (self.pose[2] + action.dyaw) % 360
        return self.look()


@pytest.mark.parametrize("control", ["velocity", "discrete"])
def test_the_shortest_path_leads_to_the_thing_and_ends_facing_it(control):
    hall = Hall(action_table(HabitatConfig(control=control)))
    policy = navigation.GeodesicPolicy(0)
    policy.attach(hall)
    step, best = hall.look(), (9.0, 180.0)
    for _ in range(500):
        step = hall.step(policy.act(step, hall.spec))
        far = math.dist(hall.pose[:2], (7, 1))
        best = min(best, (far, abs(navigation.bearing_of(hall.pose, np.array([7.0, 1.0, 0])))))
        if far < 0.9 and best[1] < 10:
            break
    assert best[0] < 0.9
    assert best[1] < 10


def test_coverage_sees_the_whole_floor_sooner_than_a_random_walk():
    def steps_to_see(name):
        hall, watcher = Hall(), navigation.CoveragePolicy(0)
        watcher.attach(hall)
        policy = watcher if name == "coverage" else make_policy(name, 0)
        step = hall.look()
        for n in range(600):
            if policy is not watcher:
                watcher.observe(hall.pose, step.facts)
            step = hall.step(policy.act(step, hall.spec))
            if watcher.seen_share > 0.97:
                return n
        return 600

    assert steps_to_see("coverage") < 200
    assert steps_to_see("random") > steps_to_see("coverage")


def test_mix_takes_ways_where_there_are_any_and_repeats_itself():
    def play(seed):
        hall, policy = Hall(), make_policy("mix", seed)
        policy.attach(hall)
        policy.reset(seed)
        step, path = hall.look(), []
        for _ in range(300):
            action = policy.act(step, hall.spec)
            step = hall.step(action)
            path.append((action.keys, *hall.pose[:2].round(6)))
        return path

    path = play(0)
    assert path == play(0) != play(1)
    assert {key for keys, *_ in path for key in keys} >= set("wad")
    assert max(x for _, x, _ in path) > 4.5, "it found its way around the wall"


def test_ways_need_a_world_that_knows_its_floor():
    with pytest.raises(UserError, match="policy=explore"):
        make_policy("geodesic", 0).attach(object())
    with pytest.raises(UserError, match=r"attach\(world\)"):
        make_policy("coverage", 0).act(Hall().look(), Hall().spec)
    with pytest.raises(UserError, match="Did you mean 'coverage'"):
        make_policy("covrage", 0)
