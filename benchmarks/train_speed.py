"""Training tokens per second of the core, beside those of lucidrains/transfusion-pytorch.

python -m venv --system-site-packages peer && peer/bin/pip install transfusion-pytorch
peer/bin/python benchmarks/train_speed.py [--sizes 10M 100M] [--rounds 7] [--threads 2] [--cpu]

The peer is installed beside this project's packages, so that their environment stays as it is;
without it only the core is timed. Both train on the same documents: frames of 8 x 8 tokens of 32
channels, with words in between. A step is everything from the documents to the changed weights:
layout, noise, forward, loss, backward, gradient clipping and AdamW. Matrix products run in
bfloat16 by autocast, weights stay in float32, in both; the peer comes once more in float32, which
is how it runs when nothing is said.

Contestants, with equal numbers of parameters (the core's mixture of experts: of active ones):

    peer          8 heads of 64 channels as by default; every frame is noised in place
    dense         in place as well (`core.forcing=diffusion`): the strict comparison
    moe           the same with 12 routed experts
    dense, Muon   as the core is trained by default: Muon for the matrices
    dense, beside `core.forcing=teacher`: a noised target beside every clean frame

Useful tokens are those that the loss asks for: words that come next, and tokens of noised frames.
They are the same for all. Processed tokens are those that run through the blocks, markers and
padding included. Runs alternate; times are medians, ratios medians of the rounds' ratios. With
`--cpu` the time is that of the processor, not of the clock: take it with `--threads 1` on a machine
that has other things to do. `--device cuda --rows 64` also reports MFU and peak memory.
"""

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from interleave import PEAK, begin, ratio, times_s
from torch import nn

from worldmodel.devices import mixed_precision
from worldmodel.sequence import Document, Frame, Text
from worldmodel.train.core import CoreTask, CoreTraining
from worldmodel.train.optim import build_optimizers
from worldmodel.train.packing import count_tokens
from worldmodel.transformer import Core, CoreConfig

VOCAB, GRID, CHANNELS = 2048, (8, 8), 32
CELLS = GRID[0] * GRID[1]


@dataclass(frozen=True)
class Size:
    """Shapes of one size, a batch of `rows` documents of `frames` frames.

    `peer` are arguments of the peer's transformer, `ours` those of `CoreConfig`.
    """

    peer: dict[str, int]
    ours: dict[str, int]
    rows: int
    frames: int = 8
    words: int = 5


SIZES = {
    "10M": Size(
        peer={"dim": 192, "depth": 6},
        ours={"width": 320, "depth": 6, "heads": 4, "kv_heads": 4, "hidden": 1120},
        rows=4,
    ),
    "100M": Size(
        peer={"dim": 512, "depth": 10},
        ours={"width": 768, "depth": 10, "heads": 12, "kv_heads": 12, "hidden": 3136},
        rows=2,
    ),
}


@dataclass(frozen=True)
class Contestant:
    """A training step, how many tokens it runs through the blocks, and what it trains."""

    step: Callable[[], object]
    processed: int
    active: int
    total: int


@dataclass
class Clips:
    """Draws documents of random words between consecutive frames."""

    size: Size
    frames: int

    def draw(self, rng: np.random.Generator, step: int = 0) -> tuple[int, Document]:
        """Return a sample kind and a document."""
        del step
        first = int(rng.integers(self.frames - self.size.frames))
        document: list[Text | Frame] = []
        for number in range(self.size.frames):
            words = rng.integers(16, VOCAB, self.size.words).tolist()
            document += [Text(tuple(words), "action"), Frame(first + number)]
        return 0, document


def change_weights(module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def core(size: Size, latents: torch.Tensor, ffn: str) -> Core:
    """The core; the window holds a whole document, so that every frame sees all earlier ones."""
    shape = CoreConfig(
        vocab=VOCAB,
        latent_grid=GRID,
        latent_channels=CHANNELS,
        merge=1,
        window=size.frames,
        ffn=ffn,
        **size.ours,  # type: ignore[arg-type]
    )
    return Core(shape).to(latents.device)


def training(
    module: Core,
    size: Size,
    latents: torch.Tensor,
    optimizers: list[torch.optim.Optimizer],
    forcing: str = "diffusion",
) -> Contestant:
    """Steps of the core's training; a row holds one document."""
    clips = Clips(size, len(latents))
    document = clips.draw(np.random.default_rng(0), 0)[1]
    length = count_tokens(document, CELLS, forcing != "teacher")
    config = CoreTraining(
        rows=size.rows, length=length, forcing=forcing, shortcut=0.0, own_past=0.0
    )
    task = CoreTask(module, clips, latents.flatten(1, 2), config, torch.bfloat16)
    numbers = itertools.count()

    def step() -> None:
        number = next(numbers)
        task.losses(number)["loss"].backward()
        change_weights(module, optimizers)
        task.after_step(number)

    return Contestant(step, size.rows * length, *module.parameters_by_use())


def peers(size: Size, latents: torch.Tensor) -> dict[str, Contestant]:
    """Steps of the other project's model on the same documents.

    Raises:
        ImportError: it is not installed.
    """
    from transfusion_pytorch import Transfusion  # type: ignore[import-not-found]

    device = latents.device
    module: Any = Transfusion(
        num_text_tokens=VOCAB,
        dim_latent=CHANNELS,
        modality_default_shape=GRID,
        modality_num_dim=2,
        transformer=size.peer,
    ).to(device)
    processed: list[int] = []
    module.transformer.register_forward_pre_hook(
        lambda _, args: processed.append(args[0].shape[0] * args[0].shape[1])
    )
    fused = device.type in ("cpu", "cuda")
    adam = torch.optim.AdamW(
        module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.02, fused=fused
    )
    clips, rng = Clips(size, len(latents)), np.random.default_rng(0)

    def tensor(span: Text | Frame) -> torch.Tensor:
        if isinstance(span, Frame):
            return latents[span.latent]
        return torch.tensor(span.ids, device=device)

    def step(dtype: torch.dtype) -> None:
        documents = [clips.draw(rng, 0)[1] for _ in range(size.rows)]
        with mixed_precision(device, dtype):
            loss = module([[tensor(span) for span in document] for document in documents])
        loss.backward()
        change_weights(module, [adam])

    step(torch.float32)
    total = sum(p.numel() for p in module.parameters())
    return {
        name: Contestant(functools.partial(step, dtype), processed[-1], total, total)
        for name, dtype in (("peer", torch.bfloat16), ("peer, float32", torch.float32))
    }


def contestants(size: Size, latents: torch.Tensor) -> dict[str, Contestant]:
    torch.manual_seed(0)
    found: dict[str, Contestant] = {}
    try:
        found |= peers(size, latents)
    except ImportError as error:
        print(f"The peer is left out: {error}. How to install it stands in this file.")
    dense, moe = core(size, latents, "dense"), core(size, latents, "moe")
    adam = build_optimizers(dense, 1e-3, 0.02, muon=False)
    found["dense"] = training(dense, size, latents, adam)
    found["moe"] = training(moe, size, latents, build_optimizers(moe, 1e-3, 0.02, muon=False))
    muon = build_optimizers(dense, 1e-3, 0.02, muon=True)
    found["dense, Muon"] = training(dense, size, latents, muon)
    found["dense, beside"] = training(dense, size, latents, adam, "teacher")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="leave the other contestants out")
    parser.add_argument("--rows", type=int, help="documents a batch; a GPU wants more of them")
    options, device = begin(parser)
    latents = torch.randn(512, *GRID, CHANNELS, device=device)
    for name in options.sizes:
        size = SIZES[name]
        if options.rows:
            size = Size(size.peer, size.ours, options.rows)
        found = contestants(size, latents)
        found = {key: one for key, one in found.items() if key in (options.only or found)}
        runs = {key: one.step for key, one in found.items()}
        times = times_s(runs, options.rounds, device, options.cpu)
        words = size.words * size.frames
        useful = size.rows * (words + size.frames * CELLS)
        print(f"\n{name}: {size.rows} documents of {size.frames} frames and {words} words")
        print("| | parameters, active / all | ms/step | useful tokens/s | processed | x peer |")
        print("|---|" + "---:|" * 5)
        for key, one in found.items():
            spent = statistics.median(times[key])
            gain = f"{ratio(times['peer'], times[key]):.2f}" if "peer" in times else ""
            print(
                f"| {key} | {one.active / 1e6:.1f} / {one.total / 1e6:.1f} M | {spent * 1e3:.0f} "
                f"| {useful / spent:.0f} | {one.processed / spent:.0f} | {gain} |",
                flush=True,
            )
        if device.type == "cuda":
            for key, one in found.items():
                torch.cuda.reset_peak_memory_stats(device)
                one.step()
                share = 6 * one.active * one.processed / statistics.median(times[key]) / PEAK
                memory = torch.cuda.max_memory_allocated(device) / 1e9
                print(f"{key}: MFU {100 * share:.1f} %, {memory:.1f} GB at most")


if __name__ == "__main__":
    main()
