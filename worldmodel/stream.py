"""Streams: the state of rollouts, and the engine that follows them on a cache.

A `Stream` is an immutable list of segments, each holding the keys and values of the tokens
that it added. A stream is never changed, only followed by a new one, so forking is sharing,
rewinding is going back to an earlier stream, and several rollouts run as one batch. The
incremental path equals the full forward (`tests/test_dream.py`).

One step: the action's text and `<boi>` go in together with noise; the frame is denoised in a
few passes that leave no trace, and brought to where the encoder's latents are, against drift;
then the finished frame and `<eoi>` go in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from worldmodel.checkpoint import Checkpoint
from worldmodel.flow import Predict, mix, sample
from worldmodel.sequence import FOREVER
from worldmodel.text import BOI, BOS, EOI
from worldmodel.transformer import KVCache


@dataclass(frozen=True)
class Segment:
    """Keys and values [depth, 2, kv_heads, tokens, head] of consecutive tokens of a stream.

    Attributes:
        expire: the first step that no longer sees them. instruction: whether they are one.
    """

    kv: torch.Tensor
    expire: int
    instruction: bool = False


@dataclass(frozen=True)
class Stream:
    """A rollout at one moment.

    Attributes:
        segments: what the next step can still see.
        step: frames so far. time: rotary position of the next token.
        latent: [N, C] the last frame in the core's grid; None before the first.
        shown: [N, C] the same as the core was shown it, slightly noised.
        pending: instruction tokens that go in with the next step.
        frame: uint8 [H, W, 3], the last frame as shown.
        text: exact text that led to it.
    """

    segments: tuple[Segment, ...] = ()
    step: int = 0
    time: int = 0
    latent: torch.Tensor | None = None
    shown: torch.Tensor | None = None
    pending: tuple[int, ...] = ()
    instruction: str = ""
    frame: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 3), np.uint8))
    text: str = ""


class Engine:
    """The model on its device, stepping streams. Shared by all forks of a Dream."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.device, self.dtype = device, dtype
        self.core = checkpoint.core.to(device, dtype)
        self.encoder = checkpoint.encoder.to(device)
        config = checkpoint.core.config
        self.window = config.window
        rows, columns = config.grid
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        self.cells = cells.view(-1, 2).to(device)  # row and column of each frame token

    @torch.inference_mode()
    def see(self, frames: np.ndarray) -> torch.Tensor:
        """Frames uint8 [F, H, W, 3] to latents [F, N, C] in the core's grid."""
        latents = self.encoder.encode(torch.from_numpy(frames))
        return self.core.merge(latents.float())

    @torch.inference_mode()
    def show(self, latents: torch.Tensor) -> np.ndarray:
        """Latents [F, N, C] in the core's grid to frames uint8 [F, H, W, 3]."""
        return self.encoder.decode(self.core.split(latents.float())).cpu().numpy()

    @torch.inference_mode()
    def follow(
        self,
        streams: Sequence[Stream],
        texts: Sequence[Sequence[int]],
        noise: torch.Tensor,
        given: torch.Tensor | None = None,
        denoise_steps: int = 2,
        guidance: Sequence[float] = (),
    ) -> list[Stream]:
        """Add one frame to each of B streams: imagine it, or take it from `given`.

        Args:
            streams: where to go on from.
            texts: action tokens of each; may be empty.
            noise: [2, B, N, C]: to denoise from, and to show the finished frame with.
            given: [B, N, C] frames to take instead of imagining.
            denoise_steps: network passes a frame.
            guidance: of each stream, 1 or nothing for none; w > 1 moves w times as far from the
                prediction without action text and instruction as the prediction with them is.
        """
        bos = [() if s.step else (BOS,) for s in streams]
        words = [
            [*b, *s.pending, *text, BOI] for b, s, text in zip(bos, streams, texts, strict=True)
        ]
        weights = {i: w for i, w in enumerate(guidance) if w != 1.0 and given is None}
        # Guided streams come once more without words, in the same batch.
        rows = [*streams, *(_unled(streams[i]) for i in weights)]
        passes = Pass(self, rows, [*words, *([*bos[i], BOI] for i in weights)])
        if given is None:
            predict = _guided(passes.predict, weights) if weights else passes.predict
            drawn = sample(predict, noise[0], denoise_steps, self.core.config.strides)
            given = self.core.merge(self.encoder.project(self.core.split(drawn)))
        passes.keep(len(streams))
        kept, shown = passes.commit(given, noise[1])
        followed = []
        for i, stream in enumerate(streams):
            extra = self._segments(stream, kept[i], len(bos[i]))
            step = stream.step + 1
            alive = tuple(s for s in (*stream.segments, *extra) if s.expire > step)
            followed.append(
                replace(
                    stream,
                    segments=alive,
                    step=step,
                    time=stream.time + len(words[i]) + 2,
                    latent=given[i],
                    shown=shown[i],
                    pending=(),
                )
            )
        return followed

    def _segments(self, stream: Stream, kv: torch.Tensor, bos: int) -> list[Segment]:
        """Cut a step's keys and values into what is kept, what is an instruction, the rest."""
        told = len(stream.pending)
        parts = kv.split([bos, told, kv.shape[3] - bos - told], dim=3)
        found = [
            Segment(parts[0], FOREVER),
            Segment(parts[1], FOREVER, instruction=True),
            Segment(parts[2], stream.step + self.window + 1),
        ]
        return [s for s in found if s.kv.shape[3]]


class Pass:
    """The passes of one step over a batch of streams.

    The first pass carries the words (padded to one length) and the frame, later ones the frame
    alone; words stay in the cache, frames are committed by `commit`.
    """

    def __init__(
        self, engine: Engine, streams: Sequence[Stream], words: Sequence[Sequence[int]]
    ) -> None:
        self.engine = engine
        core, config, device = engine.core, engine.core.config, engine.device
        self.rows, self.frame_tokens = len(streams), config.frame_tokens
        self.lengths = [len(w) for w in words]
        self.pad = max(self.lengths)
        past = [sum(s.kv.shape[3] for s in stream.segments) for stream in streams]
        self.past = max(past)
        capacity = self.past + self.pad + self.frame_tokens + 1
        self.cache = KVCache(config, self.rows, capacity, device, engine.dtype)
        for i, stream in enumerate(streams):
            if stream.segments:
                joined = torch.cat([s.kv for s in stream.segments], dim=3)
                self.cache.data[:, :, i, :, : past[i]] = joined
        self.cache.length = self.past
        # Which of the cached places, words and frame tokens are real, row by row.
        real = torch.zeros(self.rows, capacity, dtype=torch.bool)
        ids = torch.zeros(self.rows, self.pad, dtype=torch.int64)
        for i, row in enumerate(words):
            real[i, : past[i]] = True
            real[i, self.past : self.past + len(row)] = True
            ids[i, : len(row)] = torch.tensor(row)
        real[:, self.past + self.pad :] = True
        self.real, self.ids = real.to(device), ids.to(device)
        time = torch.tensor([s.time for s in streams], device=device).unsqueeze(1)
        step = torch.tensor([s.step for s in streams], device=device).unsqueeze(1)
        at = time + torch.tensor(self.lengths, device=device).unsqueeze(1)
        self.word_position = _positions(time + torch.arange(self.pad, device=device), step)
        self.frame_position = _positions(at.expand(-1, self.frame_tokens), step, engine.cells)
        self.end_position = _positions(at + 1, step)
        self.embedded = core.embed(self.ids)
        nothing = torch.zeros(config.frame_tokens, config.channels, device=device)
        before = [nothing if s.shown is None else s.shown for s in streams]
        self.before = torch.stack(before).to(engine.dtype)
        self.words_in = False

    def predict(self, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
        """Predicted clean latents [B, N, C] of noised ones; leaves no trace of the frame."""
        return self._run(z, t, stride, end=False).float()

    def keep(self, rows: int) -> None:
        """Go on with the first `rows` rows alone."""
        self.rows, self.lengths = rows, self.lengths[:rows]
        self.cache.data = self.cache.data[:, :, :rows]
        self.real, self.before, self.embedded = (
            part[:rows] for part in (self.real, self.before, self.embedded)
        )
        self.word_position, self.frame_position, self.end_position = (
            part[:rows] for part in (self.word_position, self.frame_position, self.end_position)
        )

    def commit(
        self, latents: torch.Tensor, noise: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Put the finished frame and `<eoi>` in.

        Returns each row's new keys and values, and the frames [B, N, C] as they were shown.
        """
        level = torch.full((self.rows,), self.engine.checkpoint.context_level, device=noise.device)
        stride = torch.full_like(level, self.engine.core.config.strides - 1, dtype=torch.int64)
        shown = mix(latents, noise, level)
        self._run(shown, level, stride, end=True)
        first, stop = self.past, self.past + self.pad + self.frame_tokens + 1
        kept = []
        for i, words in enumerate(self.lengths):
            index = [*range(first, first + words), *range(first + self.pad, stop)]
            kept.append(self.cache.data[:, :, i][:, :, :, index].clone())
        return kept, shown

    def _run(
        self, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor, end: bool
    ) -> torch.Tensor:
        core, n = self.engine.core, self.frame_tokens
        x = core.embed_frames(z.to(self.engine.dtype), t, stride, self.before)
        parts, positions, vision = [x], [self.frame_position], [torch.ones(n, dtype=torch.bool)]
        before = 0 if self.words_in else self.pad
        if before:
            parts.insert(0, self.embedded)
            positions.insert(0, self.word_position)
            vision.insert(0, torch.zeros(before, dtype=torch.bool))
        if end:
            eoi = torch.full((self.rows, 1), EOI, device=x.device)
            parts.append(core.embed(eoi))
            positions.append(self.end_position)
            vision.append(torch.zeros(1, dtype=torch.bool))
        tokens = before + n + end
        keys = self.cache.length + tokens
        mask = self.real[:, None, :keys].expand(-1, tokens, -1).clone()
        if before:  # words are causal and do not see the frame
            words = torch.ones(before, tokens, dtype=torch.bool, device=x.device).tril()
            mask[:, :before, self.cache.length :] &= words
            # a padded word sees itself, so that no row of the attention is empty
            own = torch.eye(before, dtype=torch.bool, device=x.device)
            mask[:, :before, self.cache.length : self.cache.length + before] |= own
        if end:  # the frame does not see what ends it
            mask[:, before : before + n, -1] = False
        hidden = core(
            torch.cat(parts, dim=1),
            torch.cat(vision).to(x.device).expand(self.rows, -1),
            torch.cat(positions, dim=1),
            mask,
            self.cache,
        )
        if before:
            self.cache.commit(before)
            self.words_in = True
        return core.draw(hidden[:, before : before + n], self.before)


def _positions(
    time: torch.Tensor, step: torch.Tensor, cells: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotary positions [B, L, 4] from times [B, L], steps [B, 1] and cells [L, 2] of a frame."""
    rows, tokens = time.shape
    cells = time.new_zeros(tokens, 2) if cells is None else cells
    return torch.cat(
        [
            torch.stack([time, step.expand(-1, tokens)], dim=-1),
            cells.expand(rows, -1, -1),
        ],
        dim=-1,
    )


def _guided(run: Predict, weights: Mapping[int, float]) -> Predict:
    """Move some rows' predictions, by row `weight` times as far from those without words.

    `run` predicts a batch of all rows with words, then the chosen rows once more without.
    """
    chosen = list(weights)

    def predict(z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
        found = run(*(torch.cat([x, x[chosen]]) for x in (z, t, stride)))
        led, free = found[: len(z)], found[len(z) :]
        weight = torch.tensor(list(weights.values()), device=z.device).view(-1, 1, 1)
        return led.index_copy(
            0, torch.tensor(chosen, device=z.device), free + weight * (led[chosen] - free)
        )

    return predict


def _unled(stream: Stream) -> Stream:
    """The stream without its instruction, for guidance."""
    kept = tuple(s for s in stream.segments if not s.instruction)
    return replace(stream, segments=kept, pending=())
