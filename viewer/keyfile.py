"""Keys of one's own: a small YAML file that gives commands and the world's actions other keys.

    viewer:                  # commands by name (see the help), each with its keys
      map: [tab]
      fork: [g, f7]
    world:                   # the world's keys, each with those to press for it
      w: [i, up]
      a: [j, left]

What the file does not name keeps its keys; what it names loses those it had.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from worldmodel.errors import UserError, suggest
from worldmodel.viewer.keys import BESIDE_BINDINGS, BINDINGS, Binding

Keys = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class KeyFile:
    """What a keymap file says: keys by command, and keys by the world's own key."""

    viewer: Keys = field(default_factory=dict)
    world: Keys = field(default_factory=dict)

    def bindings(self, bindings: Iterable[Binding]) -> tuple[Binding, ...]:
        """Return the commands with the file's keys."""
        return tuple(
            replace(b, keys=self.viewer[b.name], label=self.viewer[b.name][0].capitalize())
            if b.name in self.viewer
            else b
            for b in bindings
        )


def load_keyfile(path: str) -> KeyFile:
    """Read a keymap file; without a path nothing changes.

    Raises:
        UserError: no such file, no YAML, or an unknown command.
    """
    if not path:
        return KeyFile()
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"Cannot read the keymap '{path}': {reason}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"The keymap '{path}' is not YAML: {error}.".replace("\n", " ")) from error
    try:
        parts = _section(data, "the keymap", ("viewer", "world"))
        names = tuple(binding.name for binding in (*BINDINGS, *BESIDE_BINDINGS))
        viewer = {
            name: _keys(keys, f"viewer.{name}")
            for name, keys in _section(parts.get("viewer") or {}, "viewer", names).items()
        }
        world = {
            str(key): _keys(keys, f"world.{key}")
            for key, keys in _section(parts.get("world") or {}, "world", None).items()
        }
    except UserError as error:
        raise UserError(f"Keymap '{path}': {error}") from error
    return KeyFile(viewer, world)


def _section(data: Any, name: str, known: tuple[str, ...] | None) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UserError(f"{name} must be names with their keys, such as map: [tab].")
    for key in data:
        if known and key not in known:
            raise UserError(f"Unknown name '{key}' in {name}.{suggest(str(key), known)}")
    return data


def _keys(value: Any, name: str) -> tuple[str, ...]:
    keys = value if isinstance(value, list) else [value]
    if not keys or not all(isinstance(k, str | int) and not isinstance(k, bool) for k in keys):
        raise UserError(f"'{name}' must be a key or a list of keys in quotes, got {value!r}.")
    return tuple(str(key).lower() for key in keys)
