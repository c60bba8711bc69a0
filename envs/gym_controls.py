"""From keys to a Gymnasium environment's own actions, and key tables for undescribed ones."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import gymnasium
import numpy as np
import yaml
from gymnasium import spaces

from worldmodel.actions import IDLE_PHRASES, MAX_KEYS, Action, ActionRow, ActionTable
from worldmodel.envs.gym_config import GymConfig, GymRow, check_rows
from worldmodel.errors import UserError, suggest

Natives = Mapping[str, Any]  # native value by key
Held = tuple[str, ...]
Handler = tuple[Callable[[Held], Any], Callable[[str, str], bool]]  # of keys held; whether two join

_IDLE_NAMES = ("noop", "no op", "none", "idle", "nothing", "do nothing")
_ARROWS = re.compile(r"^(UP|DOWN)?(LEFT|RIGHT)?(FIRE)?$")  # Atari's names of joystick positions
_SPARE_KEYS = "1234567890zcbtyuiojklm"
_PREFERRED: tuple[tuple[str, str], ...] = (
    (r"forward|^up$|move up|accelerate|^gas$", "w"),
    (r"back|^down$|move down|brake", "s"),
    (r"strafe left", "q"),
    (r"strafe right", "e"),
    (r"left", "aq"),
    (r"right", "de"),
    (r"fire|attack|shoot|jump|^do$", " "),
    (r"use|toggle|interact|open", "f"),
    (r"pick|grab", "g"),
    (r"drop", "b"),
)


@dataclass(frozen=True)
class Controls:
    """What the keys of a world do.

    Attributes:
        table: the keys; those that the environment cannot do at once do not join.
        native: the environment's action for the names of keys held (in the table's order);
            None where nothing is held and the environment has no action that does nothing:
            it is then left as it is.
    """

    table: ActionTable
    native: Callable[[tuple[str, ...]], Any]


def make_controls(env: gymnasium.Env, config: GymConfig) -> Controls:
    """Return the controls that a description gives `env`.

    The native value of a key, by the kind of action space:
        Discrete: an action's number or name. Combinations of keys have their own; of a
            combination that is not listed the largest listed part is done.
        MultiBinary: a button's number or name, or a list of them; keys held add up.
        MultiDiscrete: `{component: value}`; components that no key held speaks of are idle.
        Box: a list of numbers; those of the keys held are added to the idle one and clipped.
        Dict: `{component: its native value}`; components that no key held speaks of are idle.

    Raises:
        UserError: a value that does not fit the action space, or a space of another kind.
    """
    space, names = env.action_space, action_names(env)
    keys = [row.row.key for row in config.rows]
    natives = {row.row.key: row.native for row in config.rows}
    if config.combinations and not isinstance(space, spaces.Discrete):
        raise UserError(f"combinations are for Discrete actions; those of {config.id} add up.")
    if isinstance(space, spaces.Discrete):
        native, joins = _discrete(space, names, natives, config.idle, config.combinations)
    else:
        native, joins = _handler(space, names, natives, config.idle, config.id)
    rows = []
    for row in config.rows:
        key = row.row.key
        others = tuple(other for other in keys if other != key and joins(key, other))
        rows.append(replace(row.row, joins=None if len(others) == len(keys) - 1 else others))
    table = ActionTable(tuple(rows))
    for held in ((), *((key,) for key in keys)):
        value = native(held)
        if value is not None and not space.contains(value):
            raise UserError(f"native {value!r} of '{'+'.join(held)}' is no action of {space}.")
    return Controls(table, native)


def _handler(
    space: spaces.Space, names: Sequence[str], natives: Natives, idle: Any, where: str
) -> Handler:
    if isinstance(space, spaces.MultiBinary):
        return _multi_binary(space, names, natives)
    if isinstance(space, spaces.MultiDiscrete):
        return _multi_discrete(space, natives, idle)
    if isinstance(space, spaces.Box):
        return _box(space, natives, idle)
    if isinstance(space, spaces.Dict):
        return _dict(space, natives, idle, where)
    if isinstance(space, spaces.Discrete):  # a component, where 0 is to do nothing
        return _discrete(space, names, natives, int(space.start) if idle is None else idle, {})
    raise UserError(
        f"{where} has {type(space).__name__} actions; a world needs Discrete, MultiDiscrete, "
        "MultiBinary or Box ones, or a Dict of them. Wrap it or choose another variant."
    )


def action_names(env: gymnasium.Env) -> tuple[str, ...]:
    """Return what the environment calls its actions or buttons; empty where it does not say."""
    own: Any = env.unwrapped
    if hasattr(own, "get_action_meanings"):
        return tuple(str(name) for name in own.get_action_meanings())
    if members := getattr(getattr(own, "actions", None), "__members__", None):
        return tuple(members)  # an enumeration, as MiniGrid and MiniWorld have
    if (game := getattr(own, "game", None)) is not None and hasattr(game, "get_available_buttons"):
        buttons = tuple(button.name for button in game.get_available_buttons())
        return ("noop", *buttons) if isinstance(env.action_space, spaces.Discrete) else buttons
    return ()


def derive(env: gymnasium.Env, config: GymConfig) -> tuple[GymConfig, str]:
    """Return `config` with keys for its action space, and what was left out, or ''."""
    space, names = env.action_space, action_names(env)
    idle: Any = config.idle
    together: dict[str, int] = {}
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        said = [names[i] if i < len(names) else f"action {i + first}" for i in range(int(space.n))]
        found, together, idle = _from_names(said, first, idle)
    else:
        found = _find(space, names)
    rows = _rows(found[:MAX_KEYS])
    check_rows([row.row for row in rows])
    kept = {str(name): row.row.key for (name, _), row in zip(found, rows, strict=False)}
    listed = {
        "+".join(row.row.key for row in rows if row.row.key in {kept[p] for p in parts}): value
        for text, value in together.items()
        if (parts := text.split("+")) and all(part in kept for part in parts)
    }
    left = len(found) - len(rows)
    dropped = f"{left} of its {len(found)} controls have no key" if left > 0 else ""
    return replace(config, rows=rows, combinations=listed, idle=idle), dropped


def _find(space: spaces.Space, names: Sequence[str] = ()) -> list[tuple[str, Any]]:
    """Return single actions of a space that is not Discrete; none where `make_controls` refuses."""
    if isinstance(space, spaces.MultiBinary):
        count = int(np.prod(space.shape))
        return [(names[i] if i < len(names) else f"button {i}", i) for i in range(count)]
    if isinstance(space, spaces.MultiDiscrete):
        return [
            (f"control {i}" if n == 2 else f"control {i} at {value}", {i: value})
            for i, n in enumerate(np.ravel(space.nvec).tolist())
            for value in range(1, n)
        ]
    if isinstance(space, spaces.Box):
        return _axes(space)
    if isinstance(space, spaces.Dict):
        return [
            (f"{name} {what}".strip(), {name: native})
            for name, part in space.items()
            for what, native in (
                _choices(part) if isinstance(part, spaces.Discrete) else _find(part)
            )
        ]
    return []


def _choices(space: spaces.Discrete) -> list[tuple[str, Any]]:
    """Return all but the first action of a component; a switch needs no more than its name."""
    first, count = int(space.start), int(space.n)
    return [("" if count == 2 else f"at {i}", i) for i in range(first + 1, first + count)]


def _from_names(
    names: Sequence[str], first: int, idle: Any
) -> tuple[list[tuple[str, Any]], dict[str, int], Any]:
    """Return single actions, combinations by 'name+name', and the idle action."""
    single: list[tuple[str, Any]] = []
    together: dict[str, int] = {}
    for number, name in enumerate(names, start=first):
        arrows = _ARROWS.match(name)
        parts = [part for part in arrows.groups() if part] if arrows else name.split("+")
        if _plain(name) in _IDLE_NAMES:
            idle = number if idle is None else idle
        elif len(parts) > 1 and all(part in names for part in parts):
            together["+".join(parts)] = number
        else:
            single.append((name, number))
    return single, together, idle


def _axes(space: spaces.Box) -> list[tuple[str, Any]]:
    """Return a key each way along every axis that leads away from rest."""
    low, high = _bounds(space)
    rest = np.clip(0.0, low, high)
    found: list[tuple[str, Any]] = []
    for axis in range(len(rest)):
        for word, edge in (("up", high), ("down", low)):
            if edge[axis] != rest[axis]:
                push = np.zeros(len(rest))
                push[axis] = edge[axis] - rest[axis]
                found.append((f"axis {axis} {word}", push.tolist()))
    return found


def _rows(found: Iterable[tuple[str, Any]]) -> tuple[GymRow, ...]:
    """Return a row per named action, each with a key that suits its name."""
    taken: set[str] = set()
    rows: list[GymRow] = []
    for name, native in found:
        text = _plain(name)
        # Axes lie in pairs, as the keys of a walker do.
        wanted = next((keys for pattern, keys in _PREFERRED if re.search(pattern, text)), "")
        if text.startswith("axis"):
            wanted = {"axis 0 up": "d", "axis 0 down": "a", "axis 1 up": "w", "axis 1 down": "s",
                      "axis 2 up": "e", "axis 2 down": "q"}.get(text, "")  # fmt: skip
        elif text in _LETTERS:
            wanted = text
        key = next(key for key in (*wanted, *_SPARE_KEYS) if key not in taken)
        taken.add(key)
        key = "space" if key == " " else key
        phrase = f"press {text}" if text in (key, *IDLE_PHRASES) or len(text) == 1 else text
        rows.append(GymRow(ActionRow(text, key, text, phrases=(phrase,)), native))
    return tuple(rows)


_LETTERS = frozenset("wasdqe")


def _plain(name: str) -> str:
    words = re.sub(r"[^a-z0-9+ .-]", " ", name.lower().replace("_", " "))
    return " ".join(words.replace("+", " plus ").replace(" and ", " ").split())


def _discrete(
    space: spaces.Discrete,
    names: Sequence[str],
    natives: Natives,
    idle: Any,
    together: Mapping[str, Any],
) -> Handler:
    order = list(natives)
    listed = {frozenset([key]): _number(native, names) for key, native in natives.items()}
    for text, native in together.items():
        listed[frozenset(text.split("+"))] = _number(native, names)
    for held, number in listed.items():
        if not space.contains(number):
            raise UserError(f"native {number} of '{'+'.join(held)}' is no action of {space}.")
    rest = None if idle is None else _number(idle, names)

    def native(keys: Held) -> Any:
        if not keys:
            return rest
        parts = [part for part in listed if part <= set(keys)]
        # Among equally large parts the one further down the table counts, as in ActionTable.
        rank = {part: sorted((order.index(key) for key in part), reverse=True) for part in parts}
        return listed[max(parts, key=lambda part: (len(part), rank[part]))]

    return native, lambda a, b: any({a, b} <= held for held in listed)


def _multi_binary(space: spaces.MultiBinary, names: Sequence[str], natives: Natives) -> Handler:
    size = int(np.prod(space.shape))
    buttons = {}
    for key, native in natives.items():
        several = native if isinstance(native, list) else [native]
        buttons[key] = [_number(one, names) for one in several]
        for button in buttons[key]:
            if not 0 <= button < size:
                raise UserError(f"native {button} of '{key}' is no button; there are {size}.")

    def native(keys: Held) -> Any:
        pressed = np.zeros(size, np.int8)
        for key in keys:
            pressed[buttons[key]] = 1
        return pressed.reshape(space.shape)

    return native, lambda a, b: True


def _multi_discrete(space: spaces.MultiDiscrete, natives: Natives, idle: Any) -> Handler:
    start = np.ravel(space.start)
    rest = _numbers(idle, len(start), "idle") if idle is not None else start
    parts: dict[str, dict[int, int]] = {}
    for key, native in natives.items():
        if not isinstance(native, Mapping) or not all(
            isinstance(i, int) and 0 <= i < len(start) for i in native
        ):
            raise UserError(
                f"native of '{key}' must be {{component: value}} with components from 0 to "
                f"{len(start) - 1}, got {native!r}."
            )
        parts[key] = {int(i): int(value) for i, value in native.items()}

    def native(keys: Held) -> Any:
        action = np.array(rest, space.dtype)
        for key in keys:
            for component, value in parts[key].items():
                action[component] = value
        return action.reshape(space.shape)

    def joins(a: str, b: str) -> bool:
        return all(parts[a][i] == parts[b][i] for i in parts[a].keys() & parts[b].keys())

    return native, joins


def _box(space: spaces.Box, natives: Natives, idle: Any) -> Handler:
    low, high = _bounds(space)
    rest = np.clip(0.0, low, high) if idle is None else _numbers(idle, len(low), "idle")
    push = {key: _numbers(native, len(low), f"'{key}'") for key, native in natives.items()}

    def native(keys: Held) -> Any:
        action = rest + sum((push[key] for key in keys), np.zeros(len(rest)))
        return np.clip(action, low, high).astype(space.dtype).reshape(space.shape)

    def joins(a: str, b: str) -> bool:
        return bool((push[a] + push[b]).any())  # exact opposites would do nothing

    return native, joins


def _dict(space: spaces.Dict, natives: Natives, idle: Any, where: str) -> Handler:
    known = list(space.keys())
    example = {name: told[name] for _, told in _find(space) for name in told}
    for key, native in {**natives, "idle": {} if idle is None else idle}.items():
        if not isinstance(native, Mapping):
            raise UserError(
                f"native of '{key}' must be a group with some of the components of {where}, for "
                f"instance {yaml.safe_dump(example, default_flow_style=True).strip()}, got "
                f"{native!r}."
            )
        for name in native:
            if name not in known:
                raise UserError(
                    f"native of '{key}': the actions have no component '{name}'."
                    f"{suggest(str(name), known)}"
                )
    handlers: dict[str, Handler] = {}
    for name in known:
        told = {key: native[name] for key, native in natives.items() if name in native}
        rest = None if idle is None else idle.get(name)
        handlers[name] = _handler(space[name], (), told, rest, f"{where}, component '{name}',")

    def native(keys: Held) -> Any:
        return {
            name: handler(tuple(key for key in keys if name in natives[key]))
            for name, (handler, _) in handlers.items()
        }

    def joins(a: str, b: str) -> bool:
        shared = natives[a].keys() & natives[b].keys()
        return all(handlers[name][1](a, b) for name in shared)

    return native, joins


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite bounds [n] of a flat Box; an open one counts as 1 away from 0."""
    low, high = (np.ravel(edge).astype(float) for edge in (space.low, space.high))
    low[~np.isfinite(low) | (np.abs(low) > 1e6)] = -1.0
    high[~np.isfinite(high) | (np.abs(high) > 1e6)] = 1.0
    return low, high


def _number(native: Any, names: Sequence[str]) -> int:
    """Return the number of an action or button given by number or name."""
    if isinstance(native, bool) or not isinstance(native, int | str):
        raise UserError(f"native {native!r} must be the number or the name of an action.")
    if isinstance(native, int):
        return native
    known = {name.lower(): number for number, name in enumerate(names)}
    if native.lower() not in known:
        raise UserError(f"The environment has no action '{native}'.{suggest(native, known)}")
    return known[native.lower()]


def _numbers(native: Any, size: int, what: str) -> np.ndarray:
    """Return a list of `size` numbers as float64 [size]."""
    good = isinstance(native, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in native
    )
    if not good or len(native) != size:
        raise UserError(f"native of {what} must be a list of {size} numbers, got {native!r}.")
    return np.array(native, float)


def pairs(table: ActionTable) -> tuple[Action, ...]:
    """Return standing still, each key, and each two keys that can be held together."""
    held = [(), *combinations(table.keys, 1), *combinations(table.keys, 2)]
    pressed = [table.press(keys) for keys in held]
    return tuple(a for keys, a in zip(held, pressed, strict=True) if len(a.keys) == len(keys))
