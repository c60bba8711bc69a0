"""Batches prepared ahead by threads, in an order that does not depend on how many there are."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Loader(Generic[T]):
    """What `make(step)` gives, for one step after the other.

    `make` must be a function of the step alone; then any number of workers gives the same. They
    are threads: reading, decoding and most of NumPy and torch leave Python's lock to the model.
    """

    def __init__(self, make: Callable[[int], T], workers: int = 0) -> None:
        """Use so many threads; 0 makes each step's batch when it is asked for."""
        self._make, self._workers = make, workers
        self._pool = ThreadPoolExecutor(workers, "loader") if workers else None
        self._coming: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """Return the batch of a step; steps in a row are quick.

        An error that `make` raised is raised here, at its step.
        """
        if self._pool is None:
            return self._make(step)
        wanted = range(step, step + self._workers + 1)
        for old in self._coming.keys() - set(wanted):  # the run went elsewhere
            self._coming.pop(old).cancel()
        for number in wanted:
            if number not in self._coming:
                self._coming[number] = self._pool.submit(self._make, number)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._coming.clear()
