"""`worldmodel data <command>`: look at stores, care for them, bring data in and out."""

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from worldmodel.datasets import care, disk, text_commands
from worldmodel.datasets.clips import splits
from worldmodel.datasets.latents import (
    LATENTS,
    cached_episodes,
    caches,
    encode_store,
    encoder_hash,
    latent_faults,
)
from worldmodel.datasets.schema import EPISODES, SCHEMA_VERSION, annotations_from
from worldmodel.datasets.store import EpisodeStore, leftovers, remove_leftovers
from worldmodel.datasets.text import TextStore, is_text_store, listed_folders
from worldmodel.datasets.url import Unreachable
from worldmodel.errors import UserError, suggest
from worldmodel.world import Episode

if TYPE_CHECKING:
    from worldmodel.encoders import FrameEncoder


@dataclass(frozen=True)
class DataConfig:
    """What to do with which store; see conf/data.yaml for the meaning of each field."""

    command: str = "info"
    store: str = "data/doom.zarr"
    split: str | None = None
    out: str | None = None
    episodes: int = 4
    columns: int = 8
    every: int = 4
    clean: bool = False
    stores: tuple[str, ...] = ()
    val: float = 0.1
    test: float = 0.1
    by: str | None = None
    seed: int = 0
    format: str | None = None
    source: str | None = None
    size: tuple[int, int] = (64, 64)
    fps: float | None = None
    spacing: int = 1
    shortest: int = 16
    longest: int = 1024
    cut: float = 0.5
    camera: str | None = None
    table: str | None = None
    action_columns: tuple[int, ...] | None = None
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    licence: str = "unspecified"
    tokenizer: str | None = None
    checkpoint: str | None = None
    encoder: str | None = None
    device: str = "auto"


def main(config: DataConfig) -> int:
    """Run a command on a store; return the exit code.

    Raises:
        UserError: an unknown command, or a store that cannot be opened.
    """
    if config.command not in COMMANDS:
        raise UserError(
            f"Unknown data command '{config.command}'.{suggest(config.command, COMMANDS)}"
        )
    return COMMANDS[config.command](config)


def info(config: DataConfig) -> int:
    """Print what a store holds."""
    if is_text_store(config.store):
        return text_commands.info(config.store, config.split)
    store = EpisodeStore(config.store)
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
        "keys": _shares(tally.keys, tally.keys.total()),
        "sentences": ", ".join(f"{kind} {n}" for kind, n in sorted(tally.sentences.items()))
        or "(none)",
        "policies": ", ".join(f"{name} {n}" for name, n in sorted(tally.policies.items()))
        or "(none)",
    }
    if tally.unlabelled:
        rows["unlabelled"] = f"{tally.unlabelled} episodes, whose actions nobody knows"
    for cache in caches(store.path):
        have = sum(name in store.lengths for name in cached_episodes(cache))
        rows[f"latents {cache.digest}"] = f"of {have} of {len(store)} episodes"
    rows |= {key: str(value) for key, value in store.provenance.items()}
    for key, value in rows.items():
        print(f"{key:<10} {value}")
    if tally.damaged:
        print(f"{'damaged':<10} {tally.damaged} episodes: see `worldmodel data validate`")
    return 0


def validate(config: DataConfig) -> int:
    """Check every episode; return 1 where something is wrong."""
    if is_text_store(config.store):
        return text_commands.validate(config.store, config.clean)
    store = EpisodeStore(config.store)
    names = _chosen(store, config)
    problems = _faults(store, names)
    for problem in problems:
        print(problem.says)
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


def repair(config: DataConfig) -> int:
    """Move everything that `validate` complains about to the store's folder `damaged`."""
    store = EpisodeStore(config.store)
    names = _chosen(store, config)
    problems = _faults(store, names)
    for problem in problems:
        print(problem.says)
        print(f"  moved to {care.move_aside(store.path, problem)}")
    kept = len(EpisodeStore(config.store))
    moved = f"{len(problems)} moved to {store.path / care.DAMAGED}" if problems else "all intact"
    print(f"{store.path}: {len(names)} episodes checked, {moved}; {kept} episodes remain.")
    return 0


def merge(config: DataConfig) -> int:
    """Copy the episodes of several stores into one."""
    out = disk.place(_out(config, "merge"))
    total = care.merge([EpisodeStore(path) for path in config.stores], out)
    print(f"{out} now holds {total} episodes.")
    return 0


def split(config: DataConfig) -> int:
    """Write a store anew with splits by level."""
    out = disk.place(_out(config, "split"))
    store = EpisodeStore(config.store)
    counts = care.split(store, out, config.val, config.test, config.seed, config.by)
    print(f"{out}: " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) + ".")
    return 0


def stats(config: DataConfig) -> int:
    """Print figures of a store, and write them as JSON where `out` is given."""
    from worldmodel.datasets.stats import as_text, measure

    store = EpisodeStore(config.store)
    figures = measure(store, _chosen(store, config))
    print(as_text(figures))
    if config.out:
        text, out = json.dumps(figures, indent=1) + "\n", disk.local(config.out, "out")
        _written(out, lambda path: path.write_text(text, encoding="utf-8"))
        print(f"{config.out}: the same as JSON.")
    return 0


def import_(config: DataConfig) -> int:
    """Add the episodes of other data to a store."""
    from worldmodel.datasets import transfer
    from worldmodel.datasets.importers.common import ImportOptions

    settings = {field.name: getattr(config, field.name) for field in fields(ImportOptions)}
    count = transfer.import_(
        config.format, config.source, config.store, ImportOptions(**settings), config.licence
    )
    total = len(EpisodeStore(config.store))
    print(f"{count} episodes read; {config.store} now holds {total}.")
    return 0


def export(config: DataConfig) -> int:
    """Write episodes in another format."""
    from worldmodel.datasets import transfer

    out = disk.local(_out(config, "export"), "out")
    store = EpisodeStore(config.store)
    names = _chosen(store, config)
    transfer.export(store, names, config.format, out)
    print(f"{out}: {len(names)} episodes as {config.format}.")
    return 0


def preview(config: DataConfig) -> int:
    """Write a contact sheet of some episodes as a PNG, or show them in an MP4."""
    if is_text_store(config.store):
        return text_commands.preview(config.store, config.split, config.episodes, config.out)
    from worldmodel.datasets.preview import contact_sheet, film
    from worldmodel.datasets.video import write_mp4

    store = EpisodeStore(config.store)
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
    out = disk.local(config.out or "preview.png", "out")
    if out.suffix.lower() == ".mp4":
        pictures = film(shown, store.spec)
        _written(out, lambda path: write_mp4(path, pictures, store.spec.fps))
        print(f"{out}: {len(shown)} episodes, {store.spec.fps:g} frames/s.")
        return 0
    sheet = contact_sheet(shown, store.spec, config.columns, config.every)
    _written(out, lambda path: sheet.save(path, format="PNG"))
    print(f"{out}: {len(shown)} episodes, {sheet.width}x{sheet.height} pixels.")
    return 0


def text(config: DataConfig) -> int:
    """Add plain text to a text store."""
    return text_commands.add(
        config.source, config.out, config.tokenizer, config.licence, config.val
    )


def encode(config: DataConfig) -> int:
    """Keep an encoder's latents of the episodes in the store."""
    from worldmodel.devices import choose_device

    store = EpisodeStore(config.store)
    device, reason = choose_device(config.device)
    encoder = _encoder(config).to(device).eval()
    print(f"device: {device} ({reason})")
    names = _chosen(store, config)
    shown = tqdm(names, unit="episode", desc="encode", disable=not sys.stderr.isatty())
    done = encode_store(store, encoder, shown)
    digest = encoder_hash(encoder)
    print(f"{store.path}: latents {digest} of {len(names)} episodes, {done} of them new.")
    return 0


def index(config: DataConfig) -> int:
    """Write the names of what a store holds into it, for web servers that show no listings."""
    path = disk.writable(config.store)
    if is_text_store(path):
        folders = listed_folders(TextStore(path))
    else:
        folders = [EPISODES]
        found = caches(EpisodeStore(path).path)
        folders += [LATENTS, *(f"{LATENTS}/{cache.digest}" for cache in found)] if found else []
    try:
        counts = [disk.write_index(path / folder) for folder in folders]
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}.") from error
    print(f"{path}: the index names {counts[0]} in {folders[0]}; write it anew after changes.")
    return 0


COMMANDS: dict[str, Callable[[DataConfig], int]] = {
    "info": info,
    "stats": stats,
    "preview": preview,
    "validate": validate,
    "repair": repair,
    "merge": merge,
    "split": split,
    "import": import_,
    "export": export,
    "text": text,
    "encode": encode,
    "index": index,
}


def _faults(store: EpisodeStore, names: list[str]) -> list[care.Fault]:
    quiet = not sys.stderr.isatty()
    checked = tqdm(names, unit="episode", desc="validate", disable=quiet)
    found = [*care.faults(store, checked), *care.stray_faults(store.path)]
    return [*found, *latent_faults(store)]


def _encoder(config: DataConfig) -> "FrameEncoder":
    """Return the encoder of a checkpoint, or of a file that `worldmodel train` wrote."""
    from worldmodel import checkpoint
    from worldmodel.encoders.files import load_encoder

    if (config.checkpoint is None) == (config.encoder is None):
        raise UserError("encode needs checkpoint=NAME or encoder=RUN/encoder.safetensors.")
    if config.checkpoint is not None:
        return checkpoint.load(config.checkpoint).encoder
    return load_encoder(Path(str(config.encoder)))


def _out(config: DataConfig, command: str) -> str:
    if not config.out:
        raise UserError(f"{command} needs the place to write to: out=PATH.")
    return config.out


def _written(out: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file that appears at `out` once it is whole."""
    temporary = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{out} cannot be written: {error}.") from error


@dataclass
class _Tally:
    """Sums over episodes."""

    keys: Counter[str]
    sentences: Counter[str]
    policies: Counter[str]
    bytes_on_disk: int = 0
    damaged: int = 0
    unlabelled: int = 0


def _tally(store: EpisodeStore, names: list[str]) -> _Tally:
    tally = _Tally(Counter(), Counter(), Counter())
    table = store.spec.actions
    for name in names:
        try:
            arrays, episode_info = store.arrays(name), store.info(name)
            tally.bytes_on_disk += store.size_on_disk(name)
            tally.sentences.update(said.kind for said in annotations_from(arrays))
        except Unreachable:
            raise
        except UserError:
            tally.damaged += 1
            continue
        tally.policies[str(episode_info.get("policy", "unknown"))] += 1
        if episode_info.get("labelled") is False:
            tally.unlabelled += 1
            continue
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
