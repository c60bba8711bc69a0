"""The core's training task: next-token prediction on text, flow matching on frames."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from worldmodel.devices import mixed_precision, moved
from worldmodel.errors import UserError, suggest
from worldmodel.flops import training_flops_per_token
from worldmodel.flow import (
    FLOOR,
    WEIGHTINGS,
    Predict,
    draw_levels,
    flow_loss,
    mix,
    sample,
    shortcut_target,
)
from worldmodel.moe import routers
from worldmodel.sequence import RULED, Batch, attention_mask, visibility
from worldmodel.train.centring import LossCentre
from worldmodel.train.distributed import total
from worldmodel.train.loader import Loader, Processes
from worldmodel.train.mixture import Draws
from worldmodel.train.packing import Packer
from worldmodel.train.samples import KINDS
from worldmodel.train.task import Task
from worldmodel.transformer import Core

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

FORCINGS = ("teacher", "diffusion", "sequence")
_OWN = 0.7  # share of the past frames that are replaced by imagined ones


@dataclass(frozen=True)
class CoreTraining:
    """Knobs of the core's training.

    Attributes:
        rows, length: a batch is about `rows` rows of `length` tokens.
        forcing: what a frame's past looks like while the frame is learned. 'teacher': nearly clean
            (`context_noise`), beside which the frame stands a second time, noised. 'diffusion':
            every frame is noised once, at a level of its own, and seen so by what follows
            (Diffusion Forcing, arXiv 2407.01392; so the paper). 'sequence': as before, but with
            one level for all frames of a document (plain flow matching).
        flow_weight: lambda of L = L_text + lambda * L_flow (3.0 in arXiv 2603.03276).
        centre: weigh both losses equally by loss centring instead, see `LossCentre`, with
            `centre_share` of the flow loss in the centre and its running mean's `centre_decay`.
        weighting, floor: of the flow loss by signal level, see `worldmodel.flow.flow_loss`.
        shift: shifts levels towards noise, beyond what the latents' dimension asks for.
        context_noise: context frames are shown at signal levels 1 - context_noise * u^2.
        shortcut: share of rows that learn large steps, from step `shortcut_from` on.
        own_past: share of rows whose past frames are mostly the model's own imagination instead
            of the truth, from step `own_past_from` on; what makes long rollouts hold
            (scheduled sampling, arXiv 1506.03099).
        own_past_depth: up to so many times over: frames imagined from imagined frames.
        balance: rate of the router's bias (arXiv 2408.15664); 0 leaves the bias alone.
        balance_loss: weight of the loss against uneven routers (arXiv 2101.03961; 0.01 there).
        workers: processes that draw batches ahead; the result is the same for any number.
    """

    rows: int = 9
    length: int = 448
    forcing: str = "teacher"
    flow_weight: float = 3.0
    centre: bool = False
    centre_share: float = 0.5
    centre_decay: float = 0.99
    weighting: str = "velocity"
    floor: float = FLOOR
    shift: float = 2.0
    context_noise: float = 0.35
    shortcut: float = 0.2
    shortcut_from: int = 1200
    own_past: float = 0.3
    own_past_from: int = 1600
    own_past_depth: int = 3
    balance: float = 0.002
    balance_loss: float = 0.0
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            UserError: names both values.
        """
        for name, known in (("forcing", FORCINGS), ("weighting", WEIGHTINGS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"core.{name}={value!r} is unknown.{suggest(str(value), known)}")
        if self.rows < 1 or self.length < 1:
            raise UserError(f"core.rows={self.rows} and core.length={self.length} must be above 0.")
        if self.workers < 0:
            raise UserError(f"core.workers={self.workers} must not be below 0.")
        if self.own_past > 0 and self.forcing != "teacher":
            raise UserError(
                f"core.forcing={self.forcing} shows every frame noised to what follows, so the "
                f"past cannot be imagined instead; set core.own_past=0 (now {self.own_past:g}) or "
                "core.forcing=teacher."
            )


class CoreTask(Task):
    """The core on packed documents.

    Args:
        core: the network.
        sampler: draws documents.
        latents: [frames, n, c] of all of the recordings' frames, normalised, on any device.
        config: the knobs.
        dtype: of the matrix products; weights stay in float32.
        ranks, accumulate: processes, and batches of each a step.
    """

    def __init__(
        self,
        core: Core,
        sampler: Draws,
        latents: torch.Tensor,
        config: CoreTraining,
        dtype: torch.dtype = torch.float32,
        ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.module: Core = core
        self.sampler = sampler
        self.latents = latents
        self.config = config
        self.dtype = dtype
        self.device = next(core.parameters()).device
        self.batches = ranks * accumulate
        shape, in_place = core.config, config.forcing != "teacher"
        self._packer = Packer(
            sampler,
            config.rows,
            config.length,
            shape.grid,
            shape.window,
            in_place,
            config.seed,
            self.batches,
        )
        self._draw = Processes(self._packer, config.workers) if config.workers else self._packer
        self._prepared = Loader(self._prepare, config.workers, ranks)
        self._centre = LossCentre(config.centre_share, config.centre_decay, self.device)
        self._done = torch.zeros(2, dtype=torch.int64, device=self.device)  # tokens, frames
        self._flops = 0.0  # of a token

    def close(self) -> None:
        """Stop the processes that draw batches."""
        self._prepared.close()
        if isinstance(self._draw, Processes):
            self._draw.close()

    def _prepare(
        self, number: int
    ) -> tuple[np.random.Generator, torch.Generator, Batch, torch.Tensor, torch.Tensor]:
        """Return the randomness as it is after a batch; the batch, its latents and their noise.

        What `workers` threads do while the network learns: wait for a process that draws, and
        bring the rest to the network's device.
        """
        rng, seed, batch = self._draw(number)
        generator = torch.Generator().manual_seed(seed)
        batch, clean = self._with_latents(batch)
        noise = torch.randn(clean.shape, generator=generator)
        return rng, generator, batch, clean, moved(noise, self.device)

    def batch(self, rng: np.random.Generator, step: int = 0) -> tuple[Batch, torch.Tensor]:
        """Draw a step's batch and the clean latents [F, N, C] of its frame copies."""
        return self._with_latents(self._packer.batch(rng, step))

    def _with_latents(self, batch: Batch) -> tuple[Batch, torch.Tensor]:
        batch = batch.to(self.device)
        clean = self.latents[batch.source.to(self.latents.device)]
        return batch, self.module.merge(moved(clean, self.device).float())

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        """Return a batch's tokens, layout and clean latents."""
        packed, clean = self._prepare(batch)[2:4]
        return {f.name: getattr(packed, f.name) for f in fields(packed)} | {"latents": clean}

    def losses(self, step: int, batch: int | None = None) -> dict[str, torch.Tensor]:
        """One batch's losses: `loss`, `flow`, `text`, and both by sample kind."""
        number = step * self.batches if batch is None else batch
        return self._losses(step, *self._prepared(number))

    def _losses(
        self,
        step: int,
        rng: np.random.Generator,
        generator: torch.Generator,
        batch: Batch,
        clean: torch.Tensor,
        noise: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        config, core = self.config, self.module
        level, stride = self._levels(batch, step, generator)
        goal = shown = clean
        with mixed_precision(self.device, self.dtype):
            if step >= config.own_past_from and config.own_past > 0:
                shown = self._own_past(batch, clean, noise, level, stride, rng)
            noised = mix(shown, noise, level)
            short = stride < core.config.strides - 1
            if short.any():
                goal = self._shortcut_goal(batch, clean, noised, level, stride, short)
            # Autocast must not take weights that it cast without gradients for those with: with
            # weights that FSDP gathered it does, and they would not be trained.
            torch.clear_autocast_cache()
            hidden, seen = run(core, batch, visibility(batch), noised, level, stride)
            aims = batch.is_target.nonzero().squeeze(1)
            drawn = core.draw(
                hidden.flatten(0, 1)[_places(batch, aims, core)],
                seen[aims],
                noised[aims],
                level[aims],
            )
            texts = batch.next_id >= 0
            said = core.say(hidden[texts])
        flow = flow_loss(drawn, goal[aims], level[aims], config.weighting, config.floor)
        text = F.cross_entropy(said.float(), batch.next_id[texts], reduction="none")
        losses = {"flow": _mean(flow), "text": _mean(text)}
        losses["loss"] = losses["text"] + config.flow_weight * losses["flow"]
        if config.centre:
            losses["loss"] = self._centre.weigh(losses["text"], losses["flow"])
        uneven = [r.unevenness for r in routers(core) if r.unevenness is not None]
        if config.balance_loss > 0 and uneven:
            losses["unevenness"] = torch.stack(uneven).mean()
            losses["loss"] = losses["loss"] + config.balance_loss * losses["unevenness"]
        self._count(batch, len(aims))
        losses |= _by_kind("flow", flow.detach(), batch.kind[aims])
        return losses | _by_kind("text", text.detach(), batch.text_kind[texts])

    def after_step(self, step: int) -> dict[str, torch.Tensor]:
        """Balance the routers; report the evenness of loads, in all and by modality."""
        numbers: dict[str, torch.Tensor] = {}
        if self.config.centre:
            self._centre.update()
        for layer, router in enumerate(routers(self.module)):
            total(router.load)
            load = router.balance(self.config.balance)
            share = load.sum(0) / load.sum().clamp(min=1)
            numbers[f"router/{layer}/busiest"] = share.max() * len(share)
            for modality, name in enumerate(("text", "vision")):
                part = load[modality] / load[modality].sum().clamp(min=1)
                numbers[f"router/{layer}/busiest_{name}"] = part.max() * len(part)
        return numbers

    def state(self) -> dict[str, torch.Tensor]:
        """Return the running mean of loss centring, if it is on."""
        return {"centre": self._centre.mean} if self.config.centre else {}

    def work(self) -> dict[str, float]:
        """Tokens and target frames so far, and the FLOPs of learning from them.

        Passes that imagine pasts and goals are not counted; the model's size is what counts.
        """
        tokens, frames = self._done.tolist()
        return {"tokens": tokens, "frames": frames, "flops": tokens * self._flops}

    def _count(self, batch: Batch, frames: int) -> None:
        real = batch.doc >= 0
        self._done[0] += real.sum()
        self._done[1] += frames
        if not self._flops:
            few = {name: getattr(batch, name)[:4] for name in RULED}
            keys = attention_mask(replace(batch, **few)).sum() / few["doc"].numel()
            share = batch.vision.sum() / real.sum()
            config = self.module.config
            self._flops = training_flops_per_token(config, keys.item(), share.item())

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
        if config.forcing == "sequence":  # the first copy of a document speaks for all
            docs = batch.doc.flatten()[batch.first_places()].cpu()
            first = torch.full((int(batch.doc.max()) + 1,), count)
            first.scatter_reduce_(0, docs, torch.arange(count), "amin")
            level, stride = level[first[docs]], stride[first[docs]]
        aims = batch.is_target.cpu()
        level = torch.where(aims, level, context)
        stride = torch.where(aims, stride, torch.full_like(stride, shape.strides - 1))
        return level.to(self.device), stride.to(self.device)

    @torch.no_grad()
    def _shortcut_goal(
        self,
        batch: Batch,
        clean: torch.Tensor,
        noised: torch.Tensor,
        level: torch.Tensor,
        stride: torch.Tensor,
        short: torch.Tensor,
    ) -> torch.Tensor:
        """Clean latents, but for targets with a large step: where two half steps lead."""
        rows = torch.arange(int(batch.row_of_copies(self.config.length)[short].max()) + 1)
        predict = self._predictor(batch, rows, noised, level, stride, short)
        goal = clean.clone()
        goal[short] = shortcut_target(predict, noised[short], level[short], stride[short])
        return goal

    @torch.no_grad()
    def _own_past(
        self,
        batch: Batch,
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
            predict = self._predictor(batch, rows, noised, level, stride, chosen)
            imagined = sample(predict, noise[chosen], 2, self.module.config.strides)
            taken = torch.from_numpy(rng.random(len(past)) < _OWN).to(self.device)
            shown = clean.clone()
            shown[past[taken]] = imagined[taken].to(shown.dtype)
        return shown

    def _predictor(
        self,
        batch: Batch,
        rows: torch.Tensor,
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
        mask = visibility(part)

        def predict(z: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            shown, levels, strides = noised[inside], level[inside], stride[inside]
            shown[there], levels[there], strides[there] = z, t, s
            hidden, seen = run(core, part, mask, shown, levels, strides)
            return core.draw(hidden.flatten(0, 1)[places], seen[there], z, t).float()

        return predict


def _by_kind(name: str, values: torch.Tensor, kinds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the mean of the values [n] of each kind (a number in KINDS, [n]) that there is."""
    own = kinds == torch.arange(len(KINDS), device=kinds.device).unsqueeze(1)
    counts = own.sum(1)
    means = torch.where(own, values, 0.0).sum(1) / counts
    there = counts.tolist()  # waits for the device, once for all kinds
    return {f"{name}/{KINDS[i]}": means[i] for i, count in enumerate(there) if count}


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean, 0 for no values: a batch may be of text alone, or hold none."""
    return values.mean() if len(values) else values.sum()


def run(
    core: Core,
    batch: Batch,
    mask: "torch.Tensor | BlockMask",
    shown: torch.Tensor,
    level: torch.Tensor,
    stride: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The full forward of a batch whose copies show `shown`.

    Returns:
        Hidden states [R, L, D]; what `Core.draw` needs of every copy [F, ...].
    """
    x = core.embed(batch.ids)
    frames, seen = core.embed_frames(shown, level, stride, batch.last_frames(shown))
    frames = frames.to(x.dtype).flatten(0, 1)
    x = x.flatten(0, 1).index_copy(0, batch.visual, frames).view_as(x)
    return core(x, batch.vision, batch.position, mask), seen


def _places(batch: Batch, copies: torch.Tensor, core: Core) -> torch.Tensor:
    """Token places [len(copies), N] of some frame copies in the flattened batch."""
    return batch.visual.view(-1, core.config.frame_tokens)[copies]
