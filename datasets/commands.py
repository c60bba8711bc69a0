"""`worldmodel data <command>`: look at a store and check it."""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from worldmodel.datasets.clips import splits
from worldmodel.datasets.schema import SCHEMA_VERSION, annotations_from
from worldmodel.datasets.store import EpisodeStore, leftovers, remove_leftovers, strays
from worldmodel.errors import UserError, suggest
from worldmodel.world import Episode


@dataclass(frozen=True)
class DataConfig:
    """What to do with which store; see conf/data.yaml for the meaning of each field."""

    command: str = "info"
    store: str = "data/doom.zarr"
    split: str | None = None
    out: str = "preview.png"
    episodes: int = 4
    columns: int = 8
    every: int = 4
    clean: bool = False


def main(config: DataConfig) -> int:
    """Run a command on a store; return the exit code.

    Raises:
        UserError: an unknown command, or a store that cannot be opened.
    """
    if config.command not in COMMANDS:
        raise UserError(
            f"Unknown data command '{config.command}'.{suggest(config.command, COMMANDS)}"
        )
    return COMMANDS[config.command](EpisodeStore(config.store), config)


def info(store: EpisodeStore, config: DataConfig) -> int:
    """Print what a store holds."""
    spec, names = store.spec, _chosen(store, config)
    tally = _tally(store, names)
    steps = sum(store.lengths[name] for name in names)
    frames = steps + len(names)
    per_frame = tally.bytes_on_disk / max(1, frames)
    raw = spec.height * spec.width * 3
    by_split = ", ".join(f"{split} {count}" for split, count in splits(store).items())
    rows = {
        "store": f"{store.path} (schema version {SCHEMA_VERSION})",
        "world": f"{spec.name}, {spec.width}x{spec.height} pixels, {spec.fps:g} steps/s",
        "objects": ", ".join(spec.objects) or "(none)",
        "episodes": f"{len(names)}" + (f" ({by_split})" if by_split else ""),
        "frames": f"{frames} in {steps} steps, {steps / spec.fps / 3600:.2f} hours of play",
        "on disk": f"{tally.bytes_on_disk / 1e6:.1f} MB, {per_frame:.0f} bytes/frame"
        + (f" (raw {raw}, {raw / per_frame:.1f} times as much)" if per_frame else ""),
        "keys": _shares(tally.keys, steps),
        "sentences": ", ".join(f"{kind} {n}" for kind, n in sorted(tally.sentences.items()))
        or "(none)",
        "policies": ", ".join(f"{name} {n}" for name, n in sorted(tally.policies.items()))
        or "(none)",
    }
    rows |= {key: str(value) for key, value in store.provenance.items()}
    for key, value in rows.items():
        print(f"{key:<10} {value}")
    if tally.damaged:
        print(f"{'damaged':<10} {tally.damaged} episodes: see `worldmodel data validate`")
    return 0


def validate(store: EpisodeStore, config: DataConfig) -> int:
    """Check every episode; return 1 where something is damaged."""
    problems = []
    names = _chosen(store, config)
    for name in tqdm(names, unit="episode", desc="validate", disable=not sys.stderr.isatty()):
        try:
            store.check(name)
        except UserError as error:
            problems.append(str(error))
    problems += [f"{path} is not an episode of this schema." for path in strays(store.path)]
    for problem in problems:
        print(problem)
    left = leftovers(store.path)
    if left and config.clean:
        print(f"Removed {remove_leftovers(store.path)} unfinished episodes of killed writers.")
    elif left:
        print(
            f"{len(left)} unfinished episodes of killed writers lie in {store.path}; they are "
            "never read and harm nothing. clean=true removes them."
        )
    verdict = "all intact" if not problems else f"{len(problems)} problems"
    print(f"{store.path}: {len(names)} episodes checked, {verdict}.")
    return 1 if problems else 0


def preview(store: EpisodeStore, config: DataConfig) -> int:
    """Write a contact sheet of some episodes as a PNG."""
    from worldmodel.datasets.preview import contact_sheet

    for name in ("episodes", "columns", "every"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} must be at least 1.")
    names = _chosen(store, config)
    if not names:
        where = f" of the split '{config.split}'" if config.split else ""
        raise UserError(f"{store.path} has no episodes{where} to show.")
    spread = np.linspace(0, len(names) - 1, min(config.episodes, len(names)))
    shown: list[tuple[str, Episode]] = [
        (names[i], store.read(names[i])) for i in spread.round().astype(int)
    ]
    sheet = contact_sheet(shown, store.spec, config.columns, config.every)
    out = Path(config.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        sheet.save(temporary, format="PNG")
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}.") from error
    print(f"{out}: {len(shown)} episodes, {sheet.width}x{sheet.height} pixels.")
    return 0


COMMANDS = {"info": info, "validate": validate, "preview": preview}


@dataclass
class _Tally:
    """Sums over episodes."""

    keys: Counter[str]
    sentences: Counter[str]
    policies: Counter[str]
    bytes_on_disk: int = 0
    damaged: int = 0


def _tally(store: EpisodeStore, names: list[str]) -> _Tally:
    tally = _Tally(Counter(), Counter(), Counter())
    table = store.spec.actions
    for name in names:
        try:
            arrays, episode_info = store.arrays(name), store.info(name)
            tally.bytes_on_disk += store.size_on_disk(name)
            tally.sentences.update(said.kind for said in annotations_from(arrays))
        except UserError:
            tally.damaged += 1
            continue
        tally.policies[str(episode_info.get("policy", "unknown"))] += 1
        masks, counts = np.unique(arrays["keys"], return_counts=True)
        for mask, count in zip(masks.tolist(), counts.tolist(), strict=True):
            text = table.text(table.from_mask(mask)).removeprefix("action: ")
            tally.keys[text] += count
    return tally


def _shares(keys: Counter[str], steps: int) -> str:
    """Return the keys by frequency, in percent of the steps."""
    shares = [f"{keys_held} {100 * n / steps:.1f} %" for keys_held, n in keys.most_common(12)]
    rest = len(keys) - len(shares)
    return ", ".join(shares) + (f" and {rest} rarer ones" if rest > 0 else "") or "(none)"


def _chosen(store: EpisodeStore, config: DataConfig) -> list[str]:
    if config.split is None:
        return store.ids
    known = splits(store)
    if config.split not in known:
        raise UserError(
            f"{store.path} has no split '{config.split}'.{suggest(config.split, known)}"
        )
    return store.select(config.split)
