"""`worldmodel train`: the stages from a store to a checkpoint.

    tokenizer -> encoder -> decoder -> core -> export

Each stage leaves its result in the run's folder and is skipped when the result is there.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
from worldmodel.datasets.latents import LatentCache, encoder_hash
from worldmodel.datasets.text import TextStore
from worldmodel.devices import choose_device, choose_dtype, mixed_precision
from worldmodel.encoders.rae import RAE, save_rae
from worldmodel.errors import UserError, suggest
from worldmodel.text import TextTokenizer, train_tokenizer
from worldmodel.train.config import TrainConfig
from worldmodel.train.core import CoreTask
from worldmodel.train.data import Recordings, StoreFrames, join, load_recordings, load_stores
from worldmodel.train.encoder import DecoderTask, EncoderTask, build_rae, measure_latents
from worldmodel.train.loop import fit
from worldmodel.train.mixture import StoreMixture, store_shares
from worldmodel.train.samples import Sampler, python_prose
from worldmodel.transformer import Core, CoreConfig

Module = TypeVar("Module", bound=nn.Module)

PYTHON = "python"
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

    def pieces(self, tokenizer: TextTokenizer) -> Sequence[str | np.ndarray]:
        """Return the plain English, as token ids where the text store has them."""
        if self.config.text == PYTHON:
            return self.prose
        return TextStore(self.config.text).tokens(tokenizer, "train") or self.prose


def main(config: TrainConfig) -> int:
    """Run one stage, or all in order.

    Raises:
        UserError: an unknown stage, or one whose forerunner has not been run.
    """
    if config.stage not in (*STAGES, "all"):
        raise UserError(f"Unknown stage '{config.stage}'.{suggest(config.stage, (*STAGES, 'all'))}")
    device, reason = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    dtype = choose_dtype(config.dtype, device)
    print(f"device: {device} ({reason}), {str(dtype).removeprefix('torch.')}", flush=True)
    paths = config.stores or (config.store,)
    parts = load_stores(paths, "train", config.episodes, config.memory_gb)
    store_shares(config.weights, len(paths))
    recordings = join(parts)
    print(f"{recordings.num_episodes} episodes, {len(recordings.frames)} frames", flush=True)
    size, spec = config.rae.size, recordings.spec
    if (spec.height, spec.width) != (size, size):
        raise UserError(
            f"The frames of '{paths[0]}' are {spec.width}x{spec.height} pixels, but rae.size "
            f"is {size}. Set rae.size to the size of the frames, which must be square."
        )
    prose = load_prose(config.text)
    run = Run(config, Path(config.out), device, dtype, recordings, prose, parts)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={config.out} cannot be written: {error.strerror}.") from None
    stages = {
        "tokenizer": train_text,
        "encoder": train_encoder,
        "decoder": train_decoder,
        "core": train_core,
        "export": export,
    }
    for name in STAGES if config.stage == "all" else (config.stage,):
        print(f"stage: {name}", flush=True)
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
    if path.exists():
        return TextTokenizer.load(path)
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
    tokenizer = train_tokenizer([*lines, *(said * 20), *prose], run.config.vocab)
    path.write_text(tokenizer.to_json())
    return tokenizer


def train_encoder(run: Run) -> None:
    """Train the representation; see `worldmodel.train.encoder`."""
    rae = build_rae(run.config.rae, run.config.encoder.seed).to(run.device)
    task = EncoderTask(rae, run.recordings, train_text(run), run.config.encoder, run.dtype)
    fit(task, run.config.encoder_loop, run.folder / "encoder")
    measure_latents(rae.eval(), run.recordings.frames)
    save_rae(rae, run.folder / "encoder.safetensors")


def train_decoder(run: Run) -> None:
    """Train the decoder on noised latents of the frozen encoder."""
    rae = _load(_new_rae(run), run.folder / "encoder.safetensors", "encoder")
    fit(
        DecoderTask(rae, run.recordings, run.config.encoder, run.dtype),
        run.config.decoder_loop,
        run.folder / "decoder",
    )
    save_rae(rae, run.folder / "decoder.safetensors")


def train_core(run: Run) -> None:
    """Train the transformer on cached latents."""
    rae = _load(_new_rae(run), run.folder / "encoder.safetensors", "encoder")
    tokenizer = train_text(run)
    core = new_core(run.config, tokenizer).to(run.device)
    active, total = core.parameters_by_use()
    print(f"core: {active / 1e6:.1f} M active, {total / 1e6:.1f} M total parameters", flush=True)
    pieces = run.pieces(tokenizer)
    samplers = [Sampler(part, tokenizer, run.config.mixture, pieces) for part in run.parts]
    # One store draws as it always did, so that runs of before go on as they were.
    sampler = samplers[0] if len(samplers) == 1 else StoreMixture(samplers, run.config.weights)
    latents = cache_latents(rae, run.recordings, run.folder, run.dtype)
    fit(
        CoreTask(core, sampler, latents, run.config.core, run.dtype),
        run.config.core_loop,
        run.folder / "core",
    )
    _save(core, run.folder / "core.safetensors")


def export(run: Run) -> None:
    """Write the checkpoint folder from the finished stages."""
    tokenizer = train_text(run)
    decoder = run.folder / "decoder.safetensors"
    rae = _load(_new_rae(run), decoder, "decoder")
    core = new_core(run.config, tokenizer)
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
        encoder=rae,
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
            "training": training,
        },
    )
    checkpoints.save(checkpoint, run.folder / "checkpoint")
    print(f"checkpoint: {run.folder / 'checkpoint'}", flush=True)


def new_core(config: TrainConfig, tokenizer: TextTokenizer) -> Core:
    """Return an untrained core with reproducible weights."""
    shape = {k: v for k, v in asdict(config.model).items() if k != "name"}
    grid = config.rae.size // config.rae.patch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.core.seed)
        return Core(
            CoreConfig(
                vocab=tokenizer.vocab_size,
                latent_grid=(grid, grid),
                latent_channels=config.rae.channels,
                **shape,
            )
        )


def cache_latents(
    rae: RAE, recordings: Recordings, folder: Path, dtype: torch.dtype, batch: int = 64
) -> torch.Tensor:
    """Return the latents float16 [F, N, C] of all frames, on the encoder's device.

    They are kept in `folder` under a name made of the encoder's weights and the frames, so that
    a resumed run does not encode again. They come from the stores where `worldmodel data encode`
    left this very encoder's; else they are computed. Where the frames stay on disk, so do they.
    """
    frames = recordings.frames
    device, cells = rae.mean.device, rae.grid[0] * rae.grid[1]
    digest = hashlib.sha256(
        b"".join(p.detach().cpu().numpy().tobytes() for p in rae.encoder.parameters())
    )
    digest.update(frames[:: max(1, len(frames) // 64)].tobytes())
    path = folder / f"latents-{len(frames)}-{digest.hexdigest()[:12]}.npy"
    if not path.exists():
        shape = (len(frames), cells, rae.channels)
        temporary = path.with_suffix(".tmp")
        stored = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        if not _copy_latents(rae, recordings, stored):
            with mixed_precision(device, dtype):
                for first in range(0, len(frames), batch):
                    part = torch.from_numpy(frames[first : first + batch])
                    stored[first : first + batch] = rae.encode(part).half().cpu().numpy()
        stored.flush()
        temporary.replace(path)
    if isinstance(frames, StoreFrames):
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    return torch.from_numpy(np.load(path)).to(device)


def _copy_latents(rae: RAE, recordings: Recordings, out: np.ndarray) -> bool:
    """Fill `out` with latents that the stores keep; False where they have not all of them."""
    digest = encoder_hash(rae)
    found = [(LatentCache(store.path, digest), name) for store, name in recordings.sources]
    if not found or not all(cache.has(name) for cache, name in found):
        return False
    for (cache, name), (begin, end) in zip(found, pairwise(recordings.starts), strict=True):
        latents = cache.read(name)
        if latents.shape != out[begin:end].shape:
            return False
        out[begin:end] = latents
    print(f"latents: {digest}, from the store", flush=True)
    return True


def pick_starts(
    recordings: Recordings, count: int, context: int = 4
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


def _new_rae(run: Run) -> RAE:
    return build_rae(run.config.rae, run.config.encoder.seed).to(run.device).eval()


def _save(module: nn.Module, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({k: v.cpu().contiguous() for k, v in module.state_dict().items()}, temporary)
    temporary.replace(path)


def _load(module: Module, path: Path, stage: str) -> Module:
    if not path.exists():
        raise UserError(
            f"'{path}' is missing: run stage={stage} first, or stage=all, with the same out=."
        )
    try:
        module.load_state_dict(load_file(path))
    except Exception as error:
        raise UserError(
            f"'{path}' does not fit this configuration: {str(error).splitlines()[0]}. Give the "
            "settings that it was trained with, or another out=."
        ) from None
    return module
