"""How far an imagined frame can be trusted, measured against real frames. No pygame here.

Three figures, each of which real frames have as well:

- round trip: the frame as it is shown is encoded again; the distance of that latent to the one
  that the model imagined. A latent that the encoder could not have given does not come back.
- instability: the distance of what the last two denoising passes predict.
- drift: how far the channels of the last frames' latents are from those of real frames.

What is usual for real frames is measured on the checkpoint's start contexts. The figures say how
unlike real frames an imagined one is, and not whether the world would have gone on like that.
"""

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from worldmodel.evaluate.metrics import encoder_distance
from worldmodel.stream import Engine, Stream
from worldmodel.viewer.reading import FLOOR, Level, Reading

EVERY = 4
"""Frames from one reading to the next: encoding takes about a tenth of a step (docs/viewer.md)."""

WINDOW = 16
"""Frames that drift looks back on."""

STARTS = 8
"""Most start contexts that real frames are taken from."""


Settings = tuple[int, float]
"""Denoising steps and guidance, on which instability depends."""


class Gauge:
    """Measures the imagined frames of an engine.

    What is usual for real frames is measured in small pieces of work, which whoever plays does
    when there is time; frames are read once they are done.

    Args:
        engine: whose frames are measured.
        like: a gauge of the same model that has done this work already, and shares it.
    """

    def __init__(self, engine: Engine, like: "Gauge | None" = None) -> None:
        checkpoint = engine.checkpoint
        self._engine = engine
        count = len(checkpoint.start_frames)
        picks = np.linspace(0, count - 1, min(count, STARTS)).round().astype(int)
        self._keys = checkpoint.start_keys[picks]
        self._frames = checkpoint.start_frames[picks]  # [S, n, H, W, 3]
        self._latents: dict[tuple[int, int], torch.Tensor] = {}  # [1, N, C] by start and number
        self._trips: list[float] = []
        self._unrest: list[float] = []
        self._streams = [Stream() for _ in picks]  # the real frames but the last of each start
        self._levels: dict[Settings, Level | None] = {}
        self._recent: deque[torch.Tensor] = deque(maxlen=WINDOW)
        self._since = 0
        self._last: deque[torch.Tensor] = deque(maxlen=2)  # predictions
        self._begun_s = self._passed_s = 0.0
        engine.watch = self._pass
        starts, frames = self._frames.shape[:2]
        self._todo: deque[partial[None]] = deque(
            [partial(self._look, s, f) for s in range(starts) for f in range(frames)]
            + [partial(self._settle)]
            + [partial(self._tell, s, f) for s in range(starts) for f in range(frames - 1)]
        )
        if like:
            self._todo.clear()
            self._streams, self._levels = like._streams, like._levels
            self.round_trip, self.drift, self._real = like.round_trip, like.drift, like._real

    def pending(self, settings: Settings) -> str:
        """Return what kind of work comes next before frames can be read; empty for none."""
        if not self._todo and settings not in self._levels:
            starts, frames = self._frames.shape[:2]
            self._unrest = []
            if frames < 2 or settings[0] < 2:
                self._levels[settings] = None  # a single pass, or nothing to go on from
            else:
                self._todo.extend(partial(self._imagine, s, settings) for s in range(starts))
        return self._todo[0].func.__name__ if self._todo else ""

    def work(self) -> None:
        """Do the next piece of work."""
        self._last.clear()
        self._todo.popleft()()
        self._last.clear()

    def begin(self) -> None:
        """Get ready for a step."""
        self._last.clear()
        self._begun_s = self._passed_s = time.perf_counter()

    @property
    def denoise_ms(self) -> float | None:
        """Time from `begin` to the end of the last pass; None where passes go on by themselves."""
        if self._engine.device.type != "cpu":
            return None
        return (self._passed_s - self._begun_s) * 1e3 or None

    def forget(self) -> None:
        """Begin anew, for instance after a jump: what was recent is no longer the past."""
        self._recent.clear()
        self._since = 0

    def read(self, dream: Any) -> Reading | None:
        """Take note of the frame that `dream` has just imagined, and measure every fourth."""
        latent = dream.latent.unsqueeze(0).float()
        self._recent.append(_moments(self._engine.core.split(latent))[0])
        settings = dream.denoise_steps, dream.guidance
        if self.pending(settings):
            return None
        self._since += 1
        if self._since % EVERY != 1:
            return None
        level, unrest = self._levels[settings], self._apart()
        round_trip = self._back(latent, dream.frame[None])
        score = self.round_trip.above(round_trip)
        if unrest is not None and level:
            score = max(score, level.above(unrest))
        drift = _apart(torch.stack(tuple(self._recent)).mean(0), self._real) / self.drift
        return Reading(round_trip, unrest, score, drift)

    def _pass(self, drawn: torch.Tensor) -> None:
        """Take note of what a denoising pass predicts."""
        self._last.append(drawn)
        self._passed_s = time.perf_counter()

    def close(self) -> None:
        """Let go of the engine."""
        self._engine.watch = None

    def _apart(self) -> float | None:
        """Return the distance of the last two predictions; None where one pass ran.

        Those with the words count, which come first in the batch.
        """
        if len(self._last) < 2:
            return None
        a, b = (_numpy(self._engine.core.split(x[:1].float())) for x in self._last)
        return float(encoder_distance(a, b)[0])

    def _back(self, latent: torch.Tensor, frame: np.ndarray) -> float:
        """Distance of a latent [1, N, C] of the core to the one that its frame [1, H, W, 3] has."""
        core = self._engine.core
        again, imagined = core.split(self._engine.see(frame)), core.split(latent.float())
        return float(encoder_distance(_numpy(imagined), _numpy(again))[0])

    # The pieces of work.

    def _look(self, start: int, number: int) -> None:
        """See a real frame, and how it comes back."""
        latent = self._engine.see(self._frames[start, number][None])
        self._latents[start, number] = latent
        self._trips.append(self._back(latent, self._engine.show(latent)))

    def _settle(self) -> None:
        """Say what is usual for the real frames."""
        self.round_trip = Level.of(self._trips)
        starts, frames = self._frames.shape[:2]
        latents = torch.cat([self._latents[s, f] for s in range(starts) for f in range(frames)])
        clips = _moments(self._engine.core.split(latents)).unflatten(0, (starts, frames)).mean(1)
        self._real = clips.mean(0)  # [2, C]
        others = [torch.cat([clips[:i], clips[i + 1 :]]).mean(0) for i in range(starts)]
        apart = [_apart(clip, rest) for clip, rest in zip(clips, others, strict=True) if starts > 1]
        self.drift = max(float(np.median(apart)) if apart else 0.0, FLOOR)
        """Distance of a real clip from the other real clips."""

    def _tell(self, start: int, number: int) -> None:
        """Give a real frame to the model, and what was done before it."""
        latent = self._latents[start, number]
        self._streams[start] = self._follow(start, number, given=latent)

    def _imagine(self, start: int, settings: Settings) -> None:
        """Imagine the last frame of a start from the real ones before it."""
        last = self._frames.shape[1] - 1
        steps, guidance = settings
        self._follow(start, last, denoise_steps=steps, guidance=[guidance])
        unrest = self._apart()
        assert unrest is not None
        self._unrest.append(unrest)
        if len(self._unrest) == len(self._streams):
            self._levels[settings] = Level.of(self._unrest)

    def _follow(self, start: int, number: int, **how: Any) -> Stream:
        table, tokenizer = self._engine.checkpoint.spec.actions, self._engine.checkpoint.tokenizer
        told: Sequence[int] = []
        if number:
            action = table.from_mask(int(self._keys[start, number - 1]))
            told = tokenizer.encode(table.text(action))
        noise = self._engine.noise(0, start, 0)
        return self._engine.follow([self._streams[start]], [told], noise, **how)[0]


def _moments(latents: torch.Tensor) -> torch.Tensor:
    """Means and mean squares [F, 2, C] of the channels of latents [F, N, C]."""
    return torch.stack([latents.float().mean(1), latents.float().square().mean(1)], dim=1)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Distance of two sets of latents by their moments [2, C].

    The Frechet distance of normal distributions with independent channels, by channel.
    """
    (mean_a, std_a), (mean_b, std_b) = (
        (m[0], (m[1] - m[0].square()).clamp(min=0).sqrt()) for m in (a, b)
    )
    return float(((mean_a - mean_b).square() + (std_a - std_b).square()).mean())


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.cpu().numpy()
