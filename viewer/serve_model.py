"""One model for many rollouts: what several of them ask for at the same time is one batch."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from worldmodel.stream import Engine, Stream

MAX_ROWS = 32
"""Most rollouts in a batch; a single wish may have more."""

GATHER_S = 0.003
"""How long a batch waits for rollouts that were in the last one: they are about to ask again."""


@dataclass(frozen=True)
class _Wish:
    """Something to be done with the model.

    Attributes:
        kind: wishes of the same kind are done together.
        rows: rollouts in it.
        given: what it is done with.
        done: gets the result.
    """

    kind: tuple[object, ...]
    rows: int
    given: Any
    done: Future[Any] = field(default_factory=Future)


Followed = tuple[Stream, tuple[torch.Tensor, ...]]
"""A stream after a step, and what each denoising pass predicted for it, [1, N, C]."""


@dataclass(frozen=True)
class _Steps:
    """Arguments of `Engine.follow`."""

    streams: Sequence[Stream]
    texts: Sequence[Sequence[int]]
    noise: torch.Tensor
    given: torch.Tensor | None
    denoise_steps: int
    guidance: Sequence[float]
    shift: float
    still: Sequence[bool]


class SharedEngine(Engine):
    """An engine that may be asked from many threads; one thread of its own runs the model.

    Who asks waits for the answer. Whatever came in while the model was busy is done next, oldest
    first and as one batch with all that is of its kind, so nobody waits for more than one batch
    before its turn. Frames can differ in the last bits from those of a rollout on its own. Only
    questions, which are text, are read in the thread of who asks.

    Args:
        engine: the model; nobody else may use it meanwhile.
    """

    def __init__(self, engine: Engine) -> None:
        vars(self).update(vars(engine))
        self._wishes: deque[_Wish] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="shared model", daemon=True)
        self._thread.start()

    def follow(
        self,
        streams: Sequence[Stream],
        texts: Sequence[Sequence[int]],
        noise: torch.Tensor,
        given: torch.Tensor | None = None,
        denoise_steps: int = 2,
        guidance: Sequence[float] = (),
        shift: float = 1.0,
        still: Sequence[bool] = (),
    ) -> list[Stream]:
        """As `Engine.follow`, in one batch with what others ask for."""
        steps = _Steps(streams, texts, noise, given, denoise_steps, guidance, shift, still)
        return [stream for stream, _ in self.followed(steps)]

    def followed(self, steps: _Steps) -> list[Followed]:
        """As `follow`, with what the passes predicted."""
        rows = len(steps.streams)
        steps = replace(
            steps,
            guidance=steps.guidance or [1.0] * rows,
            still=steps.still or [False] * rows,
        )
        kind = ("follow", steps.given is None, steps.denoise_steps, steps.shift)
        return self._ask(kind, rows, steps)

    def show(self, latents: torch.Tensor) -> np.ndarray:
        """As `Engine.show`, in one batch with what others ask for."""
        return self._ask(("show",), len(latents), latents)

    def see(self, frames: np.ndarray) -> torch.Tensor:
        """As `Engine.see`, in one batch with what others ask for."""
        return self._ask(("see",), len(frames), frames)

    def close(self) -> None:
        """End the thread; who still waits is told so."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _ask(self, kind: tuple[object, ...], rows: int, given: Any) -> Any:
        wish = _Wish(kind, rows, given)
        with self._change:
            if self._closed:
                raise RuntimeError("The model is no longer served.")
            self._wishes.append(wish)
            self._change.notify()
        return wish.done.result()

    # Everything below runs in the thread.

    def _run(self) -> None:
        expected = 1
        while wishes := self._next(expected):
            self._do(wishes)
            with self._change:  # those served ask again soon, beside those that waited meanwhile
                expected = len(wishes) + len(self._wishes)
        with self._change:
            for wish in self._wishes:
                wish.done.set_exception(RuntimeError("The model is no longer served."))

    def _next(self, expected: int) -> list[_Wish]:
        """Wait for wishes and take those that are done together; none when all is over."""
        with self._change:
            self._change.wait_for(lambda: self._wishes or self._closed)
            self._change.wait_for(lambda: len(self._wishes) >= expected or self._closed, GATHER_S)
            if self._closed:
                return []
            kind, rows = self._wishes[0].kind, 0
            taken, left = [], []
            for wish in self._wishes:
                fits = wish.kind == kind and (not taken or rows + wish.rows <= MAX_ROWS)
                (taken if fits else left).append(wish)
                rows += wish.rows * fits
            self._wishes = deque(left)
            return taken

    def _do(self, wishes: list[_Wish]) -> None:
        work: Callable[..., Sequence[Any]] = getattr(self, f"_{wishes[0].kind[0]}")
        try:
            found = work([wish.given for wish in wishes])
        except Exception as error:
            if len(wishes) == 1:
                wishes[0].done.set_exception(error)
                return
            for wish in wishes:  # one of them is at fault; the others are not to suffer for it
                self._do([wish])
            return
        at = 0
        for wish in wishes:
            wish.done.set_result(found[at : at + wish.rows])
            at += wish.rows

    def _follow(self, given: list[_Steps]) -> list[Followed]:
        first = given[0]
        passes: list[torch.Tensor] = []
        self.watch = passes.append  # nobody else does: a session's own passes are its guest's
        streams = super().follow(
            [stream for steps in given for stream in steps.streams],
            [text for steps in given for text in steps.texts],
            torch.cat([steps.noise for steps in given], dim=1),
            None if first.given is None else torch.cat([s.given for s in given]),  # type: ignore[misc]
            first.denoise_steps,
            [strength for steps in given for strength in steps.guidance],
            first.shift,
            [rests for steps in given for rests in steps.still],
        )
        return [
            (stream, tuple(drawn[i : i + 1] for drawn in passes))
            for i, stream in enumerate(streams)
        ]

    def _show(self, given: list[torch.Tensor]) -> np.ndarray:
        return super().show(torch.cat(given))

    def _see(self, given: list[np.ndarray]) -> torch.Tensor:
        return super().see(np.concatenate(given))


class Guest(Engine):
    """A shared engine as one session sees it: `watch` is told of that session's passes alone.

    Args:
        shared: does the work.
    """

    def __init__(self, shared: SharedEngine) -> None:
        vars(self).update(vars(shared))  # the same model on the same device
        self.watch = None
        self._shared = shared

    def follow(
        self,
        streams: Sequence[Stream],
        texts: Sequence[Sequence[int]],
        noise: torch.Tensor,
        given: torch.Tensor | None = None,
        denoise_steps: int = 2,
        guidance: Sequence[float] = (),
        shift: float = 1.0,
        still: Sequence[bool] = (),
    ) -> list[Stream]:
        """As `Engine.follow`, in one batch with what others ask for."""
        steps = _Steps(streams, texts, noise, given, denoise_steps, guidance, shift, still)
        followed = self._shared.followed(steps)
        if self.watch:
            for drawn in zip(*(passes for _, passes in followed), strict=True):
                self.watch(torch.cat(drawn))
        return [stream for stream, _ in followed]

    def show(self, latents: torch.Tensor) -> np.ndarray:
        """As `Engine.show`, in one batch with what others ask for."""
        return self._shared.show(latents)

    def see(self, frames: np.ndarray) -> torch.Tensor:
        """As `Engine.see`, in one batch with what others ask for."""
        return self._shared.see(frames)
