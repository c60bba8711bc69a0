"""A training step of the mixture of experts, beside the dense one at equal active parameters.

python benchmarks/moe_speed.py [--sizes nano 100M] [--rounds 7] [--threads 2] [--cpu]

First whole steps, as in train_speed.py: layout, forward, backward, clipping and AdamW, bfloat16 by
autocast. Then one feed-forward alone, forward and backward, and the parts of the mixture's:

    router    scores, choice and weights
    sort      which row goes where
    products  the experts, the cast of their weights included
    rows      tokens to sorted rows and back

Runs alternate; times are medians, ratios medians of the rounds' ratios. `--cpu`: time of the
processor, not of the clock (with `--threads 1`, on a machine that has other things to do).
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from interleave import PEAK, begin, ratio, times_s
from train_speed import Size, core, training

from worldmodel.devices import mixed_precision
from worldmodel.moe import FeedForward
from worldmodel.train.optim import build_optimizers

SIZES = {
    "nano": Size(
        peer={},
        ours={"width": 192, "depth": 6, "heads": 4, "kv_heads": 4, "hidden": 768},
        rows=6,
    ),
    "100M": Size(
        peer={},
        ours={"width": 768, "depth": 10, "heads": 12, "kv_heads": 12, "hidden": 3136},
        rows=2,
    ),
}
KINDS = ("dense", "moe")


def steps(size: Size, device: torch.device) -> dict[str, Any]:
    """Whole training steps of both kinds."""
    latents = torch.randn(512, 8, 8, 32, device=device)
    found = {}
    for kind in KINDS:
        module = core(size, latents, kind)
        found[kind] = training(module, size, latents, build_optimizers(module, 1e-3, 0.02, False))
    return found


def feed_forwards(
    layers: dict[str, FeedForward], tokens: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Forward and backward of one layer of each kind, and of the mixture's parts."""
    moe = layers["moe"]
    width = moe.w_in.shape[2]
    x = torch.randn(tokens, width, device=device, requires_grad=True)
    modality = (torch.rand(tokens, device=device) < 0.9).long()

    def backward(out: torch.Tensor, *inputs: torch.Tensor) -> None:
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    def whole(layer: FeedForward) -> None:
        with mixed_precision(device, torch.bfloat16):
            out = layer(x, modality)
        backward(out, x, *layer.parameters())

    def router() -> None:
        assert moe.router is not None
        backward(moe._choose(x, modality)[1], x, moe.router.weight)

    chosen, weights = (t.detach() for t in moe._choose(x, modality))
    order = moe._sort(chosen)
    small = x.detach().bfloat16().requires_grad_()
    rows = small.detach().index_select(0, order.token).requires_grad_()
    share = weights.flatten()[order.index].unsqueeze(1).bfloat16().requires_grad_()

    def products() -> None:
        with mixed_precision(device, torch.bfloat16):
            out = moe._products(rows, share, order.ends)
        backward(out, rows, share, moe.w_in, moe.w_out)

    def there_and_back() -> None:
        backward(order.collect(order.spread(small)), small)

    return {
        "dense": lambda: whole(layers["dense"]),
        "moe": lambda: whole(moe),
        "router": router,
        "sort": lambda: moe._sort(chosen),
        "products": products,
        "rows": there_and_back,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, help="documents a batch; a GPU wants more of them")
    options, device = begin(parser)
    for name in options.sizes:
        size = SIZES[name]
        if options.rows:
            size = Size({}, size.ours, options.rows)
        found = steps(size, device)
        runs = {kind: one.step for kind, one in found.items()}
        times = times_s(runs, options.rounds, device, options.cpu)
        tokens = found["moe"].processed
        print(
            f"\n{name}, {tokens} tokens\n\n| | active / all | ms | x dense |\n|---|---:|---:|---:|"
        )
        for kind, one in found.items():
            cells = f"{one.active / 1e6:.1f} / {one.total / 1e6:.1f} M"
            spent = statistics.median(times[kind])
            gain = ratio(times[kind], times["dense"])
            print(f"| step, {kind} | {cells} | {spent * 1e3:.0f} | {gain:.2f} |", flush=True)
            if device.type == "cuda":
                share = 6 * one.active * one.processed / spent / PEAK
                print(f"{kind}: MFU {100 * share:.1f} %")
        if device.type == "cuda":
            print(f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB at most, both together")
        shape = size.ours
        layers = {
            "dense": FeedForward(shape["width"], shape["hidden"], 0, 0, 1).to(device),
            "moe": FeedForward(shape["width"], shape["hidden"] // 4, 12, 3, 2).to(device),
        }
        parts = feed_forwards(layers, tokens, device)
        times = times_s(parts, 3 * options.rounds, device, options.cpu)
        for part in parts:
            label = f"feed-forward, {part}" if part in KINDS else f"- {part}"
            spent = statistics.median(times[part])
            gain = ratio(times[part], times["dense"])
            print(f"| {label} | | {spent * 1e3:.1f} | {gain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
