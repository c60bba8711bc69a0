"""Time contestants in turns, so that whatever else the machine does hits all of them alike."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from worldmodel.devices import choose_device, choose_dtype, has_fast_bfloat16

PEAK = 989e12
"""FLOP/s of an H100 or H200 in bfloat16 without sparsity, as its data sheet says."""


def times_s(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    cpu: bool = False,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Run all contestants once a round, in turns; return their times, the warm-up left out.

    With `cpu` the processor time of this process, of all its threads: on a machine that has other
    things to do, with one thread, the time that a step would take if it had the core to itself.
    """
    clock = time.process_time if cpu else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warm_up, rounds):
        for name, run in runs.items():
            synchronize(device)
            began = clock()
            run()
            synchronize(device)
            if turn >= 0:
                found[name].append(clock() - began)
    return found


def ratio(one: list[float], other: list[float]) -> float:
    """Return how many times longer `one` takes than `other`: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """Say what this runs on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        if Path("/proc/cpuinfo").exists():
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next((s.split(":")[1] for s in lines if s.startswith("model name")), name)
        bf16 = "with" if has_fast_bfloat16() else "without"
        name = f"{name.strip()}, {torch.get_num_threads()} threads, {bf16} bfloat16 in hardware"
    return f"{name}; torch {torch.__version__}; auto dtype {choose_dtype('auto', device)}"


def begin(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, torch.device]:
    """Read the options, with those of where and how to time; set the threads, say the machine."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, _ = choose_device(options.device)
    print(machine(device), "; processor time" if options.cpu else "")
    return options, device
