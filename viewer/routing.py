"""Which experts fire, layer by layer, for text and for vision. No pygame here.

At play routers count nothing themselves (their loads are training's, for balancing), so they are
watched from outside while somebody looks, and not at all otherwise.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from worldmodel.moe import Router

LAST = 8
"""Steps that are shown together: the text of one step is a handful of tokens."""


@dataclass(frozen=True)
class Routing:
    """Picks of the last steps.

    Attributes:
        picks: by layer, then text and vision, then expert.
    """

    picks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def routed(core: Any) -> list[Router]:
    """Return the routers of a core, first block first; none where it has no experts to choose."""
    return [module for module in core.modules() if isinstance(module, Router)]


class Watch:
    """Counts what the routers of a core pick, of the first stream of a batch.

    With guidance or in a fork several streams run as one batch; of the others some tokens only
    fill up.
    """

    def __init__(self, core: Any) -> None:
        self._routers = routed(core)
        self._tokens = 0  # of each stream, in the pass that runs
        self._now: list[torch.Tensor] = []
        self._past: deque[torch.Tensor] = deque(maxlen=LAST)
        self._hooks = [core.register_forward_pre_hook(self._enter)]
        self._hooks += [
            router.register_forward_hook(self._counting(i))
            for i, router in enumerate(self._routers)
        ]
        self.forget()

    def forget(self) -> None:
        """Begin with a new step."""
        self._now = [
            router.load.new_zeros(router.load.shape, dtype=torch.int64) for router in self._routers
        ]

    def read(self) -> Routing:
        """End a step; return the picks of the last ones."""
        self._past.append(torch.stack(self._now))
        layers = torch.stack(tuple(self._past)).sum(0).tolist()
        return Routing(tuple((tuple(text), tuple(vision)) for text, vision in layers))

    def close(self) -> None:
        """Let go of the core."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, core: Any, given: tuple[Any, ...]) -> None:
        self._tokens = given[0].shape[1]

    def _counting(self, layer: int) -> Any:
        def count(router: Router, given: tuple[Any, ...], found: tuple[Any, ...]) -> None:
            chosen, modality = found[0][: self._tokens], given[1][: self._tokens]
            counts = self._now[layer]
            flat = (modality.unsqueeze(1) * counts.shape[1] + chosen).flatten()
            counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))

        return count
