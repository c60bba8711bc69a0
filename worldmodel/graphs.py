"""A core's passes at play as CUDA graphs: hundreds of small kernels become one launch.

With one rollout the processor takes longer to launch a pass than the GPU to compute it. So a pass
is recorded once and then replayed on new values. Only passes of equal shapes can share a graph:
`worldmodel.stream` rounds lengths up, so that few shapes occur.
"""

import warnings
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import dataclass

import torch

from worldmodel.transformer import Core, KVCache

MOST = 24
"""Graphs that are kept; a frame takes one a denoising step. Each has a cache of its own."""

Work = Callable[..., torch.Tensor]
"""(core, cache, layout, *inputs) -> output; writes keys and values behind the committed tokens."""


@dataclass(frozen=True)
class _Graph:
    """A recorded pass, with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    cache: KVCache
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor

    def replay(self, cache: KVCache, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Run on other values, with keys and values from and to `cache`."""
        first = cache.length
        self.cache.data[..., :first, :].copy_(cache.data[..., :first, :])
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        cache.data[..., first:, :].copy_(self.cache.data[..., first:, :])
        return self.output.clone()


class Graphs:
    """Runs `work` for one core on a GPU: as it is the first time, then from a graph.

    Where that fails, it says so once and runs everything as it is.

    Attributes:
        replayed: passes that were replays.
    """

    def __init__(self, work: Work, core: Core) -> None:
        self.replayed = 0
        self._work, self._core = work, core
        self._seen: set[tuple[object, ...]] = set()  # shapes that came once; most never come again
        self._made: dict[tuple[object, ...], _Graph] = {}  # the one used last is the last
        self._pool = torch.cuda.graph_pool_handle()
        self._able = True

    def __call__(self, cache: KVCache, layout: Hashable, *inputs: torch.Tensor) -> torch.Tensor:
        """Return what `work` gives for these."""
        key = (layout, cache.length, cache.data.shape, *(x.shape for x in inputs))
        if self._able and key in self._seen and key not in self._made:
            try:
                self._made[key] = self._record(cache, layout, inputs)
            except RuntimeError as error:
                self._able = False
                cause = str(error).partition("\n")[0]
                warnings.warn(
                    f"CUDA graphs cannot be used, so play is slower: {cause}", stacklevel=2
                )
        if not self._able or key not in self._made:
            self._seen.add(key)
            return self._work(self._core, cache, layout, *inputs)
        graph = self._made[key] = self._made.pop(key)
        if len(self._made) > MOST:
            self._made.pop(next(iter(self._made)))
        self.replayed += 1
        return graph.replay(cache, inputs)

    def _record(self, cache: KVCache, layout: Hashable, inputs: tuple[torch.Tensor, ...]) -> _Graph:
        """Record a pass, on memory of its own."""
        mine = copy(cache)
        mine.data = cache.data.clone(memory_format=torch.contiguous_format)
        held = tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # libraries prepare themselves outside of the recording
            self._work(self._core, mine, layout, *held)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Outputs are copied before the next replay, so all graphs can share their memory. Other
        # threads (a viewer's, say) may go on allocating meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self._work(self._core, mine, layout, *held)
        return _Graph(graph, mine, held, output)
