"""Dream: a trained model as a World. Imagines frame after frame from a context.

The state of a rollout is a `Stream`: an immutable list of segments, each holding the keys and
values of the tokens that it added. A stream is never changed, only followed by a new one, so
forking is sharing, rewinding is going back to an earlier stream, and several rollouts run as
one batch. The incremental path equals the full forward (`tests/test_dream.py`).

One step: the action's text and `<boi>` go in together with noise; the frame is denoised in a
few passes that leave no trace; then the finished frame and `<eoi>` go in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from worldmodel import checkpoint as checkpoints
from worldmodel.actions import Action
from worldmodel.checkpoint import Checkpoint
from worldmodel.devices import choose_device, choose_dtype
from worldmodel.errors import UserError
from worldmodel.flow import Predict, mix, sample
from worldmodel.sequence import FOREVER, Text, attention_mask, pack
from worldmodel.text import BOI, BOS, EOI, EOS, clean_sentence
from worldmodel.transformer import KVCache
from worldmodel.world import Step, WorldSpec

MAX_INSTRUCTION_TOKENS = 48
MAX_HISTORY = 2048


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
        pending: instruction tokens that go in with the next step.
        frame: uint8 [H, W, 3], the last frame as shown.
        text: exact text that led to it.
    """

    segments: tuple[Segment, ...] = ()
    step: int = 0
    time: int = 0
    latent: torch.Tensor | None = None
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
        denoise_steps: int = 4,
        guidance: float = 1.0,
    ) -> list[Stream]:
        """Add one frame to each of B streams: imagine it, or take it from `given`.

        Args:
            streams: where to go on from.
            texts: action tokens of each; may be empty.
            noise: [2, B, N, C]: to denoise from, and to show the finished frame with.
            given: [B, N, C] frames to take instead of imagining.
            denoise_steps: network passes a frame.
            guidance: 1 for none; w > 1 moves w times as far from the prediction without
                action text and instruction as the prediction with them is.
        """
        bos = [() if s.step else (BOS,) for s in streams]
        words = [
            [*b, *s.pending, *text, BOI] for b, s, text in zip(bos, streams, texts, strict=True)
        ]
        led = _Pass(self, streams, words)
        if given is None:
            predict = led.predict
            if guidance != 1.0:
                free = _Pass(self, [_unled(s) for s in streams], [[*b, BOI] for b in bos])
                predict = _guided(led.predict, free.predict, guidance)
            given = sample(predict, noise[0], denoise_steps, self.core.config.strides)
        kept = led.commit(given, noise[1])
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


class _Pass:
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
        time = torch.tensor([s.time for s in streams], device=device)
        word_time = time.unsqueeze(1) + torch.arange(self.pad, device=device)
        self.word_position = F.pad(word_time.unsqueeze(-1), (0, 2))
        at = time + torch.tensor(self.lengths, device=device)
        self.frame_position = torch.cat(
            [
                at.view(-1, 1, 1).expand(-1, self.frame_tokens, 1),
                engine.cells.expand(self.rows, -1, -1),
            ],
            dim=-1,
        )
        self.end_position = F.pad((at + 1).view(-1, 1, 1), (0, 2))
        self.embedded = core.embed(self.ids)
        self.words_in = False

    def predict(self, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
        """Predicted clean latents [B, N, C] of noised ones; leaves no trace of the frame."""
        return self._run(z, t, stride, end=False).float()

    def commit(self, latents: torch.Tensor, noise: torch.Tensor) -> list[torch.Tensor]:
        """Put the finished frame and `<eoi>` in; return each row's new keys and values."""
        level = torch.full((self.rows,), self.engine.checkpoint.context_level, device=noise.device)
        stride = torch.full_like(level, self.engine.core.config.strides - 1, dtype=torch.int64)
        self._run(mix(latents, noise, level), level, stride, end=True)
        first, stop = self.past, self.past + self.pad + self.frame_tokens + 1
        kept = []
        for i, words in enumerate(self.lengths):
            index = [*range(first, first + words), *range(first + self.pad, stop)]
            kept.append(self.cache.data[:, :, i][:, :, :, index].clone())
        return kept

    def _run(
        self, z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor, end: bool
    ) -> torch.Tensor:
        core, n = self.engine.core, self.frame_tokens
        x = core.embed_frames(z.to(self.engine.dtype), t, stride)
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
        return core.draw(hidden[:, before : before + n])


def _guided(led: Predict, free: Predict, weight: float) -> Predict:
    """Predictions `weight` times as far from `free` as those of `led` are."""

    def predict(z: torch.Tensor, t: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
        without = free(z, t, stride)
        return without + weight * (led(z, t, stride) - without)

    return predict


def _unled(stream: Stream) -> Stream:
    """The stream without its instruction, for guidance."""
    kept = tuple(s for s in stream.segments if not s.instruction)
    return replace(stream, segments=kept, pending=())


class Start(NamedTuple):
    """A context to start from: frames uint8 [n, H, W, 3] and the n - 1 actions between."""

    frames: np.ndarray
    actions: list[Action]


class Dream:
    """A trained model as a World; see the module's text.

    Attributes:
        denoise_steps: network passes a frame; 1, 2 or 4 are trained for, more is slower.
        guidance: strength of action text and instruction, 1 for plain.
    """

    def __init__(
        self,
        engine: Engine,
        denoise_steps: int = 4,
        guidance: float = 1.0,
        seed: int = 0,
        device_reason: str = "",
    ) -> None:
        self.engine = engine
        self.denoise_steps = denoise_steps
        self.guidance = guidance
        self.device_reason = device_reason
        self._seed = seed  # of the noise, for the life of the dream
        self._number = 0  # which start; takes part in the noise, so that each has its own
        self._streams: list[Stream] = []
        self._start = 0

    @staticmethod
    def load(
        checkpoint: str = "doom-nano",
        device: str = "auto",
        dtype: str = "auto",
        denoise_steps: int = 4,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> "Dream":
        """Load a checkpoint and reset to its first start.

        Raises:
            UserError: no such checkpoint or device, or a damaged file.
        """
        loaded = checkpoints.load(checkpoint)
        chosen, reason = choose_device(device)
        engine = Engine(loaded, chosen, choose_dtype(dtype, chosen))
        dream = Dream(engine, denoise_steps, guidance, seed, reason)
        dream.reset()
        return dream

    @property
    def spec(self) -> WorldSpec:
        """The world that is imagined."""
        return self.engine.checkpoint.spec

    @property
    def checkpoint_name(self) -> str:
        """Name of the checkpoint."""
        return self.engine.checkpoint.name

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self.engine.device)

    @property
    def dtype(self) -> str:
        """Number format of the model."""
        return str(self.engine.dtype).removeprefix("torch.")

    @property
    def encoder(self) -> Any:
        """The frame encoder (`worldmodel.encoders.FrameEncoder`)."""
        return self.engine.encoder

    @property
    def num_starts(self) -> int:
        """Number of bundled start contexts."""
        return len(self.engine.checkpoint.start_frames)

    @property
    def length(self) -> int:
        """Frames imagined since the reset."""
        return self._stream.step - self._start

    @property
    def frame(self) -> np.ndarray:
        """The current frame, uint8 [H, W, 3]."""
        return self._stream.frame

    @property
    def instruction(self) -> str:
        """The instruction that holds, or an empty string."""
        return self._stream.instruction

    @property
    def _stream(self) -> Stream:
        return self._streams[-1]

    def reset(
        self,
        seed: int | None = None,
        frames: np.ndarray | None = None,
        actions: Sequence[Action] | None = None,
    ) -> Step:
        """Start again from a bundled context, or from frames of your own.

        Args:
            seed: number of the bundled start (modulo `num_starts`); the noise is a function of
                it and of the seed that the dream was made with. None keeps the last one.
            frames: uint8 [n, H, W, 3], n >= 1, to start from instead.
            actions: the n - 1 actions between them; left out, no action text is given.

        Raises:
            UserError: frames of another size or type, or not n - 1 actions.
        """
        self._number = self._number if seed is None else seed
        frames, told = self._context(frames, actions)
        latents = self.engine.see(frames)
        stream = Stream()
        for i, latent in enumerate(latents):
            text = told[i - 1] if i else ""
            ids = self.engine.checkpoint.tokenizer.encode(text) if text else []
            (stream,) = self.engine.follow(
                [stream], [ids], self._noise(i), given=latent.unsqueeze(0)
            )
        self._start = len(frames)
        self._streams = [replace(stream, frame=frames[-1], text=told[-1] if told else "")]
        return Step(self.frame, text=self._stream.text)

    def say(self, text: str | None) -> str:
        """Set the instruction, or clear it with None; returns the exact text for the model.

        Raises:
            UserError: an empty sentence or one that is too long.
        """
        stream = self._stream
        kept = tuple(s for s in stream.segments if not s.instruction)
        if text is None:
            self._streams[-1] = replace(stream, segments=kept, pending=(), instruction="")
            return ""
        sentence = f"instruction: {clean_sentence(text).lower()}"
        ids = tuple(self.engine.checkpoint.tokenizer.encode(sentence))
        if len(ids) > MAX_INSTRUCTION_TOKENS:
            raise UserError(
                f"The sentence is {len(ids)} tokens long; the model reads at most "
                f"{MAX_INSTRUCTION_TOKENS}. Say it shorter."
            )
        self._streams[-1] = replace(stream, segments=kept, pending=ids, instruction=sentence)
        return sentence

    def step(self, action: Action | None) -> Step:
        """Imagine the next frame; None gives no action text, so that the instruction leads."""
        return Dream.batch_step([self], [action])[0]

    @staticmethod
    def batch_step(dreams: Sequence["Dream"], actions: Sequence[Action | None]) -> list[Step]:
        """Step several dreams of one engine as one batch; the first one's settings hold."""
        first = dreams[0]
        engine = first.engine
        tokenizer, table = engine.checkpoint.tokenizer, first.spec.actions
        texts = ["" if a is None else table.text(a) for a in actions]
        ids = [tokenizer.encode(text) if text else [] for text in texts]
        noise = torch.cat([d._noise(d._stream.step) for d in dreams], dim=1)
        streams = engine.follow(
            [d._stream for d in dreams],
            ids,
            noise,
            denoise_steps=first.denoise_steps,
            guidance=first.guidance,
        )
        latents = torch.stack([s.latent for s in streams if s.latent is not None])
        steps = []
        for dream, stream, frame, text in zip(
            dreams, streams, engine.show(latents), texts, strict=True
        ):
            said = " ".join(part for part in (stream.instruction, text) if part)
            dream._streams.append(replace(stream, frame=frame, text=said))
            del dream._streams[:-MAX_HISTORY]
            steps.append(Step(frame, text=said))
        return steps

    def rewind(self, n: int) -> Step:
        """Go back n imagined frames (to the start at most)."""
        back = min(max(n, 0), len(self._streams) - 1)
        if back:
            del self._streams[-back:]
        return Step(self.frame, text=self._stream.text)

    def fork(self, k: int) -> list["Dream"]:
        """Return k dreams that share this one's past and go their own ways."""
        copies = []
        for _ in range(k):
            copy = Dream(
                self.engine, self.denoise_steps, self.guidance, self._seed, self.device_reason
            )
            copy._streams, copy._start = list(self._streams), self._start
            copy._number = self._number
            copies.append(copy)
        return copies

    @torch.inference_mode()
    def text_perplexity(self, texts: Sequence[str]) -> float:
        """Perplexity per token of texts, each read as a document of its own."""
        engine = self.engine
        config, tokenizer = engine.core.config, engine.checkpoint.tokenizer
        documents = [[Text((*tokenizer.encode(text)[:510], EOS))] for text in texts]
        total, count = 0.0, 0
        for first in range(0, len(documents), 64):
            part = documents[first : first + 64]
            batch = pack(part, [0] * len(part), config.grid, config.window, 512)
            batch = batch.to(engine.device)
            x = engine.core.embed(batch.ids)
            hidden = engine.core(x, batch.vision, batch.position, attention_mask(batch))
            there = batch.next_id >= 0
            logits = engine.core.say(hidden[there]).float()
            total += F.cross_entropy(logits, batch.next_id[there], reduction="sum").item()
            count += int(there.sum())
        return float(np.exp(total / max(count, 1)))

    def close(self) -> None:
        """Forget the rollout."""
        self._streams.clear()

    def _noise(self, step: int) -> torch.Tensor:
        """Noise [2, 1, N, C] of a step: a function of seed, start and step alone."""
        config = self.engine.core.config
        state = np.random.SeedSequence([abs(self._seed), abs(self._number), step])
        generator = torch.Generator().manual_seed(int(state.generate_state(1)[0]))
        shape = (2, 1, config.frame_tokens, config.channels)
        return torch.randn(shape, generator=generator).to(self.engine.device)

    def _context(
        self, frames: np.ndarray | None, actions: Sequence[Action] | None
    ) -> tuple[np.ndarray, list[str]]:
        checkpoint, table = self.engine.checkpoint, self.spec.actions
        if frames is None:
            index = self._number % self.num_starts
            keys = checkpoint.start_keys[index]
            told = [table.text(table.from_mask(int(mask))) for mask in keys]
            return checkpoint.start_frames[index], told
        size = (self.spec.height, self.spec.width, 3)
        if frames.ndim != 4 or not len(frames) or frames.shape[1:] != size:
            raise UserError(
                f"Frames of shape {frames.shape} were given; the model takes frames of "
                f"[n, {size[0]}, {size[1]}, 3]. Resize them first."
            )
        if frames.dtype != np.uint8:
            raise UserError(f"Frames must be uint8 RGB, not {frames.dtype}.")
        if actions is None:
            return frames, [""] * (len(frames) - 1)
        if len(actions) != len(frames) - 1:
            raise UserError(
                f"{len(frames)} frames need {len(frames) - 1} actions between, got {len(actions)}."
            )
        return frames, [table.text(action) for action in actions]
