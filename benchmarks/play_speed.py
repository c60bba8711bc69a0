"""Imagined frames per second of a checkpoint, by denoising steps and branches.

python benchmarks/play_speed.py [checkpoint] [threads]
"""

import statistics
import sys
import time

import torch

from worldmodel.dream import Dream

FRAMES = 60


def main() -> None:
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else "doom-nano"
    if len(sys.argv) > 2:
        torch.set_num_threads(int(sys.argv[2]))
    started = time.perf_counter()
    dream = Dream.load(checkpoint)
    action = dream.spec.actions.press(["w"])
    dream.step(action)
    print(f"load to first frame {time.perf_counter() - started:.2f} s")
    print(f"{dream.device} ({dream.device_reason}), {dream.dtype}")
    print("steps  branches  ms/step  p95  frames/s")
    for steps in (1, 2, 4, 8):
        for branches in (1, 4):
            dream.denoise_steps = steps
            team = dream.fork(branches)
            for _ in range(8):
                Dream.batch_step(team, [action] * branches)
            times = []
            for _ in range(FRAMES):
                begin = time.perf_counter()
                Dream.batch_step(team, [action] * branches)
                times.append((time.perf_counter() - begin) * 1e3)
            times.sort()
            middle, p95 = statistics.median(times), times[int(0.95 * len(times))]
            fps = branches * 1e3 / middle
            print(f"{steps:5}  {branches:8}  {middle:7.1f}  {p95:5.1f}  {fps:8.1f}")


if __name__ == "__main__":
    main()
