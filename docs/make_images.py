"""Make the pictures of README and docs with a checkpoint and a store.

    python docs/make_images.py [checkpoint] [store]

Writes to docs/images: reconstruction.png (real and decoded frames), futures.png (real futures and
imagined ones under the same actions), play.gif (one start under three keys and a sentence), and
hold_<key>.png (64 steps of one key from several starts).
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeStore
from worldmodel.dream import Dream
from worldmodel.evaluate.rollouts import Clips, imagine, sample_clips
from worldmodel.viewer.config import PlayConfig

OUT = Path(__file__).parent / "images"
BRANCHES = (("w", None), ("a", None), ("d", None), (None, "turn right"))


def roll(
    dream: Dream, starts: list[int], keys: str | None, say: str | None, steps: int
) -> np.ndarray:
    """Imagine from several starts as one batch; frames uint8 [S, steps + 1, H, W, 3]."""
    team = dream.fork(len(starts))
    for member, start in zip(team, starts, strict=True):
        member.reset(seed=start)
        if say:
            member.say(say)
    action: Action | None = None if keys is None else dream.spec.actions.press(keys.split("+"))
    frames = [[member.frame for member in team]]
    for _ in range(steps):
        stepped = Dream.batch_step(team, [action] * len(team))
        frames.append([step.frame for step in stepped])
    return np.array(frames).swapaxes(0, 1)


def enlarge(frame: np.ndarray, times: int) -> np.ndarray:
    """Scale a frame up without smoothing."""
    return cv2.resize(frame, None, fx=times, fy=times, interpolation=cv2.INTER_NEAREST)


def label(image: np.ndarray, text: str) -> np.ndarray:
    """Put a caption bar under an image."""
    bar = np.full((22, image.shape[1], 3), 24, np.uint8)
    cv2.putText(bar, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (230,) * 3, 1, cv2.LINE_AA)
    return np.concatenate([image, bar])


def write_gif(dream: Dream, start: int, steps: int = 40) -> None:
    """One start under several keys and a sentence, side by side."""
    rolls = [roll(dream, [start], key, say, steps)[0] for key, say in BRANCHES]
    names = [f"key {key}" if key else f'"{say}"' for key, say in BRANCHES]
    pages = []
    for t in range(steps + 1):
        tiles = [label(enlarge(r[t], 3), n) for r, n in zip(rolls, names, strict=True)]
        pages.append(Image.fromarray(np.concatenate(tiles, axis=1)))
    first, *rest = [page.quantize(96, dither=Image.Dither.NONE) for page in pages]
    first.save(OUT / "play.gif", save_all=True, append_images=rest, duration=110, loop=0)


def write_sheet(dream: Dream, key: str, starts: list[int], steps: int = 64) -> None:
    """Every fourth frame of 64 steps of one key, a row a start."""
    frames = roll(dream, starts, key, None, steps)[:, ::4]
    rows = [np.concatenate([enlarge(f, 1) for f in row], axis=1) for row in frames]
    sheet = label(np.concatenate(rows), f"key {key} held for {steps} steps, every 4th frame")
    Image.fromarray(sheet).save(OUT / f"hold_{key}.png")


def write_reconstruction(dream: Dream, clips: Clips) -> None:
    """Real frames above what encoder and decoder make of them."""
    frames = clips.future[:, -1]
    decoded = dream.encoder.decode(dream.encoder.encode(torch.from_numpy(frames))).numpy()
    rows = []
    for first in range(0, len(frames), 16):
        rows += [np.concatenate(list(x[first : first + 16]), axis=1) for x in (frames, decoded)]
    Image.fromarray(np.concatenate(rows)).save(OUT / "reconstruction.png")


def write_futures(dream: Dream, clips: Clips, count: int = 6) -> None:
    """Real futures above imagined ones, the last given frame first."""
    few = clips.take(range(count))
    imagined = imagine(dream, few, few.plans(dream.spec.actions))
    rows = []
    for past, true, dreamt in zip(few.past, few.future, imagined, strict=True):
        rows += [np.concatenate([past[-1], *x], axis=1) for x in (true, dreamt)]
    Image.fromarray(np.concatenate(rows)).save(OUT / "futures.png")


def main() -> None:
    """Write all pictures."""
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else "doom-nano"
    store = sys.argv[2] if len(sys.argv) > 2 else "data/doom.zarr"
    OUT.mkdir(exist_ok=True)
    play = PlayConfig()
    dream = Dream.load(checkpoint, denoise_steps=play.denoise_steps, guidance=play.guidance)
    clips = sample_clips(EpisodeStore(store), "val", 32, 4, 16)
    write_reconstruction(dream, clips)
    write_futures(dream, clips)
    write_gif(dream, start=3)
    for key in ("w", "a", "d", "s"):
        write_sheet(dream, key, [0, 3, 6, 9, 12, 15])


if __name__ == "__main__":
    main()
