"""How far an imagined frame can be trusted, measured against real frames. No pygame here.

Three figures, each of which real frames have as well:

- round trip: the frame as it is shown is encoded again; the distance of that latent to the one
  that the model imagined. A latent that the encoder could not have given does not come back.
- instability: the distance of what the last two denoising passes predict.
- drift: how far the channels of the last frames' latents are from those of real frames.

What is usual for real frames is measured on the checkpoint's start contexts. The figures say how
unlike real frames an imagined one is, and not whether the world would have gone on like that.
"""

from collections import deque
from collections.abc import Sequence
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


class Passes:
    """Keeps what a core predicted in its last two denoising passes, and changes nothing."""

    def __init__(self, core: Any) -> None:
        self._core, draw = core, core.draw
        self._last: deque[torch.Tensor] = deque(maxlen=2)

        def watched(*given: torch.Tensor) -> torch.Tensor:
            found = draw(*given)
            self._last.append(found)
            return found

        core.draw = watched  # a method and no module, which would have hooks

    def forget(self) -> None:
        """Begin with a new step."""
        self._last.clear()

    def apart(self, rows: int) -> np.ndarray | None:
        """Return the distances [rows] of the two in the first rows; None where one pass ran."""
        if len(self._last) < 2:
            return None
        a, b = (_numpy(self._core.split(x[:rows].float())) for x in self._last)
        return encoder_distance(a, b)

    def close(self) -> None:
        """Let go of the core."""
        del self._core.draw


class Gauge:
    """Measures the imagined frames of an engine; made once its checkpoint is loaded.

    Making it measures real frames, `calibrate` how the model goes on from them.
    """

    def __init__(self, engine: Engine) -> None:
        checkpoint = engine.checkpoint
        self._engine = engine
        count = len(checkpoint.start_frames)
        picks = np.linspace(0, count - 1, min(count, STARTS)).round().astype(int)
        self._keys = checkpoint.start_keys[picks]
        frames = checkpoint.start_frames[picks]
        self._latents = engine.see(frames.reshape(-1, *frames.shape[2:]))
        shown = engine.show(self._latents)
        self.round_trip = Level.of(self._back(self._latents, shown))
        self._latents = self._latents.unflatten(0, frames.shape[:2])  # [S, n, N, C]
        clips = _moments(engine.core.split(self._latents.flatten(0, 1))).unflatten(
            0, frames.shape[:2]
        )
        clips = clips.mean(1)  # [S, 2, C]
        self._real = clips.mean(0)
        others = [torch.cat([clips[:i], clips[i + 1 :]]).mean(0) for i in range(len(clips))]
        apart = [_apart(clip, rest) for clip, rest in zip(clips, others, strict=True) if count > 1]
        self.drift = max(float(np.median(apart)) if apart else 0.0, FLOOR)
        """Distance of a real clip from the other real clips."""
        self._recent: deque[torch.Tensor] = deque(maxlen=WINDOW)
        self._levels: dict[tuple[int, float], Level | None] = {}
        self._since = 0
        self.passes = Passes(engine.core)

    def calibrate(self, denoise_steps: int, guidance: float) -> Level | None:
        """Return the instability of the first frame that is imagined after real ones.

        None where a frame is a single pass, or start contexts are single frames.
        """
        settings = denoise_steps, guidance
        if settings not in self._levels:
            self._levels[settings] = self._follow_real(denoise_steps, guidance)
        return self._levels[settings]

    def forget(self) -> None:
        """Begin anew, for instance after a jump: what was recent is no longer the past."""
        self._recent.clear()
        self._since = 0

    def read(self, dream: Any) -> Reading | None:
        """Take note of the frame that `dream` has just imagined, and measure every fourth."""
        latent = dream._stream.latent.unsqueeze(0).float()  # frames are all that a World shows
        self._recent.append(_moments(self._engine.core.split(latent))[0])
        self._since += 1
        if self._since % EVERY != 1:
            return None
        unrest = self.passes.apart(1)
        level = self.calibrate(dream.denoise_steps, dream.guidance) if unrest is not None else None
        round_trip = float(self._back(latent, dream.frame[None])[0])
        score = self.round_trip.above(round_trip)
        instability = None if unrest is None else float(unrest[0])
        if instability is not None and level:
            score = max(score, level.above(instability))
        drift = _apart(torch.stack(tuple(self._recent)).mean(0), self._real) / self.drift
        return Reading(round_trip, instability, score, drift)

    def close(self) -> None:
        """Let go of the engine."""
        self.passes.close()

    def _back(self, latents: torch.Tensor, frames: np.ndarray) -> np.ndarray:
        """Distances [F] of latents [F, N, C] of the core to those that their frames have."""
        encoder, core = self._engine.encoder, self._engine.core
        again = encoder.encode(torch.from_numpy(frames))
        return encoder_distance(_numpy(core.split(latents.float())), _numpy(again.float()))

    def _follow_real(self, denoise_steps: int, guidance: float) -> Level | None:
        """Imagine the last frame of each start context from the real ones before it."""
        engine, (starts, frames) = self._engine, self._latents.shape[:2]
        if frames < 2 or denoise_steps < 2:
            return None
        table, tokenizer = engine.checkpoint.spec.actions, engine.checkpoint.tokenizer
        texts = [[table.text(table.from_mask(int(mask))) for mask in row] for row in self._keys]
        streams = [Stream() for _ in range(starts)]
        told: list[Sequence[int]] = [[] for _ in range(starts)]
        noise = torch.cat([engine.noise(0, i, 0) for i in range(starts)], dim=1)
        for i in range(frames - 1):
            streams = engine.follow(streams, told, noise, given=self._latents[:, i])
            told = [tokenizer.encode(row[i]) for row in texts]
        self.passes.forget()
        engine.follow(
            streams, told, noise, denoise_steps=denoise_steps, guidance=[guidance] * starts
        )
        apart = self.passes.apart(starts)
        return None if apart is None else Level.of(apart)


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
