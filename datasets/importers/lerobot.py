"""LeRobot data sets, versions 2.0, 2.1 and 3.0, read without the lerobot package.

`meta/info.json` names the version, the rate, the features and the patterns of the other files:
Parquet tables with one row per frame, and MP4 files. Version 3.0 puts many episodes into one
file; `meta/episodes/` says which rows and which seconds are whose. A row's action follows its
frame, so the last row's action leads nowhere and is dropped.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.error import FFmpegError
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
from worldmodel.datasets.video import decode, fit
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, WorldSpec

VERSIONS = ("v2.0", "v2.1", "v3.0")
OURS = "meta/worldmodel.json"  # what this package adds: world, infos, sentences, fact types
KEYS = "action.keys"
FACTS = "observation.facts."


@dataclass(frozen=True)
class Part:
    """Where one episode lies.

    Attributes:
        number: its index. length: its rows. tasks: sentences said of it.
        table: its Parquet file. video: its MP4 file, None where pictures are in the table.
        start_s: where in the video it begins.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    table: Path
    video: Path | None
    start_s: float


def read(source: Path, options: ImportOptions, report: Report) -> Imported:
    """Return the world and the episodes of a LeRobot data set.

    `options.camera` picks one of several cameras; actions as for `hdf5`. `options.size` sets
    the size of a frame, except of data that this package exported.

    Raises:
        UserError: not such a data set, another version, or pyarrow is missing.
    """
    require("pyarrow", "format=lerobot")
    try:
        info = json.loads((source / "meta" / "info.json").read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if version not in VERSIONS:
            raise UserError(
                f"{source} is a LeRobot data set of version {version}; {', '.join(VERSIONS)} "
                "can be read."
            )
        camera = _camera(info, options)
        listed = _parts_v3 if version == "v3.0" else _parts_v2
        parts = listed(source, info, camera)
        ours = _ours(source)
        spec = ours["spec"] if ours else _spec(info, parts, options, report)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(f"{source} is not a LeRobot data set ({error!r}).") from error
    return spec, _episodes(info, camera, parts, spec, ours, options, report)


def _ours(source: Path) -> dict[str, Any]:
    if not (source / OURS).exists():
        return {}
    data = json.loads((source / OURS).read_text(encoding="utf-8"))
    return {**data, "spec": WorldSpec.from_json(data["spec"])}


def _camera(info: dict[str, Any], options: ImportOptions) -> str:
    found = [n for n, f in info["features"].items() if f["dtype"] in ("video", "image")]
    if options.camera is not None and options.camera in found:
        return options.camera
    if options.camera is None and len(found) == 1:
        return found[0]
    wanted = f"not '{options.camera}'" if options.camera else "camera= says which to take"
    raise UserError(f"The data has the cameras {', '.join(found) or '(none)'}; {wanted}.")


def _parts_v2(source: Path, info: dict[str, Any], camera: str) -> list[Part]:
    lines = (source / "meta" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    parts = []
    for row in (json.loads(line) for line in lines if line.strip()):
        number = int(row["episode_index"])
        places = {
            "episode_index": number,
            "episode_chunk": number // int(info.get("chunks_size", 1000)),
            "video_key": camera,
        }
        video = source / info["video_path"].format(**places) if _filmed(info, camera) else None
        table = source / info["data_path"].format(**places)
        tasks = tuple(row.get("tasks") or ())
        parts.append(Part(number, int(row["length"]), tasks, table, video, 0.0))
    return parts


def _parts_v3(source: Path, info: dict[str, Any], camera: str) -> list[Part]:
    parquet = require("pyarrow.parquet", "format=lerobot")
    parts = []
    for file in sorted((source / "meta" / "episodes").rglob("*.parquet")):
        wanted = [n for n in parquet.read_schema(file).names if not n.startswith("stats/")]
        for row in parquet.read_table(file, columns=wanted).to_pylist():
            places = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            table = source / info["data_path"].format(**places)
            video, start = None, 0.0
            if _filmed(info, camera):
                prefix = f"videos/{camera}/"
                places = {n: row[prefix + n] for n in ("chunk_index", "file_index")}
                video = source / info["video_path"].format(video_key=camera, **places)
                start = float(row[f"{prefix}from_timestamp"])
            tasks = tuple(row.get("tasks") or ())
            number, length = int(row["episode_index"]), int(row["length"])
            parts.append(Part(number, length, tasks, table, video, start))
    return sorted(parts, key=lambda part: part.number)


def _filmed(info: dict[str, Any], camera: str) -> bool:
    return info["features"][camera]["dtype"] == "video"


def _spec(
    info: dict[str, Any], parts: list[Part], options: ImportOptions, report: Report
) -> WorldSpec:
    width, height = options.size
    table = ActionTable(())
    if _discrete(info):
        if options.table:
            table = read_table(options.table)
        else:
            files = sorted({part.table for part in parts})
            table = numbered_table(max(int(_column(f, "action").max()) + 1 for f in files))
    elif options.action_columns is None:
        names = info["features"].get("action", {}).get("names")
        report(
            f"action_columns= does not say which of the actions' columns {names} are dx, dy and "
            "dyaw: the episodes become unlabelled."
        )
    return WorldSpec("lerobot", table, height, width, float(info["fps"]))


def _discrete(info: dict[str, Any]) -> bool:
    action = info["features"].get("action", {})
    return str(action.get("dtype")).startswith("int") and list(action["shape"]) == [1]


def _rows(part: Part, columns: list[str]) -> dict[str, list[Any]]:
    """Return some columns of the rows of one episode, in the order of its frames."""
    parquet = require("pyarrow.parquet", "format=lerobot")
    number = [("episode_index", "=", part.number)]
    table = parquet.read_table(part.table, columns=[*columns, "frame_index"], filters=number)
    table = table.sort_by("frame_index")
    if len(table) != part.length:
        raise ValueError(f"{part.table.name} has {len(table)} of its {part.length} rows")
    return {name: table[name].to_pylist() for name in columns}


def _column(file: Path, name: str) -> np.ndarray:
    parquet = require("pyarrow.parquet", "format=lerobot")
    return np.array(parquet.read_table(file, columns=[name])[name].to_pylist())


def _episodes(
    info: dict[str, Any],
    camera: str,
    parts: list[Part],
    spec: WorldSpec,
    ours: dict[str, Any],
    options: ImportOptions,
    report: Report,
) -> Iterator[Episode]:
    size = (spec.width, spec.height)
    for order, part in enumerate(parts):
        try:
            frames = _frames(part, camera, float(info["fps"]), size)
            if ours:
                yield _own(part, frames, ours, options)
            else:
                yield _foreign(part, frames, info, spec, options.seed + order, options)
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, FFmpegError) as error:
            report(f"episode {part.number}: left out ({str(error).splitlines()[0]}).")


def _frames(part: Part, camera: str, fps: float, size: tuple[int, int]) -> np.ndarray:
    """Return an episode's frames uint8 [length, H, W, 3].

    Raises:
        ValueError: the video has fewer.
    """
    if part.length < 2:
        raise ValueError("it has no step")
    if part.video is None:
        cells = _rows(part, [camera])[camera]
        opened = (Image.open(io.BytesIO(cell["bytes"])) for cell in cells)
        return np.stack([fit(np.asarray(image.convert("RGB")), size) for image in opened])
    found: list[np.ndarray] = []
    for at, picture in decode(part.video, part.start_s):
        if at < part.start_s - 0.5 / fps:
            continue  # from the key frame up to the episode
        found.append(fit(picture.to_ndarray(format="rgb24"), size))
        if len(found) == part.length:
            return np.stack(found)
    raise ValueError(f"{part.video.name} has {len(found)} of its {part.length} frames")


def _own(part: Part, frames: np.ndarray, ours: dict[str, Any], options: ImportOptions) -> Episode:
    kept = ours["episodes"][part.number]
    types = kept["facts"]
    rows = _rows(part, ["action", KEYS, *(FACTS + name for name in types)])
    facts = {
        name: np.array(rows[FACTS + name], kind["dtype"]).reshape(part.length, *kind["shape"])
        for name, kind in types.items()
    }
    info = kept["info"]
    return Episode(
        frames=frames,
        actions=np.array(rows["action"][:-1], np.float32).reshape(-1, 3),
        keys=np.array(rows[KEYS][:-1], np.uint16),
        facts=facts,
        annotations=tuple(Annotation(**fields) for fields in kept["annotations"]),
        info={**info, "split": options.split} if options.split else info,
    )


def _foreign(
    part: Part,
    frames: np.ndarray,
    info: dict[str, Any],
    spec: WorldSpec,
    seed: int,
    options: ImportOptions,
) -> Episode:
    about: dict[str, Any] = {"world": "lerobot", "seed": seed, "policy": "unknown"}
    about["scene"] = f"episode {part.number}"
    steps = part.length - 1
    if _discrete(info):
        native = np.array(_rows(part, ["action"])["action"], np.int64).reshape(-1)
        actions, keys = press_discrete(native[:steps], spec.actions)
    elif options.action_columns is not None:
        native = np.array(_rows(part, ["action"])["action"], np.float64)
        columns = native.reshape(part.length, -1)[:steps]
        actions, keys = pick_columns(columns, options.action_columns, options.scale)
    else:
        actions, keys = unlabelled(steps)
        about["labelled"] = False
    default = "train" if about.get("labelled", True) else UNLABELLED_SPLIT
    about["split"] = options.split or default
    said = (" ".join(task.lower().split()) for task in part.tasks)
    notes = tuple(Annotation("instruction", 0, steps, text) for text in said if text)
    return Episode(frames, actions, keys, {}, notes, about)
