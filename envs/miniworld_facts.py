"""What MiniWorld knows of a scene, as facts: where the agent is, the wall ahead, what is in sight.

Its `info` is empty, so this asks the simulator. Its axes are turned: x stays, y is its -z, and
angles count from x to the left in both.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

FARTHEST = 50.0  # metres; a wall that is farther, or none, counts as here
_LOOKS = 16  # episodes whose things are named
_MIN_SHARE = 0.0015  # of the picture, from which a thing counts as visible


def object_names(env: Any) -> tuple[str, ...]:
    """Return the names of the things that an environment's first episodes have, in order.

    The environment is reset for it, with the same seeds each time, so that every world of the
    same description has the same names.
    """
    found: set[str] = set()
    for seed in range(_LOOKS):
        env.reset(seed=seed)
        found |= {_name(entity) for entity in env.unwrapped.entities}
    return tuple(sorted(found - {""}))


def read(env: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the facts `pose`, `wall`, and where there are names `bearing` and `distance`.

    A thing is in sight where the picture without it is another one; the simulator's own
    `get_visible_ents` looks only for the middle of a thing's foot.

    Args:
        env: a MiniWorld environment.
        names: what `object_names` found.
    """
    own: Any = env.unwrapped
    here, yaw = _flat(own.agent.pos), float(own.agent.dir)
    facts = {
        "pose": np.array([*here, math.degrees(yaw) % 360], np.float32),
        "wall": np.float32(_wall(np.asarray(own.wall_segs, float), here, yaw)),
    }
    if not names:
        return facts
    bearing = np.full(len(names), np.nan, np.float32)
    distance = np.full(len(names), np.nan, np.float32)
    picture: np.ndarray | None = None
    for entity in list(own.entities):
        east, north = _flat(entity.pos) - here
        far = math.hypot(east, north)
        turn = math.degrees(math.atan2(north, east) - yaw)
        turn = (turn + 180) % 360 - 180
        name = _name(entity)
        if name not in names or abs(turn) > 90:
            continue
        k = names.index(name)
        if distance[k] <= far:
            continue
        picture = own.render_obs() if picture is None else picture
        changed = (_without(own, entity) != picture).any(axis=-1)
        if changed.mean() >= _MIN_SHARE:
            bearing[k], distance[k] = turn, far
    return facts | {"bearing": bearing, "distance": distance}


def _without(own: Any, entity: Any) -> np.ndarray:
    """Return the picture that the agent would see if a thing were not there."""
    place = own.entities.index(entity)
    del own.entities[place]
    try:
        return own.render_obs()
    finally:
        own.entities.insert(place, entity)


def _flat(position: Any) -> np.ndarray:
    return np.array([position[0], -position[2]], float)


def _wall(segments: np.ndarray, here: np.ndarray, yaw: float) -> float:
    """Return the metres to the first of the walls [N, 2, 3] in a direction."""
    if not len(segments):
        return FARTHEST
    ends = np.stack([segments[..., 0], -segments[..., 2]], axis=-1) - here
    along, ahead = ends[:, 1] - ends[:, 0], np.array([math.cos(yaw), math.sin(yaw)])
    with np.errstate(divide="ignore", invalid="ignore"):
        # here + t * ahead = an end + u * along
        cross = ahead[0] * along[:, 1] - ahead[1] * along[:, 0]
        t = (ends[:, 0, 0] * along[:, 1] - ends[:, 0, 1] * along[:, 0]) / cross
        u = (ends[:, 0, 0] * ahead[1] - ends[:, 0, 1] * ahead[0]) / cross
    hit = t[(t > 0) & (u >= 0) & (u <= 1)]
    return min(float(hit.min(initial=FARTHEST)), FARTHEST)


def _name(entity: Any) -> str:
    """Return what an entity is called, such as 'red box' or 'office chair'.

    It is '' for the agent, and for what is drawn as one with the rooms.
    """
    if entity.is_static:
        return ""
    kind = type(entity).__name__.lower()
    if color := getattr(entity, "color", ""):
        return f"{color} {kind}"
    mesh = getattr(entity, "mesh", None)
    if mesh is None:
        return ""
    from miniworld.objmesh import ObjMesh

    path = next((path for path, known in ObjMesh.cache.items() if known is mesh), "")
    words = Path(path).stem.split("_")
    coloured = words[0] in ("ball", "key") and len(words) == 2  # its files are called 'ball_red'
    return " ".join(reversed(words) if coloured else words)
