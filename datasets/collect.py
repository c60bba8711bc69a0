"""Collect episodes: worker processes play worlds with a policy and commit what they saw.

Episode number e uses the seed `seed + e` for the level, the policy and the sentences, so a store
does not depend on how many workers made it, and a run that was stopped goes on where it was.
"""

import contextlib
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, Step, World, WorldSpec

_REPORT_STEPS = 32  # steps between two messages of a worker to the progress bar
_FAILURES_IN_A_ROW = 3  # after so many the run ends: it is not one unlucky seed
_STOP_S = 10.0  # how long a worker may take to close its world


class Policy(Protocol):
    """What decides the actions while collecting."""

    def act(self, step: Step, spec: WorldSpec) -> Action:
        """Return the action that follows what `step` shows."""
        ...

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        ...


MakeWorld = Callable[..., World]
MakePolicy = Callable[[str, int], Policy]
Annotate = Callable[[Episode, WorldSpec, int], Sequence[Annotation]]


@dataclass(frozen=True)
class CollectConfig:
    """What to collect; see conf/collect.yaml for the meaning of each field."""

    env: str = "doom"
    out: str = "data/doom.zarr"
    episodes: int = 100
    steps: int = 256
    split: str = "train"
    seed: int = 0
    policy: str = "mix"
    workers: int = 2
    licence: str = "unspecified"


def main(
    config: CollectConfig, make_world: MakeWorld, make_policy: MakePolicy, annotate: Annotate
) -> int:
    """Collect the episodes that are asked for and not yet there; return the exit code.

    Args:
        config: what to collect.
        make_world: `make_world(env, split=split)` gives a world. It and the next two are handed
            to spawned processes, so they must be functions of an importable module.
        make_policy: `make_policy(name, seed)` gives a policy.
        annotate: `annotate(episode, spec, seed)` gives sentences about an episode.

    Returns:
        0 all asked episodes are there; 1 some failed; 130 stopped by Ctrl-C or SIGTERM.

    Raises:
        UserError: a setting that makes no sense, or a store that does not fit.
    """
    _check(config)
    asked = range(config.seed, config.seed + config.episodes)
    done = _seeds_done(config)
    pending = [seed for seed in asked if seed not in done]
    if not pending:
        print(
            f"{config.out} already holds all {len(asked)} '{config.split}' episodes with seeds "
            f"{asked[0]} to {asked[-1]}; ask for more with episodes=, or others with seed=."
        )
        return 0
    if len(pending) < len(asked):
        print(f"{config.out} holds {len(asked) - len(pending)} of these; going on.")
    pool = _Pool(config, pending, (make_world, make_policy, annotate))
    with _sigterm_as_interrupt():
        try:
            pool.run()
        except KeyboardInterrupt:
            pool.stop()
            print(_stopped(config, asked), file=sys.stderr)
            return 130
        finally:
            pool.stop()
    return _summary(config, pool)


def _check(config: CollectConfig) -> None:
    for name in ("episodes", "steps", "workers"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} must be at least 1.")
    if config.seed < 0:
        raise UserError(f"seed={config.seed} must not be negative.")
    if config.steps > 99_999:
        raise UserError(f"steps={config.steps} is too many for one episode; at most 99999.")


def _seeds_done(config: CollectConfig) -> set[int]:
    path = Path(config.out)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return set()
    store = EpisodeStore(path)
    return {store.describe(name).seed for name in store.select(config.split)}


def _stopped(config: CollectConfig, asked: range) -> str:
    there = len(_seeds_done(config) & set(asked))
    return (
        f"\nStopped. {there} of {len(asked)} episodes are safe in {config.out}; "
        "give the same command again to go on."
    )


def _summary(config: CollectConfig, pool: "_Pool") -> int:
    total = len(EpisodeStore(config.out).ids) if Path(config.out).exists() else 0
    print(f"Collected {pool.committed} episodes; {config.out} now holds {total}.")
    left = len(pool.pending) + len(pool.failed)
    if not left:
        return 0
    print(
        f"{left} episodes are missing: {len(pool.failed)} failed, {len(pool.pending)} were not "
        "tried. Give the same command again to collect them.",
        file=sys.stderr,
    )
    return 1


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, end the run as cleanly as Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
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


@dataclass
class _Worker:
    """One process, the parent's end of its pipe, and the seed it works on."""

    process: Any
    pipe: Connection
    number: int
    seed: int | None = None


class _Pool:
    """The parent's side: hands out seeds, shows progress, survives dying workers."""

    def __init__(self, config: CollectConfig, pending: list[int], makers: tuple[Any, ...]) -> None:
        self.config, self.makers = config, makers
        self.pending = pending[::-1]
        self.failed: list[int] = []
        self.committed = 0
        self._in_a_row = 0
        self._started = 0
        self._workers: list[_Worker] = []
        self._bar: tqdm | None = None

    def run(self) -> None:
        """Work until nothing is pending, or until nothing succeeds any more."""
        total = len(self.pending) * self.config.steps
        slow = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(total=total, unit="frame", desc=self.config.split, mininterval=slow)
        for _ in range(min(self.config.workers, len(self.pending))):
            self._start()
        while self._workers:
            pipes: Any = [worker.pipe for worker in self._workers]
            for pipe in wait(pipes):
                self._hear(next(w for w in self._workers if w.pipe is pipe))

    def stop(self) -> None:
        """End all workers, let them close their worlds, and drop episodes in flight."""
        with _no_interrupt():
            for worker in self._workers:
                worker.pipe.close()
            for worker in self._workers:
                worker.process.join(_STOP_S)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
            self._workers = []
            if self._bar is not None:
                self._bar.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._started += 1
        process = context.Process(
            target=_work, args=(theirs, self.config, *self.makers), daemon=True
        )
        with _no_interrupt():
            process.start()
        theirs.close()
        worker = _Worker(process, ours, self._started)
        self._workers.append(worker)
        self._give(worker)

    def _give(self, worker: _Worker) -> None:
        """Send a worker its next seed, or let it end."""
        worker.seed = self.pending.pop() if self.pending else None
        with contextlib.suppress(OSError):  # a worker that just died is noticed when read from
            worker.pipe.send(worker.seed)

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._gone(worker)
            return
        assert self._bar is not None
        if kind == "steps":
            self._bar.update(value)
        elif kind == "done":
            self.committed += 1
            self._in_a_row = 0
            self._bar.total -= self.config.steps - value  # an episode may end early
            self._bar.set_postfix(episodes=self.committed, refresh=False)
            self._give(worker)
        elif kind == "user_error":
            raise UserError(value)
        elif kind == "error":
            self._fail(worker, f"failed: {value}")
            self._give(worker)

    def _gone(self, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        if worker.seed is None:
            return
        self._fail(worker, f"died ({_ending(worker.process.exitcode)})")
        if self.pending:
            self._start()

    def _fail(self, worker: _Worker, how: str) -> None:
        assert worker.seed is not None
        self.failed.append(worker.seed)
        self._in_a_row += 1
        tqdm.write(
            f"Worker {worker.number} {how}; the episode with seed {worker.seed} is not stored, "
            "the committed ones are intact.",
            file=sys.stderr,
        )
        if self._in_a_row >= _FAILURES_IN_A_ROW:
            raise UserError(
                f"{self._in_a_row} episodes failed one after the other, so the collection ends; "
                f"{self.committed} episodes of this run are safe in {self.config.out}."
            )


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"


class _Stop(Exception):
    """The parent wants no more, or is gone."""


def _work(
    pipe: Connection,
    config: CollectConfig,
    make_world: MakeWorld,
    make_policy: MakePolicy,
    annotate: Annotate,
) -> None:
    """Body of a worker process: a seed comes in, an episode is committed, until None comes."""
    world = None
    try:
        while (seed := pipe.recv()) is not None:
            try:
                world = world or make_world(config.env, split=config.split)
                writer = EpisodeWriter(config.out, world.spec, licence=config.licence)
                policy = make_policy(config.policy, seed)
                episode = _play(world, policy, config, seed, pipe)
                writer.write(_annotated(episode, annotate, world.spec, seed))
                _tell(pipe, "done", episode.num_steps)
            except _Stop:
                raise
            except UserError as error:
                _tell(pipe, "user_error", str(error))
            except Exception as error:
                _tell(pipe, "error", _where(error))
                if world is not None:
                    world.close()  # it may be in any state: the next episode gets a new one
                    world = None
    except (_Stop, EOFError, ConnectionError):
        pass  # the parent stopped or died: nothing to do but to close the world
    finally:
        if world is not None:
            world.close()


def _tell(pipe: Connection, kind: str, value: int | str) -> None:
    """Send the parent a message.

    Raises:
        _Stop: the parent is gone.
    """
    try:
        pipe.send((kind, value))
    except OSError:
        raise _Stop from None


def _play(
    world: World, policy: Policy, config: CollectConfig, seed: int, pipe: Connection
) -> Episode:
    """Play one episode; its annotations are still empty."""
    spec = world.spec
    step = world.reset(seed)
    policy.reset(seed)
    steps, actions, unreported = [step], [], 0
    while len(actions) < config.steps and not (step.terminated or step.truncated):
        if pipe.poll():
            raise _Stop
        action = policy.act(step, spec)
        step = world.step(action)
        actions.append(action)
        steps.append(step)
        unreported += 1
        if unreported == _REPORT_STEPS:
            _tell(pipe, "steps", unreported)
            unreported = 0
    _tell(pipe, "steps", unreported)
    return episode_of(steps, actions, spec, _info(world, config, seed))


def _info(world: World, config: CollectConfig, seed: int) -> dict[str, Any]:
    own: Any = getattr(world, "info", {})  # a mapping, where a world has more to say
    info = {"world": config.env, "seed": seed, "split": config.split, "policy": config.policy}
    return {**own, **info}


def episode_of(
    steps: Sequence[Step], actions: Sequence[Action], spec: WorldSpec, info: dict[str, Any]
) -> Episode:
    """Return the episode of T+1 steps and the T actions between them, without annotations."""
    moves = [(action.dx, action.dy, action.dyaw) for action in actions]
    return Episode(
        frames=np.stack([step.frame for step in steps]),
        actions=np.asarray(moves, np.float32).reshape(-1, 3),
        keys=np.asarray([spec.actions.mask(action) for action in actions], np.uint16),
        facts={name: np.stack([s.facts[name] for s in steps]) for name in steps[0].facts},
        annotations=(),
        info=info,
    )


def _annotated(episode: Episode, annotate: Annotate, spec: WorldSpec, seed: int) -> Episode:
    said = tuple(annotate(episode, spec, seed))
    return Episode(episode.frames, episode.actions, episode.keys, episode.facts, said, episode.info)


def _where(error: Exception) -> str:
    """Return an error in one line, with the place in the code where it happened."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
