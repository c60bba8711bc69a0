"""`worldmodel train`: the stages from a store to a checkpoint.

    tokenizer -> encoder -> decoder -> core -> export

Each stage leaves its result in the run's folder and is skipped when the result is there. With
`init` the first three take theirs from a checkpoint, and the core begins with its weights.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from worldmodel import checkpoint as checkpoints
from worldmodel.actions import FORMS
from worldmodel.checkpoint import Checkpoint
from worldmodel.datasets.latents import LatentCache, encoder_hash, frames_at_once
from worldmodel.datasets.text import TextStore
from worldmodel.devices import choose_device, choose_dtype, mixed_precision
from worldmodel.encoders import FrameEncoder
from worldmodel.encoders.files import load_encoder, save_encoder
from worldmodel.encoders.rae import RAE
from worldmodel.encoders.representation import Decoder, Representation
from worldmodel.errors import UserError, suggest
from worldmodel.text import TextTokenizer, train_tokenizer
from worldmodel.train.config import TrainConfig
from worldmodel.train.core import CoreTask
from worldmodel.train.data import Recordings, StoreFrames, join, load_recordings, load_stores
from worldmodel.train.distributed import first_does, gathered, process_group, rank, ranks, say
from worldmodel.train.encoder import DecoderTask, EncoderTask, build_rae, measure_latents
from worldmodel.train.loop import fit
from worldmodel.train.mixture import Draws, StoreMixture, store_shares
from worldmodel.train.origin import take_over, take_weights
from worldmodel.train.pictures import painter
from worldmodel.train.representation import (
    describe,
    make_frozen,
    require_kind,
    require_merge,
    require_same,
)
from worldmodel.train.samples import Sampler, python_prose
from worldmodel.transformer import Core, CoreConfig

Module = TypeVar("Module", bound=nn.Module)

PYTHON = "python"
CONTEXT = 4  # frames that a rollout starts from
TOKENIZER_PIECES = 50_000  # pieces of plain English that the tokenizer learns from, at most
STAGES = ("tokenizer", "encoder", "decoder", "core", "export")


@dataclass
class Run:
    """What the stages share; `parts` are the recordings of each store, `recordings` all of them."""

    config: TrainConfig
    folder: Path
    device: torch.device
    dtype: torch.dtype
    recordings: Recordings
    prose: list[str]
    parts: list[Recordings] = field(default_factory=list)

    def __post_init__(self) -> None:
        """One store is its own only part."""
        self.parts = self.parts or [self.recordings]

    def pieces(self, tokenizer: TextTokenizer, split: str = "train") -> Sequence[str | np.ndarray]:
        """Return the plain English, as token ids where the text store has them.

        CPython's own help has no split: it is the same for all.
        """
        if self.config.text == PYTHON:
            return self.prose
        store = TextStore(self.config.text)
        return store.tokens(tokenizer, split) or (
            self.prose if split == "train" else store.pieces(split)
        )


def main(config: TrainConfig) -> int:
    """Run one stage, or all in order.

    Raises:
        UserError: an unknown stage, or one whose forerunner has not been run.
    """
    if config.stage not in (*STAGES, "all"):
        raise UserError(f"Unknown stage '{config.stage}'.{suggest(config.stage, (*STAGES, 'all'))}")
    require_core(config)
    device, reason = choose_device(config.device)
    with process_group(device) as device:
        return _main(config, device, reason)


def _main(config: TrainConfig, device: torch.device, reason: str) -> int:
    if config.threads:
        torch.set_num_threads(config.threads)
    dtype = choose_dtype(config.dtype, device)
    many = f", {ranks()} processes" if ranks() > 1 else ""
    say(f"device: {device} ({reason}), {str(dtype).removeprefix('torch.')}{many}")
    paths = config.stores or (config.store,)
    parts = load_stores(paths, "train", config.episodes, config.memory_gb)
    store_shares(config.weights, len(paths))
    recordings = join(parts)
    say(f"{recordings.num_episodes} episodes, {len(recordings.frames)} frames")
    size = (recordings.spec.height, recordings.spec.width)
    require_kind(config.representation, config.rae, size)
    prose = load_prose(config.text)
    run = Run(config, Path(config.out), device, dtype, recordings, prose, parts)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={config.out} cannot be written: {error.strerror}.") from None
    if config.init:
        first_does(lambda: take_over(config.init, run.folder, size))
    stages = {
        "tokenizer": train_text,
        "encoder": train_encoder,
        "decoder": train_decoder,
        "core": train_core,
        "export": export,
    }
    for name in STAGES if config.stage == "all" else (config.stage,):
        say(f"stage: {name}")
        stages[name](run)
    return 0


def load_prose(text: str) -> list[str]:
    """Return the plain English to train on, in pieces: that of CPython, or of a text store.

    Raises:
        UserError: no text store there, or one without documents to train on.
    """
    if text == PYTHON:
        return python_prose()
    if pieces := TextStore(text).pieces("train"):
        return pieces
    raise UserError(
        f"The text store '{text}' has no documents of the split 'train'; add more, or make it "
        "with val=0."
    )


def train_text(run: Run) -> TextTokenizer:
    """Learn the tokenizer from the store's sentences, the action table and plain English."""
    path = run.folder / "tokenizer.json"
    first_does(lambda: path.exists() or _learn_text(run, path))
    return TextTokenizer.load(path)


def _learn_text(run: Run, path: Path) -> None:
    notes = [note for notes in run.recordings.annotations for note in notes]
    lines = [f"{note.kind}: {note.text}" for note in notes]
    lines += [f"answer: {note.answer}" for note in notes if note.answer]
    said = []
    for part in run.parts:
        table = part.spec.actions
        masks = sorted({int(k) for k in np.unique(part.keys)})
        acts = [table.from_mask(mask) for mask in masks]
        said += [table.text(act, f, p) for act in acts for f in FORMS for p in range(4)]
    prose = run.prose[:: len(run.prose) // TOKENIZER_PIECES + 1]
    train_tokenizer([*lines, *(said * 20), *prose], run.config.vocab).save(path)


def train_encoder(run: Run) -> None:
    """Train the embedded representation, or measure the latents of one that is frozen."""
    path = run.folder / "encoder.safetensors"
    if run.config.init:
        return
    if run.config.representation.kind != "rae":
        first_does(lambda: path.exists() or _freeze(run, path))
        require_same(path, run.config.representation, run.config.rae, _size(run))
        return
    rae = build_rae(run.config.rae, run.config.encoder.seed).to(run.device)
    require_merge(rae.grid, run.config.model.merge)
    task = EncoderTask(rae, run.recordings, train_text(run), run.config.encoder, run.dtype)
    fit(task, run.config.encoder_loop, run.folder / "encoder", run.config.watch)
    measure_latents(rae.eval(), run.recordings.frames)
    first_does(lambda: save_encoder(rae, path))


def _freeze(run: Run, path: Path) -> None:
    config = run.config
    encoder = make_frozen(config.representation, config.rae, config.encoder.seed, _size(run))
    require_merge(encoder.grid, config.model.merge)
    encoder.to(run.device).eval()
    with mixed_precision(run.device, run.dtype):
        measure_latents(encoder, run.recordings.frames)
    save_encoder(encoder, path)


def train_decoder(run: Run) -> None:
    """Train the decoder on noised latents of the frozen encoder, if it is not there already."""
    if run.config.init:
        return
    encoder = _encoder(run, "encoder")
    if isinstance(encoder, Representation) and isinstance(encoder.decoder, Decoder):
        # Encoding anew at each step is cheap for the small RAE only, and the core needs the
        # others' latents anyway.
        latents = None if isinstance(encoder, RAE) else _latents(run, encoder, run.recordings)
        task = DecoderTask(encoder, run.recordings, run.config.encoder, run.dtype, latents)
        fit(task, run.config.decoder_loop, run.folder / "decoder", run.config.watch)
    first_does(lambda: save_encoder(encoder, run.folder / "decoder.safetensors"))


def train_core(run: Run) -> None:
    """Train the transformer on cached latents."""
    encoder = _encoder(run, "encoder")
    require_merge(encoder.grid, run.config.model.merge)
    say(describe(encoder, run.config.model.merge, run.config.model.width))
    tokenizer = train_text(run)
    core = first_core(run.config, tokenizer, encoder).to(run.device)
    active, total = core.parameters_by_use()
    say(f"core: {active / 1e6:.1f} M active, {total / 1e6:.1f} M total parameters")
    config, loop, watch = run.config.core, run.config.core_loop, run.config.watch
    sampler = _sampler(run, run.parts, tokenizer, run.pieces(tokenizer))
    latents = _latents(run, encoder, run.recordings)
    task = CoreTask(core, sampler, latents, config, run.dtype, ranks(), loop.accumulate)
    validation = paint = None
    if watch.validate_every or watch.images_every:
        paths = run.config.stores or (run.config.store,)
        parts = load_stores(paths, "val", 0, run.config.memory_gb)
        held_out = join(parts)
        if watch.validate_every:
            sampler = _sampler(run, parts, tokenizer, run.pieces(tokenizer, "val"))
            latents = _latents(run, encoder, held_out)
            plain = replace(config, shortcut=0.0, own_past=0.0, centre=False, workers=0)
            validation = CoreTask(core, sampler, latents, plain, run.dtype)
        if watch.images_every:
            seen = _encoder(run, "decoder")
            level = run.config.context_level
            paint = painter(
                core.config, seen, tokenizer, held_out, watch.images, level, run.device, run.dtype
            )
    fit(task, loop, run.folder / "core", watch, run.config.divide, validation, paint)
    task.close()
    _save(core, run.folder / "core.safetensors")


def _sampler(
    run: Run,
    parts: Sequence[Recordings],
    tokenizer: TextTokenizer,
    pieces: Sequence[str | np.ndarray],
) -> Draws:
    samplers = [Sampler(part, tokenizer, run.config.mixture, pieces) for part in parts]
    # One store draws as it always did, so that runs of before go on as they were.
    return samplers[0] if len(samplers) == 1 else StoreMixture(samplers, run.config.weights)


def export(run: Run) -> None:
    """Write the checkpoint folder from the finished stages."""
    tokenizer = train_text(run)
    first_does(lambda: _export(run, tokenizer))


def _export(run: Run, tokenizer: TextTokenizer) -> None:
    encoder = _encoder(run, "decoder")
    core = new_core(run.config, tokenizer, encoder)
    _load(core, run.folder / "core.safetensors", "core")
    held_out = load_recordings(str((run.config.stores or (run.config.store,))[0]), "val")
    frames, keys = pick_starts(held_out, run.config.starts)
    active, total = core.parameters_by_use()
    training = {
        name: asdict(getattr(run.config, name))
        for name in ("encoder_loop", "decoder_loop", "mixture", "core", "core_loop")
    }
    checkpoint = Checkpoint(
        name=run.config.checkpoint,
        core=core,
        encoder=encoder,
        tokenizer=tokenizer,
        spec=run.recordings.spec,
        start_frames=frames,
        start_keys=keys,
        context_level=run.config.context_level,
        details={
            "licence": "Apache-2.0",
            "parameters": {"active": active, "total": total},
            "data": {
                "world": " and ".join(dict.fromkeys(part.spec.name for part in run.parts)),
                "episodes": run.recordings.num_episodes,
                "frames": len(run.recordings.frames),
            },
            "training": training
            | ({"init": Path(run.config.init).name} if run.config.init else {}),
        },
    )
    checkpoints.save(checkpoint, run.folder / "checkpoint")
    print(f"checkpoint: {run.folder / 'checkpoint'}", flush=True)


def new_core(config: TrainConfig, tokenizer: TextTokenizer, encoder: FrameEncoder) -> Core:
    """Return an untrained core with reproducible weights."""
    shape = _shape(config, tokenizer.vocab_size, encoder.grid, encoder.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.core.seed)
        return Core(shape)


def first_core(config: TrainConfig, tokenizer: TextTokenizer, encoder: FrameEncoder) -> Core:
    """Return the core that training begins with: untrained, or that of the checkpoint `init`."""
    core = new_core(config, tokenizer, encoder)
    return take_weights(core, config.init) if config.init else core


def require_core(config: TrainConfig) -> None:
    """Refuse a core that cannot be, before anything is trained for it.

    Raises:
        UserError: names the values that do not go together.
    """
    side = config.model.merge  # the encoder's grid is known later; `require_merge` looks at it
    _shape(config, config.vocab, (side, side), 1)
    if config.model.window < CONTEXT - 1:
        raise UserError(
            f"model.window={config.model.window} is shorter than the context of {CONTEXT} frames "
            f"that rollouts start from; set it to {CONTEXT - 1} or more."
        )


def _shape(config: TrainConfig, vocab: int, grid: tuple[int, int], channels: int) -> CoreConfig:
    shape = {k: v for k, v in asdict(config.model).items() if k != "name"}
    return CoreConfig(vocab=vocab, latent_grid=grid, latent_channels=channels, **shape)


def cache_latents(
    encoder: FrameEncoder,
    recordings: Recordings,
    folder: Path,
    dtype: torch.dtype,
    memory_gb: float = 0.0,
) -> torch.Tensor:
    """Return the latents float16 [F, N, C] of all frames, on the encoder's device.

    They are kept in `folder` under a name made of the encoder's hash and the frames, so that
    a resumed run does not encode again. They come from the stores where `worldmodel data encode`
    left this very encoder's; else they are computed. Where the frames stay on disk, so do they,
    and also where they take more than `memory_gb` (10^9 bytes; 0 for no limit).
    """
    frames = recordings.frames
    device, cells = encoder.mean.device, encoder.grid[0] * encoder.grid[1]
    digest = hashlib.sha256(encoder_hash(encoder).encode())
    digest.update(frames[:: max(1, len(frames) // 64)].tobytes())
    path = folder / f"latents-{len(frames)}-{digest.hexdigest()[:12]}.npy"

    def write() -> None:
        shape = (len(frames), cells, encoder.channels)
        temporary = path.with_suffix(".tmp")
        stored = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        if not _copy_latents(encoder, recordings, stored):
            batch = frames_at_once(encoder)
            with mixed_precision(device, dtype):
                for first in range(0, len(frames), batch):
                    part = torch.from_numpy(frames[first : first + batch])
                    found = encoder.encode(part).half().cpu().numpy()
                    _require_finite(found, f"frames {first} to {first + len(found) - 1}")
                    stored[first : first + batch] = found
        stored.flush()
        temporary.replace(path)

    first_does(lambda: path.exists() or write())
    large = memory_gb and path.stat().st_size > memory_gb * 1e9
    if large or isinstance(frames, StoreFrames):
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    return torch.from_numpy(np.load(path)).to(device)


def _copy_latents(encoder: FrameEncoder, recordings: Recordings, out: np.ndarray) -> bool:
    """Fill `out` with latents that the stores keep; False where they have not all of them."""
    digest = encoder_hash(encoder)
    found = [(LatentCache(store.path, digest), name) for store, name in recordings.sources]
    if not found or not all(cache.has(name) for cache, name in found):
        return False
    for (cache, name), (begin, end) in zip(found, pairwise(recordings.starts), strict=True):
        latents = cache.read(name)
        if latents.shape != out[begin:end].shape:
            return False
        _require_finite(latents, f"episode '{name}', in '{cache.folder}'")
        out[begin:end] = latents
    print(f"latents: {digest}, from the store", flush=True)
    return True


def _require_finite(latents: np.ndarray, what: str) -> None:
    if not np.isfinite(latents).all():
        raise UserError(
            f"The latents of {what} are not finite numbers, and nothing can be learned from them. "
            "Delete those of the store and encode again, or train another encoder."
        )


def pick_starts(
    recordings: Recordings, count: int, context: int = CONTEXT
) -> tuple[np.ndarray, np.ndarray]:
    """Return start contexts from different episodes: frames [S, n, H, W, 3], keys [S, n - 1].

    Of several moments of each episode, the one with the most visible detail is taken.
    """
    frames, keys = [], []
    for i in range(count):
        e = i * recordings.num_episodes // count if count <= recordings.num_episodes else i
        begin, end = recordings.starts[e % recordings.num_episodes :][:2]
        moments = np.linspace(begin, end - context, 12).astype(int)
        moments = moments[i // recordings.num_episodes % 2 :: 2]
        detail = [
            np.abs(np.diff(recordings.frames[m + context - 1].astype(np.int16), axis=1)).mean()
            for m in moments
        ]
        at = int(moments[int(np.argmax(detail))])
        frames.append(recordings.frames[at : at + context])
        keys.append(recordings.keys[at : at + context - 1])
    return np.stack(frames), np.stack(keys).astype(np.int32)


def _encoder(run: Run, stage: str) -> FrameEncoder:
    """Return the encoder that a stage left, on the run's device."""
    path, config = run.folder / f"{stage}.safetensors", run.config
    if config.representation.kind == "rae":
        rae = build_rae(config.rae, config.encoder.seed).to(run.device).eval()
        return _load(rae, path, stage)
    _require(path, stage)
    require_same(path, config.representation, config.rae, _size(run))
    return load_encoder(path).to(run.device)


def _size(run: Run) -> tuple[int, int]:
    return run.recordings.spec.height, run.recordings.spec.width


def _latents(run: Run, encoder: FrameEncoder, recordings: Recordings) -> torch.Tensor:
    limit = run.config.memory_gb
    return cache_latents(encoder, recordings, run.folder, run.dtype, memory_gb=limit)


def _save(module: nn.Module, path: Path) -> None:
    state, temporary = gathered(module.state_dict()), path.with_suffix(".tmp")
    if rank() == 0:
        save_file(state, temporary)
        temporary.replace(path)


def _require(path: Path, stage: str) -> None:
    if not path.exists():
        raise UserError(
            f"'{path}' is missing: run stage={stage} first, or stage=all, with the same out=."
        )


def _load(module: Module, path: Path, stage: str) -> Module:
    _require(path, stage)
    try:
        module.load_state_dict(load_file(path))
    except Exception as error:
        raise UserError(
            f"'{path}' does not fit this configuration: {str(error).splitlines()[0]}. Give the "
            "settings that it was trained with, or another out=."
        ) from None
    return module
