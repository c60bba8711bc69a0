"""Dream: a trained model as a World. Imagines frame after frame from a context.

What it does to the model is in `worldmodel.stream`; here are the World's `reset` and `step`, the
instruction, forks and rewinding.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F

from worldmodel import checkpoint as checkpoints
from worldmodel import heap
from worldmodel.actions import Action
from worldmodel.devices import choose_device, choose_dtype
from worldmodel.errors import UserError
from worldmodel.generate import Sampling, SamplingOptions, encode, generate, look, picture, say
from worldmodel.sequence import Text, attention_mask, pack
from worldmodel.stream import Engine, Stream
from worldmodel.text import EOS, clean_sentence
from worldmodel.world import Step, WorldSpec

MAX_INSTRUCTION_TOKENS = 48
MAX_HISTORY = 768
"""Most steps that a dream can go back to: about 100 MiB with doom-nano,"""
MAX_HISTORY_BYTES = 1 << 30
"""and of a larger model so many as take this much,"""
MIN_HISTORY = 64
"""but not fewer than this."""

STILL_GUIDANCE = 1.4
"""Most guidance of a step that stands still. The view is fed back unchanged then, and more would
raise its contrast step after step, until after some 50 it is noise (docs/models.md)."""


class Dream:
    """A trained model as a World; see the module's text.

    Attributes:
        denoise_steps: network passes a frame; 1, 2 or 4 are trained for, more is slower.
        guidance: strength of action text and instruction, 1 for plain; see `STILL_GUIDANCE`.
        history: states that are kept to go back to; forks keep as many. See `MAX_HISTORY`.
    """

    def __init__(
        self,
        engine: Engine,
        denoise_steps: int = 2,
        guidance: float = 1.0,
        seed: int = 0,
        device_reason: str = "",
    ) -> None:
        self.engine = engine
        self.denoise_steps = denoise_steps
        self.guidance = guidance
        self.device_reason = device_reason
        self.history = _history(engine)
        self._seed = seed  # of the noise, for the life of the dream
        self._number = 0  # which start; takes part in the noise, so that each has its own
        self._streams: list[Stream] = []
        self._start = 0

    @staticmethod
    def load(
        checkpoint: str = "doom-nano",
        device: str = "auto",
        dtype: str = "auto",
        denoise_steps: int = 2,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> "Dream":
        """Load a checkpoint and reset to its first start.

        Raises:
            UserError: no such checkpoint or device, or a damaged file.
        """
        heap.settle()
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
    def latent(self) -> torch.Tensor:
        """The current frame as it was imagined, [N, C] in the core's grid."""
        assert self._stream.latent is not None
        return self._stream.latent

    @property
    def instruction(self) -> str:
        """The instruction that holds, or an empty string."""
        return self._stream.instruction

    @property
    def pieces(self) -> frozenset[int]:
        """The keys and values of frames that the current state holds, by identity.

        States share them, so those of several states together say what these take.
        """
        frame = self.engine.core.config.frame_tokens
        segments = self._stream.segments
        return frozenset(id(s.kv) for s in segments if s.kv.shape[3] > frame and not s.instruction)

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
        if text is None:
            self._streams[-1] = replace(self._stream.untold(), instruction="")
            return ""
        sentence = f"instruction: {clean_sentence(text).lower()}"
        ids = tuple(self.engine.checkpoint.tokenizer.encode(sentence))
        if len(ids) > MAX_INSTRUCTION_TOKENS:
            raise UserError(
                f"The sentence is {len(ids)} tokens long; the model reads at most "
                f"{MAX_INSTRUCTION_TOKENS}. Say it shorter."
            )
        told = self._stream.told(Text(ids, "instruction"))
        self._streams[-1] = replace(told, instruction=sentence)
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
        still = [
            not d.instruction and (a is None or a.idle)
            for d, a in zip(dreams, actions, strict=True)
        ]
        streams = engine.follow(
            [d._stream for d in dreams],
            ids,
            noise,
            denoise_steps=first.denoise_steps,
            guidance=[min(first.guidance, STILL_GUIDANCE) if s else first.guidance for s in still],
            still=still,
        )
        latents = torch.stack([s.latent for s in streams if s.latent is not None])
        steps = []
        for dream, stream, frame, text in zip(
            dreams, streams, engine.show(latents), texts, strict=True
        ):
            said = " ".join(part for part in (stream.instruction, text) if part)
            dream._streams.append(replace(stream, frame=frame, text=said))
            del dream._streams[: -dream.history]
            steps.append(Step(frame, text=said))
        return steps

    def rewind(self, n: int) -> Step:
        """Go back n imagined frames: to the start at most, and to the oldest state that is kept."""
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
            copy._number, copy.history = self._number, self.history
            copies.append(copy)
        return copies

    def describe(self, **sampling: Unpack[SamplingOptions]) -> str:
        """Return a caption of the current frame.

        The model sees the frame alone, as in training; the rollout stays as it is.

        Args:
            sampling: seed, temperature, top_p, ... as in `worldmodel.generate.Sampling`.
        """
        return self._say(self._seen(), ["caption:"], sampling)[0]

    def answer(self, question: str, **sampling: Unpack[SamplingOptions]) -> str:
        """Return the answer to a question about the current frame; else as `describe`.

        Raises:
            UserError: an empty question or one that is too long.
        """
        return self._say(self._seen(), [_asked(question)], sampling)[0]

    def complete(self, text: str, **sampling: Unpack[SamplingOptions]) -> str:
        """Return how plain text goes on; no frame takes part.

        Raises:
            UserError: a text that is too long.
        """
        return self._say([Stream()], [text], sampling)[0]

    def captions(self, frames: np.ndarray, **sampling: Unpack[SamplingOptions]) -> list[str]:
        """Return a caption of each of some frames, uint8 [n, H, W, 3], as one batch.

        Raises:
            UserError: frames of another size or type, or none.
        """
        self._check(frames)
        streams = look(self.engine, self.engine.see(frames))
        return self._say(streams, ["caption:"] * len(frames), sampling)

    def answers(
        self, frames: np.ndarray, questions: Sequence[str], **sampling: Unpack[SamplingOptions]
    ) -> list[str]:
        """Return the answer to a question about each of some frames, uint8 [n, H, W, 3].

        Raises:
            UserError: frames of another size or type, or not a question for each.
        """
        self._check(frames)
        if len(questions) != len(frames):
            raise UserError(f"{len(frames)} frames need as many questions, not {len(questions)}.")
        streams = look(self.engine, self.engine.see(frames))
        return self._say(streams, [_asked(question) for question in questions], sampling)

    def picture(
        self,
        text: str,
        n: int = 1,
        seed: int = 0,
        denoise_steps: int = 8,
        guidance: float = 1.5,
        shift: float = 1.0,
    ) -> np.ndarray:
        """Imagine frames from a caption alone, uint8 [n, H, W, 3]; no rollout takes part.

        Args:
            text: the caption, such as "a dark room, a red torch ahead".
            n: how many; the i-th has the noise of seed + i.
            seed: of the noise.
            denoise_steps: network passes; more come closer to real frames.
            guidance: moves so many times as far from a frame without text as the text does; more
                follows the text better and is further from real frames.
            shift: above 1 the steps are smaller near noise, see `worldmodel.flow.sample`; no
                better than equal ones with doom-nano (docs/model.md).

        Raises:
            UserError: an empty caption or one that is too long.
        """
        caption = f"caption: {clean_sentence(text).lower()}"
        return picture(self.engine, caption, n, seed, denoise_steps, guidance, shift)

    def generate(
        self, max_frames: int = 4, **sampling: Unpack[SamplingOptions]
    ) -> list[str | np.ndarray]:
        """Let the model go on from here by itself; returns its texts and frames in order.

        The rollout stays as it is. Greedy choice often says one thing only: give a temperature.

        Args:
            max_frames: most frames, uint8 [H, W, 3].
            sampling: as in `describe`; `max_tokens` is of each text.
        """
        chosen = Sampling(**sampling)
        settings = (max_frames, self.denoise_steps, self.guidance)
        return list(generate(self.engine, self._stream, chosen, *settings))

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
        return self.engine.noise(abs(self._seed), abs(self._number), step)

    def _seen(self) -> list[Stream]:
        """The current frame as the only thing that was ever seen."""
        return look(self.engine, self.latent.unsqueeze(0))

    def _say(
        self, streams: Sequence[Stream], prompts: Sequence[str], sampling: SamplingOptions
    ) -> list[str]:
        ids = [encode(self.engine, prompt) for prompt in prompts]
        said = say(self.engine, streams, ids, Sampling(**sampling))
        return [self.engine.checkpoint.tokenizer.decode(one.ids).strip() for one in said]

    def _check(self, frames: np.ndarray) -> None:
        size = (self.spec.height, self.spec.width, 3)
        if frames.ndim != 4 or not len(frames) or frames.shape[1:] != size:
            raise UserError(
                f"Frames of shape {frames.shape} were given; the model takes frames of "
                f"[n, {size[0]}, {size[1]}, 3]. Resize them first."
            )
        if frames.dtype != np.uint8:
            raise UserError(f"Frames must be uint8 RGB, not {frames.dtype}.")

    def _context(
        self, frames: np.ndarray | None, actions: Sequence[Action] | None
    ) -> tuple[np.ndarray, list[str]]:
        checkpoint, table = self.engine.checkpoint, self.spec.actions
        if frames is None:
            index = self._number % self.num_starts
            keys = checkpoint.start_keys[index]
            told = [table.text(table.from_mask(int(mask))) for mask in keys]
            return checkpoint.start_frames[index], told
        self._check(frames)
        if actions is None:
            return frames, [""] * (len(frames) - 1)
        if len(actions) != len(frames) - 1:
            raise UserError(
                f"{len(frames)} frames need {len(frames) - 1} actions between, got {len(actions)}."
            )
        return frames, [table.text(action) for action in actions]


def _history(engine: Engine) -> int:
    """How many steps a dream of this engine keeps."""
    config = engine.core.config
    values = 2 * config.depth * config.kv_heads * config.width // config.heads  # of a token
    step_bytes = values * (config.frame_tokens + 1) * engine.dtype.itemsize
    return min(MAX_HISTORY, max(MIN_HISTORY, MAX_HISTORY_BYTES // step_bytes))


def _asked(question: str) -> str:
    return f"question: {clean_sentence(question).lower()} answer:"
