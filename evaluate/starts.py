"""Where an imagination begins: a recorded episode, a picture, a real world."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from worldmodel.actions import Action
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Start
from worldmodel.replay import Replay, action_at
from worldmodel.world import Episode, World, WorldSpec

if TYPE_CHECKING:
    from worldmodel.datasets.store import EpisodeStore

CONTEXT_FRAMES = 4
"""Frames taken from a recorded episode."""

LEAST_SIDE = 16
"""Pixels that a picture needs on each side, to be one."""


@dataclass(frozen=True)
class Given:
    """What a dream is given before it imagines.

    Attributes:
        frames: uint8 [n, H, W, 3], n at least 1.
        actions: the n-1 between them.
    """

    frames: np.ndarray
    actions: tuple[Action, ...] = ()


def find_start(start: Start, spec: WorldSpec) -> Given | None:
    """Return the frames that `start` names; None for a bundled start.

    Raises:
        UserError: a picture, store, episode or world that is not there or does not fit.
    """
    if start.image:
        return Given(_picture(start.image, spec)[None])
    if start.store:
        return _recorded(start, spec)
    if start.world:
        world = open_world(start, spec)
        try:
            return Given(world.reset(start.seed or 0).frame[None])
        finally:
            world.close()
    return None


def open_world(start: Start, spec: WorldSpec) -> World:
    """Open the real environment of a start, in the size of the frames of `spec`.

    Raises:
        UserError: no such world, or one with other frames or keys.
    """
    from worldmodel.envs import make_world

    assert start.world is not None
    options = {"split": start.split} if start.split else {}
    make: Callable[..., World] = make_world
    world = make(start.world, **options)
    theirs, ours = world.spec, spec
    if (theirs.height, theirs.width) != (ours.height, ours.width):
        world.close()
        world = make(start.world, **options, size=ours.height)
        theirs = world.spec
    try:
        _refuse_misfit(f"World '{start.world}'", theirs, ours)
    except UserError:
        world.close()
        raise
    return world


def open_recordings(path: str, spec: WorldSpec) -> Replay:
    """Open a store as a world whose seeds are the numbers of its episodes.

    Raises:
        UserError: no such store, or one with other frames or keys than `spec`.
    """
    store = _open_store(path)
    _refuse_misfit(f"Store '{path}'", store.spec, spec)
    return Replay(store.spec, partial(_episode, store))


def _refuse_misfit(name: str, theirs: WorldSpec, ours: WorldSpec) -> None:
    if (theirs.height, theirs.width) != (ours.height, ours.width):
        raise UserError(
            f"{name} has frames of {theirs.width}x{theirs.height} pixels, the "
            f"model imagines {ours.width}x{ours.height}. Start in a world of that size."
        )
    if theirs.actions.keys != ours.actions.keys:
        raise UserError(
            f"{name} has the keys {', '.join(theirs.actions.keys)}, but the model "
            f"knows {', '.join(ours.actions.keys)}. Start in the world it was trained on."
        )


def _picture(path: str, spec: WorldSpec) -> np.ndarray:
    """Return the middle of a picture, uint8 RGB [H, W, 3] in the world's size."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise UserError(f"The start image '{path}' is no picture that can be read.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read the start image '{path}': {reason}.") from error
    if min(upright.size) < LEAST_SIDE:
        raise UserError(
            f"The start image '{path}' has only {upright.width}x{upright.height} pixels; it needs "
            f"{LEAST_SIDE} on each side."
        )
    shrinks = upright.width >= spec.width and upright.height >= spec.height
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(ImageOps.fit(upright, (spec.width, spec.height), how), dtype=np.uint8)


def _recorded(start: Start, spec: WorldSpec) -> Given:
    assert start.store is not None
    store = _open_store(start.store)
    episode = _episode(store, start.episode)
    if start.step > episode.num_steps:
        raise UserError(
            f"Episode {start.episode} of '{start.store}' has {episode.num_steps} steps; "
            f"the start names step {start.step}."
        )
    first = max(0, start.step - CONTEXT_FRAMES + 1)
    actions = [action_at(episode, index, spec.actions) for index in range(first, start.step)]
    return Given(episode.frames[first : start.step + 1], tuple(actions))


def _open_store(path: str) -> "EpisodeStore":
    from worldmodel.datasets.disk import place
    from worldmodel.datasets.store import EpisodeStore

    if not place(path).exists():
        raise UserError(f"There is no store at '{path}', which the start names.")
    return EpisodeStore(path)


def _episode(store: "EpisodeStore", number: int) -> Episode:
    if not 0 <= number < len(store.ids):
        raise UserError(
            f"The store '{store.path}' has {len(store.ids)} episodes, numbered from 0; "
            f"the start names episode {number}."
        )
    return store.read(store.ids[number])
