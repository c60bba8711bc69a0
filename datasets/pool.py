"""Who collects: hands out seeds, shows progress, survives dying workers.

`Pool` is what all pools share; `LocalPool` runs processes of this machine, `ray_pool.RayPool`
actors of a cluster.
"""

import contextlib
import multiprocessing
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm

from worldmodel.datasets.workers import CollectConfig, Event, Makers, Stop, work
from worldmodel.errors import UserError

_FAILURES_IN_A_ROW = 3  # after so many the run ends: it is not one unlucky seed
_COMMITS = 3  # so often an episode is played again whose worker died before committing it
_STOP_S = 10.0  # how long a worker may take to close its world


@dataclass
class Hand:
    """A worker as its pool sees it.

    Attributes:
        number: counts the workers, from 1.
        line: how to reach it.
        process: what runs it.
        playing: the seed whose episode it plays.
        committing: seeds that it has played and not yet committed.
        ready: whether it has begun. proven: whether it has committed anything.
    """

    number: int
    line: Any
    process: Any
    playing: int | None = None
    committing: set[int] = field(default_factory=set)
    ready: bool = False
    proven: bool = False

    @property
    def busy(self) -> bool:
        """Whether it has anything in hand."""
        return self.playing is not None or bool(self.committing)


class Pool(ABC):
    """Workers, and the seeds that are pending, committed or failed.

    Attributes:
        pending: seeds to be played; the next one is the last.
        failed: seeds whose episodes could not be made.
        committed: how many episodes are in the store.
        second_chances: how often an episode that its worker died over is tried again.
    """

    second_chances = 0

    def __init__(self, config: CollectConfig, pending: list[int], makers: Makers) -> None:
        self.config, self.makers = config, makers
        self.pending = pending[::-1]
        self.failed: list[int] = []
        self.committed = 0
        self.hands: list[Hand] = []
        self._lost: Counter[tuple[int, int]] = Counter()
        self._in_a_row = 0
        slow = 0.5 if sys.stderr.isatty() else 30.0
        total = len(pending) * config.steps
        self._bar = tqdm(total=total, unit="frame", desc=config.split, mininterval=slow)
        self._bar.set_postfix(episodes=0, refresh=False)

    def run(self) -> None:
        """Work until nothing is pending, or until nothing succeeds any more."""
        for _ in range(min(self.config.workers, len(self.pending))):
            self.start()
        while self.hands:
            self.listen()
            if not self.pending and not any(h.busy for h in self.hands):
                self.dismiss()

    def stop(self) -> None:
        """End all workers, let them close their worlds, and drop episodes in flight."""
        with no_interrupt():
            self.end()
            self.hands = []
            self._bar.close()

    @abstractmethod
    def start(self) -> None:
        """Start a worker and add it to `hands`."""

    @abstractmethod
    def listen(self) -> None:
        """Wait for workers to say something, or to die."""

    @abstractmethod
    def send(self, hand: Hand, seed: int | None) -> None:
        """Give a worker its next seed, or None to let it end; one that is dead hears nothing."""

    @abstractmethod
    def end(self) -> None:
        """End all workers now, those that do not listen by force."""

    def dismiss(self) -> None:  # noqa: B027 (not every pool has such workers)
        """Let go of workers that have not begun, when nothing is left to do."""

    def hear(self, hand: Hand, event: Event) -> None:
        """Take what a worker says."""
        seed = event.seed
        match event.kind:
            case "ready":
                hand.ready = True
                self._give(hand)
            case "steps":
                self._bar.update(event.value)
            case "played":
                hand.committing.add(seed)
                self._give(hand)
            case "done":
                steps, name = event.value
                hand.committing.discard(seed)
                self.check(hand, name)
                hand.proven = True
                self.committed += 1
                self._in_a_row = 0
                self._bar.total -= self.config.steps - steps  # an episode may end early
                self._bar.set_postfix(episodes=self.committed, refresh=False)
            case "user_error":
                raise UserError(event.value)
            case "error":
                hand.committing.discard(seed)
                if hand.playing == seed:
                    hand.playing = None
                self._fail(hand, seed, f"failed: {event.value}")

    def check(self, hand: Hand, name: str) -> None:  # noqa: B027 (nor reason to doubt)
        """Look at what a worker says it has committed."""

    def lost(self, hand: Hand, how: str) -> None:
        """Take a worker's death: the episode that it was playing may have caused it.

        What it had played and not yet committed hardly has, and is played again.
        """
        self.hands.remove(hand)
        seeds = [(seed, _COMMITS) for seed in sorted(hand.committing)]
        if hand.playing is not None:
            seeds.append((hand.playing, self.second_chances))
        for lost in reversed(seeds):  # the last one pending is the next
            seed, chances = lost
            self._lost[lost] += 1
            if self._lost[lost] <= chances:
                self.pending.append(seed)
                self._say(f"Worker {hand.number} {how}; seed {seed} is tried again.")
            else:
                self._fail(hand, seed, how)
        if not hand.ready:
            self._say(f"Worker {hand.number} {how} before it began.")
            self._count_failure()
        if self.pending:
            self.start()

    def _give(self, hand: Hand) -> None:
        hand.playing = self.pending.pop() if self.pending else None
        self.send(hand, hand.playing)

    def _fail(self, hand: Hand, seed: int, how: str) -> None:
        self.failed.append(seed)
        self._say(
            f"Worker {hand.number} {how}; the episode with seed {seed} is not stored, "
            "the committed ones are intact."
        )
        self._count_failure()

    def _count_failure(self) -> None:
        self._in_a_row += 1
        if self._in_a_row >= _FAILURES_IN_A_ROW:
            raise UserError(
                f"{self._in_a_row} episodes failed one after the other, so the collection ends; "
                f"{self.committed} episodes of this run are safe in {self.config.out}."
            )

    def _say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)


class LocalPool(Pool):
    """Processes of this machine, each with a pipe."""

    _started = 0

    def start(self) -> None:
        """See `Pool`."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._started += 1
        process = context.Process(
            target=_work, args=(theirs, self.config, self.makers), daemon=True
        )
        with no_interrupt():
            process.start()
        theirs.close()
        self.hands.append(Hand(self._started, ours, process))

    def listen(self) -> None:
        """See `Pool`."""
        pipes: Any = [hand.line for hand in self.hands]
        for pipe in wait(pipes):
            hand = next(hand for hand in self.hands if hand.line is pipe)
            try:
                event = hand.line.recv()
            except (EOFError, OSError):
                hand.process.join()
                hand.line.close()
                self.lost(hand, f"died ({_ending(hand.process.exitcode)})")
            else:
                self.hear(hand, event)

    def send(self, hand: Hand, seed: int | None) -> None:
        """See `Pool`."""
        with contextlib.suppress(OSError):  # one that just died is noticed when listened to
            hand.line.send(seed)

    def end(self) -> None:
        """See `Pool`."""
        end_processes([(hand.process, hand.line) for hand in self.hands])


def end_processes(workers: Sequence[tuple[BaseProcess, Connection]]) -> None:
    """Close the lines to processes that end by that, and kill those that do not in time."""
    for _, line in workers:
        line.close()
    for process, _ in workers:
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()
            process.join()


class _Pipe:
    """A worker's end of a pipe. Implements `Channel`."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def take(self) -> int | None:
        """See `Channel`."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise Stop from None

    def tell(self, event: Event) -> None:
        """See `Channel`."""
        try:
            with self._lock:
                self._pipe.send(event)
        except OSError:
            raise Stop from None

    def check(self) -> None:
        """See `Channel`."""
        if self._pipe.poll():  # no seed comes unasked, so it is the end of the line
            raise Stop


def _work(pipe: Connection, config: CollectConfig, makers: Makers) -> None:
    """Body of a worker process."""
    work(_Pipe(pipe), config, makers)


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
    """Ignore Ctrl-C; processes started inside ignore it for good, from their first line on."""
    try:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
