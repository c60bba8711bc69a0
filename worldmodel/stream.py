"""Streams: the state of rollouts, and the engine that follows them on a cache.

A `Stream` is an immutable list of segments, each holding the keys and values of the tokens
that it added. A stream is never changed, only followed by a new one, so forking is sharing,
rewinding is going back to an earlier stream, and several rollouts run as one batch. The
incremental path equals the full forward (`tests/test_dream.py`).

One step: the action's text and `<boi>` go in together with noise; the frame is denoised in a
few passes that leave no trace, and brought to where the encoder's latents are, against drift.
The finished frame and `<eoi>` are owed to the next step, and go in with its first pass
(`worldmodel.passes`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from worldmodel.checkpoint import Checkpoint
from worldmodel.flow import Predict, mix, sample
from worldmodel.graphs import Graphs
from worldmodel.packed import can_pack, drawing, packed
from worldmodel.passes import Layout, Pass, forward, words_of
from worldmodel.sequence import FOREVER, Text
from worldmodel.text import BOI, BOS
from worldmodel.transformer import Core, KVCache

STILL = 1e-3
"""Cosine distance of a latent to its last value below which it stands still, when nobody moves.
Of doom-nano's predictions then 95 % are below 2e-4; under a key 95 % are above (docs/viewer.md)."""


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
        segments: what the last frame and the next step can still see.
        step: frames so far. time: rotary position of the next token.
        latent: [N, C] the last frame in the core's grid; None before the first.
        shown: [N, C] the same as the core is shown it, slightly noised. behind: the one before.
        owed: whether the last frame and its `<eoi>` have yet to go in, with the next pass.
        hidden: [D] what the core made of the last token, from which the next one is said; None
            before that went in.
        pending: words that go in with the next frame.
        frame: uint8 [H, W, 3], the last frame as shown.
        text: exact text that led to it.
    """

    segments: tuple[Segment, ...] = ()
    step: int = 0
    time: int = 0
    latent: torch.Tensor | None = None
    shown: torch.Tensor | None = None
    behind: torch.Tensor | None = None
    owed: bool = False
    hidden: torch.Tensor | None = None
    pending: tuple[Text, ...] = ()
    instruction: str = ""
    frame: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 3), np.uint8))
    text: str = ""

    @property
    def unread(self) -> list[Text]:
        """The words that go in next, with `<bos>` where nothing is in yet."""
        return [*([] if self.time else [Text((BOS,))]), *self.pending]

    def told(self, words: Text) -> "Stream":
        """The stream with words for the next frame; an instruction replaces the last one."""
        stream = self.untold() if words.role == "instruction" else self
        return replace(stream, pending=(*stream.pending, words))

    def untold(self) -> "Stream":
        """The stream without its instruction."""
        return replace(
            self,
            segments=tuple(
                replace(s, expire=min(s.expire, self.step)) if s.instruction else s
                for s in self.segments
            ),
            pending=tuple(words for words in self.pending if words.role != "instruction"),
        )


class Engine:
    """The model on its device, stepping streams. Shared by all forks of a Dream.

    Attributes:
        watch: called with what each denoising pass predicts: clean latents [B, N, C] of the
            streams, and after those the ones that guidance imagines without words, if it does.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.device, self.dtype = device, dtype
        self.watch: Callable[[torch.Tensor], object] | None = None
        self.core = checkpoint.core.to(device, dtype)
        fast = can_pack(device)
        self.run = packed(self.core) if fast else self.core
        self.encoder = checkpoint.encoder.to(device)
        self._painter = drawing(self.encoder, dtype) if fast else self.encoder
        config = checkpoint.core.config
        self.window = config.window
        self.level = checkpoint.context_level  # of frames as they are shown
        rows, columns = config.grid
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        self.cells = cells.view(-1, 2)  # row and column of each frame token
        self.graphs = Graphs(forward, self.core) if device.type == "cuda" else None
        # Words and past of a pass are filled up to multiples of these, so that few shapes occur.
        self.words_by, self.past_by = (8, 64) if self.graphs else (1, 1)

    def compute(self, cache: KVCache, layout: Layout, *inputs: torch.Tensor) -> torch.Tensor:
        """Run one pass, see `worldmodel.passes.forward`."""
        if self.graphs and layout.frames:  # what is only read may be read in another thread
            return self.graphs(cache, layout, *inputs)
        return forward(self.run, cache, layout, *inputs)

    def noise(self, *numbers: int) -> torch.Tensor:
        """Noise [2, 1, N, C] for one frame, a function of some numbers >= 0 alone."""
        config = self.core.config
        shape = (2, 1, config.frame_tokens, config.channels)
        return torch.randn(shape, generator=generator(*numbers)).to(self.device)

    @torch.inference_mode()
    def see(self, frames: np.ndarray) -> torch.Tensor:
        """Frames uint8 [F, H, W, 3] to latents [F, N, C] in the core's grid."""
        latents = self.encoder.encode(torch.from_numpy(frames))
        return self.core.merge(latents.float())

    @torch.inference_mode()
    def show(self, latents: torch.Tensor) -> np.ndarray:
        """Latents [F, N, C] in the core's grid to frames uint8 [F, H, W, 3]."""
        return self._painter.decode(self.core.split(latents.float())).cpu().numpy()

    @torch.inference_mode()
    def follow(
        self,
        streams: Sequence[Stream],
        texts: Sequence[Sequence[int]],
        noise: torch.Tensor,
        given: torch.Tensor | None = None,
        denoise_steps: int = 2,
        guidance: Sequence[float] = (),
        shift: float = 1.0,
        still: Sequence[bool] = (),
    ) -> list[Stream]:
        """Add one frame to each of B streams: imagine it, or take it from `given`.

        Args:
            streams: where to go on from.
            texts: action tokens of each; may be empty.
            noise: [2, B, N, C]: to denoise from, and to show the finished frame with.
            given: [B, N, C] frames to take instead of imagining.
            denoise_steps: network passes a frame.
            guidance: of each stream, 1 or nothing for none; w > 1 moves w times as far from the
                prediction without the words that go in now, and without the instruction, as the
                prediction with them is. In the first half of the passes, where the frame is
                decided: in the others it changes little (Kynkäänniemi et al. 2024,
                arXiv 2404.07724; docs/experiments.md).
            shift: of the denoising steps towards noise, see `worldmodel.flow.sample`.
            still: of each stream, whether nobody moves in this step; see `_settled`.
        """
        spans = [
            [*s.unread, Text((*text, BOI), "action")]
            for s, text in zip(streams, texts, strict=True)
        ]
        words = [words_of(row) for row in spans]
        guided = given is None and any(w != 1 for w in guidance)
        bare = [[*(BOS for _ in range(not s.time)), BOI] for s in streams] if guided else []
        passes = Pass(self, streams, words, bare)
        if given is None:
            predict = passes.predict
            if guided:
                predict = _guided(passes, guidance, (denoise_steps + 1) // 2)
            drawn = sample(predict, noise[0], denoise_steps, self.core.config.strides, shift)
            given = self.core.merge(self.encoder.project(self.core.split(drawn)))
            for i in (i for i, rests in enumerate(still) if rests):
                given[i] = _settled(self.core, given[i], streams[i].latent)
        else:
            passes.read()
        shown = mix(given, noise[1], torch.full_like(noise[1, :, 0, 0], self.level))
        followed = []
        for i, stream in enumerate(streams):
            owed, told = passes.kept(i)
            segments = (*self._paid(stream, owed), *self._segments(stream, told, spans[i]))
            step = stream.step + 1
            followed.append(
                replace(
                    stream,
                    segments=tuple(s for s in segments if s.expire >= step),
                    step=step,
                    time=stream.time + len(words[i]) + 2,
                    latent=given[i],
                    shown=shown[i],
                    behind=stream.shown,
                    owed=True,
                    hidden=None,
                    pending=(),
                )
            )
        return followed

    @torch.inference_mode()
    def settle(self, streams: Sequence[Stream]) -> list[Stream]:
        """The streams with their last frames read, where those are still owed."""
        if not any(s.owed for s in streams):
            return list(streams)
        passes = Pass(self, streams, [()] * len(streams))
        hidden = passes.read()[:, -1]
        return [
            replace(
                stream, segments=self._paid(stream, passes.kept(i)[0]), owed=False, hidden=hidden[i]
            )
            if stream.owed
            else stream
            for i, stream in enumerate(streams)
        ]

    def _paid(self, stream: Stream, owed: torch.Tensor | None) -> tuple[Segment, ...]:
        """A stream's segments with the frame that it owed, if it did; one with its action."""
        if owed is None or not stream.owed:
            return stream.segments
        frame, (*others, last) = Segment(owed, stream.step + self.window), stream.segments
        if (last.expire, last.instruction) != (frame.expire, frame.instruction):
            return (*stream.segments, frame)
        return (*others, replace(frame, kv=torch.cat([last.kv, owed], dim=3)))

    def _segments(self, stream: Stream, kv: torch.Tensor, spans: Sequence[Text]) -> list[Segment]:
        """Cut the keys and values of a step's words by span."""
        parts = kv.split([len(span.ids) for span in spans], dim=3)
        gone = stream.step + self.window + 1
        return [
            Segment(part, gone if span.role == "action" else FOREVER, span.role == "instruction")
            for span, part in zip(spans, parts, strict=True)
        ]


def generator(*numbers: int) -> torch.Generator:
    """A source of randomness that is a function of some numbers >= 0 alone."""
    state = np.random.SeedSequence(numbers).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def _settled(core: Core, new: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
    """A frame [N, C] in which latents that hardly differ from the last frame's are those.

    What a core predicts where nothing moves is off by a hair, and a view left alone would wash out
    over a hundred steps. See `STILL`.
    """
    if last is None:
        return new
    now, before = core.split(new[None]), core.split(last[None])
    moved = 1 - F.cosine_similarity(now, before, dim=-1)
    return core.merge(torch.where((moved < STILL).unsqueeze(-1), before, now))[0]


def _guided(passes: Pass, weights: Sequence[float], times: int) -> Predict:
    """Move predictions, by row `weights` times as far from those of their twins without words.

    After so many `times` the twins are left away.
    """
    weight = torch.tensor(weights, device=passes.engine.device).view(-1, 1, 1)
    left = times

    def predict(z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            return passes.predict(z, t, stride)
        led, free = passes.predict(z, t, stride, twins=True).chunk(2)
        return torch.where(weight == 1, led, free + weight * (led - free))

    return predict
