"""HDF5 data sets in the layout of Minari, read with h5py.

`<data set>/data/main_data.hdf5` has a group `episode_<i>` per episode with `observations`
[T+1, ...] (an array, or a group of them), `actions` [T, ...], and more that is not needed here.
Pictures are uint8 arrays, or JPEG bytes as Minari 0.5 writes them by default. Files that this
package exported also carry the world, keys, facts and sentences, and come back as they were.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worldmodel.actions import ActionTable
from worldmodel.datasets.importers.common import (
    UNLABELLED_SPLIT,
    Imported,
    ImportOptions,
    Report,
    numbered_table,
    pick_columns,
    press_discrete,
    read_table,
    require,
    unlabelled,
)
from worldmodel.datasets.video import fit
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, WorldSpec

MAIN_FILE = "main_data.hdf5"
OURS = "worldmodel"  # prefix of what this package adds to the layout
DEFAULT_FPS = 10.0
_EPISODE = "episode_"
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError)


def read(source: Path, options: ImportOptions, report: Report) -> Imported:
    """Return the world and the episodes of a Minari data set or one HDF5 file.

    Discrete actions are looked up in `options.table`, or become keys called by their numbers;
    of continuous ones `options.action_columns` says which columns are dx, dy, dyaw. Without it
    the episodes are unlabelled. `options.fps` names the rate (10 if not given).

    Raises:
        UserError: no such file, not HDF5, no episodes, or h5py is missing.
    """
    h5py = require("h5py", "format=hdf5")
    path = _main_file(source)
    try:
        with h5py.File(path, "r") as file:
            names = sorted((n for n in file if _number(n) >= 0), key=_number)
            mark = file.attrs.get(OURS)
            spec = WorldSpec.from_json(json.loads(str(mark))) if mark is not None else None
            if not names:
                raise UserError(f"{path} has no episodes: no group is called {_EPISODE}0.")
            if spec is None:
                spec = _spec(file, names, options, report)
                ours = False
            else:
                ours = True
    except UserError:
        raise
    except _READ_ERRORS as error:
        raise UserError(f"{path} cannot be read as HDF5 of Minari ({error}).") from error
    return spec, _episodes(path, names, spec, ours, options, report)


def _main_file(source: Path) -> Path:
    if source.is_file():
        return source
    for path in (source / "data" / MAIN_FILE, source / MAIN_FILE):
        if path.is_file():
            return path
    raise UserError(f"{source} is neither an HDF5 file nor a folder with data/{MAIN_FILE}.")


def _number(name: str) -> int:
    digits = name.removeprefix(_EPISODE)
    return int(digits) if name.startswith(_EPISODE) and digits.isdigit() else -1


def _spec(file: Any, names: list[str], options: ImportOptions, report: Report) -> WorldSpec:
    width, height = options.size
    actions = [file[name]["actions"] for name in names]
    table = ActionTable(())
    if _discrete(actions[0]):
        counts = [int(np.max(a[()], initial=-1)) + 1 for a in actions]
        table = read_table(options.table) if options.table else numbered_table(max(counts))
    elif options.action_columns is None:
        report(
            "the actions are not discrete and action_columns= does not say which columns are "
            "dx, dy and dyaw: the episodes become unlabelled."
        )
    return WorldSpec("hdf5", table, height, width, options.fps or DEFAULT_FPS)


def _discrete(actions: Any) -> bool:
    if not hasattr(actions, "dtype"):
        return False  # a group: actions of several parts
    single = len(actions.shape) == 1 or actions.shape[1:] == (1,)
    return single and actions.dtype.kind in "iu"


def _episodes(
    path: Path,
    names: list[str],
    spec: WorldSpec,
    ours: bool,
    options: ImportOptions,
    report: Report,
) -> Iterator[Episode]:
    h5py = require("h5py", "format=hdf5")
    with h5py.File(path, "r") as file:
        for number, name in enumerate(names):
            try:
                if ours:
                    yield _own(file[name], options)
                else:
                    yield _foreign(file[name], name, spec, options.seed + number, options)
            except UserError:
                raise
            except _READ_ERRORS as error:
                report(f"{name}: left out ({error}).")


def _own(group: Any, options: ImportOptions) -> Episode:
    info = json.loads(str(group.attrs[f"{OURS}_info"]))
    said = json.loads(group[f"{OURS}_annotations"][()].decode())
    return Episode(
        frames=group["observations"][()],
        actions=group["actions"][()],
        keys=group[f"{OURS}_keys"][()],
        facts={n: group["infos"][n][()] for n in sorted(group["infos"])},
        annotations=tuple(Annotation(**fields) for fields in said),
        info={**info, "split": options.split} if options.split else info,
    )


def _foreign(group: Any, name: str, spec: WorldSpec, seed: int, options: ImportOptions) -> Episode:
    pictures = _pictures(_camera(group["observations"], options.camera))
    native = group["actions"]
    info: dict[str, Any] = {"world": "hdf5", "seed": seed, "policy": "unknown", "scene": name}
    steps = len(pictures) - 1
    if _discrete(native):
        actions, keys = press_discrete(native[()].reshape(-1)[:steps], spec.actions)
    elif options.action_columns is not None and hasattr(native, "dtype"):
        table = native[()].reshape(len(native), -1)[:steps]
        actions, keys = pick_columns(table, options.action_columns, options.scale)
    else:
        actions, keys = unlabelled(steps)
        info["labelled"] = False
    default = "train" if info.get("labelled", True) else UNLABELLED_SPLIT
    info["split"] = options.split or default
    frames = np.stack([fit(p, options.size) for p in pictures[: len(actions) + 1]])
    if not len(actions):
        raise ValueError("it has no step")
    return Episode(frames, actions, keys, {}, (), info)


def _camera(observations: Any, camera: str | None) -> Any:
    """Return the pictures among an episode's observations.

    Raises:
        UserError: the wanted ones are not there, or it is not clear which are wanted.
    """
    if hasattr(observations, "dtype"):
        return observations
    found = [n for n in observations if _is_pictures(observations[n])]
    if camera is not None:
        if camera not in observations:
            raise UserError(f"There are no observations '{camera}'; known: {', '.join(found)}.")
        return observations[camera]
    if len(found) != 1:
        raise UserError(
            f"The observations hold {len(found)} kinds of pictures ({', '.join(found)}); "
            "camera= says which to take."
        )
    return observations[found[0]]


def _is_pictures(values: Any) -> bool:
    if not hasattr(values, "dtype") or not len(values):
        return False
    pictures = values.dtype == np.uint8 and values.ndim == 4
    return pictures or _is_jpeg(values)


def _is_jpeg(values: Any) -> bool:
    byte_rows = values.dtype == object or (values.dtype == np.uint8 and values.ndim == 2)
    return byte_rows and bytes(np.asarray(values[0]).astype(np.uint8)[:2]) == b"\xff\xd8"


def _pictures(values: Any) -> list[np.ndarray]:
    """Return frames uint8 RGB [H, W, 3] of a data set of pictures or of JPEG bytes.

    Raises:
        ValueError: something else.
    """
    if not len(values):
        raise ValueError("it has no observations")
    if _is_jpeg(values):
        opened = (Image.open(io.BytesIO(np.asarray(v, np.uint8).tobytes())) for v in values[()])
        return [np.asarray(image.convert("RGB")) for image in opened]
    array = values[()]
    if array.dtype != np.uint8 or array.ndim != 4:
        raise ValueError(f"its observations are {array.dtype} {array.shape}, not pictures")
    if array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.shape[-1] == 1:
        array = array.repeat(3, axis=-1)
    if array.shape[-1] != 3:
        raise ValueError(f"its pictures have the shape {array.shape[1:]}, not [H, W, 3]")
    return list(array)
