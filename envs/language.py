"""Sentences from facts: captions, questions with answers, and hindsight instructions.

Every sentence is true of the frames it is about. Objects count only while the facts call them
visible; left and right are as seen by the agent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from worldmodel.actions import ActionTable
from worldmodel.envs.doom.textures import THEMES
from worldmodel.world import Annotation, Episode, Facts, WorldSpec

DARK, BRIGHT = 0.3, 0.75  # light below is dark, from is bright; between is dim
ASIDE = 9.0  # degrees from straight ahead at which something is to the left or right
NEAR, FAR = 4.0, 10.0  # metres

_CLIP_STEPS = (6, 8, 10, 12, 16, 20, 24)

_PHRASES: Mapping[str, tuple[str, ...]] = {
    "left": ("turn left", "look to the left", "rotate left"),
    "right": ("turn right", "look to the right", "rotate right"),
    "around": ("turn around", "look behind you", "make a half turn"),
    "forward": ("go forward", "walk straight ahead", "keep going forward", "move ahead"),
    "back": ("step back", "go backward", "back up", "walk backward"),
    "strafe left": ("step to the left", "sidestep left", "strafe left"),
    "strafe right": ("step to the right", "sidestep right", "strafe right"),
    "forward left": ("go forward and turn left", "walk in a curve to the left"),
    "forward right": ("go forward and turn right", "walk in a curve to the right"),
    "still": ("stand still", "wait", "do not move", "stay where you are"),
    "wall": ("go to the wall", "walk up to the wall", "go forward to the wall"),
    "lighten": (
        "leave the dark room",
        "get out of the shadow",
        "go into the light",
        "leave the darkness",
        "go to a brighter place",
    ),
    "darken": ("go into the dark", "enter the dark room", "go into the shadow", "hide in the dark"),
    "goto": ("walk to the {}", "go to the {}", "approach the {}", "move up to the {}"),
    "toward": ("walk toward the {}", "go toward the {}", "get closer to the {}"),
    "look": ("look at the {}", "turn to the {}", "face the {}"),
    "find": ("find the {}", "search for the {}", "look for the {}"),
    "away": ("turn away from the {}", "look away from the {}"),
}

# How much a kind of instruction is preferred where several hold: the rare ones, so that all
# are well represented.
_WEIGHTS = {
    "lighten": 14.0, "darken": 14.0, "goto": 8.0, "toward": 3.0, "look": 4.0, "find": 3.0,
    "away": 2.0, "wall": 1.5, "still": 8.0, "back": 3.0, "around": 8.0,
    "strafe left": 6.0, "strafe right": 6.0,
}  # fmt: skip


def annotate(episode: Episode, spec: WorldSpec, rng: np.random.Generator) -> tuple[Annotation, ...]:
    """Return sentences about an episode, ordered by their first frame.

    Captions and questions come about every 8 frames, instructions cover clips of 6 to 24
    steps and may overlap. Without the facts there is only what the actions tell: instructions
    from the motion, or where the agent's motion is not known in metres, from the keys held.
    """
    said: list[Annotation] = []
    if not spec.actions.rows:
        return ()  # a video: nobody knows what was done
    if "pose" not in episode.facts and (episode.keys.any() or not _measured(spec)):
        said += _from_keys(episode, spec.actions, rng)
        return tuple(sorted(said, key=lambda a: (a.start, a.stop, a.kind)))
    if {"light", "wall", "bearing", "distance"} <= set(episode.facts):
        for start in range(0, episode.num_steps + 1, 8):
            index = min(start + int(rng.integers(8)), episode.num_steps)
            scene = look(episode.facts, index, spec.objects)
            said.append(Annotation("caption", index, index, caption(scene, rng)))
            asked = questions(scene, rng)
            question, answer = asked[int(rng.integers(len(asked)))]
            said.append(Annotation("question", index, index, question, answer))
    said += instructions(episode, spec, rng)
    return tuple(sorted(said, key=lambda a: (a.start, a.stop, a.kind)))


def _measured(spec: WorldSpec) -> bool:
    """Whether the keys displace the agent by known amounts."""
    return any(row.moves for row in spec.actions.rows)


def _from_keys(
    episode: Episode, table: ActionTable, rng: np.random.Generator
) -> Iterator[Annotation]:
    """Yield an instruction per stretch of at least 3 steps under the same keys, and captions.

    A caption says what is done from its frame on, about every 8 frames.
    """
    changes = np.flatnonzero(np.diff(episode.keys.astype(int))) + 1
    edges = [*([0] if episode.num_steps else []), *changes.tolist(), episode.num_steps]
    due = int(rng.integers(8))
    for begin, end in pairwise(edges):
        action = table.from_mask(int(episode.keys[begin]))
        pick = int(rng.integers(8))
        # 'stop' and 'stand still' would be untrue of a car that rolls on.
        phrase = table.text(action, "phrase", pick).removeprefix("action: ")
        phrase = ("do nothing", "wait")[pick % 2] if action.idle else phrase
        while due < end:
            yield Annotation("caption", due, due, f"about to {phrase}")
            due += int(rng.integers(6, 11))
        for start in range(begin, end, _CLIP_STEPS[-1]):
            stop = min(start + _CLIP_STEPS[-1], end)
            if stop - start >= 3:
                yield Annotation("instruction", start, stop, phrase)


@dataclass(frozen=True)
class Scene:
    """What one frame shows, in words.

    Attributes:
        light: 'dark', 'dim' or 'bright'.
        walls: the look of the room's walls, or '' in a corridor or where unknown.
        corridor: whether the agent is in a corridor.
        wall: metres to the wall ahead.
        objects: (name, side, distance in metres), nearest first; side is 'left', 'ahead' or
            'right'.
        known: names of all the objects there could be.
    """

    light: str
    walls: str
    corridor: bool
    wall: float
    objects: tuple[tuple[str, str, float], ...]
    known: tuple[str, ...]


def look(facts: Facts, index: int, names: Sequence[str]) -> Scene:
    """Return the scene of frame `index` of an episode's facts."""
    light = float(facts["light"][index])
    bearing, distance = facts["bearing"][index], facts["distance"][index]
    visible = [int(k) for k in np.argsort(distance) if not np.isnan(distance[k])]
    objects = tuple((str(names[k]), _side(float(bearing[k])), float(distance[k])) for k in visible)
    theme = int(facts["theme"][index]) if "theme" in facts else -2
    return Scene(
        light="dark" if light < DARK else "bright" if light >= BRIGHT else "dim",
        walls=THEMES[theme].name if theme >= 0 else "",
        corridor=theme == -1,
        wall=float(facts["wall"][index]),
        objects=objects,
        known=tuple(names),
    )


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one caption of at most 12 words."""
    place = "corridor" if scene.corridor else "room"
    parts = [f"a {scene.light} {place}"]
    if scene.walls and rng.random() < 0.5:
        parts[0] = f"{scene.light} room, {scene.walls} walls"
    if scene.objects:
        near = int(rng.integers(min(2, len(scene.objects))))
        name, side, metres = scene.objects[near]
        how = "near " if metres < NEAR else "far " if metres >= FAR else ""
        where = "ahead" if side == "ahead" else f"on the {side}"
        parts.append(f"a {name} {how}{where}")
    elif scene.wall < 2.0:
        parts.append("a wall right ahead")
    elif scene.wall > FAR:
        parts.append("open space ahead")
    if len(parts) == 2 and rng.random() < 0.25:
        parts = parts[1:]
    return ", ".join(parts)


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return questions about a scene, each with its answer."""
    ahead = [name for name, side, _ in scene.objects if side == "ahead"]
    thing = ahead[0] if ahead else "wall" if scene.wall < NEAR else "nothing near"
    asked = [
        ("what is ahead?", f"a {thing}" if thing != "nothing near" else thing),
        ("is it dark?", "yes" if scene.light == "dark" else "no"),
        ("how bright is it?", scene.light),
    ]
    if scene.walls:
        asked.append(("what are the walls?", scene.walls))
    names = [name for name, _, _ in scene.objects]
    absent = [name for name in scene.known if name not in names]
    if absent:
        asked.append((f"is there a {absent[int(rng.integers(len(absent)))]}?", "no"))
    for name, side, metres in scene.objects:
        asked.append((f"is there a {name}?", "yes"))
        asked.append((f"where is the {name}?", side))
        if side != "ahead":
            asked.append((f"is the {name} left or right?", side))
        if not NEAR <= metres < FAR:
            asked.append((f"is the {name} near or far?", "near" if metres < NEAR else "far"))
        colour, _, noun = name.rpartition(" ")
        same = [other for other in names if other.endswith(f" {noun}")]
        if colour in _COLOURS and len(same) == 1:
            asked.append((f"which colour is the {noun}?", colour))
    return asked


_COLOURS = {"red", "green", "blue", "yellow", "grey", "white", "brown"}


def instructions(episode: Episode, spec: WorldSpec, rng: np.random.Generator) -> list[Annotation]:
    """Return instructions that clips of the episode fulfil; about one per 5 steps."""
    track = _track(episode)
    said: list[Annotation] = []
    last: dict[str, int] = {}
    start = 0
    while start < episode.num_steps - 3:
        found: list[tuple[float, str, int]] = []
        for steps in _CLIP_STEPS:
            stop = start + steps
            if stop > episode.num_steps:
                break
            for kind, thing in fulfilled(track, start, stop, spec.objects):
                text = _PHRASES[kind][int(rng.integers(len(_PHRASES[kind])))].format(thing)
                # What was just said of an overlapping clip is said again only rarely.
                again = 0.1 if last.get(kind + thing, -99) > start - 6 else 1.0
                found.append((_WEIGHTS.get(kind, 1.0) * again, f"{kind}|{thing}|{text}", stop))
        if found:
            weight = np.array([w for w, _, _ in found])
            _, label, stop = found[int(rng.choice(len(found), p=weight / weight.sum()))]
            kind, thing, text = label.split("|")
            last[kind + thing] = start
            said.append(Annotation("instruction", start, stop, text))
        start += int(rng.integers(2, 6))
    return said


@dataclass(frozen=True)
class Track:
    """An episode's motion and facts, as the instruction rules need them.

    Attributes:
        forward, left: float [T+1], metres moved since the start, each step in the agent's frame
            at that time.
        path: float [T+1], length of the path in metres.
        yaw: float [T+1], degrees turned since the start (left positive, unwrapped).
        light, wall: float [T+1]; bearing, distance: float [T+1, K]; empty without facts.
    """

    forward: np.ndarray
    left: np.ndarray
    path: np.ndarray
    yaw: np.ndarray
    light: np.ndarray
    wall: np.ndarray
    bearing: np.ndarray
    distance: np.ndarray


def _track(episode: Episode) -> Track:
    facts = episode.facts
    dx, dy, dyaw = np.asarray(episode.actions, float).T
    if "pose" in facts:
        pose = np.asarray(facts["pose"], float)
        dyaw = (np.diff(pose[:, 2]) + 180) % 360 - 180
        middle = np.radians(pose[:-1, 2] + dyaw / 2)
        east, north = np.diff(pose[:, :2], axis=0).T
        dx = east * np.cos(middle) + north * np.sin(middle)
        dy = north * np.cos(middle) - east * np.sin(middle)
    empty = np.zeros(0)
    none = np.zeros((episode.num_steps + 1, 0))
    return Track(
        forward=_sum(dx),
        left=_sum(dy),
        path=_sum(np.hypot(dx, dy)),
        yaw=_sum(dyaw),
        light=np.asarray(facts.get("light", empty)),
        wall=np.asarray(facts.get("wall", empty)),
        bearing=np.asarray(facts.get("bearing", none)),
        distance=np.asarray(facts.get("distance", none)),
    )


def _sum(steps: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(steps)])


def fulfilled(track: Track, i: int, j: int, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the instructions, as (kind, object or ''), that the steps from i to j fulfil."""
    yield from ((kind, "") for kind in _motions(track, i, j))
    if len(track.light):
        if track.light[i] < DARK and track.light[j] >= 1.5 * DARK and track.light[j - 1] >= DARK:
            yield "lighten", ""
        if track.light[j] < DARK and track.light[i] >= 1.5 * DARK and track.light[j - 1] < DARK:
            yield "darken", ""
    if len(track.wall):
        straight = abs(track.yaw[j] - track.yaw[i]) < 40
        if straight and track.wall[i] > 3.5 and track.wall[j] < 1.4:
            yield "wall", ""
    for k, name in enumerate(names if track.distance.shape[1] else ()):
        yield from ((kind, name) for kind in _about_object(track, i, j, k))


def _motions(track: Track, i: int, j: int) -> Iterator[str]:
    steps = j - i
    forward = track.forward[j] - track.forward[i]
    left = track.left[j] - track.left[i]
    path = track.path[j] - track.path[i]
    yaw = track.yaw[j] - track.yaw[i]
    turning = np.diff(track.yaw[i : j + 1])
    if path < 0.15 and np.abs(turning).max() < 1:
        yield "still"
    one_way = abs(yaw) > 0.9 * np.abs(turning).sum()
    if path < 1.1 and one_way and 40 <= abs(yaw) <= 140:
        yield "left" if yaw > 0 else "right"
    if path < 1.6 and one_way and 155 <= abs(yaw) <= 205:
        yield "around"
    if np.abs(turning).sum() < 24:
        if forward > 0.35 * steps and abs(left) < 0.25 * forward:
            yield "forward"
        if forward < -0.3 * steps and abs(left) < -0.25 * forward:
            yield "back"
        if abs(left) > 0.3 * steps and abs(forward) < 0.3 * abs(left):
            yield "strafe left" if left > 0 else "strafe right"
    if one_way and forward > 0.3 * steps and 40 <= abs(yaw) <= 140:
        yield "forward left" if yaw > 0 else "forward right"


def _about_object(track: Track, i: int, j: int, k: int) -> Iterator[str]:
    bearing, distance = track.bearing[i : j + 1, k], track.distance[i : j + 1, k]
    visible = ~np.isnan(distance)
    path = track.path[j] - track.path[i]
    turned = abs(track.yaw[j] - track.yaw[i])
    if visible[0] and visible[-1]:
        closer = distance[0] - distance[-1]
        direct = closer > 0.6 * path
        if distance[0] > 3.0 and distance[-1] < 2.6 and direct and abs(bearing[-1]) < 30:
            yield "goto"
        elif closer > 2.0 and direct and abs(bearing[-1]) < 20:
            yield "toward"
    aside = not visible[0] or abs(bearing[0]) > 18
    if visible[-1] and path < 1.6 and aside and turned > 12 and abs(bearing[-1]) < 7:
        yield "look"
    if visible[-1] and not visible[: len(visible) // 2].any() and abs(bearing[-1]) < 20:
        yield "find"
    if visible[0] and not visible[-1] and path < 1.6 and turned > 40 and abs(bearing[0]) < 20:
        yield "away"


def _side(bearing: float) -> str:
    if abs(bearing) < ASIDE:
        return "ahead"
    return "left" if bearing > 0 else "right"
