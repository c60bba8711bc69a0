"""GymWorld: any Gymnasium environment as a World, by a small description (`gym_config`)."""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from worldmodel.actions import Action
from worldmodel.envs import miniworld_facts, racing_facts
from worldmodel.envs.doom.levels import SPLITS
from worldmodel.envs.gym_config import GymConfig
from worldmodel.envs.gym_controls import derive, make_controls
from worldmodel.envs.scratch import Scratch
from worldmodel.errors import UserError, suggest
from worldmodel.world import Step, WorldSpec

_MIN_SIDE = 16  # a smaller 'image' is a map of symbols, as MiniGrid's observation
_PICTURE_KEYS = ("screen", "rgb", "pixels", "image", "pov", "observation")
_MODULES = {  # who registers the ids that begin so
    "ALE/": "ale_py",
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
    "MiniWorld-": "miniworld",
    "Vizdoom": "vizdoom.gymnasium_wrapper",
}
_PIP = {
    "ale_py": "ale-py",
    "crafter": "crafter",
    "minigrid": "minigrid",
    "miniworld": "miniworld",
    "vizdoom": "vizdoom",
    "Box2D": "gymnasium[box2d]",
    "mujoco": "gymnasium[mujoco]",
}


class GymWorld:
    """A Gymnasium environment that is played with keys. Implements `World`.

    A split and a seed give one native seed, and no two splits share one. Where the environment
    has no action that does nothing, a step without keys leaves it as it is and shows the frame
    again.

    Args:
        config: what is played and how; keys are derived from the action space if it has none,
            and what was assumed is then said on stderr.
        split: 'train', 'val' or 'test'.
        size: height and width of the frames, instead of the description's.

    Raises:
        UserError: an unknown split or id, a package that is missing, or a description that does
            not fit the environment.
    """

    def __init__(self, config: GymConfig, split: str = "train", size: int | None = None) -> None:
        if split not in SPLITS:
            raise UserError(f"Unknown split '{split}'.{suggest(split, SPLITS)}")
        if size is not None and size < 8:
            raise UserError(f"size must be at least 8, got {size}.")
        self._split, self._seed, self._native_seed = split, -1, -1
        self._fit, self._repeat, self._settle = config.fit, config.repeat, config.settle
        self._region = config.region
        self._facts = config.facts
        self._env = _make(config)
        try:
            self._scratch = Scratch(self, "gym") if "vizdoom" in _module_of(self._env) else None
            self._source = config.source or _find_picture(self._env)
            _check_source(self._env, self._source, config.id)
            left_out, derived = "", not config.rows
            if derived:
                config, left_out = derive(self._env, config)
            controls = make_controls(self._env, config)
        except BaseException:
            self._close_env()
            raise
        # What is in sight is told of the agent's own view only.
        self._miniworld = _is_miniworld(self._env) and self._source.startswith("obs")
        names = miniworld_facts.object_names(self._env) if self._miniworld else ()
        self._racing = racing_facts.is_racing(self._env)
        self._native, self._id = controls.native, config.id
        fps = config.fps or float(self._env.metadata.get("render_fps") or 30) / config.repeat
        height, width = (size, size) if size else (config.height, config.width)
        self._spec = WorldSpec(config.name, controls.table, height, width, fps, names)
        self._step: Step | None = None
        self._closed = False
        if derived:
            self._tell(config, left_out)

    @property
    def spec(self) -> WorldSpec:
        """The world's description."""
        return self._spec

    @property
    def env(self) -> gymnasium.Env:
        """The environment itself."""
        return self._env

    @property
    def info(self) -> dict[str, Any]:
        """Where the current episode comes from, as plain values."""
        return {
            "world": self._spec.name,
            "id": self._id,
            "split": self._split,
            "level_seed": self._native_seed,
        }

    def reset(self, seed: int | None = None) -> Step:
        """Start anew; None takes the seed after the last one. Returns the first frame."""
        seed = self._seed + 1 if seed is None else int(seed)
        if seed < 0:
            raise UserError(f"A seed is a whole number from 0, got {seed}.")
        if self._closed:
            raise UserError("The world is closed; make a new one.")
        # No two splits share a native seed, whatever the environment makes of it.
        self._seed, self._native_seed = seed, seed * len(SPLITS) + SPLITS.index(self._split)
        if self._scratch is None:
            observed, info = self._env.reset(seed=self._native_seed)
        else:
            with self._scratch.working():  # ViZDoom writes files where it starts
                observed, info = self._env.reset(seed=self._native_seed)
        idle = self._native(())
        if self._settle and idle is not None:
            observed, terminated, truncated, info = self._advance(idle, self._settle)
            if terminated or truncated:
                raise UserError(f"{self._id} ends within settle={self._settle} steps; lower it.")
        self._step = Step(self._frame(observed), facts=self._read_facts(info))
        return self._step

    def step(self, action: Action) -> Step:
        """Hold the action's keys for `repeat` native steps and return what follows.

        Raises:
            UserError: no `reset` yet, an episode that has ended, or a displacement without keys.
        """
        last = self._step
        if last is None:
            raise UserError("The world has not begun yet: call reset() first.")
        if last.terminated or last.truncated:
            raise UserError("The episode has ended: call reset() first.")
        if not action.keys and not action.idle:
            raise UserError(
                f"The world '{self._spec.name}' is moved by keys, not by metres and degrees."
            )
        pressed = self._spec.actions.press(action.keys)
        text, native = self._spec.actions.text(pressed), self._native(pressed.keys)
        if native is None:
            self._step = Step(last.frame, facts=last.facts, text=text)
            return self._step
        observed, terminated, truncated, info = self._advance(native, self._repeat)
        frame = self._frame(observed)
        if terminated and not frame.any():
            frame = last.frame  # ViZDoom has no picture of the end and gives zeros
        facts = self._read_facts(info)
        self._step = Step(frame, bool(terminated), bool(truncated), facts, text)
        return self._step

    def _advance(self, native: Any, times: int) -> tuple[Any, bool, bool, dict[str, Any]]:
        """Do a native action up to so often; return what is seen, how it ended, and the info."""
        observed, terminated, truncated, info = None, False, False, {}
        for left in reversed(range(times)):
            hidden = racing_facts.unseen(self._env) if self._racing and left else nullcontext()
            with hidden:
                observed, _, terminated, truncated, info = self._env.step(native)
            if terminated or truncated:
                if self._racing and left:
                    observed = racing_facts.picture(self._env)
                break
        return observed, terminated, truncated, info

    def close(self) -> None:
        """Close the environment."""
        if not self._closed:
            self._closed, self._step = True, None
            self._close_env()
            if self._scratch is not None:
                self._scratch.close()

    def _close_env(self) -> None:
        # Gymnasium's own games end all of pygame when they close their surface; the viewer,
        # whose window that would be, may still need it.
        for name in ("screen", "window_surface"):
            if vars(self._env.unwrapped).get(name) is not None:
                setattr(self._env.unwrapped, name, None)
        self._env.close()

    def _frame(self, observed: Any) -> np.ndarray:
        """Return the picture of an observation, uint8 RGB [height, width, 3]."""
        if self._source == "render":
            picture: Any = self._env.render()
        elif self._source == "obs":
            picture = observed
        else:
            picture = observed[self._source.removeprefix("obs:")]
        picture = np.asarray(picture)
        if picture.ndim == 2:
            picture = picture[..., None]
        if picture.shape[-1] == 1:
            picture = np.repeat(picture, 3, axis=-1)
        if self._region:
            top, left, high, wide = self._region
            whole, picture = picture.shape, picture[top : top + high, left : left + wide]
            if picture.shape[:2] != (high, wide):
                raise UserError(
                    f"region: the pictures of {self._id} are {whole[0]} high and {whole[1]} wide; "
                    f"{list(self._region)} (top, left, height, width) leads out of them."
                )
        height, width = self._spec.height, self._spec.width
        if self._fit == "crop":
            picture = _middle(picture, height / width)
        if picture.shape[:2] == (height, width):
            return np.array(picture, np.uint8)
        picture = np.ascontiguousarray(picture[..., :3], np.uint8)
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)

    def _read_facts(self, info: Mapping[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if self._miniworld:
            facts = miniworld_facts.read(self._env, self._spec.objects)
        if self._racing:
            facts = racing_facts.read(self._env)
        for fact, place in self._facts.items():
            value: Any = info
            for part in place.split("."):
                if not isinstance(value, Mapping) or part not in value:
                    known = value if isinstance(value, Mapping) else ()
                    raise UserError(
                        f"facts: info has no '{place}' in {self._id} (a fact must be there after "
                        f"reset, too).{suggest(part, map(str, known))}"
                    )
                value = value[part]
            facts[fact] = np.asarray(value, np.float32)
        return facts

    def _tell(self, config: GymConfig, left_out: str) -> None:
        """Say what was assumed; of a collector's processes only the first one does."""
        if multiprocessing.current_process().name not in ("MainProcess", "SpawnProcess-1"):
            return
        keys = ", ".join(f"{row.key} {row.name}" for row in self._spec.actions.rows)
        rest = "steps nothing" if self._native(()) is None else f"is {self._native(())}"
        more = f"; {left_out}" if left_out else ""
        print(
            f"worldmodel: {config.id} has no description, so its keys are assumed: {keys}{more}.\n"
            f"worldmodel: no key {rest}; frames from '{self._source}' in "
            f"{self._spec.width}x{self._spec.height}. A YAML file says it better: docs/worlds.md.",
            file=sys.stderr,
        )


def _make(config: GymConfig) -> gymnasium.Env:
    """Return the environment, its package imported.

    Raises:
        UserError: a package that is missing, an unknown id, or arguments that it does not take.
    """
    module, _, bare = config.id.rpartition(":")
    module = module or next((m for start, m in _MODULES.items() if bare.startswith(start)), "")
    kwargs = dict(config.kwargs)
    if not config.source.startswith("obs"):
        kwargs.setdefault("render_mode", "rgb_array")
    if bare.startswith("Vizdoom"):
        kwargs.setdefault("audio_buffer_enabled", False)  # with it the engine crashes
    try:
        if module == "miniworld":
            _prepare_pyglet()
        if module:
            importlib.import_module(module)
        return gymnasium.make(bare, disable_env_checker=True, **kwargs)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        package = _PIP.get(module.partition(".")[0]) or next(
            (pip for name, pip in _PIP.items() if name.lower() in str(error).lower()), ""
        )
        how = f"pip install '{package}'" if package else "install what it names"
        raise UserError(f"The world '{config.name}' needs a package ({error}): {how}.") from error
    except gymnasium.error.UnregisteredEnv as error:
        near = suggest(bare, gymnasium.registry).partition(" Known:")[0]
        raise UserError(
            f"Gymnasium knows no environment '{bare}'.{near} An id that another package registers "
            "is written 'package:id'."
        ) from error
    except Exception as error:  # whatever an environment makes of the user's id and arguments
        raise UserError(
            f"The environment {config.id} could not be made ({type(error).__name__}: {error})."
        ) from error


def _prepare_pyglet() -> None:
    """Let pyglet draw without a display where there is none; must precede miniworld's import."""
    import pyglet

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        pyglet.options["headless"] = True


def _is_miniworld(env: gymnasium.Env) -> bool:
    return any(base.__module__.startswith("miniworld.") for base in type(env.unwrapped).__mro__)


def _module_of(env: gymnasium.Env) -> str:
    return type(env.unwrapped).__module__


def _find_picture(env: gymnasium.Env) -> str:
    """Return where the frames come from: an observation that is a picture, else the rendering."""
    space = env.observation_space
    if _is_picture(space):
        return "obs"
    if isinstance(space, spaces.Dict):
        for key in (*_PICTURE_KEYS, *space.keys()):
            if key in space.keys() and _is_picture(space[key]):  # noqa: SIM118 (not a dict)
                return f"obs:{key}"
    return "render"


def _is_picture(space: Any) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) < 2:
        return False
    channels = space.shape[2:]
    return channels in ((), (1,), (3,)) and min(space.shape[:2]) >= _MIN_SIDE


def _check_source(env: gymnasium.Env, source: str, name: str) -> None:
    if source == "render":
        if env.render_mode != "rgb_array":
            raise UserError(
                f"{name} gives no pictures: it has no observation that is an image, and cannot "
                "be rendered as 'rgb_array'."
            )
        return
    space: Any = env.observation_space
    key = source.removeprefix("obs:")
    if source != "obs":
        known = list(space.keys()) if isinstance(space, spaces.Dict) else []
        if key not in known:
            raise UserError(f"source: {name} has no observation '{key}'.{suggest(key, known)}")
        space = space[key]
    if not _is_picture(space):
        raise UserError(f"source: '{source}' of {name} is no picture but {space}; try 'render'.")


def _middle(picture: np.ndarray, ratio: float) -> np.ndarray:
    """Return the largest middle part of a picture whose height is `ratio` times its width."""
    height, width = picture.shape[:2]
    wide, high = min(width, round(height / ratio)), min(height, round(width * ratio))
    top, left = (height - high) // 2, (width - wide) // 2
    return picture[top : top + high, left : left + wide]
