"""Train every variant of the core alike for a few hundred steps, and compare them.

    python benchmarks/variants.py --store data/doom.zarr --steps 300

All see the latents of one checkpoint's encoder, the same documents in the same order and the same
validation batches: nearly clean pasts, plain flow, velocity loss floored at 0.5, so that the losses
of all rows are the same quantity. One seed each: differences of a few per cent mean nothing.
Prints a table in Markdown; each line is there as soon as its variant is done.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldmodel import checkpoint as checkpoints
from worldmodel.devices import choose_device, choose_dtype
from worldmodel.text import TextTokenizer
from worldmodel.train.core import CoreTask, CoreTraining
from worldmodel.train.data import Recordings, load_recordings
from worldmodel.train.loop import LoopConfig, fit
from worldmodel.train.samples import Mixture, Sampler, python_prose
from worldmodel.transformer import Core, CoreConfig

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as shipped": ({}, {}),
    "ffn=modality": ({"ffn": "modality"}, {}),
    "ffn=dense": ({"ffn": "dense"}, {}),
    "shared=global": ({"shared": "global"}, {}),
    "shared=none": ({"shared": "none"}, {}),
    "granularity=8 experts=24": ({"granularity": 8, "experts": 24}, {}),
    "balance_loss=0.01 balance=0": ({}, {"balance": 0.0, "balance_loss": 0.01}),
    "unet=0": ({"unet": 0, "motion": -1}, {}),
    "unet=0 motion=2": ({"unet": 0, "motion": 2}, {}),
    "prediction=v": ({"prediction": "v", "motion": -1}, {}),
    "positions=2d": ({"positions": "2d"}, {}),
    "positions=1d": ({"positions": "1d"}, {}),
    "qk_norm=false": ({"qk_norm": False}, {}),
    "forcing=diffusion": ({}, {"forcing": "diffusion"}),
    "forcing=sequence": ({}, {"forcing": "sequence"}),
    "weighting=clean": ({}, {"weighting": "clean"}),
    "weighting=ramp": ({}, {"weighting": "ramp"}),
}


def main() -> None:
    """Run the variants that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", default="data/doom.zarr")
    parser.add_argument("--checkpoint", default="doom-nano", help="its encoder and tokenizer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()

    device, _ = choose_device(asked.device)
    dtype = choose_dtype("auto", device)
    found = checkpoints.load(asked.checkpoint)
    sides = {}
    for split in ("train", "val"):
        recordings = load_recordings(asked.store, split)
        sides[split] = recordings, latents_of(found, recordings, device)
    print(f"{len(sides['train'][1])} frames, {asked.steps} steps, {device}, {dtype}", flush=True)
    print("| variant | active | flow loss | text loss | seconds a step |", flush=True)
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in asked.only:
        shape, training = VARIANTS[name]
        line = measure(found.core.config, found.tokenizer, sides, shape, training, asked, dtype)
        print(f"| `{name}` | {line} |", flush=True)


def measure(
    base: CoreConfig,
    tokenizer: TextTokenizer,
    sides: Mapping[str, tuple[Recordings, torch.Tensor]],
    shape: dict[str, Any],
    training: dict[str, Any],
    asked: argparse.Namespace,
    dtype: torch.dtype,
) -> str:
    """Train one variant and return its cells of the table."""
    torch.manual_seed(0)
    core = Core(replace(base, **shape)).to(sides["train"][1].device)
    prose = python_prose()

    def task(split: str, knobs: CoreTraining) -> CoreTask:
        recordings, latents = sides[split]
        sampler = Sampler(recordings, tokenizer, Mixture(), prose)
        return CoreTask(core, sampler, latents, knobs, dtype)

    knobs = CoreTraining(rows=asked.rows, own_past=0.0, shortcut=0.0, seed=0)
    loop = LoopConfig(asked.steps, lr=2e-3, warmup=50, ema=0.98, save_every=10**9)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fit(task("train", replace(knobs, **training)), loop, Path(folder))
    seconds = (time.monotonic() - began) / asked.steps
    judge = task("val", replace(knobs, rows=8, seed=1))
    with torch.no_grad():
        losses = [judge.losses(step) for step in range(8)]
    flow, text = (sum(part[key].item() for part in losses) / 8 for key in ("flow", "text"))
    active = core.parameters_by_use()[0] / 1e6
    return f"{active:.2f} M | {flow:.4f} | {text:.3f} | {seconds:.2f}"


@torch.no_grad()
def latents_of(
    found: checkpoints.Checkpoint, recordings: Recordings, device: torch.device
) -> torch.Tensor:
    """Return the latents float16 [F, n, c] of all frames."""
    encoder = found.encoder.to(device)
    parts = [
        encoder.encode(torch.from_numpy(recordings.frames[first : first + 256])).half()
        for first in range(0, len(recordings.frames), 256)
    ]
    return torch.cat(parts)


if __name__ == "__main__":
    main()
