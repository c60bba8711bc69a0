"""The layout of Navigation World Models (and of ViNT, which it took it from).

One folder per trajectory with the frames `0.jpg`, `1.jpg`, ... and `traj_data.pkl`, a pickled
dictionary of `position` [T, 2] (x, y) and `yaw` [T] (radians, counter-clockwise). A pickle can
run any program: it is read by an unpickler that knows numpy arrays and plain values only.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worldmodel.actions import ActionTable
from worldmodel.datasets.importers.common import Imported, ImportOptions, Report, moves_between
from worldmodel.datasets.video import fit
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

POSES = "traj_data.pkl"
DEFAULT_FPS = 4.0  # of RECON, which most of these data sets follow
_LARGEST = 64 << 20  # bytes of a pickle; poses of a day take less


def read(source: Path, options: ImportOptions, report: Report) -> Imported:
    """Return the world and the episodes of a folder of trajectories.

    Actions are the moves between the frames kept, as seen by the agent; `options.spacing` keeps
    every n-th frame, `options.scale` multiplies the moves, and `options.fps` says how many
    frames a second the data has (4 if it is not given); nothing is resampled.

    Raises:
        UserError: no trajectories at `source`.
    """
    folders = sorted(path.parent for path in source.rglob(POSES))
    if not folders:
        raise UserError(f"There are no trajectories in {source}: no folder has a {POSES}.")
    width, height = options.size
    fps = (options.fps or DEFAULT_FPS) / options.spacing
    spec = WorldSpec("nwm", ActionTable(()), height, width, fps)
    return spec, _episodes(source, folders, options, report)


def _episodes(
    source: Path, folders: list[Path], options: ImportOptions, report: Report
) -> Iterator[Episode]:
    seed = options.seed
    for folder in folders:
        name = folder.name if folder == source else folder.relative_to(source).as_posix()
        try:
            pose = read_poses(folder / POSES)[:: options.spacing]
            kept = range(0, len(pose) * options.spacing, options.spacing)
            frames = np.stack([_picture(folder / f"{i}.jpg", options.size) for i in kept])
        except (OSError, ValueError, pickle.UnpicklingError) as error:
            report(f"{name}: left out ({error}).")
            continue
        if len(pose) < options.shortest:
            report(f"{name}: left out, {len(pose)} frames are fewer than {options.shortest}.")
            continue
        actions = moves_between(pose) * np.asarray(options.scale, np.float32)
        info = {
            "world": "nwm",
            "seed": seed,
            "split": options.split or "train",
            "policy": "unknown",
            "scene": name,
            "spacing": options.spacing,
        }
        keys = np.zeros(len(actions), np.uint16)
        yield Episode(frames, actions, keys, {"pose": pose.astype(np.float32)}, (), info)
        seed += 1


def _picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(path) as image:
        return fit(np.asarray(image.convert("RGB")), size)


def read_poses(path: Path) -> np.ndarray:
    """Return the poses float64 [T, 3] of a trajectory: x, y, and yaw in degrees.

    Raises:
        ValueError: something else than positions and yaws of equal length, or not finite.
        pickle.UnpicklingError: a pickle with other things than arrays and plain values.
        OSError: no such file.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} has over {_LARGEST} bytes")
    data = load_plain_pickle(path.read_bytes())
    if not isinstance(data, dict) or not {"position", "yaw"} <= data.keys():
        raise ValueError(f"{path.name} has no 'position' and 'yaw'")
    position = np.asarray(data["position"], np.float64)
    yaw = np.asarray(data["yaw"], np.float64).reshape(-1)  # some write [T, 1]
    if position.ndim != 2 or position.shape[1] < 2 or len(position) != len(yaw):
        raise ValueError(f"{path.name} has positions {position.shape} and yaws {yaw.shape}")
    pose = np.column_stack([position[:, :2], np.degrees(yaw)])
    if not np.isfinite(pose).all():
        raise ValueError(f"{path.name} has poses that are not finite")
    return pose


def load_plain_pickle(data: bytes) -> Any:
    """Unpickle arrays and plain values; nothing else is looked up, so nothing else can run.

    Raises:
        pickle.UnpicklingError: anything else, or a damaged pickle.
    """
    import io

    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise pickle.UnpicklingError(f"damaged pickle: {error!r}") from error


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which old pickles hold an array's bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Knows the functions that numpy's own pickles call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        core = np.ndarray((0,)).__reduce__()[0].__module__  # numpy 1 and 2 name it differently
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if name in ("_reconstruct", "scalar"):
                return super().find_class(core, name)
        elif module in ("numpy.core.numeric", "numpy._core.numeric"):
            if name == "_frombuffer":
                return super().find_class(core.replace("multiarray", "numeric"), name)
        elif module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it would call {module}.{name}, which is refused")
