"""Passes of the core over the streams of a batch: the tokens that go in, and who sees what.

A frame that is finished is not read by a pass of its own. It goes in with the first pass of the
next step, together with that step's words and noise: so a step takes as many passes as denoising
steps, and each reads all weights once. Text is read by a `Reader`, beside the streams.

Shapes: B streams, N tokens a frame of C channels, D width, L tokens of a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldmodel.sequence import Text
from worldmodel.text import EOI, PAD
from worldmodel.transformer import Core, KVCache

if TYPE_CHECKING:
    from worldmodel.stream import Engine, Stream


@dataclass(frozen=True)
class Layout:
    """The tokens of a pass, in this order.

    Attributes:
        owed: the last frame and its `<eoi>`, which are not in yet.
        words: number of the words that go in, padded to one length.
        bare: number of those that a twin sees instead.
        frames: 0, 1 for the frame to be denoised, 2 for its twin behind it.
    """

    owed: bool
    words: int
    bare: int
    frames: int


class Pass:
    """The passes of one step over a batch of streams.

    The first one carries what is owed, the words and the frame, later ones the frame alone. Words
    and what was owed stay in the cache; of the frame nothing does.

    With `twins` every frame comes once more, as guidance needs it: without the words that go in
    now, and without the instruction.
    """

    def __init__(
        self,
        engine: "Engine",
        streams: Sequence["Stream"],
        words: Sequence[Sequence[int]],
        bare: Sequence[Sequence[int]] = (),
    ) -> None:
        self.engine = engine
        device, n = engine.device, engine.core.config.frame_tokens
        self.rows, self.frame_tokens = len(streams), n
        bare = bare or [()] * self.rows
        self.lengths = [len(row) for row in words]
        self.owed = any(s.owed for s in streams)
        self.pad = _up(max(self.lengths), engine.words_by)
        self.bare = max(map(len, bare))
        self.first = (n + 1) * self.owed + self.pad + self.bare  # tokens before the frame
        self.cache, seen = cached(engine, streams, self.first + 2 * n)
        self.past = self.cache.length

        ends = torch.full((self.rows, int(self.owed)), EOI)
        told = [ends, _padded(words, self.pad), _padded(bare, self.bare)]
        self.ids = torch.cat(told, dim=1).to(device)
        lengths = [len(row) for row in bare]
        self.mask = self._mask(streams, seen, lengths).to(device)
        self.position = self._position(streams, lengths).to(device)
        vision = torch.zeros(self.rows, self.first + 2 * n, dtype=torch.bool)
        vision[:, : n * self.owed] = True
        vision[:, self.first :] = True
        self.vision = vision.to(device)

        nothing = torch.zeros(n, engine.core.config.channels, device=device)
        frames = [[nothing if x is None else x for x in (s.shown, s.behind)] for s in streams]
        self.shown, self.behind = (
            torch.stack(part).to(engine.dtype) for part in zip(*frames, strict=True)
        )
        self.words_in = False

    def predict(
        self, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor, twins: bool = False
    ) -> torch.Tensor:
        """Predicted clean latents [B, N, C] of noised ones; leaves no trace of the frame.

        With `twins` [2 B, N, C], theirs behind the others.
        """
        drawn = self._run(z, t, stride, 1 + twins).float()
        if self.engine.watch:
            self.engine.watch(drawn)
        return drawn

    def read(self) -> torch.Tensor:
        """Put the words in, and what is owed, with no frame; returns hidden states [B, L, D]."""
        nothing = self.shown[:0]
        level = nothing[:, 0, 0]
        return self._run(nothing, level.float(), level.long(), 0)

    def kept(self, row: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Keys and values of a stream: of what was owed, if that is in now, and of its words."""
        added = self.cache.data[:, :, row, :, self.past : self.past + self.first]
        owed = (self.frame_tokens + 1) * self.owed
        words = added[..., owed : owed + self.lengths[row], :].clone()
        return added[..., :owed, :].clone() if owed else None, words

    def _mask(self, streams: Sequence["Stream"], seen: "Seen", bare: Sequence[int]) -> torch.Tensor:
        """Who sees whom, bool [B, tokens of both kinds of passes, past and these]."""
        n, past, first = self.frame_tokens, self.past, self.first
        after = (n + 1) * self.owed
        words, twins = slice(after, after + self.pad), slice(after + self.pad, first)
        frame, twin = slice(first, first + n), slice(first + n, first + 2 * n)
        mask = torch.zeros(self.rows, first + 2 * n, past + first + 2 * n, dtype=torch.bool)
        mask[:, :after, :past] = seen.then.unsqueeze(1)
        mask[:, after:, :past] = seen.now.unsqueeze(1)
        mask[:, :, past:] |= torch.eye(first + 2 * n, dtype=torch.bool)  # so no row is empty
        own = mask[:, :, past:]
        if self.owed:
            there = torch.tensor([s.owed for s in streams]).view(-1, 1, 1)
            own[:, :n, :n] |= there  # the frame does not see what ends it
            own[:, n:, :after] |= there
        for told, drawn, lengths in ((words, frame, self.lengths), (twins, twin, bare)):
            size = told.stop - told.start
            real = (torch.arange(size) < torch.tensor(lengths).unsqueeze(1)).unsqueeze(1)
            own[:, told, told] |= real & torch.ones(size, size, dtype=torch.bool).tril()
            own[:, drawn, told] |= real
            own[:, drawn, drawn] = True
        for part in (twins, twin):
            mask[:, part, :past] = seen.bare.unsqueeze(1)
        return mask

    def _position(self, streams: Sequence["Stream"], bare: Sequence[int]) -> torch.Tensor:
        """Rotary positions of all tokens, int64 [B, L, 5]."""
        n, cells = self.frame_tokens, self.engine.cells
        clock = torch.tensor([[s.time for s in streams], [s.step for s in streams]])
        time, step = clock.unsqueeze(2)
        parts = []
        if self.owed:
            parts.append(positions((time - 2).expand(-1, n), step - 1, n, cells))
            parts.append(positions(time - 1, step - 1, n))
            parts[-1][..., -1] += n - 1  # the frame is over by then
        ends = []
        for size, lengths in ((self.pad, self.lengths), (self.bare, bare)):
            parts.append(positions(time + torch.arange(size), step, n))
            end = time + torch.tensor(lengths).unsqueeze(1)
            ends.append(positions(end.expand(-1, n), step, n, cells))
        return torch.cat([*parts, *ends], dim=1)

    def _run(
        self, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor, frames: int
    ) -> torch.Tensor:
        """What `forward` gives for so many frames, and for what is not in yet."""
        engine = self.engine
        z, last, ids = z.to(engine.dtype), self.shown[: len(z)], self.ids
        if self.words_in:
            layout, start = Layout(False, 0, 0, frames), self.first
            ids = ids[:, :0]
        else:
            layout, start = Layout(self.owed, self.pad, self.bare, frames), 0
        if layout.owed:
            level = torch.full((self.rows,), engine.level, device=engine.device)
            plain = torch.full_like(level, engine.core.config.strides - 1, dtype=torch.int64)
            z, last = torch.cat([self.shown, z]), torch.cat([self.behind, last])
            t, stride = torch.cat([level, t]), torch.cat([plain, stride])
        stop = self.first + frames * self.frame_tokens
        part = slice(start, stop)
        inputs = (z, t, stride, last, ids, self.vision[:, part], self.position[:, part])
        inputs = (*inputs, self.mask[:, part, : self.past + stop])
        found = engine.compute(self.cache, layout, *inputs)
        if not self.words_in:
            self.cache.commit(self.first)
            self.words_in = True
        return found


def forward(
    core: Core,
    cache: KVCache,
    layout: Layout,
    z: torch.Tensor,
    t: torch.Tensor,
    stride: torch.Tensor,
    last: torch.Tensor,
    ids: torch.Tensor,
    vision: torch.Tensor,
    position: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """The core's part of a pass.

    Args:
        core: the model.
        cache: keys and values of the past; the pass's own are written behind them.
        layout: the tokens.
        z: [F, N, C] frames that go in, the owed ones first.
        t: [F] their levels.
        stride: int64 [F] their step sizes.
        last: [F, N, C] the frame before each as shown.
        ids: int64 [B, <eoi> if a frame is owed, words, bare words].
        vision: as in `Core`.
        position: as in `Core`.
        mask: as in `Core`.

    Returns:
        The predicted clean latents [frames * B, N, C], a twin's behind the others; without frames
        the hidden states [B, L, D].
    """
    rows = len(ids)
    told = core.embed(ids)
    parts = [told]
    if layout.owed or layout.frames:
        frames, seen = core.embed_frames(z, t, stride, last)
        if layout.owed:
            parts.insert(0, frames[:rows])
        if layout.frames:
            parts += [frames[-rows:]] * layout.frames
    hidden = core(torch.cat(parts, dim=1), vision, position, mask, cache)
    if not layout.frames:
        return hidden
    n = frames.shape[1]
    drawn = hidden[:, -n * layout.frames :]
    if layout.frames == 2:
        drawn = torch.cat([drawn[:, :n], drawn[:, n:]])
    again = [torch.cat([x[-rows:]] * layout.frames) for x in (seen, z, t)]
    return core.draw(drawn, *again)


class Reader:
    """Text going into a batch of streams, on one preallocated cache; the streams stay as they are.

    Args:
        engine: the model.
        streams: what was before the text.
        room: most tokens that a row will read, the streams' unread words included.
    """

    def __init__(self, engine: "Engine", streams: Sequence["Stream"], room: int) -> None:
        streams = engine.settle(streams)
        self.engine = engine
        self.cache, seen = cached(engine, streams, room)
        real = torch.zeros(len(streams), self.cache.length + room, dtype=torch.bool)
        real[:, : self.cache.length] = seen.now
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
        core, device = self.engine.run, self.engine.device
        lengths = [len(row) for row in rows]
        tokens, first = max(lengths), self.cache.length
        if tokens:
            ids = _padded(rows, tokens)
            real = torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)
            self.real[:, first : first + tokens] = real.to(device)
            # Causal; a padded word sees itself, so that no row of the attention is empty.
            mask = self.real[:, None, : first + tokens].expand(-1, tokens, -1).clone()
            mask[:, :, first:] &= torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
            mask[:, :, first:] |= torch.eye(tokens, dtype=torch.bool, device=device)
            order = self.time + torch.arange(tokens, device=device)
            position = positions(order, self.step, core.config.frame_tokens)
            vision = torch.zeros(len(rows), tokens, dtype=torch.bool, device=device)
            hidden = core(core.embed(ids.to(device)), vision, position, mask, self.cache)
            self.cache.commit(tokens)
            count = torch.tensor(lengths, device=device).unsqueeze(1)
            self.time = self.time + count
            last = (count - 1).clamp(min=0).unsqueeze(2).expand(-1, -1, hidden.shape[2])
            found = hidden.gather(1, last).squeeze(1)
            self.hidden = torch.where(count > 0, found, self.hidden)
        return core.say(self.hidden).float()


@dataclass(frozen=True)
class Seen:
    """Which places of a cache are seen, bool [B, past] each.

    Attributes:
        then: by the last frame. now: by what comes next. bare: the same but for an instruction.
    """

    then: torch.Tensor
    now: torch.Tensor
    bare: torch.Tensor


def cached(engine: "Engine", streams: Sequence["Stream"], room: int) -> tuple[KVCache, Seen]:
    """The past of streams in one cache, with room for more tokens, and who sees it."""
    past = [sum(s.kv.shape[3] for s in stream.segments) for stream in streams]
    length = _up(max(past), engine.past_by)
    cache = KVCache(engine.core.config, len(streams), length + room, engine.device, engine.dtype)
    cache.length = length
    seen = np.zeros((3, len(streams), length), bool)
    for i, stream in enumerate(streams):
        start, rule = 0, []
        for segment in stream.segments:
            stop = start + segment.kv.shape[3]
            cache.data[:, :, i, :, start:stop] = segment.kv
            now = segment.expire > stream.step
            rule.append((segment.expire >= stream.step, now, now and not segment.instruction))
            start = stop
        if rule:
            sizes = [segment.kv.shape[3] for segment in stream.segments]
            seen[:, i, :start] = np.repeat(np.array(rule).T, sizes, axis=1)
        cache.data[:, :, i, :, start:length] = 0  # what nobody sees has to be numbers all the same
    return cache, Seen(*torch.from_numpy(seen))


def positions(
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


def words_of(spans: Sequence[Text]) -> list[int]:
    """The tokens of spans of text."""
    return [i for span in spans for i in span.ids]


def _padded(rows: Sequence[Sequence[int]], size: int) -> torch.Tensor:
    """Token ids as int64 [B, size]."""
    return torch.tensor([[*row, *[PAD] * (size - len(row))] for row in rows], dtype=torch.int64)


def _up(number: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-number // step) * step
