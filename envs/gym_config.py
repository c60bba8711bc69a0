"""Descriptions of Gymnasium worlds: a small YAML file becomes a `GymConfig`.

Only reading and checking; what the environment itself must confirm (its action space, its
observations) is checked in `gym_controls` and `gym`. docs/worlds.md explains every field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from worldmodel.actions import IDLE_KEYS, IDLE_PHRASES, MAX_KEYS, ActionRow
from worldmodel.errors import UserError, suggest

PRESETS = ("breakout", "carracing", "crafter", "minigrid", "miniworld", "pong", "vizdoom")
"""Names of the descriptions that come with the package, `envs/presets/NAME.yaml`."""

FITS = ("stretch", "crop")
FIELDS = (
    "id", "name", "kwargs", "actions", "combinations", "idle", "size", "source", "region", "fit",
    "fps", "repeat", "settle", "facts",
)  # fmt: skip
ROW_FIELDS = ("name", "key", "native", "meaning", "unit", "dx", "dy", "dyaw", "phrases")

_OBJECT_FACTS = ("bearing", "distance")  # these speak of named objects, which info cannot name


@dataclass(frozen=True)
class GymRow:
    """A key of a Gymnasium world.

    Attributes:
        row: its line of the action table.
        native: what the environment gets; its form depends on the action space, see
            `gym_controls.make_controls`.
    """

    row: ActionRow
    native: Any


@dataclass(frozen=True)
class GymConfig:
    """A Gymnasium world as its file describes it.

    Attributes:
        name: short name of the world.
        id: the Gymnasium id, with 'module:' before it if a module registers it.
        kwargs: given to `gymnasium.make`.
        rows: the keys; empty to derive them from the action space.
        combinations: for Discrete actions, key combinations such as 'w+a' and their native
            actions.
        idle: the native action without keys; None for the space's own, see `Controls`.
        height, width: size of the frames in pixels.
        source: 'obs', 'obs:KEY', 'render', or '' to find out.
        region: the part of the picture that is shown, (top, left, height, width) in its own
            pixels; empty for all of it.
        fit: 'stretch' the picture to the size or 'crop' its middle.
        fps: steps per second at which it is played; None for the environment's own.
        repeat: how often a step gives the environment its action.
        settle: idle actions after a reset, before the first frame.
        facts: name of a fact to the place of its value in `info`, with dots into dictionaries.
    """

    name: str
    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[GymRow, ...] = ()
    combinations: Mapping[str, Any] = field(default_factory=dict)
    idle: Any = None
    height: int = 64
    width: int = 64
    source: str = ""
    region: tuple[int, ...] = ()
    fit: str = "stretch"
    fps: float | None = None
    repeat: int = 1
    settle: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)


def load_preset(name: str) -> GymConfig:
    """Return one of `PRESETS`."""
    return load_config(Path(__file__).parent / "presets" / f"{name}.yaml")


def load_config(path: str | Path) -> GymConfig:
    """Read a world's description.

    Raises:
        UserError: a missing or unreadable file, an unknown field or a value that makes no sense;
            the message names the file and the place.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"Cannot read the world file '{path}': {reason}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"The world file '{path}' is not valid YAML{where}.") from error
    try:
        return parse_config(data, Path(path).stem)
    except UserError as error:
        raise UserError(f"World file '{path}': {error}") from None


def parse_config(data: Any, name: str) -> GymConfig:
    """Return the description in plain data; `name` is the world's name if it gives none.

    Raises:
        UserError: an unknown field, or a value that makes no sense.
    """
    data = _mapping(data, "the file", FIELDS)
    if "id" not in data:
        raise UserError("'id' is missing, the Gymnasium id of the environment.")
    rows = tuple(_row(r, f"actions[{i}]") for i, r in enumerate(_list(data, "actions")))
    check_rows([row.row for row in rows])
    height, width = _size(data.get("size", 64))
    facts = {str(k): str(v) for k, v in _mapping(data.get("facts", {}), "facts").items()}
    for fact in facts:
        if fact in _OBJECT_FACTS:
            raise UserError(f"facts: '{fact}' speaks of a world's named objects; use another name.")
    fit = str(data.get("fit", "stretch"))
    if fit not in FITS:
        raise UserError(f"fit: '{fit}' is unknown.{suggest(fit, FITS)}")
    fps = None if data.get("fps") is None else _number(data["fps"], "fps")
    if fps is not None and fps <= 0:
        raise UserError(f"fps must be above 0, got {fps}.")
    return GymConfig(
        name=str(data.get("name", name)),
        id=str(data["id"]),
        kwargs={str(k): v for k, v in _mapping(data.get("kwargs", {}), "kwargs").items()},
        rows=rows,
        combinations=_combinations(data.get("combinations", {}), [row.row.key for row in rows]),
        idle=data.get("idle"),
        height=height,
        width=width,
        source=_source(str(data.get("source", ""))),
        region=_region(data.get("region", [])),
        fit=fit,
        fps=fps,
        repeat=_whole(data.get("repeat", 1), "repeat", 1),
        settle=_whole(data.get("settle", 0), "settle", 0),
        facts=facts,
    )


def check_rows(rows: Sequence[ActionRow]) -> None:
    """Check that every action of a table has a text that can be read back.

    Raises:
        UserError: keys or phrases that are used twice or would be mistaken for something else.
    """
    if len(rows) > MAX_KEYS:
        raise UserError(f"actions: {len(rows)} keys are too many; at most {MAX_KEYS} are kept.")
    said: set[str] = {IDLE_KEYS, *IDLE_PHRASES}
    keys = [row.key for row in rows]
    for row in rows:
        for text in (row.key, *row.phrases):
            plain = text == " ".join(text.lower().split()) and text.isascii()
            if not text or not plain or "+" in text or " and " in text or ":" in text:
                raise UserError(
                    f"actions: '{text}' cannot be a key or phrase: they are lower case ASCII "
                    "without '+', ':' or ' and '."
                )
        if keys.count(row.key) > 1:
            raise UserError(f"actions: the key '{row.key}' is used twice.")
        for phrase in row.phrases:
            if phrase in said or phrase in keys:
                raise UserError(f"actions: the phrase '{phrase}' already means something else.")
            said.add(phrase)


def _row(data: Any, where: str) -> GymRow:
    data = _mapping(data, where, ROW_FIELDS)
    for needed in ("name", "key", "native"):
        if needed not in data:
            raise UserError(f"{where}: '{needed}' is missing.")
    name = str(data["name"])
    phrases = tuple(str(p) for p in _list(data, "phrases", f"{where}.")) or (name.lower(),)
    dx, dy, dyaw = (_number(data.get(a, 0.0), f"{where}.{a}") for a in ("dx", "dy", "dyaw"))
    row = ActionRow(
        name,
        _key(data["key"]),
        str(data.get("meaning", name)),
        dx,
        dy,
        dyaw,
        unit=str(data.get("unit", "deg" if data.get("dyaw") else "m")),
        phrases=phrases,
    )
    return GymRow(row, data["native"])


def _key(value: Any) -> str:
    # YAML reads a bare `y` or `n` as true or false.
    return {True: "y", False: "n"}[value] if isinstance(value, bool) else str(value)


def _combinations(data: Any, keys: Sequence[str]) -> dict[str, Any]:
    out = {}
    for text, native in _mapping(data, "combinations").items():
        held = str(text).split("+")
        for key in held:
            if key not in keys:
                raise UserError(f"combinations: unknown key '{key}'.{suggest(key, keys)}")
        out["+".join(key for key in keys if key in held)] = native
    return out


def _source(source: str) -> str:
    if source in ("", "obs", "render") or source.startswith("obs:"):
        return source
    raise UserError(
        f"source: '{source}' is unknown.{suggest(source, ('obs', 'obs:KEY', 'render'))}"
    )


def _size(value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2:
        raise UserError(f"size must be one number or [height, width], got {value!r}.")
    height, width = (_whole(side, "size", 8) for side in sides)
    return height, width


def _region(value: Any) -> tuple[int, ...]:
    if value == []:
        return ()
    if not isinstance(value, list) or len(value) != 4:
        raise UserError(f"region must be [top, left, height, width], got {value!r}.")
    return tuple(_whole(n, "region", low) for n, low in zip(value, (0, 0, 1, 1), strict=True))


def _whole(value: Any, name: str, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(f"{name} must be a whole number from {low}, got {value!r}.")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} must be a number, got {value!r}.")
    return float(value)


def _mapping(data: Any, where: str, known: Sequence[str] = ()) -> Mapping[Any, Any]:
    if not isinstance(data, Mapping):
        raise UserError(f"{where} must be a group of 'key: value' lines, got {data!r}.")
    for key in data:
        if known and key not in known:
            raise UserError(f"{where}: unknown field '{key}'.{suggest(str(key), known)}")
    return data


def _list(data: Mapping[Any, Any], name: str, where: str = "") -> Sequence[Any]:
    value = data.get(name, [])
    if not isinstance(value, list):
        raise UserError(f"{where}{name} must be a list, got {value!r}.")
    return value
