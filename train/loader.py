"""Batches prepared ahead by threads, in an order that does not depend on how many there are."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Loader(Generic[T]):
    """What `make(number)` gives, for one number after the other.

    `make` must be a function of the number alone; then any number of workers gives the same. They
    are threads: reading, decoding and most of NumPy and torch leave Python's lock to the model.
    """

    def __init__(self, make: Callable[[int], T], workers: int = 0, stride: int = 1) -> None:
        """Use so many threads; 0 makes each batch when it is asked for.

        Numbers are expected to go up by `stride`.
        """
        self._make, self._workers, self._stride = make, workers, stride
        self._pool = ThreadPoolExecutor(workers, "loader") if workers else None
        self._coming: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        """Return a batch; those in a row are quick.

        An error that `make` raised is raised here, at its number.
        """
        if self._pool is None:
            return self._make(number)
        wanted = range(number, number + (self._workers + 1) * self._stride, self._stride)
        for old in self._coming.keys() - set(wanted):  # the run went elsewhere
            self._coming.pop(old).cancel()
        for coming in wanted:
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(self._make, coming)
        return self._coming.pop(number).result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._coming.clear()
