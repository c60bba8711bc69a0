"""Worlds: environments behind the World protocol, their facts, their language, their policies."""

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel.errors import UserError, suggest
from worldmodel.world import Annotation, Episode, World, WorldSpec

if TYPE_CHECKING:
    from worldmodel.envs.policies import Policy

WORLDS = ("doom",)


def make_world(name: str, **options: Any) -> World:
    """Return a new world.

    Args:
        name: one of `WORLDS`.
        options: the world's own, for 'doom' see `worldmodel.envs.doom.world.DoomWorld`:
            `split` ('train', 'val', 'test'), `native` (120, 240, 480), `size`.

    Raises:
        UserError: an unknown name or option.
    """
    if name not in WORLDS:
        raise UserError(f"Unknown world '{name}'.{suggest(name, WORLDS)}")
    try:
        from worldmodel.envs.doom.world import DoomWorld  # loads the engine: only when wanted
    except ImportError as error:
        raise UserError(f"World 'doom' needs ViZDoom ({error}): pip install vizdoom.") from error
    known = inspect.signature(DoomWorld).parameters
    for option in options:
        if option not in known:
            raise UserError(f"World '{name}' has no option '{option}'.{suggest(option, known)}")
    return DoomWorld(**options)


def make_policy(name: str, seed: int = 0) -> "Policy":
    """Return a new policy: 'explore', 'goto', 'random' or 'mix'.

    Raises:
        UserError: an unknown name.
    """
    from worldmodel.envs import policies

    return policies.make_policy(name, seed)


def annotate(episode: Episode, spec: WorldSpec, seed: int = 0) -> tuple[Annotation, ...]:
    """Return captions, questions and instructions that are true of `episode`.

    The same seed gives the same sentences.
    """
    from worldmodel.envs import language

    return language.annotate(episode, spec, np.random.default_rng(seed))
