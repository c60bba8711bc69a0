"""Sentences from facts: captions, questions with answers, and hindsight instructions.

Every sentence is true of the frames it is about; its words are those of `grammar`. Any of the
facts may be missing: what they do not tell is not said. Objects count only while the facts call
them visible; left and right are as seen by the agent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from worldmodel.actions import ActionTable
from worldmodel.envs.grammar import Style, draw_style, phrasings
from worldmodel.envs.racing_facts import HALF_WIDTH
from worldmodel.world import Annotation, Episode, Facts, WorldSpec

DARK, BRIGHT = 0.3, 0.75  # light below is dark, from is bright; between is dim
ASIDE = 9.0  # degrees from straight ahead at which something is to the left or right
CLOSE, NEAR, FAR = 2.0, 4.0, 10.0  # metres
STILL, SLOW, FAST = 0.5, 18.0, 32.0  # metres a second
STRAIGHT, BENT = 10.0, 30.0  # degrees that a road turns within the next _ROAD_POINTS points

_CLIP_STEPS = (6, 8, 10, 12, 16, 20, 24)
_COLOURS = {"red", "green", "blue", "yellow", "grey", "white", "brown"}
_NO_COUNTS = {"pose", "light", "wall", "free", "bearing", "distance", "theme"}
_LARGEST_COUNT = 999
_ROAD_POINTS = 9
_PLAIN = Style()
_STRIDE, _TURN = 0.5, 11.25  # of a table whose keys move nothing by a known amount: doom's

# Which way the first step leads, ahead, to the left and turned, where a motion is about to begin.
_BEGINS = {
    "still": {(0, 0, 0)}, "forward": {(1, 0, 0)}, "back": {(-1, 0, 0)},
    "left": {(0, 0, 1)}, "right": {(0, 0, -1)}, "around": {(0, 0, 1), (0, 0, -1)},
    "strafe left": {(0, 1, 0)}, "strafe right": {(0, -1, 0)},
    "forward left": {(1, 0, 1)}, "forward right": {(1, 0, -1)},
}  # fmt: skip

# How much a kind of instruction is preferred where several hold: the rare ones, so that all
# are well represented.
_WEIGHTS = {
    "lighten": 14.0, "darken": 14.0, "goto": 8.0, "toward": 3.0, "look": 4.0, "find": 3.0,
    "away": 2.0, "wall": 1.5, "still": 8.0, "back": 3.0, "around": 8.0,
    "strafe left": 6.0, "strafe right": 6.0,
}  # fmt: skip


def annotate(episode: Episode, spec: WorldSpec, rng: np.random.Generator) -> tuple[Annotation, ...]:
    """Return sentences about an episode, ordered by their first frame.

    Captions and questions come about every 8 frames: of what the facts show, and where they show
    nothing, of what is about to be done. Instructions cover clips of 6 to 24 steps and may
    overlap. Where the agent's motion is not known in metres they come from the keys held.
    What `grammar` reserves for evaluation is said in the splits val and test only.
    """
    split = str(episode.info.get("split", "train"))
    doing = _doing(episode, spec)
    said: list[Annotation] = []
    for start in range(0, episode.num_steps + 1, 8):
        index = min(start + int(rng.integers(8)), episode.num_steps)
        style = draw_style(split, rng)
        scene = look(episode.facts, index, spec)
        text, asked = caption(scene, rng, style), questions(scene, rng, style)
        if not (text and asked) and (phrase := doing(index, rng)):
            text = text or style.say("doing", rng, phrase=phrase)
            asked = asked or [(style.say("doing?", rng), phrase)]
        if text:
            said.append(Annotation("caption", index, index, text))
        if asked:
            question, answer = asked[int(rng.integers(len(asked)))]
            said.append(Annotation("question", index, index, question, answer))
    if _keyed(episode, spec):
        said += _from_keys(episode, spec.actions, split, rng)
    elif _moves(episode, spec):
        said += instructions(episode, spec, rng)
    return tuple(sorted(said, key=lambda a: (a.start, a.stop, a.kind)))


def _keyed(episode: Episode, spec: WorldSpec) -> bool:
    """Whether the keys say what was done, for want of a motion in metres."""
    measured = any(row.moves for row in spec.actions.rows)
    unknown = "pose" not in episode.facts and (bool(episode.keys.any()) or not measured)
    return unknown and bool(spec.actions.rows)


def _moves(episode: Episode, spec: WorldSpec) -> bool:
    """Whether the motion is known; a video has neither poses nor actions."""
    if "pose" in episode.facts:
        return True
    return bool(spec.actions.rows) and not np.isnan(episode.actions).any()


def _doing(episode: Episode, spec: WorldSpec) -> Callable[[int, np.random.Generator], str]:
    """Return what says in a phrase what is done from a frame on, '' where nobody knows."""
    if _keyed(episode, spec):
        keys = episode.keys.tolist()
        return lambda t, rng: _key_phrase(spec.actions, keys[t], rng) if t < len(keys) else ""
    if not _moves(episode, spec):
        return lambda t, rng: ""
    track, last = _track(episode, spec.actions), episode.num_steps

    def moved(t: int, rng: np.random.Generator) -> str:
        if t + _CLIP_STEPS[0] > last:
            return ""
        # A clip that is mostly a turn may begin with a walk, which is what is about to be done.
        first = _first(track, t)
        kinds = [k for k in _motions(track, t, t + _CLIP_STEPS[0]) if first in _BEGINS[k]]
        return phrasings(kinds[0])[0] if kinds else ""

    return moved


def _first(track: "Track", t: int) -> tuple[int, int, int]:
    """Return the signs of a step ahead, to the left and turned; 0 for less than half a key's."""
    half = track.stride / 2, track.stride / 2, track.turn / 2
    moved = (float(part[t + 1] - part[t]) for part in (track.forward, track.left, track.yaw))
    ahead, left, yaw = ((m > h) - (m < -h) for m, h in zip(moved, half, strict=True))
    return ahead, left, yaw


def _key_phrase(table: ActionTable, mask: int, rng: np.random.Generator) -> str:
    action, pick = table.from_mask(mask), int(rng.integers(8))
    if action.idle:  # 'stop' and 'stand still' would be untrue of a car that rolls on
        return ("do nothing", "wait")[pick % 2]
    return table.text(action, "phrase", pick).removeprefix("action: ")


def _from_keys(
    episode: Episode, table: ActionTable, split: str, rng: np.random.Generator
) -> Iterator[Annotation]:
    """Yield an instruction per stretch of at least 3 steps under the same keys."""
    changes = np.flatnonzero(np.diff(episode.keys.astype(int))) + 1
    edges = [*([0] if episode.num_steps else []), *changes.tolist(), episode.num_steps]
    for begin, end in pairwise(edges):
        for start in range(begin, end, _CLIP_STEPS[-1]):
            stop = min(start + _CLIP_STEPS[-1], end)
            if stop - start >= 3:
                phrase = _key_phrase(table, int(episode.keys[begin]), rng)
                text = draw_style(split, rng).say("keys", rng, phrase=phrase)
                yield Annotation("instruction", start, stop, text)


@dataclass(frozen=True)
class Scene:
    """What one frame shows, in words, as far as the facts tell.

    Attributes:
        light: 'dark', 'dim' or 'bright'; '' where unknown.
        place: 'room' or 'corridor'; 'place' where unknown.
        walls: the look of the room's walls, or '' in a corridor or where unknown.
        wall: metres to the wall ahead; NaN where unknown.
        free: metres to what stops the agent ahead, whatever it is; NaN where unknown.
        objects: (name, side, distance in metres), nearest first; side is 'left', 'ahead' or
            'right'.
        known: names of all the objects there could be; empty where none are ever told of.
        counts: (name, number) of what the world counts, for instance lives.
        bend: 'left', 'right' or 'straight', where the road ahead clearly is one of these.
        on_road: whether the car is on the road; None where unknown, or where it is at its edge.
        pace: 'still', 'slow' or 'fast'; '' where unknown or in between.
    """

    light: str
    place: str
    walls: str
    wall: float
    free: float
    objects: tuple[tuple[str, str, float], ...]
    known: tuple[str, ...]
    counts: tuple[tuple[str, int], ...] = ()
    bend: str = ""
    on_road: bool | None = None
    pace: str = ""


def look(facts: Facts, index: int, spec: WorldSpec) -> Scene:
    """Return the scene of frame `index` of an episode's facts; any of them may be missing."""
    theme = int(facts["theme"][index]) if "theme" in facts else -2
    light = float(facts["light"][index]) if "light" in facts else np.nan
    objects: list[tuple[str, str, float]] = []
    if placed := {"bearing", "distance"} <= set(facts):
        bearing, distance = facts["bearing"][index], facts["distance"][index]
        visible = [int(k) for k in np.argsort(distance) if not np.isnan(distance[k])]
        objects = [(spec.objects[k], _side(float(bearing[k])), float(distance[k])) for k in visible]
    return Scene(
        light="" if np.isnan(light) else _brightness(light),
        place="corridor" if theme == -1 else "room" if theme >= 0 else "place",
        walls=spec.themes[theme] if 0 <= theme < len(spec.themes) else "",
        wall=float(facts["wall"][index]) if "wall" in facts else np.nan,
        free=float(facts["free"][index]) if "free" in facts else np.nan,
        objects=tuple(objects),
        known=spec.objects if placed else (),
        counts=tuple(_counts(facts, index)),
        **(_driving(facts["road"][index], facts["velocity"][index]) if "road" in facts else {}),
    )


def _driving(road: np.ndarray, velocity: np.ndarray) -> dict[str, Any]:
    """Return bend, on_road and pace of a scene with a road."""
    speed, away = float(np.hypot(*velocity)), np.hypot(*road.T)
    pace = "still" if speed < STILL else "fast" if speed >= FAST else ""
    pace = pace or ("slow" if speed < SLOW else "")
    near = int(away.argmin())
    off = float(away[near]) / HALF_WIDTH
    on_road = None if 0.9 < off < 1.3 else off <= 0.9
    steps = np.diff(road, axis=0)
    way = 1 if steps[min(near, len(steps) - 1), 0] > 0 else -1  # roads are driven both ways
    ahead = np.diff(road[::way][(near if way > 0 else len(road) - 1 - near) :], axis=0)
    yaw = np.degrees(np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0])))[: _ROAD_POINTS + 1]
    if not on_road or len(yaw) <= _ROAD_POINTS or abs(yaw[0]) > 45:
        return {"pace": pace, "on_road": on_road}
    turn = float(yaw[-1] - yaw[0])
    bend = "left" if turn > BENT else "right" if turn < -BENT else ""
    straight = float(np.ptp(yaw)) < STRAIGHT  # a chicane ends as it began, too
    return {"pace": pace, "on_road": on_road, "bend": bend or ("straight" if straight else "")}


def _brightness(light: float) -> str:
    return "dark" if light < DARK else "bright" if light >= BRIGHT else "dim"


def _counts(facts: Facts, index: int) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers among the facts, as a display would show them."""
    for name, values in sorted(facts.items()):
        words = name.lower().replace("_", " ").strip()
        if name in _NO_COUNTS or np.ndim(values) != 1 or not words.replace(" ", "").isalnum():
            continue
        value = float(values[index])
        if value.is_integer() and 0 <= value <= _LARGEST_COUNT:
            yield words, int(value)


def caption(scene: Scene, rng: np.random.Generator, style: Style = _PLAIN) -> str:
    """Return one caption, '' where there is nothing to tell.

    It has at most 12 words, 15 in a held-out phrasing.
    """
    parts = []
    if scene.light:
        slots = {"light": scene.light, "place": scene.place, "walls": scene.walls}
        parts = [style.say("place", rng, **slots)]
        if scene.walls and rng.random() < 0.5:
            parts = [style.say("walls", rng, **slots)]
    told = [seen for seen in scene.objects if _may_tell(seen, style)]
    if told:
        name, side, metres = told[int(rng.integers(min(2, len(told))))]
        distance = f"{_range(metres)} ".lstrip()
        where = side if side == "ahead" else f"on the {side}"
        parts.append(style.say("object", rng, object=name, range=distance, side=where))
    elif not scene.objects and scene.wall < CLOSE:
        parts.append(style.say("blocked", rng))
    elif not scene.objects and scene.free < CLOSE:
        parts.append(style.say("obstructed", rng))
    elif not scene.objects and (scene.wall > FAR or scene.free > FAR):
        parts.append(style.say("open", rng))
    if scene.on_road is False:
        parts.append(style.say("off", rng))
    elif scene.bend:
        bend = "is straight" if scene.bend == "straight" else f"bends {scene.bend}"
        parts.append(style.say("road", rng, bend=bend))
    if scene.pace:
        parts.append(style.say("pace", rng, pace=scene.pace))
    if not parts and scene.counts:
        picked = sorted(rng.permutation(len(scene.counts))[:2].tolist())
        for name, value in (scene.counts[i] for i in picked):
            parts.append(style.say("count", rng, name=name, value=value))
        return ", ".join(parts)
    if len(parts) == 2 and rng.random() < 0.25:
        parts = parts[1:]
    return ", ".join(parts)


def _range(metres: float) -> str:
    return "near" if metres < NEAR else "far" if metres >= FAR else ""


def _may_tell(seen: tuple[str, str, float], style: Style) -> bool:
    name, side, metres = seen
    distance = _range(metres)
    return style.allows(side, name) and (not distance or style.allows(distance, name))


def questions(
    scene: Scene, rng: np.random.Generator, style: Style = _PLAIN
) -> list[tuple[str, str]]:
    """Return questions about a scene, each with its answer; none where nothing is known."""
    asked: list[tuple[str, str]] = []

    def ask(kind: str, answer: str, **slots: object) -> None:
        asked.append((style.say(kind, rng, **slots), answer))

    ahead = [name for name, side, _ in scene.objects if side == "ahead"]
    if ahead and style.allows("ahead", ahead[0]):
        ask("ahead?", f"a {ahead[0]}")
    elif not ahead and not np.isnan(scene.wall):
        ask("ahead?", "a wall" if scene.wall < NEAR else "nothing near")
    if scene.free < CLOSE or scene.free >= NEAR:
        ask("free?", "no" if scene.free < CLOSE else "yes")
    if scene.light:
        ask("dark?", "yes" if scene.light == "dark" else "no")
        ask("light?", scene.light)
    if scene.walls:
        ask("walls?", scene.walls)
    names = [name for name, _, _ in scene.objects]
    absent = [name for name in scene.known if name not in names]
    if absent:
        ask("there?", "no", object=absent[int(rng.integers(len(absent)))])
    for name, side, metres in scene.objects:
        ask("there?", "yes", object=name)
        if style.allows(side, name):
            ask("where?", side, object=name)
            if side != "ahead":
                ask("side?", side, object=name)
        if (distance := _range(metres)) and style.allows(distance, name):
            ask("range?", distance, object=name)
        colour, _, noun = name.rpartition(" ")
        same = [other for other in names if other.endswith(f" {noun}")]
        if colour in _COLOURS and len(same) == 1:
            ask("colour?", colour, noun=noun)
    if scene.on_road is not None:
        ask("off?", "yes" if scene.on_road else "no")
    if scene.bend:
        ask("road?", scene.bend)
    if scene.pace:
        ask("pace?", scene.pace)
    for name, value in scene.counts:
        ask("count?", str(value), name=name)
    return asked


def instructions(episode: Episode, spec: WorldSpec, rng: np.random.Generator) -> list[Annotation]:
    """Return instructions that clips of the episode fulfil; about one per 5 steps."""
    split = str(episode.info.get("split", "train"))
    track = _track(episode, spec.actions)
    said: list[Annotation] = []
    last: dict[str, int] = {}
    start = 0
    while start < episode.num_steps - 3:
        style = draw_style(split, rng)
        found: list[tuple[str, str, str, int]] = []
        weights: list[float] = []
        for steps in _CLIP_STEPS:
            stop = start + steps
            if stop > episode.num_steps:
                break
            for kind, thing in fulfilled(track, start, stop, spec.objects):
                if thing and not style.allows(kind, thing):
                    continue
                found.append((kind, thing, style.say(kind, rng, object=thing), stop))
                # What was just said of an overlapping clip is said again only rarely.
                again = 0.1 if last.get(kind + thing, -99) > start - 6 else 1.0
                weights.append(_WEIGHTS.get(kind, 1.0) * again)
        if found:
            weight = np.array(weights)
            kind, thing, text, stop = found[int(rng.choice(len(found), p=weight / weight.sum()))]
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
        stride, turn: metres and degrees of the smallest step that a key makes.
    """

    forward: np.ndarray
    left: np.ndarray
    path: np.ndarray
    yaw: np.ndarray
    light: np.ndarray
    wall: np.ndarray
    bearing: np.ndarray
    distance: np.ndarray
    stride: float
    turn: float


def _track(episode: Episode, table: ActionTable) -> Track:
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
        stride=min((abs(m) for row in table.rows for m in (row.dx, row.dy) if m), default=_STRIDE),
        turn=min((abs(row.dyaw) for row in table.rows if row.dyaw), default=_TURN),
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
    # How far one walks is counted in strides; what a turn is called depends on its degrees alone.
    stride, most = track.stride, 0.6 * track.stride * steps
    if path < 0.3 * stride and np.abs(turning).max() < track.turn / 11.25:
        yield "still"
    one_way = abs(yaw) > 0.9 * np.abs(turning).sum()
    if path < 2.2 * stride and one_way and 40 <= abs(yaw) <= 140:
        yield "left" if yaw > 0 else "right"
    if path < 3.2 * stride and one_way and 155 <= abs(yaw) <= 205:
        yield "around"
    if np.abs(turning).sum() < 24:
        if forward > 0.7 * stride * steps and abs(left) < 0.25 * forward:
            yield "forward"
        if forward < -most and abs(left) < -0.25 * forward:
            yield "back"
        if abs(left) > most and abs(forward) < 0.3 * abs(left):
            yield "strafe left" if left > 0 else "strafe right"
    if one_way and forward > most and 40 <= abs(yaw) <= 140:
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
        elif closer > min(2.0, 4 * track.stride) and direct and abs(bearing[-1]) < 20:
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
