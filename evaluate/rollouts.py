"""Held-out clips, and what a model imagines from their first frames.

Letters in shapes: K clips, T steps, H W 3 a frame, N C a latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from tqdm import tqdm

from worldmodel.actions import Action, ActionTable
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.imaginer import Guest, Stepwise
from worldmodel.world import Step, WorldSpec

Plan = Sequence[Action | None]
"""What one rollout is told, step by step; None leaves it to the instruction."""


class FrameEncoder(Protocol):
    """Frames to latents and back, as `worldmodel.encoders`."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames uint8 [B, H, W, 3] to normalised latents [B, N, C]."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, N, C] to frames uint8 [B, H, W, 3]."""
        ...


class Imagination(Protocol):
    """What is evaluated: a `Dream`, a `Guest`, or in tests a world that stands in for one.

    With `fork` and `batch_step`, as a `Dream` has them, several rollouts run as one batch.
    """

    @property
    def spec(self) -> WorldSpec:
        """The world that is imagined."""
        ...

    def reset(
        self,
        seed: int | None = None,
        frames: np.ndarray | None = None,
        actions: Sequence[Action] | None = None,
    ) -> Step:
        """Start from frames uint8 [n, H, W, 3] and the n-1 actions between; seed the noise."""
        ...

    def step(self, action: Action | None) -> Step:
        """Imagine one frame."""
        ...

    def say(self, text: str | None) -> str:
        """Give an instruction, or take it back with None."""
        ...


@runtime_checkable
class Speaker(Imagination, Protocol):
    """What also reads and writes sentences: a `Dream`."""

    def text_perplexity(self, texts: list[str]) -> float:
        """Return the perplexity per token of texts."""
        ...

    def captions(self, frames: np.ndarray) -> list[str]:
        """Return a caption of each of some frames, uint8 [n, H, W, 3]."""
        ...

    def answers(self, frames: np.ndarray, questions: Sequence[str]) -> list[str]:
        """Return the answer to a question about each of some frames."""
        ...


@dataclass(frozen=True)
class Clips:
    """Clips of recorded episodes, `context` frames and a future each.

    Attributes:
        frames: uint8 [K, context+horizon, H, W, 3].
        keys: uint16 [K, context-1+horizon], masks of the action after each frame but the last.
        moves: float32 [K, context-1+horizon, 3], the same actions as (dx, dy, dyaw).
        context: frames that are given.
        names: episode of each clip. starts: step of its first frame.
    """

    frames: np.ndarray
    keys: np.ndarray
    moves: np.ndarray
    context: int
    names: tuple[str, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def past(self) -> np.ndarray:
        """The given frames, uint8 [K, context, H, W, 3]."""
        return self.frames[:, : self.context]

    @property
    def future(self) -> np.ndarray:
        """The true frames to imagine, uint8 [K, horizon, H, W, 3]."""
        return self.frames[:, self.context :]

    @property
    def told(self) -> np.ndarray:
        """Key masks of the actions that lead to the future frames, uint16 [K, horizon]."""
        return self.keys[:, self.context - 1 :]

    def take(self, chosen: Sequence[int]) -> "Clips":
        """Return some of the clips, by index."""
        rows = list(chosen)
        return Clips(
            self.frames[rows],
            self.keys[rows],
            self.moves[rows],
            self.context,
            tuple(self.names[i] for i in rows),
            tuple(self.starts[i] for i in rows),
        )

    def actions(self, table: ActionTable, row: int) -> list[Action]:
        """Return all context-1+horizon actions of one clip."""
        return [
            table.from_mask(int(mask)) if mask else Action((), *(float(v) for v in move))
            for mask, move in zip(self.keys[row], self.moves[row], strict=True)
        ]

    def plans(self, table: ActionTable) -> list[Plan]:
        """Return the true actions that lead to the future frames, per clip."""
        return [self.actions(table, row)[self.context - 1 :] for row in range(len(self))]


def sample_clips(
    store: EpisodeStore, split: str, count: int, context: int, horizon: int, seed: int = 0
) -> Clips:
    """Return up to `count` clips that do not overlap, spread over as many episodes as can be.

    Raises:
        UserError: the store lacks the split, or its episodes are too short.
    """
    ids = list(store.select(split))
    if not ids:
        there = ", ".join(s for s in ("train", "val", "test") if store.select(s)) or "none"
        raise UserError(
            f"The store has no episodes of split '{split}' (it has: {there}). "
            f"Collect some: worldmodel collect out=STORE split={split}, or choose split=…"
        )
    window, rng = context + horizon, np.random.default_rng(seed)
    places = []
    for order, i in enumerate(rng.permutation(len(ids))):
        spare = store.lengths[ids[i]] + 1 - window
        if spare >= 0:
            first = int(rng.integers(min(spare, window - 1) + 1))
            starts = range(first, spare + 1, window)
            places += [(turn, order, ids[i], start) for turn, start in enumerate(starts)]
    if not places:
        raise UserError(
            f"No episode of split '{split}' has the {window} frames that context={context} and "
            f"horizon={horizon} need. Ask for a shorter horizon, or collect longer episodes."
        )
    chosen = [(name, start) for _, _, name, start in sorted(places)[:count]]
    frames = [store.frames(name, start, start + window) for name, start in chosen]
    arrays = [store.arrays(name) for name, _ in chosen]
    spans = [slice(start, start + window - 1) for _, start in chosen]
    return Clips(
        np.stack(frames),
        np.stack([a["keys"][span] for a, span in zip(arrays, spans, strict=True)]),
        np.stack([a["actions"][span] for a, span in zip(arrays, spans, strict=True)]),
        context,
        tuple(name for name, _ in chosen),
        tuple(start for _, start in chosen),
    )


def several_clips(
    store: EpisodeStore, config: EvalConfig, count: int, horizon: int, why: str
) -> Clips:
    """As `sample_clips` with the config's split, context and seed; at least 2 clips.

    Raises:
        UserError: as there, or only one clip; `why` says what needs more, and what to do.
    """
    clips = sample_clips(store, config.split, count, config.context, horizon, config.seed)
    if len(clips) < 2:
        raise UserError(
            f"Split '{config.split}' gives only one clip of {config.context + horizon} "
            f"frames; {why}"
        )
    return clips


def imagine(
    dream: Imagination,
    clips: Clips,
    plans: Sequence[Plan],
    seed: int = 0,
    batch: int = 16,
    say: str | None = None,
    title: str = "imagining",
) -> np.ndarray:
    """Imagine the plan of each clip from its given frames.

    Clip i has the noise of seed + i, whatever its plan: two calls with other plans differ by
    the actions alone.

    Args:
        dream: the model.
        clips: K starting points.
        plans: K plans of the same length T.
        seed: of the noise.
        batch: rollouts at once, where the model can.
        say: instruction to give at the start.
        title: for the progress bar.

    Returns:
        uint8 [K, T, H, W, 3].
    """
    steps, table = len(plans[0]), dream.spec.actions
    out = np.empty((len(clips), steps, *clips.frames.shape[2:]), np.uint8)
    bar = tqdm(total=out.shape[0] * steps, desc=title, unit="frame", leave=False)
    model = dream if isinstance(dream, Guest) else Stepwise(dream, say, bar.update)
    for first in range(0, len(clips), batch):
        rows = range(first, min(first + batch, len(clips)))
        told = [[*clips.actions(table, i)[: clips.context - 1], *plans[i]] for i in rows]
        seeds = [seed + i for i in rows]
        out[list(rows)] = model.imagine(clips.past[list(rows)], told, steps, seeds)
        bar.update(rows.stop * steps - bar.n)  # of a model that tells only when it is done
    bar.close()
    if say:
        dream.say(None)
    return out


def encode(encoder: FrameEncoder, frames: np.ndarray, batch: int = 128) -> np.ndarray:
    """Return the latents float32 [..., N, C] of frames uint8 [..., H, W, 3]."""
    flat = torch.from_numpy(np.ascontiguousarray(frames.reshape(-1, *frames.shape[-3:])))
    parts = [encoder.encode(part).float().cpu().numpy() for part in flat.split(batch)]
    latents = np.concatenate(parts)
    return latents.reshape(*frames.shape[:-3], *latents.shape[1:])


def reconstruct(encoder: FrameEncoder, frames: np.ndarray, batch: int = 128) -> np.ndarray:
    """Return frames uint8 [..., H, W, 3] encoded and decoded: the best a model could show."""
    flat = torch.from_numpy(np.ascontiguousarray(frames.reshape(-1, *frames.shape[-3:])))
    parts = [encoder.decode(encoder.encode(part)).cpu().numpy() for part in flat.split(batch)]
    return np.concatenate(parts).reshape(frames.shape)
