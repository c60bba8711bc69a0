"""Several stores as one: each document comes from one of them, drawn by weight."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from worldmodel.errors import UserError
from worldmodel.sequence import Document, Frame, Text
from worldmodel.train.samples import Sampler, bounds, pick


class Draws(Protocol):
    """What training draws documents from."""

    def draw(self, rng: np.random.Generator, step: int = 0) -> tuple[int, Document]:
        """Return (index in KINDS, document) of a training step."""
        ...


class StoreMixture:
    """Samplers of several stores; each keeps its own world's action table.

    `Frame.latent` of a document counts through the frames of all stores, in their order.
    """

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float]) -> None:
        """Take one sampler a store, and how often each is drawn from; need not sum to 1."""
        self.samplers = tuple(samplers)
        self._shares = bounds(store_shares(weights, len(samplers)))
        lengths = [len(sampler.recordings.frames) for sampler in samplers]
        self._offsets = np.cumsum([0, *lengths[:-1]]).tolist()

    def draw(self, rng: np.random.Generator, step: int = 0) -> tuple[int, Document]:
        """Return (index in KINDS, document); a function of the generator and the step only."""
        number = pick(self._shares, rng)
        kind, document = self.samplers[number].draw(rng, step)
        return kind, [_moved(span, self._offsets[number]) for span in document]


def store_shares(weights: Sequence[float], count: int) -> np.ndarray:
    """Return the share of each of `count` stores; no weights stand for equal ones.

    Raises:
        UserError: another number of weights, negative ones, or none above 0.
    """
    if weights and len(weights) != count:
        raise UserError(f"weights has {len(weights)} numbers, but stores has {count} stores.")
    shares = np.array(weights or [1.0] * count, np.float64)
    if not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise UserError(
            f"weights={list(weights)}: a store's weight must not be negative, and one must be "
            "above 0."
        )
    return shares / shares.sum()


def _moved(span: Text | Frame, offset: int) -> Text | Frame:
    return Frame(span.latent + offset, span.target) if isinstance(span, Frame) else span
