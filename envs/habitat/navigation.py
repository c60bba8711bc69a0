"""Policies that find their way over the floor: the shortest path to a goal, and coverage.

They ask the world for ways (`Navigator`), so they work in any world that knows its floor.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from worldmodel.actions import Action
from worldmodel.envs.policies import MixPolicy, Policy
from worldmodel.errors import UserError
from worldmodel.world import Facts, Step, WorldSpec

Keys = tuple[str, ...]

_REACHED = 0.6  # metres from a goal that count as there
_SEEN_AT, _SEEN_ASIDE = 3.0, 40.0  # metres and degrees within which a place counts as seen
_PLACES = 250  # points of the floor that stand for all of it
_PATIENCE = 120  # steps on the way to one goal


@runtime_checkable
class Navigator(Protocol):
    """A world that knows its floor. Points are (x, y, height) in metres."""

    def floor_points(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return points spread evenly over the floor, float [count or a few less, 3]."""
        ...

    def object_points(self) -> np.ndarray:
        """Return the middles of all named things, float [N, 3]."""
        ...

    def path(self, goal: np.ndarray) -> np.ndarray:
        """Return the corners of the way to `goal`, float [N, 3], from the agent's place on."""
        ...


class GeodesicPolicy:
    """Walks the shortest path to one goal after another: named things and places on the floor.

    At a thing it turns to it and waits a moment.
    """

    def __init__(self, seed: int = 0) -> None:
        self._world: Navigator | None = None
        self.reset(seed)

    def attach(self, world: Any) -> None:
        """Say which world is walked in.

        Raises:
            UserError: a world that knows no ways.
        """
        if not isinstance(world, Navigator):
            raise UserError(
                "The policies 'geodesic' and 'coverage' need a world that knows its floor, as "
                "'habitat' does; elsewhere use policy=explore or policy=mix."
            )
        self._world = world

    def reset(self, seed: int) -> None:
        """See `Policy.reset`."""
        self._rng = np.random.default_rng([seed, 5])
        self._queue: deque[Keys] = deque()
        self._goal: np.ndarray | None = None
        self._is_thing = False
        self._left = 0
        self._hits = 0

    def act(self, step: Step, spec: WorldSpec) -> Action:
        """See `Policy.act`."""
        pose = np.asarray(step.facts["pose"], float)
        hit = bool(np.any(step.facts.get("collided", 0.0)))
        self._hits = self._hits + 1 if hit else 0
        self.observe(pose, step.facts)
        if not self._queue:
            self._queue.extend(self._next(pose, spec))
        return spec.actions.press(self._queue.popleft())

    def observe(self, pose: np.ndarray, facts: Facts) -> None:
        """Take note of what is seen."""

    def choose(self, pose: np.ndarray) -> tuple[np.ndarray, bool] | None:
        """Return the next goal and whether it is a thing; None where there is none."""
        things = self.world.object_points()
        if len(things) and self._rng.random() < 0.6:
            return things[int(self._rng.integers(len(things)))], True
        places = self.world.floor_points(8, self._rng)
        return (places[0], False) if len(places) else None

    @property
    def world(self) -> Navigator:
        """The world that is walked in.

        Raises:
            UserError: `attach` was not called.
        """
        if self._world is None:
            raise UserError("This policy needs to be told its world first: attach(world).")
        return self._world

    def _next(self, pose: np.ndarray, spec: WorldSpec) -> list[Keys]:
        if self._goal is None or self._left <= 0:
            chosen = self.choose(pose)
            if chosen is None:
                return [("a",)] * 4
            self._goal, self._is_thing = chosen
            self._left = _PATIENCE
        self._left -= 1
        way = self.world.path(self._goal)
        rest = float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum()) if len(way) else 0.0
        if not len(way) or rest < _REACHED or self._hits > 3:
            return self._arrive(pose, spec, there=len(way) > 0 and rest < _REACHED)
        if self._rng.random() < 0.03:  # now and then it looks around on its way
            side = str(self._rng.choice(["a", "d"]))
            return [(side,)] * int(self._rng.integers(2, 7))
        corner = next((c for c in way[1:] if math.dist(c[:2], pose[:2]) > 0.15), way[-1])
        return [steer(pose, corner, spec)]

    def _arrive(self, pose: np.ndarray, spec: WorldSpec, there: bool) -> list[Keys]:
        goal, self._goal, self._hits = self._goal, None, 0
        assert goal is not None
        if not there:
            return [(str(self._rng.choice(["a", "d"])),)] * int(self._rng.integers(3, 9))
        keys: list[Keys] = []
        if self._is_thing:
            turn, side = _turn(spec), bearing_of(pose, goal)
            keys = [("a" if side > 0 else "d",)] * round(abs(side) / turn)
        keys += [()] * int(self._rng.integers(0, 4))
        if "s" in spec.actions.keys and self._rng.random() < 0.25:
            keys += [("s",)] * int(self._rng.integers(3, 9))
        return keys or [()]


class CoveragePolicy(GeodesicPolicy):
    """Walks to the nearest part of the floor that it has not seen, until all is seen; then anew."""

    def reset(self, seed: int) -> None:
        """See `Policy.reset`."""
        super().reset(seed)
        self._places = np.zeros((0, 3))
        self._seen = np.zeros(0, bool)

    def observe(self, pose: np.ndarray, facts: Facts) -> None:
        """Note which places are in sight: near, ahead, and nothing stands before them."""
        if not len(self._places):
            self._places = self.world.floor_points(_PLACES, self._rng)
            self._seen = np.zeros(len(self._places), bool)
        offset = self._places[:, :2] - pose[:2]
        far = np.linalg.norm(offset, axis=1)
        turn = np.degrees(np.arctan2(offset[:, 1], offset[:, 0])) - pose[2]
        aside = np.abs((turn + 180) % 360 - 180)
        rays = np.asarray(facts["rays"], float)
        ray = rays[np.round((turn % 360) / (360 / len(rays))).astype(int) % len(rays)]
        self._seen |= (far < _REACHED) | ((far < _SEEN_AT) & (aside < _SEEN_ASIDE) & (far < ray))
        if self._goal is not None and not self._is_thing and self._near_seen(self._goal):
            self._goal = None

    @property
    def seen_share(self) -> float:
        """Share of the floor that was seen."""
        return float(self._seen.mean()) if len(self._seen) else 0.0

    def choose(self, pose: np.ndarray) -> tuple[np.ndarray, bool] | None:
        """Return the place not yet seen that is nearest to walk to."""
        if self._seen.all():
            self._seen[:] = False
        unseen = self._places[~self._seen]
        far = np.linalg.norm(unseen[:, :2] - pose[:2], axis=1)
        best: tuple[float, np.ndarray] | None = None
        for place in unseen[np.argsort(far)[:8]]:
            way = self.world.path(place)
            length = float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum())
            if len(way) and (best is None or length < best[0]):
                best = length, place
        return (best[1], False) if best else None

    def _near_seen(self, goal: np.ndarray) -> bool:
        near = int(np.linalg.norm(self._places - goal, axis=1).argmin())
        return bool(self._seen[near])


class RovingPolicy(MixPolicy):
    """`mix`, which in a world that knows its floor takes the two above instead of its own two."""

    def __init__(self, seed: int = 0) -> None:
        self._ways: tuple[CoveragePolicy, GeodesicPolicy] | None = None
        super().__init__(seed)

    def attach(self, world: Any) -> None:
        """Say which world is walked in; any will do."""
        if isinstance(world, Navigator):
            self._ways = CoveragePolicy(self._seed), GeodesicPolicy(self._seed)
            for way in self._ways:
                way.attach(world)

    def reset(self, seed: int) -> None:
        """See `Policy.reset`."""
        super().reset(seed)
        self._seed, self._turn, self._steps = seed, 0, 0
        for way in self._ways or ():
            way.reset(seed)

    def act(self, step: Step, spec: WorldSpec) -> Action:
        """See `Policy.act`."""
        if self._ways is None:
            return super().act(step, spec)
        if self._steps == 0:
            self._turn = int(self._rng.choice(3, p=[0.35, 0.47, 0.18]))
            self._steps = int(self._rng.integers(20, 61))
        self._steps -= 1
        if self._turn < 2:
            return self._ways[self._turn].act(step, spec)
        return self._parts[2].act(step, spec)


def steer(pose: np.ndarray, point: np.ndarray, spec: WorldSpec) -> Keys:
    """Return the keys that lead from a pose towards a point."""
    turn, side = _turn(spec), bearing_of(pose, point)
    key = "a" if side > 0 else "d"
    if abs(side) <= turn / 2:
        return ("w",)
    both = spec.actions.press(("w", key)).keys
    return ("w", key) if abs(side) <= 2 * turn and len(both) == 2 else (key,)


def bearing_of(pose: np.ndarray, point: np.ndarray) -> float:
    """Return the degrees from straight ahead to a point, positive to the left."""
    turn = math.degrees(math.atan2(point[1] - pose[1], point[0] - pose[0])) - pose[2]
    return (turn + 180) % 360 - 180


def _turn(spec: WorldSpec) -> float:
    return next((row.dyaw for row in spec.actions.rows if row.key == "a"), 15.0)


POLICIES: dict[str, Callable[[int], Policy]] = {
    "geodesic": GeodesicPolicy,
    "coverage": CoveragePolicy,
    "mix": RovingPolicy,
}
