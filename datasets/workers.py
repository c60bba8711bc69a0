"""What a worker does, wherever it runs: take a seed, play its episode, commit it, ask for more.

An episode is committed by a thread while the next one is played, so that the world need not wait
for the disk. A worker and whoever it works for talk through a `Channel`.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, Step, World, WorldSpec

_REPORT_S = 0.1  # between two messages about a running episode, and looks for a stop


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
    ray: str = ""
    licence: str = "unspecified"


@dataclass(frozen=True)
class Makers:
    """Where worlds, policies and sentences come from: functions of importable modules."""

    world: MakeWorld
    policy: MakePolicy
    annotate: Annotate


class Event(NamedTuple):
    """What a worker says.

    `kind` and `value` are: 'ready' (wants a seed), 'steps' (played so many more), 'played' (the
    seed's episode, which is being committed; wants a seed), 'done' (committed; (steps, id)),
    'error' (the seed's episode failed; why) or 'user_error' (all would; the sentence).
    """

    kind: str
    seed: int = -1
    value: Any = None


class Stop(Exception):
    """Nobody wants more, or whoever did is gone."""


class Channel(Protocol):
    """A worker's line to whoever it works for; each method raises `Stop` when that one is gone."""

    def take(self) -> int | None:
        """Wait for the next seed; None ends the work."""
        ...

    def tell(self, event: Event) -> None:
        """Say something; also called from the committing thread."""
        ...

    def check(self) -> None:
        """Raise `Stop` if the work is to end now."""
        ...


def work(channel: Channel, config: CollectConfig, makers: Makers) -> None:
    """Collect episodes until there is no more seed, or no one to tell."""
    cv2.setNumThreads(1)  # worlds scale small pictures, and every core has a worker
    worker = _Worker(channel, config, makers)
    try:
        channel.tell(Event("ready"))
        while (seed := channel.take()) is not None:
            worker.collect(seed)
    except Stop:
        pass  # what was played to its end is still committed
    finally:
        worker.close()


class _Worker:
    """A world, and a thread that commits what was played in it."""

    def __init__(self, channel: Channel, config: CollectConfig, makers: Makers) -> None:
        self._channel, self._config, self._makers = channel, config, makers
        self._opened: tuple[World, EpisodeWriter] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._commit: Future[None] | None = None

    def collect(self, seed: int) -> None:
        """Play an episode, and leave it to the thread to commit it.

        Raises:
            Stop: nobody wants more.
        """
        config = self._config
        try:
            world, writer = self._open()
            policy = self._makers.policy(config.policy, seed)
            if (attach := getattr(policy, "attach", None)) is not None:
                attach(world)  # it asks the world for ways
            tape = _play(world, policy, config, seed, self._channel)
            info = episode_info(world, config, seed)
        except Stop:
            raise
        except UserError as error:
            self._channel.tell(Event("user_error", seed, str(error)))
        except Exception as error:
            self._channel.tell(Event("error", seed, _where(error)))
            self._channel.tell(Event("ready"))
            self._close_world()  # it may be in any state: the next episode gets a new one
        else:
            if self._commit:
                self._commit.result()  # one at a time: memory stays flat
            self._channel.tell(Event("played", seed))
            self._commit = self._thread.submit(self._write, writer, tape, info)

    def _open(self) -> tuple[World, EpisodeWriter]:
        """Return the world and what writes its episodes, made when first needed."""
        if self._opened is None:
            config = self._config
            world = self._makers.world(config.env, split=config.split)
            try:
                writer = EpisodeWriter(config.out, world.spec, licence=config.licence)
            except BaseException:
                world.close()
                raise
            self._opened = world, writer
        return self._opened

    def close(self) -> None:
        """Finish the commit under way and close the world."""
        self._thread.shutdown(wait=True)
        self._close_world()

    def _close_world(self) -> None:
        if self._opened is not None:
            (world, _), self._opened = self._opened, None
            world.close()

    def _write(self, writer: EpisodeWriter, tape: "Tape", info: dict[str, Any]) -> None:
        seed = info["seed"]
        try:
            episode = tape.episode(info)
            said = tuple(self._makers.annotate(episode, writer.spec, seed))
            name = writer.write(replace(episode, annotations=said))
            event = Event("done", seed, (episode.num_steps, name))
        except UserError as error:
            event = Event("user_error", seed, str(error))
        except Exception as error:
            event = Event("error", seed, _where(error))
        with contextlib.suppress(Stop):
            self._channel.tell(event)


def _play(
    world: World, policy: Policy, config: CollectConfig, seed: int, channel: Channel
) -> "Tape":
    """Play one episode."""
    spec = world.spec
    step = world.reset(seed)
    policy.reset(seed)
    tape = Tape(spec, config.steps)
    tape.start(step)
    told, due_s = 0, time.monotonic() + _REPORT_S
    while tape.num_steps < config.steps and not (step.terminated or step.truncated):
        action = policy.act(step, spec)
        step = world.step(action)
        tape.add(action, step)
        if time.monotonic() >= due_s:
            channel.check()
            channel.tell(Event("steps", seed, tape.num_steps - told))
            told, due_s = tape.num_steps, time.monotonic() + _REPORT_S
    channel.check()
    channel.tell(Event("steps", seed, tape.num_steps - told))
    return tape


class Tape:
    """The arrays of an episode that is being played, filled in place.

    Args:
        spec: the world that is played.
        steps: as many as there can be.
    """

    def __init__(self, spec: WorldSpec, steps: int) -> None:
        self.num_steps = 0
        self._spec = spec
        self._frames = np.empty((steps + 1, spec.height, spec.width, 3), np.uint8)
        self._moves = np.empty((steps, 3), np.float32)
        self._keys = np.empty(steps, np.uint16)
        self._facts: dict[str, list[np.ndarray]] = {}

    def start(self, step: Step) -> None:
        """Take what the world showed first."""
        self._frames[0] = step.frame
        self._facts = {name: [fact] for name, fact in step.facts.items()}

    def add(self, action: Action, step: Step) -> None:
        """Take an action and what followed."""
        now = self.num_steps
        self._moves[now] = action.dx, action.dy, action.dyaw
        self._keys[now] = self._spec.actions.mask(action)
        self._frames[now + 1] = step.frame
        for name, values in self._facts.items():
            values.append(step.facts[name])
        self.num_steps = now + 1

    def episode(self, info: dict[str, Any]) -> Episode:
        """Return the episode so far, without annotations; it shares memory with the tape."""
        steps = self.num_steps
        return Episode(
            frames=self._frames[: steps + 1],
            actions=self._moves[:steps],
            keys=self._keys[:steps],
            facts={name: np.stack(values) for name, values in self._facts.items()},
            annotations=(),
            info=info,
        )


def episode_info(world: World, config: CollectConfig, seed: int) -> dict[str, Any]:
    """Return what an episode's info says: what was asked for, and what the world adds."""
    own: Any = getattr(world, "info", {})  # a mapping, where a world has more to say
    info = {"world": config.env, "seed": seed, "split": config.split, "policy": config.policy}
    return {**own, **info}


def _where(error: Exception) -> str:
    """Return an error in one line, with the place in the code where it happened."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
