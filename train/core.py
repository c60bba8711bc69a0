"""The core's training task: next-token prediction on text, flow matching on frames."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from worldmodel.devices import mixed_precision
from worldmodel.flow import Predict, draw_levels, flow_loss, mix, sample, shortcut_target
from worldmodel.moe import FeedForward
from worldmodel.sequence import Batch, Document, Text, attention_mask, pack
from worldmodel.train.loader import Loader
from worldmodel.train.mixture import Draws
from worldmodel.train.samples import KINDS
from worldmodel.transformer import Core

_OWN = 0.7  # share of the past frames that are replaced by imagined ones


@dataclass(frozen=True)
class CoreTraining:
    """Knobs of the core's training.

    Attributes:
        rows, length: a batch is about `rows` rows of `length` tokens.
        flow_weight: lambda of L = L_text + lambda * L_flow (3.0 in arXiv 2603.03276).
        shift: shifts levels towards noise, beyond what the latents' dimension asks for.
        context_noise: context frames are shown at signal levels 1 - context_noise * u^2.
        shortcut: share of rows that learn large steps, from step `shortcut_from` on.
        own_past: share of rows whose past frames are mostly the model's own imagination instead
            of the truth, from step `own_past_from` on; what makes long rollouts hold
            (scheduled sampling, arXiv 1506.03099).
        own_past_depth: up to so many times over: frames imagined from imagined frames.
        balance: rate of the router's bias (arXiv 2408.15664).
        workers: threads that prepare batches ahead; the result is the same for any number.
    """

    rows: int = 10
    length: int = 384
    flow_weight: float = 3.0
    shift: float = 2.0
    context_noise: float = 0.35
    shortcut: float = 0.2
    shortcut_from: int = 550
    own_past: float = 0.3
    own_past_from: int = 550
    own_past_depth: int = 3
    balance: float = 0.002
    seed: int = 0
    workers: int = 0


class CoreTask:
    """The core on packed documents.

    Args:
        core: the network.
        sampler: draws documents.
        latents: [frames, n, c] of all of the recordings' frames, normalised, on any device.
        config: the knobs.
        dtype: of the matrix products; weights stay in float32.
        rank, ranks: batch number `step * ranks + rank` is this process's, so that no two
            processes ever get the same one.
    """

    def __init__(
        self,
        core: Core,
        sampler: Draws,
        latents: torch.Tensor,
        config: CoreTraining,
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.module = core
        self.sampler = sampler
        self.latents = latents
        self.config = config
        self.dtype = dtype
        self.device = next(core.parameters()).device
        self.rank, self.ranks = rank, ranks
        self._prepared = Loader(self._prepare, config.workers)

    def _prepare(
        self, step: int
    ) -> tuple[np.random.Generator, torch.Generator, Batch, torch.Tensor]:
        """Return the randomness of a step, as drawing its batch left it, and the batch."""
        rng = np.random.default_rng([self.config.seed, 3, step * self.ranks + self.rank])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return rng, generator, *self.batch(rng, step)

    def batch(self, rng: np.random.Generator, step: int = 0) -> tuple[Batch, torch.Tensor]:
        """Draw a step's batch and the clean latents [F, N, C] of its frame copies."""
        config, shape = self.config, self.module.config
        documents, kinds, tokens = [], [], 0
        while tokens < 0.93 * config.rows * config.length:  # what first-fit packing can fill
            kind, document = self.sampler.draw(rng, step)
            document = trim(document, shape.frame_tokens, config.length)
            documents.append(document)
            kinds.append(kind)
            tokens += count_tokens(document, shape.frame_tokens)
        order = sorted(
            range(len(documents)), key=lambda i: -count_tokens(documents[i], shape.frame_tokens)
        )
        documents, kinds = [documents[i] for i in order], [kinds[i] for i in order]
        batch = pack(documents, kinds, shape.grid, shape.window, config.length)
        clean = self.latents[batch.source.to(self.latents.device)].to(self.device).float()
        return batch.to(self.device), self.module.merge(clean)

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        """One step's losses: `loss`, `flow`, `text`, and both by sample kind."""
        config, core = self.config, self.module
        rng, generator, batch, clean = self._prepared(step)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        level, stride = self._levels(batch, step, generator)
        mask = attention_mask(batch)
        goal = shown = clean
        with mixed_precision(self.device, self.dtype):
            if step >= config.own_past_from and config.own_past > 0:
                shown = self._own_past(batch, mask, clean, noise, level, stride, rng)
            noised = mix(shown, noise, level)
            short = stride < core.config.strides - 1
            if short.any():
                goal = self._shortcut_goal(batch, mask, clean, noised, level, stride, short)
            hidden = run(core, batch, mask, noised, level, stride)
            aims = batch.is_target.nonzero().squeeze(1)
            drawn = core.draw(
                hidden.flatten(0, 1)[_places(batch, aims, core)], batch.last_frames(noised)[aims]
            )
            texts = batch.next_id >= 0
            said = core.say(hidden[texts])
        flow = flow_loss(drawn, goal[aims], level[aims])
        text = F.cross_entropy(said.float(), batch.next_id[texts], reduction="none")
        losses = {"flow": flow.mean(), "text": text.mean()}
        losses["loss"] = losses["text"] + config.flow_weight * losses["flow"]
        for i, kind in enumerate(KINDS):
            for name, values, of in (
                ("flow", flow, batch.kind[aims]),
                ("text", text, batch.text_kind[texts]),
            ):
                if (of == i).any():
                    losses[f"{name}/{kind}"] = values.detach()[of == i].mean()
        return losses

    def after_step(self, step: int) -> dict[str, float]:
        """Balance the routers; report the evenness of loads, in all and by modality."""
        numbers: dict[str, float] = {}
        for layer, block in enumerate(self.module.blocks):
            feed_forward = block.feed_forward
            assert isinstance(feed_forward, FeedForward)
            if feed_forward.router is None:
                continue
            load = feed_forward.router.balance(self.config.balance)
            share = load.sum(0) / load.sum().clamp(min=1)
            numbers[f"router/{layer}/busiest"] = (share.max() * len(share)).item()
            for modality, name in enumerate(("text", "vision")):
                part = load[modality] / load[modality].sum().clamp(min=1)
                numbers[f"router/{layer}/busiest_{name}"] = (part.max() * len(part)).item()
        return numbers

    def _levels(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal level and stride of every frame copy [F]."""
        config, shape = self.config, self.module.config
        count, dimensions = len(batch.source), shape.frame_tokens * shape.channels
        plain = draw_levels(count, dimensions, shape.strides, 0.0, generator, config.shift)
        short = draw_levels(count, dimensions, shape.strides, 1.0, generator)
        context = 1 - config.context_noise * torch.rand(count, generator=generator).square()
        rows = batch.row_of_copies(config.length).cpu()
        share = config.shortcut if step >= config.shortcut_from else 0.0
        use_short = rows < round(share * len(batch.ids))
        level = torch.where(use_short, short[0], plain[0])
        stride = torch.where(use_short, short[1], plain[1])
        aims = batch.is_target.cpu()
        level = torch.where(aims, level, context)
        stride = torch.where(aims, stride, torch.full_like(stride, shape.strides - 1))
        return level.to(self.device), stride.to(self.device)

    @torch.no_grad()
    def _shortcut_goal(
        self,
        batch: Batch,
        mask: torch.Tensor,
        clean: torch.Tensor,
        noised: torch.Tensor,
        level: torch.Tensor,
        stride: torch.Tensor,
        short: torch.Tensor,
    ) -> torch.Tensor:
        """Clean latents, but for targets with a large step: where two half steps lead."""
        rows = torch.arange(int(batch.row_of_copies(self.config.length)[short].max()) + 1)
        predict = self._predictor(batch, rows, mask, noised, level, stride, short)
        goal = clean.clone()
        goal[short] = shortcut_target(predict, noised[short], level[short], stride[short])
        return goal

    @torch.no_grad()
    def _own_past(
        self,
        batch: Batch,
        mask: torch.Tensor,
        clean: torch.Tensor,
        noise: torch.Tensor,
        level: torch.Tensor,
        stride: torch.Tensor,
        rng: np.random.Generator,
    ) -> torch.Tensor:
        """Clean latents, but with most past frames of the last rows as the model imagines them.

        Each target of those rows is imagined in two steps from the past, and most of the frames
        that the rest of the row then sees are these; again from there, up to `own_past_depth`
        times.
        """
        count = len(batch.ids)
        rows = torch.arange(count - round(self.config.own_past * count), count)
        row_of_copies = batch.row_of_copies(self.config.length).cpu()
        chosen = (row_of_copies >= count - len(rows)).to(self.device) & batch.is_target
        if not chosen.any():
            return clean
        past = batch.context_of_targets()[chosen[batch.is_target]]
        shown = clean
        for _ in range(int(rng.integers(1, self.config.own_past_depth + 1))):
            noised = mix(shown, noise, level)
            predict = self._predictor(batch, rows, mask, noised, level, stride, chosen)
            imagined = sample(predict, noise[chosen], 2, self.module.config.strides)
            taken = torch.from_numpy(rng.random(len(past)) < _OWN).to(self.device)
            shown = clean.clone()
            shown[past[taken]] = imagined[taken].to(shown.dtype)
        return shown

    def _predictor(
        self,
        batch: Batch,
        rows: torch.Tensor,
        mask: torch.Tensor,
        noised: torch.Tensor,
        level: torch.Tensor,
        stride: torch.Tensor,
        moved: torch.Tensor,
    ) -> Predict:
        """Predict some targets, `moved` (bool [F]), at other levels; only `rows` are run."""
        core, length = self.module, self.config.length
        rows = rows.to(self.device)
        inside = torch.isin(batch.row_of_copies(length), rows)
        part = batch.take_rows(rows, inside, length)
        there = moved[inside]
        places = _places(part, there.nonzero().squeeze(1), core)
        part_mask = mask[rows]

        def predict(z: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            shown, levels, strides = noised[inside], level[inside], stride[inside]
            shown[there], levels[there], strides[there] = z, t, s
            hidden = run(core, part, part_mask, shown, levels, strides)
            return core.draw(hidden.flatten(0, 1)[places], part.last_frames(shown)[there]).float()

        return predict


def count_tokens(document: Document, frame_tokens: int) -> int:
    """Tokens that `pack` makes of a document."""
    return 1 + sum(
        len(span.ids) if isinstance(span, Text) else 2 + frame_tokens * (1 + span.target)
        for span in document
    )


def trim(document: Document, frame_tokens: int, length: int) -> Document:
    """Leave out spans at the end until the document fits a row."""
    kept = list(document)
    while count_tokens(kept, frame_tokens) > length:
        kept.pop()
    while len(kept) > 1 and isinstance(kept[-1], Text) and kept[-1].role != "text":
        kept.pop()  # words about a frame that is gone
    return kept


def run(
    core: Core,
    batch: Batch,
    mask: torch.Tensor,
    shown: torch.Tensor,
    level: torch.Tensor,
    stride: torch.Tensor,
) -> torch.Tensor:
    """The full forward: hidden states [R, L, D] of a batch whose copies show `shown`."""
    x = core.embed(batch.ids)
    frames = core.embed_frames(shown, level, stride, batch.last_frames(shown)).to(x.dtype)
    x = x.flatten(0, 1).index_copy(0, batch.visual, frames.flatten(0, 1)).view_as(x)
    return core(x, batch.vision, batch.position, mask)


def _places(batch: Batch, copies: torch.Tensor, core: Core) -> torch.Tensor:
    """Token places [len(copies), N] of some frame copies in the flattened batch."""
    return batch.visual.view(-1, core.config.frame_tokens)[copies]
