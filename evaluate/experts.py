"""Which experts do what: by layer, for text, for frames that are seen and frames that are made.

Recorded clips are followed frame by frame from their true pasts. A frame is *seen* when it goes in
as context, and *made* when it is denoised; the words are the actions between the frames and
held-out sentences. Where a model sees and makes frames with the same experts, it has one
understanding of them; that is what the correlation says (arXiv 2603.03276, there r >= 0.9).

Letters in shapes: K clips, L layers, E routed experts; the 3 uses are those of `USES`.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from worldmodel.evaluate import metrics
from worldmodel.evaluate.rollouts import Clips
from worldmodel.evaluate.routing import Tally
from worldmodel.evaluate.scorecard import Metric, metric
from worldmodel.evaluate.sheets import Sheet
from worldmodel.generate import encode
from worldmodel.passes import Reader, words_of
from worldmodel.stream import Engine, Stream

USES = ("text", "seen", "made")
STEPS = 8
"""Frames of a clip that are made; as many are seen."""


def count_picks(
    engine: Engine, clips: Clips, texts: Sequence[str], denoise_steps: int = 2, seed: int = 0
) -> np.ndarray:
    """Return how often each expert is picked, float64 [K, L, 3, E].

    Args:
        engine: a model with routed experts.
        clips: K recorded clips.
        texts: sentences, dealt out to the clips.
        denoise_steps: passes in which a frame is made.
        seed: of the noise.
    """
    tally = Tally(engine.core)
    try:
        return np.stack(
            [
                _of_clip(engine, tally, clips, row, texts[row :: len(clips)], denoise_steps, seed)
                for row in tqdm(range(len(clips)), desc="experts", unit="clip", leave=False)
            ]
        )
    finally:
        tally.close()


def measure_experts(picks: np.ndarray, seed: int = 0) -> list[Metric]:
    """Return specialisation and correlation, by layer and as means over the layers.

    `experts_specialisation` is the mutual information, in bits, between an expert and whether the
    token it is picked for is of text or of a frame, both as frequent: 0 where experts serve both
    alike, 1 where none serves both. Beside it the same of seen and made frames.
    `experts_correlation` is Pearson's r of the experts' shares for seen and for made frames;
    beside it that of text and frames.

    Args:
        picks: float [K, L, 3, E].
        seed: of the bootstrap over the clips.
    """
    once, often = shares(picks.mean(axis=0)), shares(metrics.resampled_means(picks, seed))
    found = []
    for name, measure, better in [
        ("experts_specialisation", specialisation, ""),
        ("experts_correlation", correlation, "higher"),
    ]:
        value, samples = measure(once), measure(often)  # {comparison: [L]}, {...: [R, L]}
        (first, others), layers = (next(iter(value)), list(value)[1:]), once.shape[0]
        for layer in (None, *range(layers)):
            at = slice(None) if layer is None else slice(layer, layer + 1)
            low, high = np.quantile(samples[first][:, at].mean(axis=1), [0.025, 0.975])
            mean = float(value[first][at].mean())
            beside = {other: float(value[other][at].mean()) for other in others}
            title = name if layer is None else f"{name}_layer_{layer + 1}"
            bounds = metrics.Estimate(mean, float(low), float(high), len(picks))
            found.append(metric(title, bounds, better=better, baselines=beside))
    return found


def shares(picks: np.ndarray) -> np.ndarray:
    """Return each expert's share of the picks of a use, [..., L, 3, E]; they sum to 1."""
    return picks / np.maximum(picks.sum(axis=-1, keepdims=True), 1e-9)


def specialisation(share: np.ndarray) -> dict[str, np.ndarray]:
    """Return the bits [..., L] that an expert tells of what it is picked for."""
    text, seen, made = np.moveaxis(share, -2, 0)
    return {
        "text and frames": _information(text, (seen + made) / 2),
        "seen and made": _information(seen, made),
    }


def correlation(share: np.ndarray) -> dict[str, np.ndarray]:
    """Return Pearson's r [..., L] of two uses' shares over the experts; 0 where one is even."""
    text, seen, made = np.moveaxis(share, -2, 0)
    return {"seen and made": _pearson(seen, made), "text and made": _pearson(text, made)}


def table(picks: np.ndarray) -> dict[str, Any]:
    """Return the shares by use, layer and expert, and each expert's leaning, as plain lists.

    The leaning is (text - frames) / (text + frames) of its shares: 1 for text alone, -1 for
    frames alone.
    """
    share = shares(picks.sum(axis=0))
    text, frames = share[:, 0], share[:, 1:].mean(axis=1)
    lean = (text - frames) / np.maximum(text + frames, 1e-9)
    by_use = {use: share[:, i].round(5).tolist() for i, use in enumerate(USES)}
    return {"experts": {"share": by_use, "leaning": lean.round(4).tolist()}}


def draw(picks: np.ndarray) -> Sheet:
    """Return a heat map of the shares, in percent: a row for each layer, a block for each use."""
    share = shares(picks.sum(axis=0))
    layers, _, experts = share.shape
    font, cell, left, top = ImageFont.load_default(12), 26, 62, 38
    block = experts * cell + 18
    size = (left + len(USES) * block, top + layers * cell + 10)
    picture = Image.new("RGB", size, (24, 26, 30))
    pen = ImageDraw.Draw(picture)
    for layer in range(layers):
        y = top + layer * cell + cell / 2
        pen.text((left - 8, y), f"layer {layer + 1}", (150, 156, 166), font, anchor="rm")
    for i, use in enumerate(USES):
        x0 = left + i * block
        pen.text((x0, top - 10), use, (232, 234, 238), font, anchor="ls")
        for layer, expert in np.ndindex(layers, experts):
            x, y = x0 + expert * cell, top + layer * cell
            value = float(share[layer, i, expert])
            glow = min(value * experts / 3, 1.0)  # three times an even share is as bright as can be
            fill = tuple(round(34 + glow * (full - 34)) for full in (245, 160, 60))
            pen.rectangle((x, y, x + cell - 2, y + cell - 2), fill=fill)
            ink = (20, 20, 20) if glow > 0.5 else (200, 204, 210)
            pen.text((x + cell / 2 - 1, y + cell / 2), f"{value:.0%}"[:-1], ink, font, anchor="mm")
    out = io.BytesIO()
    picture.save(out, "PNG")
    caption = "Share of the picks of text, seen and made frames that each expert gets, in percent"
    return Sheet("experts", "Experts by layer", caption, out.getvalue())


@torch.inference_mode()
def _of_clip(
    engine: Engine,
    tally: Tally,
    clips: Clips,
    row: int,
    texts: Sequence[str],
    denoise_steps: int,
    seed: int,
) -> np.ndarray:
    """Return one clip's picks, float64 [L, 3, E]."""
    checkpoint, tally_shape = engine.checkpoint, tally.take().shape
    picks = torch.zeros(tally_shape[0], len(USES), tally_shape[2], dtype=torch.float64)
    for text in texts:
        ids = [*words_of(Stream().unread), *encode(engine, text)]
        Reader(engine, [Stream()], len(ids)).read([ids])
        picks[:, 0] += tally.take()[:, 0].cpu()
    table_, count = checkpoint.spec.actions, min(STEPS, clips.future.shape[1])
    actions = clips.actions(table_, row)
    latents = engine.see(clips.frames[row, : clips.context + count])
    stream = Stream()
    for t, latent in enumerate(latents):
        words = [checkpoint.tokenizer.encode(table_.text(actions[t - 1]))] if t else [[]]
        noise = engine.noise(seed, row, t)
        if t >= clips.context:
            engine.follow([stream], words, noise, denoise_steps=denoise_steps)
            picks[:, 2] += tally.take()[:, 1].cpu()
        (stream,) = engine.settle(engine.follow([stream], words, noise, given=latent.unsqueeze(0)))
        found = tally.take().cpu()
        picks[:, 0] += found[:, 0]
        if t >= clips.context:
            picks[:, 1] += found[:, 1]
    return picks.numpy()


def _information(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence of two distributions [..., E] in bits, 0 to 1."""

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log2(np.maximum(p, 1e-12))).sum(axis=-1)

    return np.clip(entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2, 0, 1)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
    scale = np.sqrt(np.square(x).sum(axis=-1) * np.square(y).sum(axis=-1))
    return np.where(scale > 1e-12, (x * y).sum(axis=-1) / np.maximum(scale, 1e-12), 0.0)
