"""Processes that write a small store, begun together; for tests of several writers at once."""

import subprocess
import sys
from pathlib import Path

import numpy as np

WRITE = """
import sys
import numpy as np
from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.world import Episode, WorldSpec

path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
spec = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "walk", dx=0.5),)), 16, 16)
print("ready", flush=True)
sys.stdin.readline()
writer = EpisodeWriter(path, spec)
for seed in range(first, first + count):
    frames = np.random.default_rng(seed).integers(0, 256, (65, 16, 16, 3), np.uint8)
    steps = np.zeros((64, 3), np.float32), np.zeros(64, np.uint16)
    name = writer.write(Episode(frames, *steps, {}, (), {"seed": seed}))
    print(name, flush=True)
"""


def start(path: str | Path, first: int, count: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), str(first), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def frames_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (65, 16, 16, 3), np.uint8)
