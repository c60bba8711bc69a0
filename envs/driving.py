"""A policy that drives along a road, as people do: well, badly, too fast, and off the road."""

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from worldmodel.actions import Action
from worldmodel.envs.policies import Keys, Policy, RandomPolicy
from worldmodel.world import Facts, Step, WorldSpec

# What is done for a while, how often it is chosen, and for how many steps.
_STRETCHES: tuple[tuple[str, float, int, int], ...] = (
    ("drive", 0.56, 25, 70), ("fast", 0.10, 20, 50), ("swerve", 0.10, 15, 40),
    ("leave", 0.08, 12, 35), ("halt", 0.08, 10, 30), ("roll", 0.03, 5, 15),
    ("random", 0.05, 8, 30),
)  # fmt: skip
_BACKWARD = 0.2  # share of episodes that go along the road the other way


class DrivePolicy:
    """Follows the road at changing speeds, and in between does what drivers should not.

    It swerves, races, leaves the road and comes back, stops and waits, rolls on, and presses keys
    at random. Some episodes turn round first. Without the facts `velocity` and `road` it is a
    random walk.
    """

    def __init__(self, seed: int = 0) -> None:
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """See `Policy.reset`."""
        self._rng = np.random.default_rng(seed)
        self._random = RandomPolicy(seed)
        self._way = -1 if self._rng.random() < _BACKWARD else 1
        self._stretch, self._left = "halt", int(self._rng.integers(0, 8))
        self._speed, self._aside, self._holds = 0.0, 0.0, False
        self._skill = float(self._rng.uniform(2.0, 7.0))  # degrees that are not yet corrected
        self._steer: deque[str] = deque()

    def act(self, step: Step, spec: WorldSpec) -> Action:
        """See `Policy.act`."""
        if not {"velocity", "road"} <= set(step.facts):
            return self._random.act(step, spec)
        if self._left == 0:
            self._choose()
        self._left -= 1
        if self._stretch == "random":
            return self._random.act(step, spec)
        pressed = self._pedal(step.facts) + self._wheel(step.facts)
        return spec.actions.press(key for key in pressed if key in spec.actions.keys)

    def _choose(self) -> None:
        kinds, shares, least, most = zip(*_STRETCHES, strict=True)
        pick = int(self._rng.choice(len(kinds), p=np.array(shares) / sum(shares)))
        self._stretch = kinds[pick]
        self._left = int(self._rng.integers(least[pick], most[pick] + 1))
        self._speed = float(self._rng.uniform(12, 45))
        self._aside = float(self._rng.uniform(-4, 4))
        if self._stretch == "fast":
            self._speed = 80.0
        if self._stretch == "swerve":
            self._aside = float(self._rng.choice([-1, 1]) * self._rng.uniform(4, 8))
        if self._stretch == "leave":
            self._aside = float(self._rng.choice([-1, 1]) * self._rng.uniform(9, 22))
        if self._stretch == "halt":
            self._holds = bool(self._rng.random() < 0.3)  # the brake, when the car stands

    def _pedal(self, facts: Facts) -> Keys:
        speed = _speed(facts)
        if self._stretch == "halt":
            return ("s",) if speed > 0.5 or self._holds else ()
        if self._stretch == "roll":
            return ()
        wanted = self._speed
        if self._stretch in ("drive", "swerve"):
            # A road that bends is taken more slowly: it may pull sideways only so much.
            bend = _bend(_along(facts, self._way), reach=4 + speed * 0.6)
            wanted = min(wanted, math.sqrt(45 / max(bend, 1e-3)))
        if speed > wanted + 3:
            return ("s",)
        return ("w",) if speed < wanted - 1 else ()

    def _wheel(self, facts: Facts) -> Keys:
        """Return the key that turns towards a point of the road ahead, held as a hand does."""
        if self._steer:
            key = self._steer.popleft()
            return (key,) if key else ()
        speed = _speed(facts)
        if speed < 1:
            return ()
        road = _along(facts, self._way)
        distance = np.hypot(*road.T)
        reach = 6 + 0.35 * speed + abs(self._aside) / 2
        k = int(np.argmax(distance * (np.arange(len(road)) > distance.argmin()) >= reach))
        k = k or len(road) - 1
        ahead = road[k] - road[k - 1]
        ahead = ahead / max(float(np.hypot(*ahead)), 1e-6)
        goal = road[k] + self._aside * np.array([-ahead[1], ahead[0]])
        bearing = math.degrees(math.atan2(goal[1], goal[0]))
        if abs(bearing) < self._skill:
            return ()
        key = "a" if bearing > 0 else "d"
        # The further it is off, the longer the wheel is held; in between it is let go.
        held = int(np.clip(abs(bearing) / 14, 1, 4))
        self._steer.extend([key] * (held - 1) + [""] * int(self._rng.integers(0, 2)))
        return (key,)


def _speed(facts: Facts) -> float:
    return float(np.hypot(*facts["velocity"]))


def _along(facts: Facts, way: int) -> np.ndarray:
    """Return the points of the road, metres ahead and to the left [K, 2], in driving order."""
    return np.asarray(facts["road"], float)[::way]


def _bend(road: np.ndarray, reach: float) -> float:
    """Return the strongest curvature, in 1/m, from the nearest point on for `reach` metres."""
    first = int(np.hypot(*road.T).argmin())
    part = np.diff(road[first : first + 3 + round(reach / 3.5)], axis=0)
    if len(part) < 2:
        return 0.0
    yaw = np.unwrap(np.arctan2(part[:, 1], part[:, 0]))
    return float(np.abs(np.diff(yaw)).max() / 3.5)


POLICIES: dict[str, Callable[[int], Policy]] = {"drive": DrivePolicy}
