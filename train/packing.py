"""How a batch is drawn and packed: a function of its number, apart from network and latents."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldmodel.sequence import Batch, Document, Text, pack
from worldmodel.train.mixture import Draws


@dataclass(frozen=True)
class Packer:
    """Draws batches; it can be sent to other processes.

    Attributes:
        sampler: draws documents.
        rows, length: a batch is about `rows` rows of `length` tokens.
        grid, window, in_place: how a document becomes tokens, see `worldmodel.sequence.pack`.
        seed: of all batches.
        per_step: batches of a training step, over all processes that train.
    """

    sampler: Draws
    rows: int
    length: int
    grid: tuple[int, int]
    window: int
    in_place: bool
    seed: int = 0
    per_step: int = 1

    def __call__(self, number: int) -> tuple[np.random.Generator, int, Batch]:
        """Return a batch by its number, before it the generator and a seed for what follows."""
        rng = np.random.default_rng([self.seed, 3, number])
        seed = int(rng.integers(2**62))
        return rng, seed, self.batch(rng, number // self.per_step)

    def batch(self, rng: np.random.Generator, step: int = 0) -> Batch:
        """Draw a batch of a training step."""
        cells = self.grid[0] * self.grid[1]
        drawn: list[tuple[int, int, Document]] = []
        tokens = 0

        def size(document: Document) -> int:
            return count_tokens(document, cells, self.in_place)

        while tokens < 0.93 * self.rows * self.length:  # what first-fit packing can fill
            kind, document = self.sampler.draw(rng, step)
            document = trim(document, size, self.length)
            drawn.append((size(document), kind, document))
            tokens += drawn[-1][0]
        drawn.sort(key=lambda one: -one[0])
        documents, kinds = [one[2] for one in drawn], [one[1] for one in drawn]
        return pack(documents, kinds, self.grid, self.window, self.length, self.in_place)


def count_tokens(document: Document, frame_tokens: int, in_place: bool = False) -> int:
    """Tokens that `pack` makes of a document."""
    return 1 + sum(
        len(span.ids)
        if isinstance(span, Text)
        else 2 + frame_tokens * (1 + (span.target and not in_place))
        for span in document
    )


def trim(document: Document, size: Callable[[Document], int], length: int) -> Document:
    """Leave out spans at the end until the document's size fits a row of `length` tokens."""
    kept = list(document)
    while size(kept) > length:
        kept.pop()
    while len(kept) > 1 and isinstance(kept[-1], Text) and kept[-1].role != "text":
        kept.pop()  # words about a frame that is gone
    return kept
