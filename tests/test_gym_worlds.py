"""Any Gymnasium environment as a World: presets, native actions, descriptions."""

import contextlib
import hashlib
import importlib.util
import io
import multiprocessing
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium import spaces

from worldmodel.actions import Action
from worldmodel.envs import WORLDS, make_policy, make_world
from worldmodel.envs.gym import GymWorld
from worldmodel.envs.gym_config import PRESETS, GymConfig, load_preset, parse_config
from worldmodel.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "breakout": "ale_py", "pong": "ale_py", "carracing": "Box2D", "crafter": "crafter",
    "minigrid": "minigrid", "miniworld": "miniworld", "vizdoom": "vizdoom",
}  # fmt: skip


SCENE = {"pose", "wall", "bearing", "distance"}
MEASURED = {"miniworld": SCENE, "carracing": {"velocity", "road"}}


def need(preset):
    if importlib.util.find_spec(PACKAGES[preset]) is None:
        pytest.skip(f"needs the package {PACKAGES[preset]}")


class Echo(gymnasium.Env):
    """Shows the last action's numbers as grey levels; ends after `length` native steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, space=None, length=1000, black_end=False, render_mode=None):
        self.action_space = spaces.Discrete(4) if space is None else space
        self.observation_space = spaces.Box(0, 255, (20, 30, 3), np.uint8)
        self.length, self.black_end, self.render_mode = length, black_end, render_mode
        self.taken = []

    def _show(self, value):
        return np.full((20, 30, 3), value, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = []
        self.seeded = seed
        return self._show(self.np_random.integers(1, 256)), {"bag": {"coins": 0}}

    def step(self, action):
        self.taken.append(action)
        ended = len(self.taken) >= self.length
        picture = self._show(0 if ended and self.black_end else len(self.taken))
        info = {"bag": {"coins": len(self.taken)}}
        return picture, 0.0, ended and self.black_end, ended and not self.black_end, info


class Named(Echo):
    """Has names for its actions."""

    def get_action_meanings(self):
        return ["NOOP", "FIRE", "UP", "UPFIRE"]


@pytest.fixture(autouse=True)
def _echo():
    for cls in (Echo, Named):
        gymnasium.register(f"test/{cls.__name__}-v0", entry_point=cls)
    yield
    for cls in (Echo, Named):
        del gymnasium.registry[f"test/{cls.__name__}-v0"]


def echo(space=None, env="Echo", size=8, **data):
    """A GymWorld on `Echo` with the fields of a YAML file."""
    kwargs = {"space": space, **data.pop("kwargs", {})}
    data = {"id": f"test/{env}-v0", "size": size, "kwargs": kwargs, **data}
    return GymWorld(parse_config(data, "echo"))


def taken(world):
    return world.env.unwrapped.taken


def row(key, native, **more):
    return {"name": f"act {key}", "key": key, "native": native, **more}


# --- presets


def test_presets_are_worlds():
    assert set(PRESETS) == set(PACKAGES)
    assert ("doom", "habitat", *PRESETS) == WORLDS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_played(preset):
    need(preset)
    world = make_world(preset)
    table = world.spec.actions
    frames = [world.reset(4).frame]
    assert frames[0].any()
    for key in table.keys:
        if key == "z":
            continue  # Crafter's player sleeps on for long
        for _ in range(3):
            step = world.step(table.press([key]))
            assert step.text == f"action: {key}"
            measured = MEASURED.get(preset, set())
            assert set(step.facts) == set(load_preset(preset).facts) | measured
            assert all(fact.dtype == np.float32 for fact in step.facts.values())
            frames.append(step.frame)
    assert all(f.shape == (64, 64, 3) and f.dtype == np.uint8 for f in frames)
    looks = {frame.tobytes() for frame in frames}
    assert len(looks) >= 4  # the world answers
    again = world.reset(4).frame
    np.testing.assert_array_equal(again, frames[0])
    world.close()
    world.close()
    with pytest.raises(UserError, match="closed"):
        world.reset(1)


DIGESTS = """
import sys; sys.path.insert(0, {here!r})
from test_gym_worlds import digest
print(*(digest(name) for name in {names!r}))
"""


def digest(preset):
    world = make_world(preset)
    found = hashlib.sha256(world.reset(7).frame.tobytes())
    keys = [*world.spec.actions.keys, ()] * 3
    for key in keys[:24]:
        step = world.step(world.spec.actions.press([key] if key else []))
        found.update(step.frame.tobytes())
        if step.terminated or step.truncated:
            break
    world.close()
    return found.hexdigest()


def test_same_seed_same_frames_in_two_processes(tmp_path):
    names = [name for name in PRESETS if importlib.util.find_spec(PACKAGES[name])]
    code = DIGESTS.format(here=str(Path(__file__).parent), names=names)
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    theirs = dict(zip(names, run.stdout.splitlines()[-1].split(), strict=True))
    assert {name: digest(name) for name in names} == theirs
    assert list(tmp_path.iterdir()) == []  # ViZDoom leaves nothing behind


def test_crafter_is_the_same_in_the_long_run():
    """Its creatures lie in sets, whose order is not a function of the seed."""
    need("crafter")

    def play():
        world = make_world("crafter", size=16)
        step, policy = world.reset(2), make_policy("random", 2)
        found = hashlib.sha256()
        for _ in range(150):
            step = world.step(policy.act(step, world.spec))
            found.update(step.frame.tobytes())
            if step.terminated:
                break
        return found.hexdigest()

    padding = [object() for _ in range(997)]  # other addresses for the second game
    first = play()
    del padding
    assert play() == first


def test_the_size_can_be_chosen():
    world = GymWorld(GymConfig("echo", "test/Echo-v0"), size=48)
    assert (world.spec.height, world.spec.width) == (48, 48)
    assert world.reset(4).frame.shape == (48, 48, 3)
    with pytest.raises(UserError, match="size must be at least 8"):
        make_world("minigrid", size=4)


def test_splits_share_no_seed():
    seeds = set()
    for split in ("train", "val", "test"):
        world = GymWorld(GymConfig("echo", "test/Echo-v0"), split)
        for seed in range(50):
            world.reset(seed)
            seeds.add(world.env.unwrapped.seeded)
        assert world.info["split"] == split
    assert len(seeds) == 150
    with pytest.raises(UserError, match="Did you mean 'train'"):
        make_world("gym:test/Echo-v0", split="trian")


# --- native actions


def test_discrete_keys_and_the_largest_listed_combination():
    rows = [row("w", 1), row("a", 2), row("f", "FIRE"), row("g", 0)]
    world = echo(None, "Named", actions=rows, combinations={"a+w": 3}, idle="noop")
    world.reset(0)
    table = world.spec.actions
    for keys in ("w", "a", "wa", "f", "wf", "waf", "gw", ""):
        world.step(table.press(keys))
    assert taken(world) == [1, 2, 3, 1, 1, 1, 0, 0]
    # What cannot be done at once is not said to be done, and the row further down counts.
    assert table.press("wf").keys == ("f",)
    assert table.press("aw").keys == ("w", "a")
    assert table.rows[0].joins == ("a",)


def test_without_an_idle_action_the_world_stands_still():
    world = echo(actions=[row("w", 1)])
    first = world.reset(0)
    rest = world.step(Action())
    assert taken(world) == []
    np.testing.assert_array_equal(rest.frame, first.frame)
    world.step(world.spec.actions.press("w"))
    assert taken(world) == [1]


def test_multi_binary_buttons_add_up():
    world = echo(spaces.MultiBinary(4), actions=[row("w", 0), row("a", [1, 3])])
    world.reset(0)
    for keys in ("w", "a", "wa", ""):
        world.step(world.spec.actions.press(keys))
    assert [a.tolist() for a in taken(world)] == [
        [1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0],
    ]  # fmt: skip


def test_multi_discrete_components_are_set_and_exclude_each_other():
    space = spaces.MultiDiscrete([3, 2])
    rows = [row("a", {0: 1}), row("d", {0: 2}), row("f", {1: 1})]
    world = echo(space, actions=rows)
    world.reset(0)
    for keys in ("a", "df", "ad", ""):
        world.step(world.spec.actions.press(keys))
    assert [a.tolist() for a in taken(world)] == [[1, 0], [2, 1], [2, 0], [0, 0]]


def test_box_vectors_add_up_and_are_clipped():
    space = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 1.0], np.float32))
    rows = [row("a", [-0.75, 0]), row("d", [0.75, 0]), row("w", [0, 0.75]), row("f", [0.5, 0.5])]
    world = echo(space, actions=rows, idle=[0.0, 0.125])
    world.reset(0)
    for keys in ("a", "dwf", "ad", ""):
        world.step(world.spec.actions.press(keys))
    wanted = [[-0.75, 0.125], [1.0, 1.0], [0.75, 0.125], [0.0, 0.125]]
    np.testing.assert_allclose(taken(world), wanted)
    assert taken(world)[0].dtype == np.float32
    with pytest.raises(UserError, match="not by metres"):
        world.step(Action((), dx=0.25))


CONTROLS = spaces.Dict(
    {
        "camera": spaces.Box(-10, 10, (2,)),
        "jump": spaces.Discrete(2),
        "walk": spaces.Discrete(3),
        "hands": spaces.MultiBinary(2),
    }
)


def test_components_of_a_dict_are_set_side_by_side_and_exclude_each_other():
    rows = [
        row("w", {"walk": 1}),
        row("s", {"walk": 2}),
        row("a", {"camera": [-5, 0]}),
        row("d", {"camera": [5, 0]}),
        row("space", {"jump": 1, "hands": [0, 1]}),
    ]
    world = echo(CONTROLS, actions=rows, idle={"camera": [0, 1]})
    world.reset(0)
    for keys in (["w", "a", "space"], ["d"], [], ["w", "s"], ["a", "d"]):
        world.step(world.spec.actions.press(keys))
    plain = [{name: np.asarray(v).tolist() for name, v in a.items()} for a in taken(world)]
    still = {"camera": [0, 1], "jump": 0, "walk": 0, "hands": [0, 0]}
    assert plain[0] == {"camera": [-5, 1], "jump": 1, "walk": 1, "hands": [1, 1]}
    right = still | {"camera": [5, 1]}
    assert plain[1:] == [right, still, still | {"walk": 2}, right], "the row further down counts"
    assert all(CONTROLS.contains(action) for action in taken(world))
    assert world.spec.actions.press(["w", "s"]).keys == ("s",)


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (None, [row("w", 9)], "no action of Discrete"),
        (None, [row("w", "JUMP")], "no action 'JUMP'"),
        (None, [row("w", [1])], "number or the name"),
        (spaces.MultiBinary(2), [row("w", 2)], "no button; there are 2"),
        (spaces.MultiDiscrete([2, 2]), [row("w", {2: 1})], "components from 0 to 1"),
        (spaces.MultiDiscrete([2, 2]), [row("w", {0: 5})], "no action of MultiDiscrete"),
        (spaces.Box(-1, 1, (2,)), [row("w", [1])], "list of 2 numbers"),
        (CONTROLS, [row("w", 1)], r"a group .* \{camera: \[.*\], hands: 1, jump: 1, walk: 2\}"),
        (CONTROLS, [row("w", {"jmp": 1})], "no component 'jmp'. Did you mean 'jump'"),
        (CONTROLS, [row("w", {"jump": 2})], "no action of Discrete"),
        (CONTROLS, [row("w", {"camera": [1]})], "list of 2 numbers"),
        (spaces.Text(4), [row("w", 1)], "Text actions; a world needs"),
        (spaces.Dict({"say": spaces.Text(4)}), [row("w", {"say": 1})], "component 'say', has Text"),
    ],
)
def test_native_values_that_do_not_fit_are_refused(space, actions, message):
    with pytest.raises(UserError, match=message):
        echo(space, actions=actions)


# --- stepping


def test_repeat_facts_and_the_end():
    world = echo(
        actions=[row("w", 1)], repeat=3, settle=2, idle=0, fps=5, kwargs={"length": 9},
        facts={"coins": "bag.coins"},
    )  # fmt: skip
    first = world.reset(0)
    assert (taken(world), float(first.facts["coins"])) == ([0, 0], 2.0)
    step = world.step(world.spec.actions.press("w"))
    assert (taken(world)[2:], float(step.facts["coins"])) == ([1, 1, 1], 5.0)
    step = world.step(world.spec.actions.press("w"))
    assert not step.truncated
    step = world.step(world.spec.actions.press("w"))
    assert step.truncated
    assert not step.terminated
    assert len(taken(world)) == 9  # no native step after the end
    with pytest.raises(UserError, match="ended"):
        world.step(Action())
    assert not world.reset(0).truncated


def test_an_end_without_a_picture_shows_the_last_one():
    world = echo(actions=[row("w", 1)], kwargs={"length": 2, "black_end": True})
    world.reset(0)
    before = world.step(world.spec.actions.press("w"))
    after = world.step(world.spec.actions.press("w"))
    assert after.terminated
    np.testing.assert_array_equal(after.frame, before.frame)


def test_a_fact_that_is_not_in_info_is_named():
    world = echo(actions=[row("w", 1)], facts={"coins": "bag.coin"})
    with pytest.raises(UserError, match=r"no 'bag.coin'.*Did you mean 'coins'"):
        world.reset(0)


class Picture(Echo):
    """Observes a dictionary with a small map of symbols, a picture and numbers."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode=render_mode)
        image = spaces.Box(0, 255, (7, 7, 3), np.uint8)
        pixels = spaces.Box(0, 255, (32, 64), np.uint8)
        self.observation_space = spaces.Dict(
            {"image": image, "pixels": pixels, "speed": spaces.Box(-1, 1, (2,))}
        )

    def _show(self, value):
        grey = np.tile(np.repeat(np.arange(4, dtype=np.uint8) * 80, 16), (32, 1))
        return {
            "image": np.full((7, 7, 3), 200, np.uint8),
            "pixels": grey,
            "speed": np.zeros(2, np.float32),
        }

    def render(self):
        return np.full((50, 50, 3), 9, np.uint8)


def test_pictures_are_found_resampled_and_cropped(monkeypatch):
    spec = gymnasium.registry["test/Echo-v0"]
    monkeypatch.setattr(spec, "entry_point", Picture)
    base = {"id": "test/Echo-v0", "size": 16, "actions": [row("w", 1)]}
    found = GymWorld(parse_config(base, "p")).reset(0).frame
    np.testing.assert_array_equal(found[3, :, 1], np.repeat([0, 80, 160, 240], 4))  # areas
    middle = GymWorld(parse_config({**base, "fit": "crop"}, "p")).reset(0).frame
    np.testing.assert_array_equal(middle[3, :, 0], np.repeat([80, 160], 8))
    drawn = GymWorld(parse_config({**base, "source": "render"}, "p")).reset(0).frame
    assert (drawn == 9).all()
    wide = GymWorld(parse_config({**base, "size": [8, 32]}, "p"))
    assert (wide.spec.height, wide.spec.width) == (8, 32)
    assert wide.reset(0).frame.shape == (8, 32, 3)
    with pytest.raises(UserError, match="is no picture"):
        GymWorld(parse_config({**base, "source": "obs:image"}, "p"))
    with pytest.raises(UserError, match="Did you mean 'pixels'"):
        GymWorld(parse_config({**base, "source": "obs:pixel"}, "p"))


def test_closing_a_game_leaves_the_viewers_pygame_alone(capsys):
    pygame = pytest.importorskip("pygame")
    pygame.display.init()
    world = make_world("gym:CartPole-v1")
    world.reset(0)
    world.close()
    assert pygame.display.get_init()
    pygame.display.quit()


# --- worlds without a description


def test_keys_are_derived_from_names_and_said_once(capsys, monkeypatch):
    world = make_world("gym:test/Named-v0")
    table = world.spec.actions
    assert [(r.key, r.name) for r in table.rows] == [("space", "fire"), ("w", "up")]
    assert table.press(["w", "space"]).keys == ("space", "w")
    world.reset(0)
    for keys in (["w"], ["space"], ["w", "space"], []):
        world.step(table.press(keys))
    assert taken(world) == [2, 1, 3, 0]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 2
    assert "space fire, w up" in captured.err
    monkeypatch.setattr(multiprocessing.current_process(), "name", "SpawnProcess-2")
    make_world("gym:test/Named-v0")
    assert capsys.readouterr().err == ""


def test_keys_are_derived_from_every_kind_of_space():
    kinds = {
        "Discrete": (spaces.Discrete(3), ["1", "2", "3"]),
        "buttons": (spaces.MultiBinary(3), ["1", "2", "3"]),
        "parts": (spaces.MultiDiscrete([3, 2]), ["1", "2", "3"]),
        "axes": (spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, np.inf])), ["d", "a", "w"]),
        "many": (spaces.MultiBinary(20), None),
        "dict": (CONTROLS, None),
    }
    for name, (space, keys) in kinds.items():
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            world = GymWorld(GymConfig(name, "test/Echo-v0", {"space": space}))
        table = world.spec.actions
        assert keys is None or list(table.keys) == keys
        assert len(table.rows) <= 16
        assert ("4 of its 20 controls have no key" in said.getvalue()) == (name == "many")
        world.reset(0)
        for key in table.keys:
            world.step(table.press([key]))
            assert table.parse(table.text(table.press([key]), "phrase")).keys == (key,)
        natives = [np.asarray(action).tolist() for action in taken(world)]
        assert len({str(native) for native in natives}) == len(table.rows)
        assert all(space.contains(action) for action in taken(world))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minigird", "Did you mean 'minigrid'.*gym:ID"),
        ("gym:Carracing-v3", "Did you mean 'CarRacing-v3'"),
        ("gym:no_such_package:Thing-v0", "needs a package"),
        ("missing.yaml", "Cannot read the world file"),
    ],
)
def test_unknown_worlds_get_a_sentence(name, message):
    with pytest.raises(UserError, match=message) as caught:
        make_world(name)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(UserError, match="pip install 'minigrid'"):
        make_world("minigrid")
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.car_racing", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    with pytest.raises(UserError, match=r"pip install 'gymnasium\[box2d\]'"):
        make_world("carracing")
    with pytest.raises(UserError, match="has no option 'native'"):
        make_world("minigrid", native=120)


# --- descriptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kwarg": {}}, "unknown field 'kwarg'. Did you mean 'kwargs'"),
        ({"id": None}, "'id' is missing"),
        ({"actions": [{"name": "go", "kye": "w", "native": 1}]}, "Did you mean 'key'"),
        ({"actions": [{"name": "go", "key": "w"}]}, r"actions\[0\]: 'native' is missing"),
        ({"actions": [row("w", 1), row("w", 2)]}, "'w' is used twice"),
        ({"actions": [row("w", 1, phrases=["stop"])]}, "'stop' already means"),
        ({"actions": [row("w", 1, phrases=["up and down"])]}, "without"),
        ({"actions": [row("W", 1)]}, "lower case"),
        ({"actions": [row(str(i), 1) for i in range(17)]}, "at most 16"),
        ({"combinations": {"w+x": 1}, "actions": [row("w", 1)]}, "unknown key 'x'"),
        ({"repeat": 0}, "repeat must be a whole number from 1"),
        ({"size": [64]}, "size must be"),
        ({"region": [1, 2, 0, 3]}, "region must be a whole number from 1"),
        ({"fps": -1}, "fps must be above 0"),
        ({"fit": "strech"}, "Did you mean 'stretch'"),
        ({"source": "screen"}, "source: 'screen' is unknown"),
        ({"facts": {"bearing": "b"}}, "named objects"),
        ({"actions": {"w": 1}}, "must be a list"),
    ],
)
def test_mistakes_in_a_description_are_named(change, message, tmp_path):
    data = {"id": "test/Echo-v0", **change}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    with pytest.raises(UserError, match=message) as caught:
        make_world(str(path))
    assert "my.yaml" in str(caught.value)
