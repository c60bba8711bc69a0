"""Policies that collect episodes: they hold keys for several steps, as a person does."""

import math
from collections import deque
from collections.abc import Callable
from itertools import combinations
from typing import Protocol

import numpy as np

from worldmodel.actions import Action, ActionTable
from worldmodel.errors import UserError, suggest
from worldmodel.world import Facts, Step, WorldSpec

Keys = tuple[str, ...]
Cell = tuple[int, int]

_RESTS = 0.25  # share of a mixed policy's stretches that begin with a rest
_SEEN_RANGE = 8.0  # metres in sight that count as explored
_RANGE = 12.0  # metres of a ray that are drawn into the map
_REACH = np.arange(0.5, _RANGE, 0.7)  # metres along a ray at which a cell is looked at
_NEAR = int((_REACH < _SEEN_RANGE).sum())
_ROW = 1 << 20  # cells to a row, where cells are numbered
_HALF = _ROW // 2


class Policy(Protocol):
    """Chooses actions from what a world shows."""

    def reset(self, seed: int) -> None:
        """Forget the episode and draw anew from `seed`."""
        ...

    def act(self, step: Step, spec: WorldSpec) -> Action:
        """Return the action that follows `step`."""
        ...


def make_policy(name: str, seed: int = 0) -> Policy:
    """Return the policy of that name: explore, goto, random or mix.

    Raises:
        UserError: an unknown name.
    """
    if name not in POLICIES:
        raise UserError(f"Unknown policy '{name}'.{suggest(name, POLICIES)}")
    return POLICIES[name](seed)


class RandomPolicy:
    """A random walk over key combinations, each held for a while.

    A world with the six keys of a walker gets combinations that suit one; any other world its
    own keys, alone or two that can be held together.
    """

    _WALKER: tuple[tuple[Keys, float], ...] = (
        (("w",), 4), (("w", "a"), 2), (("w", "d"), 2), (("a",), 2), (("d",), 2), (("s",), 1.5),
        (("q",), 1.2), (("e",), 1.2), ((), 1), (("w", "q"), 0.6), (("w", "e"), 0.6),
        (("a", "e"), 0.6), (("d", "q"), 0.6), (("s", "a"), 0.5), (("s", "d"), 0.5),
        (("a", "q"), 0.3), (("d", "e"), 0.3), (("s", "q"), 0.2), (("s", "e"), 0.2),
    )  # fmt: skip

    def __init__(self, seed: int = 0) -> None:
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """See `Policy.reset`."""
        self._rng = np.random.default_rng(seed)
        self._queue: deque[Keys] = deque()
        self._choices: tuple[tuple[Keys, float], ...] = ()
        self._taste: np.ndarray | None = None

    def act(self, step: Step, spec: WorldSpec) -> Action:
        """See `Policy.act`."""
        self._look_at(spec)
        if not self._queue:
            self._queue.extend(self.segment(step.facts))
        return _press(spec, self._queue.popleft())

    def segment(self, facts: Facts) -> list[Keys]:
        """Return the next keys, one entry per step."""
        weights = np.array([weight for _, weight in self._choices])
        if self._taste is not None:
            weights = weights * self._taste
        if _free(facts) < 1.2:
            weights = weights * [0.1 if "w" in keys else 1.0 for keys, _ in self._choices]
        pick = int(self._rng.choice(len(weights), p=weights / weights.sum()))
        return [self._choices[pick][0]] * int(self._rng.integers(2, 11))

    def vary(self, spec: WorldSpec) -> None:
        """Take a liking to some of the keys, until the next time."""
        self._look_at(spec)
        liking = {key: self._rng.gamma(0.5) + 0.02 for key in ("", *spec.actions.keys)}
        held = [keys or ("",) for keys, _ in self._choices]
        self._taste = np.array([math.prod(liking[k] for k in ks) ** (1 / len(ks)) for ks in held])

    def _look_at(self, spec: WorldSpec) -> None:
        if not self._choices:
            walker = set(spec.actions.keys) == set("wasdqe")
            self._choices = self._WALKER if walker else _choices(spec.actions)


class ExplorePolicy:
    """Walks to places not yet seen, over a map that it draws from pose and rays.

    Now and then it looks around, strafes, walks backward or waits. Without the facts `pose` and
    `rays` it is a random walk.
    """

    def __init__(self, seed: int = 0) -> None:
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """See `Policy.reset`."""
        self._rng = np.random.default_rng(seed)
        self._random = RandomPolicy(seed)
        self._queue: deque[Keys] = deque()
        self._map, self._draws = _Map(), True
        self._goal: Cell | None = None
        self._last: tuple[np.ndarray, Keys] | None = None
        self._blocked_for = 0

    def act(self, step: Step, spec: WorldSpec) -> Action:
        """See `Policy.act`."""
        if "pose" not in step.facts or "rays" not in step.facts:
            return self._random.act(step, spec)
        self.observe(step.facts)
        if self._blocked_for >= 2:
            self._free_itself(step.facts)
        if not self._queue:
            self._queue.extend(self.segment(step.facts))
        keys = self._queue.popleft()
        self._last = np.array(step.facts["pose"]), keys
        return _press(spec, keys)

    def observe(self, facts: Facts) -> None:
        """Draw what is seen into the map, and notice when a step led nowhere."""
        pose = np.asarray(facts["pose"], float)
        if self._draws:
            self._map.draw(pose, np.asarray(facts["rays"], float))
        if self._last is not None:
            before, keys = self._last
            moved = math.hypot(*(pose[:2] - before[:2]))
            wanted = bool(set(keys) & {"w", "s", "q", "e"})
            self._blocked_for = self._blocked_for + 1 if wanted and moved < 0.2 else 0

    def watch(self, facts: Facts) -> None:
        """Keep the map up to date while another policy acts."""
        self._last = None
        self._queue.clear()
        self.observe(facts)

    def look_through(self, other: "ExplorePolicy") -> None:
        """Use what `other` draws, which sees the same, instead of drawing it again."""
        self._map.share(other._map)
        self._draws = False

    def segment(self, facts: Facts) -> list[Keys]:
        """Return the next keys, one entry per step."""
        if self._rng.random() < 0.2:
            return self._variety(facts)
        return self._towards_unseen(facts)

    def _variety(self, facts: Facts) -> list[Keys]:
        if self._rng.random() < 0.35:
            return self._there_and_back()
        turn, side = str(self._rng.choice(["a", "d"])), str(self._rng.choice(["q", "e"]))
        choices: list[tuple[Keys, int, int]] = [
            ((), 4, 11), ((turn,), 4, 17), ((turn,), 4, 9), ((side,), 4, 12), (("s",), 4, 10),
            (("w", side), 3, 9), (("s", turn), 3, 7), (("s", side), 3, 7), ((turn, side), 3, 9),
            (("a", "e") if side == "e" else ("d", "q"), 4, 11),
        ]  # fmt: skip
        keys, low, high = choices[int(self._rng.integers(len(choices)))]
        return [keys] * int(self._rng.integers(low, high))

    def _there_and_back(self) -> list[Keys]:
        """Look or step away and come back: what was there is to be remembered."""
        pairs = (("a", "d"), ("d", "a"), ("a", "d"), ("d", "a"), ("q", "e"), ("e", "q"), ("s", "w"))
        there, back = pairs[int(self._rng.integers(len(pairs)))]
        times, rest = (int(n) for n in self._rng.integers((2, 0), (10, 4)))
        return [(there,)] * times + [()] * rest + [(back,)] * times

    def _free_itself(self, facts: Facts) -> None:
        """Back out of a corner and give up the present goal."""
        assert self._last is not None
        pose, keys = self._last
        if "w" in keys:
            self._map.block(pose)
        self._goal, self._blocked_for = None, 0
        rays = np.asarray(facts["rays"], float)
        quarter = len(rays) // 4
        side = "q" if rays[quarter] > rays[3 * quarter] else "e"
        turn = "a" if side == "q" else "d"
        if "s" in keys:
            way: list[Keys] = [("w",)] * 2
        else:
            way = [("s",)] * int(self._rng.integers(1, 3)) + [(side,)] * 2
        self._queue = deque([*way, *[(turn,)] * int(self._rng.integers(1, 5))])

    def _towards_unseen(self, facts: Facts) -> list[Keys]:
        pose = np.asarray(facts["pose"], float)
        here = _cell(pose[0], pose[1])
        if self._goal is None or self._goal == here or self._map.seen(self._goal):
            self._goal = self._map.pick_goal(pose, self._rng)
        way = self._map.way_point(here, self._goal)
        if way is None:
            self._goal = None
            return self._variety(facts)
        dx, dy = way[0] + 0.5 - pose[0], way[1] + 0.5 - pose[1]
        bearing = _wrap(math.degrees(math.atan2(dy, dx)) - pose[2])
        return self.steer(bearing, math.hypot(dx, dy), facts)

    def steer(self, bearing: float, distance: float, facts: Facts) -> list[Keys]:
        """Return keys that lead to a point at `bearing` degrees (left positive), `distance` m."""
        turn = "a" if bearing > 0 else "d"
        times = max(1, round(abs(bearing) / 11.25))
        if abs(bearing) > 60 or (abs(bearing) > 20 and _free(facts) < 2.5):
            return [(turn,)] * min(times, 8)
        if abs(bearing) > 8:
            side = "q" if bearing > 0 else "e"
            ways: tuple[Keys, ...] = ((turn,), ("w", turn), ("w", side), (side,))
            walk = ways[int(self._rng.choice(4, p=[0.2, 0.58, 0.14, 0.08]))]
            return [walk] * min(times, 4)
        ahead = min(distance, _free(facts) - 0.6)
        return [("w",)] * int(np.clip(ahead / 0.5, 1, 6))


class GotoPolicy(ExplorePolicy):
    """Turns and walks to objects that it sees, one after another; explores in between."""

    def reset(self, seed: int) -> None:
        """See `Policy.reset`."""
        super().reset(seed)
        self._target: int | None = None
        self._patience = 0
        self._only_look = False
        self._done: deque[int] = deque(maxlen=2)

    def segment(self, facts: Facts) -> list[Keys]:
        """Return the next keys, one entry per step."""
        distance = np.asarray(facts.get("distance", ()), float)
        if self._target is None or self._patience <= 0:
            self._choose(distance)
        self._patience -= 1
        if self._target is None or np.isnan(distance[self._target]):
            self._target = None
            return super().segment(facts)
        bearing = float(np.asarray(facts["bearing"])[self._target])
        far = float(distance[self._target])
        if (self._only_look and abs(bearing) < 7) or far < 1.8:
            return self._arrive()
        if self._only_look:
            return [("a" if bearing > 0 else "d",)]
        return self.steer(bearing, max(far - 1.4, 0.5), facts)[:3]

    def _choose(self, distance: np.ndarray) -> None:
        visible = [int(k) for k in np.flatnonzero(~np.isnan(distance)) if k not in self._done]
        self._target = int(self._rng.choice(visible)) if visible else None
        self._patience = 40
        self._only_look = bool(self._rng.random() < 0.3)

    def _arrive(self) -> list[Keys]:
        """Rest a moment, then turn away or step back, and look for something else."""
        assert self._target is not None
        self._done.append(self._target)
        self._target = None
        turn = str(self._rng.choice(["a", "d"]))
        after: list[Keys] = [(turn,)] * int(self._rng.integers(5, 13))
        if self._rng.random() < 0.3:
            after = [("s",)] * int(self._rng.integers(3, 8)) + after
        return [()] * int(self._rng.integers(0, 4)) + after


class MixPolicy:
    """Explores, goes to objects or wanders; changes over every 20 to 60 steps, or rests before.

    Without rests a model hardly sees a view that stays, and its dreams drift when left alone.

    In a world without the facts `pose` and `rays` it wanders with a liking for some of the keys,
    and changes its likings over: some stretches are all driving, others all turning.
    """

    def __init__(self, seed: int = 0) -> None:
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """See `Policy.reset`."""
        self._rng = np.random.default_rng(seed)
        self._parts = (ExplorePolicy(seed), GotoPolicy(seed), RandomPolicy(seed))
        self._parts[1].look_through(self._parts[0])
        self._now, self._left, self._rest = 0, 0, 0

    def act(self, step: Step, spec: WorldSpec) -> Action:
        """See `Policy.act`."""
        blind = "pose" not in step.facts or "rays" not in step.facts
        if self._left == 0:
            self._now = 2 if blind else int(self._rng.choice(3, p=[0.47, 0.35, 0.18]))
            self._left = int(self._rng.integers(20, 61))
            self._rest = int(self._rng.integers(4, 31)) if self._rng.random() < _RESTS else 0
            if blind:
                self._parts[2].vary(spec)
        rests = self._rest > 0
        for n, part in enumerate(self._parts[:2]):
            if (rests or n != self._now) and "rays" in step.facts:
                part.watch(step.facts)
        if rests:
            self._rest -= 1
            return _press(spec, ())
        self._left -= 1
        return self._parts[self._now].act(step, spec)


POLICIES: dict[str, Callable[[int], Policy]] = {
    "explore": ExplorePolicy,
    "goto": GotoPolicy,
    "random": RandomPolicy,
    "mix": MixPolicy,
}


class _Map:
    """Cells of one metre: known to be free, and explored."""

    def __init__(self) -> None:
        self._free: set[Cell] = set()
        self._seen: set[Cell] = set()
        self._blocked: set[Cell] = set()
        self._drawn: tuple[set[int], set[int]] = set(), set()  # cells that draw() added, numbered

    def share(self, other: "_Map") -> None:
        """Know from now on what `other` knows, but for what is blocked."""
        self._free, self._seen = other._free, other._seen

    def draw(self, pose: np.ndarray, rays: np.ndarray) -> None:
        """Add what is known at a pose with distances to the walls around it."""
        x, y, yaw = pose
        angles = np.radians(yaw + np.arange(len(rays)) * (360 / len(rays)))
        ways = np.array([np.cos(angles), np.sin(angles)])
        places = pose[:2, None, None] + ways[:, :, None] * _REACH
        numbers = np.floor(places).astype(np.int64)
        numbers = numbers[0] * _ROW + numbers[1]
        open_ = rays[:, None] - 0.7 > _REACH
        here = _cell(x, y)
        free, seen = self._drawn
        # Columns are in order of distance; those that are near come first.
        for cells, drawn, near in ((self._free, free, len(_REACH)), (self._seen, seen, _NEAR)):
            cells.add(here)
            # Nearly all are known already: only numbers are compared, which is cheap.
            new = set(numbers[:, :near][open_[:, :near]].tolist()) - drawn
            drawn |= new
            cells.update(((n + _HALF) // _ROW, (n + _HALF) % _ROW - _HALF) for n in new)

    def block(self, pose: np.ndarray) -> None:
        """Note that something unseen stands before a pose."""
        angle = math.radians(pose[2])
        ahead = _cell(pose[0] + math.cos(angle) * 1.1, pose[1] + math.sin(angle) * 1.1)
        self._blocked.add(ahead)

    def seen(self, cell: Cell) -> bool:
        """Whether a cell is explored."""
        return cell in self._seen

    def pick_goal(self, pose: np.ndarray, rng: np.random.Generator) -> Cell | None:
        """Return a free cell to explore, rather near and ahead; a far one if all is seen."""
        came = self._flood(_cell(pose[0], pose[1]))
        cells = list(came)  # in order of path length
        unseen = [(n, c) for n, c in enumerate(cells) if c not in self._seen]
        if not unseen:
            return cells[int(rng.integers(len(cells) // 2, len(cells)))]
        picks = [unseen[int(k)] for k in rng.permutation(len(unseen))[:40]]
        order, found = np.array([n for n, _ in picks]), np.array([c for _, c in picks])
        angle = np.degrees(np.arctan2(found[:, 1] + 0.5 - pose[1], found[:, 0] + 0.5 - pose[0]))
        turn = np.abs((angle - pose[2] + 180) % 360 - 180)
        gain = np.array([self._unseen_around(c) for _, c in picks])
        # A large unseen area is worth a long walk; a corner left over is not.
        worth = gain / 8 - order / 80 - turn / 90 + rng.gumbel(0, 0.4, len(picks))
        return picks[int(worth.argmax())][1]

    def _unseen_around(self, cell: Cell) -> int:
        near = [(cell[0] + i, cell[1] + j) for i in range(-2, 3) for j in range(-2, 3)]
        return sum(c in self._free and c not in self._seen for c in near)

    def way_point(self, here: Cell, goal: Cell | None) -> Cell | None:
        """Return the farthest cell on the path to `goal` that can be walked to straight."""
        came = self._flood(here, goal)
        if goal is None or goal not in came or goal == here:
            return None
        path = [goal]
        while came[path[-1]] != here:
            path.append(came[path[-1]])
        for cell in path:
            if self._straight(here, cell):
                return cell
        return path[-1]

    def _flood(self, start: Cell, goal: Cell | None = None) -> dict[Cell, Cell]:
        """Return each reachable cell's predecessor, in order of path length."""
        free = self._free - self._blocked
        came = {start: start}
        queue = deque([start])
        while queue:
            i, j = cell = queue.popleft()
            if cell == goal:
                break
            for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if near in free and near not in came:
                    came[near] = cell
                    queue.append(near)
        return came

    def _straight(self, a: Cell, b: Cell) -> bool:
        steps = 2 * max(abs(b[0] - a[0]), abs(b[1] - a[1])) + 1
        xs = np.linspace(a[0] + 0.5, b[0] + 0.5, steps)
        ys = np.linspace(a[1] + 0.5, b[1] + 0.5, steps)
        cells = {_cell(x, y) for x, y in zip(xs, ys, strict=True)}
        return cells <= self._free and not cells & self._blocked


def _choices(table: ActionTable) -> tuple[tuple[Keys, float], ...]:
    """Return the keys of a table, alone and in pairs, with how often each is wanted."""
    single = [((key,), 4.0 if key == "w" else 2.0) for key in table.keys]
    paired = [keys for keys in combinations(table.keys, 2) if len(table.press(keys).keys) == 2]
    # All pairs together are wanted half as often as all single keys, however many there are.
    each = len(single) / max(len(paired), 1)
    return (((), 1.0), *single, *((keys, min(each, 1.0)) for keys in paired))


def _press(spec: WorldSpec, keys: Keys) -> Action:
    return spec.actions.press(key for key in keys if key in spec.actions.keys)


def _free(facts: Facts) -> float:
    """Return the metres of free way ahead; 9 where nobody knows."""
    return float(facts.get("free", facts.get("wall", 9.0)))


def _cell(x: float, y: float) -> Cell:
    return math.floor(x), math.floor(y)


def _wrap(angle: float) -> float:
    return (angle + 180) % 360 - 180
