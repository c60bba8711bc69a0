"""Where an imagination begins: a bundled start, a recorded episode, a picture, a real world."""

import numpy as np

from worldmodel.actions import Action
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Start
from worldmodel.viewer.session import Context
from worldmodel.world import WorldSpec

CONTEXT_FRAMES = 4
"""Frames taken from a recorded episode."""


def make_context(start: Start, spec: WorldSpec) -> Context | None:
    """Return the frames that `start` names; None for a bundled start.

    Raises:
        UserError: a picture, store, episode or world that is not there or does not fit.
    """
    if start.image:
        return Context(_picture(start.image, spec)[None])
    if start.store:
        return _recorded(start, spec)
    if start.world:
        from worldmodel.envs import make_world

        world = make_world(start.world)
        try:
            return Context(world.reset(start.seed or 0).frame[None])
        finally:
            world.close()
    return None


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


def _recorded(start: Start, spec: WorldSpec) -> Context:
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
    return Context(episode.frames[first : start.step + 1], tuple(actions))


def _action(episode, index: int, spec: WorldSpec) -> Action:
    mask = int(episode.keys[index])
    if mask:
        return spec.actions.from_mask(mask)
    dx, dy, dyaw = (float(value) for value in episode.actions[index])
    return Action((), dx, dy, dyaw)
