"""Minari's HDF5 layout: `<out>/data/main_data.hdf5` and `metadata.json`.

Frames are stored raw (gzip level 1), so nothing of them is lost. Minari wants rewards and
terminations, which episodes do not have: rewards are zeros, and every episode ends truncated.
What Minari has no place for (keys, sentences, info, the action table) is added beside it under
names that begin with `worldmodel`, where its readers do not look.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.datasets import schema
from worldmodel.datasets.importers.common import require
from worldmodel.datasets.importers.hdf5 import MAIN_FILE, OURS
from worldmodel.datasets.store import EpisodeStore
from worldmodel.world import Episode, WorldSpec

MINARI_VERSION = "0.5.4"  # whose layout this is
_ENDLESS = float(np.finfo(np.float32).max)


def write(store: EpisodeStore, names: Sequence[str], out: Path) -> None:
    """Write episodes as one Minari data set.

    Raises:
        UserError: a damaged episode, or h5py is missing.
        OSError: a file that cannot be written.
    """
    h5py = require("h5py", "format=hdf5")
    folder = out / "data"
    folder.mkdir()
    steps = 0
    with h5py.File(folder / MAIN_FILE, "w", track_order=True) as file:
        file.attrs[OURS] = schema.to_text(store.spec.to_json())
        for number, name in enumerate(names):
            episode = store.read(name)
            _add(file.create_group(f"episode_{number}"), number, episode)
            steps += episode.num_steps
    metadata = {
        "dataset_id": f"worldmodel/{store.spec.name}-v0",
        "total_episodes": len(names),
        "total_steps": steps,
        "minari_version": MINARI_VERSION,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(_pictures_space(store.spec)),
        "action_space": json.dumps(_moves_space()),
        "algorithm_name": "",
        "author": [],
        "description": f"Exported from {store.path.name}.",
        "licence": store.provenance.get("licence", "unspecified"),
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8")


def _add(group: Any, number: int, episode: Episode) -> None:
    steps = episode.num_steps
    group.attrs["id"] = number
    group.attrs["seed"] = int(episode.info.get("seed", 0))
    group.attrs["total_steps"] = steps
    group.attrs[f"{OURS}_info"] = schema.to_text(episode.info)
    said = schema.to_text([vars(note) for note in episode.annotations])
    group[f"{OURS}_annotations"] = said  # not an attribute: those end at 64 kB
    group[f"{OURS}_keys"] = episode.keys
    one = (1, *episode.frames.shape[1:])
    kept = {"chunks": one, "compression": "gzip", "compression_opts": 1}
    group.create_dataset("observations", data=episode.frames, **kept)
    group["actions"] = episode.actions
    group["rewards"] = np.zeros(steps, np.float32)
    group["terminations"] = np.zeros(steps, bool)
    group["truncations"] = np.arange(steps) == steps - 1
    infos = group.create_group("infos")
    for name, values in episode.facts.items():
        infos[name] = values


def _pictures_space(spec: WorldSpec) -> dict[str, Any]:
    shape = (spec.height, spec.width, 3)
    low, high = np.zeros(shape, int).tolist(), np.full(shape, 255).tolist()
    return {"type": "Box", "dtype": "uint8", "shape": list(shape), "low": low, "high": high}


def _moves_space() -> dict[str, Any]:
    low, high = [-_ENDLESS] * 3, [_ENDLESS] * 3
    return {"type": "Box", "dtype": "float32", "shape": [3], "low": low, "high": high}
