"""The same collection over a Ray cluster.

Each worker is an actor with a CPU of its own. Workers and pool talk through a `_Board`, an actor
beside the pool: so a worker's line never breaks in the middle, and a node may die at any time.
Episodes go straight into the store, whose folder all nodes must see.
"""

import asyncio
import contextlib
import logging
import socket
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from worldmodel.datasets import disk
from worldmodel.datasets.disk import place
from worldmodel.datasets.pool import Hand, Pool
from worldmodel.datasets.schema import EPISODES
from worldmodel.datasets.workers import CollectConfig, Event, Makers, Stop, work
from worldmodel.errors import UserError

_LISTEN_S = 0.5  # between two looks for workers that died
_REACH_S = 5.0  # to reach the cluster's address
_STOP_S = 15.0  # how long the workers may take to close their worlds

Numbered = tuple[int, Event]


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a client of the cluster at `address`, 'auto' for the one that this machine is part of.

    A connection that is there already is used and left open.

    Raises:
        UserError: Ray is missing, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"ray={address} needs Ray ({error}): pip install 'worldmodel[ray]'."
        ) from error
    if ray.is_initialized():
        yield
        return
    _reach(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # whatever Ray makes of an address
        raise UserError(
            f"There is no Ray cluster at ray={address} ({_first_line(error)}). Start one with "
            "`ray start --head`, or leave ray= out to use this machine alone."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try for minutes.

    Raises:
        UserError: likewise.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    try:
        socket.create_connection((host, int(port)), _REACH_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"ray={address} cannot be reached ({error}); 'auto' or HOST:PORT of a running cluster "
            "is expected, as `ray start --head` prints it."
        ) from error


class RayPool(Pool):
    """Actors of the cluster that this process is connected to."""

    second_chances = 1  # a node may die for reasons of its own

    def __init__(self, config: CollectConfig, pending: list[int], makers: Makers) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        config = replace(config, out=str(place(config.out).absolute()))
        super().__init__(config, pending, makers)
        self._ray, self._started = ray, 0
        self._board: Any = (
            ray.remote(_Board)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, True))
            .remote()
        )
        self._actor = ray.remote(_Actor).options(num_cpus=1, max_restarts=0)
        self._news: Any = None

    def start(self) -> None:
        """See `Pool`."""
        self._started += 1
        actor: Any = self._actor.remote()
        job = actor.work.remote(self._board, self._started, self.config, self.makers)
        self.hands.append(Hand(self._started, actor, job))

    def listen(self) -> None:
        """See `Pool`."""
        ray = self._ray
        self._news = self._news or self._board.read.remote(_LISTEN_S)
        jobs = {hand.process: hand for hand in self.hands}
        ready, _ = ray.wait([self._news, *jobs], timeout=2 * _LISTEN_S)
        ended = [jobs[job] for job in ready if job in jobs]
        if self._news in ready or ended:
            self._read(self._news)
        if ended:  # its last words may have come after that
            self._read(self._board.read.remote(0.0))
        for hand in ended:
            try:
                ray.get(hand.process)
            except ray.exceptions.RayError as error:
                self.lost(hand, f"died ({_first_line(error)})")
            else:
                self.hands.remove(hand)

    def _read(self, news: Any) -> None:
        self._news = None
        for number, event in self._ray.get(news):
            hand = next((hand for hand in self.hands if hand.number == number), None)
            if hand:
                self.hear(hand, event)

    def send(self, hand: Hand, seed: int | None) -> None:
        """See `Pool`."""
        self._board.give.remote(hand.number, seed)

    def check(self, hand: Hand, name: str) -> None:
        """Look whether the worker's store is ours, once for each.

        Raises:
            UserError: it is not: it wrote into a folder of its own machine.
        """
        if not hand.proven and not disk.is_committed(place(self.config.out) / EPISODES / name):
            raise UserError(
                f"Worker {hand.number} wrote an episode that is not to be seen at "
                f"{self.config.out} here: with ray= the store must lie in a folder that all nodes "
                "share, under the same path."
            )

    def dismiss(self) -> None:
        """See `Pool`."""
        self.hands = [hand for hand in self.hands if hand.ready or self._ray.kill(hand.line)]

    def end(self) -> None:
        """See `Pool`."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._board.stop.remote()
            begun = [hand.process for hand in self.hands if hand.ready]
            if begun:
                self._ray.wait(begun, num_returns=len(begun), timeout=_STOP_S)
        for hand in self.hands:
            self._ray.kill(hand.line)
        self._ray.kill(self._board)


class _Board:
    """An actor that holds what workers say until the pool reads it, and their next seeds."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[Numbered] = asyncio.Queue()
        self._seeds: dict[int, asyncio.Queue[int | None]] = defaultdict(asyncio.Queue)
        self._stopped = asyncio.Event()

    async def write(self, number: int, events: list[Event]) -> bool:
        """Take what a worker says; return whether to stop."""
        for event in events:
            self._said.put_nowait((number, event))
        return self._stopped.is_set()

    async def read(self, timeout_s: float) -> list[Numbered]:
        """Wait for news up to so many seconds, and return all there are."""
        news = []
        if timeout_s and self._said.empty():
            with contextlib.suppress(TimeoutError):
                news.append(await asyncio.wait_for(self._said.get(), timeout_s))
        while not self._said.empty():
            news.append(self._said.get_nowait())
        return news

    async def give(self, number: int, seed: int | None) -> None:
        """Put down a worker's next seed."""
        self._seeds[number].put_nowait(seed)

    async def take(self, number: int) -> int | None:
        """Wait for a worker's next seed; None also when all is to stop."""
        seed = asyncio.ensure_future(self._seeds[number].get())
        stopped = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait({seed, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return seed.result() if seed.done() else None

    async def stop(self) -> None:
        """Let all workers end."""
        self._stopped.set()


class _Actor:
    """A worker on some node."""

    def work(self, board: Any, number: int, config: CollectConfig, makers: Makers) -> None:
        """Collect until there is no more seed."""
        work(_Line(board, number), config, makers)


class _Line:
    """A worker's line to the board. Implements `Channel`."""

    def __init__(self, board: Any, number: int) -> None:
        import ray

        self._ray, self._board, self._number = ray, board, number
        self._asked: Any = None

    def take(self) -> int | None:
        """See `Channel`."""
        with self._stopping():
            return self._ray.get(self._board.take.remote(self._number))

    def tell(self, event: Event) -> None:
        """See `Channel`."""
        with self._stopping():
            answer = self._board.write.remote(self._number, [event])
            if event.kind == "steps":
                self._asked = answer  # read by the next `check`, which so never waits
            else:
                self._ray.get(answer)  # it is there before the worker goes on, or dies

    def check(self) -> None:
        """See `Channel`."""
        with self._stopping():
            if self._asked is not None and self._ray.get(self._asked):
                raise Stop

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except self._ray.exceptions.RayError as error:
            raise Stop from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
