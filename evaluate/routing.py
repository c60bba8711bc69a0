"""Counting which experts the routers of a core pick, layer by layer, for text and for vision.

Outside of training routers count nothing themselves (their loads are training's, for balancing),
so they are watched from outside while somebody looks, and not at all otherwise.
"""

from typing import Any

import torch

from worldmodel.moe import Router, routers


class Tally:
    """Counts what the routers of a core pick, of the first stream of a batch.

    In a fork several streams run as one batch; of the others some tokens only fill up. What
    guidance imagines without words is counted with the stream's own.

    Args:
        core: with one router at least, see `worldmodel.moe.routers`.
    """

    def __init__(self, core: Any) -> None:
        self._routers = routers(core)
        self._tokens = 0  # of each stream, in the pass that runs
        self._counts = self._zeros()
        self._hooks = [core.register_forward_pre_hook(self._enter)]
        self._hooks += [
            router.register_forward_hook(self._counting(i))
            for i, router in enumerate(self._routers)
        ]

    def take(self) -> torch.Tensor:
        """Return the picks since the last call, int64 [layers, 2, experts], and begin anew."""
        found, self._counts = torch.stack(self._counts), self._zeros()
        return found

    def close(self) -> None:
        """Let go of the core."""
        for hook in self._hooks:
            hook.remove()

    def _zeros(self) -> list[torch.Tensor]:
        return [
            router.load.new_zeros(router.load.shape, dtype=torch.int64) for router in self._routers
        ]

    def _enter(self, core: Any, given: tuple[Any, ...]) -> None:
        self._tokens = given[0].shape[1]

    def _counting(self, layer: int) -> Any:
        def count(router: Router, given: tuple[Any, ...], found: tuple[Any, ...]) -> None:
            chosen, modality = found[0][: self._tokens], given[1][: self._tokens]
            counts = self._counts[layer]
            flat = (modality.unsqueeze(1) * counts.shape[1] + chosen).flatten()
            counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))

        return count
