"""Streams: the state of rollouts, and the engine that follows them on a cache.

A `Stream` is an immutable list of segments, each holding the keys and values of the tokens
that it added. A stream is never changed, only followed by a new one, so forking is sharing,
rewinding is going back to an earlier stream, and several rollouts run as one batch. The
incremental path equals the full forward (`tests/test_dream.py`).

One step: the action's text and `<boi>` go in together with noise; the frame is denoised in a
few passes that leave no trace, and brought to where the encoder's latents are, against drift;
then the finished frame and `<eoi>` go in. Text is read by a `Reader`, beside the streams.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from worldmodel.checkpoint import Checkpoint
from worldmodel.flow import Predict, mix, sample
from worldmodel.graphs import Graphs
from worldmodel.sequence import FOREVER, Text
from worldmodel.text import BOI, BOS, EOI, PAD
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
        segments: what the next step can still see.
        step: frames so far. time: rotary position of the next token.
        latent: [N, C] the last frame in the core's grid; None before the first.
        shown: [N, C] the same as the core was shown it, slightly noised.
        hidden: [D] what the core made of the last token, from which the next one is said.
        pending: words that go in with the next frame.
        frame: uint8 [H, W, 3], the last frame as shown.
        text: exact text that led to it.
    """

    segments: tuple[Segment, ...] = ()
    step: int = 0
    time: int = 0
    latent: torch.Tensor | None = None
    shown: torch.Tensor | None = None
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
            segments=tuple(s for s in self.segments if not s.instruction),
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
        self.encoder = checkpoint.encoder.to(device)
        config = checkpoint.core.config
        self.window = config.window
        rows, columns = config.grid
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        self.cells = cells.view(-1, 2).to(device)  # row and column of each frame token
        self.graphs = Graphs(_forward, self.core) if device.type == "cuda" else None
        # Words and past of a pass are filled up to multiples of these, so that few shapes occur.
        self.words_by, self.past_by = (8, 64) if self.graphs else (1, 1)

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
        words = [[i for span in row for i in span.ids] for row in spans]
        weights = {i: w for i, w in enumerate(guidance) if w != 1.0 and given is None}
        # Guided streams come once more without words, in the same batch.
        unled = [replace(streams[i].untold(), pending=()) for i in weights]
        bare = [[*(BOS for _ in range(not s.time)), BOI] for s in unled]
        passes = Pass(self, [*streams, *unled], [*words, *bare])
        if given is None:
            predict = passes.predict
            if weights:
                predict = _guided(passes, len(streams), weights, (denoise_steps + 1) // 2)
            drawn = sample(predict, noise[0], denoise_steps, self.core.config.strides, shift)
            given = self.core.merge(self.encoder.project(self.core.split(drawn)))
            for i in (i for i, rests in enumerate(still) if rests):
                given[i] = _settled(self.core, given[i], streams[i].latent)
        kept, shown, hidden = passes.commit(given, noise[1])
        followed = []
        for i, stream in enumerate(streams):
            extra = self._segments(stream, kept[i], spans[i])
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
                    hidden=hidden[i],
                    pending=(),
                )
            )
        return followed

    def _segments(self, stream: Stream, kv: torch.Tensor, spans: Sequence[Text]) -> list[Segment]:
        """Cut a step's keys and values by span; the frame is with the last one."""
        *sizes, _ = (len(span.ids) for span in spans)
        parts = kv.split([*sizes, kv.shape[3] - sum(sizes)], dim=3)
        gone = stream.step + self.window + 1
        return [
            Segment(part, gone if span.role == "action" else FOREVER, span.role == "instruction")
            for span, part in zip(spans, parts, strict=True)
        ]


class Pass:
    """The passes of one step over a batch of streams.

    The first pass carries the words (padded to one length) and the frame, later ones the frame
    alone; words stay in the cache, frames are committed by `commit`.
    """

    def __init__(
        self, engine: Engine, streams: Sequence[Stream], words: Sequence[Sequence[int]]
    ) -> None:
        self.engine = engine
        config, device = engine.core.config, engine.device
        self.rows, self.frame_tokens = len(streams), config.frame_tokens
        self.lengths = [len(w) for w in words]
        self.pad = _up(max(self.lengths), engine.words_by)
        self.cache, real = _cached(engine, streams, self.pad + self.frame_tokens + 1)
        self.past = self.cache.length
        ids = torch.zeros(self.rows, self.pad, dtype=torch.int64)
        for i, row in enumerate(words):
            real[i, self.past : self.past + len(row)] = True
            ids[i, : len(row)] = torch.tensor(row)
        real[:, self.past + self.pad :] = True
        self.real, self.ids = real.to(device), ids.to(device)
        time = torch.tensor([s.time for s in streams], device=device).unsqueeze(1)
        step = torch.tensor([s.step for s in streams], device=device).unsqueeze(1)
        at = time + torch.tensor(self.lengths, device=device).unsqueeze(1)
        n = self.frame_tokens
        self.word_position = _positions(time + torch.arange(self.pad, device=device), step, n)
        self.frame_position = _positions(at.expand(-1, n), step, n, engine.cells)
        self.end_position = _positions(at + 1, step, n)
        self.end_position[..., -1] += n - 1  # the frame is over by then
        nothing = torch.zeros(config.frame_tokens, config.channels, device=device)
        before = [nothing if s.shown is None else s.shown for s in streams]
        self.before = torch.stack(before).to(engine.dtype)
        self.words_in = False

    def predict(self, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
        """Predicted clean latents [B, N, C] of noised ones; leaves no trace of the frame."""
        drawn = self._run(z, t, stride, end=False).float()
        if self.engine.watch:
            self.engine.watch(drawn)
        return drawn

    def keep(self, rows: int) -> None:
        """Go on with the first `rows` rows alone."""
        self.rows, self.lengths = rows, self.lengths[:rows]
        self.cache.data = self.cache.data[:, :, :rows]
        self.real, self.before, self.ids = (
            part[:rows] for part in (self.real, self.before, self.ids)
        )
        self.word_position, self.frame_position, self.end_position = (
            part[:rows] for part in (self.word_position, self.frame_position, self.end_position)
        )

    def commit(
        self, latents: torch.Tensor, noise: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Put the finished frame and `<eoi>` in.

        Returns each row's new keys and values, the frames [B, N, C] as they were shown, and the
        hidden states [B, D] of `<eoi>`.
        """
        level = torch.full((self.rows,), self.engine.checkpoint.context_level, device=noise.device)
        stride = torch.full_like(level, self.engine.core.config.strides - 1, dtype=torch.int64)
        shown = mix(latents, noise, level)
        hidden = self._run(shown, level, stride, end=True)
        added = self.cache.data[..., self.past :, :]
        kept = [
            torch.cat([added[:, :, i, :, :words], added[:, :, i, :, self.pad :]], dim=3)
            for i, words in enumerate(self.lengths)
        ]
        return kept, shown, hidden

    def _run(
        self, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor, end: bool
    ) -> torch.Tensor:
        """What `_forward` gives for the frame, and for the words that are not in yet."""
        n, device = self.frame_tokens, self.engine.device
        before = 0 if self.words_in else self.pad
        ids, positions = self.ids[:, :before], [self.frame_position]
        if before:
            positions.insert(0, self.word_position)
        if end:
            ids = torch.cat([ids, ids.new_full((self.rows, 1), EOI)], dim=1)
            positions.append(self.end_position)
        tokens, past = before + n + end, self.cache.length
        vision = torch.zeros(self.rows, tokens, dtype=torch.bool, device=device)
        vision[:, before : before + n] = True
        mask = self.real[:, None, : past + tokens].expand(-1, tokens, -1).clone()
        if before:  # words are causal and do not see the frame
            mask[:, :before, past:] &= torch.ones_like(mask[0, :before, past:]).tril()
            # a padded word sees itself, so that no row of the attention is empty
            own = torch.eye(before, dtype=torch.bool, device=device)
            mask[:, :before, past : past + before] |= own
        if end:  # the frame does not see what ends it
            mask[:, before : before + n, -1] = False
        z, position = z.to(self.engine.dtype), torch.cat(positions, dim=1)
        inputs = (z, t, stride, self.before, ids, vision, position, mask)
        if self.engine.graphs:
            found = self.engine.graphs(self.cache, end, *inputs)
        else:
            found = _forward(self.engine.core, self.cache, end, *inputs)
        if before:
            self.cache.commit(before)
            self.words_in = True
        return found


def _forward(
    core: Core,
    cache: KVCache,
    end: bool,
    z: torch.Tensor,
    t: torch.Tensor,
    stride: torch.Tensor,
    last: torch.Tensor,
    ids: torch.Tensor,
    vision: torch.Tensor,
    position: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """The core's part of a pass: words `ids` [B, words], then a frame z [B, N, C].

    With `end` the last id is `<eoi>` and stands behind the frame. `last` is the frame before as
    shown, [B, N, C]; the rest as in `Core`. Returns the predicted clean latents [B, N, C]; with
    `end` what the core makes of `<eoi>` [B, D].
    """
    frame, seen = core.embed_frames(z, t, stride, last)
    words = ids.shape[1] - end
    told = core.embed(ids)
    x = torch.cat([told[:, :words], frame, told[:, words:]], dim=1)
    hidden = core(x, vision, position, mask, cache)
    if end:
        return hidden[:, -1].clone()
    return core.draw(hidden[:, words:], seen, z, t)


class Reader:
    """Text going into a batch of streams, on one preallocated cache; the streams stay as they are.

    Args:
        engine: the model.
        streams: what was before the text.
        room: most tokens that a row will read, the streams' unread words included.
    """

    def __init__(self, engine: Engine, streams: Sequence[Stream], room: int) -> None:
        self.engine = engine
        self.cache, real = _cached(engine, streams, room)
        self.real = real.to(engine.device)
        clock = [[s.time for s in streams], [s.step for s in streams]]
        self.time, self.step = torch.tensor(clock, device=engine.device).unsqueeze(2)
        nothing = torch.zeros(engine.core.config.width, device=engine.device, dtype=engine.dtype)
        self.hidden = torch.stack([nothing if s.hidden is None else s.hidden for s in streams])

    @torch.inference_mode()
    def read(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read some more token ids in every row, as many as you like.

        Returns logits float [B, vocab] of what comes next in each.
        """
        core, device = self.engine.core, self.engine.device
        lengths = [len(row) for row in rows]
        tokens, first = max(lengths), self.cache.length
        if tokens:
            ids = torch.tensor([[*row, *[PAD] * (tokens - len(row))] for row in rows])
            real = torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)
            self.real[:, first : first + tokens] = real.to(device)
            # Causal; a padded word sees itself, so that no row of the attention is empty.
            mask = self.real[:, None, : first + tokens].expand(-1, tokens, -1).clone()
            mask[:, :, first:] &= torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
            mask[:, :, first:] |= torch.eye(tokens, dtype=torch.bool, device=device)
            order = self.time + torch.arange(tokens, device=device)
            position = _positions(order, self.step, core.config.frame_tokens)
            vision = torch.zeros(len(rows), tokens, dtype=torch.bool, device=device)
            hidden = core(core.embed(ids.to(device)), vision, position, mask, self.cache)
            self.cache.commit(tokens)
            count = torch.tensor(lengths, device=device).unsqueeze(1)
            self.time = self.time + count
            last = (count - 1).clamp(min=0).unsqueeze(2).expand(-1, -1, hidden.shape[2])
            found = hidden.gather(1, last).squeeze(1)
            self.hidden = torch.where(count > 0, found, self.hidden)
        return core.say(self.hidden).float()


def generator(*numbers: int) -> torch.Generator:
    """A source of randomness that is a function of some numbers >= 0 alone."""
    state = np.random.SeedSequence(numbers).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def _cached(engine: Engine, streams: Sequence[Stream], room: int) -> tuple[KVCache, torch.Tensor]:
    """The past of streams in one cache, with room for more tokens.

    Also returns which of its places are real, bool [B, capacity]; the free ones are not yet.
    """
    past = [sum(s.kv.shape[3] for s in stream.segments) for stream in streams]
    length = _up(max(past), engine.past_by)
    capacity = length + room
    cache = KVCache(engine.core.config, len(streams), capacity, engine.device, engine.dtype)
    cache.length = length
    real = torch.zeros(len(streams), capacity, dtype=torch.bool)
    for i, stream in enumerate(streams):
        real[i, : past[i]] = True
        if stream.segments:
            joined = torch.cat([s.kv for s in stream.segments], dim=3)
            cache.data[:, :, i, :, : past[i]] = joined
    return cache, real


def _up(number: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-number // step) * step


def _positions(
    time: torch.Tensor, step: torch.Tensor, frame: int, cells: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotary positions [B, L, 5] of tokens after `step` whole frames of `frame` tokens each.

    Args:
        time: [B, L] order in the stream, where a frame counts as one.
        step: [B, 1] frames before.
        frame: N.
        cells: [L, 2] row and column of the frame's own tokens; None for words.
    """
    rows, tokens = time.shape
    inside = torch.arange(tokens, device=time.device) if cells is not None else 0
    cells = time.new_zeros(tokens, 2) if cells is None else cells
    place = time + step * (frame - 1) + inside
    parts = [time, step.expand(-1, tokens), *cells.T.unsqueeze(1).expand(-1, rows, -1), place]
    return torch.stack(parts, dim=-1)


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


def _guided(passes: Pass, rows: int, weights: Mapping[int, float], times: int) -> Predict:
    """Move some rows' predictions, by row `weight` times as far from those without words.

    `passes` are of all `rows` with words, then of the chosen rows once more without; after so many
    `times` the latter are left away for good.
    """
    chosen = torch.tensor(list(weights), device=passes.engine.device)
    weight = torch.tensor(list(weights.values()), device=chosen.device).view(-1, 1, 1)
    left = times

    def predict(z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
        nonlocal left
        if left == 0:
            return passes.predict(z, t, stride)
        found = passes.predict(*(torch.cat([x, x[chosen]]) for x in (z, t, stride)))
        left -= 1
        if left == 0:
            passes.keep(rows)
        led, free = found[:rows], found[rows:]
        return led.index_copy(0, chosen, free + weight * (led[chosen] - free))

    return predict
