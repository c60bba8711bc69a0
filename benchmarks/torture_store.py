"""Kill writers at random moments while others write and read: is anything committed ever lost?

python benchmarks/torture_store.py [kills] [seed]

Two writers add episodes to one store without pause; a reader checks episodes of it all the time.
Again and again one of the writers is killed (SIGKILL) after a random time and replaced. A writer
reports an episode once its commit returned; from then on it must be there, whole, for good.
"""

import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter, leftovers, remove_leftovers
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

SPEC = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "walk", dx=0.5),)), 32, 32)
STEPS = 64
WRITERS = 2
LONGEST_S = 0.6  # a writer's life after its first commit, at most; a commit takes some 10 ms


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        kills: writers killed.
        in_flight: kills that left an unfinished episode, so that hit a writer at work.
        committed: episodes that a writer reported.
        present: episodes in the store at the end.
        lost, damaged: of the committed and of the present ones; both must be 0.
        reads: episodes that the reader checked meanwhile.
        bad_reads: of these, how many were not what was written; must be 0.
    """

    kills: int = 0
    in_flight: int = 0
    committed: int = 0
    present: int = 0
    lost: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    reads: int = 0
    bad_reads: int = 0


def make_episode(seed: int) -> Episode:
    frames = np.random.default_rng(seed).integers(0, 256, (STEPS + 1, 32, 32, 3), np.uint8)
    done = np.zeros((STEPS, 3), np.float32), np.zeros(STEPS, np.uint16)
    return Episode(frames, *done, {}, (), {"seed": seed})


def write(path: str, first: int) -> None:
    writer = EpisodeWriter(path, SPEC)
    seed = first
    while True:
        print(writer.write(make_episode(seed)), flush=True)
        seed += 1


def read(path: str) -> None:
    rng = random.Random(0)
    reads = bad = 0
    while not Path(path, "stop").exists():
        store = EpisodeStore(path)
        if not store.ids:
            continue
        name = rng.choice(store.ids)
        try:
            right = same(store.check(name))
        except UserError as error:
            print(error, file=sys.stderr)
            right = False
        reads, bad = reads + 1, bad + (not right)
    print(reads, bad)


def same(episode: Episode) -> bool:
    return np.array_equal(episode.frames, make_episode(int(episode.info["seed"])).frames)


def start(role: str, *words: str) -> subprocess.Popen:
    command = [sys.executable, __file__, role, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def torture(path: Path, kills: int, seed: int) -> Outcome:
    rng = random.Random(seed)
    outcome, promised = Outcome(), set[str]()
    EpisodeWriter(path, SPEC)
    reader = start("read", str(path))
    writers = [start("write", str(path), str(i * 10_000)) for i in range(WRITERS)]
    for turn in range(kills):
        number = turn % WRITERS
        victim = writers[number]
        assert victim.stdout is not None
        promised.add(victim.stdout.readline().strip())  # it is at work now
        time.sleep(rng.uniform(0, LONGEST_S))
        before = {left.name for left in leftovers(path)}
        victim.kill()
        rest, _ = victim.communicate()
        promised.update(line for line in rest.splitlines(keepends=True) if line.endswith("\n"))
        outcome.kills += 1
        outcome.in_flight += bool({left.name for left in leftovers(path)} - before)
        writers[number] = start("write", str(path), str((turn + WRITERS) * 10_000))
        if sys.stderr.isatty():
            print(f"\r{turn + 1} of {kills} kills", end="", file=sys.stderr)
    for writer in writers:
        writer.kill()
        rest, _ = writer.communicate()
        promised.update(line for line in rest.splitlines(keepends=True) if line.endswith("\n"))
    (path / "stop").touch()
    counted, _ = reader.communicate()
    (path / "stop").unlink()
    outcome.reads, outcome.bad_reads = map(int, counted.split())
    remove_leftovers(path)
    store = EpisodeStore(path)
    promises = {line.strip() for line in promised} - {""}
    outcome.committed, outcome.present = len(promises), len(store)
    outcome.lost = sorted(promises - set(store.ids))
    for name in store.ids:
        try:
            right = same(store.check(name))
        except UserError:
            right = False
        outcome.damaged += [] if right else [name]
    return outcome


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = torture(Path(folder) / "x.zarr", kills, seed)
    print(f"{'kills (SIGKILL)':<34}{outcome.kills:>8}")
    print(f"{'  that hit an episode in the making':<34}{outcome.in_flight:>7}")
    print(f"{'episodes committed':<34}{outcome.committed:>8}")
    print(f"{'episodes in the store':<34}{outcome.present:>8}")
    print(f"{'committed episodes lost':<34}{len(outcome.lost):>8}")
    print(f"{'episodes damaged':<34}{len(outcome.damaged):>8}")
    print(f"{'reads while writing':<34}{outcome.reads:>8}")
    print(f"{'  that failed':<34}{outcome.bad_reads:>8}")
    print(f"{'seconds':<34}{time.perf_counter() - began:>8.0f}")
    return 1 if outcome.lost or outcome.damaged or outcome.bad_reads else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["read"]:
        read(sys.argv[2])
    else:
        sys.exit(main())
