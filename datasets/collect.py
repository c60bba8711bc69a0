"""Collect episodes: workers play worlds with a policy and commit what they saw.

Episode number e uses the seed `seed + e` for the level, the policy and the sentences, so a store
does not depend on how many workers made it or where, and a run that was stopped goes on where it
was. `workers` is what a worker does, `pool` who gives it work.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from worldmodel.datasets import disk
from worldmodel.datasets.disk import place
from worldmodel.datasets.pool import LocalPool, Pool
from worldmodel.datasets.schema import EPISODES
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.workers import Annotate, CollectConfig, MakePolicy, Makers, MakeWorld
from worldmodel.errors import UserError


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
    done = seeds_done(config)
    pending = [seed for seed in asked if seed not in done]
    if not pending:
        print(
            f"{config.out} already holds all {len(asked)} '{config.split}' episodes with seeds "
            f"{asked[0]} to {asked[-1]}; ask for more with episodes=, or others with seed=."
        )
        return 0
    if len(pending) < len(asked):
        print(f"{config.out} holds {len(asked) - len(pending)} of these; going on.")
    makers = Makers(make_world, make_policy, annotate)
    with _sigterm_as_interrupt(), _connected(config) as make_pool:
        pool = make_pool(config, pending, makers)
        try:
            pool.run()
        except KeyboardInterrupt:
            pool.stop()
            print(_stopped(config, asked), file=sys.stderr)
            return 130
        finally:
            pool.stop()
    return _summary(config, pool)


@contextlib.contextmanager
def _connected(config: CollectConfig) -> Iterator[type[Pool]]:
    """Give the kind of pool that the settings ask for, its cluster reached."""
    if not config.ray:
        yield LocalPool
        return
    from worldmodel.datasets.ray_pool import RayPool, connected

    with connected(config.ray):
        yield RayPool


def _check(config: CollectConfig) -> None:
    for name in ("episodes", "steps", "workers"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} must be at least 1.")
    if config.seed < 0:
        raise UserError(f"seed={config.seed} must not be negative.")
    if config.steps > 99_999:
        raise UserError(f"steps={config.steps} is too many for one episode; at most 99999.")
    disk.writable(config.out)
    if config.out.startswith("memory://"):
        raise UserError(
            f"out={config.out}: the memory of a process ends with it, and several collect; choose "
            "a folder, or a URL that all of them see."
        )


def seeds_done(config: CollectConfig) -> set[int]:
    """Return the seeds of the split's episodes in the store; none where there is no store."""
    path = place(config.out)
    if disk.is_free(path, EPISODES):
        return set()
    store = EpisodeStore(path)
    return {store.describe(name).seed for name in store.select(config.split)}


def _stopped(config: CollectConfig, asked: range) -> str:
    there = len(seeds_done(config) & set(asked))
    return (
        f"\nStopped. {there} of {len(asked)} episodes are safe in {config.out}; "
        "give the same command again to go on."
    )


def _summary(config: CollectConfig, pool: Pool) -> int:
    total = len(EpisodeStore(config.out).ids) if place(config.out).exists() else 0
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
