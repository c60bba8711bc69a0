"""Imagined frames per second on the cache, beside computing the whole sequence for every frame.

python benchmarks/rollout_speed.py [--sizes nano 100M] [--rounds 9] [--cpu]

Weights are untrained: speed does not depend on what they say. A frame of 8 x 8 latents of 32
channels, merged to 16 tokens, with 5 words before it, is denoised in 2 steps after 4, 8 or 16
frames of context, all of them seen. On the cache (`Engine.follow`) that is one pass over the last
frame, the words and the new one, and one over the new one alone; without, two forwards over
everything, for which layout and mask are made beforehand. Both must imagine the same frame, in
float32, or this ends with an error.

Runs alternate; times are medians, ratios medians of the rounds' ratios. `--cpu`: time of the
processor, not of the clock (with `--threads 1`, on a machine that has other things to do).
With `--device cuda` the peak memory is reported.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Iterable

import numpy as np
import torch
from interleave import begin, ratio, times_s

from worldmodel.actions import ActionTable
from worldmodel.checkpoint import Checkpoint
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.flow import sample
from worldmodel.sequence import Document, Frame, Text, pack, visibility
from worldmodel.stream import Engine, Stream
from worldmodel.text import train_tokenizer
from worldmodel.train.core import run
from worldmodel.train.packing import count_tokens
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import WorldSpec

VOCAB, WORDS, STEPS, CONTEXTS, BATCHES = 2048, 5, 2, (4, 8, 16), (1, 4)
SIZES = {
    "nano": {"width": 192, "depth": 6, "heads": 4, "kv_heads": 4, "hidden": 768},
    "100M": {"width": 512, "depth": 8, "heads": 8, "kv_heads": 4, "hidden": 2048},
}


def checkpoint(size: str) -> Checkpoint:
    """An untrained model that sees as many frames as the longest context has."""
    torch.manual_seed(0)
    shape = CoreConfig(vocab=VOCAB, window=max(CONTEXTS), **SIZES[size])  # type: ignore[arg-type]
    core = Core(shape).eval()
    assert core.paint is not None
    for head in (core.say, core.paint):  # they start at zero
        torch.nn.init.normal_(head.weight, std=0.02)
    return Checkpoint(
        name=size,
        core=core,
        encoder=RAE(RAEConfig(size=64, patch=8, channels=32)).eval(),
        tokenizer=train_tokenizer(["nothing"], 300),
        spec=WorldSpec("untrained", ActionTable(())),
        start_frames=np.zeros((1, 1, 64, 64, 3), np.uint8),
        start_keys=np.zeros((1, 0), np.int32),
        context_level=0.9,
        details={},
    )


class Scene:
    """Some frames of context in a batch of rollouts, and noise for the next one."""

    def __init__(self, engine: Engine, context: int, batch: int) -> None:
        self.engine = engine
        shape = engine.core.config
        generator = torch.Generator().manual_seed(context)

        def random() -> torch.Tensor:
            size = (batch, shape.frame_tokens, shape.channels)
            return torch.randn(size, generator=generator).to(engine.device)

        self.texts = [list(range(100 + i, 100 + i + WORDS)) for i in range(batch)]
        self.streams = [Stream()] * batch
        self.shown: list[torch.Tensor] = []  # [B, N, C] of every frame of the context
        for _ in range(context):
            noise = torch.stack([random(), random()])
            self.streams = engine.follow(self.streams, self.texts, noise, given=random())
            self.shown.append(_stack(s.shown for s in self.streams))
        self.noise = torch.stack([random(), random()])
        documents: list[Document] = [
            [
                span
                for number in range(context + 1)
                for span in (Text(tuple(text), "action"), Frame(number, number == context))
            ]
            for text in self.texts
        ]
        length = count_tokens(documents[0], shape.frame_tokens, in_place=True)
        kinds = [0] * batch
        self.batch = pack(documents, kinds, shape.grid, shape.window, length, in_place=True).to(
            engine.device
        )
        self.mask = visibility(self.batch)

    def cached(self) -> torch.Tensor:
        """The next frames [B, N, C], on the cache."""
        streams = self.engine.follow(self.streams, self.texts, self.noise, denoise_steps=STEPS)
        return _stack(s.latent for s in streams)

    @torch.inference_mode()
    def recomputed(self) -> torch.Tensor:
        """The next frames [B, N, C], from the whole sequence."""
        engine, core, batch = self.engine, self.engine.core, self.batch
        aims = batch.is_target
        shown = torch.stack([*self.shown, self.noise[0]], dim=1).flatten(0, 1).to(engine.dtype)
        level = torch.where(aims, 0.0, engine.checkpoint.context_level)
        stride = torch.full_like(batch.source, core.config.strides - 1)
        places = batch.visual.view(len(aims), -1)[aims]

        def predict(z: torch.Tensor, t: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
            shown[aims], level[aims], stride[aims] = z.to(shown.dtype), t, d
            hidden, seen = run(core, batch, self.mask, shown, level, stride)
            hidden = hidden.flatten(0, 1)[places]
            return core.draw(hidden, seen[aims], z.to(shown.dtype), t).float()

        drawn = sample(predict, self.noise[0], STEPS, core.config.strides)
        return core.merge(engine.encoder.project(core.split(drawn)))


def _stack(parts: Iterable[torch.Tensor | None]) -> torch.Tensor:
    return torch.stack([part for part in parts if part is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    options, device = begin(parser)
    for size in options.sizes:
        made = checkpoint(size)
        active, total = (count / 1e6 for count in made.core.parameters_by_use())
        print(f"\n{size}: {active:.1f} M active of {total:.1f} M parameters; frames/s")
        engines = {
            name: Engine(copy.deepcopy(made), device, dtype)
            for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        }
        names = list(engines)
        head = [f"{name}: {how}" for name in names for how in ("cache", "whole", "ratio")]
        print("| context | batch | " + " | ".join(head) + " |")
        print("|---:|---:|" + "---:|" * len(head))
        for context in CONTEXTS:
            for batch in BATCHES:
                runs: dict[str, Callable[[], torch.Tensor]] = {}
                for name, engine in engines.items():
                    scene = Scene(engine, context, batch)
                    runs[f"{name}: cache"], runs[f"{name}: whole"] = scene.cached, scene.recomputed
                error = (runs["fp32: cache"]() - runs["fp32: whole"]()).abs().max().item()
                assert error < 1e-3, f"the cache imagines another frame, by {error}"
                times = times_s(runs, options.rounds, device, options.cpu)
                cells = []
                for name in names:
                    on, off = times[f"{name}: cache"], times[f"{name}: whole"]
                    rates = [batch / statistics.median(t) for t in (on, off)]
                    cells += [f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{ratio(off, on):.1f} x"]
                print(f"| {context} | {batch} | {' | '.join(cells)} |", flush=True)
        if device.type == "cuda":
            print(f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB at most")
            torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    main()
