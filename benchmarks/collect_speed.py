"""Frames per second of collecting, beside those of the bare environments.

python benchmarks/collect_speed.py [worlds=doom,breakout,carracing] [rounds=3] [episodes=16]

Bare are the same seeds under the same actions in as many processes, in a loop that does nothing
else: of `doom` the world's own `reset` and `step`; of a Gymnasium world `env.reset`, `env.step`
and, where the frames come from it, `env.render`, without scaling. Collected is what `worldmodel
collect` does, policy, sentences and commits included, up to the last commit. Both kinds of
process are warm when the clock starts: each has played one episode. Runs alternate; the figures
are medians over the rounds.

`CPU ratio` compares the processor time per frame, of all processes with their engines, instead of
the clock: what the ratio is where every core plays, also on a machine that has other things to do.
It needs Linux.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from worldmodel.datasets.pool import Hand, LocalPool
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.workers import CollectConfig, Event, Makers
from worldmodel.envs import annotate, make_policy, make_world

STEPS = 256

Actions = dict[int, list[int]]
"""The keys of each episode, by its seed."""


class Speed(NamedTuple):
    """Frames per second of the clock, and of processor time."""

    clock: float
    cpu: float


def cpu_s() -> float:
    """Return the processor time so far of this process and all below it, the ended ones too."""
    stats = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            rest = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        stats[int(folder.name)] = int(rest[1]), sum(map(int, rest[11:15]))
    ours = {os.getpid()}
    while more := {pid for pid, (parent, _) in stats.items() if parent in ours} - ours:
        ours |= more
    return sum(stats[pid][1] for pid in ours) / os.sysconf("SC_CLK_TCK")


class Timed(LocalPool):
    """A pool that counts the frames played after each worker's first episode."""

    begin_s = end_s = begin_cpu_s = end_cpu_s = 0.0
    frames = 0

    def hear(self, hand: Hand, event: Event) -> None:
        """Count what a worker says."""
        if event.kind == "steps" and self.begin_s:
            self.frames += event.value
        super().hear(hand, event)
        if event.kind == "done":
            if not self.begin_s and all(hand.proven for hand in self.hands):
                self.begin_s, self.begin_cpu_s = time.perf_counter(), cpu_s()
            if not self.pending and not any(hand.busy for hand in self.hands):
                self.end_s, self.end_cpu_s = time.perf_counter(), cpu_s()


def collected(world: str, processes: int, episodes: int, out: Path) -> Speed:
    """Return the speed of collecting into a new store."""
    config = CollectConfig(world, str(out), steps=STEPS, workers=processes)
    seeds = list(range((episodes + 1) * processes))
    pool = Timed(config, seeds, Makers(make_world, make_policy, annotate))
    try:
        pool.run()
    finally:
        pool.stop()
    assert not pool.failed
    cpu = pool.end_cpu_s - pool.begin_cpu_s
    return Speed(pool.frames / (pool.end_s - pool.begin_s), pool.frames / cpu)


def bare(world: str, processes: int, actions: Actions) -> Speed:
    """Return the speed of the bare environments; each plays its share of the seeds."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    seeds = sorted(actions)
    shares = [{seed: actions[seed] for seed in seeds[n::processes]} for n in range(processes)]
    team = [context.Process(target=_bare, args=(world, share, start, results)) for share in shares]
    for process in team:
        process.start()
    told = [results.get() for _ in team]
    for process in team:
        process.join()
    frames, begins, ends, cpus = zip(*told, strict=True)
    return Speed(sum(frames) / (max(ends) - min(begins)), sum(frames) / sum(cpus))


def _bare(world_name: str, actions: Actions, start: Any, results: Any) -> None:
    cv2.setNumThreads(1)  # as in a collecting process
    world: Any = make_world(world_name)
    play = _play_world if world_name == "doom" else _play_gym
    first, *rest = actions.items()
    play(world, *first)
    start.wait()
    begin_s, begin_cpu_s = time.perf_counter(), cpu_s()
    for seed, keys in rest:
        play(world, seed, keys)
    frames = sum(len(keys) for _, keys in rest)
    results.put((frames, begin_s, time.perf_counter(), cpu_s() - begin_cpu_s))
    world.close()


def _play_world(world: Any, seed: int, keys: list[int]) -> None:
    held = [world.spec.actions.from_mask(mask) for mask in keys]
    world.reset(seed)
    for action in held:
        world.step(action)


def _play_gym(world: Any, seed: int, keys: list[int]) -> None:
    from worldmodel.envs.gym_config import load_preset
    from worldmodel.envs.gym_controls import make_controls

    env, config = world.env, load_preset(world.spec.name)
    native = make_controls(env, config).native
    table = world.spec.actions
    done = [native(table.from_mask(mask).keys) for mask in keys]
    env.reset(seed=3 * seed)  # as GymWorld has it, of three splits
    for _ in range(config.settle):
        env.step(native(()))
    for action in done:
        for _ in range(config.repeat if action is not None else 0):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        if config.source == "render":
            env.render()


def keys_of(store: Path) -> Actions:
    """Return the actions of a collected store."""
    opened = EpisodeStore(store)
    return {opened.describe(name).seed: opened.arrays(name)["keys"].tolist() for name in opened.ids}


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    worlds = given.get("worlds", "doom,breakout,carracing").split(",")
    rounds, episodes = int(given.get("rounds", 3)), int(given.get("episodes", 16))
    print("| world | processes | bare frames/s | collected frames/s | ratio | CPU ratio |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for world in worlds:
        for processes in (1, 2):
            runs = []
            for _ in range(rounds):
                with tempfile.TemporaryDirectory() as folder:
                    store = Path(folder) / "x.zarr"
                    ours = collected(world, processes, episodes, store)
                    runs.append((bare(world, processes, keys_of(store)), ours))
            base = statistics.median(bare.clock for bare, _ in runs)
            ours = statistics.median(ours.clock for _, ours in runs)
            ratio = _spread([ours.clock / bare.clock for bare, ours in runs])
            cpu = _spread([ours.cpu / bare.cpu for bare, ours in runs])
            print(
                f"| {world} | {processes} | {base:.0f} | {ours:.0f} | {ratio} | {cpu} |", flush=True
            )


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})"


if __name__ == "__main__":
    main()
