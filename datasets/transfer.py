"""Bring data in from other formats, and out to them."""

import importlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from worldmodel.datasets.importers.common import ImportOptions
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError, suggest

IMPORTS = ("video", "hdf5", "nwm", "lerobot")
EXPORTS = ("mp4", "hdf5", "lerobot")


def import_(
    kind: str | None, source: str | None, store: str, options: ImportOptions, licence: str
) -> int:
    """Add the episodes of other data to a store; return how many were read.

    What cannot be read is reported on stderr, one sentence each, and left out. The same import
    twice adds nothing the second time.

    Raises:
        UserError: an unknown format, no data at `source`, nothing in it that could be read, or
            a store of another world.
    """
    _check("import", kind, IMPORTS)
    if source is None:
        raise UserError("import needs the place to read from: source=PATH.")
    place = Path(source)
    if not place.exists():
        raise UserError(f"There is nothing at source={source}.")
    module: Any = importlib.import_module(f"worldmodel.datasets.importers.{kind}")

    def report(sentence: str) -> None:
        print(f"worldmodel: {sentence}", file=sys.stderr)

    spec, episodes = module.read(place, options, report)
    writer: EpisodeWriter | None = None
    count = 0
    for episode in tqdm(episodes, unit="episode", desc="import", disable=not sys.stderr.isatty()):
        writer = writer or EpisodeWriter(store, spec, licence=licence)  # none for bad sources
        writer.write(episode)
        count += 1
    if not count:
        raise UserError(f"Nothing of {source} could be imported as format={kind}.")
    return count


def export(store: EpisodeStore, names: Sequence[str], kind: str | None, out: Path) -> None:
    """Write episodes in another format into the folder `out`, which appears once it is whole.

    Raises:
        UserError: an unknown format, no episodes, an `out` that is there already or cannot be
            written, or a damaged episode.
    """
    _check("export", kind, EXPORTS)
    if not names:
        raise UserError(f"{store.path} has no such episodes to export.")
    module: Any = importlib.import_module(f"worldmodel.datasets.exporters.{kind}")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists already; export writes a new folder.")
        temporary.mkdir(parents=True)
        module.write(store, names, temporary)
        temporary.replace(out)  # an empty folder gives way
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check(verb: str, kind: str | None, known: tuple[str, ...]) -> None:
    if kind is None:
        raise UserError(f"{verb} needs format=; known: {', '.join(known)}.")
    if kind not in known:
        raise UserError(f"{verb} does not know format={kind}.{suggest(kind, known)}")
