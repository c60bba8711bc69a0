"""A tiny core to train, and a program that trains it as one of several processes.

Run as `__main__` with a global `SETTINGS`: `out` (a folder), and what is given to the parts of
training: `loop`, `core`, `watch`, `shape`, `divide`; `rank`, `ranks` and `port` for one of
several processes. Writes `result.safetensors` and `printed.txt`.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.text import train_tokenizer
from worldmodel.train.core import CoreTask, CoreTraining
from worldmodel.train.data import Recordings
from worldmodel.train.distributed import gathered, process_group, rank, ranks
from worldmodel.train.loop import LoopConfig, fit
from worldmodel.train.samples import Mixture, Sampler
from worldmodel.train.watch import Watch
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import Annotation, Episode, WorldSpec

SPEC = WorldSpec(
    "toy",
    ActionTable(
        (
            ActionRow("forward", "w", "go", dx=0.5, phrases=("go forward",)),
            ActionRow("left", "a", "turn", dyaw=11.25, phrases=("turn left",)),
        )
    ),
    height=16,
    width=16,
)
NOTES = (
    Annotation("caption", 2, 2, "a red pillar"),
    Annotation("caption", 4, 4, "a dark room"),
    Annotation("question", 3, 3, "what is ahead", "a wall"),
    Annotation("instruction", 1, 6, "go to the wall"),
)
PROSE = ["plain english is read too", "and more of it"]
SHAPE = {"width": 32, "depth": 2, "heads": 2, "kv_heads": 1, "hidden": 64, "experts": 6}

# Settings of `worldmodel train` for a run of seconds.
TINY = [
    "device=cpu",
    "threads=1",
    "vocab=300",
    "starts=2",
    "rae.size=16",
    "rae.patch=4",
    "rae.channels=4",
    "rae.width=16",
    "rae.heads=2",
    "rae.encoder_depth=1",
    "rae.decoder_depth=1",
    "encoder.batch=8",
    "encoder_loop.steps=3",
    "decoder_loop.steps=3",
    "model.width=32",
    "model.depth=1",
    "model.heads=2",
    "model.kv_heads=1",
    "model.hidden=32",
    "model.granularity=2",
    "model.experts=4",
    "core.rows=2",
    "core.length=130",
    "core.shortcut_from=3",
    "core.own_past_from=6",
    "core_loop.steps=14",
    "core_loop.warmup=3",
    "core_loop.save_every=1",
]


def forkserver() -> multiprocessing.context.ForkServerContext:
    """Where processes start that have torch and our code loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch.distributed.checkpoint",
            "torch.utils.tensorboard",
            "worldmodel.train.loop",
            "worldmodel.train.core",
        ]
    )
    return context


def episode(seed: int, split: str = "train", steps: int = 12) -> Episode:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (steps + 1, 4, 4, 3), dtype=np.uint8)
    keys = rng.integers(0, 4, steps).astype(np.uint16)
    moves = [SPEC.actions.from_mask(int(k)) for k in keys]
    return Episode(
        frames=blocks.repeat(4, axis=1).repeat(4, axis=2),
        actions=np.array([(m.dx, m.dy, m.dyaw) for m in moves], np.float32),
        keys=keys,
        facts={},
        annotations=NOTES,
        info={"seed": seed, "split": split},
    )


def write_store(path: Path) -> Path:
    """A store of three episodes to train on and one of the split 'val'."""
    writer = EpisodeWriter(path, SPEC)
    for seed in range(3):
        writer.write(episode(seed))
    writer.write(episode(9, "val"))
    return path


def recordings(episodes: int = 2) -> Recordings:
    made = [episode(seed) for seed in range(episodes)]
    return Recordings(
        SPEC,
        np.concatenate([e.frames for e in made]),
        np.concatenate([[*e.keys, 0] for e in made]).astype(np.uint16),
        np.concatenate([np.pad(e.actions, ((0, 1), (0, 0))) for e in made]),
        np.arange(episodes + 1, dtype=np.int64) * 13,
        tuple(e.annotations for e in made),
    )


def core_task(
    mixture: Mixture | None = None,
    ranks: int = 1,
    accumulate: int = 1,
    shape: dict[str, Any] | None = None,
    **changes: Any,
) -> CoreTask:
    torch.manual_seed(0)
    data = recordings()
    tokenizer = train_tokenizer(["action: w+a", "go to the wall", "a red pillar", *PROSE] * 5, 320)
    size = SHAPE | (shape or {})
    core = Core(
        CoreConfig(tokenizer.vocab_size, (4, 4), latent_channels=4, merge=2, window=3, **size)
    )
    latents = torch.randn(len(data.frames), 16, 4)
    settings = {"rows": 4, "length": 96} | changes
    sampler = Sampler(data, tokenizer, mixture or Mixture(), PROSE)
    return CoreTask(
        core, sampler, latents, CoreTraining(**settings), ranks=ranks, accumulate=accumulate
    )


def validation_of(task: CoreTask) -> CoreTask:
    """The same core on other latents."""
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(task.latents.shape, generator=generator)
    return CoreTask(task.module, task.sampler, latents, CoreTraining(rows=2, length=96))


def train(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    if settings.get("ranks", 1) > 1:
        os.environ |= {"RANK": str(settings["rank"]), "WORLD_SIZE": str(settings["ranks"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(settings["port"])}
        os.environ["TORCHELASTIC_ERROR_FILE"] = str(out / f"error-{settings['rank']}.json")
    with process_group(torch.device("cpu")):
        config = LoopConfig(**settings["loop"])
        task = core_task(
            None, ranks(), config.accumulate, settings.get("shape"), **settings.get("core", {})
        )
        task.dtype = torch.bfloat16 if settings.get("bfloat16") else torch.float32
        if settings.get("bad_latent") is not None:
            task.latents[settings["bad_latent"]] = float("nan")
        watch = Watch(**settings.get("watch", {}))
        held_out = validation_of(task) if watch.validate_every else None
        fit(task, config, out, watch, settings.get("divide", True), held_out)
        state = gathered(task.module.state_dict())
        if rank() == 0:
            save_file(state, out / "result.safetensors")


if __name__ == "__main__":
    told = globals()["SETTINGS"]
    folder = Path(told["out"])
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = open(folder / f"printed-{told.get('rank', 0)}.txt", "a")  # noqa: SIM115
    try:
        train(told)
    except UserError as error:
        print(f"worldmodel: {error}", flush=True)
        sys.stdout.flush()
        os._exit(2)
