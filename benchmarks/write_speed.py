"""How many frames per second do writers commit, beside what the fastest world produces?

python benchmarks/write_speed.py [--sizes 64 128] [--worlds doom minigrid crafter] [--rounds 5]

Writers commit whole episodes of 257 frames that the first world showed, synced to the disk; the
worlds take random keys and do nothing else. Both alternate, in 1 and in 2 processes; medians.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from worldmodel.datasets.store import EpisodeWriter
from worldmodel.envs import make_policy, make_world
from worldmodel.world import Episode, World

STEPS = 256
WORKERS = (1, 2)


def play(world: World, seed: int, steps: int) -> list[np.ndarray]:
    """Return the frames of a walk with random keys."""
    policy = make_policy("random", seed)
    policy.reset(seed)
    step = world.reset(seed)
    frames = [step.frame]
    while len(frames) <= steps:
        step = world.step(policy.act(step, world.spec))
        frames.append(step.frame)
        if step.terminated or step.truncated:
            seed += 1000
            step = world.reset(seed)
    return frames


def work(path: str, size: int, pipe: Connection) -> None:
    """Write or step for a while when told to; answer with frames/s."""
    worlds: dict[str, World] = {}
    source = make_world("doom", size=size)
    frames = np.stack(play(source, 0, STEPS))
    writer = EpisodeWriter(path, source.spec)
    still = np.zeros((STEPS, 3), np.float32), np.zeros(STEPS, np.uint16)
    episode = Episode(frames, *still, {}, (), {"seed": 0})
    seed = os.getpid() << 16
    while (order := pipe.recv()) is not None:
        name, seconds = order
        if name != "writer" and name not in worlds:
            worlds[name] = make_world(name, size=size)
            play(worlds[name], seed, 16)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            seed += 1
            if name == "writer":
                writer.write(replace(episode, info={"seed": seed}))
                done += STEPS + 1
            else:
                done += len(play(worlds[name], seed, 64)) - 1
        pipe.send(done / (time.perf_counter() - began))
    for world in (source, *worlds.values()):
        world.close()


def measure(path: Path, size: int, names: list[str], rounds: int, seconds: float) -> dict:
    """Return frames/s (median of the rounds) by name and workers."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(max(WORKERS)):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(str(path), size, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    found: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for workers in WORKERS:
            for name in names:
                for pipe in pipes[:workers]:
                    pipe.send((name, seconds))
                rate = sum(pipe.recv() for pipe in pipes[:workers])
                if turn:  # the first round warms up
                    found.setdefault((name, workers), []).append(rate)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return {key: statistics.median(rates) for key, rates in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--worlds", nargs="+", default=["doom", "minigrid", "crafter"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; frames a second")
    for size in options.sizes:
        names = ["writer", *options.worlds]
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            path = Path(folder) / "x.zarr"
            rates = measure(path, size, names, options.rounds, options.seconds)
        print(f"\n| {size}x{size} | 1 process | 2 processes | writer is, 1 | writer is, 2 |")
        print("|---|---:|---:|---:|---:|")
        for name in names:
            one, two = rates[name, 1], rates[name, 2]
            ratios = [rates["writer", n] / rates[name, n] for n in WORKERS]
            print(f"| {name} | {one:.0f} | {two:.0f} | {ratios[0]:.1f} x | {ratios[1]:.1f} x |")


if __name__ == "__main__":
    main()
