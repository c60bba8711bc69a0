"""Keep stores sound: find faults, move faulty episodes aside, merge stores, assign splits."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.datasets.disk import Place
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter, strays
from worldmodel.datasets.url import Unreachable, Url
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

DAMAGED = "damaged"
"""Folder of a store that `repair` moves faulty episodes to; readers never look there."""

LEVELS = ("scene", "level", "level_seed")
"""What an episode's info may call its level, the first found counts; else its seed does."""

_DIFFER = ("name", "height", "width", "fps", "actions", "objects")


@dataclass(frozen=True)
class Fault:
    """Something wrong in a store: the folder (or file) below `episodes/`, and a sentence."""

    path: Place
    says: str


def faults(store: EpisodeStore, names: Iterable[str]) -> Iterator[Fault]:
    """Yield what is wrong with episodes of a store: bytes, values, and copies of one another.

    An episode counts as a duplicate where another has the same frames, actions and keys, under
    whatever id; the one that comes first in the store's order is taken for the original.
    """
    seen: dict[bytes, str] = {}
    for name in names:
        folder = store.path / "episodes" / name
        try:
            episode = store.check(name)
        except Unreachable:
            raise  # which says nothing about the episode
        except UserError as error:
            yield Fault(folder, str(error))
            continue
        wrong = next(_wrong_values(episode, store.spec), None)
        if wrong:
            yield Fault(folder, f"{store.path}: episode {name} {wrong}.")
            continue
        first = seen.setdefault(_digest(episode), name)
        if first != name:
            yield Fault(folder, f"{store.path}: episode {name} is a duplicate of {first}.")


def _wrong_values(episode: Episode, spec: WorldSpec) -> Iterator[str]:
    """Yield what an intact episode holds that makes no sense, as the end of a sentence."""
    known = np.isfinite(episode.actions).all(axis=1)
    if not labelled(episode):
        if np.isfinite(episode.actions).any() or episode.keys.any():
            yield "is marked as unlabelled, but has actions"
    elif not known.all():
        yield (
            f"has actions that are not finite at step {int(np.argmin(known))}, "
            "but is not marked as unlabelled"
        )
    if len(beyond := np.flatnonzero(episode.keys >> len(spec.actions.rows))):
        yield f"has keys at step {beyond[0]} that the action table does not have"
    pose = episode.facts.get("pose")
    if pose is not None and not np.isfinite(pose).all():
        bad = ~np.isfinite(pose.reshape(len(pose), -1)).all(axis=1)
        yield f"has a pose that is not finite at frame {int(np.argmax(bad))}"
    for said in episode.annotations:
        if not 0 <= said.start <= said.stop <= episode.num_steps:
            yield (
                f"has a sentence about frames {said.start} to {said.stop} of its "
                f"{episode.num_steps + 1}"
            )


def labelled(episode: Episode) -> bool:
    """Return whether an episode's actions are known (else they are NaN)."""
    return episode.info.get("labelled", True) is not False


def _digest(episode: Episode) -> bytes:
    digest = hashlib.sha256(np.ascontiguousarray(episode.frames).data)
    digest.update(episode.actions.tobytes())
    digest.update(episode.keys.tobytes())
    return digest.digest()


def move_aside(store: Place, fault: Fault) -> Path:
    """Move what is faulty to the store's `damaged/` and write down why; return the new place.

    Raises:
        UserError: the store cannot be written, or is at a URL; everything stays where it is.
    """
    if isinstance(store, Url) or isinstance(fault.path, Url):
        raise UserError(
            f"{fault.path} cannot be moved aside: at a URL nothing can be renamed. Put it there "
            "again, or delete it."
        )
    folder = store / DAMAGED
    try:
        folder.mkdir(exist_ok=True)
        place = folder / fault.path.name
        number = 1
        while place.exists():
            place, number = folder / f"{fault.path.name}.{number}", number + 1
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"name": place.name, "moved": now, "reason": fault.says})
        with (folder / "reasons.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        os.rename(fault.path, place)
    except OSError as error:
        raise UserError(f"{fault.path} cannot be moved aside: {error}.") from error
    return place


def stray_faults(store: Place) -> list[Fault]:
    """Return what lies among a store's episodes and is none."""
    return [Fault(path, f"{path} is not an episode of this schema.") for path in strays(store)]


def merge(sources: Sequence[EpisodeStore], out: Place) -> int:
    """Copy the episodes of several stores into one; return how many `out` then holds.

    Episodes that several of them hold are kept once. A merge that was stopped goes on where it
    was when it is called again.

    Raises:
        UserError: fewer than two stores, stores of different worlds, `out` is one of them, or a
            damaged episode.
    """
    if len(sources) < 2:
        raise UserError("merge takes at least two stores: stores=[a.zarr,b.zarr] out=c.zarr.")
    if out.resolve() in [source.path.resolve() for source in sources]:
        raise UserError(f"out={out} is one of the stores to merge; choose another.")
    first = sources[0]
    for other in sources[1:]:
        differing = [n for n in _DIFFER if getattr(first.spec, n) != getattr(other.spec, n)]
        if differing:
            raise UserError(
                f"{first.path} and {other.path} cannot be merged: their worlds differ in "
                f"{', '.join(differing)}."
            )
    licences = dict.fromkeys(str(s.provenance.get("licence", "unspecified")) for s in sources)
    writer = EpisodeWriter(out, first.spec, licence=" and ".join(licences))
    present = set(EpisodeStore(out).ids)
    for source in sources:
        for name in source.ids:
            if name not in present:
                present.add(writer.write(source.read(name)))
    return len(EpisodeStore(out))


@dataclass(frozen=True)
class Assignment:
    """The split of each level, by the name of the level."""

    by_level: dict[str, str]

    def of(self, level: str, known: bool) -> str:
        """Return the split of an episode: unlabelled ones never get into `train`."""
        split = self.by_level[level]
        return split if known else ("video" if split == "train" else f"video_{split}")


def level_of(info: Mapping[str, Any], by: str | None = None) -> str:
    """Return the name of an episode's level from its info.

    Args:
        info: the episode's info.
        by: the entry that names the level; by default the first of `LEVELS` that it has, else
            the seed.

    Raises:
        UserError: it has no such entry.
    """
    if by is not None and by not in info:
        raise UserError(f"by={by}: an episode's info has only {', '.join(sorted(info))}.")
    entry = by or next((name for name in LEVELS if name in info), "seed")
    return f"{entry} {info.get(entry, 0)}"


def assign(levels: Iterable[str], val: float, test: float, seed: int) -> Assignment:
    """Return splits of levels: shuffled by the seed, then the first go to test, the next to val.

    Args:
        levels: names of the levels, in any order, repeated or not.
        val: share of the levels for validation; above 0 means at least one level.
        test: share of the levels for the test.
        seed: of the shuffle; equal levels, shares and seeds give equal splits.

    Raises:
        UserError: shares that make no sense, or fewer levels than splits.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(f"val={val} and test={test} must be shares that leave some for train.")
    shuffled = sorted(set(levels), key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).digest())
    tested, valued = (max(1, round(s * len(shuffled))) if s else 0 for s in (test, val))
    if tested + valued >= len(shuffled):
        raise UserError(
            f"{len(shuffled)} levels are too few for val={val} and test={test}: a level is never "
            "divided."
        )
    order = ["test"] * tested + ["val"] * valued
    order += ["train"] * (len(shuffled) - len(order))
    return Assignment(dict(zip(shuffled, order, strict=True)))


def split(
    store: EpisodeStore, out: Place, val: float, test: float, seed: int, by: str | None
) -> dict[str, int]:
    """Write a store's episodes to another one with splits by level; return their numbers.

    An episode's split is part of its id, so the store itself is left as it is. The split that a
    level was made with stays in the info as `made_for`: some worlds need it to make it again.

    Raises:
        UserError: as `assign` and `level_of`; a damaged episode; an `out` that holds episodes.
    """
    infos = {name: store.info(name) for name in store.ids}
    levels = {name: level_of(info, by) for name, info in infos.items()}
    chosen = assign(levels.values(), val, test, seed)
    if out.resolve() == store.path.resolve():
        raise UserError(f"out={out} is the store itself; choose another.")
    licence = str(store.provenance.get("licence", "unspecified"))
    writer = EpisodeWriter(out, store.spec, licence=licence)
    if len(EpisodeStore(out)):
        raise UserError(f"{out} already holds episodes; split writes a new store.")
    counts: dict[str, int] = {}
    for name in store.ids:
        episode = store.read(name)
        target = chosen.of(levels[name], labelled(episode))
        made_for = episode.info.get("made_for", store.describe(name).split)
        info = {**episode.info, "split": target, "made_for": made_for}
        writer.write(replace(episode, info=info))
        counts[target] = counts.get(target, 0) + 1
    return counts
