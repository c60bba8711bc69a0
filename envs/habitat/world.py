"""HabitatWorld: scenes of habitat-sim as a World."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldmodel.actions import Action
from worldmodel.envs.doom.levels import SPLITS
from worldmodel.envs.habitat import config as describing
from worldmodel.envs.habitat import rooms
from worldmodel.envs.habitat.config import HabitatConfig
from worldmodel.envs.habitat.simulator import Simulator, load_library
from worldmodel.envs.scratch import Scratch
from worldmodel.errors import UserError, suggest
from worldmodel.world import Step, WorldSpec

FPS = 8.0
RAYS = 24  # directions of the `rays` fact

_MIN_PIXELS = 0.0015  # a thing counts as visible from this share of the picture
_MAX_OBJECTS = 64  # names that are taken from a scene unasked


class HabitatWorld:
    """A scene of habitat-sim seen through the eyes of a walker. Implements `World`.

    Besides the documented facts `pose`, `free`, `bearing` and `distance` (the last two where the
    scene names what is in it) it gives `rays` float32 [24], metres to what stops the agent every
    15 degrees counter-clockwise from straight ahead, of which `free` is the first; `collided`
    float32 [1], 1 where the step led less far than it should have; and where the description asks
    for them `depth` float32 [size, size], metres along the axis of view, 0 where nothing is, and
    `semantic` int32 [size, size].

    A split has scenes of its own where there are at least three, and starts of its own in one.

    Args:
        config: what is opened and how.
        split: 'train', 'val' or 'test'.

    Raises:
        UserError: an unknown split; habitat-sim or a renderer is missing; a scene that cannot be
            opened, or in which nobody can walk; another Habitat world in this process.
    """

    def __init__(self, config: HabitatConfig, split: str = "train") -> None:
        if split not in SPLITS:
            raise UserError(f"Unknown split '{split}'.{suggest(split, SPLITS)}")
        self._split, self._seed, self._native_seed = split, -1, -1
        self._scratch = Scratch(self, "habitat")
        try:
            self._begin(config)
        except BaseException:
            self.close()
            raise

    def _begin(self, config: HabitatConfig) -> None:
        made = config.scene == describing.ROOMS
        if made:  # from here on a path into the scratch folder stands in for it
            load_library()  # what is missing is said before work is done
            path = rooms.write_dataset(self._scratch.path / "rooms")
            config = replace(config, scene=str(path))
        self._simulator = Simulator(config, self._scratch)
        self._config, self._scene = config, ""
        scenes: tuple[str, ...] = (config.scene,)
        if config.is_dataset:
            scenes = self._simulator.dataset_scenes(config.scene)
        for name in config.scenes:
            if name not in scenes:
                raise UserError(f"habitat: there is no scene '{name}'.{suggest(name, scenes)}")
        scenes = config.scenes or scenes
        self._by_scene = len(scenes) >= len(SPLITS)
        self._scenes = describing.split_scenes(scenes, self._split) if self._by_scene else scenes
        names = rooms.KINDS if made else config.objects
        if not names:
            # The names must not depend on the split: all three may go into one store.
            self._open(scenes[0])
            found = {thing.name for thing in self._simulator.things.values()}
            names = tuple(sorted(found)[:_MAX_OBJECTS])
        size, table = config.size, describing.action_table(config)
        self._spec = WorldSpec("habitat", table, size, size, FPS, objects=names)

    @property
    def spec(self) -> WorldSpec:
        """The world's description."""
        return self._spec

    @property
    def simulator(self) -> Simulator:
        """The simulator that plays it."""
        return self._simulator

    @property
    def info(self) -> dict[str, Any]:
        """Where the current episode comes from, as plain values."""
        if self._by_scene:
            where = {"scene": self._scene, "start_seed": self._native_seed}
        else:
            where = {"file": Path(self._scene).name, "level_seed": self._native_seed}
        return {"world": "habitat", "split": self._split, **where}

    def reset(self, seed: int | None = None) -> Step:
        """Start at the place that the seed picks; None takes the seed after the last one."""
        seed = self._seed + 1 if seed is None else int(seed)
        if seed < 0:
            raise UserError(f"A seed is a whole number from 0, got {seed}.")
        if not self._scratch.alive:
            raise UserError("The world is closed; make a new one.")
        self._seed = seed
        self._native_seed = seed
        if not self._by_scene:  # no two splits share a start
            self._native_seed = seed * len(SPLITS) + SPLITS.index(self._split)
        self._open(self._scenes[seed // self._config.repeat % len(self._scenes)])
        rng = np.random.default_rng([self._native_seed, 11])
        places = self._simulator.places(16, rng)
        if not len(places):
            raise UserError(f"habitat: there is no place to stand on in {self._scene}.")
        self._simulator.place(places[0], float(rng.uniform(0, 360)))
        return self._look("", False)

    def step(self, action: Action) -> Step:
        """Do one action and return what is seen then.

        Raises:
            UserError: no `reset` yet, or with `control: discrete` an action that no key makes.
        """
        if not self._scene or not self._simulator.is_open:
            raise UserError("The world has no scene yet: call reset() first.")
        if self._config.control == "discrete":
            if not action.keys and not action.idle:
                raise UserError("habitat: control: discrete takes keys, not metres and degrees.")
            action = self._spec.actions.press(action.keys)
            hit = [self._simulator.act(describing.NATIVE[key]) for key in action.keys]
            return self._look(self._spec.actions.text(action), any(hit))
        collided = False
        if not action.idle:
            ahead, left = describing.arc(action)
            collided = self._simulator.move(ahead, left, action.dyaw)
        return self._look(self._spec.actions.text(action), collided)

    def close(self) -> None:
        """Close the simulator and remove the scratch folder."""
        simulator = getattr(self, "_simulator", None)
        if simulator is not None:
            simulator.close()
        self._scratch.close()

    # What policies ask for to find their way (`navigation.Navigator`); points are (x, y, height).

    def floor_points(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return points spread evenly over the floor, float [count or a few less, 3]."""
        return _ours(self._simulator.places(count, rng))

    def object_points(self) -> np.ndarray:
        """Return the middles of all named things, float [N, 3]."""
        return _ours([thing.centre for thing in self._simulator.things.values()])

    def path(self, goal: np.ndarray) -> np.ndarray:
        """Return the corners of the shortest way from the agent to `goal`, float [N, 3].

        It ends where one can stand nearest to the goal; N is 0 where there is no way.
        """
        return _ours(self._simulator.path(describing.to_theirs(*goal)))

    def _open(self, scene: str) -> None:
        if scene != self._scene or not self._simulator.is_open:
            self._simulator.open(scene)
            self._scene = scene

    def _look(self, text: str, collided: bool) -> Step:
        seen, size = self._simulator.look(), self._config.size
        color = np.ascontiguousarray(seen["color"][..., :3])
        frame = cv2.resize(color, (size, size), interpolation=cv2.INTER_AREA)
        x, y, _ = describing.to_ours(*(float(v) for v in self._simulator.position))
        rays = self._simulator.rays(RAYS)
        facts: dict[str, Any] = {
            "pose": np.array([x, y, self._simulator.yaw], np.float32),
            "free": np.float32(rays[0]),
            "rays": rays,
            "collided": np.array([collided], np.float32),
        }
        if self._spec.objects:
            facts["bearing"], facts["distance"] = self._visible(seen["semantic"], x, y)
        if self._config.depth:
            facts["depth"] = _smaller(seen["depth"].astype(np.float32), size)
        if self._config.semantic:
            facts["semantic"] = _smaller(seen["semantic"].astype(np.int32), size)
        return Step(frame, facts=facts, text=text)

    def _visible(self, semantic: np.ndarray, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Return bearing and distance of the nearest visible thing of each name."""
        bearing = np.full(len(self._spec.objects), np.nan, np.float32)
        distance = np.full(len(self._spec.objects), np.nan, np.float32)
        ids, pixels = np.unique(semantic, return_counts=True)
        for number in ids[pixels >= _MIN_PIXELS * semantic.size].tolist():
            thing = self._simulator.things.get(number)
            if thing is None or thing.name not in self._spec.objects:
                continue
            kind = self._spec.objects.index(thing.name)
            east, north, _ = describing.to_ours(*thing.centre)
            far = math.hypot(east - x, north - y)
            if np.isnan(distance[kind]) or far < distance[kind]:
                turn = math.degrees(math.atan2(north - y, east - x)) - self._simulator.yaw
                bearing[kind], distance[kind] = (turn + 180) % 360 - 180, far
        return bearing, distance


def _ours(points: Any) -> np.ndarray:
    moved = [describing.to_ours(*(float(v) for v in point)) for point in points]
    return np.array(moved, float).reshape(-1, 3)


def _smaller(picture: np.ndarray, size: int) -> np.ndarray:
    """Return a picture of measures in a smaller size, without mixing what lies side by side."""
    middle = ((np.arange(size) + 0.5) * len(picture) / size).astype(int)
    return picture[middle][:, middle]
