"""Descriptions of Habitat worlds, and the motion that their actions mean. No simulator here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.errors import UserError, suggest

ROOMS = "rooms"
"""The scenes that the project makes itself, see `worldmodel.envs.habitat.rooms`."""

ASSETS = (".glb", ".gltf", ".obj", ".ply")
DATASET = ".scene_dataset_config.json"
_STAGE = ".stage_config.json"
_UP, _CONTROL = ("auto", "y", "z"), ("velocity", "discrete")


@dataclass(frozen=True)
class HabitatConfig:
    """A Habitat world.

    Attributes:
        scene: 'rooms', the path of a scene file, or of a `*.scene_dataset_config.json`.
        scenes: of a dataset the names of the scenes to use; empty for all.
        up: the axis that points up in a scene file: 'y' (as glTF has it) or 'z' (as Matterport
            and Gibson have it); 'auto' leaves it to the simulator, which takes z unless a
            `*.stage_config.json` beside the file says otherwise.
        navmesh: a `*.navmesh` file; empty for the one that comes with the scene, else it is
            computed.
        control: 'velocity' for six keys and any metric action, 'discrete' for the simulator's own
            move_forward, turn_left and turn_right.
        step, turn: metres and degrees that a key moves.
        size: height and width of the frames; native: of the picture before it is resampled, 0 for
            twice the size.
        hfov: degrees that a frame shows from left to right; eye: metres of the camera above the
            floor; radius: of the agent, in metres.
        sliding: whether the agent slides along what it runs into.
        depth, semantic: whether the pictures of these sensors are facts.
        objects: names that the facts `bearing` and `distance` speak of; empty for those of the
            first scene.
        island: the part of the navmesh to walk on; -1 for the lowest of the large ones.
        repeat: episodes in a scene before the next one.
        gpu: the number of a CUDA device, -1 for the first device that EGL finds.
        ibl: whether image-based lighting is computed; in software that takes minutes.
    """

    scene: str = ROOMS
    scenes: tuple[str, ...] = ()
    up: str = "auto"
    navmesh: str = ""
    control: str = "velocity"
    step: float = 0.25
    turn: float = 15.0
    size: int = 64
    native: int = 0
    hfov: float = 90.0
    eye: float = 1.5
    radius: float = 0.2
    sliding: bool = True
    depth: bool = False
    semantic: bool = False
    objects: tuple[str, ...] = ()
    island: int = -1
    repeat: int = 8
    gpu: int = -1
    ibl: bool = False

    def __post_init__(self) -> None:
        for name, known in (("up", _UP), ("control", _CONTROL)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"habitat: unknown {name} '{getattr(self, name)}'."
                    f"{suggest(str(getattr(self, name)), known)}"
                )
        limits = {
            "step": (0.01, 5), "turn": (0.1, 180), "size": (8, 2048), "hfov": (10, 170),
            "eye": (0.05, 5), "radius": (0.05, 2), "island": (-1, 10**6), "repeat": (1, 10**6),
            "gpu": (-1, 1024),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(
                    f"habitat: {name} must be from {low} to {high}, got {getattr(self, name)}."
                )
        if self.native and not self.size <= self.native <= 4096:
            raise UserError(
                f"habitat: native must be from size ({self.size}) to 4096, got {self.native}."
            )

    @property
    def pixels(self) -> int:
        """Height and width that the simulator draws."""
        return self.native or 2 * self.size

    @property
    def is_dataset(self) -> bool:
        """Whether the scenes are those of a dataset."""
        return self.scene == ROOMS or self.scene.endswith(DATASET)


def describe(name: str, options: Mapping[str, Any]) -> HabitatConfig:
    """Return the description that follows 'habitat:', with options put over it.

    Args:
        name: 'rooms' or '', the path of a scene file or a dataset config, or of a YAML file whose
            fields are those of `HabitatConfig`.
        options: fields of `HabitatConfig`.

    Raises:
        UserError: an unknown field, a value of a wrong type, a file that is missing or none of
            these.
    """
    given = dict(options)
    if name.endswith((".yaml", ".yml")):
        given = _read(Path(name)) | given
    else:
        given.setdefault("scene", name or ROOMS)
    kinds = {f.name: type(f.default) for f in fields(HabitatConfig)}
    values = {}
    for key, value in given.items():
        if key not in kinds:
            raise UserError(f"World 'habitat' has no option '{key}'.{suggest(str(key), kinds)}")
        values[key] = _typed(key, value, kinds[key])
    config = HabitatConfig(**values)
    return replace(config, scene=_scene(config.scene), navmesh=_navmesh(config.navmesh))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror or error}).") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML file ({str(error).splitlines()[0]}).") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold the fields of a Habitat world, as 'scene: flat.glb'.")
    for key in ("scene", "navmesh"):  # paths are as seen from the file
        if isinstance(data.get(key), str) and data[key] not in ("", ROOMS):
            data[key] = str(path.parent / data[key])
    return data


def _typed(key: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(str(part) for part in value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a list"}
        raise UserError(f"habitat: {key} must be {names.get(kind, 'a text')}, got {value!r}.")
    return value


def _scene(name: str) -> str:
    """Return the full path of a scene, or 'rooms'."""
    if name == ROOMS:
        return name
    path = Path(name).expanduser()
    if not name.endswith((*ASSETS, _STAGE, DATASET)):
        raise UserError(
            f"habitat: '{name}' is no scene; expected 'rooms', a file that ends in "
            f"{', '.join(ASSETS)}, a *{DATASET}, or a YAML file."
        )
    if not path.is_file():
        raise UserError(f"habitat: there is no scene file {path}.")
    if path.stat().st_size == 0:
        raise UserError(f"habitat: the scene file {path} is empty.")
    with path.open("rb") as file:
        if path.suffix == ".glb" and file.read(4) != b"glTF":
            raise UserError(
                f"habitat: {path} is no glTF binary file (.glb); is it whole, or a Git LFS pointer?"
            )
    return str(path.resolve())


def _navmesh(name: str) -> str:
    path = Path(name).expanduser()
    if name and not path.is_file():
        raise UserError(f"habitat: there is no navmesh file {path}.")
    return str(path.resolve()) if name else ""


def action_table(config: HabitatConfig) -> ActionTable:
    """Return the keys of a Habitat world."""
    step, turn = config.step, config.turn
    rows = (
        ActionRow("forward", "w", "walk forward", dx=step,
                  phrases=("step forward", "go forward", "walk ahead", "move forward")),
        ActionRow("back", "s", "walk backward", dx=-step,
                  phrases=("step back", "go back", "walk backward", "back up")),
        ActionRow("turn left", "a", "turn to the left", dyaw=turn, unit="deg",
                  phrases=("turn left", "look left", "rotate left", "turn to the left")),
        ActionRow("turn right", "d", "turn to the right", dyaw=-turn, unit="deg",
                  phrases=("turn right", "look right", "rotate right", "turn to the right")),
        ActionRow("strafe left", "q", "step to the left side", dy=step,
                  phrases=("step left", "strafe left", "sidestep left", "slide left")),
        ActionRow("strafe right", "e", "step to the right side", dy=-step,
                  phrases=("step right", "strafe right", "sidestep right", "slide right")),
    )  # fmt: skip
    if config.control == "velocity":
        return ActionTable(rows)
    alone = [replace(row, joins=()) for row in rows if row.key in NATIVE]
    return ActionTable(tuple(alone))


NATIVE = {"w": "move_forward", "a": "turn_left", "d": "turn_right"}
"""The simulator's own actions, by key."""


def arc(action: Action) -> tuple[float, float]:
    """Return where an action leads, in metres ahead and to the left of where it began.

    The agent moves at a constant velocity and turns at a constant rate, so it walks an arc.
    """
    angle = math.radians(action.dyaw)
    ahead, across = 1.0, 0.0
    if abs(angle) > 1e-6:
        ahead, across = math.sin(angle) / angle, (1 - math.cos(angle)) / angle
    return ahead * action.dx - across * action.dy, across * action.dx + ahead * action.dy


# The simulator has y up and looks along -z; the project's worlds have x ahead at yaw 0, y to the
# left, and the height last. Both count turns to the left as positive.


def to_ours(x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return a point of the simulator as (x, y, height)."""
    return -z, -x, y


def to_theirs(x: float, y: float, height: float) -> tuple[float, float, float]:
    """Return a point (x, y, height) as the simulator has it."""
    return -y, height, -x


def split_scenes(scenes: tuple[str, ...], split: str) -> tuple[str, ...]:
    """Return a split's share of at least three scenes: of each ten the last two are val and test.

    Raises:
        UserError: fewer than three scenes.
    """
    if len(scenes) < 3:
        raise UserError(f"habitat: {len(scenes)} scenes cannot be split; at least three can.")
    order = sorted(scenes)[::-1]
    shares = {"test": order[::10], "val": order[1::10]}
    rest = [s for s in order if s not in shares["test"] and s not in shares["val"]]
    return tuple(shares.get(split, rest)[::-1])
