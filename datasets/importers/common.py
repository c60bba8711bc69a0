"""What the importers share: their options, optional packages, and poses made into actions."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from worldmodel.actions import MAX_KEYS, ActionRow, ActionTable
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

UNLABELLED_SPLIT = "video"  # where episodes without known actions go unless told otherwise

Report = Callable[[str], None]
"""Takes one sentence about something that was skipped."""

Imported = tuple[WorldSpec, Iterator[Episode]]
"""What an importer returns: the world, and its episodes one by one."""


@dataclass(frozen=True)
class ImportOptions:
    """How to import; see conf/data.yaml for the meaning of each field.

    `seed` numbers the episodes: the first gets `seed`, the next `seed + 1`, and so on.
    """

    size: tuple[int, int] = (64, 64)
    fps: float | None = None
    split: str | None = None
    seed: int = 0
    spacing: int = 1
    shortest: int = 16
    longest: int = 1024
    cut: float = 0.5
    camera: str | None = None
    action_columns: tuple[int, ...] | None = None
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    table: str | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"size={list(self.size)} must be two positive numbers.")
        for name in ("spacing", "longest", "shortest"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.longest < self.shortest:
            raise UserError(f"longest={self.longest} must not be below shortest={self.shortest}.")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UserError(f"fps={self.fps} must be above 0 and at most 1000.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative.")
        if self.action_columns is not None and len(self.action_columns) != 3:
            raise UserError(
                f"action_columns={list(self.action_columns)} must be three numbers: the columns "
                "that hold dx, dy and dyaw; -1 for one that there is none of."
            )


def require(module: str, what: str) -> Any:
    """Import an optional package.

    Raises:
        UserError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UserError(
            f"{what} needs the package {package}, which is not installed; get it with: "
            "pip install 'worldmodel[formats]'"
        ) from error


def read_table(path: str) -> ActionTable:
    """Read an action table from a YAML or JSON list of rows; row i is native action i.

    Raises:
        UserError: no such file, or not a list of rows.
    """
    try:
        rows = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        table = ActionTable.from_json([_row(fields) for fields in rows])
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a list of action rows ({error}); a row looks like "
            "{name: forward, key: w, meaning: walk, dx: 0.25, phrases: [step forward]}."
        ) from error
    if not 0 < len(table.rows) <= MAX_KEYS:
        raise UserError(f"{path} has {len(table.rows)} rows; 1 to {MAX_KEYS} are possible.")
    return table


def _row(fields: dict[str, Any]) -> dict[str, Any]:
    name = str(fields["name"])
    return {"meaning": name, **fields, "phrases": fields.get("phrases") or [name]}


def numbered_table(count: int) -> ActionTable:
    """Return a table of `count` actions that nothing is known of but their numbers.

    Raises:
        UserError: more actions than an episode's key masks have bits.
    """
    if count > MAX_KEYS:
        raise UserError(f"The data has {count} discrete actions; at most {MAX_KEYS} are possible.")
    said = [(str(i), f"action {i}") for i in range(count)]
    return ActionTable(tuple(ActionRow(name, key, name, phrases=(name,)) for key, name in said))


def press_discrete(native: np.ndarray, table: ActionTable) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions float32 [T, 3] and key masks uint16 [T] of discrete actions [T].

    Raises:
        UserError: an action that the table has no row for.
    """
    if native.size and not 0 <= native.min() <= native.max() < len(table.rows):
        raise UserError(
            f"The data has the discrete actions {native.min()} to {native.max()}, but the table "
            f"has {len(table.rows)} rows."
        )
    moves = np.array([(row.dx, row.dy, row.dyaw) for row in table.rows], np.float32)
    bits = np.array([1 << i for i in range(len(table.rows))], np.uint16)
    return moves[native].reshape(-1, 3), bits[native].reshape(-1)


def pick_columns(
    native: np.ndarray, columns: Sequence[int], scale: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return actions float32 [T, 3] and empty key masks uint16 [T] of native actions [T, D].

    Args:
        native: the data's actions.
        columns: which of them hold dx, dy, dyaw; -1 for zero.
        scale: factors to metres, metres and degrees.

    Raises:
        UserError: a column that the actions do not have.
    """
    if any(not -1 <= column < native.shape[1] for column in columns):
        raise UserError(
            f"action_columns={list(columns)}: the data's actions have columns 0 to "
            f"{native.shape[1] - 1}."
        )
    padded = np.concatenate([native, np.zeros((len(native), 1))], axis=1)  # -1 is the last one
    actions = (padded[:, list(columns)] * np.asarray(scale)).astype(np.float32)
    return actions, np.zeros(len(actions), np.uint16)


def unlabelled(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions and key masks of steps whose actions nobody knows: NaN and 0.

    Such an episode's info must say `labelled: false`.
    """
    return np.full((steps, 3), np.nan, np.float32), np.zeros(steps, np.uint16)


def moves_between(pose: np.ndarray) -> np.ndarray:
    """Return the moves between poses, each seen from the agent before it.

    Args:
        pose: float [T+1, 3], x and y in metres, yaw in degrees counter-clockwise, 0 along +x.

    Returns:
        float32 [T, 3]: metres forward, metres to the left, degrees counter-clockwise in
        [-180, 180).
    """
    pose = np.asarray(pose, np.float64)
    way, turn = np.diff(pose[:, :2], axis=0), np.diff(pose[:, 2])
    cos, sin = np.cos(np.radians(pose[:-1, 2])), np.sin(np.radians(pose[:-1, 2]))
    forward = cos * way[:, 0] + sin * way[:, 1]
    left = cos * way[:, 1] - sin * way[:, 0]
    return np.stack([forward, left, (turn + 180.0) % 360.0 - 180.0], axis=1).astype(np.float32)
