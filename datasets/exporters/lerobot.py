"""LeRobot's version 3.0: Parquet tables, MP4 files and `meta/`; one file per episode.

A row is a frame with the action that follows it; the last row of an episode repeats "no move".
Frames go through H.264 and lose a little. `meta/worldmodel.json`, which LeRobot does not read,
keeps the world, infos, sentences and types, so that `importers.lerobot` brings back all else.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.datasets import schema
from worldmodel.datasets.importers.common import require
from worldmodel.datasets.importers.lerobot import FACTS, KEYS, OURS
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.video import write_mp4
from worldmodel.world import Episode, WorldSpec

CAMERA = "observation.images.view"
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_CHUNK = 1000  # files a folder
_COUNTERS = ("frame_index", "episode_index", "index", "task_index")


def write(store: EpisodeStore, names: Sequence[str], out: Path) -> None:
    """Write episodes as one LeRobot data set.

    Raises:
        UserError: a damaged episode, pyarrow is missing, or a file that cannot be written.
        OSError: a file that cannot be written.
    """
    require("pyarrow", "format=lerobot")
    tasks: dict[str, int] = {}
    rows, kept, tables = [], [], []
    total = 0
    for number, name in enumerate(names):
        episode = store.read(name)
        length, fps = len(episode.frames), store.spec.fps
        places = {"chunk_index": number // _CHUNK, "file_index": number % _CHUNK}
        task = _task(episode, store.spec)
        columns = _columns(episode, fps, number, total, tasks.setdefault(task, len(tasks)))
        _save(columns, out / _DATA.format(**places))
        video = out / _VIDEO.format(video_key=CAMERA, **places)
        video.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(video, episode.frames, fps)
        rows.append(_place(number, length, total, fps, task, places))
        types = {n: {"dtype": v.dtype.str, "shape": v.shape[1:]} for n, v in episode.facts.items()}
        said = [vars(note) for note in episode.annotations]
        kept.append({"info": episode.info, "annotations": said, "facts": types})
        tables.append({n: columns[n] for n in ("action", "timestamp")})
        total += length
    first = store.read(names[0])
    _save(
        {n: [row[n] for row in rows] for n in rows[0]},
        out / "meta/episodes/chunk-000/file-000.parquet",
    )
    _save_tasks(tasks, out / "meta" / "tasks.parquet")
    _text(out / "meta" / "info.json", _info(store.spec, first, len(names), total, len(tasks)))
    _text(out / "meta" / "stats.json", _stats(tables))
    _text(out / OURS, {"spec": store.spec.to_json(), "episodes": kept})


def _task(episode: Episode, spec: WorldSpec) -> str:
    said = (note.text for note in episode.annotations if note.kind == "instruction")
    return next(said, f"explore {spec.name}")


def _columns(
    episode: Episode, fps: float, number: int, offset: int, task: int
) -> dict[str, list[Any]]:
    """Return one row per frame, by column."""
    count = len(episode.frames)
    frame = np.arange(count)
    columns = {
        "action": np.concatenate([episode.actions, np.zeros((1, 3), np.float32)]),
        KEYS: np.concatenate([episode.keys, np.zeros(1, np.uint16)]).astype(np.int64),
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(count, number),
        "index": frame + offset,
        "task_index": np.full(count, task),
        "next.done": frame == count - 1,
    }
    facts = {FACTS + n: v.reshape(count, -1) for n, v in episode.facts.items()}
    facts = {n: v[:, 0] if v.shape[1] == 1 else v for n, v in facts.items()}  # as LeRobot wants
    return {name: values.tolist() for name, values in (columns | facts).items()}


def _place(
    number: int, length: int, offset: int, fps: float, task: str, places: dict[str, int]
) -> dict[str, Any]:
    video = {f"videos/{CAMERA}/{n}": v for n, v in places.items()}
    return {
        "episode_index": number,
        "tasks": [task],
        "length": length,
        **{f"data/{n}": v for n, v in places.items()},
        "dataset_from_index": offset,
        "dataset_to_index": offset + length,
        **video,
        f"videos/{CAMERA}/from_timestamp": 0.0,
        f"videos/{CAMERA}/to_timestamp": length / fps,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }


def _info(
    spec: WorldSpec, episode: Episode, episodes: int, frames: int, tasks: int
) -> dict[str, Any]:
    height, width = spec.height & ~1, spec.width & ~1
    features: dict[str, Any] = {
        CAMERA: {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.fps": spec.fps},
        },
        "action": {"dtype": "float32", "shape": [3], "names": ["dx", "dy", "dyaw"]},
        KEYS: {"dtype": "int64", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
    }
    for name in _COUNTERS:
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    for name, values in episode.facts.items():
        size = int(np.prod(values.shape[1:], dtype=int))
        features[FACTS + name] = {"dtype": values.dtype.name, "shape": [size], "names": None}
    return {
        "codebase_version": "v3.0",
        "robot_type": spec.name,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": _CHUNK,
        "fps": int(spec.fps) if spec.fps.is_integer() else spec.fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": features,
    }


def _stats(tables: Sequence[dict[str, list[Any]]]) -> dict[str, Any]:
    """Return the range and the moments of the numeric columns, as LeRobot normalises by them."""
    stats = {}
    for name in ("action", "timestamp"):
        values = np.concatenate(
            [np.array(t[name], np.float64).reshape(len(t[name]), -1) for t in tables]
        )
        values = values[np.isfinite(values).all(axis=1)]  # unlabelled steps have no action
        if len(values):
            moments = {
                f: getattr(values, f)(axis=0).tolist() for f in ("min", "max", "mean", "std")
            }
            stats[name] = {**moments, "count": [len(values)]}
    return stats


def _save(columns: dict[str, list[Any]], path: Path) -> None:
    arrow = require("pyarrow", "format=lerobot")
    parquet = require("pyarrow.parquet", "format=lerobot")
    path.parent.mkdir(parents=True, exist_ok=True)
    single = {"action": arrow.list_(arrow.float32(), 3), "timestamp": arrow.float32()}
    arrays = {n: arrow.array(v, type=single.get(n)) for n, v in columns.items()}
    parquet.write_table(arrow.table(arrays), path)


def _save_tasks(tasks: dict[str, int], path: Path) -> None:
    """Write the tasks as the pandas table that LeRobot expects: the sentence is the index."""
    arrow = require("pyarrow", "format=lerobot")
    parquet = require("pyarrow.parquet", "format=lerobot")
    table = arrow.table({"task_index": list(tasks.values()), "task": list(tasks)})
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    fields = ("name", "field_name", "pandas_type", "numpy_type", "metadata")
    columns = [
        dict(zip(fields, (n, n, kind, dtype, None), strict=True)) for n, kind, dtype in kinds
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    pandas["pandas_version"] = "2.0.0"
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _text(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(schema.to_text(data), encoding="utf-8")
