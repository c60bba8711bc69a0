"""Saying: text from a stream token by token, and frames where the model asks for them.

Text is sampled on the cache, one forward pass a token (`worldmodel.stream.Reader`), beside the
streams: asking leaves them as they are. Left to itself the model goes from text to a frame where
it says `<boi>`, imagines it, and goes on after `<eoi>` (arXiv 2603.03276, Transfusion).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from worldmodel.errors import UserError
from worldmodel.passes import Reader, words_of
from worldmodel.sequence import Text
from worldmodel.stream import Engine, Stream, generator
from worldmodel.text import BOI, BOS, EOI, EOS, PAD

MAX_PROMPT_TOKENS = 384
"""Longest text that the model is trained on (`train.core.length`)."""
_NEVER = [PAD, BOS, EOI]  # what only the layout writes


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments."""

    seed: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        seed: of the choice; the same seed says the same.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: only the likeliest tokens that together have this probability, in (0, 1].
        top_k: only so many of the likeliest tokens; 0 for all.
        max_tokens: most tokens of one text.
    """

    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 48

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled with.

        Raises:
            UserError: names the value.
        """
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature} must be 0 or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1.")
        for name in ("seed", "top_k", "max_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be 0 or more.")


@dataclass(frozen=True)
class Said:
    """One text that was sampled.

    Attributes:
        ids: its tokens.
        end: EOS, BOI, or None where the limit cut it.
    """

    ids: tuple[int, ...]
    end: int | None


def choose(logits: torch.Tensor, chance: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Choose a token in every row.

    Args:
        logits: float [B, vocab].
        chance: float [B] in [0, 1), the randomness of each row.
        sampling: temperature, top_p and top_k.

    Returns:
        int64 [B].
    """
    logits = logits.float().clone()
    logits[:, _NEVER] = float("-inf")
    if sampling.temperature == 0:
        return logits.argmax(-1)
    sharp = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    shares, ids = sharp.softmax(-1).sort(stable=True, dim=-1, descending=True)
    before = shares.cumsum(-1) - shares
    kept = before < sampling.top_p
    if sampling.top_k:
        kept[:, sampling.top_k :] = False
    kept[:, 0] = True
    heights = (shares * kept).cumsum(-1)
    mark = chance.unsqueeze(1).to(heights) * heights[:, -1:]
    place = torch.searchsorted(heights, mark, right=True).clamp(max=kept.sum(-1, keepdim=True) - 1)
    return ids.gather(1, place).squeeze(1)


def say(
    engine: Engine, streams: Sequence[Stream], prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[Said]:
    """Go on after a prompt in each of B streams, as one batch; the streams stay as they are.

    Row i has the randomness of seed + i, and says what it would say alone.
    """
    sources = [generator(sampling.seed + i) for i in range(len(streams))]
    return _say(engine, streams, prompts, sampling, sources)


@torch.inference_mode()
def _say(
    engine: Engine,
    streams: Sequence[Stream],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    sources: Sequence[torch.Generator],
) -> list[Said]:
    rows = [
        [*words_of(stream.unread), *prompt] for stream, prompt in zip(streams, prompts, strict=True)
    ]
    reader = Reader(engine, streams, max(len(row) for row in rows) + sampling.max_tokens)
    chances = torch.stack([torch.rand(sampling.max_tokens, generator=g) for g in sources])
    said: list[list[int]] = [[] for _ in streams]
    ends: dict[int, int] = {}
    for chance in chances.T.to(engine.device):
        chosen = choose(reader.read(rows), chance, sampling).tolist()
        for i, token in enumerate(chosen):
            if i in ends:
                continue
            if token in (EOS, BOI):
                ends[i] = token
            else:
                said[i].append(token)
        if len(ends) == len(rows):
            break
        rows = [[] if i in ends else [token] for i, token in enumerate(chosen)]
    return [Said(tuple(ids), ends.get(i)) for i, ids in enumerate(said)]


def look(engine: Engine, latents: torch.Tensor) -> list[Stream]:
    """Streams that have seen one frame each and nothing before, of latents [B, N, C].

    So a captioned or questioned frame stands in training.
    """
    noise = engine.noise(0).expand(-1, len(latents), -1, -1)
    nothing = [()] * len(latents)
    return engine.follow([Stream()] * len(latents), nothing, noise, given=latents)


def picture(
    engine: Engine,
    text: str,
    count: int,
    seed: int,
    denoise_steps: int,
    guidance: float,
    shift: float = 1.0,
) -> np.ndarray:
    """Imagine frames uint8 [count, H, W, 3] from text alone; the i-th has the noise of seed + i.

    Raises:
        UserError: a number that makes no sense, or a text that is too long.
    """
    for name, value, least in (
        ("n", count, 1),
        ("seed", seed, 0),
        ("denoise_steps", denoise_steps, 1),
    ):
        if value < least:
            raise UserError(f"{name}={value} is too small for a picture; at least {least}.")
    if not shift > 0:
        raise UserError(f"shift={shift} must be above 0; 1 makes all denoising steps equal.")
    stream = Stream().told(Text(tuple(encode(engine, text))))
    noise = torch.cat([engine.noise(seed + i) for i in range(count)], dim=1)
    streams = engine.follow(
        [stream] * count,
        [()] * count,
        noise,
        denoise_steps=denoise_steps,
        guidance=[guidance] * count,
        shift=shift,
    )
    return engine.show(torch.stack([s.latent for s in streams if s.latent is not None]))


def generate(
    engine: Engine,
    stream: Stream,
    sampling: Sampling,
    max_frames: int,
    denoise_steps: int,
    guidance: float,
) -> Iterator[str | np.ndarray]:
    """Let the model go on by itself: yields texts and frames uint8 [H, W, 3] as it makes them.

    Ends where it says `<eos>`, after a text of `max_tokens`, or before one frame too many.
    """
    decode = engine.checkpoint.tokenizer.decode
    for number in range(max_frames + 1):
        (stream,) = engine.settle([stream])
        source = generator(sampling.seed, number)
        (said,) = _say(engine, [stream], [()], sampling, [source])
        if said.ids:
            text = decode(said.ids)
            yield text
            stream = stream.told(Text(said.ids, role(text)))
        if said.end != BOI or number == max_frames:
            return
        noise = engine.noise(sampling.seed, number)
        (stream,) = engine.follow(
            [stream], [()], noise, denoise_steps=denoise_steps, guidance=[guidance]
        )
        assert stream.latent is not None
        yield engine.show(stream.latent.unsqueeze(0))[0]


def role(text: str) -> str:
    """Return how long a text of the model's own is remembered, see `worldmodel.sequence.Text`."""
    word = text.strip().partition(":")[0]
    return word if word in ("action", "instruction") else "text"


def encode(engine: Engine, text: str) -> list[int]:
    """Return the tokens of a prompt.

    Raises:
        UserError: more than the model ever reads.
    """
    ids = engine.checkpoint.tokenizer.encode(text)
    if len(ids) > MAX_PROMPT_TOKENS:
        raise UserError(
            f"The text is {len(ids)} tokens long; the model reads at most {MAX_PROMPT_TOKENS}. "
            "Give a shorter one."
        )
    return ids
