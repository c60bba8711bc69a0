"""What the model does on one CUDA device: does it agree with the CPU, and how fast is it.

python benchmarks/gpu.py [agree] [train] [play] [memory] [compile] [--seconds 150] [--out FILE]

    agree    relative differences ||a - b|| / ||b|| to the CPU in float32 (TF32 off): a forward of a
             packed batch with both kinds of masks, a training step's loss and gradients, and a
             rollout; and whether recorded passes (CUDA graphs) equal those run one by one
    train    tokens/s, MFU and peak memory of training steps of nano, small and base, dense and
             mixture: noise, forward, loss, backward, clipping, Muon and AdamW; and of small with
             FlexAttention. The batch is packed from documents beforehand. FLOPs are those of
             `worldmodel.flops`, of real tokens
    play     imagined frames/s of one rollout with guidance 2, from the key to the picture;
             doom-nano at 64 px, small at 128, base at 256; with CUDA graphs and without
    memory   peak memory of training steps with and without activation checkpointing
    compile  as `train`, with the blocks compiled (`core_loop.compile=true`; not by default here,
             since compiling takes its time)

Weights and latents are random where nothing else is said: speed does not depend on them. Each line
is printed when it is measured; a section that fails says so, and the others go on. What does not
fit into the time is left out, and named.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from gpu_parts import (
    SETTINGS,
    Films,
    Report,
    attempt,
    clear,
    difference,
    shape,
    speaking,
    training,
    untrained,
)
from interleave import PEAK, machine, synchronize
from torch import nn

from worldmodel import checkpoint as checkpoints
from worldmodel.devices import choose_device, mixed_precision
from worldmodel.dream import Dream
from worldmodel.moe import FeedForward
from worldmodel.sequence import attention_mask, block_mask
from worldmodel.stream import Engine
from worldmodel.train.core import CoreTask, run
from worldmodel.train.loop import compiled as compiled_blocks
from worldmodel.train.loop import recomputed
from worldmodel.train.optim import build_optimizers
from worldmodel.transformer import Core, CoreConfig

# Agreement

SMALL = {"width": 128, "depth": 3, "heads": 4, "kv_heads": 2, "hidden": 256, "vocab": 300}
CORES = {  # attention is of one shape in all, so that it is compiled once
    "mixture, convolutions": {"motion": -1, "unet": 2},
    "mixture, motion, 2d": {"motion": 2, "positions": "2d"},
    "dense, 1d": {"ffn": "dense", "motion": -1, "positions": "1d"},
    "by modality, v": {"ffn": "modality", "motion": -1, "prediction": "v"},
}


def agree(report: Report, device: torch.device) -> None:
    """Compare with the CPU."""
    torch.backends.cudnn.allow_tf32 = False  # of matrix products it is off by default
    for name, changes in CORES.items():
        if report.late(name, 5):
            return
        attempt(report, "agree", name, lambda c=changes, n=name: _agree_core(report, n, c, device))
    attempt(report, "agree", "idle experts", lambda: _agree_idle(report, device))
    for dtype in (torch.float32, torch.bfloat16):
        if not report.late("rollouts", 10):
            name = f"doom-nano, {str(dtype).removeprefix('torch.')}"
            attempt(
                report, "agree", name, lambda n=name, d=dtype: _agree_rollout(report, n, device, d)
            )
    torch.backends.cudnn.allow_tf32 = True


def _agree_core(
    report: Report, name: str, changes: dict[str, object], device: torch.device
) -> None:
    config = CoreConfig(**(SMALL | changes))  # type: ignore[arg-type]

    def made(device: torch.device, dtype: torch.dtype) -> CoreTask:
        torch.manual_seed(0)
        core = speaking(Core(config)).to(device)
        return training(core, Films(4, config.vocab, 16), 2500, dtype)

    at_home = made(torch.device("cpu"), torch.float32)
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    there = {kind: made(device, dtype) for kind, dtype in kinds.items()}
    wanted, weights = _gradients(at_home)
    for kind, task in there.items():
        loss, gradients = _gradients(task)
        worst = max(weights, key=lambda key: difference(gradients[key], weights[key]))
        whole = [
            torch.cat([x.flatten().cpu() for x in one.values()]) for one in (gradients, weights)
        ]
        forward = {how: _forward(at_home, task, how) for how in ("dense mask", "flex mask")}
        report(
            "agree",
            f"{name}, {kind}",
            **forward,
            loss=difference(loss, wanted),
            gradients=difference(*whole),
            worst_gradient=f"{difference(gradients[worst], weights[worst]):.2g} {worst}",
        )


def _flat(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.flatten().cpu() for x in parts.values()])


def _gradients(task: CoreTask) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    task.module.zero_grad()
    loss = task.losses(0)["loss"]
    loss.backward()
    found = {k: p.grad for k, p in task.module.named_parameters() if p.grad is not None}
    return loss, found


def _forward(at_home: CoreTask, task: CoreTask, how: str) -> float:
    """Difference of the hidden states of one batch, in all of the tokens that are no padding."""
    found = []
    batch, clean = at_home.batch(np.random.default_rng(0))
    level = torch.linspace(0, 1, len(clean))
    stride = torch.full((len(clean),), at_home.module.config.strides - 1)
    for one in (at_home, task):
        here = batch.to(one.device)
        mask = block_mask(here) if how == "flex mask" and one is task else attention_mask(here)
        with mixed_precision(one.device, one.dtype):
            parts = (x.to(one.device) for x in (clean, level, stride))
            found.append(run(one.module, here, mask, *parts)[0][here.doc >= 0])
    return difference(found[1], found[0])


def _agree_idle(report: Report, device: torch.device) -> None:
    """Experts that no token chose must have gradients of zero, in grouped products as well."""
    torch.manual_seed(0)
    layer = FeedForward(128, 64, 8, 2, 2)
    assert layer.router is not None
    layer.router.bias[3:6] = -10.0
    x, modality = torch.randn(600, 128), torch.arange(600) % 2
    found = []
    for where, dtype in ((torch.device("cpu"), torch.float32), (device, torch.bfloat16)):
        layer.zero_grad()
        layer.to(where)
        with mixed_precision(where, dtype):
            layer(x.to(where), modality.to(where)).square().sum().backward()
        assert layer.w_in.grad is not None
        found.append(layer.w_in.grad.float().cpu())
    idle = found[1][3:6]
    finite = bool(found[1].isfinite().all())
    report(
        "agree",
        "experts that no token chose, bfloat16",
        gradients=difference(found[1], found[0]),
        finite=finite,
        idle_gradient=idle.abs().max().item(),
    )


def _agree_rollout(report: Report, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Nine frames from the same start by the same keys: beside the CPU, graphs beside none."""
    rolled, replayed = {}, 0
    for kind in ("cpu", "one by one", "graphs"):
        here = torch.device("cpu") if kind == "cpu" else device
        engine = Engine(
            checkpoints.load("doom-nano"), here, torch.float32 if kind == "cpu" else dtype
        )
        if kind == "one by one":
            engine.graphs = None
        dream = Dream(engine, guidance=2.0)
        for _ in range(3):  # a graph is recorded when a shape comes again
            dream.reset(seed=0)
            rolled[kind] = [_pressed(dream, key) for key in "wwadwwddw"]
        replayed += engine.graphs.replayed if engine.graphs else 0
    singly, graphs = rolled["one by one"], rolled["graphs"]
    report(
        "agree",
        name,
        first_frame=difference(singly[0], rolled["cpu"][0]),
        ninth_frame=difference(singly[-1], rolled["cpu"][-1]),
        graphs_beside_none=max(difference(*pair) for pair in zip(graphs, singly, strict=True)),
        replayed=replayed,
    )


def _pressed(dream: Dream, key: str) -> torch.Tensor:
    dream.step(dream.spec.actions.press([key]))
    return dream.latent.clone()


# Training


def train(report: Report, device: torch.device, compiled: bool = False) -> None:
    """Time training steps."""
    names = ("small", "base") if compiled else ("small", "base", "nano")
    for name, ffn in itertools.product(names, ("dense", "moe")):
        case = f"{name}, {ffn}"
        needed = 30 if compiled else 8
        if report.late(case, needed):
            continue
        section = "compile" if compiled else "train"
        attempt(report, section, case, lambda n=name, f=ffn: _train(report, n, f, device, compiled))
    if not compiled and not report.late("FlexAttention", 8):
        attempt(
            report,
            "train",
            "small, dense, FlexAttention",
            lambda: _train(report, "small", "dense", device, False, flex=True),
        )


def _train(
    report: Report,
    name: str,
    ffn: str,
    device: torch.device,
    compiled: bool,
    flex: bool = False,
) -> None:
    step, task, began = None, None, time.monotonic()
    tokens = SETTINGS[name].tokens
    with ExitStack() as stack:
        if flex:
            stack.enter_context(flex_attention())
        while step is None:
            try:
                step, task = _steps(name, ffn, tokens, device)
                if compiled:
                    stack.enter_context(compiled_blocks(task.module))
                step()
                step()
                synchronize(device)
            except torch.OutOfMemoryError:
                step = task = None
                tokens //= 2
            clear()
        assert task is not None
        first = time.monotonic() - began
        torch.cuda.reset_peak_memory_stats(device)
        done, times = task.work(), []
        while len(times) < 10 and sum(times) < 3.0:
            start = time.perf_counter()
            step()
            synchronize(device)
            times.append(time.perf_counter() - start)
    made = {key: value - done[key] for key, value in task.work().items()}
    active, total = task.module.parameters_by_use()
    spent = sum(times)
    report(
        "compile" if compiled else "train",
        f"{name}, {ffn}" + (", FlexAttention" if flex else ""),
        active_M=active / 1e6,
        all_M=total / 1e6,
        tokens_a_step=round(made["tokens"] / len(times)),
        ms=1e3 * statistics.median(times),
        tokens_per_s=round(made["tokens"] / spent),
        MFU_percent=100 * made["flops"] / spent / PEAK,
        peak_GB=torch.cuda.max_memory_allocated(device) / 1e9,
        to_begin_s=first,
    )


def _steps(
    name: str, ffn: str, tokens: int, device: torch.device
) -> tuple[Callable[[], None], CoreTask]:
    """A training step over one batch again and again (equal shapes compile once), and its task."""
    with device:  # large models are filled faster there
        core = Core(shape(name, ffn=ffn))
    films = Films(SETTINGS[name].frames, SETTINGS[name].vocab, 64)
    task = training(speaking(core), films, tokens, torch.bfloat16)
    prepared = task._prepare(0)
    task._prepared = lambda number: prepared  # type: ignore[assignment]
    optimizers = build_optimizers(task.module, 1e-4, 0.02, muon=True)
    numbers = itertools.count()

    def step() -> None:
        number = next(numbers)
        task.losses(number)["loss"].backward()
        nn.utils.clip_grad_norm_(task.module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        task.after_step(number)

    return step, task


@contextmanager
def flex_attention() -> Iterator[None]:
    """Within this, training skips blocks that nobody sees, however short the rows are."""
    import worldmodel.train.core as core

    kept, core.visibility = core.visibility, block_mask
    yield
    core.visibility = kept


# Play


def play(report: Report, device: torch.device) -> None:
    """Time whole steps of one rollout."""
    for name in ("doom-nano", "small", "base"):
        if not report.late(f"playing {name}", 12):
            attempt(report, "play", name, lambda n=name: _play(report, n, device))


def _play(report: Report, name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    loaded = checkpoints.load(name) if name == "doom-nano" else untrained(name, device)
    engine = Engine(loaded, device, torch.bfloat16)
    graphs = engine.graphs
    for steps, recorded in ((2, True), (1, True), (4, True), (2, False)):
        engine.graphs = graphs if recorded else None
        if report.late(f"{steps} denoising steps", 4):
            return
        dream = Dream(engine, steps, guidance=2.0)
        dream.reset(seed=0)
        key = dream.spec.actions.press(["w"])
        times = []
        while len(times) < 60 or (sum(times) < 1.5 and len(times) < 300):
            start = time.perf_counter()
            dream.step(key)  # the picture is on the CPU when it returns
            times.append(time.perf_counter() - start)
        times = sorted(times[30:])  # the window is full and its passes are recorded
        report(
            "play",
            f"{name}, {loaded.spec.height} px",
            denoising_steps=steps,
            passes="graphs" if engine.graphs else "one by one",
            ms=1e3 * statistics.median(times),
            p95_ms=1e3 * times[int(0.95 * len(times))],
            frames_per_s=1 / statistics.median(times),
            replayed=graphs.replayed if graphs else 0,
        )


# Memory


def memory(report: Report, device: torch.device) -> None:
    """Peak memory of a step at equal batches, with and without activation checkpointing."""
    for name in ("small", "base"):
        if report.late(f"memory of {name}", 10):
            continue
        for again in (True, False):
            attempt(report, "memory", name, lambda n=name, a=again: _memory(report, n, a, device))


def _memory(report: Report, name: str, again: bool, device: torch.device) -> None:
    step, task = _steps(name, "moe", SETTINGS[name].tokens, device)
    with recomputed(task.module) if again else nullcontext():
        step()
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        start = time.perf_counter()
        step()
        synchronize(device)
    report(
        "memory",
        f"{name}, moe",
        activations="computed again" if again else "kept",
        tokens_a_step=task.config.rows * task.config.length,
        weights_and_optimisers_GB=held / 1e9,
        peak_GB=torch.cuda.max_memory_allocated(device) / 1e9,
        ms=1e3 * (time.perf_counter() - start),
    )


SECTIONS: dict[str, Callable[[Report, torch.device], None]] = {
    "agree": agree,
    "play": play,
    "train": train,
    "memory": memory,
    "compile": lambda report, device: train(report, device, compiled=True),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", default=list(SECTIONS)[:4])
    parser.add_argument("--seconds", type=float, default=150.0, help="for all sections together")
    parser.add_argument("--out", type=Path, help="JSON; tracebacks go beside it")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(words)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown sections {sorted(unknown)}; there are {', '.join(SECTIONS)}")
    device, _ = choose_device(options.device)
    print(machine(device), flush=True)
    torch._dynamo.config.recompile_limit = 64  # one process times many cores
    report = Report(options.out, time.monotonic() + options.seconds)
    for name in options.sections:
        began = time.monotonic()
        attempt(report, name, "all", lambda n=name: SECTIONS[n](report, device))
        print(f"\n{name} took {time.monotonic() - began:.0f} s.", flush=True)


if __name__ == "__main__":
    main()
