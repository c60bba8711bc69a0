"""How many frames per second do writers commit, beside what the worlds produce?

python benchmarks/write_speed.py [--sizes 64 128] [--worlds doom minigrid crafter] [--rounds 5]

Writers commit whole episodes of 257 frames that the world showed, synced to the disk; the worlds
take random keys and do nothing else. Both alternate, in 1 and in 2 processes; shown are medians of
the rounds, and of the ratios within each round. `CPU ratio` compares the processor time per frame,
of a process with its engine, instead of the clock. It needs Linux.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
from collect_speed import Speed, cpu_s

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
    opened: dict[str, tuple[World, EpisodeWriter, Episode]] = {}
    seed = os.getpid() << 16
    while (order := pipe.recv()) is not None:
        name, writes, seconds = order
        if name not in opened:
            world = make_world(name, size=size)
            still = np.zeros((STEPS, 3), np.float32), np.zeros(STEPS, np.uint16)
            episode = Episode(np.stack(play(world, 0, STEPS)), *still, {}, (), {})
            opened[name] = world, EpisodeWriter(f"{path}/{name}.zarr", world.spec), episode
        world, writer, episode = opened[name]
        began, began_cpu, done = time.perf_counter(), cpu_s(), 0
        while time.perf_counter() - began < seconds:
            seed += 1
            if writes:
                writer.write(replace(episode, info={"seed": seed}))
                done += STEPS + 1
            else:
                done += len(play(world, seed, 64)) - 1
        clock, cpu = time.perf_counter() - began, cpu_s() - began_cpu
        pipe.send(Speed(done / clock, done / cpu))
    for world, _, _ in opened.values():
        world.close()


Rates = dict[tuple[str, bool, int], list[Speed]]
"""Speeds of each round by world, whether it was written or played, and workers."""


def measure(path: str, size: int, worlds: list[str], rounds: int, seconds: float) -> Rates:
    """Return how fast processes write and play."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(max(WORKERS)):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(path, size, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    found: Rates = {}
    for turn in range(rounds + 1):
        for workers, name, writes in itertools.product(WORKERS, worlds, (False, True)):
            for pipe in pipes[:workers]:
                pipe.send((name, writes, seconds))
            clocks, cpus = zip(*(pipe.recv() for pipe in pipes[:workers]), strict=True)
            if turn:  # the first round warms up
                speed = Speed(sum(clocks), sum(cpus) / workers)
                found.setdefault((name, writes, workers), []).append(speed)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--worlds", nargs="+", default=["doom", "minigrid", "crafter"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; frames a second\n")
    print("| pixels | world | processes | world gives | writer takes | ratio | CPU ratio |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            rates = measure(folder, size, options.worlds, options.rounds, options.seconds)
        for name, workers in itertools.product(options.worlds, WORKERS):
            given, taken = rates[name, False, workers], rates[name, True, workers]
            pairs = list(zip(given, taken, strict=True))
            clocks = (statistics.median(s.clock for s in speeds) for speeds in (given, taken))
            cells = [str(size), name, str(workers), *(f"{clock:.0f}" for clock in clocks)]
            cells.append(f"{statistics.median(w.clock / g.clock for g, w in pairs):.1f} x")
            cells.append(f"{statistics.median(w.cpu / g.cpu for g, w in pairs):.1f} x")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
