"""Scenes that the project makes itself: flats of two rooms, with coloured things in them.

They need trimesh, but no download. Everything is in the simulator's axes and metres: x to the
right, y up, z to the viewer, as glTF has it; `write_scene` can also turn z up.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.errors import UserError

HEIGHT = 2.6  # metres from floor to ceiling
DOOR = 1.4  # width of the opening between the rooms
NUM_FLATS = 12

COLOURS = {
    "red": (200, 40, 36), "green": (44, 160, 60), "blue": (40, 80, 200),
    "yellow": (228, 190, 40), "white": (235, 235, 230), "brown": (120, 78, 44),
}  # fmt: skip
KINDS = (
    "red box", "blue box", "green box", "yellow pillar", "red pillar", "white ball", "blue ball",
    "brown table",
)  # fmt: skip
"""Names of the things; the place of a thing here, from 1, is its semantic id."""

_WALLS = ((205, 190, 170), (160, 185, 200), (190, 160, 150), (170, 190, 150), (200, 195, 205))
_FLOORS = ((150, 110, 70), (110, 110, 115), (95, 75, 60), (170, 165, 155))
_CLEAR = 0.85  # metres from a thing's middle to the walls; twice that to the next thing


@dataclass(frozen=True)
class Flat:
    """A flat: two rooms side by side along x, an opening in the wall between them.

    Attributes:
        widths: of the rooms along x. depth: of both along z.
        door: z of the opening's middle.
        walls, floors: colours of the rooms.
        things: (name, x, z) each.
    """

    widths: tuple[float, float]
    depth: float
    door: float
    walls: tuple[int, int]
    floors: tuple[int, int]
    things: tuple[tuple[str, float, float], ...]


def make_flat(number: int) -> Flat:
    """Return the flat of that number; the same number gives the same flat."""
    rng = np.random.default_rng([number, 7])
    widths = tuple(round(float(w), 2) for w in rng.uniform(4.0, 6.5, 2))
    depth = round(float(rng.uniform(4.0, 6.0)), 2)
    door = round(float(rng.uniform(DOOR, depth - DOOR)), 2)
    walls = tuple(int(c) for c in rng.choice(len(_WALLS), 2, replace=False))
    floors = tuple(int(c) for c in rng.choice(len(_FLOORS), 2, replace=False))
    things: list[tuple[str, float, float]] = []
    names = [KINDS[int(k)] for k in rng.permutation(len(KINDS))[: int(rng.integers(5, 8))]]
    for n, name in enumerate(names):
        low = 0.0 if n % 2 == 0 else widths[0]
        for _ in range(60):
            x = round(float(rng.uniform(low + _CLEAR, low + widths[n % 2] - _CLEAR)), 2)
            z = round(float(rng.uniform(_CLEAR, depth - _CLEAR)), 2)
            free = all(math.hypot(x - a, z - b) > 2 * _CLEAR for _, a, b in things)
            if free and math.hypot(x - widths[0], z - door) > 1.6:
                things.append((name, x, z))
                break
    return Flat((widths[0], widths[1]), depth, door, (walls[0], walls[1]), (floors[0], floors[1]),
                tuple(things))  # fmt: skip


def write_dataset(folder: Path, count: int = NUM_FLATS) -> Path:
    """Write flats as a scene dataset into `folder`; return the path of its config.

    The things are objects with semantic ids, so the semantic sensor sees them. Their shading is in
    their textures: objects that are not flat are black in a scene without lights.

    Raises:
        UserError: trimesh is missing.
    """
    for part in ("stages", "objects", "scenes"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    axes = {"up": [0, 1, 0], "front": [0, 0, -1]}
    for number, name in enumerate(KINDS, start=1):
        stem = name.replace(" ", "_")
        _export([_thing(name)], folder / "objects" / f"{stem}.glb")
        config = {"render_asset": f"{stem}.glb", "semantic_id": number, "shader_type": "flat"}
        _write_json(folder / "objects" / f"{stem}.object_config.json", axes | config)
    for number in range(count):
        flat, stem = make_flat(number), f"flat_{number:02d}"
        _export(list(_shell(flat)), folder / "stages" / f"{stem}.glb")
        config = axes | {"render_asset": f"{stem}.glb"}
        _write_json(folder / "stages" / f"{stem}.stage_config.json", config)
        objects = [
            {
                "template_name": name.replace(" ", "_"),
                "translation": [x, 0.0, z],
                "translation_origin": "asset_local",
                "motion_type": "STATIC",
            }
            for name, x, z in flat.things
        ]
        scene = {"stage_instance": {"template_name": stem}, "object_instances": objects}
        _write_json(folder / "scenes" / f"{stem}.scene_instance.json", scene)
    kinds = {"stages": "stages", "objects": "objects", "scene_instances": "scenes"}
    listed = {kind: {"paths": {".json": [f"{part}/*"]}} for kind, part in kinds.items()}
    path = folder / "rooms.scene_dataset_config.json"
    _write_json(path, listed)
    return path


def write_scene(path: Path, number: int = 0, up: str = "y") -> Path:
    """Write a flat and its things as one `.glb`, with 'y' or 'z' up; return its path.

    Raises:
        UserError: trimesh is missing.
    """
    flat = make_flat(number)
    meshes = list(_shell(flat))
    for name, x, z in flat.things:
        mesh = _thing(name)
        mesh.apply_translation([x, 0, z])
        meshes.append(mesh)
    if up == "z":
        for mesh in meshes:  # what was up, y, becomes z; what was to the viewer, z, becomes -y
            mesh.apply_transform([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    _export(meshes, path)
    return path


def _shell(flat: Flat) -> Iterator[Any]:
    """Yield floors, ceilings and walls, each with its texture."""
    (left, right), depth = flat.widths, flat.depth
    for room, (low, high) in enumerate(((0.0, left), (left, left + right))):
        wall, floor = _WALLS[flat.walls[room]], _FLOORS[flat.floors[room]]
        planks, bricks, plain = _planks(floor), _bricks(wall), _tinted((232, 230, 224))
        yield _quad((low, 0, depth), (high - low, 0, 0), (0, 0, -depth), planks)
        yield _quad((low, HEIGHT, 0), (high - low, 0, 0), (0, 0, depth), plain)
        yield _quad((low, 0, 0), (high - low, 0, 0), (0, HEIGHT, 0), bricks)
        yield _quad((high, 0, depth), (low - high, 0, 0), (0, HEIGHT, 0), bricks)
        outer, turn = (low, -1) if room == 0 else (high, 1)
        start = depth if turn < 0 else 0.0
        yield _quad((outer, 0, start), (0, 0, turn * depth), (0, HEIGHT, 0), bricks)
        # The wall between the rooms, as seen from this one: two parts and a lintel.
        edges = ((0.0, flat.door - DOOR / 2), (flat.door + DOOR / 2, depth))
        face = left - 0.05 if room == 0 else left + 0.05
        for a, b in edges:
            yield _upright(face, a, b, 0.0, HEIGHT, room, bricks)
        yield _upright(face, *_door(flat), 2.1, HEIGHT, room, bricks)
    for z, turn in zip(_door(flat), (1, -1), strict=True):  # the sides of the opening
        start, along = (left - 0.05, 0.1) if turn > 0 else (left + 0.05, -0.1)
        yield _quad((start, 0, z), (along, 0, 0), (0, 2.1, 0), _tinted((120, 110, 100)))
    low, high = _door(flat)
    yield _quad((left - 0.05, 2.1, low), (0.1, 0, 0), (0, 0, high - low), _tinted((120, 110, 100)))


def _door(flat: Flat) -> tuple[float, float]:
    return flat.door - DOOR / 2, flat.door + DOOR / 2


def _upright(x: float, a: float, b: float, low: float, high: float, room: int, image: Any) -> Any:
    """Return a part of the wall between the rooms, facing room 0 or 1."""
    start, along = (a, b - a) if room == 0 else (b, a - b)
    return _quad((x, low, start), (0, 0, along), (0, high - low, 0), image)


def _quad(corner: Any, along: Any, upward: Any, image: Any) -> Any:
    """Return a rectangle seen from the side where `upward` is to the left of `along`.

    The texture repeats every metre.
    """
    trimesh = _trimesh()
    a, b, c = (np.asarray(v, float) for v in (corner, along, upward))
    wide, high = np.linalg.norm(b), np.linalg.norm(c)
    uv = np.array([[0, 0], [wide, 0], [wide, high], [0, high]])
    mesh = trimesh.Trimesh([a, a + b, a + b + c, a + c], [[0, 1, 2], [0, 2, 3]], process=False)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=_material(image))
    return mesh


def _thing(name: str) -> Any:
    """Return a thing that stands on y = 0 at the origin, shaded by the direction of its faces."""
    trimesh = _trimesh()
    make = trimesh.creation
    colour, _, kind = name.partition(" ")
    if kind == "box":
        mesh = make.box((0.7, 0.8, 0.7))
        mesh.apply_translation((0, 0.4, 0))
    elif kind == "pillar":
        mesh = make.cylinder(radius=0.25, height=2.0, sections=14)
        mesh.apply_transform(trimesh.transformations.rotation_matrix(-math.pi / 2, (1, 0, 0)))
        mesh.apply_translation((0, 1.0, 0))
    elif kind == "ball":
        mesh = make.icosphere(subdivisions=2, radius=0.45)
        mesh.apply_translation((0, 0.45, 0))
    else:
        top = make.box((1.0, 0.08, 0.7))
        top.apply_translation((0, 0.76, 0))
        legs = [make.box((0.08, 0.72, 0.08)) for _ in range(4)]
        for leg, (x, z) in zip(legs, ((1, 1), (1, -1), (-1, 1), (-1, -1)), strict=True):
            leg.apply_translation((0.44 * x, 0.36, 0.29 * z))
        mesh = trimesh.util.concatenate([top, *legs])
    light = np.array([0.4, 0.8, 0.45]) / np.linalg.norm([0.4, 0.8, 0.45])
    level = 0.62 + 0.38 * (mesh.face_normals @ light)
    flat = trimesh.Trimesh(mesh.triangles.reshape(-1, 3), process=False,
                           faces=np.arange(3 * len(level)).reshape(-1, 3))  # fmt: skip
    uv = np.stack([np.repeat(level.clip(0.02, 0.98), 3), np.full(3 * len(level), 0.5)], axis=1)
    shades = np.linspace(0, 1, 32)[None, :, None] * np.array(COLOURS[colour])
    image = np.repeat(shades, 4, axis=0).astype(np.uint8)
    flat.visual = trimesh.visual.TextureVisuals(uv=uv, material=_material(image))
    return flat


def _bricks(colour: tuple[int, int, int]) -> np.ndarray:
    """Return a wall's texture, a metre of it: uint8 [64, 64, 3]."""
    image = _tinted(colour).astype(float)
    image[::16] *= 0.72
    for row in range(4):
        image[16 * row : 16 * row + 16, (16 * (row % 2)) :: 32] *= 0.78
    return image.astype(np.uint8)


def _planks(colour: tuple[int, int, int]) -> np.ndarray:
    """Return a floor's texture, a metre of it: uint8 [64, 64, 3]."""
    image = _tinted(colour).astype(float)
    image *= (0.82 + 0.18 * ((np.arange(64) // 16) % 2))[None, :, None]
    image[:, ::16] *= 0.7
    return image.astype(np.uint8)


def _tinted(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((64, 64, 3), colour, np.uint8)


def _material(image: np.ndarray) -> Any:
    from PIL import Image

    return _trimesh().visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(image), metallicFactor=0.0, roughnessFactor=1.0
    )


def _export(meshes: list[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_trimesh().Scene(meshes).export(file_type="glb"))


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise UserError(
            f"The scenes of 'habitat:rooms' need trimesh ({error}): "
            "pip install 'worldmodel[habitat]'."
        ) from error
    return trimesh
