"""Worlds: environments behind the World protocol, their facts, their language, their policies."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from worldmodel.envs.gym_config import PRESETS, GymConfig, load_config, load_preset
from worldmodel.envs.registration import register
from worldmodel.errors import UserError, suggest
from worldmodel.world import Annotation, Episode, World, WorldSpec

if TYPE_CHECKING:
    from worldmodel.envs.policies import Policy

WORLDS = ("doom", "habitat", *PRESETS)
"""Names of worlds; besides them 'habitat:SCENE', any Gymnasium id as 'gym:ID', and YAML files."""

register()


def make_world(name: str, **options: Any) -> World:
    """Return a new world.

    Args:
        name: one of `WORLDS`; 'habitat:SCENE' for a scene file, a scene dataset or a YAML file
            that describes one; 'gym:ID' for a Gymnasium id, whose keys are then assumed; or the
            path of a YAML file that describes a Gymnasium world (docs/worlds.md).
        options: the world's own. All have `split` ('train', 'val', 'test') and `size`, the
            height and width of the frames; 'doom' also `native` (120, 240, 480), see
            `worldmodel.envs.doom.world.DoomWorld`; 'habitat' those of
            `worldmodel.envs.habitat.config.HabitatConfig`.

    Raises:
        UserError: an unknown name or option, a package that is missing.
    """
    kind, _, scene = name.partition(":")
    if kind == "habitat":
        return _make_habitat(scene, options)
    make: Callable[..., World]
    if name == "doom":
        try:
            from worldmodel.envs.doom.world import DoomWorld  # loads the engine
        except ImportError as error:
            raise UserError(
                f"World 'doom' needs ViZDoom ({error}): pip install vizdoom."
            ) from error
        make = DoomWorld
    else:
        config = _describe(name)
        from worldmodel.envs.gym import GymWorld

        make = partial(GymWorld, config)
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise UserError(f"World '{name}' has no option '{option}'.{suggest(option, known)}")
    return make(**options)


def _make_habitat(scene: str, options: dict[str, Any]) -> World:
    from worldmodel.envs.habitat.config import describe
    from worldmodel.envs.habitat.world import HabitatWorld

    split = options.pop("split", "train")
    return HabitatWorld(describe(scene, options), split)


def _describe(name: str) -> GymConfig:
    """Return the description of a Gymnasium world."""
    if name.startswith("gym:") and len(name) > len("gym:"):
        gym_id = name.removeprefix("gym:")
        return GymConfig(name=gym_id, id=gym_id)
    if name.endswith((".yaml", ".yml")):
        return load_config(name)
    if name in PRESETS:
        return load_preset(name)
    raise UserError(
        f"Unknown world '{name}'.{suggest(name, WORLDS)} Any Gymnasium id works as 'gym:ID', a "
        "scene as 'habitat:SCENE', and a YAML file describes a world of your own."
    )


def make_policy(name: str, seed: int = 0) -> "Policy":
    """Return a new policy: 'explore', 'goto', 'random', 'mix', 'drive', 'geodesic', 'coverage'.

    A policy that has a method `attach` must be given the world before it acts: 'geodesic' and
    'coverage' ask it for ways, and so does 'mix' where the world knows them.

    Raises:
        UserError: an unknown name.
    """
    from worldmodel.envs import driving, policies
    from worldmodel.envs.habitat import navigation

    known: dict[str, Callable[[int], Policy]] = {
        **policies.POLICIES,
        **driving.POLICIES,
        **navigation.POLICIES,
    }
    if name not in known:
        raise UserError(f"Unknown policy '{name}'.{suggest(name, known)}")
    return known[name](seed)


def annotate(episode: Episode, spec: WorldSpec, seed: int = 0) -> tuple[Annotation, ...]:
    """Return captions, questions and instructions that are true of `episode`.

    The same seed gives the same sentences.
    """
    from worldmodel.envs import language

    return language.annotate(episode, spec, np.random.default_rng(seed))
