"""Batches prepared ahead, in an order that does not depend on how many work on them."""

import multiprocessing
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from worldmodel.datasets.pool import end_processes, no_interrupt
from worldmodel.errors import UserError

T = TypeVar("T")
_STOP_S = 5.0  # how long a process may take to end


class Loader(Generic[T]):
    """What `make(number)` gives, for one number after the other.

    `make` must be a function of the number alone; then any number of workers gives the same. They
    are threads, for what waits or leaves Python's lock to the model: `Processes`, copies, NumPy.
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


@dataclass
class _Worker:
    """A process and the line to it."""

    process: BaseProcess
    line: Connection


class Processes(Generic[T]):
    """`make(number)` done by other processes, for as many threads as there are processes.

    They are started anew, not forked: they know nothing of this process but a copy of `make`,
    so a GPU in use here does not matter to them. They end when this process does,
    however it ends.
    """

    def __init__(self, make: Callable[[int], T], count: int) -> None:
        """Start `count` processes; in the main thread, so that Ctrl-C is left to this process."""
        context = multiprocessing.get_context("spawn")
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        self._all: list[_Worker] = []
        for number in range(count):
            ours, theirs = context.Pipe()
            name = f"draws-{number}"
            process = context.Process(target=_work, args=(theirs, make), name=name, daemon=True)
            with no_interrupt():
                process.start()
            theirs.close()
            self._all.append(_Worker(process, ours))
            self._free.put(self._all[-1])

    def __call__(self, number: int) -> T:
        """Return `make(number)`; waits where more threads than processes ask.

        An error of `make` is raised here, with the process's traceback as a note.

        Raises:
            UserError: the process was killed.
        """
        worker = self._free.get()
        try:
            worker.line.send(number)
            made, error = worker.line.recv()
        except (EOFError, OSError):
            worker.process.join(_STOP_S)
            raise UserError(
                f"A process that draws batches ended (exit code {worker.process.exitcode}) at "
                f"batch {number}; memory may be short. Give the same command again, which goes on "
                "from the last saved state, with fewer core.workers."
            ) from None
        finally:
            self._free.put(worker)
        if error is not None:
            raise error
        return made

    def close(self) -> None:
        """End the processes."""
        end_processes([(worker.process, worker.line) for worker in self._all])


def _work(line: Connection, make: Callable[[int], Any]) -> None:
    """Body of a process: numbers come in, (what was made, None) or (None, the error) go out."""
    import torch

    torch.set_num_threads(1)
    try:
        while True:
            number = line.recv()
            try:
                found = make(number), None
            except Exception as error:
                found = None, _portable(error)
            line.send(found)
    except (EOFError, OSError):
        pass  # whom it works for is gone


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; a plain one where it could not be made again."""
    where = traceback.format_exc()
    try:
        type(error)(*error.args)
    except Exception:
        return RuntimeError(where)
    error.add_note(where)
    return error
