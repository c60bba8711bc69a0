"""Where an imagination begins: a recorded episode, a picture, a real world."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldmodel.actions import Action
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Start
from worldmodel.world import Episode, World, WorldSpec

CONTEXT_FRAMES = 4
"""Frames taken from a recorded episode."""


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
    if (theirs.height, theirs.width) != (ours.height, ours.width):
        world.close()
        raise UserError(
            f"World '{start.world}' has frames of {theirs.width}x{theirs.height} pixels, the "
            f"model imagines {ours.width}x{ours.height}. Start in a world of that size."
        )
    if theirs.actions.keys != ours.actions.keys:
        world.close()
        raise UserError(
            f"World '{start.world}' has the keys {', '.join(theirs.actions.keys)}, but the model "
            f"knows {', '.join(ours.actions.keys)}. Start in the world it was trained on."
        )
    return world


def _picture(path: str, spec: WorldSpec) -> np.ndarray:
    """Return the middle of a picture, uint8 RGB [H, W, 3] in the world's size."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(
                image.convert("RGB"), (spec.width, spec.height), Image.Resampling.BOX
            )
    except UnidentifiedImageError as error:
        raise UserError(f"The start image '{path}' is no picture that can be read.") from error
    except (OSError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read the start image '{path}': {reason}.") from error
    return np.asarray(fitted, dtype=np.uint8)


def _recorded(start: Start, spec: WorldSpec) -> Given:
    from worldmodel.datasets.disk import place
    from worldmodel.datasets.store import EpisodeStore

    assert start.store is not None
    if not place(start.store).exists():
        raise UserError(f"There is no store at '{start.store}', which the start names.")
    store = EpisodeStore(start.store)
    if start.episode >= len(store.ids):
        raise UserError(
            f"The store '{start.store}' has {len(store.ids)} episodes, numbered from 0; "
            f"the start names episode {start.episode}."
        )
    episode = store.read(store.ids[start.episode])
    if start.step > episode.num_steps:
        raise UserError(
            f"Episode {start.episode} of '{start.store}' has {episode.num_steps} steps; "
            f"the start names step {start.step}."
        )
    first = max(0, start.step - CONTEXT_FRAMES + 1)
    actions = [_action(episode, index, spec) for index in range(first, start.step)]
    return Given(episode.frames[first : start.step + 1], tuple(actions))


def _action(episode: Episode, index: int, spec: WorldSpec) -> Action:
    mask = int(episode.keys[index])
    if mask:
        return spec.actions.from_mask(mask)
    dx, dy, dyaw = (float(value) for value in episode.actions[index])
    return Action((), dx, dy, dyaw)
