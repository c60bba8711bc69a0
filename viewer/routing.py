"""Which experts fire at play: the picks of the last steps. No pygame here."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from worldmodel.evaluate.routing import Tally

LAST = 8
"""Steps that are shown together: the text of one step is a handful of tokens."""


@dataclass(frozen=True)
class Routing:
    """Picks of the last steps.

    Attributes:
        picks: by layer, then text and vision, then expert.
    """

    picks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class Watch:
    """Counts what the routers of a core pick in the last steps, see `Tally`."""

    def __init__(self, core: Any) -> None:
        self._tally = Tally(core)
        self._past: deque[torch.Tensor] = deque(maxlen=LAST)

    def forget(self) -> None:
        """Begin with a new step."""
        self._tally.take()

    def read(self) -> Routing:
        """End a step; return the picks of the last ones."""
        self._past.append(self._tally.take())
        layers = torch.stack(tuple(self._past)).sum(0).tolist()
        return Routing(tuple((tuple(text), tuple(vision)) for text, vision in layers))

    def close(self) -> None:
        """Let go of the core."""
        self._tally.close()
